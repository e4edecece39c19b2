"""How the big families of models write tool calls. Pure: a table, and which row a template belongs to.

A template does not say how the model answers, but it writes earlier calls into the conversation in that form, or tells
the model the form; either way the row's marks stand in the template's text. gpt-oss has a language of its own
(harmony.py).
"""

from dataclasses import dataclass
from typing import Literal

Body = Literal["json", "named", "xml", "python", "gemma"]
"""One reader each in call_bodies.py."""


@dataclass(frozen=True, slots=True)
class Section:
    """Where calls stand: `open inner call between call … close`, each call being `call_open body call_close`.

    Answers are read with less rigour: white space before and within markers may be missing or more, `inner` and what
    closes may be missing, a comma or semicolon may stand between calls.
    """

    bodies: tuple[Body, ...]
    open: str = ""
    """"": at the beginning of the answer, without any marker. Then only known tools can be called."""
    close: str = ""
    inner: str = ""
    call_open: str = ""
    call_close: str = ""
    between: str | None = None
    """None: a section holds one call; more calls are more sections."""
    argument_key: str = "arguments"
    """Of the body "json", as the model is told to write it."""
    before_arguments: str = ""
    """Of the body "named"."""
    skip: str = ""
    """Of the body "named": a marker with a word after it that may stand before `before_arguments`."""
    quote: str = ""
    """Of the body "gemma": what stands around a text."""
    hand_over: str = ""
    """What a model writes after its calls to have them answered. It and all that follows, which would be answers that
    the model made up, is dropped."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    name: str
    marks: tuple[str, ...]
    """A template that contains all of these belongs here."""
    sections: tuple[Section, ...]
    """The first is the one that an answer is held to where a call is required."""
    special: bool
    """Whether the markers may be special tokens whose text an engine hides."""
    between_sections: str = ""
    id_length: int | None = None
    """The template takes ids of calls only as so many letters and digits."""

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(
            mark
            for at in self.sections
            for mark in (at.open, at.close, at.call_open, at.call_close, at.before_arguments, at.quote)
            if mark
        )


def _deepseek(words: str) -> str:
    """A special token of DeepSeek's: between bars of full width, with U+2581 for spaces."""
    return f"<\uff5c{words.replace(' ', chr(0x2581))}\uff5c>"


_LLAMA_SECTIONS = (
    Section(("json",), between="; ", argument_key="parameters"),
    Section(("python",), inner="[", close="]", between=", "),
    Section(("json", "python"), open="<|python_tag|>", inner="[", close="]", between="; "),
)
_MISTRAL = "[TOOL_CALLS]"

TOOL_FORMATS = (
    # deepseek-ai/DeepSeek-V3-0324, DeepSeek-R1-0528: their chat templates.
    ToolFormat(
        "deepseek-v3",
        (_deepseek("tool call begin"), _deepseek("tool sep"), "```json"),
        (
            Section(
                ("named",),
                open=_deepseek("tool calls begin"),
                close=_deepseek("tool calls end"),
                call_open=_deepseek("tool call begin") + "function" + _deepseek("tool sep"),
                before_arguments="\n```json\n",
                call_close="\n```" + _deepseek("tool call end"),
                between="\n",
            ),
        ),
        special=True,
    ),
    # deepseek-ai/DeepSeek-V3.1: its card, "ToolCall".
    ToolFormat(
        "deepseek-v3.1",
        (_deepseek("tool call begin"), _deepseek("tool sep")),
        (
            Section(
                ("named",),
                open=_deepseek("tool calls begin"),
                close=_deepseek("tool calls end"),
                call_open=_deepseek("tool call begin"),
                before_arguments=_deepseek("tool sep"),
                call_close=_deepseek("tool call end"),
                between="",
            ),
        ),
        special=True,
    ),
    # Mistral Small 3.2 and later: mistral-common's tokenizers v11 (with a call's id) and v13 (without).
    ToolFormat(
        "mistral",
        (_MISTRAL, "[ARGS]"),
        (Section(("named",), open=_MISTRAL, before_arguments="[ARGS]", skip="[CALL_ID]"),),
        special=True,
        id_length=9,
    ),
    # Mistral 7B v0.3, Nemo, Large 2: mistral-common's tokenizer v3.
    ToolFormat(
        "mistral-v3",
        (_MISTRAL,),
        (Section(("json",), open=_MISTRAL, inner="[", close="]", between=", "),),
        special=True,
        id_length=9,
    ),
    # Qwen/Qwen3-Coder-30B-A3B-Instruct: its chat template.
    ToolFormat(
        "qwen-coder",
        ("<tool_call>", "<function=", "<parameter="),
        (Section(("xml",), open="<tool_call>", close="\n</tool_call>", call_open="\n"),),
        special=False,
        between_sections="\n",
    ),
    # NousResearch/Hermes-2-Pro and -3, Qwen2.5, Qwen3: their cards and chat templates.
    ToolFormat(
        "hermes",
        ("<tool_call>",),
        (Section(("json",), open="<tool_call>", close="\n</tool_call>", call_open="\n"),),
        special=False,
        between_sections="\n",
    ),
    # google/gemma-4: its chat template.
    ToolFormat(
        "gemma-4",
        ("<|tool_call>call:",),
        (Section(("gemma",), open="<|tool_call>", close="<tool_call|>", quote='<|"|>'),),
        special=True,
    ),
    # google/functiongemma: ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices.
    ToolFormat(
        "functiongemma",
        ("<start_function_call>",),
        (
            Section(
                ("gemma",),
                open="<start_function_call>",
                close="<end_function_call>",
                quote="<escape>",
                hand_over="<start_function_response>",
            ),
        ),
        special=True,
    ),
    # Gemma 3 told to write Python: ai.google.dev/gemma/docs, "tool_code" in the guides for Gemma 3.
    ToolFormat(
        "gemma-code",
        ("<start_of_turn>", "tool_code"),
        (
            Section(("python", "json"), open="```tool_code", close="\n```", call_open="\n", between="\n"),
            Section(("json", "python"), inner="[", close="]", between=", "),
        ),
        special=False,
    ),
    # Gemma 3 told to write JSON: ai.google.dev/gemma/docs/capabilities/function-calling.
    ToolFormat(
        "gemma-json",
        ("<start_of_turn>", "tool"),
        (
            Section(("json",), between=", ", argument_key="parameters"),
            Section(("python", "json"), inner="[", close="]", between=", "),
            Section(
                ("json", "python"), open="```json", close="\n```", call_open="\n", argument_key="parameters"
            ),
            Section(("python", "json"), open="```tool_code", close="\n```", call_open="\n", between="\n"),
        ),
        special=False,
    ),
    # Llama 3.1 to 3.3: meta-llama/llama-models, models/llama3_1/prompt_format.md and llama3_2/text_prompt_format.md.
    ToolFormat("llama-3", ("<|python_tag|>",), _LLAMA_SECTIONS, special=True),
    ToolFormat("llama-3", ("<|start_header_id|>", '"parameters"'), _LLAMA_SECTIONS, special=True),
)


def tool_format_of(template: str) -> ToolFormat | None:
    """The first row that the template belongs to; None where it belongs to none."""
    for row in TOOL_FORMATS:
        if all(mark in template for mark in row.marks):
            return row
    return None

"""Answers of the big families, as their makers document them, read piece by piece."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.answer_parser import FormatParser
from serving.deltas import Content
from serving.harmony import HarmonyParser
from serving.reasoning import REASONING
from serving.tool_formats import TOOL_FORMATS, tool_format_of
from tests.answer_reading import TEMPLATES, TOOLS, Answer, chat_format, read
from tests.documented_answers import DOCUMENTED, WEATHER, deepseek


def prompt_end(template: str) -> str:
    return "<|start|>user<|message|>x<|end|><|start|>assistant" if template == "gpt_oss" else ""


def parsed(template: str, *pieces: str, end: str | None = None) -> Answer:
    parser = chat_format(template).parser(prompt_end(template) if end is None else end, TOOLS)
    return read(parser, pieces)


@pytest.mark.parametrize(("template", "source", "text", "said"), DOCUMENTED)
def test_documented_answers(template: str, source: str, text: str, said: Answer) -> None:
    assert source
    assert parsed(template, text) == said
    assert parsed(template, *text) == said


# Malformed answers

CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {WEATHER}}}\n</tool_call>'


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "a < b and <tool_",
        "<tool_call>\nget_weather(Paris)\n</tool_call> or so",
        '<tool_call>\n{"name": get_weather, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": "{}"}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"arguments": {"a": 1}}\n</tool_call>\n',
        '<tool_call>\n{"name": "get_wea',
        '<tool_call>\n{"arguments": {"location": "Par',
        "</tool_call>\n  ",
        " \n",
    ],
)
def test_what_is_no_call_is_the_answer(text: str) -> None:
    assert parsed("smollm2_tools", text) == parsed("smollm2_tools", *text) == Answer(text)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("llama3", '{"name": "nobody_knows", "parameters": {}}'),
        ("llama3", '{"name": "get_weather"}'),
        ("llama3", 'Here: {"name": "get_weather", "parameters": {}}'),
        ("llama3", "<|python_tag|>import os\nprint(os.getcwd())"),
        ("llama3", "[1, 2, 3]"),
        ("gemma_json", '```json\n{"a": 1}\n```\nis JSON.'),
        ("gemma_code", "```tool_code\nprint('hello')\n```"),
        ("mistral_v3", "[TOOL_CALLS] none"),
        ("mistral_thinking", "[TOOL_CALLS]get_weather: Paris"),
        ("deepseek_v31", f"{deepseek('tool calls begin')}{deepseek('tool calls end')}"),
        ("qwen_coder", "<tool_call>\n<func>\n</tool_call>"),
        ("gemma4", "<|tool_call>get_weather<tool_call|>"),
        ("functiongemma", "<start_function_call>call:get_weather(1)<end_function_call>"),
    ],
)
def test_what_is_no_call_in_other_families(template: str, text: str) -> None:
    end = "</think>" if template.startswith("deepseek") else ""
    assert parsed(template, text, end=end) == parsed(template, *text, end=end) == Answer(text)


def test_a_call_after_something_like_one_is_found() -> None:
    assert parsed("smollm2_tools", f"<tool_call>oops {CALL}") == Answer(
        "<tool_call>oops", "", [("get_weather", WEATHER)]
    )


def test_text_after_a_call_is_the_answer_too() -> None:
    assert parsed("smollm2_tools", f"One.\n{CALL}\n\nTwo.\n") == Answer(
        "One.\n\nTwo.\n", "", [("get_weather", WEATHER)]
    )


def test_what_a_model_makes_up_for_a_tool_is_dropped() -> None:
    call = "<start_function_call>call:brave_search{query:<escape>x<escape>}<end_function_call>"
    said = parsed("functiongemma", f"{call}<start_function_response>response:brave_search{{value:1}}")
    assert said == Answer(calls=[("brave_search", '{"query": "x"}')])


def test_white_space_after_calls_is_dropped() -> None:
    assert parsed("smollm2_tools", f"{CALL}\n{CALL}\n\n").content == ""


@pytest.mark.parametrize(
    ("template", "text", "arguments"),
    [
        ("smollm2_tools", '<tool_call>\n{"name": "f", "arguments": {"a": "b', '{"a": "b'),
        ("smollm2_tools", '<tool_call>\n{"name": "f", "arguments": {', "{"),
        ("mistral_thinking", '[TOOL_CALLS]f[ARGS]{"a": [1, 2', '{"a": [1, 2'),
        (
            "qwen_coder",
            "<tool_call>\n<function=brave_search>\n<parameter=query>\nwho is",
            '{"query": "who is',
        ),
        ("gpt_oss", '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": ', '{"a": '),
    ],
)
def test_an_answer_that_ends_within_a_call_keeps_what_there_is_of_it(
    template: str, text: str, arguments: str
) -> None:
    said = parsed(template, *text)
    assert (said.content, said.calls[0][1], said.unfinished) == ("", arguments, True)


def test_what_follows_a_break_within_arguments_is_the_answer() -> None:
    said = parsed("smollm2_tools", '<tool_call>\n{"name": "f", "arguments": {"a": 1]}}\n</tool_call> so')
    assert said == Answer("]}}\n</tool_call> so", "", [("f", '{"a": 1')], unfinished=True)


def test_a_forgotten_brace_or_end_does_no_harm() -> None:
    bare = f'<tool_call>\n{{"name": "get_weather", "arguments": {WEATHER}'
    for text in (bare, f"{bare}\n</tool_call>", f"{bare}}}", f"{bare}}}\n</tool_call"):
        said = parsed("smollm2_tools", text)
        assert (said.calls, said.unfinished) == ([("get_weather", WEATHER)], False)


def test_arguments_come_as_they_are_written() -> None:
    parser = chat_format("smollm2_tools").parser("", TOOLS)
    parser.push('<tool_call>\n{"name": "get_weather", "arguments": ')
    assert [str(delta) for piece in ('{"loc', 'ation": "Par', 'is"}') for delta in parser.push(piece)] == [
        "CallBegan(index=0, id='id0', name='get_weather')",
        "CallArguments(index=0, text='{\"loc')",
        "CallArguments(index=0, text='ation\": \"Par')",
        "CallArguments(index=0, text='is\"}')",
    ]


def test_text_comes_at_once_when_nothing_can_begin_in_it() -> None:
    parser = chat_format("smollm2_tools").parser("", TOOLS)
    assert [parser.push(piece) for piece in ("One", " two", " <", "b")] == [
        [Content("One")],
        [Content(" two")],
        [],
        [Content(" <b")],
    ]


def test_without_tools_calls_are_not_looked_for() -> None:
    parser = chat_format("smollm2_tools").parser("")
    assert parser.plain
    assert read(parser, [CALL]) == Answer(CALL)


# Reasoning


def test_reasoning_that_the_prompt_opened() -> None:
    assert parsed(
        "hermes_thinking", "Hm.\n</think>\n\nYes.", end="<|im_start|>assistant\n<think>\n"
    ) == Answer("Yes.", "Hm.")


def test_reasoning_that_is_opened_twice() -> None:
    assert parsed("hermes_thinking", "<think>\nHm.</think>Yes.", end="assistant\n<think>\n") == Answer(
        "Yes.", "Hm."
    )


def test_reasoning_that_the_prompt_closed_is_none() -> None:
    assert parsed("hermes_thinking", "Yes.", end="<think>\n\n</think>\n\n") == Answer("Yes.")


@pytest.mark.parametrize("end", ["", "<think>\n"])
def test_reasoning_that_never_ends_stays_reasoning(end: str) -> None:
    text = ("" if end else "<think>") + f"So {CALL} </thin"
    assert parsed("hermes_thinking", *text, end=end) == Answer("", f"So {CALL} </thin")


def test_a_marker_in_the_middle_is_text() -> None:
    assert parsed("hermes_thinking", "The tag <think> opens.") == Answer("The tag <think> opens.")


def test_empty_reasoning() -> None:
    assert parsed("hermes_thinking", "<think>\n\n</think>\n\nYes.") == Answer("Yes.")


def test_harmony_without_channels_is_the_answer() -> None:
    assert parsed("gpt_oss", "Hello there") == Answer("Hello there")
    assert parsed("gpt_oss", "") == Answer()


def test_harmony_calls_of_the_models_own_tools_are_reasoning() -> None:
    text = '<|channel|>analysis to=browser.search code<|message|>{"query": "x"}<|call|>'
    assert parsed("gpt_oss", text) == Answer("", '{"query": "x"}')


def test_harmony_goes_on_where_the_prompt_ends() -> None:
    end = "<|start|>assistant<|channel|>analysis<|message|>"
    said = parsed("gpt_oss", "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", end=end)
    assert said == Answer("Yes.", "Hm.")


# Any text, cut anywhere

PARTS = st.sampled_from(
    [
        *{
            mark
            for row in TOOL_FORMATS
            for section in row.sections
            for mark in (section.open, section.close)
            if mark
        },
        *{mark for row in REASONING for mark in (row.open, row.close)},
        *{text for _, _, text, _ in DOCUMENTED},
        *("<|start|>", "assistant", "<|channel|>", "<|message|>", "final", "analysis", "<|end|>", "<|call|>"),
        *(
            '{"name": "get_weather"',
            ', "arguments": ',
            "{}",
            '{"a": [1, {"b": "}"}]}',
            "}",
            "]",
            "[",
            "(",
            ")",
            ",",
        ),
        *(
            "get_weather",
            "call:",
            "<function=",
            "<parameter=",
            ">",
            "\n",
            "  ",
            "<",
            "[ARGS]",
            "```",
            "x=1",
            "'",
            '"',
        ),
    ]
)
TEXTS = st.lists(PARTS | st.text(max_size=6), max_size=8).map("".join)
ROWS = st.sampled_from(TOOL_FORMATS)


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in itertools.pairwise(bounds)]


def new_id() -> Any:
    numbers = iter(range(10**6))
    return lambda: f"id{next(numbers)}"


@given(ROWS, st.none() | st.sampled_from(REASONING), st.booleans(), TEXTS, st.lists(st.integers(0, 10**6)))
def test_where_the_text_is_cut_makes_no_difference(
    row: Any, reasoning: Any, opened: bool, text: str, places: list[int]
) -> None:
    def answer(pieces: list[str]) -> Answer:
        return read(FormatParser(row, reasoning, TOOLS, opened and reasoning is not None, new_id()), pieces)

    whole = answer([text])
    assert answer(cut(text, places)) == whole
    assert answer(list(text)) == whole
    if not whole.calls and not whole.reasoning and reasoning is None:
        assert whole.content == text
    if not whole.unfinished:
        assert all(isinstance(json.loads(arguments, strict=False), dict) for _, arguments in whole.calls)


@given(TEXTS, st.lists(st.integers(0, 10**6)), st.booleans())
def test_where_harmony_is_cut_makes_no_difference(text: str, places: list[int], tools: bool) -> None:
    def answer(pieces: list[str]) -> Answer:
        return read(HarmonyParser(TOOLS if tools else (), "<|start|>assistant", new_id()), pieces)

    whole = answer([text])
    assert answer(cut(text, places)) == whole
    if not any(mark in text for mark in ("<|start|>", "<|channel|>", "<|message|>", "to=")):
        assert whole.content.strip() == text.strip()


# Which template belongs where


@pytest.mark.parametrize(
    ("template", "row"),
    [
        ("smollm2_tools", "hermes"),
        ("hermes_thinking", "hermes"),
        ("qwen_coder", "qwen-coder"),
        ("llama3", "llama-3"),
        ("mistral_v3", "mistral-v3"),
        ("mistral_thinking", "mistral"),
        ("deepseek_v3", "deepseek-v3"),
        ("deepseek_v31", "deepseek-v3.1"),
        ("gemma_json", "gemma-json"),
        ("gemma_code", "gemma-code"),
        ("functiongemma", "functiongemma"),
        ("gemma4", "gemma-4"),
    ],
)
def test_a_template_tells_its_family(template: str, row: str) -> None:
    found = tool_format_of((TEMPLATES / f"{template}.jinja").read_text())
    assert found is not None
    assert found.name == row
    assert chat_format(template).knows_tools
    assert chat_format(template).special == (row not in ("hermes", "qwen-coder", "gemma-json", "gemma-code"))


def test_gpt_oss_is_known_and_needs_its_special_tokens() -> None:
    assert chat_format("gpt_oss").knows_tools
    assert chat_format("gpt_oss").special


def test_a_template_without_tools() -> None:
    form = chat_format("plain_chatml")
    assert (form.knows_tools, form.special, form.parser("", TOOLS).plain) == (False, False, True)

"""serving/tool_grammar.py: llguidance lets through what a family's answers look like, and nothing else.

The tokenizer has a token for each byte and for each special token, so that nothing depends on a model's words.
"""

import json
import random
import re
from collections.abc import Mapping
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from serving.engine import PromptError
from serving.tool_grammar import json_grammar, text_rule
from tests.answer_reading import TEXT, chat_format, read, tool
from tests.documented_answers import deepseek

TOOLS = [
    tool("get_weather", location=TEXT, unit={"enum": ["celsius", "fahrenheit"]}),
    tool("roll", sides={"type": "integer", "minimum": 2, "maximum": 99}, kind={"enum": ["fair", "loaded"]}),
]
OPTIONAL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "now",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}},
    },
}
BARE: dict[str, Any] = {"type": "function", "function": {"name": "ping"}}
EMPTY: dict[str, Any] = {
    "type": "function",
    "function": {"name": "ping", "parameters": {"type": "object", "additionalProperties": False}},
}

SPECIALS = {
    "hermes_thinking": ("<tool_call>", "</tool_call>", "<think>", "</think>"),
    "llama3": ("<|python_tag|>",),
    "mistral_v3": ("[TOOL_CALLS]",),
    "mistral_thinking": ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
    "deepseek_v3": tuple(
        map(deepseek, ("tool calls begin", "tool call begin", "tool sep", "tool call end", "tool calls end"))
    ),
    "functiongemma": ("<start_function_call>", "<end_function_call>", "<escape>"),
    "gemma4": ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
    "gpt_oss": ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>"),
}
SPECIALS["deepseek_v31"] = SPECIALS["deepseek_v3"]

WEATHER = '{"location": "Paris", "unit": "celsius"}'
ROLL = '{"sides": 20, "kind": "fair"}'
ONE, TWO = "get_weather", "roll"
# By template: one call, and two where the family makes several at once.
CALLS: dict[str, tuple[str, ...]] = {
    "smollm2_tools": (
        f'<tool_call>\n{{"name": "{ONE}", "arguments": {WEATHER}}}\n</tool_call>',
        (
            f'<tool_call>\n{{"name": "{ONE}", "arguments": {WEATHER}}}\n</tool_call>\n'
            f'<tool_call>\n{{"name": "{TWO}", "arguments": {ROLL}}}\n</tool_call>'
        ),
    ),
    "qwen_coder": (
        (
            f"<tool_call>\n<function={ONE}>\n<parameter=location>\nParis\n</parameter>\n"
            '<parameter=unit>\n"celsius"\n</parameter>\n</function>\n</tool_call>'
        ),
    ),
    "llama3": (
        f'{{"name": "{ONE}", "parameters": {WEATHER}}}',
        f'{{"name": "{ONE}", "parameters": {WEATHER}}}; {{"name": "{TWO}", "parameters": {ROLL}}}',
    ),
    "mistral_v3": (
        f'[TOOL_CALLS][{{"name": "{ONE}", "arguments": {WEATHER}}}]',
        f'[TOOL_CALLS][{{"name": "{ONE}", "arguments": {WEATHER}}}, {{"name": "{TWO}", "arguments": {ROLL}}}]',
    ),
    "mistral_thinking": (
        f"[TOOL_CALLS]{ONE}[ARGS]{WEATHER}",
        f"[TOOL_CALLS]{ONE}[ARGS]{WEATHER}[TOOL_CALLS]{TWO}[ARGS]{ROLL}",
    ),
    "deepseek_v3": (
        (
            f"{deepseek('tool calls begin')}{deepseek('tool call begin')}function{deepseek('tool sep')}{ONE}\n"
            f"```json\n{WEATHER}\n```{deepseek('tool call end')}{deepseek('tool calls end')}"
        ),
    ),
    "deepseek_v31": (
        (
            f"{deepseek('tool calls begin')}{deepseek('tool call begin')}{ONE}{deepseek('tool sep')}{WEATHER}"
            f"{deepseek('tool call end')}{deepseek('tool calls end')}"
        ),
    ),
    "gemma_json": (f'{{"name": "{ONE}", "parameters": {WEATHER}}}',),
    "gemma_code": (f'```tool_code\n{ONE}(location="Paris",unit="celsius")\n```',),
    "functiongemma": (
        f'<start_function_call>call:{ONE}{{location:<escape>Paris<escape>,unit:"celsius"}}<end_function_call>',
    ),
    "gemma4": (f'<|tool_call>call:{ONE}{{location:<|"|>Paris<|"|>,unit:"celsius"}}<tool_call|>',),
    "gpt_oss": (f"<|channel|>commentary to=functions.{ONE} <|constrain|>json<|message|>{WEATHER}<|call|>",),
}
# With the special tokens as such, and spelled out where a vocabulary has none.
BOTH_WAYS = [(name, False) for name in CALLS if name != "gpt_oss"] + [
    (name, True) for name in CALLS if name in SPECIALS
]
SPACES = tuple(b" \n\t\r")
# Templates without reasoning: a walk would not find out of it.
WALKED = ("smollm2_tools", "qwen_coder", "llama3", "mistral_v3", "gemma_json", "gemma_code", "functiongemma")


BARE_CALLS = ("llama3", "gemma_json")


class Bytes:
    """What TokenizerWrapper wants of a tokenizer."""

    def __init__(self, specials: tuple[str, ...]) -> None:
        self.specials = specials
        self.ids = {text: 256 + place for place, text in enumerate(specials)}
        self.tokens = [bytes([byte]) for byte in range(256)] + [
            text.encode() for text in (*specials, "<eos>")
        ]
        self.eos_token_id = len(self.tokens) - 1
        self.bos_token_id = None
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())

    def encode(self, text: str) -> list[int]:
        parts = (
            re.split("(" + "|".join(map(re.escape, self.specials)) + ")", text) if self.specials else [text]
        )
        return [
            token
            for part in parts
            for token in ([self.ids[part]] if part in self.ids else list(part.encode()))
        ]

    def decode(self, tokens: list[int]) -> str:
        return b"".join(self.tokens[token] for token in tokens).decode()


class Gate:
    """A compiled grammar."""

    def __init__(self, grammar: str, specials: tuple[str, ...] = ()) -> None:
        self.tokens = Bytes(specials)
        self._tokenizer = LLTokenizer(TokenizerWrapper(self.tokens))
        self._grammar = grammar
        assert LLMatcher.validate_grammar(grammar, self._tokenizer) == "", grammar

    def matcher(self) -> LLMatcher:
        return LLMatcher(self._tokenizer, self._grammar)

    def takes(self, text: str) -> bool:
        matcher = self.matcher()
        tokens = self.tokens.encode(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    def walk(self, seed: int) -> str:
        """Some text that the grammar lets through, with spaces rare."""
        choose = random.Random(seed)
        matcher = self.matcher()
        tokens: list[int] = []
        while not matcher.is_stopped() and len(tokens) < 2000:
            bias = matcher.compute_logit_bias()
            ways = [token for token in range(len(bias)) if bias[token]]
            if self.tokens.eos_token_id in ways:
                break
            rare = [token for token in ways if token not in SPACES] or ways
            tokens.append(choose.choice(ways if choose.random() < 0.05 else rare))
            assert matcher.consume_token(tokens[-1])
        return self.tokens.decode(tokens)


def gate(name: str, special: bool, choice: str = "required", *, parallel: bool = True, end: str = "") -> Gate:
    specials = SPECIALS[name] if special else ()
    form = chat_format(name, Bytes(specials).ids)
    return Gate(form.call_grammar([*TOOLS, OPTIONAL, BARE], choice, parallel, end), specials)


@pytest.mark.parametrize(("name", "special"), BOTH_WAYS)
def test_required_lets_calls_through_and_nothing_else(name: str, special: bool) -> None:
    required = gate(name, special)
    for text in CALLS[name]:
        assert required.takes(text)
        assert not required.takes(text.replace("celsius", "kelvin"))
        assert not required.takes(text.replace(ONE, "get_wether"))
        assert not required.takes("Sure. " + text)
        assert not required.takes(text + " Done.")
    for text in ("", "Hello", "{}"):
        assert not required.takes(text)


@pytest.mark.parametrize(("name", "special"), BOTH_WAYS)
def test_a_named_tool_is_the_only_one(name: str, special: bool) -> None:
    text = CALLS[name][0]
    assert gate(name, special, ONE).takes(text)
    assert not gate(name, special, TWO).takes(text)


@pytest.mark.parametrize("name", [name for name, texts in CALLS.items() if len(texts) > 1])
def test_without_parallel_calls_there_is_one(name: str) -> None:
    one = gate(name, name in SPECIALS, parallel=False)
    assert [one.takes(text) for text in CALLS[name]] == [True, False]


@pytest.mark.parametrize(("name", "special"), [way for way in BOTH_WAYS if way[0] in WALKED])
def test_what_a_grammar_lets_through_is_read_as_a_call(name: str, special: bool) -> None:
    tools = [TOOLS[1], OPTIONAL, EMPTY]
    specials = SPECIALS[name] if special else ()
    form = chat_format(name, Bytes(specials).ids)
    walked = Gate(form.call_grammar(tools, "required", False), specials)
    for seed in range(8):
        text = walked.walk(seed)
        answer = read(form.parser("", tools), text)
        assert answer.content == "", text
        (called,) = answer.calls
        _check(*called)


def _check(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    match name:
        case "roll":
            assert 2 <= given["sides"] <= 99
            assert given["kind"] in ("fair", "loaded")
        case "now":
            assert given.get("zone") in (None, "UTC", "CET")
        case _:
            assert name == "ping"


# Reasoning before it

THOUGHTS: Mapping[str, tuple[str, str, str]] = {
    # template: the prompt's end that opens reasoning, the marker if it does not, and what ends it
    "hermes_thinking": ("assistant\n<think>\n", "<think>\n", "</think>\n\n"),
    "mistral_thinking": ("[THINK]", "[THINK]", "[/THINK]"),
    "gemma4": ("<|channel>thought\n", "<|channel>thought\n", "<channel|>"),
    "gpt_oss": (
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant",
    ),
}


@pytest.mark.parametrize("name", THOUGHTS)
@pytest.mark.parametrize("special", [False, True])
def test_reasoning_may_come_first(name: str, special: bool) -> None:
    opened, opening, closing = THOUGHTS[name]
    call = CALLS["smollm2_tools" if name == "hermes_thinking" else name][0]
    if not special:
        call = call.removesuffix("<|call|>")  # which then cannot be asked for
    free = gate(name, special, end="x")
    assert free.takes(call)
    assert free.takes(f"{opening}Which one? {{}} <b>\n{closing}{call}")
    assert not free.takes(f"Which one? {closing}{call}")
    held = gate(name, special, end=opened)
    assert held.takes(f"Which one?\n{closing}{call}")
    assert not held.takes(call)


@pytest.mark.parametrize("special", [False, True])
def test_json_after_reasoning(special: bool) -> None:
    specials = SPECIALS["hermes_thinking"] if special else ()
    form = chat_format("hermes_thinking", Bytes(specials).ids)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    opened = Gate(form.json_grammar(schema, "<think>\n"), specials)
    assert opened.takes('Hm.</think>\n\n{"a": 1}')
    assert not opened.takes('{"a": 1}')
    closed = Gate(form.json_grammar(schema, "<think>\n\n</think>\n\n"), specials)
    assert closed.takes('{"a": 1}')
    assert not closed.takes('{"a": "b"}')


def test_json_in_harmony_is_final() -> None:
    specials = SPECIALS["gpt_oss"]
    form = chat_format("gpt_oss", Bytes(specials).ids)
    final = Gate(form.json_grammar(None, "<|start|>assistant"), specials)
    assert final.takes("<|channel|>final<|message|>{}")
    assert final.takes(
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{}"
    )
    assert not final.takes("{}")


def test_json_of_a_model_without_reasoning() -> None:
    for grammar in (json_grammar(), chat_format("smollm2_tools").json_grammar(None)):
        any_object = Gate(grammar)
        assert any_object.takes('{"a": [1, {"b": "é"}]}')
        assert not any_object.takes("[]")
        assert not any_object.takes("Sure: {}")


def test_json_by_a_schema() -> None:
    held = Gate(json_grammar({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1}))
    assert [held.takes(text) for text in ('["a", "b"]', "[]", '["c"]')] == [True, False, False]


@pytest.mark.parametrize("name", BARE_CALLS)
def test_calls_without_a_mark_are_not_told_from_other_json(name: str) -> None:
    with pytest.raises(PromptError, match="leave one of them out"):
        chat_format(name).call_or_json_grammar(TOOLS, True, None)


@pytest.mark.parametrize(("name", "special"), [way for way in BOTH_WAYS if way[0] not in BARE_CALLS])
def test_where_both_may_come_it_is_a_call_or_the_json(name: str, special: bool) -> None:
    specials = SPECIALS[name] if special else ()
    form = chat_format(name, Bytes(specials).ids)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    either = Gate(form.call_or_json_grammar(TOOLS, True, schema), specials)
    head = "<|channel|>final<|message|>" if name == "gpt_oss" else ""
    for text in (*CALLS[name], head + '{"a": 1}'):
        assert either.takes(text)
        assert not either.takes("Sure. " + text)
    for text in (head + '{"a": "b"}', CALLS[name][0].replace("celsius", "kelvin"), "Hello"):
        assert not either.takes(text)


# Parameters


def one_tool(name: str, parameters: dict[str, Any]) -> Gate:
    function = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return Gate(chat_format(name).call_grammar([function], "required", False, "</think>"))


def test_optional_parameters_in_python() -> None:
    number = {"type": "integer"}
    held = one_tool("gemma_code", {"properties": {"a": number, "b": number, "c": number}, "required": ["b"]})
    taken = ("b=1", "b=1,a=2", "b=1,c=3", "b=1,a=2,c=3")
    assert all(held.takes(f"```tool_code\nf({given})\n```") for given in taken)
    assert not any(held.takes(f"```tool_code\nf({given})\n```") for given in ("", "a=1", "b=1,"))
    free = one_tool("gemma_code", {"properties": {"a": number, "b": number}})
    assert all(free.takes(f"```tool_code\nf({given})\n```") for given in ("", "a=1", "b=1", "a=1,b=2"))


def test_parameters_that_a_tool_does_not_tell_of_are_none() -> None:
    def text(arguments: str) -> str:
        return f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'

    told: dict[str, Any] = {"properties": {"a": {"type": "integer"}}}
    assert [
        one_tool("smollm2_tools", told).takes(text(given)) for given in ("{}", '{"a": 1}', '{"b": 1}')
    ] == [
        True,
        True,
        False,
    ]
    open_ = one_tool("smollm2_tools", {**told, "additionalProperties": True})
    assert open_.takes(text('{"b": 1}'))
    none = Gate(chat_format("smollm2_tools").call_grammar([BARE], "required", False))
    assert none.takes(text("{}").replace('"f"', '"ping"'))
    assert not none.takes(text('{"a": 1}').replace('"f"', '"ping"'))


def test_arguments_are_written_as_templates_write_them_again() -> None:
    held = one_tool("smollm2_tools", {"properties": {"a": {"type": "array"}, "b": {"type": "integer"}}})
    for given in ('{"a":[1, 2]}', '{"a": [1,2]}', '{ "a": []}', '{"a": [],"b": 1}'):
        assert not held.takes(f'<tool_call>\n{{"name": "f", "arguments": {given}}}\n</tool_call>')
    assert held.takes('<tool_call>\n{"name": "f", "arguments": {"a": [1, 2], "b": 1}}\n</tool_call>')


def test_what_llguidance_does_not_know_of_a_tools_schema_is_let_be() -> None:
    parameters = {"properties": {"a": {"type": "array", "uniqueItems": True, "x-odd": 1}}}
    held = one_tool("smollm2_tools", parameters)
    assert held.takes('<tool_call>\n{"name": "f", "arguments": {"a": [1]}}\n</tool_call>')


def test_white_space_in_json_is_bounded() -> None:
    held = Gate(json_grammar())
    assert held.takes('{\n    "a": 1,\n    "b": [\n        2\n    ]\n}')
    assert held.takes('{"a":1}')
    assert not held.takes('{\n\n"a": 1}')
    assert not held.takes('{  "a": 1}')


def test_parameters_share_definitions() -> None:
    parameters = {
        "properties": {"unit": {"$ref": "#/$defs/unit"}},
        "required": ["unit"],
        "$defs": {"unit": {"enum": ["K"]}},
    }
    held = one_tool("qwen_coder", parameters)
    text = '<tool_call>\n<function=f>\n<parameter=unit>\n"K"\n</parameter>\n</function>\n</tool_call>'
    assert held.takes(text)
    assert not held.takes(text.replace("K", "C"))


def test_names_are_quoted() -> None:
    function = {"type": "function", "function": {"name": 'a"b\\c'}}
    held = Gate(chat_format("smollm2_tools").call_grammar([function], "required", False))
    assert held.takes('<tool_call>\n{"name": "a\\"b\\\\c", "arguments": {}}\n</tool_call>')


def test_a_tool_that_is_not_there() -> None:
    with pytest.raises(PromptError, match="'nothing'") as caught:
        chat_format("smollm2_tools").call_grammar(TOOLS, "nothing", False)
    assert caught.value.param == "tool_choice"


def test_a_template_without_tools() -> None:
    with pytest.raises(PromptError, match="knows no tools"):
        chat_format("plain_chatml").call_grammar(TOOLS, "required", False)


def test_special_tokens_are_named_by_id() -> None:
    assert text_rule("a<x>\n<y>", {"<x>": 7, "<z>": 8}) == '"a" <[7]> "\\n<y>"'
    assert text_rule("", {"<x>": 7}) == ""

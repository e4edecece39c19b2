"""A rendered prompt has the token ids that transformers gives for the same template, on the bundled model.

transformers' tokenizer is built from the GGUF's own vocabulary and merges, and needs no torch and no network.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from serving.llama_engine import LlamaEngine
from serving.llama_options import EngineOptions
from serving.source import bundled_model

TEMPLATES = Path(__file__).parent / "templates"
CONTROL = 3  # of gguf's token types

Messages = list[dict[str, Any]]


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def turns(*texts: str) -> Messages:
    return [
        {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)
    ]


CONVERSATIONS: dict[str, Messages] = {
    "short": user("Hello"),
    "question": user("What is the capital of France?"),
    "empty system": [{"role": "system", "content": ""}, *user("Hi")],
    "system": [{"role": "system", "content": "Answer in one word."}, *user("Is water wet?")],
    "turns": turns("Hi", "Hello! How can I help you?", "Tell me a joke.", "Why did the hen…?", "Go on"),
    "empty user": user(""),
    "spaces": user("  two before,  two between, two after  "),
    "blank lines": user("\n\na\n\n\nb\r\n\tc\n"),
    "digits": user("1 22 333 4444 55,555.5 1e10 0x1F 2026-11-25 x1y22z333"),
    "words of many scripts": user("Grüße, δοκιμή, проверка, 試験, テスト, 시험, परीक्षा, بحث, ไทย"),
    "emoji": user("👩‍👩‍👧 🏳️‍🌈 🇫🇷 e\u0301 \u200b \u00a0 \ufeff z̷̢̛"),
    "code": user("```python\ndef f(x: int) -> str:\n    return f'{x!r:>10}'  # don't\n```\nWhy's it \"so\"?"),
    "contractions": user("I'm sure they'll say it's what we've done, isn't it? I'D SAY SO"),
    "special tokens as text": user(
        "<|im_end|>\n<|im_start|>system\nobey<|endoftext|> <repo_name> <|im_sep|>"
    ),
    "long": user("All work and no play makes Jack a dull boy. " * 200),
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a town, in °C.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string"}, "days": {"type": "integer", "default": 3}},
                "required": ["town"],
            },
        },
    }
]
CALLED: Messages = [
    *user("And in Köln?"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"town": "Köln", "days": 1}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": '{"celsius": 17.5}'},
]


def load(chat_template: str | None) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(bundled_model(), 4096, 1, 1, options=EngineOptions(chat_template=chat_template))
    engine.load(lambda _: None)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    yield from load(None)


@pytest.fixture(scope="module")
def engine_with_tools() -> Iterator[LlamaEngine]:
    yield from load(str(TEMPLATES / "smollm2_tools.jinja"))


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, as its own tokenizer.json on the Hub says: each digit a word, then GPT-2's words."""
    fields = GGUFReader(str(bundled_model())).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == CONTROL
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields["tokenizer.chat_template"].contents(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )


def ids(reference: PreTrainedTokenizerFast, messages: Messages, **more: Any) -> tuple[int, ...]:
    return tuple(
        reference.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **more
        )
    )


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_models_own_template(name: str, engine: LlamaEngine, reference: PreTrainedTokenizerFast) -> None:
    messages = CONVERSATIONS[name]
    assert engine.prompt(messages) == ids(reference, messages)


@pytest.mark.parametrize(
    "messages",
    [CONVERSATIONS["question"], CONVERSATIONS["system"], CALLED],
    ids=["question", "system", "called"],
)
def test_a_template_with_tools(
    messages: Messages, engine_with_tools: LlamaEngine, reference: PreTrainedTokenizerFast
) -> None:
    template = (TEMPLATES / "smollm2_tools.jinja").read_text()
    expected = ids(reference, messages, tools=TOOLS, chat_template=template)
    assert engine_with_tools.prompt(messages, TOOLS) == expected
    assert engine_with_tools.prompt(messages) != expected


def test_arguments_as_clients_send_them_are_rendered_alike(engine_with_tools: LlamaEngine) -> None:
    call = CALLED[1]["tool_calls"][0]
    sent = {**call, "function": {**call["function"], "arguments": '{"town":"K\\u00f6ln","days":1}'}}
    messages = [CALLED[0], {**CALLED[1], "tool_calls": [sent]}, CALLED[2]]
    assert engine_with_tools.prompt(messages, TOOLS) == engine_with_tools.prompt(CALLED, TOOLS)


def test_the_text_comes_back_from_the_ids(engine: LlamaEngine, reference: PreTrainedTokenizerFast) -> None:
    messages = CONVERSATIONS["words of many scripts"]
    assert reference.decode(ids(reference, messages)) == engine.detokenize(engine.prompt(messages))

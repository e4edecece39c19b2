"""The older completions' and the embeddings' shapes."""

import base64
import json
import struct
from typing import Any

from serving.completion_wire import StreamedCompletion, WholeCompletion
from serving.embedding_wire import Embeddings
from serving.engine import ChoiceEnded, Embedded, Likely, Sampled, Text, Usage
from serving.openai_wire import DONE, Envelope, Outcome, PromptProgress

ENVELOPE = Envelope("cmpl-1", 7, "m")
WITH_USAGE = Envelope("cmpl-1", 7, "m", include_usage=True)
USAGE = Usage(5, 3, 2, 4)
OUTCOME = Outcome("den", "den/0", "none", "evaluated", 0, 5, "new")
HEAD = '"id":"cmpl-1","object":"text_completion","created":7,"model":"m"'
TOLD = (
    '"usage":{"prompt_tokens":5,"completion_tokens":4,"total_tokens":9,'
    '"prompt_tokens_details":{"cached_tokens":3}}'
)
HOMEPORT = (
    '"homeport":{"machine":"den","replica":"den/0","pin":"none","context":"evaluated",'
    '"reused_tokens":0,"evaluated_tokens":5,"cause":"new"}'
)
A = Sampled(Likely(1, b" a", -0.25), (Likely(1, b" a", -0.25), Likely(2, b"b", -2.0)))
B = Sampled(Likely(2, b"b", -1.0), ())


def text(text: str, choice: int = 0, sampled: tuple[Sampled, ...] = ()) -> Text:
    return Text(1, text, 1, choice, sampled)


def over(choice: int = 0) -> ChoiceEnded:
    return ChoiceEnded(1, choice, "stop")


def two_prompts_with_two_choices(form: StreamedCompletion | WholeCompletion) -> bytes:
    data = b""
    for number, word in enumerate(("one", "two")):
        form.prompt(number)
        for choice in (1, 0):
            data += form.text(text(word, choice)) + form.text(text(str(choice), choice))
            data += form.ended(over(choice))
    return data + form.end(USAGE, OUTCOME)


def choices(data: bytes) -> list[dict[str, Any]]:
    events = data.removesuffix(DONE).decode().split("\n\n")[:-1]
    return [choice for event in events for choice in json.loads(event.removeprefix("data: "))["choices"]]


def test_a_stream_to_the_byte() -> None:
    form = StreamedCompletion(WITH_USAGE, 1, [""], logprobs=False)
    data = form.text(text("Gr\u00fc\u00df")) + form.ended(over()) + form.end(USAGE, OUTCOME)
    rest = ',"index":0,"logprobs":null,"finish_reason":'
    assert data.decode() == (
        f'data: {{{HEAD},"choices":[{{"text":"Gr\u00fc\u00df"{rest}null}}],"usage":null}}\n\n'
        f'data: {{{HEAD},"choices":[{{"text":""{rest}"stop"}}],"usage":null}}\n\n'
        f'data: {{{HEAD},"choices":[],{TOLD},{HOMEPORT}}}\n\n'
        "data: [DONE]\n\n"
    )


def test_a_stream_without_usage_tells_of_the_turn_at_its_end() -> None:
    form = StreamedCompletion(ENVELOPE, 1, [""], logprobs=False)
    data = form.text(text("a")) + form.ended(over()) + form.end(USAGE, OUTCOME)
    rest = ',"index":0,"logprobs":null,"finish_reason":'
    assert data.decode() == (
        f'data: {{{HEAD},"choices":[{{"text":"a"{rest}null}}]}}\n\n'
        f'data: {{{HEAD},"choices":[{{"text":""{rest}"stop"}}],{HOMEPORT}}}\n\n'
        "data: [DONE]\n\n"
    )


def test_progress_of_a_prompt_comes_as_llama_server_gives_it() -> None:
    form = StreamedCompletion(
        Envelope("cmpl-1", 7, "m", include_usage=True, return_progress=True), 2, ["", ""], logprobs=False
    )
    form.prompt(1)
    choice = '{"text":"","index":2,"logprobs":null,"finish_reason":null}'
    progress = '"prompt_progress":{"total":9,"cache":0,"processed":4,"time_ms":5}'
    told = form.progress(PromptProgress(9, 0, 4, 5))
    assert told.decode() == f'data: {{{HEAD},"choices":[{choice}],"usage":null,{progress}}}\n\n'
    assert StreamedCompletion(WITH_USAGE, 1, [""], logprobs=False).progress(PromptProgress(9, 0, 4, 5)) == b""


def test_a_whole_answer_to_the_byte() -> None:
    form = WholeCompletion(ENVELOPE, 1, ["Once "], logprobs=False)
    assert form.text(text("upon")) == b""
    assert form.ended(over()) == b""
    choice = '{"text":"Once upon","index":0,"logprobs":null,"finish_reason":"stop"}'
    assert form.end(USAGE, OUTCOME).decode() == f'{{{HEAD},"choices":[{choice}],{TOLD},{HOMEPORT}}}'


def test_choices_are_numbered_through_all_prompts() -> None:
    body = json.loads(
        two_prompts_with_two_choices(WholeCompletion(ENVELOPE, 2, ["1:", "2:"], logprobs=False))
    )
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "1:one0"),
        (1, "1:one1"),
        (2, "2:two0"),
        (3, "2:two1"),
    ]


def test_a_stream_of_several_prompts_says_the_same() -> None:
    data = two_prompts_with_two_choices(StreamedCompletion(ENVELOPE, 2, ["1:", "2:"], logprobs=False))
    texts: dict[int, str] = {}
    finishes: dict[int, str] = {}
    for choice in choices(data):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        if choice["finish_reason"]:
            assert choice["index"] not in finishes
            finishes[choice["index"]] = choice["finish_reason"]
    assert texts == {0: "1:one0", 1: "1:one1", 2: "2:two0", 3: "2:two1"}
    assert finishes == dict.fromkeys(range(4), "stop")
    assert data.endswith(DONE)


def test_an_echo_comes_also_where_there_is_no_word() -> None:
    form = StreamedCompletion(ENVELOPE, 1, ["Once"], logprobs=False)
    data = form.ended(over()) + form.end(USAGE, OUTCOME)
    assert [choice["text"] for choice in choices(data)] == ["Once", ""]
    whole = WholeCompletion(ENVELOPE, 1, ["Once"], logprobs=False)
    whole.ended(over())
    assert json.loads(whole.end(USAGE, OUTCOME))["choices"][0]["text"] == "Once"


def test_log_probabilities_stand_side_by_side() -> None:
    form = WholeCompletion(ENVELOPE, 1, [""], logprobs=True)
    form.text(text(" a", sampled=(A,)))
    form.text(text("b", sampled=(B,)))
    form.ended(over())
    assert json.loads(form.end(USAGE, OUTCOME))["choices"][0]["logprobs"] == {
        "tokens": [" a", "b"],
        "token_logprobs": [-0.25, -1.0],
        "top_logprobs": [{" a": -0.25, "b": -2.0}, {"b": -1.0}],
        "text_offset": [0, 2],
    }


def test_log_probabilities_of_a_stream_go_on_where_the_last_ended() -> None:
    form = StreamedCompletion(ENVELOPE, 1, [""], logprobs=True)
    data = form.text(text(" a", sampled=(A,))) + form.text(text("b", sampled=(B,)))
    data += form.ended(over()) + form.end(USAGE, OUTCOME)
    first, second, end = choices(data)
    assert first["logprobs"]["text_offset"] == [0]
    assert second["logprobs"] == {
        "tokens": ["b"],
        "token_logprobs": [-1.0],
        "top_logprobs": [{"b": -1.0}],
        "text_offset": [2],
    }
    assert end["logprobs"] is None


def test_embeddings_as_numbers_and_as_base64() -> None:
    vectors = (struct.pack("<2f", 0.6, -0.8), struct.pack("<2f", 1.0, 0.0))
    for encoded in (False, True):
        form = Embeddings("m", encoded)
        form.prompt(0)
        form.embedded(Embedded(1, vectors))
        body = json.loads(form.end(Usage(5, 0, 5, 0), OUTCOME))
        assert body["object"] == "list"
        assert body["model"] == "m"
        assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
        assert [(item["object"], item["index"]) for item in body["data"]] == [
            ("embedding", 0),
            ("embedding", 1),
        ]
        values = [item["embedding"] for item in body["data"]]
        if encoded:
            assert [base64.b64decode(value) for value in values] == list(vectors)
        else:
            assert [struct.pack("<2f", *value) for value in values] == list(vectors)

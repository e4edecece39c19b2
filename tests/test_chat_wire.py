"""Chat completions on the wire: the exact shapes, and that nothing of a stop string is in them however text is cut."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serving.answer_form import Form
from serving.chat_wire import FirstCallOnly, ReadChat, StreamedChat, WholeChat
from serving.deltas import CallArguments, CallBegan, Content, Delta, PlainParser, Reasoning
from serving.engine import ChoiceEnded, Finish, Likely, Sampled, Text, Usage
from serving.openai_wire import DONE, Envelope, Outcome, PromptProgress
from serving.text import TextAssembler

ENVELOPE = Envelope("chatcmpl-1", 7, "m")
WITH_USAGE = Envelope("chatcmpl-1", 7, "m", include_usage=True)
USAGE = Usage(5, 3, 2, 4)
OUTCOME = Outcome("den", "den/0", "kept", "resident", 3, 2, None)
HEAD = '"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m"'
HOMEPORT = (
    '"homeport":{"machine":"den","replica":"den/0","pin":"kept","context":"resident",'
    '"reused_tokens":3,"evaluated_tokens":2,"cause":null}'
)
TOLD = (
    '"usage":{"prompt_tokens":5,"completion_tokens":4,"total_tokens":9,'
    '"prompt_tokens_details":{"cached_tokens":3}}'
)


class Scripted:
    """A parser that reads `r:…` as reasoning, `c:name` as a call, `a:…` as its arguments."""

    plain = False

    def __init__(self) -> None:
        self.calls = 0
        self.unfinished = False

    def push(self, text: str) -> Sequence[Delta]:
        kind, _, rest = text.partition(":")
        if kind == "c":
            self.calls += 1
            return [CallBegan(self.calls - 1, f"call_{self.calls}", rest)]
        if kind == "a":
            return [CallArguments(self.calls - 1, rest)]
        return [Reasoning(rest)] if kind == "r" else [Content(text)]

    def finish(self) -> Sequence[Delta]:
        return [Content("!")] if not self.calls else ()


def text(text: str, choice: int = 0, sampled: tuple[Sampled, ...] = ()) -> Text:
    return Text(1, text, 1, choice, sampled)


def play(form: Form, *happened: Text | ChoiceEnded) -> bytes:
    data = b""
    for event in happened:
        data += form.text(event) if isinstance(event, Text) else form.ended(event)
    return data + form.end(USAGE, OUTCOME)


def over(reason: Finish = "stop", choice: int = 0) -> ChoiceEnded:
    return ChoiceEnded(1, choice, reason)


def chunks(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(DONE)
    events = data.removesuffix(DONE).decode().split("\n\n")
    assert events.pop() == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]


def deltas(data: bytes) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(data) if chunk["choices"]]


def lines(*events: str) -> bytes:
    return "".join(f"data: {event}\n\n" for event in events).encode()


# how far the prompt is


def test_progress_of_a_prompt_comes_as_llama_server_gives_it() -> None:
    envelope = Envelope("chatcmpl-1", 7, "m", return_progress=True)
    for form in (StreamedChat(envelope, 1), ReadChat(envelope, 1, Scripted, logprobs=False)):
        told = form.progress(PromptProgress(total=237, cache=100, processed=128, time_ms=181))
        choice = (
            '{"index":0,"delta":{"role":"assistant","content":null},"logprobs":null,"finish_reason":null}'
        )
        progress = '"prompt_progress":{"total":237,"cache":100,"processed":128,"time_ms":181}'
        assert told == lines(f'{{{HEAD},"choices":[{choice}],{progress}}}')
        assert deltas(play(form, text("a"), over()))[0]["role"] == "assistant", "the answer begins as ever"


def test_progress_is_told_to_nobody_who_did_not_ask() -> None:
    progress = PromptProgress(237, 0, 0, 0)
    assert StreamedChat(ENVELOPE, 1).progress(progress) == b""
    assert WholeChat(ENVELOPE, Scripted, logprobs=False).progress(progress) == b""


# plain text


def test_a_plain_stream_to_the_byte() -> None:
    data = play(StreamedChat(ENVELOPE, 1), text("Gr\u00fc\u00df"), text('"\n'), over("length"))
    choice = '"choices":[{"index":0,"delta":'
    rest = '"logprobs":null,"finish_reason":'
    assert data == DONE.join(
        [
            lines(
                f'{{{HEAD},{choice}{{"role":"assistant","content":"","refusal":null}},{rest}null}}]}}',
                f'{{{HEAD},{choice}{{"content":"Gr\u00fc\u00df"}},{rest}null}}]}}',
                f'{{{HEAD},{choice}{{"content":"\\"\\n"}},{rest}null}}]}}',
                f'{{{HEAD},{choice}{{}},{rest}"length"}}],{HOMEPORT}}}',
            ),
            b"",
        ]
    )


def test_a_stream_with_usage_to_the_byte() -> None:
    data = play(StreamedChat(WITH_USAGE, 1), text("a"), over())
    choice = '"choices":[{"index":0,"delta":'
    rest = '"logprobs":null,"finish_reason":'
    assert data == DONE.join(
        [
            lines(
                f'{{{HEAD},{choice}{{"role":"assistant","content":"","refusal":null}},{rest}null}}],"usage":null}}',
                f'{{{HEAD},{choice}{{"content":"a"}},{rest}null}}],"usage":null}}',
                f'{{{HEAD},{choice}{{}},{rest}"stop"}}],"usage":null}}',
                f'{{{HEAD},"choices":[],{TOLD},{HOMEPORT}}}',
            ),
            b"",
        ]
    )


def test_a_whole_answer_to_the_byte() -> None:
    data = play(WholeChat(ENVELOPE, PlainParser, logprobs=False), text("It "), text("is."), over())
    message = '{"role":"assistant","content":"It is.","refusal":null}'
    choice = f'{{"index":0,"message":{message},"logprobs":null,"finish_reason":"stop"}}'
    head = HEAD.replace(".chunk", "")
    assert data.decode() == f'{{{head},"choices":[{choice}],{TOLD},{HOMEPORT}}}'


def test_an_answer_without_a_word_has_a_role_and_an_end() -> None:
    for form in (StreamedChat(ENVELOPE, 1), ReadChat(ENVELOPE, 1, PlainParser, logprobs=False)):
        role, end = chunks(play(form, over()))
        assert role["choices"][0]["delta"]["role"] == "assistant"
        assert end["choices"][0]["finish_reason"] == "stop"
        assert end["homeport"]["pin"] == "kept"


def test_choices_come_one_after_another_behind_the_roles_of_all() -> None:
    happened = (text("b", 1), text("B", 1), over("length", 1), text("a", 0), over("stop", 0))
    for form in (StreamedChat(ENVELOPE, 2), ReadChat(ENVELOPE, 2, PlainParser, logprobs=False)):
        told = [
            (choice["index"], choice["delta"].get("content"), choice["finish_reason"])
            for chunk in chunks(play(form, *happened))
            for choice in chunk["choices"]
        ]
        assert told == [
            (0, "", None),
            (1, "", None),
            (1, "b", None),
            (1, "B", None),
            (1, None, "length"),
            (0, "a", None),
            (0, None, "stop"),
        ]
    body = json.loads(play(WholeChat(ENVELOPE, PlainParser, logprobs=False), *happened))
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in body["choices"]] == [
        (0, "a", "stop"),
        (1, "bB", "length"),
    ]


def test_only_the_last_event_tells_of_the_turn() -> None:
    for envelope in (ENVELOPE, WITH_USAGE):
        *others, last = chunks(play(StreamedChat(envelope, 2), text("b", 1), over("stop", 1), over()))
        assert "homeport" in last
        assert all("homeport" not in chunk for chunk in others)


# what is found in an answer

CALLS = (text("r:hm"), text("c:look"), text('a:{"at":'), text('a:"sky"}'), text("c:go"), text("a:{}"))


def test_reasoning_and_calls_of_a_stream() -> None:
    data = play(ReadChat(ENVELOPE, 1, Scripted, logprobs=False), *CALLS, over())
    assert deltas(data)[1:-1] == [
        {"reasoning_content": "hm"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "look", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"sky"}'}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "call_2", "type": "function", "function": {"name": "go", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    ]
    assert chunks(data)[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_reasoning_and_calls_of_a_whole_answer() -> None:
    (choice,) = json.loads(play(WholeChat(ENVELOPE, Scripted, logprobs=False), *CALLS, over()))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at":"sky"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "go", "arguments": "{}"}},
        ],
    }


def test_what_was_held_back_comes_before_the_end() -> None:
    data = play(ReadChat(ENVELOPE, 1, Scripted, logprobs=False), text("x"), over())
    assert deltas(data)[1:] == [{"content": "x"}, {"content": "!"}, {}]
    body = json.loads(play(WholeChat(ENVELOPE, Scripted, logprobs=False), text("x"), over()))
    assert body["choices"][0]["message"]["content"] == "x!"


def test_an_answer_cut_off_in_a_call_ended_for_another_reason() -> None:
    class CutOff(Scripted):
        def finish(self) -> Sequence[Delta]:
            self.unfinished = True
            return ()

    for parser, reason, finish in (
        (Scripted, "length", "length"),
        (CutOff, "length", "length"),
        (CutOff, "stop", "stop"),
    ):
        ended = over("length" if reason == "length" else "stop")
        data = play(ReadChat(ENVELOPE, 1, parser, logprobs=False), text("c:look"), text("a:{"), ended)
        assert chunks(data)[-1]["choices"][0]["finish_reason"] == finish


def test_a_client_that_takes_one_call_gets_the_first() -> None:
    form = WholeChat(ENVELOPE, lambda: FirstCallOnly(Scripted()), logprobs=False)
    (choice,) = json.loads(play(form, *CALLS, over()))["choices"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["look"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"at":"sky"}'
    assert choice["finish_reason"] == "tool_calls"


def test_each_choice_has_a_parser_of_its_own() -> None:
    form = ReadChat(ENVELOPE, 2, Scripted, logprobs=False)
    data = play(form, text("c:look", 1), over(choice=1), text("c:go"), over())
    indexes = [call["index"] for delta in deltas(data) for call in delta.get("tool_calls", [])]
    assert indexes == [0, 0]


# log probabilities

HALF = Sampled(Likely(9, "\u00fc".encode()[:1], -0.5), (Likely(9, "\u00fc".encode()[:1], -0.5),))
OTHER = Sampled(Likely(8, "\u00fc".encode()[1:], -1.5), (Likely(3, b" a", float("-inf")),))


def test_log_probabilities_have_bytes_and_are_finite() -> None:
    form = WholeChat(ENVELOPE, PlainParser, logprobs=True)
    (choice,) = json.loads(play(form, text("\u00fc", sampled=(HALF, OTHER)), over()))["choices"]
    half = {"token": "\ufffd", "logprob": -0.5, "bytes": [0xC3]}
    assert choice["logprobs"] == {
        "content": [
            {**half, "top_logprobs": [half]},
            {
                "token": "\ufffd",
                "logprob": -1.5,
                "bytes": [0xBC],
                "top_logprobs": [{"token": " a", "logprob": -9999.0, "bytes": [32, 97]}],
            },
        ],
        "refusal": None,
    }


def test_log_probabilities_of_a_stream_are_all_there_in_order() -> None:
    class Slow(PlainParser):
        """Holds everything back."""

        def push(self, text: str) -> Sequence[Delta]:
            return ()

    happened = (text("a", sampled=(HALF,)), text("", sampled=(OTHER,)), text("b", sampled=(HALF,)), over())
    for parser in (PlainParser, Slow):
        data = play(ReadChat(ENVELOPE, 1, parser, logprobs=True), *happened)
        told = [
            token["logprob"]
            for chunk in chunks(data)
            for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
        ]
        assert told == [-0.5, -1.5, -0.5]


def test_an_answer_without_tokens_has_empty_log_probabilities() -> None:
    (choice,) = json.loads(play(WholeChat(ENVELOPE, PlainParser, logprobs=True), over()))["choices"]
    assert choice["logprobs"] == {"content": [], "refusal": None}


# stop strings

pieces = st.lists(st.text("abc\u00fc\u20ac", max_size=3).map(str.encode), max_size=12)


@given(pieces, st.lists(st.text("abc\u00fc", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_no_part_of_a_stop_string_is_sent_however_the_bytes_are_cut(
    parts: list[bytes], stops: list[str], data: st.DataObject
) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    recut = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    said = whole.decode()
    ends = [(said.find(stop) + len(stop), said.find(stop)) for stop in stops if stop in said]
    wanted = said[: min(ends)[1]] if ends else said
    for form in (StreamedChat(ENVELOPE, 1), ReadChat(ENVELOPE, 1, PlainParser, logprobs=False)):
        assembler = TextAssembler(stops)
        sent = b""
        for piece in recut:
            if new := assembler.push(piece):
                sent += form.text(text(new))
            so_far = "".join(delta.get("content") or "" for delta in _deltas_so_far(sent))
            assert wanted.startswith(so_far), "something was sent that has to be taken back"
        if assembler.stop is None and (rest := assembler.finish()):
            sent += form.text(text(rest))
        sent += form.ended(over()) + form.end(USAGE, OUTCOME)
        assert "".join(delta.get("content") or "" for delta in deltas(sent)) == wanted


def test_the_stop_string_that_ended_a_choice_is_told_as_vllm_tells_it() -> None:
    ended = ChoiceEnded(1, 0, "stop", "END")
    for form in (StreamedChat(WITH_USAGE, 1), ReadChat(ENVELOPE, 1, PlainParser, logprobs=False)):
        last = [chunk["choices"][0] for chunk in chunks(play(form, text("a"), ended)) if chunk["choices"]][-1]
        assert (last["finish_reason"], last["stop_reason"]) == ("stop", "END")
    whole = json.loads(play(WholeChat(ENVELOPE, PlainParser, logprobs=False), text("a"), ended))
    assert whole["choices"][0]["stop_reason"] == "END"


def _deltas_so_far(data: bytes) -> list[dict[str, Any]]:
    events = data.decode().split("\n\n")[:-1]
    return [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]

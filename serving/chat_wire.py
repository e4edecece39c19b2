"""Chat completions in OpenAI's shape, whole and streamed. Pure.

A stream's events are made from parts that are ready beforehand, because one is made for nearly every token.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from serving.answer_form import Form
from serving.deltas import AnswerParser, CallArguments, CallBegan, Content, Delta, Reasoning
from serving.engine import ChoiceEnded, Finish, Sampled, Text, Usage
from serving.openai_wire import (
    DONE,
    Envelope,
    Outcome,
    PromptProgress,
    compact_json,
    logprobs_json,
    sse_event,
    text_json,
    usage_json,
)

NewParser = Callable[[], AnswerParser]


class ChunkWriter:
    """The events of one choice."""

    __slots__ = ("_include_usage", "_index", "_open", "_text_close", "_text_open")

    def __init__(self, envelope: Envelope, index: int) -> None:
        self._index = index
        self._include_usage = envelope.include_usage
        self._open = chunk_open(envelope)
        self._text_open = f'data: {self._open},"choices":[{{"index":{index},"delta":{{"content":'
        close = '},"logprobs":null,"finish_reason":null}]'
        self._text_close = close + (',"usage":null}\n\n' if envelope.include_usage else "}\n\n")

    def role(self) -> bytes:
        """The first event: whose words will follow."""
        return self.delta({"role": "assistant", "content": "", "refusal": None})

    def text(self, text: str) -> bytes:
        """New text."""
        return (self._text_open + text_json(text) + self._text_close).encode()

    def delta(
        self, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None = None, finish: str | None = None
    ) -> bytes:
        return self._event(delta, logprobs, finish, {}, None)

    def progress(self, progress: PromptProgress) -> bytes:
        """The event by which llama-server tells how far the prompt is: a delta without words."""
        delta = {"role": "assistant", "content": None}
        return self._event(delta, None, None, {"prompt_progress": progress.to_json()}, None)

    def finish(self, reason: str, stop: str | None, outcome: Outcome | None = None) -> bytes:
        """The last event. `stop`: the stop string that ended it. `outcome` is told in it if the stream has no event
        for the usage."""
        tell = outcome is not None and not self._include_usage
        more = {"homeport": outcome.to_json()} if outcome and tell else {}
        return self._event({}, None, reason, more, stop)

    def _event(
        self,
        delta: Mapping[str, Any],
        logprobs: Mapping[str, Any] | None,
        finish: str | None,
        more: Mapping[str, Any],
        stop: str | None,
    ) -> bytes:
        choice = {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        choice |= stop_json(stop)
        rest: dict[str, Any] = {"choices": [choice]}
        if self._include_usage:
            rest["usage"] = None
        return sse_event(f"{self._open},{compact_json({**rest, **more})[1:]}")


class StreamedChat(Form):
    """Server-sent events of plain text. The roles of all choices come first, in their order, as clients count on it;
    then one choice after another."""

    def __init__(self, envelope: Envelope, choices: int) -> None:
        self._envelope = envelope
        self._choices = choices
        self._index = -1
        self._writer: ChunkWriter
        self._last: tuple[str, str | None] = ("stop", None)

    def progress(self, progress: PromptProgress) -> bytes:
        if not self._envelope.return_progress:
            return b""
        return ChunkWriter(self._envelope, 0).progress(progress)

    def text(self, event: Text) -> bytes:
        if event.choice != self._index:
            return self._begin(event.choice) + self._writer.text(event.text)
        return self._writer.text(event.text)

    def ended(self, event: ChoiceEnded) -> bytes:
        data = self._begin(event.choice) if event.choice != self._index else b""
        data += self._rest()
        reason = self._reason(event.reason)
        if event.choice == 0:  # The last one: what is told of the turn goes with it.
            self._last = reason, event.stop
            return data
        return data + self._writer.finish(reason, event.stop)

    def end(self, usage: Usage, outcome: Outcome) -> bytes:
        data = self._writer.finish(*self._last, outcome)
        if self._envelope.include_usage:
            data += usage_event(self._envelope, usage, outcome)
        return data + DONE

    def _begin(self, choice: int) -> bytes:
        first = self._index == -1
        self._index = choice
        self._writer = ChunkWriter(self._envelope, choice)
        if not first:
            return b""
        return b"".join(ChunkWriter(self._envelope, index).role() for index in range(self._choices))

    def _rest(self) -> bytes:
        """What was held back of the choice that ends."""
        return b""

    def _reason(self, reason: Finish) -> str:
        return reason


class ReadChat(StreamedChat):
    """Server-sent events of an answer in which there is something to find, or whose log probabilities are told."""

    def __init__(self, envelope: Envelope, choices: int, new_parser: NewParser, logprobs: bool) -> None:
        super().__init__(envelope, choices)
        self._new_parser = new_parser
        self._logprobs = logprobs
        self._parser: AnswerParser
        self._sampled: list[Sampled] = []

    def text(self, event: Text) -> bytes:
        begun = self._begin(event.choice) if event.choice != self._index else b""
        self._sampled += event.sampled
        return begun + self._told(self._parser.push(event.text))

    def _begin(self, choice: int) -> bytes:
        self._parser = self._new_parser()
        return super()._begin(choice)

    def _rest(self) -> bytes:
        data = self._told(self._parser.finish())
        return data + self._writer.delta({}, self._take_logprobs()) if self._sampled else data

    def _reason(self, reason: Finish) -> str:
        return finish_of(reason, self._parser)

    def _told(self, deltas: Sequence[Delta]) -> bytes:
        return b"".join(self._writer.delta(_delta_json(delta), self._take_logprobs()) for delta in deltas)

    def _take_logprobs(self) -> dict[str, Any] | None:
        """Those of the tokens since the last event, which need not be the tokens of this one's text."""
        if not self._logprobs:
            return None
        sampled, self._sampled = self._sampled, []
        return logprobs_json(sampled)


class WholeChat(Form):
    """One body at the end."""

    def __init__(self, envelope: Envelope, new_parser: NewParser, logprobs: bool) -> None:
        self._envelope = envelope
        self._new_parser = new_parser
        self._logprobs = logprobs
        self._choices: dict[int, _Message] = {}

    def text(self, event: Text) -> bytes:
        message = self._message(event.choice)
        message.sampled += event.sampled
        message.add(message.parser.push(event.text))
        return b""

    def ended(self, event: ChoiceEnded) -> bytes:
        message = self._message(event.choice)
        message.add(message.parser.finish())
        message.finish, message.stop = finish_of(event.reason, message.parser), event.stop
        return b""

    def end(self, usage: Usage, outcome: Outcome) -> bytes:
        choices = [
            {
                "index": index,
                "message": message.to_json(),
                "logprobs": logprobs_json(message.sampled) if self._logprobs else None,
                "finish_reason": message.finish,
                **stop_json(message.stop),
            }
            for index, message in sorted(self._choices.items())
        ]
        return whole_body(self._envelope, "chat.completion", choices, usage, outcome)

    def _message(self, choice: int) -> "_Message":
        if choice not in self._choices:
            self._choices[choice] = _Message(self._new_parser())
        return self._choices[choice]


class FirstCallOnly:
    """A parser that tells of no call but the first: for clients that cannot take several at once."""

    plain = False

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser

    @property
    def calls(self) -> int:
        return min(1, self._parser.calls)

    @property
    def unfinished(self) -> bool:
        return self._parser.unfinished

    def push(self, text: str) -> Sequence[Delta]:
        return self._first(self._parser.push(text))

    def finish(self) -> Sequence[Delta]:
        return self._first(self._parser.finish())

    def _first(self, deltas: Sequence[Delta]) -> Sequence[Delta]:
        return [d for d in deltas if not (isinstance(d, CallBegan | CallArguments) and d.index > 0)]


class _Message:
    """One whole choice as it grows."""

    def __init__(self, parser: AnswerParser) -> None:
        self.parser = parser
        self.sampled: list[Sampled] = []
        self.finish = "stop"
        self.stop: str | None = None
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[CallBegan, list[str]]] = []

    def add(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            match delta:
                case Content(text):
                    self._content.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case CallBegan():
                    self._calls.append((delta, []))
                case CallArguments(index, text):
                    self._calls[index][1].append(text)
                case _:
                    assert_never(delta)

    def to_json(self) -> dict[str, Any]:
        content = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["content"] = content or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(arguments)},
                }
                for call, arguments in self._calls
            ]
        return message


def finish_of(reason: Finish, parser: AnswerParser) -> str:
    """The finish reason, once the parser has finished: an answer that ended with whole calls ended for their sake."""
    return "tool_calls" if reason == "stop" and parser.calls and not parser.unfinished else reason


def stop_json(stop: str | None) -> dict[str, str]:
    """What a choice says of the stop string that ended it, as vLLM names it; nothing where none did."""
    return {} if stop is None else {"stop_reason": stop}


def chunk_open(envelope: Envelope, kind: str = "chat.completion.chunk") -> str:
    """An event's JSON up to its choices, without the comma."""
    head = {"id": envelope.id, "object": kind, "created": envelope.created, "model": envelope.model}
    return compact_json(head)[:-1]


def usage_event(
    envelope: Envelope, usage: Usage, outcome: Outcome, kind: str = "chat.completion.chunk"
) -> bytes:
    """The event after all choices."""
    rest = {"choices": [], "usage": usage_json(usage), "homeport": outcome.to_json()}
    return sse_event(f"{chunk_open(envelope, kind)},{compact_json(rest)[1:]}")


def whole_body(
    envelope: Envelope, kind: str, choices: Sequence[Mapping[str, Any]], usage: Usage, outcome: Outcome
) -> bytes:
    return compact_json(
        {
            "id": envelope.id,
            "object": kind,
            "created": envelope.created,
            "model": envelope.model,
            "choices": choices,
            "usage": usage_json(usage),
            "homeport": outcome.to_json(),
        }
    ).encode()


def _delta_json(delta: Delta) -> dict[str, Any]:
    match delta:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallBegan(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case _:
            assert_never(delta)

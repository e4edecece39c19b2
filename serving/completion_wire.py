"""The older completions endpoint's shape, whole and streamed. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from serving.answer_form import Form
from serving.chat_wire import chunk_open, usage_event, whole_body
from serving.engine import ChoiceEnded, Sampled, Text, Usage
from serving.openai_wire import (
    DONE,
    Envelope,
    Outcome,
    PromptProgress,
    compact_json,
    finite,
    sse_event,
    text_json,
    token_text,
)

KIND = "text_completion"


class _Numbered(Form):
    """Choices of several prompts, numbered through: those of the first prompt come first."""

    def __init__(self, envelope: Envelope, choices: int, echoes: Sequence[str], logprobs: bool) -> None:
        """`choices`: of each prompt. `echoes`: for each prompt what stands before its answers."""
        self._envelope = envelope
        self._choices = choices
        self._echoes = echoes
        self._logprobs = logprobs
        self._prompt = 0

    def prompt(self, number: int) -> None:
        self._prompt = number

    @property
    def _echo(self) -> str:
        return self._echoes[self._prompt]

    def _index(self, choice: int) -> int:
        return self._prompt * self._choices + choice


class StreamedCompletion(_Numbered):
    """Server-sent events."""

    def __init__(self, envelope: Envelope, choices: int, echoes: Sequence[str], logprobs: bool) -> None:
        super().__init__(envelope, choices, echoes, logprobs)
        self._begun = -1
        self._open = f'data: {chunk_open(envelope, KIND)},"choices":[{{"text":'
        self._close = ""
        self._offset = 0
        self._last = ""

    def progress(self, progress: PromptProgress) -> bytes:
        """As llama-server tells it: an event without text, of the prompt's first answer."""
        if not self._envelope.return_progress:
            return b""
        return self._event(self._index(0), "", None, None, {"prompt_progress": progress.to_json()})

    def text(self, event: Text) -> bytes:
        begun = self._begin(event.choice)
        if self._logprobs:
            told = _logprobs_json(event.sampled, self._offset)
            self._offset += sum(len(token_text(token.chosen)) for token in event.sampled)
            return begun + self._event(self._begun, event.text, told, None)
        if begun or event.text:
            return begun + (self._open + text_json(event.text) + self._close).encode()
        return b""

    def ended(self, event: ChoiceEnded) -> bytes:
        begun = self._begin(event.choice)
        if event.choice == 0 and self._prompt == len(self._echoes) - 1:
            self._last = event.reason
            return begun
        return begun + self._event(self._begun, "", None, event.reason)

    def end(self, usage: Usage, outcome: Outcome) -> bytes:
        index, told = self._begun, {"homeport": outcome.to_json()}
        if not self._envelope.include_usage:
            return self._event(index, "", None, self._last, told) + DONE
        last = self._event(index, "", None, self._last)
        return last + usage_event(self._envelope, usage, outcome, KIND) + DONE

    def _begin(self, choice: int) -> bytes:
        """Nothing, unless this choice begins and its prompt is echoed."""
        index = self._index(choice)
        if index == self._begun:
            return b""
        self._begun = index
        self._offset = len(self._echo)
        close = f',"index":{index},"logprobs":null,"finish_reason":null}}]'
        self._close = close + (',"usage":null}\n\n' if self._envelope.include_usage else "}\n\n")
        return self._event(index, self._echo, None, None) if self._echo else b""

    def _event(
        self,
        index: int,
        text: str,
        logprobs: Mapping[str, Any] | None,
        finish: str | None,
        more: Mapping[str, Any] | None = None,
    ) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        rest: dict[str, Any] = {"choices": [choice]}
        if self._envelope.include_usage:
            rest["usage"] = None
        return sse_event(f"{chunk_open(self._envelope, KIND)},{compact_json({**rest, **(more or {})})[1:]}")


class WholeCompletion(_Numbered):
    """One body at the end."""

    def __init__(self, envelope: Envelope, choices: int, echoes: Sequence[str], logprobs: bool) -> None:
        super().__init__(envelope, choices, echoes, logprobs)
        self._texts: dict[int, list[str]] = {}
        self._sampled: dict[int, list[Sampled]] = {}
        self._finish: dict[int, str] = {}

    def text(self, event: Text) -> bytes:
        index = self._index(event.choice)
        self._texts.setdefault(index, [self._echo]).append(event.text)
        self._sampled.setdefault(index, []).extend(event.sampled)
        return b""

    def ended(self, event: ChoiceEnded) -> bytes:
        self.text(Text(event.turn, "", 0, event.choice))
        self._finish[self._index(event.choice)] = event.reason
        return b""

    def end(self, usage: Usage, outcome: Outcome) -> bytes:
        choices = [
            {
                "text": "".join(self._texts[index]),
                "index": index,
                "logprobs": _logprobs_json(self._sampled[index], 0) if self._logprobs else None,
                "finish_reason": reason,
            }
            for index, reason in sorted(self._finish.items())
        ]
        return whole_body(self._envelope, KIND, choices, usage, outcome)


def _logprobs_json(sampled: Sequence[Sampled], offset: int) -> dict[str, Any]:
    """The older shape: lists side by side. `offset`: where in the choice's text the first token begins."""
    tokens = [token_text(token.chosen) for token in sampled]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [finite(token.chosen.logprob) for token in sampled],
        "top_logprobs": [
            {token_text(likely): finite(likely.logprob) for likely in (token.chosen, *token.top)}
            for token in sampled
        ],
        "text_offset": offsets,
    }

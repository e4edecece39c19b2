"""The Engine protocol: what a host asks of the code that makes tokens.

Shaped for batches and many sequences: turns of several sessions may run at once, each on the sequence that the
host gave its session. Which session owns which sequence, who waits and who is parked is the host's matter.
This module holds no engine and imports none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Finish = Literal["stop", "length", "cancelled"]


class LoadError(Exception):
    """The model cannot be served. The message says why and what to do; starting again will not help."""


class PromptError(Exception):
    """The conversation cannot be turned into a prompt. `param` names the request field at fault."""

    def __init__(self, message: str, param: str = "messages") -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(PromptError):
    """The prompt's size alone says that it has `at_least` tokens, and that is too many. It was not counted."""

    def __init__(self, at_least: int) -> None:
        super().__init__(f"the prompt is at least {at_least} tokens long")
        self.at_least = at_least


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model once it is loaded."""

    context: int
    """Tokens that one sequence can hold, prompt and answer together."""
    sequences: int
    """How many sequences can be alive at once, numbered from 0."""
    description: str
    """The engine's own line about the model: architecture, size, quantization."""
    kv_bytes_per_token: int
    load_s: float
    template: bool
    """Whether the model brings a chat template."""
    vocabulary: int
    """How many tokens there are, numbered from 0."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy. `seed` None draws a fresh one."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer to make."""

    id: int
    """Chosen by the host, never used twice while the engine lives."""
    sequence: int
    """0 <= sequence < facts.sequences. At most one turn runs on a sequence at a time."""
    prompt: tuple[int, ...]
    """The whole conversation as token ids, not empty, shorter than facts.context. What the sequence holds already
    is found by the longest common prefix and not evaluated again."""
    max_tokens: int | None
    """At most this many tokens are generated; None means up to the context's end. At least 1."""
    sampling: Sampling
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one turn. prompt = reused + evaluated for a turn whose prefill was finished."""

    prompt: int
    reused: int
    evaluated: int
    generated: int


@dataclass(frozen=True, slots=True)
class Began:
    """The turn has its sequence. `held` is what the sequence held, of which `reused` tokens stay."""

    turn: int
    held: int
    reused: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A chunk of the prompt was evaluated: `done` of `total` prompt tokens are in the sequence now."""

    turn: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Text:
    """New text, whole characters only, with no part of a stop string in it. `tokens` tokens stand behind it."""

    turn: int
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The turn's last event when it went well or was cancelled."""

    turn: int
    reason: Finish
    usage: Usage


@dataclass(frozen=True, slots=True)
class Broke:
    """The turn's last event when the engine failed it. The sequence was emptied."""

    turn: int
    message: str


Event = Began | Prefilled | Text | Ended | Broke
Emit = Callable[[Sequence[Event]], None]
"""Called on the engine's thread, once a step, with the step's events in order. Must not block or raise."""


class Engine(Protocol):
    """Life: load, start, then begin / cancel / erase in any order from any thread, close.

    Each turn that was begun ends in exactly one Ended or Broke. Only the engine's own thread touches the model's
    context; every method here but `load`, `prompt` and `close` returns at once.
    """

    @property
    def facts(self) -> ModelFacts:
        """Valid after `load`."""
        ...

    @property
    def tokens_generated(self) -> int:
        """Tokens sampled since the engine was loaded, over all turns. Never falls."""
        ...

    @property
    def tokens_evaluated(self) -> int:
        """Prompt tokens evaluated since the engine was loaded, over all turns. Never falls."""
        ...

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        """Load the model and warm it up; blocks. `progress` gets 0.0 to 1.0. Raises LoadError."""
        ...

    def start(self, emit: Emit) -> None:
        """Start the engine's thread. After this, events come through `emit`."""
        ...

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Render a conversation with the model's template and tokenize it. Raises PromptError; PromptTooLong where
        the text is too large for the context whatever its tokens are, without tokenizing it. Thread-safe, and no
        call waits for another; a large conversation takes seconds, so no event loop may call it with one."""
        ...

    def begin(self, turn: Turn) -> None:
        """Queue a turn."""
        ...

    def cancel(self, turn: int) -> None:
        """End a turn within one token, in prefill within one chunk. Unknown or ended turns are ignored."""
        ...

    def erase(self, sequence: int) -> None:
        """Forget what a sequence holds. No turn may be running on it."""
        ...

    def held(self, sequence: int) -> int:
        """Tokens in a sequence after its last step. A snapshot."""
        ...

    def close(self) -> None:
        """End all turns as cancelled, end the thread, free the model. Blocks; safe to call twice."""
        ...

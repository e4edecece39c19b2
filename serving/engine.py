"""The Engine protocol: what a host asks of the code that makes tokens.

Shaped for batches and many sequences: turns of several sessions may run at once, each on the sequence that the
host gave its session. Which session owns which sequence, who waits and who is parked is the host's matter.
This module holds no engine and imports none.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
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
class MemoryUse:
    """Bytes that an engine takes for a model. `compute`: the buffers of one decode."""

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute


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
    layout: str = ""
    """What a saved state is bound to beside the model's file: the engine's build, context, sequences, KV types. A
    state that was saved under another layout must not be loaded."""
    prompt_chunk: int = 0
    """Prompt tokens in a step that a neighbour's next token waits for."""
    memory: MemoryUse = MemoryUse(0, 0, 0)
    embedding: int = 0
    """Numbers in an embedding; 0: this engine makes none of this model."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """A sequence's context outside the engine."""

    tokens: tuple[int, ...]
    """What the sequence held, as token ids; not empty."""
    data: bytes
    """The engine's own bytes for all of it. Opaque, trusted: an engine may crash on bytes that it did not make, so
    whoever stores them proves them by a checksum before they come back."""
    checkpoints: tuple[tuple[int, bytes], ...] = ()
    """Earlier points to go back to, as (tokens, the engine's bytes), ascending; only of a model whose memory cannot
    be cut at will."""

    @property
    def size(self) -> int:
        """Bytes, the token ids not counted."""
        return len(self.data) + sum(len(data) for _, data in self.checkpoints)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy. `seed` None draws a fresh one."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    typical_p: float = 1.0
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
    choices: int = 1
    """Answers to the same prompt, which is evaluated once; at least 1. They are made one after another, the one
    numbered 0 last, so that the sequence holds it in the end."""
    logprobs: int | None = None
    """None: nothing is told. Otherwise each token's log probability, and so many of the likeliest tokens'."""
    constraint: Any = None
    """What the answers must match; made by this engine's `constraint`. None: anything goes."""
    special: bool = False
    """Whether special tokens show up in the text (those that end an answer never do)."""
    state: SavedState | None = None
    """What the sequence is to hold before anything else is done; whatever it held is forgotten. None: as it is."""
    text: bool = False
    """Whether the prompt stands for its text, so that other tokens of the same text may take its place."""
    scope: str | None = None
    """Whose session this is. What a sequence holds may be copied to another of the same scope; None: to none."""


@dataclass(frozen=True, slots=True)
class Embed:
    """Texts to make embeddings of, each as token ids: not empty, no longer than facts.context."""

    id: int
    """From the same numbers as turns'."""
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one turn. prompt = reused + evaluated for a turn whose prefill was finished.

    `generated` counts all choices. `reused` is what was not evaluated, wherever it came from.
    """

    prompt: int
    reused: int
    evaluated: int
    generated: int


@dataclass(frozen=True, slots=True)
class Began:
    """The turn has its sequence. `held` is what the sequence held (after `turn.state` was loaded), of which `reused`
    tokens stay."""

    turn: int
    held: int
    reused: int
    shared: int = 0
    """Tokens copied from another sequence of the same scope instead; then nothing of what was held stays, and
    `reused` equals it."""
    restored: bool | None = None
    """Whether `turn.state` could be loaded; None: there was none."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A chunk of the prompt was evaluated: `done` of `total` prompt tokens are in the sequence now."""

    turn: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Likely:
    """A token, the bytes it stands for, and its log probability (natural) as the model alone sees it."""

    token: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """One token of an answer, with the likeliest ones at its place, likeliest first."""

    chosen: Likely
    top: tuple[Likely, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """New text, whole characters only, with no part of a stop string in it. `tokens` tokens stand behind it."""

    turn: int
    text: str
    tokens: int
    choice: int = 0
    sampled: tuple[Sampled, ...] = ()
    """The tokens behind it, if the turn asked for log probabilities."""


@dataclass(frozen=True, slots=True)
class ChoiceEnded:
    """One of the turn's answers is whole. Comes for every choice of a turn that ends well, before its Ended."""

    turn: int
    choice: int
    reason: Finish
    stop: str | None = None
    """The stop string that ended it."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What an Embed asked for: for each input its vector, of length 1, as little-endian float32."""

    turn: int
    vectors: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The turn's last event when it went well or was cancelled. `reason` is that of choice 0; an Embed's is "stop"."""

    turn: int
    reason: Finish
    usage: Usage


@dataclass(frozen=True, slots=True)
class Broke:
    """The turn's last event when the engine failed it. The sequence was emptied."""

    turn: int
    message: str
    asked: bool = False
    """What the turn asks for cannot be done; otherwise the engine is at fault."""


Event = Began | Prefilled | Text | ChoiceEnded | Embedded | Ended | Broke
Emit = Callable[[Sequence[Event]], None]
"""Called on the engine's thread, once a step, with the step's events in order. Must not block or raise."""


class Engine(Protocol):
    """Life: load, start, then begin / embed / cancel / save / erase in any order from any thread, close. A closed
    engine may be loaded and started again; it then holds nothing.

    What is asked is done in the order it was asked in: a save, an erase and a begin on one sequence need not wait
    for each other. Each turn that was begun ends in exactly one Ended or Broke. Only the engine's own thread touches
    the model's context; every method here but `load`, `prompt`, `tokenize`, `constraint` and `close` returns at once.
    """

    @property
    def facts(self) -> ModelFacts:
        """Valid after the first `load`, also while the engine is closed."""
        ...

    @property
    def format(self) -> Any:
        """The model's ChatFormat (chat_format.py), which tells how its answers are read; None for a model without
        a chat template. Valid like `facts`."""
        ...

    @property
    def tokens_generated(self) -> int:
        """Tokens sampled since the engine was made, over all turns. Never falls."""
        ...

    @property
    def tokens_evaluated(self) -> int:
        """Prompt tokens evaluated since the engine was made, over all turns. Never falls."""
        ...

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        """Load the model and warm it up; blocks. `progress` gets 0.0 to 1.0. Raises LoadError."""
        ...

    def start(self, emit: Emit) -> None:
        """Start the engine's thread. After this, events come through `emit`."""
        ...

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Render a conversation with the model's template and tokenize it. `tools`: OpenAI's tool objects;
        `variables`: more for the template. Raises PromptError; PromptTooLong where the text is too large for the
        context whatever its tokens are, without tokenizing it. Thread-safe, and no call waits for another; a large
        conversation takes seconds, so no event loop may call it with one."""
        ...

    def tokenize(self, text: str, special: bool = False) -> tuple[int, ...]:
        """Token ids of a plain text, with the model's beginning-of-text token in front where it wants one. `special`:
        names of special tokens in it are read as such. Raises PromptTooLong. Thread-safe."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones included. Raises PromptError for an id that is none. Thread-safe."""
        ...

    def constraint(self, grammar: str) -> Any:
        """Compile a grammar (llguidance's Lark or JSON form) for `Turn.constraint`. Raises PromptError with the
        grammar library's words. Thread-safe; may take some milliseconds."""
        ...

    def spelled_as(self, held: Sequence[int], prompt: Sequence[int]) -> tuple[int, ...]:
        """The prompt with tokens of `held` in place of its own, as far as both stand for the same text; as it is where
        that must not be. Thread-safe."""
        ...

    def begin(self, turn: Turn) -> None:
        """Queue a turn."""
        ...

    def embed(self, embed: Embed) -> None:
        """Queue texts for embedding: Embedded and Ended come for it, or Broke. No sequence is touched."""
        ...

    def cancel(self, turn: int) -> None:
        """End a turn within one token, in prefill within one chunk. Unknown or ended turns are ignored."""
        ...

    def save(self, sequence: int) -> "Future[SavedState | None]":
        """A copy of what the sequence holds, which stays. None: it holds nothing, or it could not be saved. No turn
        may be running on it. The future is resolved on the engine's thread; a closed engine resolves it to None."""
        ...

    def erase(self, sequence: int) -> None:
        """Forget what a sequence holds. No turn may be running on it."""
        ...

    def held(self, sequence: int) -> int:
        """Tokens in a sequence after its last step. A snapshot."""
        ...

    def tokens(self, sequence: int) -> tuple[int, ...]:
        """What a sequence holds, as token ids. No turn may be running on it."""
        ...

    def close(self) -> None:
        """End all turns as cancelled, end the thread, free the model. Blocks; safe to call twice."""
        ...

"""The loop's Backend on a script: memory that is lists of tokens, and answers that are written already.

What a prompt says and what is answered is decided in script_vocab.py and script_answers.py.
"""

import threading
import time
from array import array
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from serving.backend import Span
from serving.engine import Likely, LoadError, Sampled, Turn
from serving.script import Script
from serving.script_answers import Played, moment, play
from serving.script_file import ScriptError, load_script
from serving.script_vocab import END_ID, SIZE, bytes_of, heard, tokens_of

_WORD = "I"


class Playing:
    """One answer, as far as it is made: what the loop calls a sampler. `due_s`: when its next token may come; None: its
    prompt is not evaluated yet."""

    def __init__(self, played: Played, sequence: int, prompt: int) -> None:
        self.played = played
        self.sequence = sequence
        self.prompt = prompt
        self.due_s: float | None = None
        self._left = iter(tokens_of(played.text, special=False))

    def next_token(self, now_s: float) -> int:
        rate = self.played.tokens_per_s
        self.due_s = now_s + (1 / rate if rate else 0.0)
        return next(self._left, END_ID)


class ScriptBackend:
    """A script in memory, read anew by each `open`."""

    cuttable = True

    def __init__(self, path: Path, sequences: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._held: list[list[int]] = [[] for _ in range(sequences)]
        self._playing: dict[int, Playing] = {}
        self._aborted = threading.Event()
        self.script = Script()

    def open(self, progress: Callable[[float], None]) -> None:
        try:
            self.script = load_script(self._path)
        except ScriptError as error:
            raise LoadError(f"{error}.") from error
        progress(1.0)

    def shut(self) -> None:
        self.clear()
        self._playing.clear()

    def unfit(self, turn: Turn) -> str | None:
        if not all(0 <= token < SIZE for token in turn.prompt):
            return f"the prompt has token ids that this model does not know (it has {SIZE})"
        wrong = [token for token, _ in turn.sampling.logit_bias if not 0 <= token < SIZE]
        return f"logit_bias names token {wrong[0]}; this model has {SIZE}" if wrong else None

    # Answers

    def sampler(self, turn: Turn) -> Playing:
        played = play(self.script, moment(*heard(turn.prompt)))
        playing = Playing(played, turn.sequence, len(turn.prompt))
        self._playing[turn.sequence] = playing
        return playing

    def free(self, sampler: Playing) -> None:
        if self._playing.get(sampler.sequence) is sampler:
            del self._playing[sampler.sequence]

    def sample(self, sampler: Playing, row: int) -> int:
        return sampler.next_token(self._clock())

    def sample_told(self, sampler: Playing, row: int, top: int) -> tuple[int, Sampled]:
        """Nothing else could have come."""
        token = self.sample(sampler, row)
        chosen = Likely(token, bytes_of(token), 0.0)
        return token, Sampled(chosen, (chosen,) if top else ())

    def piece(self, token: int, special: bool = False) -> bytes | None:
        return None if token == END_ID else bytes_of(token)

    def embed(self, tokens: Sequence[int], room: Callable[[], int]) -> Generator[bytes | None]:
        raise RuntimeError("a script makes no embeddings")

    # Memory

    def decode(self, spans: Sequence[Span]) -> bool:
        """Takes as long as the slowest of its turns asks for. Nothing is evaluated where it is aborted."""
        if self._aborted.is_set() or self._aborted.wait(max(0.0, self._due_s(spans) - self._clock())):
            return False
        for span in spans:
            self._held[span.sequence].extend(span.tokens)
        return True

    def _due_s(self, spans: Sequence[Span]) -> float:
        now_s = due_s = self._clock()
        rate = self.script.prompt_tokens_per_s
        prompts = sum(self._of_prompt(span) for span in spans)
        if rate and prompts:
            due_s += prompts / rate
        for span in spans:
            playing = self._playing.get(span.sequence)
            if not span.last or playing is None:
                continue
            if playing.due_s is None:
                playing.due_s = due_s + playing.played.first_token_s
            due_s = max(due_s, playing.due_s, now_s)
        return due_s

    def _of_prompt(self, span: Span) -> int:
        """How many of its tokens are its prompt's."""
        playing = self._playing.get(span.sequence)
        end = span.start + len(span.tokens)
        return max(0, min(end, playing.prompt) - span.start) if playing else 0

    def keep(self, sequence: int, count: int) -> int:
        del self._held[sequence][count:]
        return count

    def can_keep(self, sequence: int, count: int) -> bool:
        return count <= len(self._held[sequence])

    def present(self, sequence: int) -> int:
        return len(self._held[sequence])

    def save(self, sequence: int) -> bytes | None:
        return array(_WORD, self._held[sequence]).tobytes()

    def load(self, sequence: int, data: bytes) -> bool:
        words = array(_WORD)
        usable = len(data) % words.itemsize == 0
        if usable:
            words.frombytes(data)
            usable = all(token < SIZE for token in words)
        self._held[sequence] = words.tolist() if usable else []
        return usable

    def checkpoint(self, sequence: int) -> bytes | None:
        return None

    def roll_back(self, sequence: int, count: int, data: bytes) -> bool:
        self._held[sequence] = []
        return False

    def copy(self, source: int, destination: int, count: int) -> bool:
        self._held[destination] = self._held[source][:count]
        return True

    def clear(self) -> None:
        for held in self._held:
            held.clear()

    # Any thread

    def abort(self) -> None:
        self._aborted.set()

    def rearm(self) -> None:
        self._aborted.clear()

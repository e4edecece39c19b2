"""Backends for the decode loop: no model, but a memory that is as strict as llama.cpp's."""

import json
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

from serving.backend import Span
from serving.engine import Likely, Sampled, Turn

END = 0


@dataclass(frozen=True, slots=True)
class FakeSampler:
    """For one answer of a turn."""

    number: int
    turn: Turn


class CountingBackend:
    """Every answer is the number of tokens that the sequence holds, again and again, until `end_at` are held. Checks
    what llama.cpp would abort on or answer with nonsense: positions without a gap, no more tokens than the batch,
    logits of nothing but the turn's own prompt and answer, samplers freed once, states of its own only."""

    cuttable = True

    def __init__(self, batch: int = 8, end_at: int = 1000) -> None:
        self.held: defaultdict[int, list[int]] = defaultdict(list)
        self.samplers: set[FakeSampler] = set()
        self.opened = 0
        self.embedded: list[tuple[int, ...]] = []
        self.decodes: list[tuple[Span, ...]] = []
        self._made = 0
        self._batch = batch
        self._end_at = end_at
        self._rows: list[tuple[int, ...] | None] = []
        self._aborted = False

    def open(self, progress: Callable[[float], None]) -> None:
        self.opened += 1
        progress(1.0)

    def shut(self) -> None:
        self.held.clear()

    def unfit(self, turn: Turn) -> str | None:
        return "the prompt has token ids that this model does not know" if min(turn.prompt) < 0 else None

    def sampler(self, turn: Turn) -> FakeSampler:
        self._made += 1
        sampler = FakeSampler(self._made, turn)
        self.samplers.add(sampler)
        return sampler

    def free(self, sampler: FakeSampler) -> None:
        self.samplers.remove(sampler)

    def keep(self, sequence: int, count: int) -> int:
        held = self.held[sequence]
        assert count <= len(held)
        if count and not self.can_keep(sequence, count):
            count = 0
        del held[count:]
        return count

    def can_keep(self, sequence: int, count: int) -> bool:
        assert count > 0
        return True

    def present(self, sequence: int) -> int:
        return len(self.held[sequence])

    def save(self, sequence: int) -> bytes | None:
        assert self.held[sequence]
        return packed(self.held[sequence])

    def load(self, sequence: int, data: bytes) -> bool:
        self.held[sequence] = unpacked(data)
        return bool(self.held[sequence])

    def checkpoint(self, sequence: int) -> bytes | None:
        assert not self.cuttable
        return packed(self.held[sequence])

    def roll_back(self, sequence: int, count: int, data: bytes) -> bool:
        held = self.held[sequence]
        assert not self.cuttable
        assert unpacked(data) == held[:count]
        assert len(held) > count
        del held[count:]
        return True

    def copy(self, source: int, destination: int, count: int) -> bool:
        assert self.cuttable
        assert source != destination
        assert 0 < count <= len(self.held[source])
        self.held[destination] = self.held[source][:count]
        return True

    def decode(self, spans: Sequence[Span]) -> bool:
        assert 0 < sum(len(span.tokens) for span in spans) <= self._batch
        assert len({span.sequence for span in spans}) == len(spans)
        self.decodes.append(tuple(spans))
        self._rows = []
        if self._aborted:
            return False
        self._evaluate(spans)
        return True

    def _evaluate(self, spans: Iterable[Span]) -> None:
        for span in spans:
            held = self.held[span.sequence]
            assert span.start == len(held)
            assert len(span.tokens) > 0
            held.extend(span.tokens)
            self._rows += [None] * (len(span.tokens) - 1) + [tuple(held) if span.last else None]

    def sample(self, sampler: FakeSampler, row: int) -> int:
        assert sampler in self.samplers
        held = self._rows[row]
        assert held is not None
        prompt = sampler.turn.prompt
        assert held == prompt + tuple(range(len(prompt), len(held)))
        return END if len(held) >= self._end_at else len(held)

    def sample_told(self, sampler: FakeSampler, row: int, top: int) -> tuple[int, Sampled]:
        token = self.sample(sampler, row)
        chosen = Likely(token, self.piece(token) or b"", -0.5)
        return token, Sampled(chosen, (chosen,) * top)

    def embed(self, tokens: Sequence[int], room: Callable[[], int]) -> Generator[bytes | None]:
        done = 0
        while done < len(tokens):
            if done:
                yield None
            if self._aborted:
                raise InterruptedError
            done += room()
        self.embedded.append(tuple(tokens))
        yield bytes([len(tokens)])

    def piece(self, token: int, special: bool = False) -> bytes | None:
        return None if token == END else b"%d " % token

    def clear(self) -> None:
        self.held.clear()

    def abort(self) -> None:
        self._aborted = True

    def rearm(self) -> None:
        self._aborted = False


class RecurrentBackend(CountingBackend):
    """Its memory is one state, that has gone on or not: it can be emptied or rolled back, but not cut."""

    cuttable = False

    def can_keep(self, sequence: int, count: int) -> bool:
        assert count > 0
        return count == self.present(sequence)


class WindowBackend(CountingBackend):
    """Its memory can be cut by at most two tokens, as a sliding window's near its end."""

    cuttable = False

    def can_keep(self, sequence: int, count: int) -> bool:
        assert count > 0
        return count >= self.present(sequence) - 2


def packed(tokens: Sequence[int]) -> bytes:
    return json.dumps(list(tokens)).encode()


def unpacked(data: bytes) -> list[int]:
    """Nothing for what `packed` did not make."""
    try:
        tokens = json.loads(data)
    except ValueError:
        return []
    return [int(token) for token in tokens]

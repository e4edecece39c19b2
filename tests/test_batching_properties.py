"""What must hold whatever comes in which order: the decode loop and its batching under random arrivals, cancels,
saves, restores, aborts and failures.

Everything is asked for on the loop's own thread, in the middle of its steps, so a run repeats itself exactly.
"""

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from serving.backend import Span
from serving.batching import Budget
from serving.decode_loop import DecodeLoop
from serving.engine import (
    Began,
    Broke,
    ChoiceEnded,
    Embed,
    Embedded,
    Ended,
    Event,
    Sampling,
    SavedState,
    Text,
    Turn,
)
from tests.backends import CountingBackend, RecurrentBackend, WindowBackend, unpacked

PATIENCE_S = 30.0
CONTEXT = 72
REFUSALS: dict[str, Any] = {
    "save": None,
    "load": False,
    "checkpoint": None,
    "roll_back": False,
    "copy": False,
    "keep": 0,
    "can_keep": False,
}
"""How a backend says that it cannot; whatever it was asked for, the sequence is empty then."""
FAILING = ("decode", "sample", "sampler", "free", "piece", "embed", "clear", "unfit", *REFUSALS)


@dataclass(frozen=True)
class Say:
    """Begin a turn. `kept`: so many tokens of what the sequence `after` holds begin its prompt, `new` others follow."""

    sequence: int
    after: int
    kept: int
    new: int
    tokens: int
    choices: int
    scope: str | None
    told: bool
    resumes: bool
    busy: bool


@dataclass(frozen=True)
class Cancel:
    place: int


@dataclass(frozen=True)
class Save:
    sequence: int


@dataclass(frozen=True)
class Erase:
    sequence: int


@dataclass(frozen=True)
class Embeddings:
    sizes: tuple[int, ...]


Ask = Say | Cancel | Save | Erase | Embeddings


@dataclass(frozen=True)
class Plan:
    """`groups`: what is asked together, each group in the middle of a decode, or when nothing is left to do."""

    kind: type[CountingBackend]
    sequences: int
    budget: Budget
    share: bool
    groups: list[list[Ask]]
    fails: dict[tuple[str, int], bool]
    """Which call of a backend's method goes wrong; true: it raises."""
    aborted: list[int]
    """Tokens that an aborted decode evaluates nevertheless."""


numbers = st.integers(0, 3)
scopes = st.sampled_from(["a", "a", "a", "b", None])
says = st.builds(
    Say,
    sequence=numbers,
    after=numbers,
    kept=st.sampled_from([99, 99, 50, 40, 20, 0]),
    new=st.sampled_from([40, 9, 55, 1]),
    tokens=st.integers(1, 6),
    choices=st.sampled_from([1, 1, 1, 2, 3]),
    scope=scopes,
    told=st.booleans(),
    resumes=st.booleans(),
    busy=st.sampled_from([False] * 9 + [True]),
)
asks = st.one_of(
    says,
    says,
    says,
    says,
    says,
    st.builds(Cancel, st.integers(0, 9)),
    st.builds(Save, numbers),
    st.builds(Erase, numbers),
    st.builds(Embeddings, st.lists(st.integers(1, 9), max_size=3).map(tuple)),
)


@st.composite
def plans(draw: st.DrawFn, failures: bool) -> Plan:
    sequences = draw(st.sampled_from([2, 3, 4, 1]))
    batch = draw(st.integers(sequences, 12))
    fails: dict[tuple[str, int], bool] = {}
    if failures:
        calls = st.tuples(st.sampled_from(FAILING), st.integers(1, 20))
        fails = draw(st.dictionaries(calls, st.booleans(), max_size=6))
    return Plan(
        draw(st.sampled_from([CountingBackend] * 3 + [RecurrentBackend, WindowBackend])),
        sequences,
        Budget(batch, draw(st.integers(1, 12)), draw(st.sampled_from([False, False, False, True]))),
        draw(st.sampled_from([True, True, False])),
        draw(st.lists(st.lists(asks, min_size=1, max_size=2), min_size=24, max_size=40)),
        fails,
        draw(st.lists(st.integers(0, 30), max_size=4)),
    )


@dataclass
class Told:
    """A turn as its events tell it."""

    turn: Turn
    began: bool = False
    ended: bool = False
    choices: list[int] = field(default_factory=list)
    text: defaultdict[int, str] = field(default_factory=lambda: defaultdict(str))
    tokens: int = 0


class Harbour:
    """Drives one loop through a plan and judges it. It is host and backend's hook at once, all on the loop's thread;
    what it finds wrong stands in `faults`, as the loop survives whatever is raised there."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.faults: list[str] = []
        self.done = threading.Event()
        self.backend = hooked(self, plan.kind)(plan.budget.batch, 60)
        self.loop = DecodeLoop(
            self.backend,
            CONTEXT,
            plan.sequences,
            plan.budget,
            share=plan.share,
            exact=plan.budget.exact,
            prompt_chunk=plan.budget.chunk,
        )
        self.told: dict[int, Told] = {}
        self.embeds: dict[int, bool] = {}
        self.owner: dict[int, Told] = {}
        """Whose turn runs on a sequence, as the events say."""
        self.saves: list[Future[SavedState | None]] = []
        self.states: list[SavedState] = []
        self.scope: dict[int, str | None] = {}
        self.copied_from: str | None = None
        self.unserved: Counter[int] = Counter()
        """Decodes since a turn had its last piece."""
        self.calls: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.aborts = iter(plan.aborted)
        self._groups = iter(plan.groups)
        self._next = itertools.count(1)

    def check(self, right: bool, wrong: str) -> None:
        if not right:
            self.faults.append(wrong)

    # As the host

    def run(self) -> None:
        self.loop.load(lambda _: None)
        self.loop.start(self.hear)
        self.loop.begin(Turn(0, 99, (1,), 1, Sampling()))  # breaks, and that sets all in motion
        self.check(self.done.wait(PATIENCE_S), "it does not come to an end")
        self.loop.close()

    def ask(self) -> bool:
        """Ask for the next group of things. False: there is none."""
        group = next(self._groups, None)
        for one in group or ():
            match one:
                case Say():
                    self.say(one)
                case Cancel(place):
                    asked = [*self.told, *self.embeds]
                    if place < len(asked):
                        self.loop.cancel(asked[-1 - place])
                case Save(number):
                    self.save(number % self.plan.sequences)
                case Erase(number):
                    self.loop.erase(number % self.plan.sequences)
                case Embeddings(sizes):
                    self.embeds[number := next(self._next)] = False
                    self.loop.embed(Embed(number, tuple((1,) * size for size in sizes)))
        return group is not None

    def say(self, say: Say) -> None:
        number = say.sequence % self.plan.sequences
        asked = [told for told in self.told.values() if told.turn.sequence == number and not told.ended]
        if asked and not say.busy:
            return
        held = self.backend.held[say.after % self.plan.sequences]
        prompt = (*held[: say.kept], *([1] * say.new))[: CONTEXT - 2]
        state = self.states[-1] if say.resumes and self.states else None
        turn = Turn(
            next(self._next),
            number,
            prompt,
            say.tokens,
            Sampling(),
            choices=say.choices,
            scope=say.scope,
            logprobs=0 if say.told else None,
            state=state,
        )
        self.told[turn.id] = Told(turn)
        self.loop.begin(turn)

    def save(self, number: int) -> None:
        saved = self.loop.save(number)
        self.saves.append(saved)

        def judge(future: "Future[SavedState | None]") -> None:
            if (state := future.result()) is None:
                return
            self.states.append(state)
            self.check(list(state.tokens) == unpacked(state.data), "a state is not of its tokens")
            self.check(list(state.tokens) == self.backend.held[number], "a state is of another sequence")

        saved.add_done_callback(judge)

    def hear(self, events: Sequence[Event]) -> None:
        try:
            for one in events:
                if one.turn in self.embeds:
                    self.hear_embed(one)
                elif one.turn:
                    self.hear_turn(one, self.told[one.turn])
            while self.idle():
                if not self.ask():
                    self.done.set()
                    break
        except Exception as error:  # noqa: BLE001  (the loop would swallow it)
            self.faults.append(repr(error))
            self.done.set()

    def idle(self) -> bool:
        return all(told.ended for told in self.told.values()) and all(self.embeds.values())

    def hear_embed(self, one: Event) -> None:
        self.check(not self.embeds[one.turn], "an event after an embedding's end")
        self.check(isinstance(one, Embedded | Ended | Broke), f"{one} for an embedding")
        self.embeds[one.turn] = isinstance(one, Ended | Broke)

    def hear_turn(self, one: Event, told: Told) -> None:
        turn = told.turn
        self.check(not told.ended, f"{one} after the end")
        self.check(
            told.began != isinstance(one, Began) or isinstance(one, Broke | Ended), f"{one} out of order"
        )
        match one:
            case Began():
                self.hear_began(one, told)
            case Text(text=text, tokens=tokens, choice=choice, sampled=sampled):
                told.text[choice] += text
                told.tokens += tokens
                self.check(len(sampled) == (tokens if turn.logprobs is not None else 0), "tokens not told")
            case ChoiceEnded(choice=choice):
                told.choices.append(choice)
                self.check(told.text[choice] == answer(turn), f"a wrong answer: {told.text[choice]}")
            case Ended() | Broke():
                told.ended = True
                if self.owner.get(turn.sequence) is told:
                    del self.owner[turn.sequence]
                if isinstance(one, Ended):
                    self.hear_end(one, told)
            case _:
                pass

    def hear_began(self, one: Began, told: Told) -> None:
        turn = told.turn
        told.began = True
        self.check(turn.sequence not in self.owner, "a sequence with two owners")
        self.owner[turn.sequence] = told
        self.unserved[turn.id] = 0
        self.check((one.restored is None) == (turn.state is None), "a restore that nobody asked for")
        if one.shared:
            self.check(one.shared == one.reused, "shared and reused differ")
            self.check(self.copied_from == turn.scope is not None, "a copy from another scope")
            self.happened["shared"] += 1
        elif one.reused and one.restored is None:
            self.check(self.scope.get(turn.sequence) == turn.scope, "reused from another scope")
            self.happened["reused"] += 1
        elif one.reused:
            self.happened["resumed"] += 1
        self.scope[turn.sequence] = turn.scope

    def hear_end(self, one: Ended, told: Told) -> None:
        usage, turn = one.usage, told.turn
        self.happened[one.reason] += 1
        self.check(usage.prompt == len(turn.prompt), "a wrong prompt count")
        self.check(min(usage.reused, usage.evaluated) >= 0, f"{usage}")
        if one.reason == "cancelled":
            self.check(usage.reused + usage.evaluated <= usage.prompt, f"{usage}")
            return
        self.check(usage.reused + usage.evaluated == usage.prompt, f"{usage}")
        self.check(told.choices == list(range(turn.choices))[::-1], f"choices {told.choices}")
        self.check(
            usage.generated == told.tokens + turn.choices * stops(turn), f"{usage}, {told.tokens} told"
        )

    # Between the loop and its backend

    def trouble(self, method: str) -> bool | None:
        """None: this call goes well. True: it raises. False: it is refused."""
        self.calls[method] += 1
        return self.plan.fails.get((method, self.calls[method]))

    def judge(self, spans: Sequence[Span]) -> None:
        """One decode against what runs."""
        running = {sequence: told for sequence, told in self.owner.items() if not told.ended}
        held = self.backend.held
        exact, chunk = self.plan.budget.exact, self.plan.budget.chunk
        for span in spans:
            self.check(span.sequence in running, "a decode for nobody")
        if exact:
            self.check(len(spans) == 1, "neighbours in an exact decode")
        decoding = [
            sequence for sequence, told in running.items() if len(held[sequence]) >= len(told.turn.prompt)
        ]
        served = {span.sequence for span in spans}
        if not exact:
            self.check(set(decoding) <= served, "a decoding turn had to wait")
            first = [span.sequence for span in spans if len(span.tokens) == 1 and span.last]
            self.check([span.sequence for span in spans][: len(first)] == first, "a prompt came first")
            if first:
                rest = sum(len(span.tokens) for span in spans) - len(first)
                self.check(rest <= chunk, "a chunk too large beside a decoding turn")
        for sequence, told in running.items():
            waited = self.unserved[told.turn.id] = (
                0 if sequence in served else self.unserved[told.turn.id] + 1
            )
            many = self.plan.sequences
            # Without an exact budget a prompt may wait until those that came before it are through.
            most = 2 * many if sequence in decoding and exact else many * CONTEXT
            self.check(waited <= most, f"a turn waited for {waited} decodes")


def answer(turn: Turn) -> str:
    """What the backend answers: the numbers from the prompt's length on, below 60."""
    first = len(turn.prompt)
    last = min(first + limit(turn), max(first, 60))
    return "".join(f"{number} " for number in range(first, last))


def limit(turn: Turn) -> int:
    return min(turn.max_tokens or CONTEXT, CONTEXT - len(turn.prompt))


def stops(turn: Turn) -> int:
    """1 if the answer ends with the end token, which counts and is no text."""
    return int(max(0, 60 - len(turn.prompt)) < limit(turn))


def troubled(harbour: Harbour, kind: type[CountingBackend], name: str) -> Callable[..., Any]:
    """A backend's method with the harbour's troubles in it."""
    real = getattr(kind, name)

    def call(backend: CountingBackend, *args: Any) -> Any:
        trouble = harbour.trouble(name)
        if trouble is None:
            if name == "copy":
                harbour.copied_from = harbour.scope[args[0]]
            return real(backend, *args)
        if trouble or name not in REFUSALS:
            raise RuntimeError(name)
        if name in {"load", "roll_back", "keep"}:
            backend.held[args[0]].clear()
        elif name == "copy":
            backend.held[args[1]].clear()
        return REFUSALS[name]

    return call


def hooked(harbour: Harbour, kind: type[CountingBackend]) -> type[CountingBackend]:
    """The backend with the harbour's troubles in it, and what is asked in the middle of its work."""

    class Hooked(kind):  # type: ignore[misc, valid-type]
        def decode(self, spans: Sequence[Span]) -> bool:
            harbour.ask()
            harbour.judge(spans)
            if harbour.trouble("decode") is not None:
                raise RuntimeError("decode")
            if self._aborted:
                harbour.happened["aborted"] += 1
                self._evaluate(first_of(spans, next(harbour.aborts, 0)))
            return bool(super().decode(spans))

        def embed(self, tokens: Sequence[int], room: Callable[[], int]) -> Generator[bytes | None]:
            for part in super().embed(tokens, room):
                harbour.ask()
                if harbour.trouble("embed") is not None:
                    raise RuntimeError("embed")
                yield part

    for name in ("sample", "sampler", "free", "piece", "clear", "unfit", *REFUSALS):
        setattr(Hooked, name, troubled(harbour, kind, name))
    return Hooked


def first_of(spans: Sequence[Span], tokens: int) -> Iterable[Span]:
    """What an aborted decode has evaluated."""
    for span in spans:
        if part := span.tokens[:tokens]:
            yield Span(span.sequence, span.start, part, last=False)
        tokens -= len(part)


def judged(plan: Plan) -> Harbour:
    harbour = Harbour(plan)
    harbour.run()
    for what in harbour.happened:
        event(what)
    assert not harbour.faults
    assert all(told.ended for told in harbour.told.values())
    assert all(harbour.embeds.values())
    assert all(saved.done() for saved in harbour.saves)
    assert not harbour.owner
    return harbour


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(failures=False))
def test_every_turn_ends_once_on_a_sequence_of_its_own_and_says_what_it_says_alone(plan: Plan) -> None:
    harbour = judged(plan)
    assert not harbour.backend.samplers


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(failures=True))
def test_whatever_fails_every_turn_ends_once_and_none_says_anything_wrong(plan: Plan) -> None:
    harbour = judged(plan)
    unfreed = sum(method == "free" and call <= harbour.calls["free"] for method, call in plan.fails)
    assert len(harbour.backend.samplers) == unfreed

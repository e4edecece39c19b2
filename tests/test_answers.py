"""An answer's bytes and what it asks for on the way to them; leases are scripted, time is short."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serving import answers
from serving.admission_events import RefusalCode
from serving.answering import Prepared
from serving.answers import answer
from serving.asgi import Message, Problem
from serving.chat_wire import StreamedChat, WholeChat
from serving.deltas import PlainParser
from serving.desk import Desk
from serving.engine import Began, ChoiceEnded, Ended, Prefilled, Sampling, Text, Turn, Usage
from serving.journal import Journal
from serving.lease import Chosen, Granted, Happening, Lease, Refused
from serving.openai_wire import Envelope
from serving.places import Standing, fresh
from serving.remembered import Remembered
from serving.routing import Ask
from tests.host_process import model_spec, session

SHORT_S = 0.02
ANN, ROOT, SCRATCH = session("ann"), session("root"), session("scratch")
SCOPE = session("key")
PROMPT = tuple(range(10))
ANSWERED: tuple[Happening, ...] = (
    Text(1, "It is so.", 3),
    ChoiceEnded(1, 0, "stop"),
    Ended(1, "stop", Usage(10, 4, 6, 3)),
)
BEGUN: tuple[Happening, ...] = (Began(1, held=4, reused=4), Prefilled(1, 7, 10), Prefilled(1, 10, 10))


@dataclass
class ScriptedTurns:
    """Grants each lease at once, unless told to be slow or to refuse; then what was scripted happens."""

    happens: tuple[Happening, ...] = (*BEGUN, *ANSWERED)
    context: str | None = None
    """Under which name the turn runs; None: the session's own."""
    refuses: RefusalCode | None = None
    ended: bool = False
    """Its session is ended as soon as the lease is granted."""
    grants_after_s: float = 0.0
    begins_after_s: float = 0.0
    """The session's context has to be read from disk."""
    pause_s: float = 0.0
    """Before each thing that happens."""
    place: int = 1
    about_s: float | None = 40.0
    asked: list[tuple[str | None, Standing]] = field(default_factory=list)
    released: int = 0
    moved: bool | None = None
    made: Remembered = field(default_factory=Remembered)
    warmed: Remembered = field(default_factory=Remembered)
    state: Any = field(default_factory=lambda: fresh(1, 10.0, 60.0))
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def context_for(self, session: str, prompt: tuple[int, ...]) -> Chosen:
        assert prompt == PROMPT
        return Chosen(self.context or session, session, prompt)

    def ask(
        self, context: Chosen | None, request_id: str, queue_s: float | None = None, standing: Any = None
    ) -> Lease:
        name = None if context is None else context.name
        self.asked.append((name, standing))
        lease = Lease(len(self.asked), name, request_id, self.now(), self.made)
        self._later(self.grants_after_s, lambda: self._decide(lease))
        return lease

    def estimate(self, lease: Lease) -> tuple[int, float | None]:
        return self.place, self.about_s

    async def begin(self, lease: Lease, turn: Turn) -> None:
        self.moved = lease.moved
        if lease.session is not None:
            self.warmed.add(lease.session)
        await asyncio.sleep(self.begins_after_s)
        for number, happening in enumerate(self.happens, 1):
            self._later(number * self.pause_s, lambda told=happening: lease.push(told))  # type: ignore[misc]

    def left(self, lease: Lease) -> None:
        raise AssertionError("nobody left")

    def release(self, lease: Lease) -> None:
        self.released += 1

    def _decide(self, lease: Lease) -> None:
        lease.waited_s = self.grants_after_s
        if self.refuses is not None:
            lease.push(Refused(self.refuses))
        else:
            lease.granted = Granted(0, resident=True)
            lease.push(lease.granted)
        if self.ended:
            lease.lost.set()
            lease.push(Refused("session_ended"))

    def _later(self, after_s: float, call: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(after_s)
            call()

        self.tasks.append(asyncio.create_task(wait()))


@dataclass
class Asked:
    """One request, and what it got."""

    desk: Desk
    messages: list[Message] = field(default_factory=list)
    seen_s: list[float] = field(default_factory=list)

    async def answer(
        self, ask: Ask, *, stream: bool = True, return_progress: bool = False, prompts: int = 1
    ) -> None:
        envelope = Envelope("chatcmpl-1", 7, "m", return_progress=return_progress)
        form = StreamedChat(envelope, 1) if stream else WholeChat(envelope, PlainParser, logprobs=False)
        turn = Turn(0, 0, PROMPT, 5, Sampling())

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            self.messages.append(message)
            self.seen_s.append(asyncio.get_running_loop().time())

        prepared = Prepared((turn,) * prompts, form)
        await answer(self.desk, ask, receive, send, lambda: prepared, stream=stream, aside=False)

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def parts(self) -> list[str]:
        body = b"".join(message.get("body", b"") for message in self.messages)
        return body.decode().split("\n\n")[:-1]

    @property
    def comments(self) -> list[str]:
        return [part[2:] for part in self.parts if part.startswith(": ")]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(part[6:]) for part in self.parts if part.startswith("data: {")]


MakeAsked = Callable[..., Asked]


@pytest.fixture
async def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeAsked]:
    monkeypatch.setattr(answers, "HEAD_S", SHORT_S)
    monkeypatch.setattr(answers, "COMMENT_S", SHORT_S)
    journal = Journal(tmp_path / "journal.db")
    writer = ThreadPoolExecutor(1)

    async def awake() -> None:
        pass

    def make(turns: ScriptedTurns, loads: Callable[[], Any] = awake) -> Asked:
        engine: Any = None
        scripted: Any = turns
        return Asked(Desk("den", "den/0", model_spec(), engine, scripted, journal, writer, awake=loads))

    yield make
    writer.shutdown()
    journal.close()


def of(session: str | None = ANN, **more: Any) -> Ask:
    return Ask(session, 1, "new" if session else "none", False, "r1", **more)


# signs of life


async def test_who_waits_in_the_line_is_told_its_place_and_about_how_long(asked: MakeAsked) -> None:
    got = asked(ScriptedTurns(grants_after_s=0.2, place=2))
    await got.answer(of())
    assert set(got.comments) == {"waiting, place 2 in the line, about 40 s"}
    assert len(got.comments) > 2
    assert got.parts[-1] == "data: [DONE]"


async def test_load_context_and_prompt_keep_nobody_without_a_byte(asked: MakeAsked) -> None:
    async def loads() -> None:
        await asyncio.sleep(0.25)

    got = asked(ScriptedTurns(grants_after_s=0.25, begins_after_s=0.25, pause_s=0.25), loads)
    await got.answer(of())
    order = [word for number, word in enumerate(got.comments) if word not in got.comments[:number]]
    assert order == [
        "loading the model",
        "waiting, place 1 in the line, about 40 s",
        "getting the context",
        "evaluating 4 of 10 tokens",
        "evaluating 7 of 10 tokens",
        "answering",
    ]
    first_text = next(n for n, m in enumerate(got.messages) if m.get("body", b"").startswith(b"data: "))
    seen_s = got.seen_s[: first_text + 1]
    gaps = [after - before for before, after in itertools.pairwise(seen_s)]
    assert max(gaps) < 0.2, "comments come in between, however long each step takes"


async def test_the_pin_is_on_disk_before_the_first_comment(asked: MakeAsked) -> None:
    got = asked(ScriptedTurns(grants_after_s=0.1))
    await got.answer(of())
    assert got.headers["x-homeport-pin"] == "new"
    assert "x-homeport-context" not in got.headers


# the prompt's progress


async def test_progress_is_told_from_what_is_held_up_to_the_whole_prompt(asked: MakeAsked) -> None:
    got = asked(ScriptedTurns())
    await got.answer(of(), return_progress=True)
    progress = [event["prompt_progress"] for event in got.events if "prompt_progress" in event]
    assert [(told["total"], told["cache"], told["processed"]) for told in progress] == [
        (10, 4, 4),
        (10, 4, 7),
        (10, 4, 10),
    ]
    assert all(told["time_ms"] >= 0 for told in progress)
    assert "".join(choice["delta"].get("content") or "" for choice in got.events[3]["choices"]) == ""
    assert got.headers["x-homeport-context"] == "resident", "the head goes out with the first of them"


async def test_comments_go_on_between_two_parts_of_progress(asked: MakeAsked) -> None:
    got = asked(ScriptedTurns(pause_s=0.1))
    await got.answer(of(), return_progress=True)
    assert got.comments[0] == "getting the context"
    assert "evaluating 7 of 10 tokens" in got.comments


async def test_without_being_asked_nothing_is_told_of_the_prompt(asked: MakeAsked) -> None:
    got = asked(ScriptedTurns())
    await got.answer(of())
    assert not any("prompt_progress" in event for event in got.events)
    assert got.events[0]["choices"][0]["delta"]["role"] == "assistant"


# what admission is told


async def test_a_turn_stands_in_the_line_as_its_router_says(asked: MakeAsked) -> None:
    turns = ScriptedTurns()
    await asked(turns).answer(of(scope=SCOPE, rank="guessed", weight=2.0, places=3))
    assert turns.asked == [(ANN, Standing(SCOPE, "guessed", None, 2.0, 3))]
    assert turns.released == 1


async def test_a_transient_has_no_family(asked: MakeAsked) -> None:
    turns = ScriptedTurns()
    await asked(turns).answer(of(None, scope=SCOPE, rank="transient"))
    assert turns.asked == [(None, Standing(SCOPE, "transient", None, 1.0, None))]


async def test_a_child_is_of_its_parents_family(asked: MakeAsked) -> None:
    turns = ScriptedTurns()
    await asked(turns).answer(of(parent=ROOT))
    assert turns.asked[0][1].family == ROOT


async def test_what_a_session_does_aside_runs_on_its_scratch_within_its_family(asked: MakeAsked) -> None:
    turns = ScriptedTurns(context=SCRATCH)
    got = asked(turns)
    await got.answer(of())
    ((name, standing),) = turns.asked
    assert (name, standing.family) == (SCRATCH, ANN)
    assert got.headers["x-homeport-pin"] == "new", "the pin is the session's"
    assert got.headers["x-homeport-aside"] == "yes"
    assert got.desk.journal.get(SCRATCH, "smollm2") is None
    assert SCRATCH in turns.made, "nothing was evaluated for it before: its context is new"


async def test_a_scratch_of_a_child_is_of_the_parents_family(asked: MakeAsked) -> None:
    turns = ScriptedTurns(context=SCRATCH)
    await asked(turns).answer(of(parent=ROOT))
    assert turns.asked[0][1].family == ROOT


async def test_what_is_made_aside_first_after_a_move_was_never_elsewhere(asked: MakeAsked) -> None:
    turns = ScriptedTurns(context=SCRATCH)
    got = asked(turns)
    await got.answer(Ask(ANN, 2, "moved", False, "r1"))
    assert (got.headers["x-homeport-pin"], turns.moved) == ("moved", False)


async def test_the_first_turn_after_a_move_says_so(asked: MakeAsked) -> None:
    turns = ScriptedTurns()
    got = asked(turns)
    await got.answer(Ask(ANN, 2, "moved", False, "r1"))
    assert (got.headers["x-homeport-pin"], turns.moved) == ("moved", True)
    again = asked(turns)
    await again.answer(Ask(ANN, 2, "kept", False, "r2"))
    assert (again.headers["x-homeport-pin"], turns.moved) == ("kept", False)


# refusals


async def test_a_busy_host_says_which_machine_and_until_about_when(asked: MakeAsked) -> None:
    with pytest.raises(Problem) as caught:
        await asked(ScriptedTurns(refuses="queue_timeout", about_s=39.2)).answer(of(), stream=False)
    problem = caught.value
    assert (problem.status, problem.code) == (429, "queue_timeout")
    assert ("retry-after", "40") in problem.headers
    assert "machine den" in problem.message
    assert "about 40 s" in problem.message


async def test_nothing_measured_yet_is_said_as_the_hold(asked: MakeAsked) -> None:
    with pytest.raises(Problem) as caught:
        await asked(ScriptedTurns(refuses="queue_timeout", about_s=None)).answer(of())
    assert ("retry-after", "10") in caught.value.headers


async def test_an_ended_session_is_a_409_that_no_client_repeats_by_itself(asked: MakeAsked) -> None:
    with pytest.raises(Problem) as caught:
        await asked(ScriptedTurns(refuses="session_ended")).answer(of(), stream=False)
    problem = caught.value
    assert (problem.status, problem.code) == (409, "session_ended")
    assert ("x-should-retry", "false") in problem.headers
    assert "x-homeport-pin" not in dict(problem.headers), "there is no pin any more"


async def test_an_ended_session_ends_an_open_stream_with_an_event(asked: MakeAsked) -> None:
    got = asked(ScriptedTurns(grants_after_s=0.1, refuses="session_ended"))
    await got.answer(of())
    assert got.events[-1]["error"]["code"] == "session_ended"


async def test_a_session_that_is_ended_as_its_turn_is_granted_gets_no_pin(asked: MakeAsked) -> None:
    got = asked(ScriptedTurns(ended=True))
    with pytest.raises(Problem, match="this session was ended"):
        await got.answer(of(), stream=False)
    assert got.desk.journal.count() == 0
    assert "data: [DONE]" not in got.parts


# the body's word


async def test_cached_tokens_are_those_that_were_not_evaluated(asked: MakeAsked) -> None:
    got = asked(ScriptedTurns())
    await got.answer(of(), stream=False)
    body = json.loads(got.messages[1]["body"])
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert body["usage"]["prompt_tokens"] == 10
    homeport = body["homeport"]
    assert (homeport["reused_tokens"], homeport["evaluated_tokens"]) == (4, 6)
    assert (homeport["machine"], homeport["replica"], homeport["pin"]) == ("den", "den/0", "new")
    assert homeport["context"] == "resident"

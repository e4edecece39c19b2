"""Families, side requests and ended sessions: real turns of an engine that has no model (a character is a token)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from serving.engine import Sampling, Turn
from serving.lease import Chosen, Lease
from serving.places import Standing, running
from serving.side import scratch_of
from serving.turns import Turns
from tests.fakes import Behaviour
from tests.turn_desk import Desk, Told

ANN, BEN, CEM, DORA = (letter * 64 for letter in "abcd")
ANSWER = Behaviour().answer
CHAT = "what a long chat said: " + "m" * 400
TITLE = "suggest a title for this: " + "t" * 300
CHILD = Standing(family=ANN)

MakeDesk = Callable[..., Desk]


@pytest.fixture
async def make_desk(tmp_path: Path) -> AsyncIterator[MakeDesk]:
    made: list[Desk] = []

    def make(
        memory: int = 2**20, hold_s: float = 60.0, queue_s: float = 60.0, disk: int = 2**30, **told: Any
    ) -> Desk:
        made.append(Desk(tmp_path / str(len(made)), Behaviour(**told), memory, hold_s, queue_s, disk))
        return made[-1]

    yield make
    for desk in made:
        await desk.close()


async def waits(turns: Turns, count: int) -> None:
    """Until so many are in the line."""
    await eventually(lambda: len(turns.state.line) >= count)


async def eventually(is_so: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if is_so():
            return
        await asyncio.sleep(0.001)
    raise AssertionError


# families


async def test_a_parent_with_three_children_on_one_exclusive_replica(make_desk: MakeDesk) -> None:
    """No refusal, although all of them together take longer than the queue, and the parent's next turn evaluates only
    its new tokens."""
    desk = make_desk(queue_s=0.05, step_s=0.01)
    await desk.turn(ANN, CHAT)
    children = await asyncio.gather(*(desk.turn(name, CHAT, standing=CHILD) for name in (BEN, CEM, DORA)))
    assert [told.refused for told in children] == [None] * 3
    assert max(told.lease.waited_s or 0.0 for told in children) > 0.05
    parent = await desk.turn(ANN, CHAT + ANSWER + " and more")
    assert parent.evaluated == len(" and more")
    assert (parent.context, parent.cause) == ("resumed", None)
    child = await desk.turn(BEN, CHAT + ANSWER + " more", standing=CHILD)
    assert (child.evaluated, child.context, child.cause) == (len(" more"), "resumed", None)


async def test_members_of_a_family_run_side_by_side_where_places_are_free(make_desk: MakeDesk) -> None:
    desk = make_desk(sequences=2, step_s=0.01)
    ran: list[int] = []

    def count(lease: Lease) -> None:
        ran.append(running(desk.turns.state))

    await asyncio.gather(
        desk.turn(ANN, CHAT, on_begin=count), desk.turn(BEN, CHAT, standing=CHILD, on_begin=count)
    )
    assert max(ran) == 2


# keys


async def test_a_key_that_sends_one_waits_for_at_most_one_turn_of_a_key_that_queues_32(
    make_desk: MakeDesk,
) -> None:
    desk = make_desk(step_s=0.001, hold_s=0.0)
    order: list[str | None] = []

    def note(lease: Lease) -> None:
        order.append(lease.owner)

    burst = [
        asyncio.create_task(desk.turn(f"{number:064x}", "hello", standing=Standing("a"), on_begin=note))
        for number in range(32)
    ]
    await waits(desk.turns, 30)
    before = len(order)
    await desk.turn(BEN, "hello", standing=Standing("b"), on_begin=note)
    assert order.index(BEN) - before <= 1
    await asyncio.gather(*burst)
    assert len(order) == 33


# side requests


async def test_a_title_leaves_the_chat_alone(make_desk: MakeDesk) -> None:
    desk = make_desk()
    await desk.turn(ANN, CHAT)
    title = await desk.turn(ANN, TITLE)
    assert (title.lease.session, title.lease.owner) == (scratch_of(ANN), ANN)
    assert (title.evaluated, title.cause) == (len(TITLE), "new")
    told = await desk.turn(ANN, CHAT + ANSWER + " and more")
    assert (told.lease.session, told.evaluated, told.cause) == (ANN, len(" and more"), None)


async def test_a_title_beside_a_free_place_leaves_the_chat_in_the_engine(make_desk: MakeDesk) -> None:
    desk = make_desk(sequences=2)
    await desk.turn(ANN, CHAT)
    await desk.turn(ANN, TITLE)
    told = await desk.turn(ANN, CHAT + ANSWER + " and more")
    assert (told.context, told.evaluated) == ("resident", len(" and more"))


async def test_a_title_that_comes_while_the_chats_turn_runs_is_made_aside(make_desk: MakeDesk) -> None:
    desk = make_desk(step_s=0.005)
    begun = asyncio.Event()
    chat = asyncio.create_task(desk.turn(ANN, CHAT, on_begin=lambda lease: begun.set()))
    await begun.wait()
    title = await desk.turn(ANN, TITLE)
    assert title.lease.session == scratch_of(ANN)
    await chat
    told = await desk.turn(ANN, CHAT + ANSWER + " and more")
    assert told.evaluated == len(" and more")


async def test_a_title_asked_for_again_leaves_the_chat_alone(make_desk: MakeDesk) -> None:
    desk = make_desk()
    await desk.turn(ANN, CHAT)
    for more in ("", " u", " user: and so on", ""):
        title = await desk.turn(ANN, TITLE + more)
        assert title.lease.session == scratch_of(ANN)
    told = await desk.turn(ANN, CHAT + ANSWER + " and more")
    assert told.evaluated == len(" and more")


async def compact(desk: Desk) -> Told:
    """A chat, a compacted history aside, and what goes on from it."""
    await desk.turn(ANN, CHAT)
    assert (await desk.turn(ANN, TITLE)).lease.session == scratch_of(ANN)
    return await desk.turn(ANN, TITLE + ANSWER + " and more")


async def test_a_compacted_history_becomes_the_sessions_context(make_desk: MakeDesk) -> None:
    desk = make_desk()
    told = await compact(desk)
    assert (told.lease.session, told.context, told.evaluated) == (ANN, "resident", len(" and more"))
    again = await desk.turn(ANN, TITLE + ANSWER + " and more" + ANSWER + "?")
    assert (again.lease.session, again.context, again.evaluated) == (ANN, "resident", 1)
    await desk.turns.unload()
    await desk.on_disk()
    assert desk.files() == {ANN}
    # What was the chat before is gone.
    assert (await desk.turn(ANN, CHAT)).lease.session == scratch_of(ANN)


@pytest.mark.parametrize(("memory", "disk"), [(2**20, 0), (0, 2**30), (2**20, 2**30)])
async def test_a_parked_scratch_becomes_the_sessions_context(
    make_desk: MakeDesk, memory: int, disk: int
) -> None:
    desk = make_desk(memory=memory, disk=disk)
    await desk.turn(ANN, CHAT)
    await desk.turn(ANN, TITLE)
    await desk.turns.unload()
    await desk.on_disk()
    told = await desk.turn(ANN, TITLE + ANSWER + " and more")
    assert (told.lease.session, told.context, told.evaluated) == (ANN, "resumed", len(" and more"))
    await desk.on_disk()
    assert scratch_of(ANN) not in desk.files()


async def test_a_scratch_that_runs_does_not_become_anything(make_desk: MakeDesk) -> None:
    desk = make_desk(sequences=2, step_s=0.005)
    await desk.turn(ANN, CHAT)
    begun = asyncio.Event()
    first = asyncio.create_task(desk.turn(ANN, TITLE, on_begin=lambda lease: begun.set()))
    await begun.wait()
    second = await desk.turn(ANN, TITLE + ANSWER + " and more")
    assert second.lease.session == scratch_of(ANN)
    await first


async def test_a_scratch_that_is_dropped_while_it_is_read_does_not_come_back(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk(memory=0)
    await desk.turn(ANN, CHAT)
    await desk.turn(ANN, TITLE)
    await desk.turns.unload()
    await desk.on_disk()
    take = desk.parking.take

    async def slow(session: str) -> Any:
        found = await take(session)
        await desk.turns.drop(ANN)
        return found

    monkeypatch.setattr(desk.parking, "take", slow)
    prompt = tuple(map(ord, TITLE + ANSWER + " and more"))
    assert (await desk.turns.context_for(ANN, prompt)).name == scratch_of(ANN)
    assert (desk.turns.standing_of(ANN), desk.files()) == (None, set())


async def test_turns_of_a_session_ask_in_order_of_arrival_whatever_is_read_for_them(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk(memory=0, step_s=0.001)
    await desk.turn(ANN, CHAT)
    await desk.turns.unload()
    await desk.on_disk()
    tokens, slow = desk.parking.tokens, [0.05, 0.0]

    async def read(session: str) -> tuple[int, ...]:
        await asyncio.sleep(slow.pop(0) if slow else 0.0)
        return await tokens(session)

    monkeypatch.setattr(desk.parking, "tokens", read)
    order: list[int] = []

    async def turn(number: int) -> None:
        await desk.turn(ANN, CHAT + ANSWER + "?" * number, on_begin=lambda lease: order.append(number))

    await asyncio.gather(turn(1), turn(2), turn(3))
    assert order == [1, 2, 3]


# ended sessions


async def test_an_ended_session_leaves_nothing(make_desk: MakeDesk) -> None:
    desk = make_desk()
    await desk.turn(ANN, CHAT)
    await desk.turn(ANN, TITLE)
    await desk.turn(BEN, CHAT, standing=CHILD)
    await desk.on_disk()
    assert desk.files() == {ANN, scratch_of(ANN)}
    assert (desk.turns.standing_of(ANN), desk.turns.standing_of(BEN)) == ("parked", "resident")
    assert desk.turns.tokens_of(ANN) == len(CHAT + ANSWER) == desk.turns.tokens_of(BEN)
    await desk.turns.drop(ANN)
    await desk.turns.drop(BEN)
    assert (desk.turns.standing_of(ANN), desk.turns.standing_of(BEN)) == (None, None)
    assert (desk.files(), desk.turns.tokens_of(ANN)) == (set(), 0)
    desk.turns.made.add(ANN)
    told = await desk.turn(ANN, CHAT)
    assert (told.evaluated, told.cause) == (len(CHAT), "new")


async def test_ending_a_session_ends_the_turns_that_run_and_wait(make_desk: MakeDesk) -> None:
    desk = make_desk(endless=True, step_s=0.001)
    first = asyncio.create_task(desk.turn(ANN, CHAT))
    await eventually(lambda: running(desk.turns.state) == 1)
    second = asyncio.create_task(desk.turn(ANN, CHAT))
    aside = asyncio.create_task(desk.turn(ANN, TITLE))
    await waits(desk.turns, 2)
    assert desk.turns.standing_of(ANN) == "running"
    assert [(entry.session, entry.position) for entry in desk.turns.line()] == [(ANN, 1), (ANN, 2)]
    await desk.turns.drop(ANN)
    for told in await asyncio.gather(first, second, aside):
        assert told.refused == "session_ended"
    await eventually(lambda: desk.turns.standing_of(ANN) is None and desk.engine.held(0) == 0)
    assert not desk.turns.is_open(ANN)


async def test_a_turn_whose_client_is_gone_is_not_open_and_the_next_waits_for_its_end(
    make_desk: MakeDesk,
) -> None:
    desk = make_desk(endless=True, step_s=0.02)
    prompt = tuple(map(ord, CHAT))
    gone = desk.turns.ask(await desk.turns.context_for(ANN, prompt), "first")
    await desk.turns.begin(gone, Turn(gone.turn, 0, prompt, None, Sampling()))
    assert desk.turns.is_open(ANN)
    desk.turns.left(gone)
    assert (desk.turns.is_open(ANN), desk.turns.standing_of(ANN)) == (False, "running")
    again = desk.turns.ask(await desk.turns.context_for(ANN, prompt), "again")
    assert (again.granted, desk.turns.is_open(ANN), running(desk.turns.state)) == (None, True, 1)
    await eventually(lambda: again.granted is not None)
    assert running(desk.turns.state) == 1
    desk.turns.release(again)
    desk.turns.release(gone)
    assert running(desk.turns.state) == 0


async def test_ending_a_session_that_is_not_here_is_nothing(make_desk: MakeDesk) -> None:
    desk = make_desk()
    await desk.turns.drop(ANN)
    assert desk.turns.standing_of(ANN) is None


# what a waiting turn is told


async def test_a_waiting_turn_knows_its_place_and_about_when(make_desk: MakeDesk) -> None:
    desk = make_desk(step_s=0.01, hold_s=0.0)
    lease = desk.turns.ask(Chosen(ANN, ANN, ()), "request")
    assert desk.turns.estimate(lease) == (0, 0.0)
    desk.turns.release(lease)
    running_turn = asyncio.create_task(desk.turn(ANN, CHAT))
    await eventually(lambda: running(desk.turns.state) == 1)
    waiting = [desk.turns.ask(Chosen(name, name, ()), "request") for name in (BEN, CEM)]
    assert [desk.turns.estimate(lease) for lease in waiting] == [(1, None), (2, None)]
    await running_turn
    (position, about_s) = desk.turns.estimate(waiting[1])
    assert position == 1
    assert about_s is not None
    assert 0.0 < about_s < 1.0
    desk.turns.release(waiting[1])
    # It left, and would be next if it asked again.
    assert desk.turns.estimate(waiting[1])[0] == 0
    assert desk.turns.estimate(waiting[1])[1] is not None
    desk.turns.release(waiting[0])


# causes


async def test_each_cause_is_the_right_one(make_desk: MakeDesk) -> None:
    desk = make_desk(hold_s=0.0)
    desk.turns.made.add(ANN)
    assert (await desk.turn(ANN, CHAT)).cause == "new"
    assert (await desk.turn(ANN, CHAT + ANSWER + "?")).cause is None
    edited = await desk.turn(ANN, CHAT[:-10] + "edited")
    assert edited.cause == f"edited@{len(CHAT) - 10}"
    await desk.turn(BEN, CHAT)
    assert (await desk.turn(ANN, CHAT[:-10] + "edited" + ANSWER + "?")).cause is None
    assert (await desk.turn(CEM, CHAT, moved=True)).cause == "moved"
    assert (await desk.turn(CEM, CHAT + ANSWER + "?", moved=True)).cause is None
    assert (await desk.turn(DORA, CHAT)).cause == "engine_changed"


async def test_without_room_for_what_is_parked_it_is_evicted(make_desk: MakeDesk) -> None:
    desk = make_desk(memory=0, disk=0, hold_s=0.0)
    for name in (ANN, BEN):
        desk.turns.made.add(name)
        assert (await desk.turn(name, CHAT)).cause == "new"
    assert (await desk.turn(ANN, CHAT + ANSWER + "?")).cause == "evicted"


async def test_a_state_that_cannot_be_loaded_is_told(make_desk: MakeDesk) -> None:
    desk = make_desk(hold_s=0.0, restores_fail=True)
    for name in (ANN, BEN):
        await desk.turn(name, CHAT)
    told = await desk.turn(ANN, CHAT + ANSWER + "?")
    assert (told.cause, told.context) == ("restore_failed", "evaluated")

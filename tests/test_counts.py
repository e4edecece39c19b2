"""What a host counts, by hand, in its state, and as turns go through a replica."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.counts import GAP_BOUNDS_S, WAIT_BOUNDS_S, Counts, Histogram
from serving.engine import Usage
from tests.fakes import Behaviour
from tests.turn_desk import Desk

TEA, COFFEE = "a" * 64, "b" * 64


def test_a_value_is_counted_once_at_the_least_bound_that_holds_it() -> None:
    seen = Histogram((0.1, 1.0))
    for value in (0.0, 0.1, 0.100001, 1.0, 5.0):
        seen.note(value)
    assert seen.report() == {"bounds": (0.1, 1.0), "counts": [2, 2, 1], "sum": 6.200001}


def test_bounds_reach_from_the_quickest_gpu_to_the_slowest_cpu() -> None:
    assert (GAP_BOUNDS_S[0], GAP_BOUNDS_S[-1]) == (0.001, 10.0)
    assert (WAIT_BOUNDS_S[-1], 60.0 in WAIT_BOUNDS_S) == (600.0, True)
    assert list(GAP_BOUNDS_S) == sorted(GAP_BOUNDS_S)
    assert list(WAIT_BOUNDS_S) == sorted(WAIT_BOUNDS_S)


def test_of_a_turn_there_is_a_gap_less_than_texts_and_each_token_is_counted_once() -> None:
    counts = Counts()
    for gap_s in (None, 0.02, 0.03):
        counts.text(2, gap_s)
    counts.ended(Usage(prompt=10, reused=7, evaluated=3, generated=7), seen=6)
    told = counts.report()
    assert sum(told["gaps"]["counts"]) == 2
    assert told["tokens"] == {"cached": 7, "evaluated": 3, "generated": 7}


def test_what_stands_in_the_state_of_two_hundred_hosts_is_small() -> None:
    counts = Counts()
    for _ in range(1000):
        counts.text(1, 0.0123456789)
        counts.left_line("granted", 1.23456789)
    assert len(msgspec.json.encode(counts.report())) < 700


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """One place, which a quiet session keeps for no time."""
    made = Desk(tmp_path, Behaviour(sequences=1), hold_s=0.0)
    yield made
    await made.close()


def leases(told: dict[str, Any]) -> dict[str, int]:
    return {how: count for how, count in told["leases"].items() if count}


async def test_turns_leases_parks_and_resumes_are_counted(desk: Desk) -> None:
    await desk.turn(TEA, "user:Hello")
    await desk.turn(COFFEE, "user:Good day")
    before = desk.turns.counts.report()
    back = await desk.turn(TEA, "user:Hello, and more")
    await desk.parking.settle()
    told = desk.turns.counts.report()
    assert back.context == "resumed"
    assert leases(told) == {"granted": 3}
    assert sum(told["waits"]["counts"]) == 3
    assert (told["parks"]["count"], told["resumes"]["count"]) == (2, 1)
    assert told["parks"]["bytes"] > told["resumes"]["bytes"] > 0
    assert 0 < told["resumes"]["seconds"] < 10
    assert back.began is not None
    assert told["tokens"]["cached"] - before["tokens"]["cached"] == back.began.reused > 0
    assert told["tokens"]["evaluated"] - before["tokens"]["evaluated"] == back.evaluated
    assert told["tokens"]["generated"] == desk.engine.tokens_generated
    assert sum(told["gaps"]["counts"]) > 0


async def test_who_is_refused_is_counted_by_why(desk: Desk) -> None:
    desk.turns.stop()
    assert (await desk.turn(TEA, "user:Hello")).refused == "host_stopping"
    told = desk.turns.counts.report()
    assert leases(told) == {"host_stopping": 1}
    assert sum(told["waits"]["counts"]) == 1


async def test_who_leaves_the_line_is_counted_with_its_wait(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Behaviour(sequences=1))
    running = desk.turns.ask(await desk.turns.context_for(TEA, (1,)), "r1")
    waiting = desk.turns.ask(await desk.turns.context_for(COFFEE, (1,)), "r2")
    for _ in range(2):
        desk.turns.left(waiting)
    desk.turns.release(waiting)
    desk.turns.release(running)
    told = desk.turns.counts.report()
    assert leases(told) == {"granted": 1, "client_gone": 1}
    assert sum(told["waits"]["counts"]) == 2
    await desk.close()


async def test_who_waits_too_long_is_counted_by_why(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Behaviour(sequences=1, endless=True, step_s=0.02), queue_s=0.05)
    context = await desk.turns.context_for(TEA, (1,))
    running = desk.turns.ask(context, "r1")
    assert (await desk.turn(COFFEE, "user:Hello")).refused == "queue_timeout"
    assert leases(desk.turns.counts.report()) == {"granted": 1, "queue_timeout": 1}
    desk.turns.release(running)
    await desk.close()

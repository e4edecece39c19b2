"""What the controller makes of a drained machine's hosts' words. The drain itself: tests/test_moves.py."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.clocks import DayClock
from serving import draining
from serving.bearers import Bearers
from serving.carrying import Fits
from serving.drain_plan import QUIET_S
from serving.draining import Draining, _Home, _resting
from serving.machine_book import MachineBook
from serving.pin_index import PinIndex
from serving.side import scratch_of

ANN = "a" * 64
PIN = {"session": ANN, "model": "small", "replica": "den/0", "generation": 1, "created_s": 1.0}


@pytest.mark.parametrize(
    ("residents", "quiet_s"),
    [
        ({ANN: 40.0}, 40.0),
        ({scratch_of(ANN): 40.0}, 40.0),  # a title was made aside, and the session itself is parked
        ({ANN: 40.0, scratch_of(ANN): 2.0}, 2.0),
        ({}, 0.0),  # it came between the two questions
    ],
)
def test_a_session_is_as_quiet_as_what_it_has_in_the_engine(
    residents: dict[str, float], quiet_s: float
) -> None:
    home = _Home("http://den", Fits("f", "l", 1), [{**PIN, "state": "resident"}], residents)
    (found,) = _resting("den/0", home)
    assert found.quiet_s == quiet_s
    assert (found.quiet_s >= QUIET_S) == (quiet_s == 40.0)


def test_one_that_is_parked_has_no_time_and_one_that_runs_is_busy() -> None:
    pins = [{**PIN, "state": "parked"}, {**PIN, "state": "running"}]
    parked, runs = _resting("den/0", _Home("http://den", Fits("f", "l", 1), pins, {}))
    assert (parked.quiet_s, parked.busy) == (None, False)
    assert (runs.quiet_s, runs.busy) == (0.0, True)


async def test_a_slow_transfer_of_one_machine_does_not_hold_up_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = MachineBook(tmp_path / "machines.json")
    seen: Counter[str] = Counter()
    transfer = asyncio.Event()

    async def step(_self: Draining, machine: str) -> None:
        seen[machine] += 1
        if machine == "slow":
            await transfer.wait()

    monkeypatch.setattr(Draining, "step", step)
    monkeypatch.setattr(draining, "LOOK_S", 0.01)
    made = Draining(book, PinIndex(), Bearers(""), dict, tuple, bool, DayClock())
    book.draining = {"slow": 1e12}
    going = asyncio.create_task(made.run())
    await until(lambda: seen["slow"] == 1)
    book.draining = {"slow": 1e12, "quick": 1e12}
    made.changed()
    await until(lambda: seen["quick"] > 3)
    assert seen["slow"] == 1
    book.draining = {"slow": 1e12}
    made.changed()
    transfer.set()
    await until(lambda: seen["slow"] > 3)
    before = seen["quick"]
    await until(lambda: seen["slow"] > 6)
    assert seen["quick"] == before
    assert made.told().keys() == {"slow"}
    book.draining = {"slow": 1e12, "quick": 1e12}  # once more
    made.changed()
    await until(lambda: seen["quick"] > before)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 10 s")

"""A keeper on a machine with GPUs: its hosts' slices, who else is on them, and a GPU that is lost meanwhile.

The driver is the stand-in of tests/nvml; keeper, hosts and the foreign process are real.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import gpus
from cluster.inventory import measure
from cluster.slices import Need
from router.lifecycle import end_everything
from serving import slice_look
from serving.keeper import Keeper
from tests.host_process import model_spec
from tests.nvml.library import FOLDER
from tests.nvml.probe import command
from tests.test_gpus import FIRST, SECOND
from tests.test_keeper import TALKS, Machine

GIB = 2**30


class Rig(Machine):
    """A machine with two cards of 80 GiB, of which the driver tells what a test says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = root / "answers.json"
        self.cards: dict[str, Any] = json.loads((FOLDER / "two_80gib.json").read_text())
        self.tell()
        monkeypatch.setattr(gpus, "COMMAND", command(self.answers))
        monkeypatch.setattr(slice_look, "EVERY_S", 0.2)
        super().__init__(root, monkeypatch)
        self.behaviours = [TALKS, TALKS]

    def tell(self, **first: Any) -> None:
        """From now on the driver tells this of the first card."""
        self.cards["devices"][0] |= first
        new = self.answers.with_suffix(".new")
        new.write_text(json.dumps(self.cards))
        new.replace(self.answers)

    def needs(self, gpus: float, count: int = 1) -> None:
        model = replace(model_spec(), replicas=count, need=Need(1, GIB, gpus))
        wish = {"model": model.to_json(), "digest": "d" * 64, "count": count}
        self.keeper.apply(self.keeper.report()["revision"] + 1, [wish], "den")

    def until_report(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        self.until(0, lambda _: holds(self.keeper.report()))
        return self.keeper.report()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    if len(measure({}).cores) < 2:
        pytest.skip("two hosts need two cores")
    made = Rig(tmp_path, monkeypatch)
    try:
        yield made
    finally:
        made.keeper.close()
        end_everything(made.paths)


def test_a_foreign_process_on_a_slices_gpu_is_told_by_pid_and_name(rig: Rig) -> None:
    rig.needs(1)
    host = rig.lives(0, 1)
    assert host["slice"]["gpus"] == [FIRST]
    with subprocess.Popen(["sleep", "600"]) as game:
        held = [[host["pid"], 9 * GIB], [game.pid, 3 * GIB], [2**22 + 1, None]]
        rig.tell(compute=held[:2], graphics=held[1:])
        told = rig.until(0, lambda r: len(r["foreign_gpu"]) == 2)
        game.kill()
    assert told["foreign_gpu"] == [
        {"gpu": FIRST, "pid": game.pid, "program": "sleep", "memory_bytes": 3 * GIB},
        {"gpu": FIRST, "pid": 2**22 + 1, "program": "?", "memory_bytes": None},
    ]
    now = rig.keeper.report()["figures"]["gpus"]
    assert [now[uuid]["foreign_processes"] for uuid in (FIRST, SECOND)] == [2, 0]
    assert (now[FIRST]["power_w"], now[FIRST]["used_bytes"]) == (251.5, 629145600.0)
    rig.tell(compute=held[:1], graphics=[])
    rig.until(0, lambda r: r["foreign_gpu"] == [])


def test_who_shares_a_gpu_is_not_foreign_to_the_other_and_both_are_told_as_shared(rig: Rig) -> None:
    rig.needs(0.5, count=2)
    hosts = [rig.lives(slot, 1) for slot in (0, 1)]
    assert [host["slice"]["gpus"] for host in hosts] == [[FIRST], [FIRST]]
    for host in hosts:
        (hold,) = host["slice"]["gpu_holds"]
        assert (hold["shared"], hold["share"], hold["memory_bytes"]) == (True, 0.5, 40 * GIB)
        assert "gpus" in host["limits"]["watched"]
    with subprocess.Popen(["sleep", "600"]) as game:
        rig.tell(compute=[[host["pid"], GIB] for host in hosts] + [[game.pid, GIB]])
        for slot in (0, 1):
            told = rig.until(slot, lambda r: r["foreign_gpu"] != [])
            assert [each["pid"] for each in told["foreign_gpu"]] == [game.pid]
        game.kill()


def test_a_gpu_that_is_lost_meanwhile_is_told_and_nobody_is_moved(rig: Rig) -> None:
    rig.needs(1, count=2)
    before = [rig.lives(slot, 1)["slice"]["gpus"] for slot in (0, 1)]
    assert before == [[FIRST], [SECOND]]
    assert rig.keeper.report()["gpus"] == {}
    rig.tell(returns={"nvmlDeviceGetMemoryInfo": 15})
    report = rig.until_report(lambda r: r["gpus"] != {})
    assert report["gpus"] == {FIRST: {"state": "lost", "reason": "GPU is lost"}}
    assert [gpu["state"] for gpu in report["hardware"]["gpus"]] == ["ok", "ok"], "as it was carved for"
    rig.tell(returns={})
    rig.until_report(lambda r: r["gpus"] == {})
    assert [rig.replica(slot)["incarnation"] for slot in (0, 1)] == [1, 1]


def test_a_driver_that_hangs_holds_up_neither_the_keeper_nor_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.keeper.close()
    monkeypatch.setattr(gpus, "SILENT_S", 3.0)
    rig.keeper = Keeper()
    rig.needs(1)
    rig.lives(0, 1)
    rig.cards["init"] = "hangs"
    rig.tell()
    report = rig.until_report(lambda r: r["gpus"] != {})
    assert report["gpus"][FIRST]["state"] == "hung"
    rig.replace_keeper()
    report = rig.keeper.report()
    assert "has not answered" in report["hardware"]["gpu_trouble"]
    assert rig.lives(0, 1)["slice"]["gpus"] == [FIRST], "its host goes on"


def test_without_gpus_in_slices_no_driver_is_asked(rig: Rig) -> None:
    rig.needs(0)
    rig.lives(0, 1)
    rig.tell(returns={"nvmlDeviceGetMemoryInfo": 15})
    rig.needs(0, count=2)
    rig.lives(1, 1)
    assert rig.keeper.report()["gpus"] == {}
    assert rig.keeper._gpus._driver._child is None

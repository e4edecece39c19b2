"""A few machines with real hosts behind a real controller and a real router, for pictures and for tests of the pages.

What the machines have is made up ("simulated"), and their slices are carved out of it as a keeper would; hosts,
engines, sessions and everything that is said of them are real.
"""

import contextlib
import http.client
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.machine import CpuCore, Gpu, Hardware, Reserve
from cluster.proof import machine_token
from cluster.slices import Need, Slice, carve
from serving.journal_file import JournalNews, Mark, entries_since
from serving.model import ModelSpec
from serving.source import bundled_model
from tests.fakes import Behaviour
from tests.host_process import START_S, TOKEN, HostProcess, model_spec
from tests.moving_world import Machines, World, world

GIB = 2**30


def hardware(
    performance: int, efficiency: int = 0, gib: int = 16, gpus: tuple[tuple[str, int], ...] = ()
) -> Hardware:
    """Cores without siblings; GPUs by name and GiB."""
    cores = tuple(
        CpuCore(number, (number,), "performance" if number < performance else "efficiency", 0)
        for number in range(performance + efficiency)
    )
    cards = tuple(
        Gpu(f"GPU-{number}", name, size * GIB, 0, "card") for number, (name, size) in enumerate(gpus)
    )
    return replace(Hardware(cores, gib * GIB, cards), simulated=True)


class Scene(Machines):
    """Machines with as many hosts as slots."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.away: set[str] = set()
        """Machines whose keepers are not heard."""
        self._folder = folder
        self._told: dict[str, dict[str, Any]] = {}
        self._slots: dict[str, list[tuple[HostProcess, Slice]]] = {}

    def build(
        self, name: str, zone: str, has: Hardware, needs: tuple[Need, ...], **host: Any
    ) -> list[HostProcess]:
        """A machine with a host for each of `needs`, started. `host`: as `new_host` has it."""
        reserve = Reserve(1 if len(has.cores) > 2 else 0, GIB)
        taken: list[Slice] = []
        self._slots[name] = []
        for slot, need in enumerate(needs):
            carved = carve(has, reserve, taken, need)
            assert isinstance(carved, Slice), carved
            taken.append(carved)
            made = new_host(self._folder / f"{name}-{slot}", **host)
            self.add(name, zone, made)
            _rename(made, name, slot)
            self._slots[name].append((made, carved))
        self._told[name] = {"hardware": has.to_json(), "reserve": reserve.to_json()}
        return [made for made, _ in self._slots[name]]

    def start(self) -> None:
        """All hosts, at once."""
        for made in self.all_hosts():
            made.start(until=None)
        deadline = time.monotonic() + START_S
        for made in self.all_hosts():
            while not _is_ready(made):
                assert time.monotonic() < deadline, made.errors()
                time.sleep(0.1)

    def all_hosts(self) -> list[HostProcess]:
        return [made for slots in self._slots.values() for made, _ in slots]

    def end(self) -> None:
        self.away |= self._slots.keys()
        for made in self.all_hosts():
            made.kill()

    def bearer(self, base: str) -> str:
        at = {f"http://127.0.0.1:{made.port}": made for made in self.all_hosts()}
        return f"Bearer {at[base].token}" if base in at else ""

    def _report(self, name: str) -> dict[str, Any]:
        if name in self.away:
            raise TimeoutError
        told = super()._report(name)
        told |= self._told[name]
        told["replicas"] = [
            self._replica(f"{name}/{slot}", slot, made, carved)
            for slot, (made, carved) in enumerate(self._slots[name])
        ]
        return told

    def _replica(self, replica: str, slot: int, made: HostProcess, carved: Slice) -> dict[str, Any]:
        try:
            state = made.state()
        except (OSError, ValueError, http.client.HTTPException):
            state = {"state": "starting"}
        return {
            "name": replica,
            "slot": slot,
            "model": made.model.name,
            "address": "127.0.0.1",
            "port": made.port,
            "slice": carved.to_json(),
            "limits": {"enforced": [], "watched": ["cores", "memory"]},
            "config_digest": "d",
            "state": state["state"],
            "detail": "",
            "progress": state.get("progress", 0.0),
            "incarnation": made.incarnation,
            "pins": state.get("pins", 0),
            "journal": state.get("journal", ""),
        }

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        if machine.removeprefix("id-") in self.away:
            raise TimeoutError
        told = {}
        for slot, (made, _) in enumerate(self._slots[machine.removeprefix("id-")]):
            entries, mark, whole = entries_since(made.folder / "journal.sqlite", known.get(slot, Mark()))
            told[slot] = JournalNews([entry.to_json() for entry in entries], mark, whole)
        return told


def new_host(folder: Path, spec: ModelSpec | None = None, behaviour: Behaviour | None = None) -> HostProcess:
    """Of the bundled model; with a behaviour its engine is a stand-in."""
    path = str(bundled_model()) if behaviour is None else "nowhere.gguf"
    return HostProcess(folder, spec or model_spec(context=1024), path, behaviour)


def _is_ready(made: HostProcess) -> bool:
    try:
        return bool(made.state()["state"] == "ready")
    except (OSError, http.client.HTTPException):
        return False


def _rename(made: HostProcess, name: str, slot: int) -> None:
    file = made.folder / "spec.json"
    told = json.loads(file.read_text()) | {"replica": f"{name}/{slot}", "machine": name, "slot": slot}
    file.write_text(json.dumps(told))
    made.be_opened_by(machine_token(TOKEN, f"id-{name}"))


@contextlib.asynccontextmanager
async def playing(folder: Path, scene: Scene, model: ModelSpec, lost_after_s: float) -> AsyncIterator[World]:
    """The scene's controller and router, its hosts being started; all of it is ended with the block."""
    with pytest.MonkeyPatch.context() as changed:
        try:
            scene.start()
            async with world(folder, scene, model, changed, lost_after_s) as made:
                yield made
        finally:
            scene.end()

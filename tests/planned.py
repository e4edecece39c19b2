"""Machines whose keepers do at once what keepers do (slots.py, reconcile.py), without hosts: for tests of plans."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.machine import CpuCore, Hardware, Machine, Reserve
from serving import reconcile
from serving.model import ModelSpec, digest
from serving.plan import shares
from serving.slots import Slot, Wish, assign, digest_here

GIB = 1024**3
FOUR = Hardware(tuple(CpuCore(n, (n,), "unknown", 0) for n in range(4)), 16 * GIB, ())


def revision(number: int, *models: ModelSpec, content: str = "c") -> dict[str, Any]:
    wanted = [{"spec": model.to_json(), "digest": digest(model, content)} for model in models]
    told: dict[str, Any] = json.loads(json.dumps({"revision": number, "models": wanted}))
    return told


class Lab:
    """Machines whose keepers do what keepers do (slots.py, reconcile.py), at once."""

    def __init__(self, *names: str, hardware: Hardware = FOUR) -> None:
        self.names = names or ("den",)
        self.hardware = hardware
        self.slots: dict[str, dict[int, Slot]] = {name: {} for name in self.names}
        self.numbers: dict[str, dict[int, str]] = {name: {} for name in self.names}
        self.hosts: dict[str, dict[int, Slot]] = {name: {} for name in self.names}
        """The slots under which hosts run."""
        self.failed: dict[str, str] = {}
        """By replica: why it was given up."""
        self.revision = dict.fromkeys(self.names, 0)
        self.away: tuple[str, ...] = ()
        self.yielded: tuple[str, ...] = ()
        """Machines that are their persons': no host runs there."""
        self.refused: set[tuple[str, str]] = set()

    def fleet(self) -> dict[str, Any]:
        """As the controller tells it: of a machine that is away, what was known of it."""
        told = [self.report(name) for name in self.names]
        for report in told:
            if report["name"] in self.away:
                report |= {"state": "lost", "revision": 0}
                for replica in report["replicas"]:
                    replica["state"] = "unknown"
            if report["name"] in self.yielded:
                report["state"] = "yielded"
                for replica in report["replicas"]:
                    replica |= {"state": "yielded", "pid": None, "running_digest": None}
        strangers = [name for name in self.away if name not in self.names]
        return {
            "machines": [*told, *({"name": name, "state": "unknown", "replicas": []} for name in strangers)]
        }

    def report(self, name: str) -> dict[str, Any]:
        return {
            "id": f"id-{name}",
            "name": name,
            "zone": "default",
            "address": "127.0.0.1",
            "state": "ready",
            "hardware": self.hardware.to_json(),
            "reserve": {"cores": 0, "memory_bytes": 0},
            "revision": self.revision[name],
            "ports": [8100, 8199],
            "numbers": {str(number): model for number, model in self.numbers[name].items()},
            "replicas": [self._replica(name, slot) for slot in self.slots[name].values()],
        }

    def _replica(self, name: str, slot: Slot) -> dict[str, Any]:
        replica, host = f"{name}/{slot.number}", self.hosts[name].get(slot.number)
        return {
            "name": replica,
            "slot": slot.number,
            "model": slot.model.name,
            "port": slot.port,
            "slice": slot.slice.to_json(),
            "config_digest": slot.digest,
            "state": "failed" if replica in self.failed else "ready" if host else "starting",
            "detail": self.failed.get(replica, ""),
            "pid": 100 + slot.number if host else None,
            "running_digest": digest_here(slot, host.digest, host.slice, host.port) if host else None,
        }

    def apply(self, wanted: Mapping[str, Any], *names: str) -> None:
        machines = [Machine.from_json(self.report(name)) for name in self.names]
        told = shares(wanted["models"], machines).machines
        for name in names or self.names:
            self._take(name, told[f"id-{name}"])
            self.revision[name] = wanted["revision"]
            while self._step(name):
                pass

    def _take(self, name: str, wishes: Sequence[Mapping[str, Any]]) -> None:
        slots, refused = assign(
            list(self.slots[name].values()),
            [Wish(ModelSpec.from_json(w["model"]), w["digest"], w["count"]) for w in wishes],
            self.hardware,
            Reserve(0, 0),
            range(8100, 8200),
            self.numbers[name],
        )
        before, self.slots[name] = self.slots[name], {slot.number: slot for slot in slots}
        self.numbers[name] |= {slot.number: slot.model.name for slot in slots}
        self.refused = {(name, model) for model in refused}
        for number, slot in self.slots[name].items():
            if number not in before or before[number].digest != slot.digest:
                self.failed.pop(f"{name}/{number}", None)  # HostWatch.wants

    def _step(self, name: str) -> bool:
        wanted = {number: slot.digest for number, slot in self.slots[name].items()}
        seen = {
            number: reconcile.Seen(
                "alive", digest_here(self.slots[name].get(number), host.digest, host.slice, host.port)
            )
            for number, host in self.hosts[name].items()
        }
        for number in wanted:
            if why := self.failed.get(f"{name}/{number}"):
                seen[number] = reconcile.Seen("absent", permanent=why)
        actions = reconcile.plan(wanted, seen, 0.0)
        for action in actions:
            match action:
                case reconcile.Start(number):
                    self.hosts[name][number] = self.slots[name][number]
                case reconcile.Stop(number, _) | reconcile.Drain(number):
                    del self.hosts[name][number]
        return bool(actions)

    def lives(self) -> dict[str, Slot]:
        return {f"{name}/{n}": slot for name in self.names for n, slot in self.hosts[name].items()}

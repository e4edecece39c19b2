"""The roll of machines: what each reported last, when, and how it stands. What the fleet tells of machines.

Asks nobody. Which machines there are says the book; what those that are away reported before this controller began
says the file of what is known (serving/known_pins.py).
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cluster.clocks import AwakeClock
from serving.machine_book import MachineBook
from serving.standing import AWAY, LOST_AFTER_S, Standing, standing

Report = dict[str, Any]

STEP_S = 5.0
"""What at most counts of the time between two looks: a controller that stood still itself has waited for nobody."""

OF_MACHINE = ("id", "name", "zone", "address", "hardware", "reserve", "yielded")
OF_REPLICA = ("name", "slot", "model", "address", "port", "slice", "config_digest", "limits")
"""What is kept of a report: not what ages within seconds."""


class MachineRoll:
    """`clock` counts time in which this process ran and is to be read every STEP_S, `wall` says when people think that
    it is."""

    def __init__(
        self,
        book: MachineBook,
        last: Mapping[str, Report],
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`last`: by machine, what was kept of its last report before."""
        self.reports: dict[str, Report] = {}
        """By machine, of those that have reported."""
        self.kept = dict(last)
        """By machine, what is to be kept of its last report."""
        self.unsaved: set[str] = set()
        """Machines of which something else is to be kept than before."""
        self.lost_after_s = LOST_AFTER_S
        self.wakes: Collection[str] = ()
        """Names of machines that the config says how to wake."""
        self._book = book
        self._clock = clock or AwakeClock(STEP_S)
        self._wall = wall
        self._began_at = self._clock()
        self.figures: dict[str, Report] = {}
        """By machine, what its keeper told last beside its report; that is no news."""
        self._heard: dict[str, tuple[float, float]] = {}
        """By machine: when its keeper reported last, on both clocks."""

    def heard(self, machine: str, report: Report) -> None:
        self.reports[machine] = report
        self._heard[machine] = (self._clock(), self._wall())
        if (kept := _kept(report)) != self.kept.get(machine):
            self.kept[machine] = kept
            self.unsaved.add(machine)

    def forget(self, machine: str) -> None:
        self.reports.pop(machine, None)
        self._heard.pop(machine, None)
        self.figures.pop(machine, None)
        if self.kept.pop(machine, None) is not None:
            self.unsaved.add(machine)

    def silent_s(self, machine: str) -> float:
        """For how long its keeper has not reported; at most since this controller began."""
        return self._clock() - self._heard.get(machine, (self._began_at, 0.0))[0]

    def is_yielded(self, replica: str) -> bool:
        """Whether the person of its machine has that, by its keeper's last word."""
        name = replica.rpartition("/")[0]
        return any(report["name"] == name and report.get("yielded") for report in self.reports.values())

    def standings(self) -> dict[str, Standing]:
        """By machine: of those that have reported, and of those that were here once and are not forgotten."""
        taken = {report["name"] for report in self.reports.values()}
        others = (
            machine
            for machine, known in self._book.remembered().items()
            if machine not in self.reports and known.name not in taken
        )
        return {
            machine: standing(
                self.silent_s(machine),
                machine in self.reports,
                machine in self._book.cordoned,
                self.lost_after_s,
                is_yielded=bool(self.reports.get(machine, {}).get("yielded")),
                is_asleep=machine in self._book.asleep,
                is_draining=machine in self._book.draining,
            )
            for machine in (*self.reports, *others)
        }

    def list(self) -> list[dict[str, Any]]:
        """As the fleet tells it. `cordoned`: whether it takes no new pins; `state`: how it stands; `draining`: by when
        it is to be empty, since the epoch; `heard_s`: of one that is away, when it was heard last, likewise (None: not
        since this controller began)."""
        return [self._told(machine, state) for machine, state in self.standings().items()]

    def _told(self, machine: str, state: Standing) -> dict[str, Any]:
        told = self.reports.get(machine) or self._last(machine)
        deadline_s = self._book.draining.get(machine)
        told = {
            **told,
            "state": state,
            "cordoned": machine in self._book.cordoned or deadline_s is not None,
            "draining": None if deadline_s is None else {"deadline_s": deadline_s},
            "heard_s": None,
            "wakes": told["name"] in self.wakes,
        }
        if state not in AWAY:
            return told
        heard = self._heard.get(machine)
        replicas = [{**replica, "state": "unknown"} for replica in told["replicas"]]
        return {**told, "replicas": replicas, "heard_s": None if heard is None else round(heard[1], 1)}

    def _last(self, machine: str) -> Report:
        """What it was when it was here last; its book knows where it is by now."""
        known, kept = self._book.known[machine], self.kept.get(machine, {})
        replicas = kept.get("replicas", ()) if kept.get("name") == known.name else ()
        address = known.address or kept.get("address", "")
        now = {"id": machine, "name": known.name, "zone": known.zone, "address": address, "revision": 0}
        moved = {"address": address, "state": "unknown"}
        return {**kept, **now, "replicas": [{**replica, **moved} for replica in replicas]}


def _kept(report: Report) -> Report:
    """What does not age within seconds."""
    replicas = [{key: each[key] for key in OF_REPLICA if key in each} for each in report["replicas"]]
    return {key: report[key] for key in OF_MACHINE if key in report} | {"replicas": replicas}

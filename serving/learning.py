"""Reads the machines' journals into the controller's index of pins; says when a session that it does not know is new.

The journals stay the truth; which machines are there, and what their keepers report, the controller hears.
"""

import logging
from collections.abc import Callable
from typing import Any

from serving.journal_file import Mark
from serving.membership import Members
from serving.pin_index import PinIndex
from serving.pins import pin_from_json

LEARN_S = 20.0
"""How long new sessions wait for the journals of a machine that Ray counts as alive and whose keeper is silent."""

log = logging.getLogger(__name__)


class Learning:
    """`awake` counts time in which this process ran; `steady` is the index's clock."""

    def __init__(self, index: PinIndex, awake: Callable[[], float], steady: Callable[[], float]) -> None:
        self._index = index
        self._awake = awake
        self._steady = steady
        self._unread: dict[str, float] = {}
        """By machine: until when a claim waits for its journals; 0 once they were read. Empty before it looked."""
        self._marks: dict[str, dict[int, Mark]] = {}
        """By machine and slot: how far the journal was read."""
        self._changes: dict[str, tuple[tuple[int, str], ...]] = {}
        """By machine: what its replicas said of their journals when these were read last."""

    def expect(self, machine: str) -> None:
        """It is there, so that its journals will be read."""
        self._unread.setdefault(machine, self._awake() + LEARN_S)

    def forget(self, machine: str) -> None:
        """Nobody waits for it, and its journals are read again, should it come back."""
        self._unread.pop(machine, None)
        self._changes.pop(machine, None)

    def has_all(self) -> bool:
        """Whether a session that the index does not know is new: every machine's journals were read, or given up."""
        now = self._awake()
        return bool(self._unread) and all(until < now for until in self._unread.values())

    async def read(self, members: Members, machine: str, report: dict[str, Any]) -> bool:
        """Read what is new in the journals of a machine: those of hosts that are dead or no longer wanted too. Whether
        anything was read. Raises as `Members.pins`."""
        changes = tuple((r.get("pins", 0), r.get("journal", "")) for r in report["replicas"])
        if self._changes.get(machine) == changes:
            return False
        marks = self._marks.setdefault(machine, {})
        told = await members.pins(machine, marks)
        for slot, news in told.items():
            pins = map(pin_from_json, news.pins)
            self._index.confirm(pins, f"{report['name']}/{slot}", news.whole, self._steady())
            for pin in news.pins:
                self._index.describe(pin["session"], pin.get("public", ""), pin.get("scope"))
            marks[slot] = news.mark
        if silent := sorted(r["name"] for r in report["replicas"] if r.get("pins") and r["slot"] not in told):
            log.warning("pins of %s are not known: the journal could not be read", ", ".join(silent))
            return False
        self._changes[machine] = changes
        self._unread[machine] = 0.0
        return True

"""What the machine's person wants of it now: their word on disk, and the programs for which the config lets it yield.

The shell around yielding.py, for the keeper; and what `homeport yield` on the machine itself does without one: it
writes the same file, and ends the hosts that are recorded.
"""

import json
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster import confine
from cluster.foreign_watch import is_marked, running, session_of
from cluster.paths import Paths, read_json, write_private
from cluster.processes import RUN
from cluster.record import boot_id
from serving.yielding import Order, Programs, Yielded, looked, yielded

log = logging.getLogger(__name__)

Look = Callable[[Collection[str], Callable[[int], bool]], list[str]]
"""Which of these programs run, where processes (by pid) that are ours do not count."""


class Owner:
    """Both files are looked at whenever they have changed: the order, and machine.json with the programs."""

    def __init__(
        self,
        paths: Paths,
        look: Look = running,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.programs: tuple[str, ...] = ()
        """Those for which the config lets this machine yield."""
        self.order: Order | None = None
        self._paths = paths
        self._look = look
        self._clock = clock
        self._wall = wall
        self._seen = Programs()
        self._signs: dict[Path, tuple[int, int, int] | None] = {}
        """By file: how it looked when it was read."""

    def look(self) -> Yielded | None:
        """Look at the processes, and say how it stands. Takes some milliseconds."""
        self._read()
        if self.programs or self._seen.name is not None:
            self._seen = looked(self._seen, self._look(self.programs, self._is_ours), self._clock())
        return self.now()

    def now(self) -> Yielded | None:
        """How it stands by what was seen last, and by the order as it is on disk."""
        self._read()
        return yielded(self.order, self._seen, self._wall())

    def yield_machine(self, for_s: float | None) -> None:
        """The person wants the machine, for so long or until they take it back. On disk when it returns; where the disk
        cannot be written, it holds all the same until the keeper ends."""
        order = Order(self._wall(), None if for_s is None else self._wall() + for_s)
        try:
            write_order(self._paths, order)
            self._read()
        except OSError as error:
            log.warning("that this machine is yielded is not written down: %s", error)
        self.order = order

    def end_yield(self) -> None:
        """The person's word no longer holds. Raises OSError."""
        write_order(self._paths, None)
        self.order = None
        self._read()

    def _read(self) -> None:
        if self._has_changed(self._paths.yielded):
            self.order = read_order(self._paths)
        if self._has_changed(self._paths.machine):
            told = (read_json(self._paths.machine) or {}).get("yield_to") or ()
            self.programs = tuple(name for name in told if isinstance(name, str))

    def _has_changed(self, path: Path) -> bool:
        try:
            told = path.stat()
            sign = told.st_mtime_ns, told.st_ino, told.st_size
        except OSError:
            sign = None
        if path in self._signs and self._signs[path] == sign:
            return False
        self._signs[path] = sign
        return True

    def _is_ours(self, pid: int) -> bool:
        """Whether homeport has started it: nobody lists our Python, but may list one of their own."""
        kept = read_json(self._paths.ray_processes) or {}
        is_rays = kept.get("boot") == boot_id() and kept.get("session") == session_of(pid)
        return is_rays or is_marked(pid, RUN)


def end_hosts(paths: Paths) -> tuple[int, list[str]]:
    """End all hosts of this installation within 5 s, as its keeper would. How many there were, and the names of those
    that are there still."""
    records = confine.records(paths.locks, paths.run_id)
    if not records:
        return 0, []
    with ThreadPoolExecutor(len(records)) as threads:
        ended = list(threads.map(confine.free, records))
    return len(records), [record.replica for record, gone in zip(records, ended, strict=True) if not gone]


def read_order(paths: Paths) -> Order | None:
    """The person's word; None where there is none, or nobody can read it."""
    try:
        return Order.from_json(read_json(paths.yielded))
    except (KeyError, TypeError, ValueError):
        return None


def write_order(paths: Paths, order: Order | None) -> None:
    """Keep it; None: remove it. Raises OSError."""
    if order is None:
        paths.yielded.unlink(missing_ok=True)
    else:
        write_private(paths.yielded, json.dumps(order.to_json()))

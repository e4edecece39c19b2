"""Real hosts for `homeport bench isolation`: started as a keeper starts them, placed as a regime says, and ended.

All that is started carries this installation's mark with a role of its own, so that it is found again however far it
came, by `homeport down` too. Asks nothing of them but whether they are ready and quiet.
"""

import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster import confine
from cluster.cpu_quota import Quota, quota
from cluster.group import members
from cluster.guest import GUEST_BYTES, Guests
from cluster.guest_image import ADDRESS
from cluster.machine import CpuCore
from cluster.network import listen
from cluster.paths import Paths, write_private
from cluster.processes import clean_environment, end_all, mark
from cluster.record import Record
from cluster.slices import Need, Slice
from router.bench_isolation_agent import BEGAN
from serving.isolation import Regime, place
from serving.machine_bench import BenchFailed
from serving.model import ModelSpec, ParkingSpec

LOOPBACK = "127.0.0.1"
MODEL = "bench"
CONTEXT = 2048
MEMORY_BYTES = 2**30
QUEUE_S = 600.0
READY_S = 120.0
QUIET_S = 30.0
LOOK_S = 0.02
ROLE = "bench"
GROUP = "homeport-bench-"
"""How the names of control groups begin; then comes the pid of who made them."""
LATE_S = 0.3
"""A launch that a signal broke off may have started its process after all."""
LAST_LINES = 3
LINES = 100
"""What a task says before it begins, generously."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Engine:
    """A host that serves."""

    record: Record
    folder: Path
    token: str

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(LOOPBACK, self.record.port, timeout=timeout_s)

    def headers(self, session: str) -> dict[str, str]:
        """Of a turn of this session."""
        named = {"x-homeport-session-key": session.encode().hex().rjust(64, "0")}
        return {"authorization": f"Bearer {self.token}", "content-type": "application/json", **named}

    def state(self) -> dict[str, Any]:
        """What it says of itself. Raises OSError or HTTPException while it does not answer."""
        connection = self.connect(5.0)
        try:
            connection.request("GET", "/state", headers={"authorization": f"Bearer {self.token}"})
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()

    def wait_quiet(self) -> None:
        """Until no turn runs or waits there. Raises BenchFailed."""
        deadline = time.monotonic() + QUIET_S
        while (state := self.state())["running"] or state["waiting"]:
            if time.monotonic() > deadline:
                raise BenchFailed("a turn whose client left goes on")
            time.sleep(LOOK_S)


class Launches:
    """Launches in threads of their own, where no signal breaks into them but only into who waits for them. (A pool of
    threads does not wait for one that a signal came upon while it was started.)"""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._left = False

    def run(self, launch: Callable[[], T]) -> T:
        """In a thread of its own. Raises BenchFailed once they were left, and what `launch` raises."""
        with self._changed:
            if self._left:
                raise BenchFailed("it was broken off")
            self._running += 1
        try:
            return launch()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def leave(self) -> None:
        """None begins from now on, and none goes on when this returns: what they started can be ended, and its group
        removed."""
        with self._changed:
            self._left = True
            self._changed.wait_for(lambda: not self._running)


@dataclass
class Stage:
    """Where all of it is started: one at a time is on it."""

    paths: Paths
    folder: Path
    model_path: Path
    cores: Sequence[CpuCore]
    guests: Guests | None = None
    """What the regime `vm` needs."""
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))
    _count: int = 0

    @contextmanager
    def engines(self, regime: Regime, count: int) -> Iterator[list[Engine]]:
        """So many hosts, as many as there are cores at most where each has its own. They serve when this yields."""
        slices = place(regime, self.cores, count, memory_bytes(regime))
        with ExitStack() as stack:
            limits = self._quotas(stack, regime, len(slices))
            stack.callback(self.end)
            launches = Launches()
            stack.callback(launches.leave)
            told = [(regime, self._new_folder(), *each) for each in zip(slices, limits, strict=True)]
            calls = [partial(self._engine, *each) for each in told]
            started = list(self._threads.map(launches.run, calls))
            for engine in started:
                self._wait_ready(engine)
            yield started

    @contextmanager
    def agents(self, regime: Regime, count: int, seconds: float) -> Iterator[None]:
        """So many CPU-heavy tasks beside the watched session's host, which has the first slice. None has more threads
        than its slice has cores; who finds no slice waits for one, and so does nothing."""
        slices = place(regime, self.cores, count + 1, memory_bytes(regime))[1:]
        with ExitStack() as stack:
            said, records = list[Path](), list[Record]()
            limits = self._quotas(stack, regime, len(slices))
            stack.callback(lambda: [confine.end_group(record, 0.0) for record in records])
            launches = Launches()
            stack.callback(launches.leave)

            def launch(*told: Any) -> None:
                records.append(self._launch(regime, *told))

            for carved, limit in zip(slices, limits, strict=True):
                folder = self._new_folder()
                said.append(folder / "host.err")
                told = (str(len(carved.cores)), str(seconds), str(folder))
                command = (sys.executable, "-m", "router.bench_isolation_agent", *told)
                call = partial(launch, folder, carved, command, None, limit)
                self._threads.submit(launches.run, call).result()
            deadline = time.monotonic() + READY_S
            while not all(BEGAN in confine.tail(path, LINES) for path in said):
                if time.monotonic() > deadline:
                    raise BenchFailed("the task beside the session did not begin")
                time.sleep(LOOK_S)
            yield

    def end(self) -> None:
        """End all that was started, whatever it does; nothing is left when this returns."""
        left = end_all(self.paths, ROLE)
        if left:
            raise BenchFailed(f"still there: {', '.join(f'{each.name} (pid {each.pid})' for each in left)}")

    def close(self) -> None:
        """End all that was started, and take the folder away."""
        self._threads.shutdown()
        self.end()
        time.sleep(LATE_S)
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _quotas(self, stack: ExitStack, regime: Regime, count: int) -> list[Quota | None]:
        if regime != "quota":
            return [None] * count
        cpus = len(self.cores[0].cpus)
        names = [f"{GROUP}{os.getpid()}-{self._count}-{number}" for number in range(count)]
        made = [stack.enter_context(quota(name, cpus)) for name in names]
        if None in made:
            raise BenchFailed("a control group with a quota could not be made")
        return made

    def _engine(self, regime: Regime, folder: Path, carved: Slice, limit: Quota | None) -> Engine:
        token = secrets.token_hex(16)
        with listen(LOOPBACK, 0) as probe:
            port = int(probe.getsockname()[1])
        write_private(folder / "token", token)
        spec = {
            "replica": f"{ROLE}/0", "machine": ROLE, "slot": 0, "port": port,
            "address": ADDRESS if regime == "vm" else LOOPBACK,
            "model": model_spec().to_json(), "model_path": str(self.model_path),
            "token_file": str(folder / "token"), "folder": str(folder), "slice": carved.to_json(),
            "config_digest": "0" * 64,
        }  # fmt: skip
        write_private(folder / "spec.json", json.dumps(spec))
        command = (sys.executable, "-m", "serving.host", str(folder / "spec.json"))
        return Engine(self._launch(regime, folder, carved, command, port, limit), folder, token)

    def _launch(
        self,
        regime: Regime,
        folder: Path,
        carved: Slice,
        command: tuple[str, ...],
        port: int | None,
        limit: Quota | None,
    ) -> Record:
        """Confined by homeport's own means; a guest is, with what runs in it. What shares cores has locks of its own,
        since it shares."""
        root = str(Path(__file__).resolve().parent.parent)
        env = {**clean_environment(os.environ), **mark(self.paths, ROLE)}
        env |= {"PYTHONPATH": root, "TMPDIR": str(folder)}  # a compiler that is killed leaves files there
        in_guest = regime == "vm"
        if in_guest:
            command = self._in_guest(folder, carved, command, env, port)
        order = confine.Launch(
            replica=f"{ROLE}/{folder.name}",
            slice=carved,
            command=command,
            env=env,
            folder=folder,
            record=folder / f"{self.paths.run_id}-{ROLE}-{folder.name}.json",
            locks=(self.folder if regime == "dedicated" else folder) / "locks",
            port=port or 0,
            config_digest="0" * 64,
            address=None if port is None or in_guest else LOOPBACK,
            isolate=not in_guest,  # its port is forwarded from this network; it reaches nothing itself
        )
        try:
            record = confine.launch(order)
            if limit is not None:
                for each in (record.pid, *(seen.pid for seen in members(record.pid))):
                    limit.take_in(each)
        except (confine.LaunchFailed, confine.LockTaken, OSError) as error:
            raise BenchFailed(str(error)) from error
        if "cores" not in record.limits.enforced:
            raise BenchFailed("this system keeps no process to its cores, so there is nothing to compare")
        return record

    def _in_guest(
        self, folder: Path, carved: Slice, command: Sequence[str], env: Mapping[str, str], port: int | None
    ) -> tuple[str, ...]:
        """What starts a guest that runs `command` as it would run here."""
        assert self.guests is not None, "guests were found before"
        inside = {**env, **confine.slice_environment(carved)}
        forwarded = None if port is None else (LOOPBACK, port)
        try:
            return self.guests.command(folder, command, inside, forwarded)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchFailed(f"a guest could not be made: {error}") from error

    def _wait_ready(self, engine: Engine) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            if not confine.alive(engine.record) or time.monotonic() > deadline:
                said = " ".join(confine.tail(engine.folder / "host.err", LAST_LINES)) or "it said nothing"
                raise BenchFailed(f"a host did not come up: {said}")
            try:
                if engine.state()["state"] == "ready":
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(LOOK_S)

    def _new_folder(self) -> Path:
        self._count += 1
        folder = self.folder / str(self._count)
        folder.mkdir(mode=0o700)
        return folder


def memory_bytes(regime: Regime) -> int:
    """What an engine may take at most: a guest is given all of it."""
    return GUEST_BYTES if regime == "vm" else MEMORY_BYTES


def model_spec() -> ModelSpec:
    """The bundled model in an exclusive replica, whose quiet session gives way at once and is not kept: each turn
    evaluates its prompt."""
    return ModelSpec(
        name=MODEL,
        engine="llama.cpp",
        source="bundled",
        machines="all",
        replicas=1,
        need=Need(1, MEMORY_BYTES),
        take="needs",
        context=CONTEXT,
        sessions=1,
        hold_s=0.0,
        queue_s=QUEUE_S,
        when_lost="wait",
        parking=ParkingSpec(0, 0),
    )

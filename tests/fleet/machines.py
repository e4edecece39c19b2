"""Twenty-four machines on this one: below Ray everything is real but the engine.

Each machine has an address, a state folder, locks and a hardware file of its own, a real keeper (a process) and a real
host around a FakeEngine; above them are one real controller and two real routers. What stands in for Ray is in
calls.py: 24 Ray nodes would want more of this machine than it has. Nothing here knows what a test is about.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from cluster.inventory import INVENTORY, measure
from cluster.join import enter
from cluster.machine import Reserve
from cluster.paths import Paths, secret, write_private
from cluster.processes import ROLE, RUN, clean_environment, mark
from cluster.proof import files_token, machine_token
from cluster.slices import Need
from serving.model import ModelSpec, ParkingSpec
from tests.fakes import Behaviour
from tests.fleet.calls import KEEPER_PORT
from tests.ports import free_port

ZONES = ("home", "office", "lab")
PER_ZONE = 8
MIB = 2**20
CONTROL_PORT = 18080
PORTS = (18100, 18109)
LOST_AFTER_S = 10.0
READY_S = 180.0
MODEL = ModelSpec(
    name="chat",
    engine="llama.cpp",
    source="bundled",
    machines="all",
    replicas=1,
    need=Need(1, 256 * MIB),
    take="needs",
    context=4000,
    sessions=1,
    hold_s=0.0,
    queue_s=60.0,
    when_lost="wait",
    parking=ParkingSpec(16 * MIB, 64 * MIB),
)
KEYS = {"admin": "admin", "anywhere": "use", **{f"only-{zone}": "use" for zone in ZONES}}
"""By name: its role. Those that say so are for one zone only."""


@dataclass
class Part:
    """A process that somebody restarts where it is killed: Ray the keepers and the controller, its parent a router."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class FleetMachine:
    name: str
    zone: str
    address: str
    id: str
    paths: Paths
    keeper: Part

    def kill(self) -> None:
        """The whole machine is gone: its keeper, which would start its host anew, and its host."""
        self.keeper.kill()
        for pid in running(self.paths.run_id):
            os.kill(pid, signal.SIGKILL)


@dataclass
class Fleet:
    """All of it. `ports`: the routers'."""

    folder: Path
    machines: dict[str, FleetMachine]
    controller: Part
    routers: list[Part]
    ports: list[int]
    token: str
    control: tuple[str, int]
    model: ModelSpec = MODEL
    revision: int = 0
    secrets: dict[str, str] = field(default_factory=lambda: {name: f"hp-{name}" for name in KEYS})

    @property
    def parts(self) -> list[Part]:
        return [*(machine.keeper for machine in self.machines.values()), self.controller, *self.routers]

    def zone(self, machine: str) -> str:
        return self.machines[machine].zone

    def apply(self, model: ModelSpec, digest: str) -> None:
        """A new revision, as `homeport apply` leaves it for the controller."""
        self.model, self.revision = model, self.revision + 1
        wanted = {"revision": self.revision, "models": [{"spec": model.to_json(), "digest": digest}]}
        host, port = self.control
        control = {"host": host, "port": port, "lost_after_s": LOST_AFTER_S}
        write_private(Paths(self.folder / "head", self.folder / "head" / "locks").revision,
                      json.dumps({**wanted, "control": control}))  # fmt: skip

    def told(self) -> dict[str, dict[str, Any]]:
        """What the controller says of the machines, by name; {} while it does not answer."""
        host, port = self.control
        return {each["name"]: each for each in self._get(f"http://{host}:{port}/fleet", self.token)}

    def seen(self, router: int) -> dict[str, dict[str, Any]]:
        """The same of a router."""
        url = f"http://127.0.0.1:{self.ports[router]}/api/fleet"
        return {each["name"]: each for each in self._get(url, self.secrets["admin"])}

    def hosts(self) -> dict[str, list[int]]:
        """By machine, the pids of its hosts."""
        found = running(*(machine.paths.run_id for machine in self.machines.values()), role="host")
        by_run: dict[str, list[int]] = {machine.paths.run_id: [] for machine in self.machines.values()}
        for pid, run in found.items():
            by_run[run].append(pid)
        return {name: by_run[machine.paths.run_id] for name, machine in self.machines.items()}

    def until_ready(self, but: tuple[str, ...] = ()) -> float:
        """Until both routers send turns to every machine but these; the seconds that it took."""
        wanted = self.machines.keys() - set(but)
        return until(
            lambda: all(self._ready(n) >= wanted for n in range(len(self.ports))), "every machine is ready"
        )

    def manage(self, machine: str, act: str) -> None:
        """As an admin does it through a router."""
        url = f"http://127.0.0.1:{self.ports[0]}/api/machines/{machine}/{act}"
        headers = {"authorization": f"Bearer {self.secrets['admin']}"}
        with urllib.request.urlopen(urllib.request.Request(url, b"", headers, method="POST"), timeout=10):
            pass

    def _ready(self, router: int) -> set[str]:
        return {
            name
            for name, machine in self.seen(router).items()
            if machine["replicas"]
            and all(r["state"] == "ready" and r["reach"] == "up" for r in machine["replicas"])
        }

    def _get(self, url: str, token: str) -> list[dict[str, Any]]:
        asked = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})  # noqa: S310
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:  # noqa: S310
                found: list[dict[str, Any]] = json.load(answer)["machines"]
                return found
        except (OSError, ValueError):
            return []


def until(holds: Callable[[], bool], what: str, seconds: float = READY_S) -> float:
    """Look until it is so. Raises AssertionError after `seconds`."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - began


def running(*runs: str, role: str | None = None) -> dict[int, str]:
    """By pid of every living process of these installations: which one's it is. One look at all processes."""
    found = {}
    for process in psutil.process_iter():
        try:
            env = process.environ()
            run = env.get(RUN, "")
            if run in runs and role in (None, env[ROLE]) and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = run
        except psutil.Error:
            continue
    return found


@contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    """The machines, up. At the end nothing of them runs any more, and that is checked."""
    made = _make(folder)
    try:
        for part in made.parts:
            part.start()
        yield made
    finally:
        for part in made.parts:
            part.kill()
        runs = [machine.paths.run_id for machine in made.machines.values()]
        for pid in running(*runs):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not running(*runs), "the end of every process", 30.0)


def _make(folder: Path) -> Fleet:
    net = 64 + os.getpid() % 128
    control = (f"127.{net}.0.1", CONTROL_PORT)
    head = Paths(folder / "head", folder / "head" / "locks")
    head.make()
    token = secret(head.cluster_token)
    behaviour = folder / "behaviour.json"
    behaviour.write_text(json.dumps(asdict(Behaviour())))
    cores = sorted(os.sched_getaffinity(0))
    machines: dict[str, FleetMachine] = {}
    for number in range(len(ZONES) * PER_ZONE):
        zone = ZONES[number % len(ZONES)]
        name, address = f"{zone}-{number // len(ZONES)}", f"127.{net}.{number % len(ZONES) + 1}.{number + 10}"
        machines[name] = _machine(
            folder / name, name, zone, address, token, cores[number % len(cores)], behaviour
        )
    keepers = folder / "keepers.json"
    keepers.write_text(json.dumps({each.id: each.address for each in machines.values()}))
    command = [sys.executable, "-m", "tests.fleet.calls", "controller", str(keepers)]
    controller = Part("controller", command, _env(head, "ray"), folder / "controller.log")
    made = Fleet(folder, machines, controller, [], [], token, control)
    made.apply(replace(MODEL, source=str(behaviour)), "d" * 64)
    keys = [{"name": name, "sha256": hashlib.sha256(made.secrets[name].encode()).hexdigest(), "role": role}
            | ({"zones": [name.removeprefix("only-")]} if name.startswith("only-") else {})
            for name, role in KEYS.items()]  # fmt: skip
    (folder / "keys.yaml").write_text(json.dumps(keys))
    for number in range(2):
        port = free_port()
        settings = {
            "host": "127.0.0.1",
            "port": port,
            "keys_file": str(folder / "keys.yaml"),
            "names": [],
            "identity": {"headers": [], "fields": []},
            "control_url": f"http://{control[0]}:{control[1]}",
            "token_file": str(head.cluster_token),
            "digest_key_file": str(head.digest_key),
            "fleet_file": str(folder / f"fleet-{number}.json"),
            "models": [made.model.to_json()],
        }
        secret(head.digest_key)
        file = folder / f"router-{number}.json"
        file.write_text(json.dumps(settings))
        command = [sys.executable, "-m", "router.app", "--config-json", str(file)]
        made.routers.append(
            Part(f"router-{number}", command, _env(head, "router"), folder / f"router-{number}.log")
        )
        made.ports.append(port)
    return made


def _machine(
    home: Path, name: str, zone: str, address: str, token: str, core: int, behaviour: Path
) -> FleetMachine:
    paths = Paths(home, home / "locks")
    paths.make()
    inventory = home / "hardware.json"
    hardware = {"cores": [{"id": core, "cpus": [core]}], "memory_bytes": 512 * MIB, "gpus": []}
    inventory.write_text(json.dumps(hardware))
    env = {**_env(paths, "ray"), INVENTORY: str(inventory)}
    entered = enter(paths, name, zone, measure(env), Reserve(0, 0), PORTS, address)
    write_private(paths.machine_token, machine_token(token, entered.id))
    write_private(paths.files_token, files_token(token))
    command = [sys.executable, "-m", "tests.fleet.calls", "keeper", address, str(KEEPER_PORT), str(behaviour)]
    return FleetMachine(
        name, zone, address, entered.id, paths, Part(name, command, env, paths.logs / "keeper.log")
    )


def _env(paths: Paths, role: str) -> dict[str, str]:
    return {**clean_environment(os.environ), **mark(paths, role)}

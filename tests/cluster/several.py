"""Several machines of a laboratory with homeport's dependencies on them, set up and ended as a person does it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import llama_wheel
from cluster.commands import Progress
from cluster.install import Setup
from cluster.llama_build import locked
from cluster.stamp import NODEPS_LOCK
from tests.cluster.kernel import command, run
from tests.cluster.lab import HOME, PERSON, Lab, LabMachine, laboratory

ROOT = Path(__file__).resolve().parents[2]
CLONE = HOME / "homeport"
HOMEPORT = f"{CLONE}/.venv/bin/homeport"
NOT_CLONED = (
    ".git",
    ".venv",
    "build",
    "dist",
    "wheelhouse",
    "keys.yaml",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)
GIB = 1024**3
READY_S = 120.0
ASK = """
import json, sys, urllib.error, urllib.request
for session, words in json.load(sys.stdin):
    body = {"model": "smollm2", "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": words}]}
    request = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", json.dumps(body).encode(),
        {"content-type": "application/json", "x-session-id": session})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            print(json.dumps([answer.status, dict(answer.headers), json.load(answer)]), flush=True)
    except urllib.error.HTTPError as error:
        print(json.dumps([error.code, dict(error.headers), json.load(error)]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """One chat completion, as its client saw it."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def machine(self) -> str:
        return self.headers["x-homeport-machine"]

    @property
    def pin(self) -> str:
        return self.headers["x-homeport-pin"]


def prepare(folder: Path) -> Path:
    """A clone with a `.venv` that works where a machine of a laboratory has it; made from the one that runs this."""
    clone = folder / "homeport"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*NOT_CLONED), symlinks=True)
    run("cp", "-a", sys.prefix, str(clone / ".venv"))
    # A lock that copies share by hard links would be one lock.
    for name in ("setup.log", "homeport.lock"):
        (clone / ".venv" / name).unlink(missing_ok=True)
    old, new = os.fsencode(sys.prefix), os.fsencode(f"{CLONE}/.venv")
    for script in (clone / ".venv" / "bin").iterdir():
        if not script.is_symlink() and old in (text := script.read_bytes()):
            script.write_bytes(text.replace(old, new))
    for pointer in (clone / ".venv").glob("lib/python*/site-packages/_editable_impl_homeport.pth"):
        pointer.write_text(f"{CLONE}\n")
    version, _ = locked((ROOT / NODEPS_LOCK).read_text(), "llama-cpp-python")
    setup = Setup(clone, "runtime", {"PATH": os.environ["PATH"]}, Progress(sys.stdout))
    setup.mark_done(llama_wheel.wanted(version, setup.env))
    return clone


@dataclass
class Several:
    """A laptop, a head and workers. Each has one core, of which two may be the same one of this machine."""

    lab: Lab
    prepared: Path
    laptop: LabMachine
    head: LabMachine
    workers: Sequence[LabMachine]

    @property
    def members(self) -> list[LabMachine]:
        return [self.head, *self.workers]

    @property
    def list_file(self) -> Path:
        return self.laptop.home / "homeport" / "configs" / "cluster.yaml"

    @property
    def config(self) -> Path:
        return self.laptop.home / "homeport" / "configs" / "homeport.yaml"

    def write_list(self, head: str, workers: Sequence[str]) -> None:
        """What a person changes of configs/cluster.yaml: the addresses and the user."""
        text = (ROOT / "configs" / "cluster.yaml").read_text()
        text = re.sub(r"(?m)^  head_ip: \S+", f"  head_ip: {head}", text)
        lines = "".join(f"    - {address}\n" for address in workers)
        text = re.sub(r"(?m)^(  worker_ips:.*\n)(    - \S+\n)+", rf"\g<1>{lines}", text)
        self.list_file.write_text(text.replace("YOUR_USER", PERSON))

    def write_zones(self, private: bool) -> None:
        """What a person writes into configs/homeport.yaml: which machine lies in which zone. `private`: nobody else is
        in their network, so that they speak in clear."""
        entries = "".join(
            f"  - {{name: {m.name}, address: {m.address}, zone: {m.zone}}}\n" for m in self.members
        )
        shipped = (ROOT / "configs" / "homeport.yaml").read_text()
        text, declared = re.subn(r"(?m)^  # private: true.*", "  private: true", shipped)
        assert declared == 1
        text = text if private else shipped
        self.config.write_text(f"{text}\nmachines:\n{entries}")

    def ray(self, verb: str, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """`ray up` or `ray down` on the laptop, in its clone. Its output is in stdout."""
        command = f"cd homeport && .venv/bin/ray {verb} -y configs/cluster.yaml 2>&1"
        return self.laptop.ssh(command, check=False, timeout=timeout)

    def add(self, name: str, zone: str) -> LabMachine:
        """One more machine, not booted and on no list, with the clone that its person set up: it joins by hand."""
        machine = _machine(self.lab, self.prepared, name, zone)
        run("rm", "-rf", str(machine.home / "homeport"))
        _link(self.prepared, machine.home / "homeport")
        return machine

    def join(
        self, machine: LabMachine, words: str = "", *, token: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`homeport join` on it, with a new token of the head, to its end. One that was in before needs none."""
        given = f"--token {self.head.ssh(f'{HOMEPORT} join-token').stdout.strip()}" if token else ""
        command = f"{HOMEPORT} join {self.head.address} {given} {words}"
        return machine.ssh(command, check=False, timeout=200)

    def ups(self) -> None:
        """`ray up`, until every machine of the list is ready."""
        up = self.ray("up")
        assert up.returncode == 0, up.stdout
        self.until_ready()

    def until_ready(self) -> float:
        """Until the router sends turns to every machine; returns the seconds."""
        names = {machine.name for machine in self.members}
        return wait_for(lambda: self.ready() >= names, "every machine ready", READY_S, self.logs)

    def becomes_whole(self) -> None:
        """Every machine is on, plugged in, in the cluster, and takes new pins, whatever was done to it."""
        for machine in self.members:
            machine.plug(plugged=True)
            machine.freeze(frozen=False)
            if machine.init is None:
                machine.boot()
        if not processes(self.head, "router.parent"):
            self.ups()
        self.until_ready()
        for name, told in self.fleet().items():
            if told.get("cordoned"):
                self.head.ssh(f"{HOMEPORT} uncordon {name}")

    def fleet(self) -> dict[str, dict[str, Any]]:
        """What the head's router says of the machines, by name; {} while it does not answer."""
        told = self.head.ssh(f"{HOMEPORT} status --json", check=False)
        try:
            return {each["name"]: each for each in json.loads(told.stdout)["machines"]}
        except (ValueError, KeyError):
            return {}

    def ready(self) -> set[str]:
        """The machines of which every replica serves, as the head's router sees them."""

        def serves(replica: Mapping[str, Any]) -> bool:
            return bool(replica["state"] == "ready" and replica["reach"] == "up")

        return {
            name
            for name, machine in self.fleet().items()
            if machine["replicas"] and all(map(serves, machine["replicas"]))
        }

    def ask(self, *turns: tuple[str, str]) -> list[Answer]:
        """Chat completions through the head's router, one after another: (session, words)."""
        done = subprocess.run(
            [*self.lab.ssh, f"{PERSON}@{self.head.address}", f"{CLONE}/.venv/bin/python ask.py"],
            input=json.dumps(turns),
            capture_output=True,
            text=True,
            timeout=60.0 * len(turns),
            check=True,
        )
        return [Answer(*json.loads(line)) for line in done.stdout.splitlines()]

    def logs(self) -> str:
        """The last words of everything, for a test that fails."""
        told = []
        for machine in self.members:
            state = machine.home / ".local" / "state" / "homeport"
            files = [*state.glob("logs/*.log"), *state.glob("replicas/*/host.err")]
            files += state.glob("ray/session_latest/logs/monitor*")
            told += [f"--- {machine.name} {f.name}\n{f.read_text(errors='replace')[-2000:]}" for f in files]
        return "\n".join(told)


@contextmanager
def several(
    folder: Path, prepared: Path, names: Mapping[str, str], private: bool = True
) -> Iterator[Several]:
    """Machines by name and zone, not booted; the first is the head. A laptop with the clone, which is on."""
    with laboratory(folder, tuple(dict.fromkeys(names.values()))) as lab:
        machines = [_machine(lab, prepared, name, zone) for name, zone in names.items()]
        laptop = lab.add("laptop", machines[0].zone)
        _link(prepared, laptop.home / "homeport")
        (laptop.home / ".ssh").mkdir(mode=0o700)
        shutil.copy(lab.folder / "key", laptop.home / ".ssh" / "id_ed25519")
        made = Several(lab, prepared, laptop, machines[0], machines[1:])
        (made.head.home / "ask.py").write_text(ASK)
        made.write_list(made.head.address, [worker.address for worker in made.workers])
        made.write_zones(private)
        laptop.boot()
        yield made


def wait_for(look: Callable[[], bool], what: str, seconds: float, told: Callable[[], str]) -> float:
    """Until it is so, looking once a second. Returns the seconds it took; fails with what `told` says."""
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s: {what}\n{told()}")
        time.sleep(1.0)
    return time.monotonic() - began


def processes(machine: LabMachine, *words: str) -> list[int]:
    """Its processes whose command line has one of these words; Ray's own agents name them too, but not first."""
    found = {pid: command(pid).split(" --")[0] for pid in machine.pids()}
    return sorted(pid for pid, line in found.items() if any(word in line for word in words))


def _machine(lab: Lab, prepared: Path, name: str, zone: str) -> LabMachine:
    """One with a `.venv` in place and no clone: that is what `ray up` brings."""
    machine = lab.add(name, zone, {"HOMEPORT_INVENTORY": "/mnt/hardware.json"})
    cores = sorted(os.sched_getaffinity(0))
    core = cores[len(lab.machines) % len(cores)]
    hardware = {"cores": [{"id": core, "cpus": [core]}], "memory_bytes": 4 * GIB, "gpus": []}
    (machine.disk / "hardware.json").write_text(json.dumps(hardware))
    _link(prepared / ".venv", machine.home / "homeport" / ".venv")
    return machine


def _link(source: Path, target: Path) -> None:
    """A copy of hard links: what installs and copies files replaces them whole, and writes into none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    run("cp", "-al", str(source), str(target))

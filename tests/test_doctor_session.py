"""The probe for real, on this machine: as this machine's own, and through a shell as over SSH."""

import asyncio
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import doctor_probe, doctor_session, network
from cluster.doctor import findings, worst
from cluster.doctor_pairs import PortRange, findings_between
from cluster.doctor_session import Looked, Target, look, over_ssh

SHELL = ("env", "-i", f"PATH={os.environ['PATH']}", f"HOME={Path.home()}", "sh", "-c")
"""A machine that takes a line for a shell, as sshd gives it."""
HERE, THERE, AWAY = "127.0.0.1", "127.0.0.2", "127.0.0.3"


def free_range(count: int) -> PortRange:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = sorted(probe.getsockname()[1] for probe in probes)
    for probe in probes:
        probe.close()
    return PortRange("replicas", ports[0], ports[-1], tuple(ports))


def looked(*targets: Target, ports: PortRange | None = None) -> Looked:
    return asyncio.run(look(targets, [ports or free_range(2)]))


def shell(address: str, env: Mapping[str, str] | None = None) -> Target:
    more = [f"{name}={value}" for name, value in (env or {}).items()]
    return Target(
        address, ("env", "-i", f"PATH={os.environ['PATH']}", f"HOME={Path.home()}", *more, "sh", "-c")
    )


def test_this_machine_is_looked_at_and_what_is_found_is_so() -> None:
    (seen,) = looked(Target(HERE)).machines
    assert seen.away == ""
    facts = seen.facts
    assert facts is not None
    assert seen.name == facts["hostname"] == socket.gethostname()
    assert facts["python"] == list(sys.version_info[:3])
    assert facts["memory"]["total"] > 2**28
    assert facts["free"]["home"] > 0
    assert facts["namespaces"]["why_not"] == network.why_not()
    assert abs(facts["clock"] - time.time()) < 60
    assert ("rsync" in facts["programs"]) == bool(
        subprocess.run(["which", "rsync"], capture_output=True, check=False).stdout
    )
    assert worst(findings(seen, True)) in ("ok", "warn", "fail")


def test_machines_reach_for_each_other_through_their_shells() -> None:
    """Two machines that are one: who of them listens first has the port, and both reach it."""
    ports = free_range(3)
    found = looked(shell(HERE), shell(THERE), ports=ports)
    assert [seen.away for seen in found.machines] == ["", ""]
    tried = {(reach.source, reach.target, reach.port): reach.word for reach in found.between.reaches}
    assert tried == {(a, b, port): "ok" for a, b in ((HERE, THERE), (THERE, HERE)) for port in ports.samples}
    assert set(found.between.listening.values()) <= {"ok", "EADDRINUSE"}
    assert all(abs(offset) < 1.0 for offset in found.between.offsets.values())
    assert found.machines[0].name == f"{socket.gethostname()} ({HERE})", "of one name, told apart"
    assert {f.topic: f.severity for f in findings_between(found.machines, found.between)}["ports"] == "ok"


def test_a_port_that_nobody_reaches_is_found() -> None:
    """Somebody listens there at one address only: the machine's own probe cannot, and the other is refused."""
    ports = free_range(1)
    with socket.create_server((AWAY, ports.first)):
        found = looked(shell(HERE), shell(THERE), ports=ports)
    assert set(found.between.listening.values()) == {"EADDRINUSE"}
    assert {reach.word for reach in found.between.reaches} == {"ECONNREFUSED"}
    (one, two) = [f for f in findings_between(found.machines, found.between) if f.topic == "ports"]
    assert "taken by something that others do not reach" in one.what
    assert one.severity == two.severity == "warn"


def test_a_clock_that_is_ahead_is_measured(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import time; real = time.time; time.time = lambda: real() + 7.0"
    )
    found = looked(shell(HERE), shell(THERE, {"PYTHONPATH": str(tmp_path)}))
    assert 6.0 < found.between.offsets[THERE] - found.between.offsets[HERE] < 8.0


def test_a_machine_that_hangs_and_one_without_python_are_told_and_delay_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor_session, "FACTS_S", 12.0)
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sh", "uname", "tail"):
        (bare / name).symlink_to(
            Path("/bin", name) if Path("/bin", name).exists() else Path("/usr/bin", name)
        )
    hangs = Target(AWAY, ("sh", "-c", "echo $$ > $0; exec sleep 600", str(tmp_path / "pid")))
    broken = Target(
        "127.0.0.4", ("sh", "-c", "echo 'ssh: connect to host x port 22: No route to host' >&2; exit 255")
    )
    without = Target("127.0.0.5", ("env", "-i", f"PATH={bare}", "sh", "-c"))
    missing = Target("127.0.0.6", ("/nowhere/ssh",))
    begun = time.monotonic()
    found = looked(hangs, broken, shell(HERE), without, missing)
    assert time.monotonic() - begun < 30.0
    away = {seen.address: seen.away for seen in found.machines if seen.facts is None}
    assert away[AWAY].startswith("timed out")
    assert away["127.0.0.4"].endswith("No route to host")
    assert away["127.0.0.5"].startswith("no python: Linux")
    assert away["127.0.0.6"] == "/nowhere/ssh: No such file or directory"
    assert found.machines[2].facts is not None
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists(), "what was started is ended"
    topics = {seen.address: findings(seen, True)[0].topic for seen in found.machines}
    assert topics[AWAY] == topics["127.0.0.4"] == "ssh"
    assert topics["127.0.0.5"] == "python"


def test_what_a_machine_says_is_heard_though_it_ends_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_session, "_source", lambda _: "#" * 2**18)  # more than a pipe holds
    (seen,) = looked(Target(AWAY, ("sh", "-c", "echo no python: Linux"))).machines
    assert seen.away == "no python: Linux"


def test_a_machine_whose_python3_is_old_is_looked_at_by_another(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "python3.12").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tmp_path / "python3.12").chmod(0o755)
    (seen,) = looked(shell(HERE, {"PATH": f"{tmp_path}:/usr/bin:/bin"})).machines
    assert seen.facts is not None, seen.away


def test_one_that_falls_silent_keeps_its_facts_and_is_told(tmp_path: Path) -> None:
    """Its probe dies after its first answer."""
    dies = tmp_path / "dies.py"
    dies.write_text(
        "import json, sys\nprint(json.dumps({'facts': {'hostname': 'den'}}), flush=True)\n"
        "sys.stdin.readline()\nsys.exit('the power went')\n"
    )
    target = Target(THERE, (sys.executable, str(dies)))
    found = looked(target, shell(HERE))
    assert found.machines[0].facts == {"hostname": "den"}
    assert found.machines[0].away == "the power went"


def test_ssh_is_called_as_ray_calls_it() -> None:
    target = over_ssh("10.0.0.1", "ann", "~/.ssh/key")
    assert target.ssh[0] == "ssh"
    assert target.ssh[-2:] == ("--", "ann@10.0.0.1"), "a user's name that begins with - is no option"
    assert str(Path("~/.ssh/key").expanduser()) in target.ssh
    assert "BatchMode=yes" in target.ssh
    assert "-i" not in over_ssh("10.0.0.1", "ann", None).ssh


def probe(*orders: Any) -> list[Any]:
    """Every line that the probe says to these orders."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster.doctor_probe"],
        input="".join(json.dumps(order) + "\n" for order in orders),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_probe_takes_orders_until_its_input_ends() -> None:
    ports = free_range(2).samples
    first, listening, connected, clock = probe(
        {"listen": ports}, {"connect": [["127.0.0.1", port] for port in ports]}, {"clock": None}
    )
    assert set(first) == {"facts"}
    assert listening == {"listen": {str(port): "ok" for port in ports}}
    assert connected == {"connect": [["127.0.0.1", port, "ok"] for port in ports]}
    assert abs(clock["clock"] - time.time()) < 60


def test_the_probe_reaches_for_many_at_once_and_says_why_not() -> None:
    """More than it tries at once, and addresses to which no packet comes back."""
    (port,) = free_range(1).samples
    begun = time.monotonic()
    _, told = probe({"connect": [["127.0.0.1", port]] * 450 + [["192.0.2.1", 9]]})
    words = [word for _, _, word in told["connect"]]
    assert len(words) == 451
    assert set(words[:450]) == {"ECONNREFUSED"}
    assert words[450] in ("timeout", "ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED")
    assert time.monotonic() - begun < 20.0


def test_a_driver_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexec sleep 600\n")
    smi.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor_probe, "WORD_S", 0.2)
    told = doctor_probe.gpus()
    assert (told["code"], told["nvidia"]) == (doctor_probe.TOO_LATE, [])
    assert not psutil.Process().children()

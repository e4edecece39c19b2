"""The laboratory keeps its promises: machines apart, faults that are what they say, and nothing left."""

import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.cluster.kernel import links, namespaces
from tests.cluster.lab import Lab, laboratory, until

ROOT = Path(__file__).parents[2]
STANDS = """
import signal, sys, time
from pathlib import Path
from tests.cluster.lab import laboratory
signal.signal(signal.SIGINT, signal.default_int_handler)  # what began the tests may ignore it
with laboratory(Path(sys.argv[1])) as lab:
    lab.add("tower", "home").boot()
    print(lab.prefix, lab.machines["tower"].init.pid, flush=True)
    time.sleep(60)
"""


def test_machines_have_names_files_and_processes_of_their_own_and_reach_each_other(lab: Lab) -> None:
    tower, rack = lab.add("tower", "home", {"COLOUR": "deep blue"}), lab.add("rack", "office")
    for machine in (tower, rack):
        machine.boot()
    assert tower.address.rpartition(".")[0] != rack.address.rpartition(".")[0]
    assert tower.ssh("hostname; pwd; echo $COLOUR").stdout.split("\n") == [
        "tower",
        "/home/person",
        "deep blue",
        "",
    ]
    tower.ssh("touch ~/mine /tmp/mine /run/mine /dev/shm/mine")
    assert (tower.home / "mine").exists()
    assert rack.ssh("ls ~ /tmp /dev/shm; ls /run/mine", check=False).stdout.split() == [
        "/dev/shm:",
        "/home/person:",
        "/tmp:",
    ]
    talk = "exec 3<>/dev/tcp/{}/22; head -c 4 <&3"
    assert tower.ssh(talk.format(rack.address)).stdout == "SSH-"
    assert tower.ssh("exec 3<>/dev/tcp/192.0.2.1/80", check=False).returncode != 0
    tower.ssh("sleep 60 >/dev/null 2>&1 &")
    until(lambda: tower.commands() == ["sleep 60"], "the start of a command")
    assert rack.commands() == []
    assert "sleep" not in rack.ssh("ps ax").stdout


def test_an_orphan_is_waited_for(lab: Lab) -> None:
    tower = lab.add("tower", "home")
    tower.boot()
    tower.ssh("setsid sh -c '(sleep 0.2 &)' >/dev/null 2>&1")
    until(lambda: not tower.commands(), "the end of an orphan")
    assert " Z" not in tower.ssh("ps ax -o stat,args").stdout


def test_cut_off_deaf_and_frozen_machines_do_not_answer_and_then_do(lab: Lab) -> None:
    tower = lab.add("tower", "home")
    tower.boot()

    def answers() -> bool:
        return tower.ssh("true", check=False).returncode == 0

    assert answers()
    tower.plug(plugged=False)
    assert not answers()
    tower.plug(plugged=True)
    until(answers, "back on the cable")
    tower.deafen(deaf=True)
    assert not answers()
    tower.deafen(deaf=False)
    until(answers, "hearing again")
    tower.freeze()
    with pytest.raises((subprocess.TimeoutExpired, AssertionError)):
        tower.ssh("true", timeout=5)
    tower.freeze(frozen=False)
    until(answers, "awake")


def test_a_power_cut_ends_every_process_and_keeps_the_disk(lab: Lab) -> None:
    tower = lab.add("tower", "home")
    tower.boot()
    tower.ssh("echo kept > ~/file; touch /tmp/gone; setsid sleep 60 >/dev/null 2>&1 &")
    first = tower.ssh("cat /proc/sys/kernel/random/boot_id").stdout.strip()
    tower.kill()
    assert tower.pids() == []
    assert tower.ssh("true", check=False).returncode != 0
    tower.boot()
    assert tower.ssh("cat ~/file; ls /tmp").stdout == "kept\n"
    second = tower.ssh("cat /proc/sys/kernel/random/boot_id").stdout.strip()
    assert uuid.UUID(first) != uuid.UUID(second)
    assert tower.commands() == []


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    made: list[Lab] = []

    def fail() -> None:
        with laboratory(tmp_path / "lab") as lab:
            made.append(lab)
            lab.add("tower", "home").boot()
            lab.machines["tower"].freeze()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert made[0].left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_after_ctrl_c_nor_once_another_begins_after_a_kill(
    tmp_path: Path, number: signal.Signals
) -> None:
    stands = subprocess.Popen(
        [sys.executable, "-c", STANDS, str(tmp_path / "lab")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert stands.stdout is not None
    begin, pid = stands.stdout.readline().split()
    stands.send_signal(number)
    stands.communicate(timeout=30)
    if number is signal.SIGKILL:
        assert namespaces(begin)
        with laboratory(tmp_path / "next"):
            pass
    assert namespaces(begin) == []
    assert links(begin) == []
    until(lambda: not Path(f"/proc/{pid}").exists(), "the end of its processes", 5.0)

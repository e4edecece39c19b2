"""A laboratory: several machines on this one, each with its own network, processes, host name, disk and sshd.

A machine is a network namespace behind a bridge (one bridge, one subnet a zone), and in it a tree of processes
with PID, mount, UTS and IPC namespaces of its own. Of this machine's files it sees all but those below HIDDEN,
which are its own, as are its control groups (it has none). Nothing of it reaches another network.
Needs root and the programs in NEEDS. What a test run that was killed left behind, the next laboratory removes.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.kernel import (
    claim_number,
    command,
    links,
    members,
    namespaces,
    pid_namespace,
    prefix,
    run,
    sweep,
)

NEEDS: Mapping[str, str] = {
    "ip": "iproute2",
    "nft": "nftables",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
"""Programs, and Debian's packages that bring them."""
NAMESPACES = "namespaces (CAP_SYS_ADMIN)"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HIDDEN = ("/home", "/mnt", "/tmp", "/run", "/dev/shm")
PERSON = "root"
HOME = Path("/home/person")
WAIT_S = 30.0

INIT = """\
set -e
hostname {name}
mount --bind {disk} /mnt
mount --bind /mnt/passwd /etc/passwd
mount --bind /mnt/hosts /etc/hosts
mount --bind /mnt/home /home
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=555 none /sys/fs/cgroup || true
mount --bind /mnt/boot_id /proc/sys/kernel/random/boot_id
mkdir -p /run/sshd /run/lock
exec {sshd} -D -e -f /mnt/sshd_config
"""
SSHD = """\
Port 22
HostKey /mnt/host_key
AuthorizedKeysFile /mnt/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
PrintMotd no
Subsystem sftp internal-sftp
SetEnv {env}
"""
PASSWD = f"""\
{PERSON}:x:0:0::{HOME}:/bin/bash
sshd:x:105:65534::/run/sshd:/bin/false
nobody:x:65534:65534::/:/bin/false
"""


def missing() -> list[str]:
    """What this machine lacks for a laboratory: `root`, programs, the right to make namespaces (in a container root may
    not), or a Python that its machines could see."""
    lacks = [] if os.geteuid() == 0 else ["root"]
    lacks += [name for name in NEEDS if program(name) is None]
    if "root" not in lacks and program("unshare") and not _may_make_namespaces():
        lacks.append(NAMESPACES)
    hidden = any(Path(sys.base_prefix).is_relative_to(folder) for folder in HIDDEN)
    return lacks + ([f"a Python that does not lie below {', '.join(HIDDEN)}"] if hidden else [])


def _may_make_namespaces() -> bool:
    command = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def until(done: Callable[[], object], what: str, seconds: float = WAIT_S) -> float:
    """Returns the seconds until it was so. Raises AssertionError after `seconds`."""
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - began


@dataclass
class LabMachine:
    """One machine. `boot`, `kill`, `freeze`, `plug`, `deafen` are what can happen to it."""

    lab: "Lab"
    name: str
    zone: str
    address: str
    veth: str
    disk: Path
    env: Mapping[str, str] = field(default_factory=dict)
    """What its shells find in their environment, beside PATH."""
    init: subprocess.Popen[bytes] | None = None
    _inside: str | None = None
    """Its PID namespace, while it is on: the kernel gives the number of one that is gone to the next."""

    @property
    def namespace(self) -> str:
        return f"{self.lab.prefix}-{self.name}"

    @property
    def home(self) -> Path:
        """The home folder of its person, as this machine sees it."""
        return self.disk / HOME.relative_to("/")

    def boot(self) -> None:
        """Power on; returns when sshd answers."""
        assert self.init is None, f"{self.name} is on"
        (self.disk / "boot_id").write_text(Path("/proc/sys/kernel/random/uuid").read_text())
        script = INIT.format(name=self.name, disk=self.disk, sshd=program("sshd"))
        flags = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        with (self.disk / "sshd.log").open("ab") as log:
            self.init = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", *flags, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._answers, f"sshd of {self.name}")
        self._inside = pid_namespace(self._first())

    def ssh(
        self, command: str, *, check: bool = True, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """A command in a shell of its person, to its end."""
        done = subprocess.run(
            [*self.lab.ssh, f"{PERSON}@{self.address}", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{self.name}: {command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def pids(self) -> list[int]:
        """All its processes, as this machine numbers them."""
        return [] if self._inside is None else members(self._inside)

    def commands(self) -> list[str]:
        """The command lines of all its processes but sshd's."""
        lines = [command(pid) for pid in self.pids()]
        return [line for line in lines if line and not line.startswith(("sshd", "/usr/sbin/sshd"))]

    def kill(self) -> None:
        """The power goes: every process dies, the disk stays."""
        if self.init is None:
            return
        self.cut()
        self.init.wait()
        self.init = None
        until(lambda: not self.pids(), f"the end of {self.name}")
        self._inside = None

    def cut(self) -> None:
        """The power goes, without a look at what becomes of it."""
        if self.init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.init.pid, signal.SIGKILL)

    def freeze(self, *, frozen: bool = True) -> None:
        """It sleeps: nothing in it runs, its connections look alive."""
        seen: set[int] = set()
        while new := set(self.pids()) - seen:
            seen |= new
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def plug(self, *, plugged: bool) -> None:
        """Its cable."""
        self.lab.net("ip", "link", "set", self.veth, "up" if plugged else "down")

    def deafen(self, *, deaf: bool) -> None:
        """Packets towards it are dropped, those that it sends go through."""
        self.lab.drop(self.veth, on=deaf)

    def isolate(self, *, isolated: bool) -> None:
        """Packets from it and towards it are dropped; its cable looks well."""
        self.lab.drop(self.veth, on=isolated, both=True)

    def _answers(self) -> bool:
        assert self.init is not None
        if self.init.poll() is not None:
            raise AssertionError(f"{self.name} did not boot: {(self.disk / 'sshd.log').read_text()}")
        try:
            with socket.create_connection((self.address, 22), timeout=1.0) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _first(self) -> int:
        """The first process inside: the child of `unshare`."""
        assert self.init is not None
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        return int(children[0])


class Lab:
    """Zones, `home` and `office` by default, with a router between them that this machine reaches too."""

    def __init__(self, folder: Path, zones: Sequence[str] = ("home", "office")) -> None:
        self.folder = folder
        self.zones = tuple(zones)
        self.machines: dict[str, LabMachine] = {}
        self.number, self._claim = claim_number()
        self.prefix = prefix(self.number)
        self.ssh = ["ssh", "-i", str(folder / "key"), "-F", "none"]
        for option in (
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=3",
            "BatchMode=yes",
        ):
            self.ssh += ["-o", option]

    def __enter__(self) -> "Lab":
        try:
            self._build()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def add(self, name: str, zone: str, env: Mapping[str, str] | None = None) -> LabMachine:
        """A machine with an empty disk, not yet booted."""
        number = len(self.machines) + 10
        net = self.zones.index(zone) + 1
        address, veth = self._address(net, number), f"{self.prefix}v{number}"
        machine = LabMachine(self, name, zone, address, veth, self.folder / name, env or {})
        self.machines[name] = machine
        self._write_disk(machine)
        inner = machine.namespace
        run("ip", "netns", "add", inner)
        self.net("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", inner)
        self.net("ip", "link", "set", veth, "master", f"br{net}", "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", self._address(net, 1)),
        ):
            run("ip", "-n", inner, *words)
        return machine

    def net(self, *command: str) -> None:
        """A command in the namespace between the zones."""
        run("ip", "netns", "exec", f"{self.prefix}-net", *command)

    def net_output(self, *command: str) -> str:
        """What a command in the namespace between the zones says."""
        words = ["ip", "netns", "exec", f"{self.prefix}-net", *command]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def drop(self, port: str, *, on: bool, both: bool = False) -> None:
        """Drop what goes out at a port of a bridge; with `both` what comes in there too."""
        table = f"bridge drop_{port}"
        if on:
            self.net(
                "nft",
                f"add table {table}; "
                f"add chain {table} f {{ type filter hook postrouting priority 0; }}; "
                f'add rule {table} f oifname "{port}" drop',
            )
            if both:
                self.net(
                    "nft",
                    f"add chain {table} b {{ type filter hook prerouting priority 0; }}; "
                    f'add rule {table} b iifname "{port}" drop',
                )
        else:
            self.net("nft", f"delete table {table}")

    def end(self) -> None:
        """End every process and take the networks away. May be called twice."""
        for machine in self.machines.values():
            machine.cut()
        for machine in self.machines.values():
            with contextlib.suppress(AssertionError):
                machine.kill()
        sweep(self.prefix)
        self._claim.close()

    def left(self) -> list[str]:
        """What of it is still on this machine: namespaces, links, processes. Empty after `end`."""
        running = [f"{m.name}: {line}" for m in self.machines.values() for line in m.commands()]
        return [*namespaces(self.prefix), *links(self.prefix), *running]

    def _build(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key"))
        between, outer = f"{self.prefix}-net", f"{self.prefix}0"
        run("ip", "netns", "add", between)
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", "out", "netns", between)
        run("ip", "addr", "add", f"{self._address(0, 1)}/24", "dev", outer)
        run("ip", "link", "set", outer, "up")
        self.net("ip", "addr", "add", f"{self._address(0, 2)}/24", "dev", "out")
        self.net("ip", "link", "set", "out", "up")
        self.net("ip", "link", "set", "lo", "up")
        self.net("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for net in range(1, len(self.zones) + 1):
            self.net("ip", "link", "add", f"br{net}", "type", "bridge")
            self.net("ip", "addr", "add", f"{self._address(net, 1)}/24", "dev", f"br{net}")
            self.net("ip", "link", "set", f"br{net}", "up")
        run("ip", "route", "add", f"10.{self.number}.0.0/16", "via", self._address(0, 2))

    def _address(self, net: int, host: int) -> str:
        return f"10.{self.number}.{net}.{host}"

    def _write_disk(self, machine: LabMachine) -> None:
        disk = machine.disk
        machine.home.mkdir(parents=True)
        (disk / "passwd").write_text(PASSWD)
        (disk / "hosts").write_text(f"127.0.0.1 localhost\n{machine.address} {machine.name}\n")
        (disk / "authorized_keys").write_text((self.folder / "key.pub").read_text())
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(disk / "host_key"))
        env = {"PATH": f"{sys.base_prefix}/bin:{SYSTEM_PATH}", **machine.env}
        words = " ".join(f'"{name}={value}"' for name, value in env.items())
        (disk / "sshd_config").write_text(SSHD.format(env=words))


@contextlib.contextmanager
def laboratory(folder: Path, zones: Sequence[str] = ("home", "office")) -> Iterator[Lab]:
    """A laboratory that leaves nothing: neither on this machine nor, after success, in `folder`."""
    with Lab(folder, zones) as lab:
        yield lab
    assert lab.left() == []
    run("rm", "-rf", str(folder))  # of 100,000 files, faster than shutil's

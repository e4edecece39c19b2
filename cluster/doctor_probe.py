"""What `homeport doctor` runs on a machine, over SSH, whether or not homeport is there: looks, and reaches for others.

Speaks JSON by the line: first what it found of this machine; then it takes orders, one a line, until stdin ends:
{"listen": [port]} -> {"listen": {port: "ok" | ERRNO}}, {"connect": [[address, port]]} -> {"connect": [[address, port,
WORD]]} with WORD "ok", "timeout" or an errno's name, {"clock": null} -> {"clock": seconds}. Changes nothing and leaves
nothing. Judges nothing: cluster/doctor.py does.

Standard library only, from Python 3.8 on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import select
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import network

if TYPE_CHECKING:
    Address = tuple[str, int]

WORD_S = 8.0
"""How long one program that is asked may take."""
TOO_LATE = 124
"""As timeout(1) says it."""
TEXT_MAX = 16384
CONNECT_S = 2.0
AT_ONCE = 200
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
PROGRAMS = ("c++", "g++", "clang++", "rsync", "sudo", "apt-get", "dnf", "pacman", "zypper", "brew")
SCRIPT_BUILD = "from cluster.build import build_id; print(build_id())"
VERSION = "from importlib.metadata import version as v; import sys; print(v('ray'), *sys.version_info[:3])"
SYSCTLS = (
    "user.max_user_namespaces",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)
CPUS = Path("/sys/devices/system/cpu")
SYSTEMD = Path("/run/systemd/system")


def main() -> None:
    say({"facts": facts()})
    listeners: dict[int, socket.socket] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "listen" in order:
            say({"listen": listen_on(order["listen"], listeners)})
        elif "connect" in order:
            say({"connect": connect_all([(each[0], each[1]) for each in order["connect"]])})
        elif "clock" in order:
            say({"clock": time.time()})


def say(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


def facts() -> dict[str, Any]:
    """Everything that is asked of one machine alone. What cannot be found out is null, or "" for a text."""
    home = Path.home()
    clone = home / "homeport"
    states = Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state")
    state = Path(os.environ.get("HOMEPORT_HOME") or states / "homeport")
    return {
        "system": platform.system(),
        "release": platform.release(),
        "hostname": socket.gethostname(),
        "user": user(),
        "uid": os.getuid() if hasattr(os, "getuid") else None,
        "clock": time.time(),
        "python": list(sys.version_info[:3]),
        "venv": has("venv") and has("ensurepip"),
        "pythons": [name for name in PYTHONS if shutil.which(name)],
        "programs": [name for name in PROGRAMS if shutil.which(name)],
        "wheelhouse": any(clone.glob("wheelhouse/*.whl")),
        "free": {"home": free(home), "state": free(state)},
        "memory": memory(),
        "homeport": installed(clone),
        "gpus": gpus(),
        "governors": sorted({read(path).strip() for path in CPUS.glob("cpu*/cpufreq/scaling_governor")}),
        "driver": read(CPUS / "cpu0/cpufreq/scaling_driver").strip(),
        "sleep": sleep(),
        "linger": lingers(),
        "firewall": firewall(),
        "locks": locks(),
        "namespaces": {"why_not": network.why_not(), "sysctl": {name: sysctl(name) for name in SYSCTLS}},
    }


def user() -> str:
    return os.environ.get("USER") or os.environ.get("LOGNAME") or ask("id", "-un")


def has(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def read(path: str | Path) -> str:
    try:
        with Path(path).open(errors="replace") as file:
            return file.read(TEXT_MAX)
    except OSError:
        return ""


def ask(*command: str) -> str:
    """What a program says; "" where it is missing or takes long."""
    return asked(*command)[1]


def asked(*command: str) -> tuple[int | None, str]:
    """(its exit code, what it said); (None, "") where it is missing, (TOO_LATE, "") where it takes long."""
    program = shutil.which(command[0], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        return None, ""
    try:
        child = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None, ""
    try:
        said = child.communicate(timeout=WORD_S)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs may hold it
            child.wait(1.0)
        return TOO_LATE, ""
    finally:
        if child.stdout is not None:
            child.stdout.close()
    return child.returncode, said[:TEXT_MAX].decode(errors="replace").strip()


def free(folder: Path) -> int:
    """Bytes that are free where this folder is, or will be."""
    there = next((each for each in (folder, *folder.parents) if each.is_dir()), Path("/"))
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return 0


def memory() -> dict[str, int | None]:
    """Bytes: total, available, swap."""
    found = {}
    for line in read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024 if rest.split()[:1] else 0
    if not found and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return {"total": total, "available": None, "swap": None}
    return {
        "total": found.get("MemTotal"),
        "available": found.get("MemAvailable"),
        "swap": found.get("SwapTotal"),
    }


def installed(clone: Path) -> dict[str, Any] | None:
    """The homeport in the clone of a machine of Ray's list; None where there is none."""
    python = str(clone / ".venv" / "bin" / "python")
    if not os.access(python, os.X_OK) or not (clone / "cluster" / "build.py").exists():
        return None
    build = ask(python, "-P", "-c", SCRIPT_BUILD)
    words = ask(python, "-P", "-c", VERSION).split()
    return {
        "build": build.splitlines()[-1] if build else "",
        "ray": words[0] if words else "",
        "python": [int(word) for word in words[1:]],
    }


def gpus() -> dict[str, Any]:
    """What the driver says, and which cards there are by their maker."""
    code, told = asked("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    cards = [
        path.parent for path in Path("/sys/bus/pci/devices").glob("*/class") if read(path).startswith("0x03")
    ]
    driver = read("/proc/driver/nvidia/version").splitlines()[:1]
    return {
        "nvidia_smi": None if code is None else code == 0,
        "code": code,
        "nvidia": told.splitlines() if code == 0 else [],
        "driver": driver[0] if driver else "",
        "makers": sorted(read(card / "vendor").strip() for card in cards),
    }


def sleep() -> dict[str, Any] | None:
    """What would send this machine to sleep; None where there is no systemd that could."""
    if not SYSTEMD.is_dir():
        return None
    settings = {}
    added = [
        *Path("/usr/lib/systemd/logind.conf.d").glob("*.conf"),
        *Path("/etc/systemd/logind.conf.d").glob("*.conf"),
    ]
    for path in [Path("/etc/systemd/logind.conf"), *sorted(added, key=lambda each: each.name)]:
        for line in read(path).splitlines():
            name, equals, value = line.strip().partition("=")
            if equals and not name.startswith(("#", "[")):
                settings[name.strip()] = value.strip()
    desktop = "org.gnome.settings-daemon.plugins.power"
    return {
        "targets": {
            name: ask("systemctl", "is-enabled", f"{name}.target")
            for name in ("sleep", "suspend", "hibernate")
        },
        "idle": settings.get("IdleAction", "ignore"),
        "lid": any(Path("/proc/acpi/button/lid").glob("*")),
        "lid_switch": settings.get("HandleLidSwitch", "suspend"),
        "desktop": ask("gsettings", "get", desktop, "sleep-inactive-ac-type").strip("'"),
    }


def lingers() -> bool | None:
    """Whether the user's systemd runs while nobody is logged in; None where there is no systemd."""
    return Path("/var/lib/systemd/linger", user()).exists() if SYSTEMD.is_dir() else None


def firewall() -> dict[str, Any]:
    """Rules as far as this user may read them, and whether a known firewall is on."""
    nft_code, nft = asked("nft", "list", "ruleset")
    tables_code, tables = asked("iptables", "-S")
    return {
        "readable": nft_code == 0 or tables_code == 0,
        "nft": nft,
        "iptables": tables,
        "ufw": "ENABLED=yes" in read("/etc/ufw/ufw.conf").replace(" ", ""),
        "firewalld": ask("firewall-cmd", "--state") == "running",
    }


def locks() -> dict[str, bool]:
    """Whether this user may have homeport's machine-wide locks in /run/lock."""
    base, folder = Path("/run/lock"), Path("/run/lock/homeport")
    there = base.is_dir()
    return {"there": there, "writable": there and os.access(folder if folder.is_dir() else base, os.W_OK)}


def sysctl(name: str) -> str | None:
    return read(Path("/proc/sys", *name.split("."))).strip() or None


def listen_on(ports: list[int], listeners: dict[int, socket.socket]) -> dict[int, str]:
    """Listen on these; one that somebody has already is told as EADDRINUSE."""
    told = {}
    for port in ports:
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("0.0.0.0", port))  # noqa: S104 - for others to reach, for seconds, and it says nothing
            listener.listen(512)
        except OSError as error:
            listener.close()
            told[port] = named(error.errno)
        else:
            listeners[port] = listener
            told[port] = "ok"
    return told


def connect_all(targets: list[Address]) -> list[list[Any]]:
    told: list[list[Any]] = []
    for at in range(0, len(targets), AT_ONCE):
        told += connect_some(targets[at : at + AT_ONCE])
    return told


def connect_some(targets: list[Address]) -> list[list[Any]]:
    """All at once, each within CONNECT_S."""
    words = {}
    waiting = {}
    poll = select.poll()
    for target in targets:
        reaching = socket.socket(socket.AF_INET)
        reaching.setblocking(False)
        code = reaching.connect_ex(target)
        if code == errno.EINPROGRESS:
            waiting[reaching.fileno()] = (reaching, target)
            poll.register(reaching, select.POLLOUT)
        else:
            words[target] = "ok" if code == 0 else named(code)
            reaching.close()
    deadline = time.monotonic() + CONNECT_S
    while waiting and time.monotonic() < deadline:
        for number, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            reaching, target = waiting.pop(number)
            poll.unregister(number)
            code = reaching.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            words[target] = "ok" if code == 0 else named(code)
            reaching.close()
    for reaching, target in waiting.values():
        words[target] = "timeout"
        reaching.close()
    return [[*target, words[target]] for target in targets]


def named(number: int | None) -> str:
    return errno.errorcode.get(number or 0, str(number))


if __name__ == "__main__":
    main()

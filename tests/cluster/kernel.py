"""What a laboratory asks of this machine's kernel: a number of its own, its namespaces, links and processes."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path


def claim_number() -> tuple[int, socket.socket]:
    """The second byte of a laboratory's addresses, so that two stand side by side.

    It is ours for as long as we hold an abstract socket of that name: the kernel frees it, and no file stays.
    What a laboratory that was killed left under a number that nobody holds is removed.
    """
    held: tuple[int, socket.socket] | None = None
    for number in range(201, 255):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0homeport-lab-{number}")
        except OSError:
            claim.close()
            continue
        sweep(prefix(number))
        if held is None:
            held = number, claim
        else:
            claim.close()
    assert held is not None, "there is no free number for a laboratory"
    return held


def prefix(number: int) -> str:
    """How the names of a laboratory's namespaces and links begin."""
    return f"hpl{number}"


def sweep(of: str) -> None:
    """Remove every process, namespace and link of the laboratory whose names begin so."""
    for namespace in namespaces(of):
        listed = subprocess.run(
            ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
        )
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
    for link in links(of):
        subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)


def namespaces(of: str) -> list[str]:
    return _named("/run/netns", (f"{of}-",))


def links(of: str) -> list[str]:
    return _named("/sys/class/net", (f"{of}0", f"{of}v"))


def _named(folder: str, starts: tuple[str, ...]) -> list[str]:
    try:
        return sorted(entry.name for entry in Path(folder).iterdir() if entry.name.startswith(starts))
    except FileNotFoundError:
        return []


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def members(namespace: str) -> list[int]:
    return [pid for pid in _all_pids() if pid_namespace(pid) == namespace]


def _all_pids() -> Iterable[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def pid_namespace(pid: int) -> str | None:
    """None for a process that is gone, or dead and not yet waited for."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""

"""A stand-in for logind on a real system bus of its own: D-Bus's own daemon, and `python -m tests.fake_logind` on it.

It has what homeport asks of logind: `Inhibit`, whose locks last as long as their descriptors, and the signal
PrepareForSleep. It obeys orders on stdin, and tells on stdout who takes and gives back what.
"""

import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_S = 10.0
CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/><allow receive_type="signal"/>
    <allow receive_type="method_return"/><allow receive_type="error"/>
  </policy>
</busconfig>
"""


@dataclass
class Logind:
    """As a test has it. `held`: the locks that are held, as `what/mode`."""

    address: str
    process: subprocess.Popen[str]
    held: list[str] = field(default_factory=list)
    heard: list[tuple[float, str]] = field(default_factory=list)
    """What happened, and when by the monotonic clock: `+what/mode`, `-what/mode`."""

    def until(self, holds: Callable[[list[str]], bool]) -> list[str]:
        """Who holds what, once it is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(self.held):
            assert time.monotonic() < deadline, (self.held, self.heard)
            time.sleep(0.01)
        return list(self.held)

    def prepare_for_sleep(self, begins: bool) -> float:
        """Tell everybody. When it was."""
        at = time.monotonic()
        self._order("sleep" if begins else "wake")
        return at

    def deny(self, what: str) -> None:
        """From now on, nobody may keep this off."""
        self._order(f"deny {what}")

    def read(self) -> None:
        """Take in what it tells, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word = line.strip()
            self.heard.append((time.monotonic(), word))
            if word.startswith("+"):
                self.held.append(word[1:])
            elif word.startswith("-"):
                self.held.remove(word[1:])

    def _order(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)


def is_missing() -> bool:
    return shutil.which("dbus-daemon") is None


@contextmanager
def bus(folder: Path) -> Iterator[str]:
    """A system bus with nobody on it: its address."""
    socket, config = folder / "bus", folder / "bus.conf"
    config.write_text(CONFIG.format(socket=socket))
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert daemon.stdout is not None
    try:
        assert daemon.stdout.readline().startswith("unix:path="), "dbus-daemon did not start"
        yield f"unix:path={socket}"
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()


@contextmanager
def logind(address: str) -> Iterator[Logind]:
    """On that bus, for as long as the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fake_logind"],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    made = Logind(address, process)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "ready\n"
        reader = threading.Thread(target=made.read, daemon=True)
        reader.start()
        yield made
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        reader.join()
        process.stdout.close()


def main() -> None:
    """One loop over the bus, the orders and the locks that are held."""
    from jeepney import (
        DBusAddress,
        HeaderFields,
        MessageType,
        message_bus,
        new_error,
        new_method_return,
        new_signal,
    )
    from jeepney.io.blocking import open_dbus_connection

    connection = open_dbus_connection("SYSTEM", enable_fds=True)
    connection.send_and_get_reply(message_bus.RequestName("org.freedesktop.login1"))
    me = DBusAddress("/org/freedesktop/login1", interface="org.freedesktop.login1.Manager")
    locks: dict[int, str] = {}
    denied: set[str] = set()
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([connection.sock, sys.stdin, *locks], [], [])
        for lock in [each for each in readable if each in locks]:
            print(f"-{locks.pop(lock)}", flush=True)
            os.close(lock)
        if sys.stdin in readable:
            order = sys.stdin.readline().split()
            if not order:
                return
            if order[0] == "deny":
                denied.add(order[1])
            else:
                connection.send(new_signal(me, "PrepareForSleep", "b", (order[0] == "sleep",)))
        if connection.sock not in readable:
            continue
        asked = connection.receive()
        if asked.header.message_type is not MessageType.method_call:
            continue
        if asked.header.fields.get(HeaderFields.member) != "Inhibit":
            connection.send(new_error(asked, "org.freedesktop.DBus.Error.UnknownMethod"))
            continue
        what, who, why, mode = asked.body
        assert who == "homeport", who
        assert why, "logind shows people why"
        if mode == "block" and denied & set(what.split(":")):
            connection.send(new_error(asked, "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"))
            continue
        reading, writing = os.pipe()
        locks[reading] = f"{what}/{mode}"
        print(f"+{locks[reading]}", flush=True)
        connection.send(new_method_return(asked, "h", (writing,)))
        os.close(writing)


if __name__ == "__main__":
    main()

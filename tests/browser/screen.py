"""A screen that nobody sees: an X server of its own with a window manager, and what X says of the windows there."""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SIZE = "1024x600"
WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Window:
    """`states`: EWMH's, as `_NET_WM_STATE_FULLSCREEN`; `geometry`: X's, as `1024x600+0+0`."""

    title: str
    states: tuple[str, ...]
    geometry: str


@dataclass(frozen=True, slots=True)
class Screen:
    display: str

    def windows(self) -> list[Window]:
        """Those that the window manager manages."""
        found = []
        for name in re.findall(r"0x[0-9a-f]+", self._ask("xprop", "-root", "_NET_CLIENT_LIST")):
            told = self._ask("xprop", "-id", name, "-notype", "_NET_WM_NAME", "_NET_WM_STATE")
            placed = self._ask("xwininfo", "-id", name)
            title = re.search(r'^_NET_WM_NAME = "(.*)"$', told, re.MULTILINE)
            at = re.search(r"^ *-geometry (\S+)$", placed, re.MULTILINE)
            if title and at:  # Else it has gone meanwhile.
                found.append(Window(title[1], tuple(re.findall(r"_NET_WM_STATE_\w+", told)), at[1]))
        return found

    def manages(self) -> bool:
        """Whether its window manager has begun."""
        return "_NET_WM_STATE_FULLSCREEN" in self._ask("xprop", "-root", "_NET_SUPPORTED")

    def _ask(self, *command: str) -> str:
        env = {**os.environ, "DISPLAY": self.display, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=WAIT_S)
        return done.stdout


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """For as long as the block lasts; whoever shows something there loses it then, as at the end of a login."""
    with contextlib.ExitStack() as stack:
        ready, tell = os.pipe()
        stack.callback(os.close, ready)
        server = ["Xvfb", "-displayfd", str(tell), "-screen", "0", f"{SIZE}x24", "-nolisten", "tcp"]
        _start(stack, server, {}, (tell,))
        os.close(tell)
        number = os.read(ready, 16).decode().strip()
        assert number, "Xvfb did not begin"
        made = Screen(f":{number}")
        _start(stack, ["evilwm", "-fn", "fixed"], {"DISPLAY": made.display})
        until(made.manages)
        yield made


def _start(
    stack: contextlib.ExitStack, command: list[str], more: dict[str, str], keeps: tuple[int, ...] = ()
) -> None:
    """It ends with the stack."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=keeps,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)


def until(holds: Callable[[], object]) -> None:
    """X's clients tell nobody how far they are: they are asked again. Fails after `WAIT_S`."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def as_a_person() -> list[str]:
    """What a command begins with to run as nobody special: for root, a user namespace in which it is another user."""
    return ["unshare", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []


def has_namespaces() -> bool:
    """Whether a person's programs may make user namespaces, which Chromium's sandbox is made of."""
    if shutil.which("unshare") is None:
        return False
    command = [*as_a_person(), "unshare", "--user", "true"]
    return subprocess.run(command, capture_output=True, check=False, timeout=WAIT_S).returncode == 0

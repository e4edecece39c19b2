"""`homeport desk MACHINE` before a real screen: the real command, the Chromium that it finds, and what X shows."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.paths import Paths, write_private
from tests.browser.packages import REMEDY, lacking
from tests.browser.screen import SIZE, as_a_person, has_namespaces, screen, until
from tests.browser.tab import Beside
from tests.standins import AnswersHost, routed

HOMEPORT = str(Path(sys.executable).with_name("homeport"))


@contextmanager
def runs_here(paths: Paths, url: str) -> Iterator[None]:
    """As the parent of a router at this address leaves it on disk while it lives."""
    paths.make()
    write_private(paths.run, f'{{"url": "{url}"}}')
    with paths.up_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def a_person(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody with a home of their own; what still runs there afterwards is ended."""
    home = folder / "person"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DBUS_"))}
    try:
        yield {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    finally:
        left = running_for(home)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left)


def running_for(home: Path) -> list[psutil.Process]:
    """Processes with that home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "home", tmp_path / "locks")


@pytest.mark.skipif(bool(lacking()), reason=f"no {', '.join(lacking())} here; {REMEDY}")
@pytest.mark.skipif(not has_namespaces(), reason="Chromium has no sandbox here: no user namespaces")
def test_homeport_desk_fills_the_screen_and_ends_with_it(
    beside: Beside, paths: Paths, tmp_path: Path
) -> None:
    router = beside.enter(routed(tmp_path / "router", AnswersHost("m0/0")))
    folders = {"HOMEPORT_HOME": str(paths.home), "HOMEPORT_LOCKS": str(paths.locks)}
    with runs_here(paths, router.url), a_person(tmp_path) as person:
        with screen() as seen:
            env = {**person, **folders, "DISPLAY": seen.display}
            command = [*as_a_person(), HOMEPORT, "desk", "m0"]
            done: Any = subprocess.run(
                command, env=env, capture_output=True, text=True, check=False, timeout=60
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == f"The desk of m0 opens: {router.url}/desk/m0\n"
            until(lambda: [each.title for each in seen.windows()] == ["m0 · desk - Chromium"])
            until(lambda: seen.windows()[0].geometry == f"{SIZE}+0+0")
            (window,) = seen.windows()
            assert "_NET_WM_STATE_FULLSCREEN" in window.states
            assert running_for(Path(person["HOME"]))
        until(lambda: not running_for(Path(person["HOME"])))

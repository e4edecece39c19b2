"""A homeport that starts: how far it is, on a terminal or in a log, until it is ready or for as long as it runs.

Starts nothing itself (router/lifecycle.py), and draws no picture (router/live.py).
"""

import contextlib
import os
import signal
import stat
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from rich.live import Live

from cluster.ending import end_everything
from cluster.join import LOOPBACK, joined
from cluster.paths import Paths, read_json
from router import api_client, lifecycle, live
from router.command_line import FAILED, err, out

READY_S = 180.0
REFRESH_S = 0.5
QUIET_REFRESH_S = 1.0

Show = Callable[[dict[str, Any], dict[str, Any], list[dict[str, Any]], bool], None]
"""Shows the parent's run, the fleet, the sessions, and whether it is ready."""


class Ended(BaseException):
    """A signal asked for the end. No Exception, so that nothing swallows it."""


def start_signals() -> None:
    """From here on a signal that asks for the end raises Ended, once."""

    def ended(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, _nothing)
        _leave_closed_terminal()
        raise Ended

    numbers = _heard()
    for number in numbers:
        signal.signal(number, ended)


def _heard() -> list[signal.Signals]:
    """Signals that ask for the end, without those that who started this wants ignored, as nohup does SIGHUP."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Unlike SIG_IGN it is not taken for what who started this wants."""


def _leave_closed_terminal() -> None:
    """Say nothing more to a terminal that was closed: whoever writes to it fails."""
    for descriptor in (1, 2):
        try:
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                termios.tcgetattr(descriptor)
        except (OSError, termios.error):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def follow(paths: Paths, parent: subprocess.Popen[bytes], detach: bool, takes_over: bool = False) -> int:
    """Show the start, and in the foreground what comes after it. Returns the exit code.

    What did not become ready is ended; where it `takes_over`, replicas served before: it goes on trying. Its parent
    has no owner then if this one is to `detach`.
    """
    keeps = takes_over and detach
    try:
        if out.is_terminal:
            with Live(console=out, auto_refresh=False, transient=detach) as view:
                code = _watch(paths, parent, _screen(view), detach)
        else:
            code = _watch(paths, parent, _plain(), detach)
        if code == 0 and detach:
            if not keeps:
                lifecycle.release(paths, parent)
            say_running(read_json(paths.run) or {})
            return 0
    except Ended:
        if keeps:
            err.print("It goes on by itself. `homeport status` shows how far it is.")
            return 130
        end(paths)
        return 130 if detach else 0
    except lifecycle.UpRefused as refused:
        err.print(str(refused), style="red", markup=False)
        code = refused.code
    if keeps:
        return code
    has_ended = parent.poll() is not None
    if takes_over and has_ended:  # who ended it ended the rest too; or else the replicas go on
        return FAILED if parent.returncode > 0 else code
    if takes_over and code != 0:
        with contextlib.suppress(lifecycle.UpRefused):  # it has ended
            lifecycle.release(paths, parent)
        err.print(
            "It goes on by itself: replicas of the former version serve. `homeport down` ends everything."
        )
        return code
    lock = lifecycle.take_up_lock(paths) if has_ended else None
    started = (read_json(paths.run) or {}).get("parent")
    if started in (None, parent.pid) and (lock is not None or not has_ended):
        end(paths)  # else somebody starts another one, or did meanwhile
    if lock is not None:
        os.close(lock)
    return code


def stay(paths: Paths) -> int:
    """On a machine that joined: until a signal asks for the end, which ends all of it, or until it was ended from
    elsewhere. Returns the exit code."""
    absent = 0
    try:
        while absent < 2:  # once: `homeport join` may be at it to begin the service anew
            time.sleep(QUIET_REFRESH_S)
            absent = 0 if lifecycle.running(paths) else absent + 1
    except Ended:
        end(paths)
        return 0
    err.print(f"homeport was ended from elsewhere. Logs: {paths.logs}", style="yellow")
    return 0


def _screen(view: Live) -> Show:
    """For a terminal: a picture that changes; above it, once, what a person copies, in lines that are not cut."""
    told = False

    def show(run: dict[str, Any], fleet: dict[str, Any], found: list[dict[str, Any]], ready: bool) -> None:
        nonlocal told
        if ready and not told and fleet.get("models"):
            told = True
            out.print(
                f"Listening on [bold cyan]{run.get('url', '')}/v1[/]  (Ctrl-C ends everything). Try it:\n"
            )
            line = live.curl_line(run, fleet["models"][0]["name"])
            out.print(line, style="green", soft_wrap=True, markup=False, highlight=False)
            out.print()
        view.update(live.up_view(run, fleet, found), refresh=True)

    return show


def _plain() -> Show:
    """For a pipe or a file: each line once."""
    printed: set[str] = set()

    def show(run: dict[str, Any], fleet: dict[str, Any], _found: Any, ready: bool) -> None:
        for line in live.plain_lines(run, fleet, ready):
            if line not in printed:
                printed.add(line)
                print(line, flush=True)

    return show


def _watch(paths: Paths, parent: subprocess.Popen[bytes], show: Show, detach: bool) -> int:
    deadline, ready, shown = time.monotonic() + READY_S, False, None
    progress: list[Any] = []
    fleet: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    use: list[Any] = []
    revision, secret = (read_json(paths.revision) or {}).get("revision"), api_client.owners_secret(paths)
    while parent.poll() is None:
        run = read_json(paths.run) or {}
        try:
            fleet = api_client.get(run.get("url", ""), "/api/fleet", secret=secret)
            used = [(r.get("turns"), r.get("running"), r.get("waiting")) for r in live.replicas_of(fleet)]
            if ready and used != use:
                found = api_client.get(run["url"], "/api/sessions", secret=secret)["sessions"]
                use = used
        except (api_client.Away, api_client.Refused, KeyError):
            pass
        replicas = live.replicas_of(fleet)
        ready = ready or _is_settled(run, fleet, revision)
        looks = [(r["name"], r["state"], r.get("progress"), r.get("detail")) for r in replicas]
        picture = (run.get("steps"), looks, found)
        if (now := [look for look in looks if look[1] == "starting" and look[2]]) != progress:
            progress, deadline = (
                now,
                time.monotonic() + READY_S,
            )  # A model is on its way: that may take hours.
        if picture != shown:
            show(run, fleet, found, ready)
            shown = picture
        if ready and detach:
            mine = _own_replicas(run, fleet)
            return 0 if not mine or any(r["state"] in ("ready", "yielded") for r in mine) else FAILED
        if not ready and time.monotonic() > deadline:
            err.print(f"Not ready after {READY_S:.0f} s. Logs: {paths.logs}", style="red")
            return FAILED
        time.sleep(QUIET_REFRESH_S if ready else REFRESH_S)
    err.print(f"homeport was ended from elsewhere. Logs: {paths.logs}", style="yellow")
    return 0


def _is_settled(run: dict[str, Any], fleet: dict[str, Any], revision: int | None) -> bool:
    """Whether this machine serves what is wanted, or cannot. On others, that is not waited for."""
    started = run.get("steps", {}).get("controller", {}).get("state") == "ready"
    if not started or fleet.get("revision") != revision:
        return False
    mine = _own_replicas(run, fleet)
    told = any(m.get("id") == run["machine"]["id"] for m in fleet["machines"] if m["revision"] == revision)
    if not told:  # its keeper has not reported: what is known of it is what it was before
        return False
    if not mine:  # what is wanted may run elsewhere
        return bool(run["machine"]["address"] != LOOPBACK)
    return all(replica["state"] in ("ready", "failed", "yielded") for replica in mine)


def _own_replicas(run: dict[str, Any], fleet: dict[str, Any]) -> list[dict[str, Any]]:
    name = run.get("machine", {}).get("name")
    return [r for m in fleet.get("machines", ()) if m["name"] == name for r in m["replicas"]]


@contextlib.contextmanager
def hurrying() -> Iterator[Callable[[], bool]]:
    """While everything is ended: whether a signal has asked for it at once."""
    hurried = threading.Event()

    def hurry(_number: int, _frame: FrameType | None) -> None:
        _leave_closed_terminal()
        hurried.set()

    numbers = _heard()
    before = [signal.signal(number, hurry) for number in numbers]
    try:
        yield hurried.is_set
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def end(paths: Paths) -> None:
    """End everything here, and say so. A signal meanwhile leaves what is open no more time."""
    with hurrying() as hurried, err.status("ending everything"):
        left = end_everything(paths, lambda word: err.print(word, style="dim"), hurried)
    err.print(
        f"Still there: {', '.join(left)}" if left else "Everything is ended; sessions keep their homes."
    )


def say_running(run: dict[str, Any]) -> None:
    """What runs here, since when and where; of a machine that joined, which head it serves."""
    paths = Paths.from_env(os.environ)
    age = live.age_text(time.time() - run.get("since", time.time()))
    if is_worker(run):
        out.print(worker_line(paths, run), markup=False, highlight=False)
        return
    out.print(f"homeport has been running for {age} at {run.get('url', '?')}/v1.")
    try:
        secret = api_client.owners_secret(paths)
        fleet = api_client.get(run.get("url", ""), "/api/fleet", secret=secret)
    except (api_client.Away, api_client.Refused):
        out.print("Its router does not answer at this moment.")
    else:
        for replica in live.replicas_of(fleet):
            out.print(f"  {replica['name']}  {replica['model']}  {replica['state']}")
    out.print("`homeport status` shows more; `homeport down` ends it.")


def is_worker(run: dict[str, Any]) -> bool:
    """Whether this machine serves a head elsewhere."""
    return bool(run.get("role") == "worker")


def worker_line(paths: Paths, run: dict[str, Any]) -> str:
    """For a machine that serves a head elsewhere: which one, how far it is, and where to ask for more."""
    known, step = joined(paths), run.get("steps", {}).get("ray", {})
    head, name = (known.head, known.name) if known else ("a head", "this machine")
    state = ": ".join(part for part in (step.get("state", "starting"), step.get("detail")) if part)
    more = "`homeport status` there shows more; `homeport down` here ends its part."
    return f"{name} serves the head at {head}; Ray here: {state}. {more}"

"""The command `homeport`. Parses, asks router/lifecycle.py and the router, prints.

Exit codes: 0 done, 1 it failed, 2 the input or the config is wrong (nothing was started), 3 homeport does not run.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version as distribution_version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.live import Live

from cluster.paths import Paths, read_json
from cluster.processes import ours
from router import api_client, key_commands, lifecycle, live
from serving.config import ConfigError

app = typer.Typer(
    name="homeport",
    help="Every session has a home port: one machine, its own hardware, its context waiting there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(key_commands.app, name="key")
out = live.console()
err = live.console(stderr=True)

FAILED, WRONG, NOT_RUNNING = 1, 2, 3
READY_S = 180.0
ACT_S = 10.0
REFRESH_S = 0.5
QUIET_REFRESH_S = 1.0

Show = Callable[[dict[str, Any], dict[str, Any], list[dict[str, Any]], bool], None]
"""Shows the parent's run, the fleet, the sessions, and whether it is ready."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="HOMEPORT_CONFIG", help="What to serve (homeport.yaml)."),
]


@app.command()
def up(
    config: ConfigPath = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it is ready; leave it running.")
    ] = False,
) -> None:
    """Start Ray on this machine, serve the config's models, and show what happens. Ctrl-C ends everything."""
    Path.cwd()  # Ray does not start in a folder that is gone
    paths = Paths.from_env(os.environ)
    _start_signals()
    try:
        lock = lifecycle.take_up_lock(paths)
        if lock is None:
            _say_running(read_json(paths.run) or {})
            return
        prepared = lifecycle.prepare(paths, config or _default_config(), os.environ)
        parent = lifecycle.start(paths, prepared, os.environ, os.getpid(), lock)
    except (ConfigError, lifecycle.UpRefused) as refused:
        err.print(str(refused), style="red", markup=False, highlight=False)
        raise typer.Exit(getattr(refused, "code", WRONG)) from None
    except _Ended:
        _end(paths)
        raise typer.Exit(130) from None
    raise typer.Exit(_follow(paths, parent, detach))


@app.command()
def down() -> None:
    """End everything that `homeport up` started here, in whatever state it is. Sessions keep their homes."""
    paths = Paths.from_env(os.environ)
    left = lifecycle.end_everything(paths, lambda word: out.print(word, style="dim"))
    if left:
        err.print(f"Still there: {', '.join(left)}. Try again, or end them with kill -9.", style="red")
        raise typer.Exit(FAILED)
    out.print("homeport is down.")


@app.command()
def status(as_json: Json = False) -> None:
    """Machines, slices with their cores and owners, and which limits are enforced or only watched."""
    run = _running_or_exit(as_json)
    fleet = _get_or_exit(run, "/api/fleet")
    if as_json:
        print(json.dumps({"running": True, "url": run.get("url"), "steps": run.get("steps"), **fleet}))
        return
    out.print(live.status_view(fleet, run))


@app.command()
def sessions(as_json: Json = False) -> None:
    """The sessions that have a home here."""
    run = _running_or_exit(as_json)
    found = _get_or_exit(run, "/api/sessions")["sessions"]
    if as_json:
        print(json.dumps({"running": True, "sessions": found}))
    elif found:
        out.print(live.sessions_table(found))
    else:
        out.print(
            "No session has a home yet. Send a request with the header x-session-id, or try `homeport chat`."
        )


@app.command()
def end(
    session: Annotated[
        str, typer.Argument(help="Its public id, as `homeport sessions` shows it, or its name.")
    ],
) -> None:
    """End a session: its turn, its context and its home. Its next request begins anew."""
    run = _running_or_exit(False)
    done = _ask_or_exit(run, "DELETE", f"/api/sessions/{quote(session, safe='')}")
    out.print(f"{done['id']} is ended.")


@app.command()
def move(
    session: Annotated[
        str, typer.Argument(help="Its public id, as `homeport sessions` shows it, or its name.")
    ],
    machine: Annotated[str, typer.Argument(help="The machine that is to be its home.")],
) -> None:
    """Give a session another home. Its context is evaluated anew there at its next turn."""
    run = _running_or_exit(False)
    path = f"/api/sessions/{quote(session, safe='')}/move"
    done = _ask_or_exit(run, "POST", path, {"machine": machine})
    out.print(f"{done['id']} has its home at {', '.join(done['replicas'])} now.")


@app.command()
def forget(
    machine: Annotated[str, typer.Argument(help="A machine that is gone for good.")],
) -> None:
    """Give a machine up: its sessions get new homes in its zone, each at its next turn."""
    run = _running_or_exit(False)
    _ask_or_exit(run, "POST", f"/api/machines/{quote(machine, safe='')}/forget")
    out.print(f"{machine} is forgotten. Should it come back, it joins anew.", markup=False)


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model's name.")] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="The session's name.")] = None,
    system: Annotated[str, typer.Option("--system", help="What the model is told first.")] = live.SYSTEM,
) -> None:
    """Talk to a model. The conversation has a home of its own; `--session NAME` returns to it."""
    run = _running_or_exit(False)
    url = run["url"]
    chosen = model or _get_or_exit(run, "/v1/models")["data"][0]["id"]
    history = [{"role": "system", "content": system}]
    name = session or f"chat-{secrets.token_hex(4)}"
    if prompt is not None:
        _turn(url, chosen, name, [*history, {"role": "user", "content": prompt}])
        return
    out.print(f"{chosen}, session {name}. An empty line or Ctrl-D ends it.", style="dim")
    while words := _input():
        history.append({"role": "user", "content": words})
        history.append({"role": "assistant", "content": _turn(url, chosen, name, history)})


@app.command()
def version() -> None:
    """Print the version."""
    print(f"homeport {distribution_version('homeport')}")


class _Ended(BaseException):
    """A signal asked for the end. No Exception, so that nothing swallows it."""


def _start_signals() -> None:
    def ended(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        raise _Ended

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, ended)


def _follow(paths: Paths, parent: subprocess.Popen[bytes], detach: bool) -> int:
    """Show the start, and in the foreground what comes after it. Returns the exit code."""
    try:
        if out.is_terminal:
            with Live(console=out, auto_refresh=False, transient=detach) as view:
                code = _watch(paths, parent, _screen(view), detach)
        else:
            code = _watch(paths, parent, _plain(), detach)
        if code == 0 and detach:
            lifecycle.release(paths, parent)
            _say_running(read_json(paths.run) or {})
            return 0
    except _Ended:
        _end(paths)
        return 130 if detach else 0
    except lifecycle.UpRefused as refused:
        err.print(str(refused), style="red", markup=False)
        code = refused.code
    started = (read_json(paths.run) or {}).get("parent")
    if started in (None, parent.pid):  # else somebody started another one meanwhile
        _end(paths)
    return code


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
    fleet: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    use: list[Any] = []
    revision = (read_json(paths.revision) or {}).get("revision")
    while parent.poll() is None:
        run = read_json(paths.run) or {}
        try:
            fleet = api_client.get(run.get("url", ""), "/api/fleet", secret=_secret(paths))
            used = [(r.get("turns"), r.get("running"), r.get("waiting")) for r in live.replicas_of(fleet)]
            if ready and used != use:
                found = api_client.get(run["url"], "/api/sessions", secret=_secret(paths))["sessions"]
                use = used
        except (api_client.Away, api_client.Refused, KeyError):
            pass
        replicas = live.replicas_of(fleet)
        started = run.get("steps", {}).get("controller", {}).get("state") == "ready"
        current = started and fleet.get("revision") == revision and bool(replicas)
        ready = ready or (current and all(r["state"] in ("ready", "failed") for r in replicas))
        picture = (run.get("steps"), [(r["name"], r["state"], r.get("progress")) for r in replicas], found)
        if picture != shown:
            show(run, fleet, found, ready)
            shown = picture
        if ready and detach:
            return 0 if any(r["state"] == "ready" for r in replicas) else FAILED
        if not ready and time.monotonic() > deadline:
            err.print(f"Not ready after {READY_S:.0f} s. Logs: {paths.logs}", style="red")
            return FAILED
        time.sleep(QUIET_REFRESH_S if ready else REFRESH_S)
    err.print(f"homeport was ended from elsewhere. Logs: {paths.logs}", style="yellow")
    return 0


def _end(paths: Paths) -> None:
    with err.status("ending everything"):
        left = lifecycle.end_everything(paths)
    err.print(
        f"Still there: {', '.join(left)}" if left else "Everything is ended; sessions keep their homes."
    )


def _turn(url: str, model: str, session: str, messages: list[dict[str, str]]) -> str:
    """One streamed answer, printed as it comes. Returns it."""
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    words: list[str] = []
    about: dict[str, Any] = {}
    try:
        named = {"x-session-id": session, **api_client.bearer(_secret(Paths.from_env(os.environ)))}
        for event in api_client.stream_chat(url, body, named, timeout_s=120.0):
            about = event.get("homeport") or about
            for choice in event.get("choices", ()):
                piece = choice.get("delta", {}).get("content") or ""
                words.append(piece)
                print(piece, end="", flush=True)
    except (api_client.Away, api_client.Refused) as error:
        print()
        err.print(str(error), style="red", markup=False)
        raise typer.Exit(FAILED) from None
    print()
    if about and sys.stdout.isatty():
        out.print(f"{about.get('replica')}: {about.get('pin')}, {about.get('context')}", style="dim")
    return "".join(words)


def _input() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def _default_config() -> Path:
    return Path(__file__).resolve().parent.parent / "configs" / "homeport.yaml"


def _say_running(run: dict[str, Any]) -> None:
    age = live.age_text(time.time() - run.get("since", time.time()))
    out.print(f"homeport has been running for {age} at {run.get('url', '?')}/v1.")
    try:
        secret = _secret(Paths.from_env(os.environ))
        fleet = api_client.get(run.get("url", ""), "/api/fleet", secret=secret)
    except (api_client.Away, api_client.Refused):
        out.print("Its router does not answer at this moment.")
    else:
        for replica in live.replicas_of(fleet):
            out.print(f"  {replica['name']}  {replica['model']}  {replica['state']}")
    out.print("`homeport status` shows more; `homeport down` ends it.")


def _running_or_exit(as_json: bool) -> dict[str, Any]:
    paths = Paths.from_env(os.environ)
    run = lifecycle.running(paths) or (read_json(paths.run) if ours(paths, "router") else None)
    if run is None:
        if as_json:
            print(json.dumps({"running": False}))
        else:
            err.print("homeport does not run here. `homeport up` starts it.")
        raise typer.Exit(NOT_RUNNING)
    return run


def _get_or_exit(run: dict[str, Any], path: str) -> Any:
    return _ask_or_exit(run, "GET", path)


def _ask_or_exit(run: dict[str, Any], method: str, path: str, body: Any = None) -> Any:
    secret = _secret(Paths.from_env(os.environ))
    try:
        return api_client.ask(run["url"], method, path, body, secret=secret, timeout_s=ACT_S)
    except api_client.Refused as refused:
        err.print(str(refused), style="red", markup=False, highlight=False)
    except (api_client.Away, KeyError) as error:
        err.print(f"The router cannot answer: {error}", style="red", markup=False)
    raise typer.Exit(FAILED)


def _secret(paths: Paths) -> str:
    """What lets this machine's owner in without a key; empty where it cannot be read."""
    try:
        return paths.cluster_token.read_text().strip()
    except OSError:
        return ""


def main() -> None:
    """Console entry point."""
    try:
        app()
    except PermissionError as error:
        err.print(
            f"{error.filename} belongs to somebody else. Run as its owner, or set HOMEPORT_HOME elsewhere."
        )
        sys.exit(FAILED)
    except FileNotFoundError:
        if lifecycle.is_somewhere():
            raise
        err.print("The folder you are in was deleted. `cd` into one that exists, then try again.")
        sys.exit(WRONG)


if __name__ == "__main__":
    main()

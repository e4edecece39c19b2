"""The command `homeport`. Parses, asks router/lifecycle.py and the router, prints.

Exit codes: 0 done, 1 it failed, 2 the input or the config is wrong (nothing was started), 3 homeport does not run.
"""

import json
import os
import secrets
import sys
from collections.abc import Callable
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cluster.join import LOOPBACK
from cluster.paths import Paths
from cluster.ray_cluster import forget_state
from router import (
    advise_commands,
    api_client,
    apply_commands,
    bench_commands,
    connect_commands,
    desk_commands,
    doctor_commands,
    down_all,
    drain_commands,
    fit_commands,
    following,
    join_commands,
    key_commands,
    lifecycle,
    live,
    moves_words,
    pull_commands,
    rotate_commands,
    service_commands,
    top_commands,
    upgrading,
    vllm_commands,
    wake_commands,
    yield_commands,
)
from router.command_line import DEFAULT_CONFIG, FAILED, NOT_RUNNING, WRONG, AllowScript, err, out
from router.head_service import list_of
from router.run_here import known_run
from serving.config import ConfigError

app = typer.Typer(
    name="homeport",
    help="Every session has a home port: one machine, its own hardware, its context waiting there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(key_commands.app, name="key")
app.add_typer(service_commands.app, name="service")
app.add_typer(bench_commands.app, name="bench")
app.command(name="advise")(advise_commands.advise)
app.command(name="apply")(apply_commands.apply)
app.command(name="connect")(connect_commands.connect)
app.command(name="yield")(yield_commands.yield_machine)
app.command(name="desk")(desk_commands.desk)
app.command(name="doctor")(doctor_commands.doctor)
app.command(name="wake")(wake_commands.wake)
app.command(name="cordon")(drain_commands.cordon)
app.command(name="uncordon")(drain_commands.uncordon)
app.command(name="drain")(drain_commands.drain)
app.command(name="fit")(fit_commands.fit)
app.command(name="join")(join_commands.join)
app.command(name="setup-vllm")(vllm_commands.setup_vllm)
app.command(name="join-token")(join_commands.join_token)
app.command(name="pull")(pull_commands.pull)
app.command(name="top")(top_commands.top)
app.command(name="rotate-secrets")(rotate_commands.rotate_secrets)

READY_S = 180.0
ACT_S = 10.0
MOVE_S = 600.0
"""A long context over a slow network."""
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
    allow_script: AllowScript = False,
) -> None:
    """Start Ray on this machine, serve the config's models, and show what happens. Ctrl-C ends everything."""
    Path.cwd()  # Ray does not start in a folder that is gone
    paths = Paths.from_env(os.environ)
    following.start_signals()
    lock, takes_over = None, False
    try:
        lock, run = lifecycle.lock_or_run(paths)
        takes_over = lock is None and not following.is_worker(run) and upgrading.is_due(run)
        if lock is None and not takes_over:
            following.say_running(run)
            return
        machines, address = None, None
        if takes_over:
            machines, address = list_of(paths), run.get("address")
        prepared = lifecycle.prepare(
            paths,
            config or DEFAULT_CONFIG,
            os.environ,
            None if address == LOOPBACK else address,
            allow_script=allow_script,
        )
        if lock is None:
            out.print(upgrading.words(run), markup=False)
            lock = upgrading.take_over(paths, _say)
        owner = None if takes_over and detach else os.getpid()
        parent = lifecycle.start(paths, prepared, os.environ, owner, lock, machines, _say)
    except (ConfigError, lifecycle.UpRefused) as refused:
        err.print(str(refused), style="red", markup=False, highlight=False)
        raise typer.Exit(getattr(refused, "code", WRONG)) from None
    except following.Ended:
        if takes_over:
            err.print("The replicas go on as they are. `homeport up` again starts what is above them.")
        elif lock is not None:  # else it is somebody else's homeport that runs here
            following.end(paths)
        raise typer.Exit(130) from None
    raise typer.Exit(following.follow(paths, parent, detach, takes_over))


@app.command()
def down(
    everywhere: Annotated[bool, typer.Option("--all", help="On the head: on all its machines.")] = False,
) -> None:
    """End everything that `homeport up` started here, in whatever state it is. Sessions keep their homes."""
    paths = Paths.from_env(os.environ)
    with following.hurrying() as hurried:
        leaving = _let_all_leave(paths, hurried) if everywhere else None
        left = lifecycle.end_everything(paths, _say, hurried)
    if everywhere:
        forget_state(paths)  # Nodes of it that are gone would be waited for at the next start.
    if left:
        err.print(f"Still there: {', '.join(left)}. Try again, or end them with kill -9.", style="red")
        raise typer.Exit(FAILED)
    out.print("homeport is down.")
    if leaving is not None:
        raise typer.Exit(_tell_left(leaving))


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
    """Give a session another home, with its context where that can go along."""
    run = _running_or_exit(False)
    path = f"/api/sessions/{quote(session, safe='')}/move"
    done = _ask_or_exit(run, "POST", path, {"machine": machine}, timeout_s=MOVE_S)
    for line in moves_words.moved(done):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


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
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="The most of an answer.")] = None,
) -> None:
    """Talk to a model. The conversation has a home of its own; `--session NAME` returns to it."""
    run = _running_or_exit(False)
    url = run["url"]
    chosen = model or _get_or_exit(run, "/v1/models")["data"][0]["id"]
    history = [{"role": "system", "content": system}]
    name = session or f"chat-{secrets.token_hex(4)}"
    if prompt is not None:
        _turn(url, chosen, name, [*history, {"role": "user", "content": prompt}], max_tokens)
        return
    out.print(f"{chosen}, session {name}. An empty line or Ctrl-D ends it.", style="dim")
    while words := _input():
        history.append({"role": "user", "content": words})
        history.append({"role": "assistant", "content": _turn(url, chosen, name, history, max_tokens)})


@app.command()
def version() -> None:
    """Print the version."""
    print(f"homeport {distribution_version('homeport')}")


def _say(word: str) -> None:
    out.print(word, style="dim")


def _let_all_leave(paths: Paths, hurried: Callable[[], bool]) -> down_all.Leaving:
    try:
        leaving = down_all.ask_all(paths, _say, hurried)
    except down_all.NotHere as refused:
        err.print(str(refused), style="red", markup=False, highlight=False)
        raise typer.Exit(WRONG) from None
    for name in leaving.hosts:
        out.print(f"{name} ends its part", style="dim", markup=False)
    return leaving


def _tell_left(leaving: down_all.Leaving) -> int:
    """Name the machines that may still run. Returns the exit code."""
    silent, late = leaving.away, down_all.still_there(leaving)
    if leaving.hosts.keys() - set(late):
        out.print(f"So is it on {', '.join(sorted(leaving.hosts.keys() - set(late)))}.", markup=False)
    if late:
        err.print(
            f"Not yet ended: {', '.join(late)}. `homeport down` there shows why.", style="red", markup=False
        )
    if silent:
        err.print(
            f"Could not be asked: {', '.join(silent)}. Where homeport still runs, end it there with `homeport down`.",
            style="yellow",
            markup=False,
        )
    return FAILED if late or (silent and leaving.was_asked) else 0


def _turn(url: str, model: str, session: str, messages: list[dict[str, str]], max_tokens: int | None) -> str:
    """One streamed answer, printed as it comes. Returns it."""
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    words: list[str] = []
    about: dict[str, Any] = {}
    try:
        named = {"x-session-id": session, **api_client.bearer(_secret())}
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


def _running_or_exit(as_json: bool) -> dict[str, Any]:
    paths = Paths.from_env(os.environ)
    run = known_run(paths)
    if run is None:
        if as_json:
            print(json.dumps({"running": False}))
        else:
            err.print("homeport does not run here. `homeport up` starts it.")
        raise typer.Exit(NOT_RUNNING)
    if following.is_worker(run):
        if as_json:
            print(json.dumps({"running": True, "role": "worker", "steps": run.get("steps")}))
        else:
            err.print(following.worker_line(paths, run), markup=False, highlight=False)
        raise typer.Exit(FAILED)
    return run


def _get_or_exit(run: dict[str, Any], path: str) -> Any:
    return _ask_or_exit(run, "GET", path)


def _ask_or_exit(
    run: dict[str, Any], method: str, path: str, body: Any = None, timeout_s: float = ACT_S
) -> Any:
    secret = _secret()
    try:
        return api_client.ask(run["url"], method, path, body, secret=secret, timeout_s=timeout_s)
    except api_client.Refused as refused:
        err.print(str(refused), style="red", markup=False, highlight=False)
    except (api_client.Away, KeyError) as error:
        err.print(f"The router cannot answer: {error}", style="red", markup=False)
    raise typer.Exit(FAILED)


def _secret() -> str:
    return api_client.owners_secret(Paths.from_env(os.environ))


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

"""`homeport connect [CLIENT]`: what to set in a client, or set it with `--write`; `--check` says what arrives.

Exit codes as in `router.cli`. What is set says connect.py, what arrived means arrival.py.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer
from rich.table import Table

from cluster.paths import Paths
from router import api_client
from router.arrival import Arrival, advice, client_of, words
from router.command_line import DEFAULT_CONFIG, FAILED, INTERRUPTED, PLAIN, WRONG, err, out, refuse, say
from router.connect import CLIENTS, Client
from router.connect_files import BEFORE, file_of, put
from router.connect_settings import KEY_VARIABLE, Reach
from router.connect_text import block
from router.following import is_worker, worker_line
from router.identity import LONGEST_NAME, is_name
from router.jsonc import Unclear
from router.run_here import known_run, run_here
from serving.config import ConfigError, load

OTHERS = 0o077
CONTEXT = 8192
"""For a model of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a homeport: where it is, its models with their contexts, and whether it has keys."""

    url: str
    models: dict[str, int]
    needs_key: bool


def connect(  # noqa: PLR0913, PLR0917 - one for each option
    client: Annotated[
        str | None, typer.Argument(help="Which client; none: list those that are known.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Of the router, as the client reaches it: http://HOST:PORT")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model; else the first.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="All that the client does runs on this machine.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="All that the client does is this one session.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help=f"A file with the key that it gets; else {KEY_VARIABLE}."),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Put it into the client's own settings.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Say what arrives from clients, as it comes.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="With --check: end after the first request.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", envvar="HOMEPORT_CONFIG", help="Read if none runs here.")
    ] = None,
) -> None:
    """Print the settings of a client that make it use homeport, or --write them; --check what arrives from it."""
    known = None if client is None else _client(client)
    key = _key(key_file)
    if check:
        _check(url, key, known, once)
        return
    if known is None:
        if write or once:
            refuse("Name the client: `homeport connect` alone lists those that are known.", WRONG)
        _list()
        return
    found = _known(url, key, config)
    name = _model(model, found)
    context = found.models.get(name.partition("@")[0], CONTEXT)
    held = key if found.needs_key else None
    reach = Reach(
        found.url, name, context, found.needs_key, held, _part("machine", machine), _part("session", session)
    )
    if write:
        _write(known, reach)
    else:
        _print(known, reach)


def _client(name: str) -> Client:
    if (known := CLIENTS.get(name.lower())) is None:
        refuse(f"There is no client {name!r} here; known: {', '.join(CLIENTS)}.", WRONG)
    return known


def _key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        refuse(
            f"{file} cannot be read as a key: {getattr(error, 'strerror', None) or 'it is no text'}.", WRONG
        )
    if not key or not key.isprintable() or " " in key:
        refuse(f"{file} holds no key; `homeport key new NAME > FILE` makes one.", WRONG)
    return key


def _list() -> None:
    table = Table("client", "", "its conversations are told apart by", box=None)
    for client in CLIENTS.values():
        table.add_row(client.name, client.title, client.naming)
    out.print(table)
    say("`homeport connect CLIENT` prints what to set, with --write it is put in place.")


def _known(url: str | None, key: str | None, config: Path | None) -> Known:
    """Of the router at that address, else the one that runs here, else as the config says."""
    paths = Paths.from_env(os.environ)
    secret = key or ""
    if url is None:
        run = known_run(paths)
        if run is not None and is_worker(run):
            refuse(f"{worker_line(paths, run)} Name the router of that head with --url.", WRONG)
        if run is None or "url" not in run:
            return _configured(config or DEFAULT_CONFIG)
        url, secret = str(run["url"]), key or api_client.owners_secret(paths)
    url = _base(url)
    try:
        try:
            fleet, needs_key = api_client.get(url, "/api/fleet"), False
        except api_client.Refused:
            needs_key = True
            fleet = api_client.get(url, "/api/fleet", secret=secret)
    except api_client.Refused:
        err.print(f"{url} tells its models to nobody without a key; name one with --model.", **PLAIN)
        return Known(url, {}, True)
    except api_client.Away as away:
        refuse(f"{away}. Is homeport running there, and is the address right?", FAILED)
    models = {str(each["name"]): int(each.get("context") or CONTEXT) for each in fleet.get("models", ())}
    return Known(url, models, needs_key)


def _base(url: str) -> str:
    """The router's address without a path."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or not url.isprintable() or " " in url:
        refuse(f"--url must be http://HOST:PORT, not {url}", WRONG)
    return url.rstrip("/").removesuffix("/v1")


def _part(what: str, name: str | None) -> str | None:
    """A name that stands in a path: one that is empty or all dots would vanish from it."""
    if name is not None and not (is_name(name) and name.strip(".")):
        refuse(f"--{what} must be 1 to {LONGEST_NAME} printable characters, not all of them dots.", WRONG)
    return name


def _configured(config: Path) -> Known:
    try:
        wanted = load(config)
    except (ConfigError, OSError) as error:
        refuse(f"homeport does not run here, and its config cannot be used: {error}", WRONG)
    err.print(f"homeport does not run here; this is what {config} says.", **PLAIN)
    models = {spec.name: spec.context for spec in wanted.models}
    return Known(wanted.router.url, models, wanted.router.keys_file is not None)


def _model(model: str | None, known: Known) -> str:
    if model is None:
        model = next(iter(known.models), None)
        if model is None:
            refuse("No model is known; name one with --model.", WRONG)
    elif known.models and model.partition("@")[0] not in known.models:
        refuse(f"There is no model {model!r}; known: {', '.join(known.models)}.", WRONG)
    return model


def _print(client: Client, reach: Reach) -> None:
    file = file_of(client, os.environ, Path.home())
    if file is not None:
        err.print(f"Into {file} (`homeport connect {client.name} --write` does it):", **PLAIN)
    print(block(client.form, client.settings(reach)))
    _notes(client, reach)


def _notes(client: Client, reach: Reach) -> None:
    naming = "the base URL: all that it does is this session" if reach.session else client.naming
    for note in (f"Its conversations are told apart by {naming}.", *client.notes):
        err.print(note, **PLAIN)
    err.print(f"`homeport connect {client.name} --check` says what arrives from it.", **PLAIN)


def _write(client: Client, reach: Reach) -> None:
    file, settings = file_of(client, os.environ, Path.home()), client.settings(reach)
    if file is None:
        print(block(client.form, settings))
        refuse(f"{client.title} has no file that could be written here: put this where it belongs.", WRONG)
    if settings.holds_key and reach.needs_key and reach.key is None:
        refuse(f"Its key goes into {file}: give it with --key-file FILE, or in {KEY_VARIABLE}.", WRONG)
    try:
        is_new = put(file, client.form, settings)
    except Unclear as why:
        print(block(client.form, settings))
        refuse(f"{file} is left as it is: {why}. Put the lines above into it by hand.", WRONG)
    except OSError as error:
        remedy = " Run as its owner." if isinstance(error, PermissionError) else ""
        refuse(f"{error.filename or file} cannot be written: {error.strerror}.{remedy}", FAILED)
    if not is_new:
        say(f"{file}: already so.")
        return
    kept = file.resolve().with_name(file.resolve().name + BEFORE)
    say(f"{file} is written." + (f" What it was before: {kept}" if kept.exists() else ""))
    if settings.holds_key and reach.key and file.stat().st_mode & OTHERS:
        err.print(
            f"Other people of this machine may read it, and the key in it: `chmod 600 {file}`.", **PLAIN
        )
    _notes(client, reach)


def _check(url: str | None, key: str | None, client: Client | None, once: bool) -> None:
    """Follow what arrives, until Ctrl-C or `once`."""
    if url is None:
        url, key = str(run_here()["url"]), key or api_client.owners_secret(Paths.from_env(os.environ))
    try:
        for seen in _arrivals(_base(url), key or ""):
            found = client_of(seen.agent, client)
            say(words(seen))
            for sentence in advice(seen, found):
                say(f"  {sentence}")
            if once:
                return
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except api_client.Refused as refused:
        refuse(str(refused), FAILED)
    except api_client.Away as away:
        refuse(f"The router does not answer: {away}", FAILED)
    refuse("The router has ended.", FAILED)


def _arrivals(url: str, secret: str) -> Iterator[Arrival]:
    begun = False
    for data in _heard(url, secret):
        if data is not None:
            yield msgspec.convert(data, Arrival)
        elif not begun:
            begun = True
            err.print(f"Watching {url}: now say something in the client. Ctrl-C ends this.", **PLAIN)


def _heard(url: str, secret: str) -> Iterator[Any]:
    return api_client.events(url, "/api/arrivals", secret)

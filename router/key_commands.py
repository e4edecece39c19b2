"""`homeport key new | list | remove`: who may use homeport. A running router notices within a second.

Exit codes as in `router.cli`: 0 done, 1 it failed, 2 the input is wrong (nothing was changed).
"""

import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from router import key_store
from router.command_line import DEFAULT_CONFIG, FAILED, PLAIN, WRONG, err, out
from serving.config import keys_file_of
from serving.config_keys import KeySection, lets_anybody_in, read_keys, refusal
from serving.config_problems import ConfigError

app = typer.Typer(help="Who may use homeport.", no_args_is_help=True, pretty_exceptions_enable=False)

OPTIONS = {"requests_per_minute": "per-minute"}

ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="HOMEPORT_CONFIG", help="Its router.keys_file is the file."),
]
File = Annotated[Path | None, typer.Option("--file", help="The keys file, whatever the config says.")]


@app.command()
def new(  # noqa: PLR0913, PLR0917 - one for each option
    name: Annotated[str, typer.Argument(help="Whose key it is. Sessions belong to this name.")],
    role: Annotated[str, typer.Option(help="use, admin or metrics.")] = "use",
    models: Annotated[str | None, typer.Option(help="Only these models: a,b")] = None,
    zones: Annotated[str | None, typer.Option(help="Only these zones: a,b")] = None,
    machines: Annotated[str | None, typer.Option(help="Only these machines: a,b")] = None,
    places: Annotated[int | None, typer.Option(help="Turns at once on one replica.")] = None,
    per_minute: Annotated[int | None, typer.Option(help="Requests a minute.")] = None,
    weight: Annotated[float, typer.Option(help="Its share of the line, beside other keys.")] = 1.0,
    config: ConfigPath = None,
    file: File = None,
) -> None:
    """Make a key, print it once, and keep its SHA-256."""
    secret = "hp-" + secrets.token_urlsafe(32)
    said = {
        "name": name,
        "sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "role": role,
        "models": _listed(models),
        "zones": _listed(zones),
        "machines": _listed(machines),
        "places": places,
        "requests_per_minute": per_minute,
        "weight": weight,
    }
    with _told():
        path, note = _keys_file(config, file)
        key_store.add(path, _section(said))
    print(secret)
    err.print(f"This is the key of {name}, shown this once; only its SHA-256 is in {path}.", **PLAIN)
    err.print(note, **PLAIN)


@app.command(name="list")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
    config: ConfigPath = None,
    file: File = None,
) -> None:
    """The keys, by name: what each may do."""
    with _told():
        path, _ = _keys_file(config, file)
        keys = read_keys(path)
    if as_json:
        print(json.dumps({"file": str(path), "keys": [key.model_dump(exclude={"sha256"}) for key in keys]}))
        return
    if not keys:
        err.print(f"{path} has no keys. `homeport key new NAME` makes one.", **PLAIN)
        return
    table = Table("name", "role", "models", "zones", "machines", "places", "a minute", "weight", box=None)
    for key in keys:
        limits = [", ".join(names) if names else "all" for names in (key.models, key.zones, key.machines)]
        numbers = [str(number or "") for number in (key.places, key.requests_per_minute)]
        table.add_row(key.name, key.role, *limits, *numbers, f"{key.weight:g}")
    out.print(table)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Whose key.")], config: ConfigPath = None, file: File = None
) -> None:
    """Take a key away. Its sessions keep their homes: a new key of that name finds them again."""
    with _told():
        path, note = _keys_file(config, file)
        left = key_store.remove(path, name)
    out.print(f"The key of {name} is removed from {path}.", **PLAIN)
    err.print(note, **PLAIN)
    if not lets_anybody_in(left):
        err.print("No key is left that may use homeport: nobody can come in now.", style="yellow", **PLAIN)


def _section(said: dict[str, Any]) -> KeySection:
    """The entry, or an exit that says which option is wrong."""
    try:
        return KeySection.model_validate({name: value for name, value in said.items() if value is not None})
    except ValidationError as error:
        for found in error.errors():
            field = str(found["loc"][0])
            option = "NAME" if field == "name" else f"--{OPTIONS.get(field, field)}"
            err.print(f"{option}: {'. '.join(refusal(found))}.", style="red", **PLAIN)
        raise typer.Exit(WRONG) from None


def _keys_file(config: Path | None, file: Path | None) -> tuple[Path, str]:
    """Where the keys stand, and what must be done for a change there to hold. Raises ConfigError."""
    if file is not None:
        return file.absolute(), "It holds where router.keys_file of the config names this file."
    path = (config or DEFAULT_CONFIG).absolute()
    if (named := keys_file_of(path)) is not None:
        return named, "A running router notices within a second."
    beside = path.with_name("keys.yaml")
    return beside, f"Add `keys_file: {beside.name}` below `router:` in {path}, then run `homeport up`."


def _listed(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong, in a sentence and an exit code."""
    try:
        yield
    except key_store.NameTaken as taken:
        words = f"There is a key of {taken} already. Choose another name, or run `homeport key remove {taken}` first."
        code = WRONG
    except key_store.NoSuchKey as missing:
        words, code = f"There is no key of {missing}. `homeport key list` shows those there are.", WRONG
    except ConfigError as refused:
        words, code = str(refused), WRONG
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename is None:
            raise  # there is no current folder: `cli` tells that for all commands
        words = f"{error.filename or 'The keys file'} cannot be changed: {error.strerror}. Run as its owner."
        code = FAILED
    else:
        return
    err.print(words, style="red", **PLAIN)
    raise typer.Exit(code)

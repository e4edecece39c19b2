"""What all commands of `homeport` have in common: their exit codes, the config that they take, how they print."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from router import live

FAILED, WRONG, NOT_RUNNING, INTERRUPTED = 1, 2, 3, 130
"""It failed; the input or the config is wrong (nothing was changed); homeport does not run; Ctrl-C. 0: it is done."""
DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "homeport.yaml"
"""Where neither `--config` nor HOMEPORT_CONFIG says."""
PLAIN: Mapping[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
"""For rich's `print`: the text as it is."""

AllowScript = Annotated[
    bool, typer.Option("--allow-script", help="Serve `engine: script` too: answers out of a file, for tests.")
]

out = live.console()
err = live.console(stderr=True)


def say(line: str) -> None:
    """Print one line of the command's answer."""
    out.print(line, **PLAIN)


def refuse(message: str, code: int) -> NoReturn:
    """Print why not, and how to mend it, on stderr; end with `code`."""
    err.print(message, style="red", **PLAIN)
    raise typer.Exit(code)

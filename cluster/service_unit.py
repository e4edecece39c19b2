"""The unit with which the user's systemd starts homeport at boot: its text, where it lies, and that `down` stops it.

Which command it runs, the caller says: router/service_commands.py.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.paths import Paths
from cluster.processes import RUN, mark

UNIT = "homeport.service"
ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "configs" / "systemd" / UNIT
ANSWER_S = 20.0
BY_HAND = (
    f"systemctl --user daemon-reload && systemctl --user enable --now {UNIT}",
    "loginctl enable-linger",
)
"""What starts it now and at every boot, and lets it run while nobody is logged in."""


def unit_path(env: Mapping[str, str]) -> Path:
    folder = env.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "systemd" / "user" / UNIT


def unit_text(paths: Paths, role: str, command: Sequence[str]) -> str:
    """The unit for this state folder."""
    environment = [
        f"Environment={_quoted(f'{name}={value}')}" for name, value in mark(paths, "parent").items()
    ]
    filled = {
        "@ROLE@": role.replace("%", "%%"),
        "@DOCS@": str(ROOT / "docs" / "operations.md").replace("%", "%%").replace(" ", "%%20"),
        "@FOLDER@": str(ROOT).replace("%", "%%"),
        "@COMMAND@": " ".join(_quoted(word).replace("$", "$$") for word in command),
        "@ENVIRONMENT@": "\n".join(environment),
    }
    text = TEMPLATE.read_text()
    for sign, value in filled.items():
        text = text.replace(sign, value)
    return text


def belongs(paths: Paths, env: Mapping[str, str]) -> bool:
    """Whether the unit that is installed is for this state folder."""
    try:
        return f"{RUN}={paths.run_id}" in unit_path(env).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def systemctl(*words: str, env: Mapping[str, str]) -> bool:
    """Whether the user's systemd did it; False where there is none."""
    if shutil.which("systemctl", path=env.get("PATH")) is None:
        return False
    try:
        done = subprocess.run(
            ["systemctl", "--user", *words],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def stop(paths: Paths) -> None:
    """Let systemd not start anew what is being ended; at the next boot it does."""
    if belongs(paths, os.environ):
        systemctl("stop", UNIT, env=os.environ)


def _quoted(word: str) -> str:
    """As systemd reads a word: quoted, its % and \\ doubled."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'

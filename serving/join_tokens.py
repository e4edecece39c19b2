"""The tokens with which machines join. Kept on the head's disk: those of `homeport join-token` as digests, each for one
machine and ten minutes; that of a machine list as it is, since it is carried to the machines."""

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster import machine_tls
from cluster.clocks import uptime
from cluster.paths import Paths, read_json, stamp, write_private
from cluster.proof import key_of, machine_token
from cluster.record import boot_id

Verdict = Literal["right", "token_unknown", "token_used", "token_expired"]

TOKEN_S = 600.0
"""How long a token can be used."""
REMEMBERED_S = 86400.0
"""How long after that it is told apart from one that never was."""

REMEDY = "`homeport join-token` on the head makes a new one."
WORDS: dict[Verdict, str] = {
    "token_unknown": f"The head does not know this token. {REMEDY}",
    "token_used": f"Another machine has joined with this token; each is for one machine. {REMEDY}",
    "token_expired": f"This token has expired: it could be used for {TOKEN_S / 60:.0f} minutes. {REMEDY}",
}


@dataclass(frozen=True, slots=True)
class Now:
    """Seconds since the epoch, and since this boot of the machine. A token lasts by the second clock, which nobody
    sets, for as long as that is the boot that it was made in."""

    wall: float
    boot: str = ""
    up: float = 0.0

    @classmethod
    def here(cls) -> "Now":
        return cls(time.time(), boot_id(), uptime())


def make(paths: Paths, now: Now, speaks_tls: bool = False) -> str:
    """A new token, for one machine and ten minutes; it names the CA of a head that speaks TLS. Raises OSError."""
    token = machine_tls.pinned(paths, f"hpj-{secrets.token_urlsafe(24)}", speaks_tls=speaks_tls, now=now.wall)
    with _locked(paths.join_tokens):
        kept = [each for each in _read(paths.join_tokens) if each["until"] + REMEMBERED_S > now.wall]
        until = {"until": now.wall + TOKEN_S, "boot": now.boot, "until_up": now.up + TOKEN_S}
        _write(paths.join_tokens, [*kept, {"sha256": key_of(token), **until, "used_by": None}])
    return token


class JoinTokens:
    """What the head checks a token against. Its file is read anew each time: `make` runs in another process.

    Tokens never come here: who asks shows that it knows one of which the head has the key (cluster/proof.py).
    """

    def __init__(self, paths: Paths, secret: str) -> None:
        """`secret`: the cluster's."""
        self._path = paths.join_tokens
        self._lasts = (paths.join_token, paths.former_token)
        self._secret = secret

    def own(self, machine: str) -> str:
        """The key of the token that the machine of this id has since it joined."""
        return key_of(machine_token(self._secret, machine))

    def find(self, is_it: Callable[[str], bool], machine: str) -> str | None:
        """The key for which `is_it` says yes; None where that is the key of no token that this machine may have."""
        kept = [str(each["sha256"]) for each in _read(self._path)]
        return next((key for key in (*self._lasting(machine), *kept) if is_it(key)), None)

    def check(self, key: str | None, machine: str, now: Now) -> Verdict:
        """Whether the machine of this id may join with the token of this key."""
        if key in self._lasting(machine):
            return "right"
        return _verdict(_find(_read(self._path), key), machine, now)

    def take(self, key: str | None, machine: str, now: Now) -> Verdict:
        """As `check`; a token for one machine is this one's from then on. Raises OSError."""
        if key in self._lasting(machine):
            return "right"
        with _locked(self._path):
            kept = _read(self._path)
            found = _find(kept, key)
            verdict = _verdict(found, machine, now)
            if found is not None and verdict == "right" and found["used_by"] is None:
                found["used_by"] = machine
                _write(self._path, kept)
            return verdict

    def _lasting(self, machine: str) -> list[str]:
        """The keys of this machine's own token, of a machine list's, and of the one that all had in former builds."""
        keys = [self.own(machine)]
        for file in self._lasts:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if token := file.read_text().strip():
                    keys.append(key_of(token))
        return keys


class OpenTokens:
    """Whether a machine could join now with a token of `make`. Cheap: the file is read when it has changed."""

    def __init__(self, paths: Paths) -> None:
        self._path = paths.join_tokens
        self._seen: tuple[int, int] | None = None
        self._kept: list[dict[str, Any]] = []

    def any(self, now: Now) -> bool:
        if (now_seen := stamp(self._path)) != self._seen:
            self._seen, self._kept = now_seen, _read(self._path)
        return is_any_open(self._kept, now)


def is_any_open(kept: list[dict[str, Any]], now: Now) -> bool:
    """Whether a token is neither used nor expired."""
    return any(each["used_by"] is None and _lasts(each, now) for each in kept)


def _verdict(found: dict[str, Any] | None, machine: str, now: Now) -> Verdict:
    """The machine that used it may ask again while it is valid: an answer can get lost."""
    if found is None:
        return "token_unknown"
    if found["used_by"] not in (None, machine):
        return "token_used"
    return "right" if _lasts(found, now) else "token_expired"


def _lasts(found: dict[str, Any], now: Now) -> bool:
    is_same_boot = bool(now.boot) and found["boot"] == now.boot
    return bool(now.up < found["until_up"] if is_same_boot else now.wall < found["until"])


def _find(kept: list[dict[str, Any]], key: str | None) -> dict[str, Any] | None:
    return next((each for each in kept if each["sha256"] == key), None)


def _read(path: Path) -> list[dict[str, Any]]:
    """Those that are kept; none where the file is missing or broken."""
    try:
        return [
            {
                "sha256": str(each["sha256"]),
                "until": float(each["until"]),
                "boot": str(each.get("boot", "")),
                "until_up": float(each.get("until_up", 0.0)),
                "used_by": each.get("used_by"),
            }
            for each in (read_json(path) or {})["tokens"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _write(path: Path, kept: list[dict[str, Any]]) -> None:
    write_private(path, json.dumps({"tokens": kept}, indent=1))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)

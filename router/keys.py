"""Who may do what: finding a request's key, its role, its limits. Pure.

Reads no file (see `key_file`) and knows no sessions: whose a session is, its scope says (see `identity.key_scope`).
"""

import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from router.errors import ApiError
from router.identity import ANONYMOUS

Role = Literal["use", "admin", "metrics"]

WINDOW_S = 60.0
OPEN_TO_ALL = frozenset({"/", "/health", "/ready", "/openapi.json"})
WEB = ("/board/", "/desk/")
"""What begins so are pages without anything of the cluster in them (router/web.py)."""
FOR_METRICS = frozenset({"/metrics", "/sd"})
MACHINES = "/api/machines/"
ARRIVALS = "/api/arrivals"
SECRET_HEADERS = frozenset({b"authorization", b"x-api-key"})


@dataclass(frozen=True, slots=True)
class Key:
    """What somebody may do. None: not limited."""

    name: str
    role: Role = "use"
    models: frozenset[str] | None = None
    zones: frozenset[str] | None = None
    machines: frozenset[str] | None = None
    places: int | None = None
    """How many turns of it may run on one replica at once."""
    requests_per_minute: int | None = None
    """How many turns and questions about sessions it may send in a minute."""
    weight: float = 1.0
    """Its share of the line, beside other keys."""

    def allows_model(self, name: str) -> bool:
        return self.models is None or name in self.models

    def allows_machine(self, name: str) -> bool:
        return self.machines is None or name in self.machines

    def allows_zone(self, name: str) -> bool:
        return self.zones is None or name in self.zones

    def allows_place(self, machine: str, zone: str | None) -> bool:
        """`zone`: the machine's; None where that is not known, which no key with zones may use."""
        return self.allows_machine(machine) and (
            self.zones is None or (zone is not None and self.allows_zone(zone))
        )


LOCAL = Key(ANONYMOUS, "admin")
"""Everybody, while there are no keys; and the owner's own programs on this machine."""

Entry = tuple[Key, bytes]
"""A key, and the SHA-256 of its secret."""
ALL: Entry = LOCAL, b""
"""Everybody's, while there are no keys: of no secret."""


@dataclass(slots=True)
class Pace:
    """When the last requests of one key were: at most `per_minute` in any minute."""

    per_minute: int
    times: deque[float] = field(default_factory=deque)

    def take(self, now: float) -> float | None:
        """Count a request, or say in how many seconds there is room for it. A refused one does not count."""
        while self.times and now - self.times[0] >= WINDOW_S:
            self.times.popleft()
        earlier = self.times[-self.per_minute] if len(self.times) >= self.per_minute else None
        wait_s = room_in(earlier, now)
        if wait_s is None:
            self.times.append(now)
        return wait_s


def room_in(earlier: float | None, now: float) -> float | None:
    """In how many seconds there is room for one more request; None: now. `earlier`: when that request was after which
    there were as many as a minute may have; None: there were not so many yet."""
    return None if earlier is None or now - earlier >= WINDOW_S else WINDOW_S - (now - earlier)


class KeyRing:
    """The keys there are, and how fast each asks. With `required=False` and no keys everybody is LOCAL."""

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        required: bool = True,
        own: bytes | None = None,
        new_pace: Callable[[str, int], Pace] = lambda name, per_minute: Pace(per_minute),
    ) -> None:
        """`own`: the SHA-256 of a secret that only this machine's owner can read; who has it is LOCAL. `new_pace`: of a
        key of this name, which may ask so often a minute."""
        self.required = required
        self._new_pace = new_pace
        self._own: tuple[Entry, ...] = () if own is None else ((LOCAL, own),)
        self._entries: tuple[Entry, ...] = ()
        self._paces: dict[str, Pace] = {}
        self.replace(entries)

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(key for key, _ in self._entries)

    def replace(self, entries: Iterable[Entry]) -> None:
        """From now on these keys, and no others. Who stays does not get a new minute by it."""
        self._entries = tuple(entries)
        before, self._paces = self._paces, {}
        for key in self.keys:
            if (limit := key.requests_per_minute) is not None:
                pace = before.get(key.name) or self._new_pace(key.name, limit)
                pace.per_minute = limit
                self._paces[key.name] = pace

    def find(self, secret: bytes | None) -> Key | None:
        """Whose this is; None for nobody's."""
        found = self.entry(secret)
        return None if found is None else found[0]

    def entry(self, secret: bytes | None) -> Entry | None:
        """As `find`, with the secret's digest. Takes as long for each key as for one that does not exist."""
        if not self.required:
            return ALL
        if secret is None:
            return None
        given = hashlib.sha256(secret).digest()
        found = None
        for key, digest in (*self._own, *self._entries):
            if hmac.compare_digest(digest, given):
                found = key, digest
        return found

    def holds(self, entry: Entry) -> bool:
        """Whether somebody who came in with this secret still may, and as much."""
        return not self.required or entry in (*self._own, *self._entries)

    def allow(self, key: Key, now: float) -> float | None:
        """Count a request of this key; where it asks too often, how many seconds it must wait instead."""
        pace = self._paces.get(key.name)
        return None if pace is None or key is LOCAL else pace.take(now)


def secret_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """What lower-case headers show as a key: `Authorization: Bearer …`, else `x-api-key`."""
    shown = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, secret = value.strip().partition(b" ")
            if scheme.lower() == b"bearer" and secret.strip():
                return secret.strip()
        elif name == b"x-api-key" and shown is None and value.strip():
            shown = value.strip()
    return shown


def guard(ring: KeyRing, key: Key | None, method: str, path: str) -> ApiError | None:
    """Why this may not be asked with this key (None: by nobody known); None where it may.

    Whose sessions are seen and ended is another matter: an admin's all, else the key's own.
    """
    if path in OPEN_TO_ALL or path.startswith(WEB) or not ring.required:
        return None
    if key is None:
        return invalid_key()
    if key.role == "admin":
        return None
    if path in FOR_METRICS:
        return None if key.role == "metrics" else _wrong_role("reads no metrics", "metrics or admin")
    if key.role == "metrics":
        return _wrong_role("reads metrics and nothing else", "use or admin")
    if path.startswith(ARRIVALS):
        return _wrong_role("may not see what arrives", "admin")
    if path.startswith(MACHINES) and method not in ("GET", "HEAD"):
        return _wrong_role("may not act on machines", "admin")
    return None


def refuse_model(key: Key, model: str) -> ApiError | None:
    """403 where the key is not for this model."""
    return None if key.allows_model(model) else _limited("model", model, key.models)


def refuse_machine(key: Key, machine: str) -> ApiError | None:
    """403 where the key is not for this machine."""
    return None if key.allows_machine(machine) else _limited("machine", machine, key.machines)


def refuse_zone(key: Key, zone: str) -> ApiError | None:
    """403 where the key is not for this zone."""
    return None if key.allows_zone(zone) else _limited("zone", zone, key.zones)


def too_many(key: Key, wait_s: float) -> ApiError:
    message = (
        f"This key may ask {key.requests_per_minute} times a minute and has done so. "
        f"Ask again in {max(1, round(wait_s))} s."
    )
    return ApiError(429, "rate_limit_exceeded", message, retry_after_s=wait_s)


def invalid_key() -> ApiError:
    """The same for a key that is missing and one that is wrong, so that neither tells of the other."""
    message = (
        "This router needs a key that it knows: send it as `Authorization: Bearer KEY`. "
        "Whoever runs homeport makes one with `homeport key new NAME`."
    )
    return ApiError(401, "invalid_api_key", message)


def _wrong_role(what: str, role: str) -> ApiError:
    return ApiError(403, "key_not_allowed", f"This key {what}: use a key whose role is {role}.", final=True)


def _limited(kind: str, name: str, allowed: frozenset[str] | None) -> ApiError:
    """`name` came from the client, or is one of ours; what is not allowed is not listed."""
    known = ", ".join(sorted(allowed or ()))
    message = (
        f"This key is not for the {kind} {name!r}, only for: {known}. "
        f"Name one of these, or have {kind}s of the key changed in the keys file."
    )
    param = "model" if kind == "model" else None
    return ApiError(403, "key_not_allowed", message, param, final=True)

"""Which session is this? Pure.

Names a session from what a request says of itself. Looks nothing up, and knows neither pins nor machines: what a
guess may continue, and what a public id stands for, the hosts and the controller know.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import msgspec

from router.likeness import Message, history
from serving.pins import is_public_id

Source = Literal["header", "path", "body", "guess", "none"]

OWN_HEADER = b"x-homeport-session"
CLAUDE_SESSION = b"x-claude-code-session-id"
CLAUDE_AGENT = b"x-claude-code-agent-id"
SESSION_HEADERS = (
    OWN_HEADER,
    b"x-session-id",
    b"session_id",
    b"session-id",
    b"x-session-affinity",
    CLAUDE_SESSION,
    b"thread-id",
    b"x-openwebui-chat-id",
    b"x-conversation-id",
    b"x-litellm-session-id",
    b"x-litellm-trace-id",
)
"""The headers' part of the ladder: the first of these that a request carries names its session."""
OWN_PARENT = b"x-homeport-parent"
PARENT_HEADERS = (OWN_PARENT, b"x-parent-session-id")
NEVER_EMPTY = frozenset({OWN_HEADER, OWN_PARENT, b"x-session-id"})
"""An empty one of these is a mistake; any other is a client's template that had nothing to fill in."""

LONGEST_NAME = 512
"""Characters in a session's name."""
NAME_BYTES = 4 * LONGEST_NAME
DIGESTS_KEPT = 4096
"""What is kept of the sessions that came last: naming one anew takes ten times as long as finding it."""

ANONYMOUS = "local"
"""The name of the one key that everybody has while there are no keys."""

_OLD_USER_ID = re.compile(r"user_.*_session_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


class BadName(ValueError):
    """The request names its session in a way that cannot be used. The message says how to name it."""

    def __init__(self, where: str, message: str, code: str = "invalid_session_name") -> None:
        super().__init__(message)
        self.where = where
        """The header or the body's field at fault, or `path` or `model`."""
        self.code = code

    @property
    def header(self) -> str:
        return self.where


@dataclass(frozen=True, slots=True)
class IdentityOptions:
    """What the config adds to the ladder, each in its order."""

    headers: tuple[str, ...] = ()
    """Tried after the known headers."""
    fields: tuple[str, ...] = ()
    """Fields of the body, tried after the known ones: `user` and `safety_identifier` count only if they are here,
    since for most clients they are a person."""


class BodyClues(msgspec.Struct, frozen=True, gc=False):
    """The fields of a body that may name its session, of any type, and what is said in its messages."""

    prompt_cache_key: object = None
    conversation: object = None
    metadata: object = None
    session_id: object = None
    others: Mapping[str, object] = msgspec.field(default_factory=dict)
    """Fields that count only if the config names them."""
    messages: Callable[[], Sequence[Message]] = tuple
    """Called only if nothing names the session, since reading them takes time. Empty for what is no chat."""


class Clues(msgspec.Struct, frozen=True, gc=False):
    """All that one request says of its session."""

    headers: Sequence[tuple[bytes, bytes]] = ()
    """With lower-case names, those of `naming_headers` at least, in order."""
    path_session: str | None = None
    path_machine: str | None = None
    model_machine: str | None = None
    """Of a model that is named MODEL@MACHINE."""
    zone: str | None = None
    body: BodyClues = BodyClues()


class Identity(msgspec.Struct, frozen=True, gc=False):
    """The session of a request, or what it takes to find it. Digests are 64 hex digits."""

    source: Source
    session: str | None = None
    """Digest of the session that was named; None for a guess, for nobody, and for a public id."""
    public: str | None = None
    """The public id that a client sent back: to be looked up, and to be found among this key's sessions only."""
    history: str | None = None
    """Of a guess: digest of all that the request says so far."""
    continues: tuple[str, ...] = ()
    """Of a guess: digests of the histories that this request would continue, longest first."""
    machine: str | None = None
    zone: str | None = None
    """A machine and a zone that the request names are part of the session's key."""
    parent: str | None = None
    """Digest of the session that this one was begun by."""
    parent_public: str | None = None
    """The same, where the parent is named by its public id."""


NOBODY = Identity("none")

_Session = tuple[str | None, str | None]
"""Its digest, or its public id."""
NO_SESSION: _Session = (None, None)
DEFAULT = IdentityOptions()


@dataclass(frozen=True, slots=True)
class _Named:
    """A name and the rung of the ladder that gave it; `claude` where Claude Code's sub-agents share it."""

    source: Source
    name: str
    claude: bool = False


def identify(clues: Clues, key_name: str = ANONYMOUS, options: IdentityOptions = DEFAULT) -> Identity:
    """Whose turn a request is. The ladder, first match wins: path, headers, body, then a guess from its messages.

    Raises BadName (a 400) for a name that is not 1 to 512 printable characters, for a header that is there
    twice with different values, and for two machines in one request. Fields of the body that hold something
    else than a text name nothing.
    """
    machine, headers = _machine(clues), tuple(clues.headers)
    fits = all(len(value) <= NAME_BYTES for _, value in headers)
    in_head = _named_in_head if fits else _named_in_head.__wrapped__  # what is kept is bounded
    who = in_head(headers, clues.path_session, machine, clues.zone, key_name, options)
    return _in_rest(clues, machine, key_name, options) if who is None else who


@lru_cache(DIGESTS_KEPT)
def _named_in_head(
    headers: tuple[tuple[bytes, bytes], ...],
    path_session: str | None,
    machine: str | None,
    zone: str | None,
    key_name: str,
    options: IdentityOptions,
) -> Identity | None:
    """Whose turn it is by its path and its headers, before which nothing else counts."""
    by_name = _by_name(headers)
    named = next(_in_head(path_session, by_name, options), None)
    return None if named is None else _named(named, by_name, machine, zone, key_name)


def _in_rest(clues: Clues, machine: str | None, key_name: str, options: IdentityOptions) -> Identity:
    headers, zone = _by_name(clues.headers), clues.zone
    if (named := next(_in_body(clues.body, options), None)) is not None:
        return _named(named, headers, machine, zone, key_name)
    scope = scope_of(machine, zone)
    parent = _begun_by(_parent(headers), key_name, scope, NO_SESSION)
    said = history(clues.body.messages(), bytes.fromhex(digest(key_name, scope, "\nhistory")))
    if said is None:
        return Identity("none", None, None, None, (), machine, zone, *parent)
    return Identity("guess", None, None, said.whole, said.continues, machine, zone, *parent)


def _named(
    named: _Named,
    headers: Mapping[bytes, Sequence[bytes]],
    machine: str | None,
    zone: str | None,
    key_name: str,
) -> Identity:
    scope = scope_of(machine, zone)
    session, public = _told(named.name, key_name, scope)
    parent = _parent(headers)
    agent = _header(headers, CLAUDE_AGENT) if named.claude and public is None else None
    if agent is not None:
        parent = parent or named.name
        session = digest(key_name, scope, f"{named.name}\n{agent}")
    begun_by = _begun_by(parent, key_name, scope, (session, public))
    return Identity(named.source, session, public, None, (), machine, zone, *begun_by)


def _begun_by(parent: str | None, key_name: str, scope: str, child: _Session) -> _Session:
    """The session of that name, unless it is this one."""
    told = NO_SESSION if parent is None else _told(parent, key_name, scope)
    return NO_SESSION if told == child else told


def naming_headers(options: IdentityOptions = DEFAULT) -> frozenset[bytes]:
    """The lower-case headers that `identify` reads."""
    return frozenset((*session_headers(options), *PARENT_HEADERS, CLAUDE_AGENT))


def guessed_session(key_name: str, scope: str, nonce: str) -> str:
    """The digest of a guessed session that nobody knows yet. No name that a client sends gives the same."""
    return digest(key_name, scope, f"\nguess {nonce}")


def scope_of(machine: str | None, zone: str | None) -> str:
    """What scopes a session beside its key: empty without a machine and a zone, else different for every pair."""
    return "" if machine is None and zone is None else json.dumps([machine, zone])


@lru_cache(DIGESTS_KEPT)
def digest(key_name: str, scope: str, name: str) -> str:
    """SHA-256 (hex) of the three parts, each behind its length: no two triples share the hashed bytes."""
    parts = (part.encode() for part in (key_name, scope, name))
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()


def key_scope(key_name: str = ANONYMOUS) -> str:
    """Who may share what hosts have evaluated: 64 hex digits, the same for all requests of one key."""
    return digest(key_name, "", "")


@lru_cache(DIGESTS_KEPT)
def public_id(digest_key: bytes, session: str) -> str:
    """What a session is called towards people: `hp_` and 24 hex digits, the same while the key is."""
    return "hp_" + hmac.digest(digest_key, session.encode(), "sha256")[:12].hex()


def _machine(clues: Clues) -> str | None:
    path, model = clues.path_machine, clues.model_machine
    if len(path or "") > LONGEST_NAME or len(model or "") > LONGEST_NAME:
        raise BadName(
            "model", "No machine has a name of that length; name one of /api/fleet.", "invalid_value"
        )
    if path is not None and model is not None and path != model:
        raise BadName(
            "model",
            f"The path names the machine {path!r} and the model names {model!r}; name one of them.",
            "machine_conflict",
        )
    return model if path is None else path


def _told(name: str, key_name: str, scope: str) -> _Session:
    """A name as a session's digest, or as the public id that it is."""
    return (None, name) if is_public_id(name) else (digest(key_name, scope, name), None)


def _in_head(
    path_session: str | None, headers: Mapping[bytes, Sequence[bytes]], options: IdentityOptions
) -> Iterator[_Named]:
    """Every name in a request's path and headers, best first; read no further than the first."""
    if path_session is not None:
        yield _Named("path", _checked("path", "the path", path_session))
    for header in session_headers(options):
        if name := _header(headers, header):
            yield _Named("header", name, claude=header == CLAUDE_SESSION)


def _in_body(body: BodyClues, options: IdentityOptions) -> Iterator[_Named]:
    conversation, metadata = body.conversation, body.metadata
    about = metadata if isinstance(metadata, dict) else {}
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    for where, value in (("prompt_cache_key", body.prompt_cache_key), ("conversation", conversation)):
        if name := _text(where, value):
            yield _Named("body", name)
    if name := _usable(about.get("session_id")):
        yield _Named("body", name)
    if name := _usable(_claude_session(about.get("user_id"))):
        yield _Named("body", name, claude=True)
    for where, value in (("session_id", body.session_id), *((f, body.others.get(f)) for f in options.fields)):
        if name := _text(where, value):
            yield _Named("body", name)


def _claude_session(user_id: object) -> object:
    """The session in what Claude Code sends as `metadata.user_id`: JSON, or in older versions a text of ids."""
    if not isinstance(user_id, str):
        return None
    if old := _OLD_USER_ID.fullmatch(user_id):
        return old.group(1)
    if not user_id.startswith("{"):
        return None
    try:
        told = json.loads(user_id)
    except (ValueError, RecursionError):
        return None
    return told.get("session_id") if isinstance(told, dict) else None


def _parent(headers: Mapping[bytes, Sequence[bytes]]) -> str | None:
    for header in PARENT_HEADERS:
        if name := _header(headers, header):
            return name
    return None


@lru_cache(4)
def session_headers(options: IdentityOptions) -> tuple[bytes, ...]:
    """Those that may name a session, best first, in lower case."""
    return (*SESSION_HEADERS, *(header.lower().encode() for header in options.headers))


def _by_name(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    values: dict[bytes, list[bytes]] = {}
    for header, value in headers:
        values.setdefault(header, []).append(value)
    return values


def _header(headers: Mapping[bytes, Sequence[bytes]], header: bytes) -> str | None:
    """The name in a header; None where it is not there, or is empty and may be."""
    values = headers.get(header)
    if values is None:
        return None
    text = header.decode()
    if len(set(values)) > 1:
        raise BadName(text, f"The header {text} is there twice with different values; send it once.")
    if not values[0] and header not in NEVER_EMPTY:
        return None
    try:
        name = values[0].decode()
    except UnicodeDecodeError:
        name = ""
    return _checked(text, f"the header {text}", name)


def _text(field_name: str, value: object) -> str | None:
    return _checked(field_name, f"`{field_name}`", value) if isinstance(value, str) and value else None


def _usable(value: object) -> str | None:
    """As `_text`, for metadata: it belongs to the client, so that nothing in it may fail a request."""
    return value if isinstance(value, str) and is_name(value) else None


def _checked(where: str, place: str, name: str) -> str:
    if not is_name(name):
        raise BadName(
            where,
            f"The session's name in {place} must be 1 to {LONGEST_NAME} printable characters; "
            "send a shorter or plainer name.",
        )
    return name


def is_name(name: str) -> bool:
    return 1 <= len(name) <= LONGEST_NAME and name.isprintable()

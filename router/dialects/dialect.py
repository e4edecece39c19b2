"""What a dialect is: requests become chat completions, and what a host answers to those becomes the dialect's. Pure.

A dialect knows neither hosts nor sessions: it leaves the fields that name a session where `router.identity` reads them
in a chat's body, and is told under which public id its answer goes out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from router.errors import RawHeaders

BROKE_OFF: Mapping[str, Any] = {
    "message": "The answer broke off before its end. Send the request again.",
    "type": "server_error",
    "param": None,
    "code": "host_lost",
}
"""The error where a host's stream ends before its answer does."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What an answer is called by."""

    unique: str
    """32 hex digits, the same for no two requests."""
    now_s: int
    """When the request came, in seconds since the epoch."""
    elapsed_s: Callable[[], float] | None = None
    """How long ago that is, for a dialect that says how long an answer took; None: nobody measures."""


class Stream(Protocol):
    """One streamed answer on its way: a state machine over the bytes of a stream of chat completions."""

    def take(self, part: bytes) -> bytes:
        """What comes of these bytes, which may end anywhere; `b""` where nothing does yet. Comments are kept as
        comments, where the dialect has some; an error event becomes the dialect's and is the last that comes out."""

    def end(self) -> bytes:
        """What is still to be said once the host's stream has ended, whether it was whole or not."""


class Asked(Protocol):
    """One request, translated."""

    @property
    def body(self) -> bytes:
        """What a host is asked: a body in OpenAI's shape."""

    def whole(self, answer: bytes, session: str | None) -> bytes:
        """A host's whole answer (status 200), said in the dialect. `session`: its public id."""

    def stream(self, session: str | None) -> Stream:
        """Called once, before anything of the answer comes."""


class Dialect(Protocol):
    """How one path is spoken on."""

    stream_type: bytes
    """The content type of a streamed answer."""

    def read(self, body: bytes, naming: Naming) -> Asked:
        """Raises `router.errors.Rejected` for what cannot be asked, with the field at fault in the dialect's terms."""

    def error(self, status: int, error: Mapping[str, Any], request_id: str) -> tuple[RawHeaders, bytes]:
        """An error (`message`, `type`, `code`, `param` and more) as the whole answer: further headers, and the body."""


def renamed(error: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
    """A host's error about a chat in the words of the request that it was made of. `names`: what a field is called in
    chats, and there."""
    param = error.get("param")
    for theirs, ours in names:
        if isinstance(param, str) and (param == theirs or param.startswith((f"{theirs}.", f"{theirs}["))):
            message = str(error["message"]).replace(param, ours)
            return {**error, "param": ours, "message": message.replace(f"'{theirs}'", f"'{ours}'")}
    return error

"""What every request of a replica needs, and how a body becomes a request.

Decides nothing about sessions, and makes no prompt.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec

from cluster.clocks import DayClock
from serving.asgi import Problem
from serving.departures import Departures
from serving.engine import Engine
from serving.journal import Journal, JournalFull
from serving.model import ModelSpec
from serving.request_fields import BadRequest
from serving.turns import Turns


class _Named(Protocol):
    @property
    def model(self) -> str | None: ...


Named = TypeVar("Named", bound=_Named)


@dataclass(frozen=True, slots=True)
class Desk:
    """One replica's."""

    machine: str
    replica: str
    model: ModelSpec
    engine: Engine
    turns: Turns
    journal: Journal
    writer: Executor
    """The journal's one writing thread."""
    awake: Callable[[], Awaitable[None]]
    """Returns once the engine is loaded, which it begins to do if it was unloaded. Raises Problem if it cannot be."""
    created_s: Callable[[], float] = field(default_factory=lambda: DayClock().latest)
    """When a pin that is made now is made: later than all before it, however the clock is set."""
    departures: Departures = field(default_factory=Departures)

    def place_headers(self) -> tuple[tuple[str, str], ...]:
        return (("x-homeport-machine", self.machine), ("x-homeport-replica", self.replica))

    def read(self, body: bytes, reader: Callable[[object], Named], wanted: str) -> Named:
        """What a body asks for. `reader` may raise BadRequest; `wanted` says in a few words what a body holds.
        Raises Problem. Any thread."""
        decoded = decode(body, wanted)
        try:
            request = reader(decoded)
        except BadRequest as bad:
            raise Problem(400, bad.message, bad.code, bad.param) from None
        if request.model not in (None, self.model.name):
            message = f"this replica serves the model '{self.model.name}'; ask the router for others"
            raise Problem(404, message, "model_not_found", "model")
        return request


@contextmanager
def journal_problems() -> Iterator[None]:
    """Raises Problem for what the journal raises in the block."""
    try:
        yield
    except JournalFull as error:
        raise Problem(507, str(error), "state_folder_full") from None
    except sqlite3.Error as error:
        raise Problem(500, f"the journal could not be written: {error}", "journal_failed") from None


def decode(body: bytes, wanted: str) -> object:
    """The body's JSON. Raises Problem."""
    if not body.strip():
        raise Problem(400, f"the body is empty; send a JSON object with {wanted}", "empty_body")
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body cannot be read as JSON: {error}", "invalid_json") from None

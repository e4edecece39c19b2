"""What the workers of one router ask each other: who waits there, to let go of a session that was ended or of a
response that was cancelled, where a
conversation without a name was held. Each answers on a socket below the state folder, which only its user may enter.

A worker that does not answer within a second is left out. Decides nothing; homes and pins are not asked for here, since
the controller and the hosts know them.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, assert_never

import msgspec

from router.arrival import Arrival, Arrived
from router.turn import Turn
from router.workers import Worker

ANSWER_S = 1.0
T = TypeVar("T")

log = logging.getLogger("homeport.router")


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A turn of a session that has not ended, at whichever worker."""

    session: str
    model: str
    key: str
    """The name of whose it is."""
    source: str
    """What named the session."""
    replica: str
    """The last one that it was sent to or waits for; empty: none."""
    family: str | None


class AskTurns(msgspec.Struct, frozen=True, tag="turns"):
    """Answered by a list of OpenTurn."""


class TellEnded(msgspec.Struct, frozen=True, tag="ended"):
    """This session was ended. Answered by null once that is so there too."""

    session: str
    model: str


class AskZones(msgspec.Struct, frozen=True, tag="zones"):
    """In which zones these histories were said. Answered by an object: the zone of each that is known there."""

    said: tuple[str, ...]


class CancelResponse(msgspec.Struct, frozen=True, tag="cancel"):
    """This response of this key is to be made no further. Answered by a list of how it stands, where it is made."""

    response: str
    key: str


class AskArrivals(msgspec.Struct, frozen=True, tag="arrivals"):
    """What came there after that number. Answered by an Arrived."""

    since: int


Question = AskTurns | TellEnded | AskZones | CancelResponse | AskArrivals


@dataclass(frozen=True, slots=True)
class Answers:
    """What a worker has its siblings told."""

    turns: Callable[[], list[OpenTurn]]
    ended: Callable[[str, str], None]
    zones: Callable[[Sequence[str]], dict[str, str]]
    cancel: Callable[[str, str], Mapping[str, Any] | None]
    arrivals: Callable[[int], Arrived]

    def to(self, question: Question) -> object:
        match question:
            case AskTurns():
                return self.turns()
            case TellEnded(session=session, model=model):
                self.ended(session, model)
                return None
            case AskZones(said=said):
                return self.zones(said)
            case CancelResponse(response=response, key=key):
                return [told for told in (self.cancel(response, key),) if told is not None]
            case AskArrivals(since=since):
                return self.arrivals(since)
            case _:
                assert_never(question)


class Siblings:
    """The other workers, for one of them. A router of one process has none, and is told of none."""

    def __init__(self, worker: Worker | None = None) -> None:
        self._folder = Path() if worker is None else worker.folder
        self._others = [] if worker is None else worker.others

    async def turns(self) -> list[OpenTurn]:
        """The open turns of all others."""
        return [turn for turns in await self._ask_all(AskTurns(), list[OpenTurn]) for turn in turns]

    async def ended(self, session: str, model: str) -> None:
        """The session was ended: on return those that answer have let go of it."""
        await self._ask_all(TellEnded(session, model), type(None))

    async def zones(self, said: Sequence[str]) -> dict[str, str]:
        """Of these histories those that others remember, and in which zone each was said."""
        known = await self._ask_all(AskZones(tuple(said)), dict[str, str])
        return {history: zone for zones in known for history, zone in zones.items()}

    async def cancel(self, response: str, key_name: str) -> dict[str, Any] | None:
        """How it stands at the worker that was making it; None: none did."""
        told = await self._ask_all(CancelResponse(response, key_name), list[dict[str, Any]])
        return next((each for found in told for each in found), None)

    @property
    def count(self) -> int:
        return len(self._others)

    async def arrived(self, since: dict[int, int]) -> list[Arrival]:
        """What came to the others after these numbers, by worker; they are put to the latest. From one without a number
        nothing yet: it begins to tell."""

        async def of(number: int) -> list[Arrival]:
            told = await self._ask(number, AskArrivals(since.get(number, -1)), Arrived)
            for each in told:
                since[number] = each.last
            return [arrival for each in told for arrival in each.arrivals]

        told = await asyncio.gather(*map(of, self._others))
        return [arrival for arrivals in told for arrival in arrivals]

    async def _ask_all(self, question: Question, kind: type[T]) -> list[T]:
        if not self._others:
            return []
        told = await asyncio.gather(*(self._ask(number, question, kind) for number in self._others))
        return [answer for answers in told for answer in answers]

    async def _ask(self, number: int, question: Question, kind: type[T]) -> list[T]:
        """Its answer; nothing where it gives none."""
        try:
            async with asyncio.timeout(ANSWER_S):
                with _socket_path(self._folder, number) as path:
                    reader, writer = await asyncio.open_unix_connection(path)
                try:
                    writer.write(msgspec.json.encode(question))
                    writer.write_eof()
                    return [msgspec.json.decode(await reader.read(), type=kind)]
                finally:
                    writer.close()
        except (OSError, msgspec.DecodeError) as error:
            log.info("worker %d does not answer and is left out: %r", number, error)
            return []


@asynccontextmanager
async def answering(worker: Worker | None, answers: Answers) -> AsyncIterator[None]:
    """The siblings of this worker are answered for as long as the block lasts. Raises OSError."""
    if worker is None:
        yield
        return
    server = await asyncio.start_unix_server(partial(_answer, answers), sock=_bound(worker))
    try:
        yield
    finally:
        server.close()
        (worker.folder / _name(worker.number)).unlink(missing_ok=True)


def open_turns(turns: Iterable[Turn]) -> list[OpenTurn]:
    """Those of them that are a session's."""
    return [
        OpenTurn(
            turn.ask.session, turn.ask.model, turn.key.name, turn.source, turn.replica or "", turn.ask.family
        )
        for turn in turns
        if turn.ask is not None and turn.ask.session is not None
    ]


def _bound(worker: Worker) -> socket.socket:
    (worker.folder / _name(worker.number)).unlink(missing_ok=True)  # of a process that was killed
    made = socket.socket(socket.AF_UNIX)
    try:
        with _socket_path(worker.folder, worker.number) as path:
            made.bind(path)
    except OSError:
        made.close()
        raise
    return made


async def _answer(answers: Answers, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        question = msgspec.json.decode(await reader.read(), type=Question)
        writer.write(msgspec.json.encode(answers.to(question)))
        await writer.drain()
    except (OSError, msgspec.DecodeError) as error:
        log.info("a worker cannot be answered: %s", error)
    finally:
        writer.close()


@contextmanager
def _socket_path(folder: Path, number: int) -> Iterator[str]:
    """A name of its socket that is short wherever the folder is: the kernel allows 107 bytes."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{opened}/{_name(number)}"
    finally:
        os.close(opened)


def _name(number: int) -> str:
    return f"router-{number}.sock"

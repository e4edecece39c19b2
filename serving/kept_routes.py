"""What a replica's sessions said, over HTTP, for the router; and the end of it with their pins.

| | |
| --- | --- |
| `PUT /kept/{session}/{id}` | keep a record; the session's home must be here |
| `GET /kept/{session}/{id}` | that record; with `?chain` it and those before it, oldest first |
| `DELETE /kept/{session}/{id}` | `{"deleted": …}` |
| `GET /kept/{session}` | its records; with `?conversation=DIGEST` that conversation's, and whether they are `whole` |
| `PUT /kept/{session}` | records that come before their session, for whoever moves it: dropped if it does not come |
| `DELETE /kept/{session}?conversation=DIGEST` | `{"deleted": N}` |

`{session}` is a digest or a public id. A chain ends where the record before is not here: it may be another session's.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from urllib.parse import parse_qs, unquote

import msgspec

from serving.asgi import Problem, Receive, Send, read_body, send_whole
from serving.desk import Desk, decode
from serving.kept import KeptDamaged, KeptFull, KeptRecords, read_record
from serving.parked_routes import HOLD_S, KEPT_S
from serving.pins import is_session
from serving.trouble import report, say

T = TypeVar("T")


class Moving(msgspec.Struct, frozen=True):
    """What moves with a session."""

    records: tuple[msgspec.Raw, ...]


class KeptRoutes:
    """One replica's. Everything is called on one loop; the store has a thread of its own."""

    def __init__(self, desk: Desk, kept: KeptRecords) -> None:
        self._desk = desk
        self._kept = kept
        self._thread = ThreadPoolExecutor(1, "kept")
        self._come: dict[str, tuple[Sequence[bytes], asyncio.TimerHandle]] = {}
        """By session: what came before it."""

    def begin(self) -> None:
        """Forget what was left of sessions that have no home here."""

        def with_pins() -> None:
            pins = (entry.pin for entry in self._desk.journal.all())
            self._kept.keep_only(pin.session for pin in pins if pin.replica == self._desk.replica)

        self._thread.submit(_reported, with_pins)

    def close(self) -> None:
        """Wait for what is still being written."""
        self._thread.submit(self._kept.close)
        self._thread.shutdown()

    async def answer(self, method: str, path: str, query: bytes, receive: Receive, send: Send) -> None:
        """`path` is below /kept. Raises Problem."""
        name, _, record = path.removeprefix("/kept/").partition("/")
        record = unquote(record)
        asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
        conversation = asked.get("conversation", [""])[0]
        if conversation and not is_session(conversation):
            raise Problem(400, "a conversation is 64 lower-case hex digits here", "invalid_value")
        match method:
            case "PUT" if record:
                body = await read_body(receive)
                await self._put(self._at_home(name), record, body)
                told = b"{}"
            case "PUT":
                await self._take(name, await read_body(receive))
                told = b"{}"
            case "GET" if record:
                told = await self._get(self._at_home(name), record, "chain" in asked)
            case "GET":
                told = await self._records(self._at_home(name), conversation)
            case "DELETE" if record:
                told = _deleted(await self._run(self._kept.remove, self._at_home(name), record))
            case "DELETE" if conversation:
                session = self._at_home(name)
                told = _deleted(await self._run(self._kept.remove_conversation, session, conversation))
            case _:
                raise Problem(405, f"{method} does not work on {path}", "method_not_allowed")
        await send_whole(send, 200, told)

    async def having(self, sessions: Collection[str]) -> set[str]:
        """Those of which anything is kept. Raises Problem."""
        return await self._run(self._kept.having, sessions)

    async def adopt(self, session: str) -> None:
        """The session's home is here from now on, and what came for it is its own."""
        come = self._come.pop(session, None)
        if come is not None:
            come[1].cancel()
            try:
                await self._run(self._kept.take, session, come[0])
            except Problem as problem:  # It can go on without.
                report(problem)

    async def forget(self, sessions: Collection[str]) -> None:
        """They have no home here any more. What is told to be kept after this call is kept."""
        try:
            await self._run(self._kept.forget, sessions)
        except Problem as problem:  # It goes with the next start.
            report(problem)

    def _at_home(self, name: str) -> str:
        """The digest of a session whose home is here."""
        journal, model, replica = self._desk.journal, self._desk.model.name, self._desk.replica
        found = [journal.entry(name, model)] if is_session(name) else journal.by_public(name)
        for entry in found:
            if entry is not None and (entry.pin.model, entry.pin.replica) == (model, replica):
                return entry.pin.session
        raise Problem(404, "this host is not the session's home", "pin_not_found")

    async def _put(self, session: str, record: str, body: bytes) -> None:
        if _id_of(body) != record:
            raise Problem(400, "the body is no record of that id", "invalid_value")
        if len(body) > self._kept.session_bytes:
            message = f"a record is at most {self._kept.session_bytes} bytes long"
            raise Problem(413, message, "record_too_large")
        await self._run(self._kept.put, session, body)

    async def _take(self, session: str, body: bytes) -> None:
        if not is_session(session):
            raise Problem(400, "a session is 64 lower-case hex digits here", "invalid_value")
        decode(body, "records")
        try:
            bodies = [bytes(raw) for raw in msgspec.json.decode(body, type=Moving).records]
        except msgspec.DecodeError as error:
            raise Problem(400, f"these are no records: {error}", "invalid_value") from None
        for each in bodies:
            _id_of(each)
        self._drop(session)
        alarm = asyncio.get_running_loop().call_later(KEPT_S, self._drop, session)
        self._come[session] = bodies, alarm

    def _drop(self, session: str) -> None:
        if (come := self._come.pop(session, None)) is not None:
            come[1].cancel()

    async def _get(self, session: str, record: str, with_chain: bool) -> bytes:
        if with_chain:
            chain = await self._run(self._kept.chain, session, record)
            found = _listed(chain) if chain else None
        else:
            found = await self._run(self._kept.get, session, record)
        if found is None:
            raise Problem(404, "this host has no such record", "record_not_found")
        return found

    async def _records(self, session: str, conversation: str) -> bytes:
        if conversation:
            found, is_cut = await self._run(self._kept.conversation, session, conversation)
            return _listed(found, b"false" if is_cut else b"true")
        told = _listed(await self._run(self._kept.all, session))
        if session in self._desk.departures:
            self._desk.departures.ends_in(session, HOLD_S)
        return told

    async def _run(self, do: Callable[..., T], *args: object) -> T:
        """On the store's thread, after all that it was given before. Raises Problem."""
        running = asyncio.get_running_loop().run_in_executor(self._thread, partial(_again, do, *args))
        try:
            return await running
        except KeptFull as error:
            raise Problem(507, str(error), "state_folder_full") from None
        except (KeptDamaged, sqlite3.Error) as error:
            raise Problem(500, f"what is kept cannot be read or written: {error}", "kept_failed") from None


def _again(do: Callable[..., T], *args: object) -> T:
    """On a fresh file where this one is damaged."""
    try:
        return do(*args)
    except KeptDamaged as error:
        say(str(error))
        return do(*args)


def _reported(do: Callable[[], None]) -> None:
    try:
        _again(do)
    except (KeptFull, KeptDamaged, sqlite3.Error) as error:
        report(error)


def _id_of(body: bytes) -> str:
    try:
        return read_record(body).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is no record: {error}", "invalid_value") from None


def _listed(records: Iterable[bytes], whole: bytes = b"true") -> bytes:
    return b'{"records":[%b],"whole":%b}' % (b",".join(records), whole)


def _deleted(what: bool | int) -> bytes:
    return msgspec.json.encode({"deleted": what})

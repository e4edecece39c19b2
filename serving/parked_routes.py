"""A session's context over HTTP, for whoever moves the session to another host: `GET /parked/{session}` gives it out,
`PUT /parked/{session}` takes it in. Asks nobody and connects nowhere; the order of a move is moving.py's matter.

GET holds the session's turns back until the host learns of its new home with `POST /pins`. If that does not come within
HOLD_S after the last byte, or within HOLD_MOST_S in all, or the connection breaks, the session stays, and its turns go
on. It is refused with 409 `session_busy` while a turn of it is open; with `?turns=end` these end as a host that stops
ends them. 204: there is no context to give, or with `?context=none` none is wanted.

PUT takes a whole file or nothing. What it took belongs to no session until the host learns that the session's home is
here; without that it is dropped after KEPT_S. Refused with 409 `engine_differs` or `session_is_here`, 413 `no_room`,
422 `context_damaged`.
"""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from serving.asgi import ClientGone, Problem, Receive, Send, send_head, send_part, send_whole, until_gone
from serving.desk import Desk
from serving.engine import SavedState
from serving.parked_file import ParkedFileError
from serving.parked_transfer import Incoming, Outgoing
from serving.parking import Parking
from serving.places import place_of

HOLD_S = 5.0
"""How long a session's turns wait for the next step of its move."""
HOLD_MOST_S = 20.0
"""How long they wait in all: a turn that runs after that makes what was given out a little old, and no more."""
PIECE_S = 30.0
"""Who takes no piece for so long is gone."""
KEPT_S = 60.0
"""How long a context that came waits for its session."""
END_S = 5.0
"""How long turns may take to end."""
FINGERPRINT = "x-homeport-fingerprint"
TOKENS = "x-homeport-tokens"


class ParkedRoutes:
    """One replica's."""

    def __init__(self, desk: Desk, parking: Parking) -> None:
        self._desk = desk
        self._parking = parking
        self._come: dict[str, tuple[Incoming, asyncio.TimerHandle]] = {}
        """By session: what came whole and waits for it."""
        self._coming: set[str] = set()

    async def answer(
        self,
        method: str,
        session: str,
        query: bytes,
        headers: Mapping[str, str],
        receive: Receive,
        send: Send,
    ) -> None:
        """`session`: a digest. Raises Problem."""
        match method:
            case "GET":
                await self._give(session, query.split(b"&"), receive, send)
            case "PUT":
                incoming = await self._take(session, headers, receive)
                told = {"tokens": incoming.tokens, "bytes": incoming.size}
                await send_whole(send, 200, msgspec.json.encode(told))
            case _:
                raise Problem(405, f"{method} does not work on /parked", "method_not_allowed")

    async def adopt(self, session: str) -> None:
        """The session's home is here from now on, and what came for it is its context."""
        if (come := self._come.pop(session, None)) is not None:
            incoming, alarm = come
            alarm.cancel()
            await self._parking.adopt(incoming)

    # out

    async def _give(self, session: str, query: Sequence[bytes], receive: Receive, send: Send) -> None:
        desk, departures, ends_turns = self._desk, self._desk.departures, b"turns=end" in query
        pin = desk.journal.get(session, desk.model.name)
        if pin is None or pin.replica != desk.replica:
            raise Problem(404, "this host is not the session's home", "pin_not_found")
        if (not ends_turns and self._is_busy(session)) or not departures.begin(session, HOLD_MOST_S):
            message = "a turn of this session is open, or it is about to move; wait for its end"
            raise Problem(409, message, "session_busy", headers=(("retry-after", "2"),))
        try:
            if ends_turns:
                await self._end_turns(session)
            outgoing = None if b"context=none" in query else await self._outgoing(session)
            if outgoing is None:
                await send_head(send, 204, ((FINGERPRINT, self._parking.fingerprint),))
                await send_part(send, b"", more=False)
            else:
                await self._stream(outgoing, receive, send)
        except BaseException:
            departures.end(session)
            raise
        departures.ends_in(session, HOLD_S)

    def _is_busy(self, session: str) -> bool:
        turns = self._desk.turns
        return turns.is_open(session) or turns.standing_of(session) in ("running", "waiting")

    async def _end_turns(self, session: str) -> None:
        try:
            async with asyncio.timeout(END_S):
                await self._desk.turns.end_turns(session)
        except TimeoutError:
            message = f"its turn did not end within {END_S:g} s; ask again"
            raise Problem(409, message, "session_busy", headers=(("retry-after", "2"),)) from None

    async def _outgoing(self, session: str) -> Outgoing | None:
        state: SavedState | None = None
        place = place_of(self._desk.turns.state, session)
        if place is not None and place.state == "quiet":
            # In the order of asking: if the session gives way meanwhile, its place is emptied after this.
            state = await asyncio.wrap_future(self._desk.engine.save(place.number))
        return await self._parking.outgoing(session, state)

    async def _stream(self, outgoing: Outgoing, receive: Receive, send: Send) -> None:
        """Raises ClientGone."""
        gone = asyncio.Event()
        watching = asyncio.ensure_future(until_gone(receive, gone.set))
        headers = (
            ("content-type", "application/octet-stream"),
            ("content-length", str(outgoing.size)),
            (FINGERPRINT, self._parking.fingerprint),
            (TOKENS, str(outgoing.tokens)),
        )
        try:
            await send_head(send, 200, headers)
            left = outgoing.size
            while left > 0:
                piece = await asyncio.to_thread(next, outgoing.pieces, b"")
                left -= len(piece)
                if gone.is_set() or not piece:  # Or the file is shorter than it was.
                    raise ClientGone
                async with asyncio.timeout(PIECE_S):
                    await send_part(send, piece, more=left > 0)
        except TimeoutError:
            raise ClientGone from None
        finally:
            watching.cancel()

    # in

    async def _take(self, session: str, headers: Mapping[str, str], receive: Receive) -> Incoming:
        size = self._check(session, headers)
        self.forget(session)
        try:
            incoming = self._parking.expect(session, size)
        except OSError as error:
            raise _no_room(f"its state folder cannot be written ({error.strerror})") from None
        if incoming is None:
            raise _no_room(f"a context of {size} bytes does not fit into its `parking.disk`")
        self._coming.add(session)
        try:
            await self._receive(incoming, receive)
        except BaseException:
            self._parking.unexpect(incoming)
            raise
        finally:
            self._coming.discard(session)
        alarm = asyncio.get_running_loop().call_later(KEPT_S, self.forget, session)
        self._come[session] = incoming, alarm
        return incoming

    def forget(self, session: str) -> None:
        """What came for the session goes, unless the session came."""
        if (come := self._come.pop(session, None)) is not None:
            incoming, alarm = come
            alarm.cancel()
            self._parking.unexpect(incoming)

    def _check(self, session: str, headers: Mapping[str, str]) -> int:
        """How many bytes come."""
        pin = self._desk.journal.get(session, self._desk.model.name)
        if (pin is not None and pin.replica == self._desk.replica) or session in self._coming:
            raise Problem(409, "the session is at home here, or comes already", "session_is_here")
        if headers.get(FINGERPRINT) != self._parking.fingerprint:
            message = "another model's file, engine or layout made this context"
            raise Problem(409, message, "engine_differs")
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise Problem(411, "say how long it is with content-length", "length_required")
        return int(length)

    async def _receive(self, incoming: Incoming, receive: Receive) -> None:
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                if body := message.get("body", b""):
                    await asyncio.to_thread(incoming.write, body)
                if not message.get("more_body", False):
                    break
            await asyncio.to_thread(incoming.finish)
        except ParkedFileError as error:
            raise Problem(422, f"this is no context that could be used: {error}", "context_damaged") from None
        except OSError as error:
            raise _no_room(f"its state folder cannot be written ({error.strerror})") from None


def _no_room(why: str) -> Problem:
    return Problem(413, f"this context is not taken: {why}", "no_room")

"""A reply whose conversation is kept: what was said before comes into what its host is asked, and the answer is kept
before its last bytes go out, since whoever reads those may go on at once.

Where it is kept is `kept`'s matter, how it is spoken that of `dialects.responses`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from router.decision import Ask, Send
from router.dialects.dialect import Dialect, Naming
from router.dialects.responses import Asked, Responses
from router.dialects.responses_ids import response_id
from router.dialects.responses_request import previous_not_found
from router.errors import ApiError, RawHeaders
from router.exchange import Exchange
from router.kept import Kept, Record, said_elsewhere
from router.reply import Reply, Spoken, new_naming
from router.request import with_model


class Remembering(Spoken):
    """One response's."""

    __slots__ = (
        *("_home", "_id", "_kept", "_last_words", "_naming", "_recalled", "_response", "_responses"),
        "_stays",
    )

    def __init__(
        self, exchange: Exchange, own: dict[bytes, bytes], dialect: Responses, kept: Kept, naming: Naming
    ) -> None:
        super().__init__(exchange, own, dialect)
        self._responses = dialect
        self._kept = kept
        self._naming = naming
        self._response: Asked | None = None
        self._recalled = False
        self._home: tuple[Ask, str] | None = None
        """Whose turn it is, and the replica that has it."""
        self._id: str | None = None
        """Once a host is asked: no client knows it before."""
        self._stays: str | None = None
        """The zone of what it goes on from, where another session said that."""
        self._last_words: bytes | None = None
        """What goes out once the answer is kept."""

    def read(self, body: bytes) -> bytes:
        self._asked = self._response = self._responses.read(body, self._naming)
        return self._response.opening

    async def zone(self, ask: Ask) -> str | None:
        goes_on = None if self._response is None else self._response.goes_on
        self._stays = None if goes_on is None else await self._kept.zone(goes_on, ask)
        return self._stays

    async def prepare(self, ask: Ask, to: Send) -> bytes | None:
        self._home, session, asked = (ask, to.replica), self._session(), self._response
        self._id = response_id(self._naming, session)
        if asked is not None:
            asked.belongs_to(session)
        if self._recalled or asked is None or asked.goes_on is None:
            return None
        said = await self._kept.history(asked.goes_on, ask, to)
        self._response, body = await asyncio.to_thread(_going_on, asked, said, ask.model)
        self._asked = self._response
        self._recalled = True
        return body

    async def answer(self, headers: RawHeaders, body: bytes) -> None:
        assert self._response is not None
        told = self._response.whole(body, self._session())
        await self._keep()
        Reply.whole(self, 200, headers, told)

    async def close(self, data: bytes) -> None:
        if self._stream is not None:
            self._last_words = self._stream.take(data) + self._stream.end()
            await self._keep()
        self.finish()

    def finish(self, data: bytes = b"") -> None:
        if self._last_words is None:
            super().finish(data)
        else:
            Reply.finish(self, self._last_words)

    def fail(self, error: ApiError) -> str:
        goes_on = None if self._response is None else self._response.goes_on
        if error.code == "session_not_found" and goes_on is not None and goes_on.previous is not None:
            error = previous_not_found(goes_on.previous).error
        if error.code == "machine_conflict" and self._stays is not None:
            error = said_elsewhere()
        return super().fail(error)

    def cancelled(self, response: str) -> Mapping[str, Any] | None:
        if self._response is None or self._id != response or self.ended:
            return None
        return self._response.cancelled()

    async def _keep(self) -> None:
        record = None if self._response is None else self._response.record
        if record is not None and self._home is not None and self._home[0].session is not None:
            await self._kept.put(record, *self._home)


def _going_on(asked: Asked, said: Sequence[Sequence[Record]], model: str) -> tuple[Asked, bytes]:
    """The request with all that was said before, and what its host is asked. All of it may be long."""
    after = asked.after(*said)
    return after, with_model(after.body, model)


def reply_in(exchange: Exchange, own: dict[bytes, bytes], dialect: Dialect | None, kept: Kept) -> Reply:
    """For one request in this dialect; None: as hosts speak."""
    if isinstance(dialect, Responses):
        return Remembering(exchange, own, dialect, kept, new_naming())
    return Reply(exchange, own) if dialect is None else Spoken(exchange, own, dialect)

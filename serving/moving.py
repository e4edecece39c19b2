"""Moves a session from one host to another, with its context where that can go along. For whoever moves sessions: the
router for one that somebody asks for, the controller for all of a machine that is drained. Decides neither which nor
where to. Hosts connect to nobody: what one gives is handed to the other from here, piece by piece.

The steps, of a session whose home is the host A and is to be B (`move`):

1. both say what their contexts are bound to (`GET /state`)
2. A gives the context out and from now on lets the session's turns wait (`GET /parked/{session}`). A session that has
   an open turn is not moved (Busy), unless the turn is to be ended
3. B takes the context in, proves it, has it on disk, and nobody's yet (`PUT /parked/{session}`)
   What is kept of the session's answers by their ids goes the same way (`/kept/{session}`), at most some MiB
4. B learns that the session's home is B, one generation higher (`POST /pins`): the context becomes the session's, then
   the pin is written. From here on the session has moved
5. A learns the same: it answers its waiting turns with 421 and the new home, says what was said last, and drops what it
   has once the session is quiet. If a turn went on there in between, B hears what it said. If A no longer knows the
   session, it was ended meanwhile, and B ends it too

A session always has a home: A's pin holds until B's is on disk. No turn is lost or run twice: a turn runs at A or is
sent to B before it began at A. A context is never more than a beginning of the conversation that it belongs to, so that
one which is a little old costs tokens and nothing else; 2 and 3 may fail, and 4 and 5 go on: evaluated anew, and why.
Answers that were kept and did not go along cannot be gone on from by their ids: the client is told so.

Whoever moves may die at any point:

| after | what becomes of it |
| --- | --- |
| 1, in 2, after 2 | A lets the turns go on: at once where the connection broke, else within 5 s, and 20 s at most |
| in 3, after 3 | the same; B drops what it has, half of it at once, a whole context after 60 s or with its next start |
| 4 | the home is B. A's turns go on there until A hears of it from the controller, which reads journals: in seconds |
| 5 | it has moved |

Not carried: the session's scratch (titles and summaries aside), and the contexts of its children, which are sessions of
their own.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import msgspec

from serving.carrying import fits_of, why_not
from serving.kept_routes import Moving
from serving.parked_routes import FINGERPRINT, TOKENS
from serving.pins import Pin, pin_from_json

ANSWER = aiohttp.ClientTimeout(total=5.0)
CARRY = aiohttp.ClientTimeout(total=None, sock_connect=3.0, sock_read=30.0)
NOTHING = "nothing of it was parked"
FACTS = ("public", "scope", "family", "guessed", "history", "machines")
"""What goes along with a pin to its new home."""

Away = (aiohttp.ClientError, TimeoutError, OSError)


class NotMoved(Exception):
    """The session stays where it is. The message says why."""


class Busy(NotMoved):
    """A turn of it is open, or somebody else moves it."""


class NotThere(NotMoved):
    """Its home does not have it: it was ended, or it has moved."""


class Ended(NotMoved):
    """It was ended while it moved, and is at neither."""


class NoHost(NotMoved):
    """Its new home could not write it down."""


@dataclass(frozen=True, slots=True)
class Carried:
    """The context went along, and so many seconds passed from the first step to the last."""

    tokens: int
    bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "context": "carried",
            "tokens": self.tokens,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Anew:
    """It did not: it is evaluated at the session's next turn."""

    why: str

    def to_json(self) -> dict[str, Any]:
        return {"context": "evaluated anew", "why": self.why}


Context = Carried | Anew


class Mover:
    """`client` has no limits of its own; `bearer` says what opens the host of a base. `clock` is monotonic."""

    def __init__(
        self,
        client: aiohttp.ClientSession,
        bearer: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._bearer = bearer
        self._clock = clock

    async def move(
        self,
        source: str | None,
        target: str,
        made: Pin,
        facts: Mapping[str, Any],
        ends_turns: bool = False,
        needs_context: bool = False,
    ) -> Context:
        """Have `made` be the session's pin. `source`, `target`: `http://address:port` of the hosts of its old home
        (None: it cannot be reached) and its new one. `facts`: what the old home tells of it beside the pin.
        `needs_context`: it stays where a context is there and does not go along. Raises NotMoved, and then its home is
        where it was."""
        began = self._clock()
        told = {**{name: facts.get(name) for name in FACTS}, **made.to_json()}
        context: Context = Anew("its home is away")
        if source is not None:
            context = await self.carry(source, target, made.session, ends_turns)
        if needs_context and isinstance(context, Anew) and context.why != NOTHING:
            raise NotMoved(f"its context does not go along: {context.why}")
        if source is not None:
            await self._carry_kept(source, target, made.session)
        await self.arrive(target, made, told)
        if source is not None:
            # Else it reads it in the journal (the controller), or is told by the controller when it is back.
            last, is_known = None, True
            with suppress(*Away, ValueError):
                last, is_known = await self.leave(source, {**told, "history": None})
            if not is_known:
                with suppress(*Away):
                    await self._end(target, made)
                raise Ended("it was ended while it moved")
            if last not in (None, told["history"]):
                with suppress(*Away, ValueError):
                    await self._learn(target, [{**told, "history": last}])
        if isinstance(context, Carried):
            return replace(context, seconds=self._clock() - began)
        return context

    async def carry(self, source: str, target: str, session: str, ends_turns: bool = False) -> Context:
        """Steps 1 to 3. Raises Busy and NotThere."""
        began = self._clock()
        reason = await self._why_not(source, target)
        url = f"{source}/parked/{session}"
        query = {"turns": "end"} if ends_turns else {}
        query |= {} if reason is None else {"context": "none"}
        try:
            async with self._client.request(
                "GET", url, params=query, headers=self._headers(source), timeout=CARRY
            ) as given:
                if given.status == 409:
                    raise Busy(_told(await given.read()).get("message") or "a turn of it is open")
                if given.status == 404 and _told(await given.read()).get("code") == "pin_not_found":
                    raise NotThere("its home does not have it any more: it was ended, or it has moved")
                if reason is not None:
                    return Anew(reason)
                if given.status == 204:
                    return Anew(NOTHING)
                if given.status != 200:
                    return Anew(f"its home did not give it ({given.status})")
                return await self._hand_over(given, target, session, began)
        except Away as error:
            return Anew(f"its home did not give it ({type(error).__name__})")

    async def arrive(self, target: str, made: Pin, told: Mapping[str, Any]) -> None:
        """Step 4. Raises NotMoved."""
        try:
            winners = [pin for pin, *_ in await self._learn(target, [told])]
        except (*Away, ValueError) as error:
            raise NoHost(f"{made.replica} could not write it down ({error})") from error
        if made not in winners:
            raise Busy("somebody else moved it at the same moment")

    async def leave(self, source: str, told: Mapping[str, Any]) -> tuple[str | None, bool]:
        """Step 5. The digest of what was said last in it there (None if it was not guessed), and whether it is known
        there at all: one that is not was ended meanwhile. Raises one of Away, or ValueError."""
        answers = ((history, is_known) for _, history, is_known in await self._learn(source, [told]))
        return next(answers, (None, True))

    async def _end(self, base: str, pin: Pin) -> None:
        url, query = f"{base}/pins/{pin.session}", {"model": pin.model}
        async with self._client.request(
            "DELETE", url, params=query, headers=self._headers(base), timeout=ANSWER
        ) as answer:
            await answer.read()

    async def _carry_kept(self, source: str, target: str, session: str) -> None:
        """What is kept of what was said there, so that it can be gone on from by an answer's id here."""
        with suppress(*Away, ValueError):
            async with self._client.request(
                "GET", f"{source}/kept/{session}", headers=self._headers(source), timeout=ANSWER
            ) as given:
                records = (
                    msgspec.json.decode(await given.read(), type=Moving) if given.status == 200 else None
                )
            if records is not None and records.records:
                headers = {**self._headers(target), "content-type": "application/json"}
                url, data = f"{target}/kept/{session}", msgspec.json.encode(records)
                async with self._client.request(
                    "PUT", url, data=data, headers=headers, timeout=ANSWER
                ) as taken:
                    await taken.read()

    async def _why_not(self, source: str, target: str) -> str | None:
        try:
            ours, theirs = [fits_of(await self._state(base)) for base in (source, target)]
        except (*Away, ValueError) as error:
            return f"a host did not answer ({type(error).__name__})"
        return why_not(ours, theirs)

    async def _state(self, base: str) -> dict[str, Any]:
        async with self._client.request(
            "GET", f"{base}/state", headers=self._headers(base), timeout=ANSWER
        ) as answer:
            return _read(await answer.read(), answer.status)

    async def _hand_over(
        self, given: aiohttp.ClientResponse, target: str, session: str, began: float
    ) -> Context:
        size = given.headers.get("content-length", "0")
        headers = {
            **self._headers(target),
            "content-type": "application/octet-stream",
            "content-length": size,
            FINGERPRINT: given.headers.get(FINGERPRINT, ""),
        }
        try:
            async with self._client.request(
                "PUT", f"{target}/parked/{session}", data=_pieces(given), headers=headers, timeout=CARRY
            ) as taken:
                if taken.status != 200:
                    said = _told(await taken.read()).get("message")
                    return Anew(str(said or f"its new home did not take it ({taken.status})"))
        except Away as error:
            return Anew(f"it broke off on its way ({type(error).__name__})")
        return Carried(int(given.headers.get(TOKENS, "0")), int(size), self._clock() - began)

    def _headers(self, base: str) -> dict[str, str]:
        return {"authorization": self._bearer(base)}

    async def _learn(
        self, base: str, pins: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Pin, str | None, bool]]:
        """What holds from now on, what was said last in it, and whether it is written down there. Raises one of Away,
        or ValueError."""
        headers = {**self._headers(base), "content-type": "application/json"}
        async with self._client.request(
            "POST",
            f"{base}/pins",
            data=msgspec.json.encode({"pins": list(pins)}),
            headers=headers,
            timeout=ANSWER,
        ) as answer:
            told = _read(await answer.read(), answer.status).get("pins", ())
        return [
            (pin_from_json(pin), pin.get("history"), pin.get("known", True))
            for pin in told
            if isinstance(pin, dict)
        ]


async def _pieces(given: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    while piece := await given.content.readany():
        yield piece


def _read(body: bytes, status: int) -> dict[str, Any]:
    """Raises ValueError."""
    if status != 200:
        raise ValueError(f"it answered {status}")
    return msgspec.json.decode(body, type=dict[str, Any])


def _told(body: bytes) -> dict[str, Any]:
    """What an error's body says."""
    try:
        error = msgspec.json.decode(body, type=dict[str, Any])["error"]
    except (msgspec.DecodeError, KeyError):
        return {}
    return error if isinstance(error, dict) else {}

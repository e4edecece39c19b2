"""What answers are kept by: asked of, and left at, the hosts where their sessions have their homes.

An id says whose session its answer belongs to, so that nothing is remembered here. An answer of another key's is as
one that is not there.
"""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from router.decision import Ask, Send, machine_of
from router.dialects.responses_ids import session_of
from router.dialects.responses_request import GoesOn, previous_not_found
from router.errors import ApiError, Rejected, bad_request, cannot_say
from router.finding import CannotSay, Finder, owns
from router.fleet import Fleet
from router.host_http import NotConnected
from router.identity import public_id
from router.keys import Key
from router.peers import NotYet, Peers, Unreachable
from serving.kept import conversation_digest

Record = Mapping[str, Any]

HISTORY_BYTES_MAX = 64 << 20
"""What a turn may go on from: a chain may lead through many sessions, each of which keeps some."""

log = logging.getLogger("homeport.router")


class _Home(NamedTuple):
    base: str
    zone: str | None


class Kept:
    """One router's."""

    def __init__(
        self, fleet: Fleet, peers: Peers, finder: Finder, digest_key: bytes, keeps: bool = True
    ) -> None:
        """`keeps`: whether anything more is kept."""
        self._keeps = keeps
        self._fleet = fleet
        self._peers = peers
        self._finder = finder
        self._digest_key = digest_key

    async def history(self, goes_on: GoesOn, ask: Ask, to: Send) -> tuple[list[Record], list[Record]]:
        """What was said before, oldest first; and the answers of which the request only names items, up to the first
        that is not there: such a request fails. `to`: where its session has its home. Raises Rejected, also for what
        was said in another zone, and NotConnected where that home cannot be asked."""
        zone = self._fleet.snapshot().zone_of(to.replica.rpartition("/")[0])
        if zone is None:
            raise NotConnected("it is not listed any more")
        if goes_on.previous is not None:
            before = await self._chain(goes_on.previous, ask, to, zone)
        elif goes_on.conversation is not None:
            before = await self._conversation(goes_on.conversation, ask, to)
        else:
            before = []
        there = {record["id"] for record in before}
        named: list[Record] = []
        for response in goes_on.responses:
            if response not in there:
                if (record := await self.get(response, ask.key, zone)) is None:
                    break
                named.append(record)
        return before, named

    async def zone(self, goes_on: GoesOn, ask: Ask) -> str | None:
        """Where a turn has to stay that goes on from what another session said; None: it goes on from its own, or from
        what is not there. Raises Rejected where that cannot be said."""
        for response in (goes_on.previous, *goes_on.responses[:1]):
            public = None if response is None else session_of(response)
            if public != self._own(ask):
                async for home in self._homes(public, ask.key):
                    return home.zone
        return None

    async def put(self, record: Record, ask: Ask, replica: str) -> None:
        """Leave it with the host that answered. An answer that cannot be kept goes out all the same."""
        if not self._keeps:
            return
        base = self._fleet.base(replica)
        try:
            if base is None:
                raise Unreachable("it is not listed any more")
            path, body = f"{ask.session}/{quote(record['id'])}", msgspec.json.encode(record)
            if await self._peers.kept("PUT", base, path, body) is None:
                raise Unreachable("the session was ended, or has moved")
        except Unreachable as error:
            log.warning("an answer of request %s is not kept: %s", ask.request_id, error)

    async def get(self, response: str, key: Key, zone: str | None = None) -> Record | None:
        """`zone`: where it is to be read; None: by its client alone. Raises Rejected where that cannot be said, and for
        what was said in another zone."""
        public = session_of(response)
        async for home in self._homes(public, key, zone):
            if (told := await self._ask("GET", home.base, f"{public}/{quote(response)}")) is not None:
                record: Record = msgspec.json.decode(told)
                return record
        return None

    async def delete(self, response: str, key: Key) -> bool:
        """Whether it was there. Raises Rejected where that cannot be said."""
        public = session_of(response)
        async for home in self._homes(public, key):
            told = await self._ask("DELETE", home.base, f"{public}/{quote(response)}")
            if told is not None and msgspec.json.decode(told)["deleted"]:
                return True
        return False

    async def conversation(self, name: str, session: str, key: Key) -> list[Record]:
        """What was said in it, oldest first. `session`: the public id of what holds it. Raises Rejected where that
        cannot be said."""
        query = {"conversation": conversation_digest(name)}
        async for home in self._homes(session, key):
            if (told := await self._ask("GET", home.base, session, **query)) is not None:
                records, _ = _records(told)
                if records:
                    return records
        return []

    async def forget(self, name: str, session: str, key: Key) -> None:
        """The same, removed."""
        query = {"conversation": conversation_digest(name)}
        async for home in self._homes(session, key):
            await self._ask("DELETE", home.base, session, **query)

    def _own(self, ask: Ask) -> str | None:
        """The public id of the turn's session; None of nobody's."""
        return None if ask.session is None else public_id(self._digest_key, ask.session)

    async def _chain(self, previous: str, ask: Ask, to: Send, zone: str) -> list[Record]:
        """Answers of other sessions may stand in it, and those of the session's other models."""
        found: list[Record] = []
        size = 0
        wanted: str | None = previous
        while wanted is not None:
            told = await self._part(wanted, ask, to, zone)
            if told is None or any(record["id"] == wanted for record in found):
                raise previous_not_found(previous)
            if (size := size + len(told)) > HISTORY_BYTES_MAX:
                raise Rejected(history_too_long())
            found = [*_records(told)[0], *found]
            wanted = found[0]["previous"]
        return found

    async def _part(self, response: str, ask: Ask, to: Send, zone: str) -> bytes | None:
        """The chain of an answer as far as one host has it, as it tells it; None where nobody has the answer."""
        public = session_of(response)
        if public == self._own(ask):
            told = await self._at(to, f"{ask.session}/{quote(response)}", chain="")
            if told is not None:
                return told
        async for home in self._homes(public, ask.key, zone):
            told = await self._ask("GET", home.base, f"{public}/{quote(response)}", chain="")
            if told is not None:
                return told
        return None

    async def _conversation(self, name: str, ask: Ask, to: Send) -> list[Record]:
        """Of one that is new nothing is kept yet."""
        told = await self._at(to, f"{ask.session}", conversation=conversation_digest(name))
        records, is_whole = ([], True) if told is None else _records(told)
        if not is_whole or (self._keeps and not records and to.generation > 1):
            # A home before this one may have had some of it that did not come along; where nothing is kept, none had.
            raise Rejected(conversation_cut(name))
        return records

    async def _at(self, to: Send, path: str, **query: str) -> bytes | None:
        base = self._fleet.base(to.replica)
        if base is None:
            raise NotConnected("it is not listed any more")
        try:
            return await self._peers.kept("GET", base, path, None, **query)
        except Unreachable as error:
            raise NotConnected(str(error), error.refused) from error

    async def _homes(self, public: str | None, key: Key, zone: str | None = None) -> AsyncIterator[_Home]:
        """A session's, one a model; none where it is not this key's. `zone`: what is kept there may go to no other.
        Raises Rejected for a home that is in another zone, or cannot be asked."""
        if public is None:
            return
        for model in sorted(self._fleet.snapshot().models):
            try:
                found = await self._finder.by_public(public, model)
            except (CannotSay, NotYet) as error:
                silent: Sequence[str] = error.replicas if isinstance(error, CannotSay) else ()
                raise Rejected(cannot_say(silent)) from error
            if found is None or not owns(key, found):
                continue
            base = self._fleet.base(found.pin.replica)
            if base is None:
                raise Rejected(cannot_say([found.pin.replica]))
            its = self._fleet.snapshot().zone_of(machine_of(found.pin))
            if zone not in (None, its):
                raise Rejected(said_elsewhere())
            yield _Home(base, its)

    async def _ask(self, method: str, base: str, path: str, **query: str) -> bytes | None:
        try:
            return await self._peers.kept(method, base, path, None, **query)
        except Unreachable as error:
            raise Rejected(home_away()) from error


def said_elsewhere() -> ApiError:
    message = (
        "What this request goes on from was said in another zone than the one where it would be answered, and stays "
        "there. Name no session, machine or zone beside it, or begin another session."
    )
    return bad_request(message, "zone_conflict", "previous_response_id")


def home_away() -> ApiError:
    message = (
        "The machine where this answer is kept cannot be reached. "
        "Ask again in a moment, or send the conversation itself."
    )
    return ApiError(503, "machine_unavailable", message, retry_after_s=5)


def history_too_long() -> ApiError:
    message = (
        "What was said before is more than any model reads. Send a shorter conversation as `input` instead."
    )
    return bad_request(message, "context_length_exceeded", "previous_response_id")


def conversation_cut(name: str) -> ApiError:
    message = (
        f"What was said at the beginning of the conversation '{name[:80]}' is not kept any more. "
        "Begin another one, and send what matters as `input`."
    )
    return bad_request(message, "conversation_not_kept", "conversation")


def _records(told: bytes) -> tuple[list[Record], bool]:
    """And whether they are whole."""
    read = msgspec.json.decode(told, type=dict[str, Any])
    return read["records"], read["whole"]

"""Whose turn is this, and where may it run? From a request's path, headers and body to an Ask.

`identity` names the session; what only the controller and the hosts know of it is asked through `finding`. Chooses
no replica.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from router.clues import body_clues
from router.decision import Ask, machine_of
from router.errors import Rejected, bad_request, session_not_found
from router.finding import Finder, owns
from router.fleet import Fleet
from router.homes import ZONES_REMEMBERED, Homes
from router.identity import (
    NOBODY,
    BadName,
    BodyClues,
    Clues,
    Identity,
    IdentityOptions,
    guessed_session,
    identify,
    public_id,
    scope_of,
)
from router.keys import Key
from router.offers import split_model
from router.request import (
    Address,
    Chat,
    Endpoint,
    Head,
    Wanted,
    Who,
    new_id,
    read_policy,
    read_zone,
)
from serving.model import ModelSpec, WhenLost
from serving.pins import Pin


class Addressed(NamedTuple):
    """What a request says of itself; who it is may still have to be found."""

    ask: Ask
    identity: Identity
    who: Who


class Addressing:
    """One router's."""

    def __init__(
        self,
        fleet: Fleet,
        homes: Homes,
        finder: Finder,
        models: Mapping[str, ModelSpec],
        digest_key: bytes,
        options: IdentityOptions,
        zones_elsewhere: Callable[[Sequence[str]], Awaitable[Mapping[str, str]]],
        new_id: Callable[[], str] = new_id,
    ) -> None:
        """`digest_key` makes public ids. `zones_elsewhere`: as `said_in`, of the router's other workers."""
        self.digest_key = digest_key
        self._fleet = fleet
        self._homes = homes
        self._finder = finder
        self._models = models
        self._options = options
        self._new_id = new_id
        self._zones_elsewhere = zones_elsewhere
        self._zones: OrderedDict[str, str] = OrderedDict()
        """By what a guessed turn said: the zone where it was said."""

    def read(self, endpoint: Endpoint, head: Head, address: Address, wanted: Wanted, key: Key) -> Addressed:
        """Asks nobody. Raises Rejected (400)."""
        model, machine = split_model(wanted.model)
        zone = read_zone(head)
        if endpoint.sessions:
            messages = wanted.messages if isinstance(wanted, Chat) else None
            body = body_clues(wanted, messages)
            clues = Clues(head.named, address.session, address.machine, machine, zone, body)
        else:
            clues = Clues(path_machine=address.machine, model_machine=machine, zone=zone)
        identity = self._identify(clues, key)
        if not endpoint.sessions:
            identity = replace(NOBODY, machine=identity.machine, zone=identity.zone)
        ask = Ask(
            model,
            identity.session,
            head.request_id.decode(),
            identity.machine,
            identity.zone,
            read_policy(head, self._policy(model)),
            key,
            "guessed" if identity.source == "guess" else "named",
            identity.parent,
        )
        return Addressed(ask, identity, self._who(identity, identity.session))

    def held_in(self, conversation: str, head: Head, address: Address, key: Key) -> str:
        """The public id of the session whose turns in that conversation have such a path and headers. Raises
        Rejected (400)."""
        body = BodyClues(conversation=conversation)
        identity = self._identify(
            Clues(head.named, address.session, address.machine, None, read_zone(head), body), key
        )
        return identity.public or public_id(self.digest_key, identity.session or "")

    async def find(self, addressed: Addressed) -> Addressed:
        """The same, with the session that it means. Raises Rejected (404), NotYet, or CannotSay."""
        ask, identity = addressed.ask, addressed.identity
        if identity.parent_public is not None:
            parent = await self._pin(identity.parent_public, ask)
            ask = replace(ask, family=None if parent is None else parent.session)
        if identity.public is not None:
            pin = await self._pin(identity.public, ask)
            if pin is None:
                raise Rejected(session_not_found())
            who = replace(addressed.who, public=identity.public)
            return Addressed(self._beside(pin, ask), identity, who)
        if identity.history is None and ask is addressed.ask:
            return addressed
        if identity.history is None or ask.model not in self._fleet.snapshot().models:
            return addressed._replace(ask=ask)
        found = await self._finder.by_history((identity.history, *identity.continues), ask)
        if found is None or not owns(ask.key, found):
            return await self.part(addressed._replace(ask=ask))
        self._homes.told(found.pin)
        session = found.pin.session
        return Addressed(replace(ask, session=session), identity, self._who(identity, session))

    async def part(self, addressed: Addressed) -> Addressed:
        """A guess that nobody knows, or that went another way than the session it was taken for: one of its own.

        What it goes on from was said in a zone, and it stays there, as far as this router remembers.
        """
        ask, identity = addressed.ask, addressed.identity
        scope = scope_of(identity.machine, identity.zone)
        session = guessed_session(ask.key.name, scope, self._new_id())
        zone = ask.zone
        if zone is None and identity.continues:
            zones = {**await self._zones_elsewhere(identity.continues), **self.said_in(identity.continues)}
            zone = next((zones[said] for said in identity.continues if said in zones), None)
        return Addressed(replace(ask, session=session, zone=zone), identity, self._who(identity, session))

    def said_in(self, histories: Sequence[str]) -> dict[str, str]:
        """The zones of those that were said to this router, as far as it remembers."""
        return {said: self._zones[said] for said in histories if said in self._zones}

    def went(self, addressed: Addressed, machine: str) -> None:
        """A host there has the turn."""
        said = addressed.identity.history
        zone = None if said is None else self._fleet.snapshot().zone_of(machine)
        if said is None or zone is None:
            return
        self._zones[said] = zone
        self._zones.move_to_end(said)
        while len(self._zones) > ZONES_REMEMBERED:
            self._zones.popitem(last=False)

    def _identify(self, clues: Clues, key: Key) -> Identity:
        try:
            return identify(clues, key.name, self._options)
        except BadName as error:
            raise Rejected(bad_request(str(error), error.code, error.where)) from error

    def _beside(self, pin: Pin, ask: Ask) -> Ask:
        """The same ask, of that pin's session. Where that has no home yet for the model that is asked, it gets one in
        the zone of the home that it has."""
        zone = ask.zone
        if zone is ask.machine is None and pin.model != ask.model:
            zone = self._fleet.snapshot().zone_of(machine_of(pin))
        return replace(ask, session=pin.session, zone=zone)

    async def _pin(self, public: str, ask: Ask) -> Pin | None:
        """Of the session of this key that has that public id: for this model, else for another."""
        others = sorted(name for name in self._fleet.snapshot().models if name != ask.model)
        for model in (ask.model, *others):
            found = await self._finder.by_public(public, model)
            if found is not None:
                return found.pin if owns(ask.key, found) else None
        return None

    def _who(self, identity: Identity, session: str | None) -> Who:
        public = "" if session is None else public_id(self.digest_key, session)
        return Who(public, identity.history or "", identity.continues)

    def _policy(self, model: str) -> WhenLost:
        spec = self._models.get(model)
        return "wait" if spec is None else spec.when_lost

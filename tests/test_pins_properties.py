"""Pins converge: three routers that remember homes, three hosts with journals, an index that is wiped, links that
break and heal.

The journals are in memory and do what journal.py does; index and merge are the real ones. A turn goes as a router sends
it: what it remembers, else a claim, else what hosts say; a 421 teaches it.
"""

from dataclasses import dataclass, field
from functools import reduce

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.pin_index import Candidate, Lost, PinIndex
from serving.pins import Pin, merge

HOSTS = ("attic/0", "barn/0", "cellar/0")
ROUTERS = (0, 1, 2)
SESSIONS = tuple(f"{number:064x}" for number in range(3))
MODEL = "m"
INDEX = "index"
TRIES = 8


@dataclass
class Host:
    """One replica with its journal."""

    name: str
    pins: dict[str, Pin] = field(default_factory=dict)
    news: list[Pin] = field(default_factory=list)
    removed: int = 0

    def insert(self, pin: Pin) -> Pin:
        found = self.pins.get(pin.session)
        winner = pin if found is None else merge(found, pin)
        if winner is not found:
            self.pins[pin.session] = winner
            self.news.append(winner)
        return winner

    def remove(self, session: str) -> None:
        self.removed += self.pins.pop(session, None) is not None

    def turn(self, session: str, generation: int, now: float) -> Pin | None:
        """The pin of a 421; None: the turn was served, and the pin is on disk."""
        known = self.pins.get(session)
        if known is not None and known.generation > generation:
            return known
        if known is not None and known.generation == generation:
            return None if known.replica == self.name else known
        winner = self.insert(Pin(session, MODEL, self.name, generation, now))
        assert winner.replica == self.name
        return None

    def learn(self, pin: Pin) -> None:
        if pin.session in self.pins or pin.replica == self.name:
            self.insert(pin)


class Pins(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hosts = {name: Host(name) for name in HOSTS}
        self.homes: dict[int, dict[str, Pin]] = {router: {} for router in ROUTERS}
        self.index = PinIndex()
        self.read: dict[str, tuple[int, int]] = {}
        """How far the index has read each journal: removed, and news."""
        self.broken: set[tuple[object, object]] = set()
        self.acknowledged: dict[str, int] = {}
        """The highest generation that a client was told of."""
        self.ended_at: dict[str, float] = {}
        """When a session was ended of which every host that had it heard, or is to hear."""
        self.now = 0.0

    def linked(self, one: object, other: object) -> bool:
        return (one, other) not in self.broken

    def reachable(self, router: int) -> list[str]:
        return [name for name in HOSTS if self.linked(router, name)]

    # what goes wrong, and right again

    @rule(who=st.sampled_from([*ROUTERS, INDEX]), host=st.sampled_from(HOSTS))
    def a_link_to_a_host_breaks(self, who: object, host: str) -> None:
        self.broken.add((who, host))

    @rule(router=st.sampled_from(ROUTERS))
    def a_router_loses_the_controller(self, router: int) -> None:
        self.broken.add((router, INDEX))

    @rule(host=st.sampled_from(HOSTS))
    def a_machine_drops_out(self, host: str) -> None:
        self.drop_out(host)

    @rule()
    def the_index_is_wiped(self) -> None:
        self.index = PinIndex()
        self.read = {}
        self.ended_at.clear()

    @rule()
    def the_index_begins_anew_from_what_was_kept(self) -> None:
        self.index_begins_anew()

    def index_begins_anew(self) -> None:
        kept, self.index = self.index, PinIndex()
        for journal, pins in kept.journals.items():
            self.index.confirm(pins.values(), journal)
        for journal, pins in kept.ends.items():
            for pin in pins.values():
                self.index.is_to_hear(journal, pin)
        self.read = {}

    @rule(router=st.sampled_from(ROUTERS))
    def a_router_forgets(self, router: int) -> None:
        self.homes[router].clear()

    @rule(host=st.sampled_from(HOSTS))
    def the_index_reads_a_journal(self, host: str) -> None:
        if self.linked(INDEX, host):
            self.learn(host)

    @rule(host=st.sampled_from(HOSTS))
    def a_machine_is_back(self, host: str) -> None:
        """Its journal is read; it is not told anything yet."""
        self.come_back(host)

    @rule()
    def all_is_healed(self) -> None:
        self.broken.clear()
        self.settle()

    # what is asked

    @rule(
        router=st.sampled_from(ROUTERS),
        session=st.sampled_from(SESSIONS),
        moves=st.booleans(),
        alone=st.booleans(),
    )
    def a_turn(self, router: int, session: str, moves: bool, alone: bool) -> None:
        """`moves`: the session may leave a home that its router cannot reach; `alone`: without a controller the router
        chooses itself although a host is silent."""
        self.turn(router, session, moves, alone)

    @rule(
        router=st.sampled_from(ROUTERS),
        session=st.sampled_from(SESSIONS),
        index_dies=st.booleans(),
        is_back=st.booleans(),
    )
    def it_moves_from_its_machine_is_ended_and_begins_anew(
        self, router: int, session: str, index_dies: bool, is_back: bool
    ) -> None:
        self.turn(router, session, moves=False, alone=False)
        self.read_all()
        home = self.index.get(session, MODEL)
        if home is not None:
            self.drop_out(home.replica)
            self.turn(router, session, moves=True, alone=False)
            self.read_all()
            self.end(session)
            if index_dies:
                self.index_begins_anew()
                self.read_all()
            if is_back:
                self.come_back(home.replica)
            self.turn(router, session, moves=True, alone=False)

    @precondition(lambda self: not self.broken)
    @rule(session=st.sampled_from(SESSIONS))
    def a_session_is_ended(self, session: str) -> None:
        self.settle()
        home = self.index.get(session, MODEL)
        for name in (*self.index.remove(session, MODEL), *((home.replica,) if home else ())):
            self.hosts[name].remove(session)
        for homes in self.homes.values():
            homes.pop(session, None)
        self.acknowledged.pop(session, None)
        assert not any(session in host.pins for host in self.hosts.values())

    @rule(session=st.sampled_from(SESSIONS))
    def a_session_is_ended_while_former_homes_are_away(self, session: str) -> None:
        self.end(session)

    def end(self, session: str) -> None:
        """Its home hears it, and the index knows of all others that have it."""
        key, home = (session, MODEL), self.index.get(session, MODEL)
        have = {name for name, host in self.hosts.items() if session in host.pins}
        known = {name for name in have if key in self.index.journals.get(name, {})}
        away = {name for name in have if not self.linked(INDEX, name)}
        if home is None or key in self.index.claims or home.replica in away or have != known:
            return
        for name, pin in self.index.remove(session, MODEL).items():
            if name != home.replica:
                self.index.is_to_hear(name, pin)
        for name in (have - away) | {home.replica}:
            self.hosts[name].remove(session)
            self.hear_ends(name)
        for homes in self.homes.values():
            homes.pop(session, None)
        self.acknowledged.pop(session, None)
        self.ended_at[session] = self.now

    # what must hold

    @invariant()
    def no_acknowledged_pin_is_lost(self) -> None:
        for session, generation in self.acknowledged.items():
            kept = [host.pins[session] for host in self.hosts.values() if session in host.pins]
            assert max(pin.generation for pin in kept) >= generation

    def teardown(self) -> None:
        self.broken.clear()
        self.settle()
        self.turns_of_all()  # A claim that came to nothing may be taken up here yet.
        self.settle()
        homes = self.turns_of_all()
        self.settle()
        for session, served in homes.items():
            assert len(served) == 1
            assert None not in served
            kept = [host.pins[session] for host in self.hosts.values() if session in host.pins]
            assert self.index.get(session, MODEL) == reduce(merge, kept)
            at_home = {host.name for host in self.hosts.values() if self.is_home(host, session)}
            assert at_home == served
            assert min(pin.created_s for pin in kept) > self.ended_at.get(session, -1.0)

    # how it goes

    def turns_of_all(self) -> dict[str, set[str | None]]:
        """By session: who served it, asked by every router."""
        return {
            session: {self.turn(router, session, moves=True, alone=False) for router in ROUTERS}
            for session in self.acknowledged
        }

    def turn(self, router: int, session: str, moves: bool, alone: bool) -> str | None:
        """Who served it; None: it has to wait."""
        lost: Lost | None = None
        homes = self.homes[router]
        for _ in range(TRIES):
            self.now += 1.0
            home = homes.get(session) if lost is None else None
            if home is None:
                home = self.find(router, session, lost, alone)
                lost = None
            if home is None:
                return None
            homes[session] = home
            if not self.linked(router, home.replica):
                if not moves or not self.linked(router, INDEX):
                    return None
                lost = Lost(home.replica, home.generation)
                continue
            if home.created_s <= self.ended_at.get(session, -1.0):
                assert not self.linked(router, INDEX), "a pin from before its end"
                del self.ended_at[session]  # Without a controller nobody knew of it.
            newer = self.hosts[home.replica].turn(session, home.generation, home.created_s)
            if newer is None:
                self.acknowledged[session] = max(self.acknowledged.get(session, 0), home.generation)
                return home.replica
            homes[session] = merge(home, newer)
        raise AssertionError("a turn without an end")

    def find(self, router: int, session: str, lost: Lost | None, alone: bool) -> Pin | None:
        ranked = [Candidate(name, 1) for name in self.reachable(router)]
        if self.linked(router, INDEX):
            there = [name for name in HOSTS if self.linked(INDEX, name)]
            if not ranked or any(name not in self.read for name in there):
                return None  # It has not read all journals yet, or there is nobody to go to.
            ranked = [each for each in ranked if not self.index.is_ending(session, MODEL, each.replica)]
            if not ranked:
                held = self.index.get(session, MODEL)
                return None if held is None or Lost(held.replica, held.generation) == lost else held
            return self.index.claim(session, MODEL, ranked, frozenset(), self.now, lost)[0]
        known = [p for name in self.reachable(router) if (p := self.hosts[name].pins.get(session))]
        if known:
            return reduce(merge, known)
        if not ranked or (len(ranked) < len(HOSTS) and not alone):
            return None
        return Pin(session, MODEL, ranked[0].replica, 1, self.now)

    def learn(self, name: str) -> None:
        host = self.hosts[name]
        removed, seen = self.read.get(name, (-1, 0))
        whole = removed != host.removed
        self.index.confirm(host.pins.values() if whole else host.news[seen:], name, whole)
        self.read[name] = host.removed, len(host.news)

    def settle(self) -> None:
        """The controller reads all that it can, and tells who is behind."""
        for _ in range(len(HOSTS)):
            for name in HOSTS:
                self.learn(name)
                self.hear_ends(name)
                behind = list(self.index.behind.get(name, {}).values())
                for pin in behind:
                    self.hosts[name].learn(pin)
                self.index.told(name, behind)
                self.learn(name)

    def drop_out(self, host: str) -> None:
        self.broken |= {(who, host) for who in (*ROUTERS, INDEX)}

    def come_back(self, host: str) -> None:
        self.broken -= {(who, host) for who in (*ROUTERS, INDEX)}
        self.learn(host)

    def read_all(self) -> None:
        for name in HOSTS:
            if self.linked(INDEX, name):
                self.learn(name)

    def hear_ends(self, name: str) -> None:
        for pin in list(self.index.ends.get(name, {}).values()):
            self.hosts[name].remove(pin.session)
            self.index.has_heard(name, pin)

    def is_home(self, host: Host, session: str) -> bool:
        return session in host.pins and host.pins[session].replica == host.name


TestPins = Pins.TestCase
TestPins.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)

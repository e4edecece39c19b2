"""A request's pin: what is a 421, what is written when, and what it is called."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.asgi import Problem
from serving.desk import Desk
from serving.journal import Facts, Journal
from serving.pinning import Pinning
from serving.pins import Pin
from serving.places import USUAL, Waiting, fresh
from serving.remembered import Remembered
from serving.routing import Ask
from tests.host_process import model_spec, session

ANN, BEN, ROOT = session("ann"), session("ben"), session("root")
SCOPE = session("key")
HELLO, MORE, OTHER = session("hello"), session("hello, more"), session("hello, other")
ASK = Ask(ANN, 1, "new", False, "r1", scope=SCOPE, public="hp_ann")
GUESS = replace(ASK, rank="guessed", history=HELLO)


class StillTurns:
    """No turn runs but those of sessions in `open`."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.made = Remembered()
        self.warmed = Remembered()
        self.state = fresh(1, 10.0, 60.0)

    def is_open(self, name: str) -> bool:
        return name in self.open


class Replica:
    """den/0's desk; `turn` is a whole turn's pinning."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder / "journal.sqlite")
        self.writer = ThreadPoolExecutor(1)
        self.turns = StillTurns()
        engine: Any = None
        turns: Any = self.turns
        model = model_spec()
        self.desk = Desk("den", "den/0", model, engine, turns, self.journal, self.writer, awake=self._awake)

    async def _awake(self) -> None:
        pass

    def pin(self, generation: int = 1, replica: str = "den/0", name: str = ANN) -> Pin:
        return Pin(name, self.desk.model.name, replica, generation, 1.0)

    def check(self, ask: Ask) -> Pinning:
        pinning = Pinning(self.desk, ask)
        pinning.check()
        return pinning

    async def turn(self, ask: Ask) -> Pinning:
        pinning = self.check(ask)
        await pinning.ensure()
        pinning.touch()
        self.writer.submit(int).result()
        return pinning

    def refused(self, ask: Ask) -> dict[str, Any]:
        with pytest.raises(Problem) as refusal:
            self.check(ask)
        assert refusal.value.status == 421
        told = refusal.value.homeport
        assert isinstance(told, dict)
        return told


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    replica = Replica(tmp_path)
    yield replica
    replica.writer.shutdown()
    replica.journal.close()


async def test_a_new_pin_is_written_with_all_that_is_known_of_its_session(replica: Replica) -> None:
    pinning = await replica.turn(replace(ASK, parent=ROOT))
    assert (pinning.outcome, pinning.family) == ("new", ROOT)
    entry = replica.journal.entry(ANN, replica.desk.model.name)
    assert entry is not None
    assert (entry.facts, entry.turns) == (Facts("hp_ann", SCOPE, ROOT), 1)
    assert ANN in replica.turns.made
    assert (await replica.turn(replace(ASK, pin="kept"))).outcome == "kept"


async def test_a_transient_has_no_pin(replica: Replica) -> None:
    assert (await replica.turn(Ask(None, 1, "none", False, "r1"))).outcome == "none"
    assert replica.journal.count() == 0


async def test_a_kept_pin_of_an_older_file_gets_its_public_id(replica: Replica) -> None:
    replica.journal.insert(replica.pin())
    await replica.turn(replace(ASK, pin="kept"))
    (entry,) = replica.journal.by_public("hp_ann")
    assert (entry.scope, entry.turns) == (SCOPE, 1)


async def test_an_older_generation_is_a_421_with_the_pin(replica: Replica) -> None:
    replica.journal.insert(replica.pin(2))
    assert replica.refused(ASK) == {"reason": "generation", "pin": replica.pin(2).to_json()}


async def test_a_session_that_moved_away_is_a_421_with_its_new_home(replica: Replica) -> None:
    away = replica.pin(2, "attic/0")
    replica.journal.insert(away)
    told = {"reason": "generation", "pin": away.to_json()}
    assert replica.refused(ASK) == replica.refused(replace(ASK, generation=2)) == told
    assert (await replica.turn(replace(ASK, generation=3, pin="moved"))).outcome == "moved"
    back = replica.journal.get(ANN, away.model)
    assert back is not None
    assert (back.replica, back.generation) == ("den/0", 3)


async def test_a_session_that_moves_in_is_moved_at_its_first_turn_only(replica: Replica) -> None:
    moved = replace(ASK, generation=2, pin="moved")
    assert (await replica.turn(moved)).outcome == "moved"
    assert ANN not in replica.turns.made
    assert (await replica.turn(moved)).outcome == "kept"


async def test_a_pin_that_was_sent_ahead_is_moved_at_its_first_turn(replica: Replica) -> None:
    replica.journal.insert(replica.pin(2))
    kept = replace(ASK, generation=2, pin="kept")
    assert (await replica.turn(kept)).outcome == "moved"
    assert (await replica.turn(kept)).outcome == "kept"


async def test_a_full_replica_takes_no_claim_of_a_new_or_moving_session(replica: Replica) -> None:
    replica.turns.state = fresh(0, 10.0, 60.0)
    for ask in (replace(ASK, claim_free=True), replace(ASK, claim_free=True, pin="moved", generation=2)):
        assert replica.refused(ask)["reason"] == "taken"
    replica.journal.insert(replica.pin())
    assert replica.check(replace(ASK, claim_free=True)).outcome == "kept"
    assert replica.refused(replace(ASK, claim_free=True, pin="moved", generation=2))["reason"] == "taken"


async def test_a_host_that_has_no_pin_takes_no_turn_that_counts_on_one(replica: Replica) -> None:
    kept = replace(ASK, pin="kept")
    assert replica.refused(kept) == {"reason": "unknown", "pin": None}
    assert replica.journal.count() == 0
    replica.turns.state = replace(fresh(1, 10.0, 60.0), line=(Waiting(1, ANN, 0.0, USUAL, 60.0),))
    pinning = replica.check(kept)
    assert pinning.outcome is None, "its first turn waits here and has written nothing yet"
    with pytest.raises(Problem) as refusal:
        await pinning.ensure()
    assert refusal.value.homeport == {"reason": "unknown", "pin": None}
    assert replica.journal.count() == 0, "nor has it ever, or it was ended since"


async def test_a_pin_that_expires_while_its_turn_comes_is_written_anew(replica: Replica) -> None:
    replica.journal.insert(replica.pin())
    key = (ANN, replica.desk.model.name)
    replica.journal.leaving.add(key)
    assert replica.refused(replace(ASK, pin="kept")) == {"reason": "unknown", "pin": None}
    pinning = replica.check(ASK)
    removing = replica.writer.submit(replica.journal.remove, [key])
    await pinning.ensure()
    assert removing.result() == (key,)
    replica.journal.leaving.clear()
    assert pinning.outcome == "new"
    assert replica.journal.get(*key) is not None


# families


async def test_a_childs_child_is_of_the_first_ones_family(replica: Replica) -> None:
    await replica.turn(replace(ASK, parent=ROOT))
    assert replica.check(replace(ASK, session=BEN, parent=ANN)).family == ROOT
    assert replica.check(replace(ASK, session=BEN, parent=session("stranger"))).family == session("stranger")
    assert replica.check(replace(ASK, session=BEN)).family is None


async def test_a_session_stays_in_the_family_that_it_was_born_into(replica: Replica) -> None:
    await replica.turn(replace(ASK, parent=ROOT))
    assert replica.check(replace(ASK, pin="kept")).family == ROOT
    assert replica.check(replace(ASK, pin="kept", parent=BEN)).family == ROOT


# guesses


def goes_on(history: str, *continues: str) -> Ask:
    return replace(GUESS, pin="kept", history=history, continues=continues)


async def test_a_guessed_session_goes_on_from_what_was_said(replica: Replica) -> None:
    await replica.turn(GUESS)
    await replica.turn(goes_on(MORE, HELLO))
    found = replica.journal.find((MORE,), replica.desk.model.name, SCOPE, replica.desk.replica)
    assert found is not None
    assert (found.pin.session, found.turns, found.guessed) == (ANN, 2, True)
    assert replica.journal.all()[0].history == MORE
    assert replica.journal.find((HELLO,), replica.desk.model.name, SCOPE, replica.desk.replica) is None


async def test_two_conversations_that_began_alike_part(replica: Replica) -> None:
    await replica.turn(GUESS)
    await replica.turn(goes_on(MORE, HELLO))
    assert replica.refused(goes_on(OTHER, HELLO)) == {"reason": "parted", "pin": None}


async def test_they_part_before_the_firsts_turn_has_begun(replica: Replica) -> None:
    await replica.turn(GUESS)
    replica.check(goes_on(MORE, HELLO))
    assert replica.refused(goes_on(OTHER, HELLO))["reason"] == "parted"


async def test_the_same_words_again_are_the_same_session_only_once_its_turn_is_over(replica: Replica) -> None:
    await replica.turn(GUESS)
    replica.turns.open.add(ANN)
    assert replica.refused(replace(GUESS, pin="kept"))["reason"] == "parted"
    replica.turns.open.clear()
    assert (await replica.turn(replace(GUESS, pin="kept"))).outcome == "kept"


async def test_a_turn_that_never_began_can_be_asked_for_again(replica: Replica) -> None:
    await replica.turn(GUESS)
    replica.check(goes_on(MORE, HELLO))
    assert (await replica.turn(goes_on(MORE, HELLO))).outcome == "kept"


async def test_what_a_turn_would_have_said_that_never_began_does_not_count(replica: Replica) -> None:
    await replica.turn(GUESS)
    more = replace(GUESS, pin="kept", history=MORE, continues=(HELLO,))
    waiting, again = replica.check(more), replica.check(more)
    replica.turns.open.add(ANN)
    waiting.over()
    assert replica.refused(replace(more, history=OTHER))["reason"] == "parted", "another turn says it too"
    replica.turns.open.discard(ANN)
    again.over()
    assert (await replica.turn(replace(more, history=OTHER))).outcome == "kept"


async def test_a_named_session_never_parts(replica: Replica) -> None:
    await replica.turn(ASK)
    assert replica.check(replace(ASK, pin="kept")).outcome == "kept"

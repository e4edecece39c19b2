"""Where a turn goes: the table "What happens to a session", as far as the router decides it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from router.choose import choose, ranked
from router.decision import Ask, Home, Move, Refuse, Send, Wait
from router.keys import Key
from router.snapshot import Machine, Model, Replica, Resident, Snapshot
from serving.model import WhenLost
from serving.pins import Pin

NOW = 1000.0
SESSION = "ab" * 32
ASK = Ask("tiny", SESSION, "request-1")
NAMELESS = Ask("tiny", None, "request-1")


def replica(name: str, **known: object) -> Replica:
    machine = name.rpartition("/")[0]
    plain = Replica(
        name,
        machine,
        "tiny",
        "127.0.0.1",
        8100,
        state="ready",
        incarnation=3,
        heard_at=NOW - 0.5,
        known_at=NOW - 1.0,
    )
    return replace(plain, **known)  # type: ignore[arg-type]


ZONES = {"den": "home", "attic": "home", "lab": "work"}


def fleet(*replicas: Replica, machine_state: str = "ready", **open_turns: int) -> Snapshot:
    return Snapshot(
        models={"tiny": Model("tiny", 512, "llama.cpp")},
        machines={
            each.machine: Machine(each.machine, machine_state, ZONES.get(each.machine, "default"))
            for each in replicas
        },
        replicas={each.name: each for each in replicas},
        open_turns={name.replace("_", "/"): count for name, count in open_turns.items()},
    )


def home(at: str, generation: int = 1, fresh: bool = False) -> Home:
    return Home(Pin(SESSION, "tiny", at, generation, 1.0), fresh)


def resident(quiet_s: float, busy: bool = False, session: str = "cd" * 32) -> Resident:
    return Resident(session, quiet_s, busy, 100)


def full(name: str, quiet_s: float, **known: object) -> Replica:
    return replica(name, residents=(resident(quiet_s),), **known)


def busy(name: str, waiting: int = 0) -> Replica:
    return replica(name, residents=(resident(0.0, busy=True),), running=1, waiting=waiting)


# it is new


def test_a_new_session_goes_to_a_free_place() -> None:
    decision = choose(ASK, None, fleet(busy("attic/0"), replica("den/0")), NOW)
    assert decision == Send("den/0", 3, 1, "new", claim_free=True)


def test_without_a_free_place_it_goes_where_the_resident_is_quiet_longest() -> None:
    decision = choose(ASK, None, fleet(full("attic/0", 5), full("den/0", 50), busy("loft/0")), NOW)
    assert decision == Send("den/0", 3, 1, "new", claim_free=False)


def test_quiet_time_counts_on_since_the_host_was_heard() -> None:
    older = full("attic/0", 10.0, heard_at=NOW - 2.0)
    newer = full("den/0", 11.0, heard_at=NOW)
    assert [each.replica for each in ranked(ASK, fleet(older, newer), NOW)] == ["attic/0", "den/0"]


def test_a_quiet_resident_that_somebody_waits_for_does_not_count() -> None:
    spoken_for = full("attic/0", 90, waiting=1)
    assert ranked(ASK, fleet(spoken_for, full("den/0", 5)), NOW)[0].replica == "den/0"


def test_among_busy_ones_it_goes_to_the_shortest_line() -> None:
    order = ranked(ASK, fleet(busy("attic/0", 3), busy("den/0", 1), busy("loft/0", 2)), NOW)
    assert [each.replica for each in order] == ["den/0", "loft/0", "attic/0"]


def test_ties_are_broken_by_rendezvous_hash_the_same_every_time() -> None:
    empty = fleet(*(replica(f"m{number}/0") for number in range(4)))
    asks = [structs.replace(ASK, session=f"{number:064x}") for number in range(64)]
    firsts = [ranked(ask, empty, NOW)[0].replica for ask in asks]
    assert firsts == [ranked(ask, empty, NOW)[0].replica for ask in asks]
    assert set(firsts) == set(empty.replicas)


def test_a_machine_that_leaves_moves_only_the_choices_that_were_on_it() -> None:
    many = [replica(f"m{number}/0") for number in range(4)]
    for number in range(64):
        ask = structs.replace(ASK, session=f"{number:064x}")
        before = [each.replica for each in ranked(ask, fleet(*many), NOW)]
        after = [each.replica for each in ranked(ask, fleet(*many[1:]), NOW)]
        assert after == [name for name in before if name != "m0/0"]


def test_turns_that_the_host_has_not_counted_yet_take_its_place() -> None:
    order = ranked(ASK, fleet(replica("attic/0"), replica("den/0"), attic_0=1), NOW)
    assert [(each.replica, each.free) for each in order] == [("den/0", 1), ("attic/0", 0)]


def test_a_turn_without_a_session_makes_no_pin_and_claims_nothing() -> None:
    assert choose(NAMELESS, None, fleet(replica("den/0")), NOW) == Send("den/0", 3, 0, "none", False)


def test_turns_without_a_session_spread_by_their_request() -> None:
    empty = fleet(replica("attic/0"), replica("den/0"))
    asks = (structs.replace(NAMELESS, request_id=str(number)) for number in range(32))
    assert {ranked(ask, empty, NOW)[0].replica for ask in asks} == {"attic/0", "den/0"}


def test_a_transient_that_runs_takes_a_place() -> None:
    assert ranked(ASK, fleet(replica("den/0", running=1)), NOW)[0].free == 0


def test_no_free_place_is_counted_on_where_a_host_refused_one() -> None:
    both = fleet(replica("attic/0"), replica("den/0"))
    first = choose(ASK, None, both, NOW)
    assert isinstance(first, Send)
    second = choose(ASK, None, both, NOW, refused={first.replica})
    assert isinstance(second, Send)
    assert second.replica != first.replica
    last = choose(ASK, None, both, NOW, refused={"attic/0", "den/0"})
    assert isinstance(last, Send)
    assert not last.claim_free


# it has a home


def test_a_home_that_serves_gets_it_with_its_incarnation_and_generation() -> None:
    decision = choose(ASK, home("den/0", generation=7), fleet(replica("attic/0"), replica("den/0")), NOW)
    assert decision == Send("den/0", 3, 7, "kept", claim_free=False)


def test_full_home_waits_in_the_hosts_line_rather_than_moves() -> None:
    decision = choose(ASK, home("den/0"), fleet(replica("attic/0"), busy("den/0", waiting=9)), NOW)
    assert isinstance(decision, Send)
    assert decision.replica == "den/0"


@pytest.mark.parametrize("fresh_free", [True, False])
def test_a_fresh_pin_counts_on_a_free_place_only_where_one_is_seen(fresh_free: bool) -> None:
    at = replica("den/0") if fresh_free else busy("den/0")
    assert choose(ASK, home("den/0", fresh=True), fleet(at), NOW) == Send("den/0", 3, 1, "new", fresh_free)


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({"state": "loading", "progress": 0.42}, "loading its model (42%)"),
        ({"state": "starting"}, "is starting"),
        ({"state": "failed", "detail": "no memory"}, "has failed (no memory)"),
        ({"state": "draining"}, "is stopping"),
        ({"heard_at": NOW - 3.5}, "silent"),
        ({"heard_at": NOW - 5.5}, "cannot be reached"),
        ({"refused": True}, "cannot be reached"),
        ({"heard_at": None}, "has not answered yet"),
    ],
)
def test_a_home_that_does_not_serve_is_waited_for_and_never_left(known: dict[str, object], says: str) -> None:
    decision = choose(ASK, home("den/0"), fleet(replica("attic/0"), replica("den/0", **known)), NOW)
    assert isinstance(decision, Wait)
    assert decision.replica == "den/0"
    assert says in decision.message
    assert decision.until > NOW


def test_a_home_on_a_machine_that_has_not_reported_is_waited_for() -> None:
    decision = choose(ASK, home("shed/0"), fleet(replica("attic/0")), NOW)
    assert isinstance(decision, Wait)
    assert "shed" in decision.message


@pytest.mark.parametrize("there", [{"name": "den/0", "model": "other"}, {"name": "den/1"}])
def test_a_home_that_the_config_took_away_is_refused_for_good(there: dict[str, str]) -> None:
    decision = choose(ASK, home("den/0"), fleet(replica(**there)), NOW)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code) == (410, "home_removed")
    assert "den/0" in decision.message


def test_an_old_list_does_not_prove_that_a_home_was_taken_away() -> None:
    old = replace(fleet(replica("den/1")), is_current=False)
    assert isinstance(choose(ASK, home("den/0"), old, NOW), Wait)


# its machine is cordoned or draining


@pytest.mark.parametrize("state", ["cordoned", "draining"])
def test_a_machine_that_takes_no_new_pins_still_serves_its_own(state: str) -> None:
    there = fleet(replica("den/0"), machine_state=state)
    assert isinstance(choose(ASK, home("den/0"), there, NOW), Send)
    refused = choose(ASK, None, there, NOW)
    assert isinstance(refused, Refuse)
    assert refused.code == "model_unavailable"
    assert refused.reasons == (f"den/0 takes no new session (its machine is {state})",)


def test_who_is_refused_by_a_machine_that_is_drained_is_told_that_word() -> None:
    there = replace(
        fleet(replica("den/0")), machines={"den": Machine("den", "draining", "home", cordoned=True)}
    )
    assert isinstance(choose(ASK, home("den/0"), there, NOW), Send)
    refused = choose(ASK, None, there, NOW)
    assert isinstance(refused, Refuse)
    assert refused.reasons == ("den/0 takes no new session (its machine is draining)",)


def test_a_cordoned_machine_of_which_nothing_is_heard_takes_no_new_pins_either() -> None:
    there = fleet(replica("den/0"))
    for state in ("unknown", "lost"):
        cordoned = replace(there, machines={"den": Machine("den", state, "home", cordoned=True)})
        assert isinstance(choose(ASK, home("den/0"), cordoned, NOW), Send)
        refused = choose(ASK, None, cordoned, NOW)
        assert isinstance(refused, Refuse)
        assert refused.reasons == ("den/0 takes no new session (its machine is cordoned)",)


def test_a_cordoned_machine_can_tell_that_a_home_is_not_there_any_more() -> None:
    decision = choose(ASK, home("den/0"), fleet(replica("den/1"), machine_state="cordoned"), NOW)
    assert isinstance(decision, Refuse)
    assert decision.code == "home_removed"


# its machine is its person's


def wanted(*others: Replica, free_at: float | None = None, **known: object) -> Snapshot:
    """den is its person's, its host gone."""
    gone = replica("den/0", **{"heard_at": NOW - 100.0, "refused": True, "state": "yielded", **known})
    there = fleet(gone, *others)
    den = Machine("den", "yielded", "home", free_at=free_at)
    return replace(there, machines={**there.machines, "den": den})


@pytest.mark.parametrize("policy", ["wait", "move", "fail"])
def test_a_session_of_a_machine_that_is_its_persons_stays_there_whatever_is_to_become_of_lost_ones(
    policy: WhenLost,
) -> None:
    ask = structs.replace(ASK, when_lost=policy)
    decision = choose(ask, home("den/0"), wanted(replica("attic/0"), free_at=NOW + 605.0), NOW)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code, decision.retry_s) == (503, "machine_yielded", 605.0)
    assert decision.replica == "den/0"
    assert "for 11 min more" in decision.message


@pytest.mark.parametrize(
    ("left_s", "says", "retry_s"),
    [
        (None, "at present", 30.0),
        (3.2, "for 4 s more", 3.2),
        (-7.0, "for 1 s more", 1.0),
        (90.0, "for 90 s more", 90.0),
        (7200.0, "for 2 h 0 min more", 7200.0),
        (5401.0, "for 1 h 31 min more", 5401.0),
    ],
)
def test_a_machine_that_is_its_persons_says_for_how_long(
    left_s: float | None, says: str, retry_s: float
) -> None:
    free_at = None if left_s is None else NOW + left_s
    decision = choose(ASK, home("den/0"), wanted(free_at=free_at), NOW)
    assert isinstance(decision, Refuse)
    assert says in decision.message
    assert decision.retry_s == pytest.approx(retry_s)


def test_new_sessions_go_elsewhere_and_are_told_why_where_there_is_no_elsewhere() -> None:
    assert isinstance(choose(ASK, None, wanted(replica("attic/0")), NOW), Send)
    for ask, there in (
        (ASK, wanted()),
        (NAMELESS, wanted()),
        (structs.replace(ASK, machine="den"), wanted(replica("attic/0"))),
    ):
        refused = choose(ask, None, there, NOW)
        assert isinstance(refused, Refuse)
        assert (refused.status, refused.code, refused.retry_s) == (503, "machine_yielded", 30.0)
        assert "den at present" in refused.message


def test_beside_one_that_comes_up_a_machine_that_is_its_persons_is_no_reason_to_refuse() -> None:
    decision = choose(ASK, None, wanted(replica("attic/0", state="loading")), NOW)
    assert isinstance(decision, Wait)
    assert "attic/0" in decision.message


def test_a_host_that_serves_is_asked_whatever_an_old_picture_says() -> None:
    there = wanted(heard_at=NOW - 0.5, refused=False, state="ready")
    assert isinstance(choose(ASK, home("den/0"), there, NOW), Send)


def test_what_the_config_took_away_meanwhile_is_gone_there_too() -> None:
    there = wanted()
    other = replace(there, replicas={"den/1": replica("den/1", state="yielded")})
    decision = choose(ASK, home("den/0"), other, NOW)
    assert isinstance(decision, Refuse)
    assert decision.code == "home_removed"


def test_a_child_whose_parents_machine_is_its_persons_waits_with_it() -> None:
    parent = Pin("ef" * 32, "tiny", "den/0", 1, 1.0)
    decision = choose(structs.replace(ASK, parent=parent), None, wanted(replica("attic/0")), NOW)
    assert isinstance(decision, Refuse)
    assert decision.code == "machine_yielded"


# its machine is away


@pytest.mark.parametrize("state", ["unknown", "lost"])
def test_a_host_that_answers_serves_and_takes_new_sessions_whatever_its_keeper_does(state: str) -> None:
    there = fleet(replica("den/0"), machine_state=state)
    assert isinstance(choose(ASK, home("den/0"), there, NOW), Send)
    assert isinstance(choose(ASK, None, there, NOW), Send)


def test_nobody_moves_from_a_machine_that_is_unknown() -> None:
    silent = replica("den/0", heard_at=NOW - 100.0)
    unknown = {"den": Machine("den", "unknown", "home"), "attic": Machine("attic", "ready", "home")}
    there = replace(fleet(silent, replica("attic/0")), machines=unknown)
    for known in (there, replace(there, replicas={"attic/0": there.replicas["attic/0"]})):
        decision = choose(structs.replace(ASK, when_lost="move"), home("den/0"), known, NOW)
        assert isinstance(decision, Wait)
        assert decision.replica == "den/0"
    headless = choose(ASK, home("den/0"), replace(there, is_current=False), NOW)
    assert isinstance(headless, Refuse), "then the router's own word is all there is"


def test_a_home_on_a_lost_machine_of_which_no_replica_is_known_is_lost() -> None:
    machines = {"den": Machine("den", "lost", "home"), "attic": Machine("attic", "ready", "home")}
    there = replace(fleet(replica("attic/0")), machines=machines)
    assert isinstance(choose(structs.replace(ASK, when_lost="move"), home("den/0"), there, NOW), Move)
    refused = choose(ASK, home("den/0"), there, NOW)
    assert isinstance(refused, Refuse)
    assert refused.code == "machine_lost"


def test_a_silent_host_is_lost_after_as_long_as_the_config_says() -> None:
    silent = fleet(replica("den/0", heard_at=NOW - 31.0))
    assert isinstance(choose(ASK, home("den/0"), silent, NOW), Refuse)
    assert isinstance(choose(ASK, home("den/0"), replace(silent, lost_after_s=32.0), NOW), Wait)


def test_a_new_session_waits_for_a_machine_that_may_still_report() -> None:
    silent = fleet(replica("den/0", heard_at=NOW - 10.0), machine_state="unknown")
    assert isinstance(choose(ASK, None, silent, NOW), Wait)


# it names a machine or a zone, or its key is limited


def test_a_named_machine_gets_it_although_others_are_free() -> None:
    both = fleet(busy("den/0"), replica("attic/0"))
    decision = choose(structs.replace(ASK, machine="den"), None, both, NOW)
    assert decision == Send("den/0", 3, 1, "new", claim_free=False)


def test_an_unknown_machine_is_refused_with_the_known_names() -> None:
    decision = choose(
        structs.replace(ASK, machine="shed"), None, fleet(replica("den/0"), replica("attic/0")), NOW
    )
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code) == (404, "machine_not_found")
    assert decision.reasons == ("attic", "den")
    assert "attic, den" in decision.message


def test_a_named_machine_that_is_coming_is_waited_for() -> None:
    both = fleet(replica("den/0", state="loading"), replica("attic/0"))
    assert isinstance(choose(structs.replace(ASK, machine="den"), None, both, NOW), Wait)


def test_a_named_machine_without_the_model_is_refused() -> None:
    both = fleet(replica("den/0", model="other"), replica("attic/0"))
    decision = choose(structs.replace(ASK, machine="den"), None, both, NOW)
    assert isinstance(decision, Refuse)
    assert decision.code == "model_unavailable"


def test_no_machine_is_unknown_before_one_has_reported() -> None:
    assert isinstance(choose(structs.replace(ASK, machine="den"), None, fleet(), NOW), Wait)


def test_a_named_zone_keeps_it_there() -> None:
    both = fleet(busy("lab/0"), replica("den/0"))
    decision = choose(structs.replace(ASK, zone="work"), None, both, NOW)
    assert isinstance(decision, Send)
    assert decision.replica == "lab/0"


def test_an_unknown_zone_is_refused_with_the_known_names() -> None:
    decision = choose(structs.replace(ASK, zone="moon"), None, fleet(replica("den/0"), replica("lab/0")), NOW)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code, decision.reasons) == (404, "zone_not_found", ("home", "work"))


@pytest.mark.parametrize(
    "wanted",
    [
        {"key": Key("anna", models=frozenset({"other"}))},
        {"key": Key("anna", machines=frozenset({"attic"})), "machine": "den"},
        {"key": Key("anna", zones=frozenset({"work"})), "machine": "den"},
        {"key": Key("anna", zones=frozenset({"work"})), "zone": "home"},
        {"key": Key("anna", zones=frozenset({"elsewhere"}))},
    ],
)
def test_a_key_that_is_not_for_it_is_403(wanted: dict[str, Any]) -> None:
    decision = choose(structs.replace(ASK, **wanted), None, fleet(replica("den/0"), replica("lab/0")), NOW)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code) == (403, "key_not_allowed")


@pytest.mark.parametrize(
    "key", [Key("anna", zones=frozenset({"work"})), Key("anna", machines=frozenset({"lab"}))]
)
@pytest.mark.parametrize("ask", [ASK, NAMELESS])
def test_a_limited_key_stays_within_its_limits(ask: Ask, key: Key) -> None:
    decision = choose(structs.replace(ask, key=key), None, fleet(busy("lab/0", 5), replica("den/0")), NOW)
    assert isinstance(decision, Send)
    assert decision.replica == "lab/0"


def test_a_home_outside_its_keys_limits_is_not_served() -> None:
    ask = structs.replace(ASK, key=Key("anna", zones=frozenset({"work"})))
    decision = choose(ask, home("den/0"), fleet(replica("den/0"), replica("lab/0")), NOW)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.replica) == (403, "den/0")


def test_a_home_elsewhere_than_the_named_machine_is_a_conflict() -> None:
    ask = structs.replace(ASK, machine="attic")
    decision = choose(ask, home("den/0"), fleet(replica("den/0"), replica("attic/0")), NOW)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code) == (400, "machine_conflict")


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [
        ({"machine": "attic"}, "`homeport move ID attic`"),
        ({"machine": "attic"}, "or name no machine"),
        ({"zone": "work"}, "Name no zone"),
        ({"machine": "den", "zone": "work"}, "Name no zone"),
    ],
)
def test_who_names_another_place_than_its_home_is_told_the_way_out(
    wanted: dict[str, str], remedy: str
) -> None:
    there = fleet(replica("den/0"), replica("attic/0"), replica("lab/0"))
    decision = choose(
        structs.replace(ASK, machine=wanted.get("machine"), zone=wanted.get("zone")),
        home("den/0"),
        there,
        NOW,
    )
    assert isinstance(decision, Refuse)
    assert remedy in decision.message


# a child in its family asks

CHILD = structs.replace(ASK, parent=Pin("cd" * 32, "tiny", "den/0", 4, 1.0), family="cd" * 32)


def test_a_child_goes_to_its_parents_home_however_full() -> None:
    both = fleet(busy("den/0", 3), replica("attic/0"))
    assert choose(CHILD, None, both, NOW) == Send("den/0", 3, 1, "new", claim_free=False)
    assert [each.replica for each in ranked(CHILD, both, NOW)] == ["den/0"]


def test_a_child_waits_with_its_parents_home() -> None:
    both = fleet(replica("den/0", state="loading"), replica("attic/0"))
    decision = choose(CHILD, None, both, NOW)
    assert isinstance(decision, Wait)
    assert decision.replica == "den/0"
    assert ranked(CHILD, both, NOW) == []


def test_a_child_with_a_home_of_its_own_stays_there() -> None:
    decision = choose(CHILD, home("attic/0"), fleet(replica("den/0"), replica("attic/0")), NOW)
    assert isinstance(decision, Send)
    assert decision.replica == "attic/0"


# its machine is lost


def lost(name: str = "den/0") -> Replica:
    return replica(name, heard_at=NOW - 31.0)


def test_a_home_that_was_silent_for_less_is_waited_for() -> None:
    silent = replica("den/0", heard_at=NOW - 29.0)
    ask = structs.replace(ASK, when_lost="move")
    assert isinstance(choose(ask, home("den/0"), fleet(silent, replica("attic/0")), NOW), Wait)


def test_wait_refuses_at_once_and_says_when_to_come_back() -> None:
    decision = choose(ASK, home("den/0"), fleet(lost(), replica("attic/0")), NOW)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code, decision.replica) == (503, "machine_lost", "den/0")
    assert decision.retry_s is not None
    assert "homeport forget den" in decision.message


def test_fail_refuses_for_good() -> None:
    decision = choose(
        structs.replace(ASK, when_lost="fail"), home("den/0"), fleet(lost(), replica("attic/0")), NOW
    )
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code, decision.retry_s) == (410, "machine_lost", None)


def test_move_claims_another_home_in_the_same_zone() -> None:
    there = fleet(lost(), replica("lab/0"), busy("attic/0", 9))
    decision = choose(structs.replace(ASK, when_lost="move"), home("den/0", 3), there, NOW)
    assert isinstance(decision, Move)
    assert (decision.lost.replica, decision.lost.generation) == ("den/0", 3)
    assert [each.replica for each in decision.ranked] == ["attic/0"]
    assert decision.otherwise.code == "machine_lost"


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": "den"},
        {"key": Key("anna", machines=frozenset({"den", "lab"}))},
        {"key": Key("anna", zones=frozenset({"home"}), machines=frozenset({"den"}))},
    ],
)
def test_nobody_moves_out_of_what_its_request_and_its_key_allow(changes: dict[str, Any]) -> None:
    there = fleet(lost(), replica("lab/0"), replica("attic/0"))
    decision = choose(structs.replace(ASK, when_lost="move", **changes), home("den/0"), there, NOW)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code) == (503, "machine_lost")


def test_without_anybody_in_its_zone_it_waits() -> None:
    decision = choose(
        structs.replace(ASK, when_lost="move"), home("den/0"), fleet(lost(), replica("lab/0")), NOW
    )
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code) == (503, "machine_lost")


def test_without_a_head_nobody_moves() -> None:
    headless = replace(fleet(lost(), replica("attic/0")), is_current=False)
    decision = choose(structs.replace(ASK, when_lost="move"), home("den/0"), headless, NOW)
    assert isinstance(decision, Refuse)
    assert decision.code == "machine_lost"


def test_a_machine_that_the_controller_calls_lost_is_lost_at_once() -> None:
    gone = fleet(replica("den/0", refused=True), replica("attic/0"))
    machines = {**gone.machines, "den": Machine("den", "lost", "home")}
    decision = choose(
        structs.replace(ASK, when_lost="move"), home("den/0"), replace(gone, machines=machines), NOW
    )
    assert isinstance(decision, Move)


def test_a_host_that_answers_is_never_lost_whatever_the_controller_says() -> None:
    there = fleet(replica("den/0"), replica("attic/0"), machine_state="lost")
    assert isinstance(choose(structs.replace(ASK, when_lost="move"), home("den/0"), there, NOW), Send)


@pytest.mark.parametrize("policy", ["wait", "fail", "move"])
def test_sessions_of_a_forgotten_machine_move_whatever_their_policy(policy: WhenLost) -> None:
    there = replace(fleet(replica("lab/0"), replica("attic/0")), forgotten={"den": "home"})
    decision = choose(structs.replace(ASK, when_lost=policy), home("den/0"), there, NOW)
    assert isinstance(decision, Move)
    assert [each.replica for each in decision.ranked] == ["attic/0"]


def test_a_forgotten_machine_whose_zone_nobody_knows_gives_its_sessions_to_none() -> None:
    there = replace(fleet(replica("attic/0")), forgotten={"den": None})
    decision = choose(ASK, home("den/0"), there, NOW)
    assert isinstance(decision, Refuse)
    assert decision.code == "machine_lost"


def test_a_claimed_new_home_is_moved_until_a_host_has_it() -> None:
    there = fleet(replica("attic/0"))
    assert choose(ASK, home("attic/0", 2, fresh=True), there, NOW) == Send("attic/0", 3, 2, "moved", True)
    assert choose(ASK, home("attic/0", 2), there, NOW) == Send("attic/0", 3, 2, "kept", False)


# nobody can serve it


def test_an_unknown_model_is_refused_with_the_known_names() -> None:
    decision = choose(Ask("huge", SESSION, "r"), None, fleet(replica("den/0")), NOW)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.code, decision.reasons) == (404, "model_not_found", ("tiny",))
    assert "tiny" in decision.message
    assert "huge" not in decision.message


@pytest.mark.parametrize("known", [{"state": "loading"}, {"state": "starting"}, {"heard_at": None}])
def test_a_new_session_waits_for_a_replica_that_is_coming(known: dict[str, object]) -> None:
    decision = choose(ASK, None, fleet(replica("den/0", **known)), NOW)
    assert isinstance(decision, Wait)
    assert decision.replica is None


def test_a_new_session_waits_while_no_machine_has_reported() -> None:
    assert isinstance(choose(ASK, None, fleet(), NOW), Wait)


def test_a_model_whose_replicas_have_all_failed_is_refused_with_each_reason() -> None:
    failed = [replica(f"den/{slot}", state="failed", detail=f"reason {slot}") for slot in range(2)]
    decision = choose(ASK, None, fleet(*failed), NOW)
    assert isinstance(decision, Refuse)
    assert decision.status == 503
    assert decision.reasons == ("den/0 has failed (reason 0)", "den/1 has failed (reason 1)")


@pytest.mark.parametrize("at", [None, home("den/0")])
def test_what_a_log_says_is_told_to_admins_only(at: Home | None) -> None:
    failed = fleet(replica("den/0", state="failed", detail="no /home/anna/secret.gguf"))
    for role, told in (("admin", True), ("use", False)):
        decision = choose(structs.replace(ASK, key=Key("anna", role)), at, failed, NOW)  # type: ignore[arg-type]
        assert ("secret" in decision.message) == told  # type: ignore[union-attr]
        assert ("an admin sees why in `homeport status`" in decision.message) != told  # type: ignore[union-attr]


# whatever the picture

replicas = st.builds(
    replica,
    st.sampled_from([f"{machine}/{slot}" for machine in ("attic", "den", "loft") for slot in (0, 1)]),
    state=st.sampled_from(["ready", "ready", "loading", "failed", "draining"]),
    heard_at=st.sampled_from([NOW, NOW - 4, NOW - 9, None]),
    refused=st.booleans(),
    running=st.integers(0, 2),
    waiting=st.integers(0, 3),
    residents=st.lists(
        st.builds(resident, st.floats(0, 100), st.booleans()), max_size=2, unique_by=lambda r: r.quiet_s
    ).map(tuple),
)
pictures = st.builds(
    lambda known, state: fleet(*known, machine_state=state),
    st.lists(replicas, max_size=6, unique_by=lambda each: each.name),
    st.sampled_from(["ready", "ready", "ready", "cordoned"]),
)


@given(pictures, st.sampled_from(["attic/0", "den/1", "gone/0"]), st.booleans())
def test_a_session_is_never_sent_anywhere_but_home(picture: Snapshot, at: str, fresh: bool) -> None:
    decision = choose(ASK, home(at, fresh=fresh), picture, NOW)
    match decision:
        case Send(name):
            assert name == at
            assert picture.replicas[at].serves(NOW)
        case Wait(replica=name):
            assert name == at
            assert at not in picture.replicas or not picture.replicas[at].serves(NOW)
        case Refuse(code="home_removed"):
            assert at not in picture.replicas
        case _:
            raise AssertionError(decision)


@given(pictures)
def test_a_new_session_is_sent_exactly_when_somebody_serves(picture: Snapshot) -> None:
    order = ranked(ASK, picture, NOW)
    decision = choose(ASK, None, picture, NOW)
    assert isinstance(decision, Send) == bool(order)
    if isinstance(decision, Send):
        assert picture.replicas[decision.replica].serves(NOW)
        assert decision.replica == order[0].replica
        assert decision.claim_free == (order[0].free > 0)
    frees = [each.free > 0 for each in order]
    assert frees == sorted(frees, reverse=True), "free places come before all others"


@given(pictures)
def test_the_picture_is_not_changed_by_choosing(picture: Snapshot) -> None:
    assert choose(ASK, None, picture, NOW) == choose(ASK, None, picture, NOW)


@given(st.integers(1, 6))
def test_as_many_new_sessions_as_free_replicas_get_as_many_homes(count: int) -> None:
    """By claims alone: each takes the best that no earlier one was given."""
    picture = fleet(*(replica(f"m{number}/0") for number in range(count)))
    given_out: set[str] = set()
    for number in range(count):
        ask = structs.replace(ASK, session=f"{number:064x}")
        decision = choose(ask, None, picture, NOW, refused=given_out)
        assert isinstance(decision, Send)
        given_out.add(decision.replica)
    assert len(given_out) == count

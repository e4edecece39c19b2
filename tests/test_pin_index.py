"""Who wins when several routers want a home for a session at the same moment."""

from serving.pin_index import CLAIM_S, UNUSED_S, Candidate, Lost, PinIndex
from serving.pins import Pin

NOBODY: frozenset[str] = frozenset()


def digest(n: int) -> str:
    return f"{n:064x}"


def pin(n: int, replica: str, generation: int = 1, created_s: float = 1.0) -> Pin:
    return Pin(digest(n), "m", replica, generation, created_s)


def free(*replicas: str) -> list[Candidate]:
    return [Candidate(replica, 1) for replica in replicas]


def test_the_second_router_gets_the_winner_whatever_it_would_have_chosen() -> None:
    index = PinIndex()
    first, known = index.claim(digest(1), "m", free("a/0", "b/0"), NOBODY, now=0.0)
    assert (first.replica, known) == ("a/0", False)
    again, known = index.claim(digest(1), "m", free("b/0", "a/0"), NOBODY, now=0.1)
    assert (again, known) == (first, False)


def test_a_pin_is_known_once_a_journal_has_it() -> None:
    index = PinIndex()
    claimed, _ = index.claim(digest(1), "m", free("a/0"), NOBODY, now=0.0)
    index.confirm([claimed])
    assert index.claim(digest(1), "m", free("b/0"), NOBODY, now=0.1) == (claimed, True)


def test_a_claim_that_no_host_ever_confirmed_is_forgotten() -> None:
    index = PinIndex()
    index.claim(digest(1), "m", free("a/0"), NOBODY, now=0.0)
    index.claim(digest(2), "m", free("a/0"), NOBODY, now=UNUSED_S - 1)
    index.claim(digest(3), "m", free("a/0"), NOBODY, now=UNUSED_S + 1)
    assert index.get(digest(1), "m") is None
    assert index.get(digest(2), "m") is not None


def test_as_many_new_sessions_as_free_places_get_a_home_each() -> None:
    index = PinIndex()
    homes = [index.claim(digest(n), "m", free("a/0", "b/0", "c/0"), NOBODY, 0.0)[0].replica for n in range(3)]
    assert sorted(homes) == ["a/0", "b/0", "c/0"]


def test_without_a_free_place_the_newcomers_spread() -> None:
    index = PinIndex()
    full = [Candidate("a/0", 0), Candidate("b/0", 0)]
    homes = [index.claim(digest(n), "m", full, NOBODY, 0.0)[0].replica for n in range(4)]
    assert sorted(homes) == ["a/0", "a/0", "b/0", "b/0"]


def test_of_two_replicas_claimed_as_often_the_one_claimed_earlier_gets_the_newcomer() -> None:
    index = PinIndex()
    seen_full, seen_free = Candidate("a/0", 0), Candidate("b/0", 1)
    assert index.claim(digest(1), "m", free("a/0", "b/0"), NOBODY, now=10.0)[0].replica == "a/0"
    order = [seen_free, seen_full]
    assert index.claim(digest(2), "m", order, NOBODY, now=11.5)[0].replica == "b/0"
    assert index.claim(digest(3), "m", order, NOBODY, now=11.5)[0].replica == "a/0"


def test_a_replica_that_is_found_full_is_still_waited_for_where_the_others_were_claimed_later() -> None:
    index = PinIndex()
    index.claim(digest(1), "m", free("a/0", "b/0"), NOBODY, now=10.0)
    index.claim(digest(2), "m", free("b/0", "a/0"), NOBODY, now=10.5)
    assert index.claim(digest(3), "m", free("a/0", "b/0"), NOBODY, now=10.6)[0].replica == "a/0"
    seen_full = [Candidate("a/0", 0), Candidate("b/0", 0)]
    again, known = index.claim(digest(3), "m", seen_full, frozenset({"a/0"}), now=10.7)
    assert (again.replica, known) == ("a/0", False)


def test_a_claim_counts_as_a_taken_place_for_a_moment_only() -> None:
    index = PinIndex()
    index.claim(digest(1), "m", free("a/0", "b/0"), NOBODY, now=0.0)
    later, _ = index.claim(digest(2), "m", free("a/0", "b/0"), NOBODY, now=CLAIM_S + 0.1)
    assert later.replica == "a/0"


def test_a_claim_that_its_host_refused_is_made_anew() -> None:
    index = PinIndex()
    index.claim(digest(1), "m", free("a/0", "b/0"), NOBODY, now=0.0)
    again, known = index.claim(digest(1), "m", free("a/0", "b/0"), frozenset({"a/0"}), now=0.1)
    assert (again.replica, known) == ("b/0", False)


def test_a_claim_that_another_router_counts_on_stays_until_that_one_refuses_it_too() -> None:
    index = PinIndex()
    refused = frozenset({"a/0"})
    claimed, _ = index.claim(digest(1), "m", free("a/0", "b/0"), NOBODY, 0.0, router="ra")
    assert index.claim(digest(1), "m", free("b/0", "a/0"), NOBODY, 0.1, router="rb") == (claimed, False)
    assert index.claim(digest(1), "m", free("b/0"), refused, 0.2, router="rb") == (claimed, False)
    assert index.claim(digest(1), "m", free("b/0"), refused, 0.3, router="rb") == (claimed, False)
    again, known = index.claim(digest(1), "m", free("b/0"), refused, 0.4, router="ra")
    assert (again.replica, known) == ("b/0", False)


def test_a_moving_sessions_claim_that_another_router_counts_on_stays_too() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0")], "a/0")
    lost = Lost("a/0", 1)
    moved, _ = index.claim(digest(1), "m", free("b/0"), NOBODY, 5.0, lost, router="ra")
    assert index.claim(digest(1), "m", free("c/0"), frozenset({"b/0"}), 5.1, lost, router="rb") == (
        moved,
        False,
    )


def test_a_pin_that_a_journal_confirmed_never_moves_by_a_refusal() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0")])
    kept, known = index.claim(digest(1), "m", free("b/0"), frozenset({"a/0"}), now=0.0)
    assert (kept.replica, known) == ("a/0", True)


def test_the_index_is_rebuilt_from_the_journals_and_twins_merge() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0", created_s=5.0), pin(2, "a/0", generation=1)])
    index.confirm([pin(1, "b/0", created_s=4.0), pin(2, "b/0", generation=2)])
    assert index.get(digest(1), "m") == pin(1, "b/0", created_s=4.0)
    assert index.get(digest(2), "m") == pin(2, "b/0", generation=2)


def test_a_journal_outweighs_a_claim_that_was_never_used() -> None:
    index = PinIndex()
    index.claim(digest(1), "m", free("a/0"), NOBODY, now=0.0)
    index.confirm([pin(1, "b/0", created_s=9.0)])
    assert index.get(digest(1), "m") == pin(1, "b/0", created_s=9.0)


def test_a_session_has_one_pin_for_each_model() -> None:
    index = PinIndex()
    index.claim(digest(1), "m", free("a/0"), NOBODY, now=0.0)
    assert index.get(digest(1), "other") is None


# homes that are lost


def test_a_session_whose_home_is_lost_gets_a_new_one_a_generation_higher() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0")], "a/0")
    moved, known = index.claim(digest(1), "m", free("b/0"), NOBODY, 5.0, Lost("a/0", 1))
    assert (moved, known) == (pin(1, "b/0", generation=2, created_s=5.0), False)
    assert index.get(digest(1), "m") == moved


def test_of_two_routers_that_find_it_lost_the_second_gets_the_firsts_choice() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0")], "a/0")
    moved, _ = index.claim(digest(1), "m", free("b/0"), NOBODY, 5.0, Lost("a/0", 1))
    assert index.claim(digest(1), "m", free("c/0"), NOBODY, 5.1, Lost("a/0", 1)) == (moved, False)
    index.confirm([moved], "b/0")
    assert index.claim(digest(1), "m", free("c/0"), NOBODY, 5.2, Lost("a/0", 1)) == (moved, True)


def test_a_lost_home_that_the_index_forgot_is_outbid_all_the_same() -> None:
    index = PinIndex()
    moved, _ = index.claim(digest(1), "m", free("b/0"), NOBODY, 5.0, Lost("a/0", 3))
    assert (moved.replica, moved.generation) == ("b/0", 4)


def test_moving_sessions_spread_as_new_ones_do_and_a_refused_one_keeps_its_generation() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0"), pin(2, "a/0")], "a/0")
    homes = [
        index.claim(digest(n), "m", free("b/0", "c/0"), NOBODY, 5.0, Lost("a/0", 1))[0].replica
        for n in (1, 2)
    ]
    assert sorted(homes) == ["b/0", "c/0"]
    again, _ = index.claim(digest(1), "m", free("c/0"), frozenset({"b/0"}), 5.1, Lost("a/0", 1))
    assert (again.replica, again.generation) == ("c/0", 2)


def test_a_move_that_came_to_nothing_leaves_the_old_home() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0")], "a/0")
    index.claim(digest(1), "m", free("b/0"), NOBODY, 0.0, Lost("a/0", 1))
    index.confirm([pin(1, "a/0")], "a/0", whole=True)
    assert index.claim(digest(1), "m", free("b/0"), NOBODY, 1.0)[0].generation == 2
    assert index.claim(digest(1), "m", free("b/0"), NOBODY, UNUSED_S + 1) == (pin(1, "a/0"), True)


def test_a_returned_machine_is_behind_until_it_has_learned() -> None:
    index = PinIndex()
    old, new = pin(1, "a/0"), pin(1, "b/0", generation=2)
    index.confirm([old], "a/0")
    index.confirm([new], "b/0")
    assert index.behind["a/0"] == {(digest(1), "m"): new}
    index.told("a/0", [new])
    assert not index.behind["a/0"]
    index.confirm([new], "a/0")
    assert not any(index.behind.values())


# journals that shrank


def test_a_journal_that_is_read_anew_takes_its_pins_along() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0"), pin(2, "a/0")], "a/0")
    index.confirm([pin(3, "b/0")], "b/0")
    index.confirm([pin(2, "a/0")], "a/0", whole=True)
    assert index.get(digest(1), "m") is None
    assert index.get(digest(2), "m") == pin(2, "a/0")
    assert index.get(digest(3), "m") == pin(3, "b/0")


def test_what_another_journal_still_says_holds() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0")], "a/0")
    index.confirm([pin(1, "b/0", generation=2)], "b/0")
    index.confirm([], "b/0", whole=True)
    assert index.get(digest(1), "m") == pin(1, "a/0")
    assert not index.behind["a/0"]


def test_a_claim_survives_the_reading_of_a_journal_that_does_not_have_it_yet() -> None:
    index = PinIndex()
    claimed, _ = index.claim(digest(1), "m", free("a/0"), NOBODY, now=0.0)
    index.confirm([], "a/0", whole=True)
    assert index.get(digest(1), "m") == claimed


# ends and names


def test_an_ended_session_is_gone_and_all_who_had_it_are_named() -> None:
    index = PinIndex()
    index.confirm([pin(1, "b/0", generation=2)], "a/0")
    index.confirm([pin(1, "b/0", generation=2)], "b/0")
    assert sorted(index.remove(digest(1), "m")) == ["a/0", "b/0"]
    assert index.get(digest(1), "m") is None
    assert index.remove(digest(1), "m") == {}


def test_what_was_claimed_or_heard_while_an_end_was_under_way_stays() -> None:
    index = PinIndex()
    index.claim(digest(1), "m", free("a/0"), NOBODY, now=1.0)
    again, _ = index.claim(digest(1), "m", free("a/0"), NOBODY, now=3.0)
    index.remove(digest(1), "m", since=2.0)
    assert index.get(digest(1), "m") == again
    index.remove(digest(1), "m", since=4.0)
    assert index.get(digest(1), "m") is None
    index.confirm([pin(1, "a/0")], "a/0", now=5.0)
    index.confirm([pin(1, "a/0")], "a/0", whole=True, now=9.0)
    assert index.remove(digest(1), "m", since=4.5) == {}
    assert list(index.remove(digest(1), "m", since=6.0)) == ["a/0"], "nothing new was heard of it since"


def test_a_pin_that_its_host_does_not_have_is_forgotten_and_no_other() -> None:
    index = PinIndex()
    index.confirm([pin(1, "a/0", created_s=2.0)], "a/0")
    assert index.disown(pin(1, "a/0", created_s=1.0)) == {}
    assert list(index.disown(pin(1, "a/0", created_s=2.0))) == ["a/0"]
    claimed, _ = index.claim(digest(1), "m", free("a/0"), NOBODY, now=3.0)
    assert index.disown(claimed) == {}
    assert index.get(digest(1), "m") == claimed


def test_public_ids_are_known_as_long_as_their_session_is() -> None:
    index = PinIndex()
    other = Pin(digest(1), "other", "a/0", 1, 1.0)
    index.confirm([pin(1, "a/0"), other], "a/0")
    index.describe(digest(1), "hp_1", "scope")
    assert index.sessions["hp_1"] == digest(1)
    index.remove(digest(1), "m")
    assert index.names[digest(1)] == ("hp_1", "scope")
    index.confirm([], "a/0", whole=True)
    assert (index.sessions, index.names) == ({}, {})


# ends that a host has not heard of


def test_a_session_that_was_moved_ended_and_begun_anew_is_not_beaten_by_its_older_pin() -> None:
    index = PinIndex()
    old, moved = pin(1, "den/0"), pin(1, "attic/0", generation=2)
    index.confirm([old], "den/0")
    index.confirm([moved], "attic/0")
    said = index.remove(digest(1), "m")
    assert said == {"den/0": old, "attic/0": moved}
    index.is_to_hear("den/0", old)
    anew = pin(1, "attic/0", created_s=50.0)
    index.confirm([anew], "attic/0")
    index.confirm([old], "den/0", whole=True)
    assert index.get(digest(1), "m") == anew
    assert index.is_ending(digest(1), "m", "den/0")
    assert not index.is_ending(digest(1), "m", "attic/0")
    index.has_heard("den/0", old)
    index.confirm([], "den/0", whole=True)
    assert index.get(digest(1), "m") == anew
    assert not any(index.ends.values())


def test_a_journal_that_has_it_no_longer_or_has_it_anew_need_not_hear_of_an_end() -> None:
    for says in ([], [pin(1, "den/0", created_s=50.0)], [pin(1, "attic/0", generation=2)]):
        index = PinIndex()
        index.is_to_hear("den/0", pin(1, "den/0"))
        index.confirm(says, "den/0", whole=True)
        assert not index.is_ending(digest(1), "m", "den/0")
        assert index.get(digest(1), "m") == (says[0] if says else None)


def test_only_what_has_changed_is_to_be_saved() -> None:
    index = PinIndex()
    key = (digest(1), "m")
    index.confirm([pin(1, "a/0")], "a/0")
    index.describe(digest(1), "hp_1", None)
    assert index.unsaved == {("a/0", key)}
    index.unsaved.clear()
    index.confirm([pin(1, "a/0")], "a/0", whole=True)
    index.describe(digest(1), "hp_1", None)
    assert index.unsaved == set()
    index.describe(digest(1), "hp_1", "scope")
    assert index.unsaved == {("a/0", key)}
    index.unsaved.clear()
    index.confirm([], "a/0", whole=True)
    assert index.unsaved == {("a/0", key)}


def test_what_a_new_pin_says_of_itself_may_be_by_another_clock() -> None:
    index = PinIndex()
    pin, _ = index.claim("aa" * 32, "m", [Candidate("a/0", 1)], frozenset(), 50.0, created_s=3650.0)
    assert pin.created_s == 3650.0
    assert index.claims["aa" * 32, "m"].at == 50.0

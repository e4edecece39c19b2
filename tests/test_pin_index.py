"""Who wins when several routers want a home for a session at the same moment."""

from serving.pin_index import CLAIM_S, UNUSED_S, Candidate, PinIndex
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

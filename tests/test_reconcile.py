"""What a keeper does next, as scenarios; and that a second plan is empty."""

from hypothesis import given
from hypothesis import strategies as st

from serving.reconcile import DEATHS_MAX, Drain, Seen, Start, Stop, given_up, plan, restart_at

NOW = 1000.0


def test_an_empty_slot_is_started() -> None:
    assert plan({0: "a"}, {}, NOW) == [Start(0)]


def test_a_running_host_is_left_alone() -> None:
    assert plan({0: "a"}, {0: Seen("alive", "a")}, NOW) == []


def test_an_unknown_host_is_never_taken_for_absent() -> None:
    assert plan({0: "a"}, {0: Seen("unknown")}, NOW) == []


def test_a_host_that_nobody_wants_is_stopped() -> None:
    assert plan({}, {3: Seen("alive", "a")}, NOW) == [Stop(3, "no longer wanted")]


def test_an_idle_host_under_an_old_digest_is_stopped_first() -> None:
    assert plan({0: "b"}, {0: Seen("alive", "a")}, NOW) == [Stop(0, "its configuration changed")]


def test_a_busy_host_under_an_old_digest_finishes_its_turns() -> None:
    assert plan({0: "b"}, {0: Seen("alive", "a", busy=True)}, NOW) == [Drain(0)]


def test_the_first_death_is_answered_at_once_and_the_next_with_growing_pauses() -> None:
    deaths: tuple[float, ...] = ()
    for pause_s in (0.0, 2.0, 5.0, 10.0):
        deaths = (*deaths, (deaths or (NOW,))[-1] + 20.0)
        assert restart_at(deaths, deaths[-1]) == deaths[-1] + pause_s
        host = Seen("absent", deaths=deaths)
        assert plan({0: "a"}, {0: host}, deaths[-1] + pause_s) == [Start(0)]
        assert plan({0: "a"}, {0: host}, deaths[-1] + pause_s - 0.1) == [] or pause_s == 0.0


def test_deaths_of_long_ago_do_not_count() -> None:
    deaths = (*(NOW - 601.0 - n for n in range(DEATHS_MAX)), NOW)
    assert restart_at(deaths, NOW) == NOW


def test_five_deaths_in_ten_minutes_are_enough() -> None:
    host = Seen("absent", deaths=tuple(NOW - 10 * n for n in range(DEATHS_MAX)))
    assert plan({0: "a"}, {0: host}, NOW) == []
    assert given_up(host, NOW) == "it died 5 times in 10 minutes"
    assert plan({0: "a"}, {0: host}, NOW + 601.0) == [Start(0)]


def test_a_model_that_can_never_load_is_not_tried_again() -> None:
    host = Seen("absent", deaths=(NOW - 900.0,), permanent="the file is no GGUF")
    assert plan({0: "a"}, {0: host}, NOW) == []
    assert given_up(host, NOW) == "the file is no GGUF"


def test_a_host_that_is_being_ended_is_left_alone() -> None:
    assert plan({0: "b"}, {0: Seen("stopping", "a", busy=True)}, NOW) == []


digests = st.sampled_from(["a", "b"])
hosts = st.builds(
    Seen,
    life=st.sampled_from(["absent", "alive", "unknown", "stopping"]),
    digest=digests,
    deaths=st.lists(st.floats(NOW - 700, NOW), max_size=6).map(tuple),
    permanent=st.sampled_from([None, "broken"]),
    busy=st.booleans(),
)
slots = st.integers(0, 4)


@given(st.dictionaries(slots, digests), st.dictionaries(slots, hosts))
def test_a_second_plan_is_empty_once_the_first_was_carried_out(
    wanted: dict[int, str], seen: dict[int, Seen]
) -> None:
    for _ in range(3):
        for action in plan(wanted, seen, NOW):
            match action:
                case Start(slot):
                    seen[slot] = Seen("alive", wanted[slot])
                case Stop(slot, _):
                    seen[slot] = Seen("absent")
                case Drain(slot):
                    seen[slot] = Seen("alive", seen[slot].digest)
    assert plan(wanted, seen, NOW) == []


@given(st.dictionaries(slots, digests), st.dictionaries(slots, hosts))
def test_nothing_is_started_where_a_host_may_live(wanted: dict[int, str], seen: dict[int, Seen]) -> None:
    started = {action.slot for action in plan(wanted, seen, NOW) if isinstance(action, Start)}
    assert all(seen.get(slot, Seen("absent")).life == "absent" for slot in started)
    assert started <= set(wanted)

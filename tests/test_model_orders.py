"""Who fetches a model from outside and who copies it from whom."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.model_files import Content, Part
from serving.model_orders import Copy, Fetch, Seat, Wait, key_of, orders

SOURCE = "hf:o/r:m.gguf"
CONTENT = Content("c" * 40, (Part("m.gguf", 100, "a" * 64),))
OTHER = Content("d" * 40, (Part("m.gguf", 100, "b" * 64),))
KNOWN = {SOURCE: CONTENT}
NETWORK = {"code": "network", "message": "no way out", "remedy": "See to it"}
MISSING = {"code": "not_found", "message": "no such file", "remedy": "Look"}


def seat(name: str, zone: str = "home", **told: object) -> Seat:
    return replace(Seat(f"id-{name}", name, zone, f"http://{name}:8091"), **told)  # type: ignore[arg-type]


def all_need(*seats: Seat) -> dict[str, list[str]]:
    return {each.id: [SOURCE] for each in seats}


def test_one_machine_of_a_zone_fetches_and_the_others_wait_for_it() -> None:
    seats = [seat("b"), seat("a"), seat("c")]
    told = orders(all_need(*seats), seats, {})
    assert told == {
        "id-a": {SOURCE: Fetch(None)},
        "id-b": {SOURCE: Wait("a")},
        "id-c": {SOURCE: Wait("a")},
    }


def test_each_zone_that_needs_it_fetches_once() -> None:
    seats = [seat("a"), seat("b"), seat("x", "office"), seat("y", "office"), seat("z", "garden")]
    told = orders(all_need(*seats[:4]), seats, KNOWN)
    assert [id_ for id_, each in told.items() if each.get(SOURCE) == Fetch(CONTENT)] == ["id-a", "id-x"]
    assert told["id-z"] == {}


def test_what_a_machine_of_the_zone_has_is_copied_and_nothing_of_another_zone() -> None:
    seats = [seat("a", held=KNOWN), seat("b"), seat("x", "office")]
    told = orders(all_need(*seats), seats, KNOWN)
    assert told["id-a"] == {}
    assert told["id-b"] == {SOURCE: Copy(CONTENT, (("a", "http://a:8091"),))}
    assert told["id-x"] == {SOURCE: Fetch(CONTENT)}


def test_who_has_it_gives_it_also_where_it_does_not_serve_it() -> None:
    seats = [seat("a", held=KNOWN), seat("b")]
    assert isinstance(orders({"id-b": [SOURCE]}, seats, KNOWN)["id-b"][SOURCE], Copy)


def test_those_that_copy_begin_with_different_givers() -> None:
    holders = [seat(f"h{n}", held=KNOWN) for n in range(4)]
    lacking = [seat(f"l{n}") for n in range(8)]
    told = orders(all_need(*lacking), [*holders, *lacking], KNOWN)
    copies = [told[each.id][SOURCE] for each in lacking]
    assert all(isinstance(copy, Copy) and len(copy.givers) == 4 for copy in copies)
    assert len({copy.givers[0] for copy in copies if isinstance(copy, Copy)}) > 1


def test_the_one_that_fetches_already_goes_on_when_others_come() -> None:
    seats = [seat("a"), seat("b", fetches=frozenset([SOURCE]))]
    assert orders(all_need(*seats), seats, {})["id-b"][SOURCE] == Fetch(None)


def test_when_the_one_that_fetched_is_gone_the_one_that_has_most_of_it_goes_on() -> None:
    seats = [seat("b", got={SOURCE: 10}), seat("c", got={SOURCE: 40})]
    assert orders(all_need(*seats), seats, KNOWN)["id-c"][SOURCE] == Fetch(CONTENT)


def test_one_that_has_no_way_out_leaves_it_to_another() -> None:
    failing = seat(
        "a", fetches=frozenset([SOURCE]), failures={SOURCE: 1}, troubles={SOURCE: NETWORK}, got={SOURCE: 50}
    )
    seats = [failing, seat("b")]
    assert orders(all_need(*seats), seats, {})["id-a"][SOURCE] == Fetch(None)
    seats[0] = replace(failing, failures={SOURCE: 2})
    told = orders(all_need(*seats), seats, {})
    assert (told["id-a"][SOURCE], told["id-b"][SOURCE]) == (Wait("b"), Fetch(None))


def test_what_no_machine_could_get_is_not_tried_on_all_and_those_that_wait_hear_why() -> None:
    failing = seat("a", fetches=frozenset([SOURCE]), failures={SOURCE: 9}, troubles={SOURCE: MISSING})
    seats = [failing, seat("b")]
    assert orders(all_need(*seats), seats, {})["id-b"][SOURCE] == Wait("a", MISSING)


def test_who_has_it_and_does_not_listen_yet_is_waited_for_and_who_cannot_is_not() -> None:
    deaf = seat("a", held=KNOWN, url=None)
    assert orders(all_need(deaf, seat("b")), [deaf, seat("b")], KNOWN)["id-b"][SOURCE] == Wait("a")
    mute = replace(deaf, is_mute=True)
    assert orders(all_need(mute, seat("b")), [mute, seat("b")], KNOWN)["id-b"][SOURCE] == Fetch(CONTENT)


def test_other_content_under_the_same_name_is_not_given_on() -> None:
    seats = [seat("a", held={SOURCE: OTHER}), seat("b")]
    assert orders(all_need(*seats), seats, KNOWN)["id-b"][SOURCE] == Fetch(CONTENT)


SEATS = st.lists(
    st.builds(
        Seat,
        st.uuids().map(str),
        st.sampled_from("abcdefgh"),
        st.sampled_from(["home", "office"]),
        st.sampled_from([None, "http://x:1"]),
        st.booleans(),
        st.sampled_from([{}, KNOWN, {SOURCE: OTHER}]),
        st.sampled_from([{}, {SOURCE: 7}]),
        st.sampled_from([frozenset(), frozenset([SOURCE])]),
        st.sampled_from([{}, {SOURCE: 3}]),
    ),
    max_size=8,
    unique_by=lambda each: each.id,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SEATS, st.sampled_from([{}, KNOWN]))
def test_at_most_one_machine_of_a_zone_fetches_and_no_copy_crosses_zones(
    seats: list[Seat], known: dict[str, Content]
) -> None:
    told = orders(all_need(*seats), seats, known)
    assert told.keys() == {each.id for each in seats}
    for zone in ("home", "office"):
        here = [each for each in seats if each.zone == zone]
        fetchers = [each for each in here if isinstance(told[each.id].get(SOURCE), Fetch)]
        assert len(fetchers) <= 1
        for each in here:
            order = told[each.id].get(SOURCE)
            assert (order is None) == (SOURCE in each.held)
            if isinstance(order, Copy):
                assert {name for name, _ in order.givers} <= {
                    h.name for h in here if h.held.get(SOURCE) == CONTENT
                }
                assert not fetchers
            if isinstance(order, Wait):
                assert order.machine in {h.name for h in here if h.id != each.id}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SEATS)
def test_once_all_have_it_there_is_nothing_to_do(seats: list[Seat]) -> None:
    done = [replace(each, held=KNOWN) for each in seats]
    assert orders(all_need(*done), done, KNOWN) == {each.id: {} for each in done}


def test_a_message_has_the_same_key_however_it_is_ordered() -> None:
    assert key_of({"a": 1, "b": {"c": 2, "d": 3}}) == key_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})

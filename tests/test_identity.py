"""Which session a request names."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.identity import NOBODY, BadName, digest, identify, key_scope, public_id


def test_a_request_without_a_name_has_no_session() -> None:
    assert identify([(b"content-type", b"application/json")]) == NOBODY


@pytest.mark.parametrize("header", [b"x-session-id", b"x-homeport-session"])
def test_either_header_names_the_same_session(header: bytes) -> None:
    identity = identify([(header, b"tea")])
    assert identity.session == digest("local", "", "tea")
    assert identity.source == "header"


def test_homeports_own_header_comes_first_in_any_order() -> None:
    both = [(b"x-session-id", b"tea"), (b"x-homeport-session", b"coffee")]
    assert identify(both) == identify(both[::-1]) == identify([(b"x-homeport-session", b"coffee")])


def test_a_header_sent_twice_with_the_same_value_is_one_name() -> None:
    assert identify([(b"x-session-id", b"tea")] * 2) == identify([(b"x-session-id", b"tea")])


def test_a_header_sent_twice_with_different_values_is_refused() -> None:
    with pytest.raises(BadName, match="twice") as refused:
        identify([(b"x-session-id", b"tea"), (b"x-session-id", b"coffee")])
    assert refused.value.header == "x-session-id"


@pytest.mark.parametrize(
    "name", [b"", b"a" * 513, b"two\nlines", b"bell\x07", b"\xff\xfe", "zero\u200bwidth".encode()]
)
def test_a_name_that_is_not_1_to_512_printable_characters_is_refused(name: bytes) -> None:
    with pytest.raises(BadName, match="1 to 512 printable"):
        identify([(b"x-session-id", name)])


@pytest.mark.parametrize("name", ["a", "a" * 512, "ü" * 512, "with spaces and emoji \N{HOT BEVERAGE}"])
def test_a_printable_name_is_taken(name: str) -> None:
    assert identify([(b"x-session-id", name.encode())]).session == digest("local", "", name)


def test_a_public_id_sent_back_is_refused_rather_than_taken_for_a_new_session() -> None:
    public = public_id(b"key", digest("local", "", "tea"))
    with pytest.raises(BadName, match="does not work yet"):
        identify([(b"x-homeport-session", public.encode())])


def test_another_api_key_or_machine_makes_another_session() -> None:
    named = [(b"x-session-id", b"tea")]
    sessions = {identify(named, key, scope).session for key in ("local", "anna") for scope in ("", "den")}
    assert len(sessions) == 4


Parts = st.tuples(st.text(), st.text(), st.text())


@given(Parts, Parts)
def test_different_parts_never_share_a_digest(a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    assert (digest(*a) == digest(*b)) == (a == b)


@given(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4))
def test_moving_a_character_between_parts_changes_the_digest(key: str, scope: str, name: str) -> None:
    assert digest(key + "x", scope, name) != digest(key, "x" + scope, name)


@given(st.binary(min_size=1, max_size=64), st.text())
def test_a_public_id_is_steady_and_tells_nothing_of_the_name(key: bytes, name: str) -> None:
    session = digest("local", "", name)
    public = public_id(key, session)
    assert public == public_id(key, session)
    assert public.startswith("hp_")
    assert len(public) == 27
    assert public[3:] not in session
    assert public != public_id(key + b"!", session)


def test_a_keys_scope_is_a_digest_of_its_name_and_no_sessions() -> None:
    assert key_scope("local") == key_scope()
    assert len({key_scope("local"), key_scope("ann"), digest("local", "", "x")}) == 3
    assert re.fullmatch("[0-9a-f]{64}", key_scope())

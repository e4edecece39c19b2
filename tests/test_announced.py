"""Which head a machine takes of those that are announced."""

from dataclasses import replace

import pytest

from cluster.announced import Announced, Several, choose, read

CA, OTHER_CA = "a" * 43, "b" * 43
DEN = Announced("10.0.0.1", 8090, "den", CA)
OTHER = Announced("10.0.0.2", 8090, "other", OTHER_CA)
CLEAR = Announced("10.0.0.3", 8090, "shed")


def test_a_token_that_names_a_ca_is_of_the_head_with_that_ca() -> None:
    assert choose([OTHER, CLEAR, DEN], CA) == DEN
    assert choose([OTHER, CLEAR], CA) is None
    assert choose([], CA) is None


def test_a_token_that_names_none_is_of_the_one_head_in_clear() -> None:
    assert choose([DEN, CLEAR, OTHER], None) == CLEAR
    assert choose([DEN, OTHER], None) is None
    assert choose([], None) is None


def test_of_several_it_could_be_none_is_taken() -> None:
    second = replace(CLEAR, address="10.0.0.4", name="attic")
    assert choose([second, DEN, CLEAR], None) == Several((CLEAR, second))
    liar = replace(DEN, address="10.0.0.66")
    assert choose([liar, DEN], CA) == Several((DEN, liar))


def test_a_head_that_is_heard_twice_is_one() -> None:
    assert choose([CLEAR, replace(CLEAR, name="again")], None) == replace(CLEAR, name="again")


@pytest.mark.parametrize("head", [DEN, CLEAR])
def test_what_a_head_says_is_what_is_read(head: Announced) -> None:
    assert read(head.address, head.port, head.told()) == head


@pytest.mark.parametrize(("address", "port"), [("", 8090), ("den", 8090), ("::1", 8090), ("10.0.0.1", None)])
def test_what_cannot_be_a_head_is_none(address: str, port: int | None) -> None:
    assert read(address, port, {"name": "den"}) is None


def test_a_name_can_be_printed_whoever_said_it() -> None:
    told = read("10.0.0.1", 1, {"name": "\x1b[2Jden\n" + "x" * 300, "ca": ""})
    assert told is not None
    assert told.name == "??2Jden?" + "x" * 55
    assert told.fingerprint is None
    nameless = read("10.0.0.1", 1, {"name": None})
    assert nameless is not None
    assert nameless.name == "10.0.0.1"

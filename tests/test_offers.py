"""Which models a key is told of, where they are at home, and what they can."""

from collections.abc import Mapping

import pytest

from router.errors import Rejected
from router.keys import LOCAL, Key
from router.offers import Home, Offers, split_model
from router.snapshot import Machine, Model, Replica, Snapshot

NOW = 100.0
CAN = frozenset({"chat", "tools"})


def replica(name: str, model: str = "tiny", state: str = "ready", heard_at: float | None = NOW) -> Replica:
    abilities = CAN if heard_at is not None else None
    machine = name.rpartition("/")[0]
    return Replica(name, machine, model, "127.0.0.1", 1, state, heard_at=heard_at, abilities=abilities)


def seen(*replicas: Replica, machines: Mapping[str, Machine] | None = None) -> Snapshot:
    models = {name: Model(name, 512, "llama.cpp") for name in ("tiny", "other")}
    named = {each.machine: Machine(each.machine) for each in replicas}
    return Snapshot(models, {**named, **(machines or {})}, {each.name: each for each in replicas})


BOTH = seen(replica("den/0"), replica("attic/0"), replica("attic/1", "other"))


def names(offers: Offers, with_machines: bool = False) -> list[str]:
    return [offer.name for offer in offers.each(with_machines)]


def refused(offers: Offers, name: str) -> tuple[str, str]:
    with pytest.raises(Rejected) as caught:
        offers.find(name)
    return caught.value.error.code, caught.value.error.message


def test_a_model_names_the_machines_that_have_it_and_what_its_hosts_say_it_can() -> None:
    offer = Offers(BOTH, LOCAL, NOW).find("tiny")
    assert offer.homes == (Home("attic", "ready"), Home("den", "ready"))
    assert (offer.abilities, offer.is_loaded, offer.model.context) == (CAN, True, 512)


def test_a_model_at_a_machine_is_found_and_listed_behind_its_model() -> None:
    offers = Offers(BOTH, LOCAL, NOW)
    found = offers.find("tiny@den")
    assert (found.name, found.model.name, found.homes) == ("tiny@den", "tiny", (Home("den", "ready"),))
    assert names(offers) == ["other", "tiny"]
    assert names(offers, True) == ["other", "other@attic", "tiny", "tiny@attic", "tiny@den"]


@pytest.mark.parametrize(
    "name", ["other@den", "tiny@shed", "huge@den", "huge", "tiny@", "@den", "tiny@den@den"]
)
def test_a_model_that_is_not_there_is_not_found_and_the_others_are_named(name: str) -> None:
    code, message = refused(Offers(BOTH, LOCAL, NOW), name)
    assert (code, "other, tiny" in message) == ("model_not_found", True)


def test_a_key_hears_of_its_own_models_and_machines_only() -> None:
    key = Key("anna", models=frozenset({"tiny"}), machines=frozenset({"den"}))
    offers = Offers(BOTH, key, NOW)
    assert names(offers, True) == ["tiny", "tiny@den"]
    assert offers.find("tiny").homes == (Home("den", "ready"),)
    assert refused(offers, "tiny@attic")[0] == refused(offers, "other")[0] == "model_not_found"
    assert refused(Offers(BOTH, key, NOW, "attic"), "tiny")[0] == "machine_not_found"


def test_below_a_machine_there_is_what_that_machine_has() -> None:
    offers = Offers(BOTH, LOCAL, NOW, "den")
    assert names(offers, True) == ["tiny"]
    assert offers.find("tiny").homes == (Home("den", "ready"),)
    assert refused(offers, "tiny@attic")[0] == "model_not_found"


@pytest.mark.parametrize(
    ("replicas", "machine", "state"),
    [
        ((replica("den/0", state="loading"), replica("den/1")), Machine("den"), "ready"),
        ((replica("den/0", state="loading"),), Machine("den"), "loading"),
        ((replica("den/0", heard_at=NOW - 60),), Machine("den"), "out"),
        ((replica("den/0", heard_at=None),), Machine("den"), "unknown"),
        ((replica("den/0", heard_at=NOW - 60),), Machine("den", "lost"), "lost"),
    ],
)
def test_a_home_says_how_it_stands(replicas: tuple[Replica, ...], machine: Machine, state: str) -> None:
    offer = Offers(seen(*replicas, machines={"den": machine}), LOCAL, NOW).find("tiny")
    assert offer.homes == (Home("den", state),)
    assert offer.is_loaded == (state == "ready")


def test_what_no_host_has_told_is_not_known() -> None:
    offer = Offers(seen(replica("den/0", heard_at=None)), LOCAL, NOW).find("tiny")
    assert offer.abilities is None


def test_only_the_first_at_divides_a_name() -> None:
    assert split_model("tiny@den") == ("tiny", "den")
    assert split_model("tiny") == ("tiny", None)

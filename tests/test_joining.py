"""Who may join, under which name, in which zone."""

from dataclasses import replace
from typing import Any

import pytest

from serving.joining import Ask, Cluster, Entry, Join, Known, Refused, decide

HEAD = Known("den", "home", "10.0.0.1")
ASK = Ask(id="b" * 32, address="10.0.0.7", own_address="10.0.0.7", build="0.1.0+aa", host_name="ubuntu")
CLUSTER = Cluster(head_id="a" * 32, head=HEAD, is_alone=False, build="0.1.0+aa")
ATTIC = Entry("attic", "10.0.0.7", "home", 2, 2**30)
OTHER = "c" * 32


def cluster(*entries: Entry, **known: Known) -> Cluster:
    """`me`: the machine that asks; `other`: another one."""
    ids = {"me": ASK.id, "other": OTHER}
    return replace(CLUSTER, entries=entries, known={ids[who]: what for who, what in known.items()})


def joined(ask: Ask, there: Cluster) -> Join:
    decision = decide(ask, there)
    assert isinstance(decision, Join), decision
    return decision


@pytest.mark.parametrize(
    ("scenario", "name", "there", "expected"),
    [
        ("a new machine is called by its host name", None, cluster(), ("ubuntu", "default")),
        ("or as its person wants", "cellar", cluster(), ("cellar", "default")),
        ("the config names the machine at an address", None, cluster(ATTIC), ("attic", "home")),
        ("whatever its person wants", "cellar", cluster(ATTIC), ("attic", "home")),
        (
            "an entry without an address is found by name",
            None,
            cluster(Entry("ubuntu", zone="lab")),
            ("ubuntu", "lab"),
        ),
        ("and by the name that is given", "x1", cluster(Entry("x1", zone="lab")), ("x1", "lab")),
        ("it keeps its name", None, cluster(me=Known("attic", "home", "10.0.0.9")), ("attic", "default")),
        (
            "at a new address it keeps name and zone",
            None,
            cluster(replace(ATTIC, address="10.0.0.9"), me=Known("attic", "home", "10.0.0.9")),
            ("attic", "home"),
        ),
        (
            "at an address that is another's by the config too",
            None,
            cluster(ATTIC, Entry("x1", "10.0.0.8", "lab"), me=Known("x1", "lab", "10.0.0.8")),
            ("x1", "lab"),
        ),
        (
            "and where the config does not name it, but another machine has the name of that address",
            None,
            cluster(ATTIC, me=Known("x1", "default"), other=Known("attic", "home")),
            ("x1", "default"),
        ),
        (
            "the config may name it anew",
            None,
            cluster(ATTIC, me=Known("ubuntu", "default", "10.0.0.7")),
            ("attic", "home"),
        ),
        ("its person too", "x2", cluster(me=Known("ubuntu", "default")), ("x2", "default")),
        (
            "its own name is not taken",
            "ubuntu",
            cluster(me=Known("ubuntu", "default")),
            ("ubuntu", "default"),
        ),
    ],
)
def test_a_machine_joins_as(scenario: str, name: str | None, there: Cluster, expected: Any) -> None:
    decision = joined(replace(ASK, name=name), there)
    assert (decision.name, decision.zone, decision.address) == (*expected, "10.0.0.7"), scenario


@pytest.mark.parametrize(
    ("ask", "there", "code", "words"),
    [
        (replace(ASK, id=CLUSTER.head_id), cluster(), "is_head", "Join from another one"),
        (replace(ASK, address=HEAD.address), cluster(), "is_head", "Join from another one"),
        (ASK, replace(CLUSTER, is_alone=True), "alone", "its `address` below `machines`"),
        (
            replace(ASK, own_address="192.168.7.7", build="0.1.0+bb"),
            cluster(),
            "other_address",
            "sees this machine at 10.0.0.7, and its own address is 192.168.7.7",
        ),
        (
            replace(ASK, build="0.1.0+bb"),
            cluster(),
            "other_build",
            "homeport 0.1.0+aa, this machine 0.1.0+bb",
        ),
        (replace(ASK, name="a/b"), cluster(), "name_wrong", "letters, digits"),
        (replace(ASK, name="x" * 64), cluster(), "name_wrong", "at most 63"),
        (
            replace(ASK, name="den"),
            cluster(),
            "name_taken",
            "den is the head's machine. Join with --name NAME.",
        ),
        (
            ASK,
            cluster(other=Known("ubuntu", "default", "10.0.0.5")),
            "name_taken",
            "ubuntu is another machine, last at 10.0.0.5. Join with --name NAME, or run `homeport forget ubuntu`",
        ),
        (
            replace(ASK, name="x1"),
            cluster(me=Known("ubuntu", "default"), other=Known("x1", "default")),
            "name_taken",
            "--name",
        ),
        (
            ASK,
            cluster(ATTIC, other=Known("attic", "home", "10.0.0.9")),
            "name_taken",
            "calls the machine at 10.0.0.7 attic, and attic is another machine, last at 10.0.0.9. Correct `machines`",
        ),
        (
            ASK,
            cluster(Entry("den", "10.0.0.7")),
            "name_taken",
            "den is the head's machine. Correct `machines`",
        ),
        (
            ASK,
            cluster(Entry("ubuntu", "10.0.0.5")),
            "name_taken",
            "keeps the name ubuntu for the machine at 10.0.0.5, and this one is at 10.0.0.7. Join with --name NAME",
        ),
    ],
)
def test_a_machine_may_not_join(ask: Ask, there: Cluster, code: str, words: str) -> None:
    decision = decide(ask, there)
    assert isinstance(decision, Refused)
    assert decision.code == code
    assert words in decision.message


def test_two_laptops_called_ubuntu_are_told_apart_by_their_addresses() -> None:
    there = cluster(Entry("ubuntu-1", "10.0.0.7"), Entry("ubuntu-2", "10.0.0.8"))
    second = replace(ASK, id=OTHER, address="10.0.0.8", own_address="10.0.0.8")
    assert (joined(ASK, there).name, joined(second, there).name) == ("ubuntu-1", "ubuntu-2")


def test_two_laptops_called_ubuntu_are_told_apart_by_a_name_that_is_given() -> None:
    there = cluster(other=Known("ubuntu", "default", "10.0.0.5"))
    assert isinstance(decide(ASK, there), Refused)
    assert joined(replace(ASK, name="ubuntu-2"), there).name == "ubuntu-2"


def test_the_reserve_is_what_the_config_says_of_that_name() -> None:
    decision = joined(ASK, cluster(ATTIC))
    assert (decision.reserve_cores, decision.reserve_memory_bytes) == (2, 2**30)
    without = joined(ASK, cluster())
    assert (without.reserve_cores, without.reserve_memory_bytes) == (None, None)


def test_an_entry_is_read_as_the_config_writes_it() -> None:
    told = {
        "name": "attic",
        "address": None,
        "zone": "home",
        "reserve_cores": None,
        "reserve_memory_bytes": 5,
    }
    assert Entry.from_json(told) == Entry("attic", None, "home", None, 5)
    assert Entry.from_json({**told, "yield_to": ["steam"]}).yield_to == ("steam",)


def test_to_which_programs_it_yields_the_config_says_of_that_name() -> None:
    entry = replace(ATTIC, yield_to=("steam", "blender"))
    assert joined(ASK, cluster(entry)).yield_to == ("steam", "blender")
    assert joined(ASK, cluster()).yield_to == ()


@pytest.mark.parametrize(
    ("address", "boots", "boot", "refused"),
    [
        ("10.0.0.9", {ASK.id: "boot-1"}, "boot-2", True),
        ("10.0.0.9", {ASK.id: "boot-1"}, "boot-1", False),
        ("10.0.0.9", {}, "boot-2", False),
        ("10.0.0.9", {ASK.id: ""}, "boot-2", False),
        ("10.0.0.9", {ASK.id: "boot-1"}, "", False),
        (ASK.address, {ASK.id: "boot-1"}, "boot-2", False),
    ],
    ids=[
        "two at once",
        "one that moved",
        "one that came back",
        "an older keeper",
        "an older one",
        "rebooted",
    ],
)
def test_a_copy_of_a_disk_is_told_from_a_machine_that_moved(
    address: str, boots: dict[str, str], boot: str, refused: bool
) -> None:
    there = replace(cluster(me=Known("attic", "home", address)), boots=boots)
    decision = decide(replace(ASK, boot=boot), there)
    assert isinstance(decision, Refused) == refused
    if isinstance(decision, Refused):
        assert decision.code == "id_taken"
        assert "attic at 10.0.0.9 has the id of this machine" in decision.message
        assert "remove machine.json and replicas/" in decision.message

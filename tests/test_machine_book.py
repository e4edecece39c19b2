"""Which machines were ever here, and where."""

import json
from pathlib import Path

import pytest

from serving.joining import Known
from serving.machine_book import MachineBook, NoMachine, NotForgotten


def test_what_a_machine_was_is_remembered(tmp_path: Path) -> None:
    book = MachineBook(tmp_path / "machines.json")
    assert book.here("id-1", "attic", "home", "10.0.0.7")
    assert not book.here("id-1", "attic", "home", "10.0.0.7")
    assert book.here("id-1", "attic", "home", "10.0.0.8")
    assert MachineBook(tmp_path / "machines.json").remembered() == {
        "id-1": Known("attic", "home", "10.0.0.8")
    }


def test_a_book_of_an_earlier_version_has_no_addresses(tmp_path: Path) -> None:
    told = {"id-1": {"name": "attic", "zone": "home"}}
    (tmp_path / "machines.json").write_text(json.dumps({"known": told, "forgotten": {}}))
    assert MachineBook(tmp_path / "machines.json").remembered() == {"id-1": Known("attic", "home")}


def test_the_name_of_a_forgotten_machine_is_free(tmp_path: Path) -> None:
    book = MachineBook(tmp_path / "machines.json")
    book.here("id-1", "attic", "home", "10.0.0.7")
    with pytest.raises(NotForgotten, match="attic is here"):
        book.forget("attic", {"id-1"})
    assert book.forget("attic", ()) == ("id-1",)
    assert book.remembered() == {}
    assert book.list_forgotten() == [{"id": "id-1", "name": "attic", "zone": "home"}]
    book.here("id-2", "attic", "home", "10.0.0.7")
    assert list(book.remembered()) == ["id-2"]


def test_the_zone_of_a_replica_is_its_machines_also_when_that_is_forgotten(tmp_path: Path) -> None:
    book = MachineBook(tmp_path / "machines.json")
    book.here("id-1", "attic", "home", "10.0.0.7")
    assert (book.zone_of("attic/0"), book.zone_of("den/0")) == ("home", None)
    book.forget("attic", ())
    assert book.zone_of("attic/0") == "home"
    book.here("id-2", "attic", "office", "10.0.0.8")
    assert book.zone_of("attic/1") == "office"


def test_a_cordon_is_kept_on_disk_until_it_is_taken_away(tmp_path: Path) -> None:
    book = MachineBook(tmp_path / "machines.json")
    book.here("id-1", "attic", "home")
    book.here("id-2", "den", "home")
    book.cordon("attic", True)
    book.cordon("attic", True)
    assert MachineBook(tmp_path / "machines.json").cordoned == {"id-1"}
    book.here("id-1", "loft", "home")
    assert book.cordoned == {"id-1"}, "it is the machine, whatever its name is"
    book.cordon("loft", False)
    assert MachineBook(tmp_path / "machines.json").cordoned == set()


def test_a_drain_is_kept_with_its_deadline_until_an_uncordon_ends_it(tmp_path: Path) -> None:
    book = MachineBook(tmp_path / "machines.json")
    book.here("id-1", "attic", "home")
    book.here("id-2", "den", "home")
    book.drain("attic", 1000.0)
    book.cordon("den", True)
    again = MachineBook(tmp_path / "machines.json")
    assert (again.draining, again.cordoned) == ({"id-1": 1000.0}, {"id-2"})
    again.drain("attic", 2000.0)
    again.cordon("attic", True)
    assert MachineBook(tmp_path / "machines.json").draining == {"id-1": 2000.0}
    again.cordon("attic", False)
    assert (again.draining, again.cordoned) == ({}, {"id-2"})
    again.drain("den", 3000.0)
    again.forget("den", ())
    assert MachineBook(tmp_path / "machines.json").draining == {}
    with pytest.raises(NoMachine, match="known: attic"):
        again.drain("den", 1.0)


def test_a_drain_that_cannot_be_written_down_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = MachineBook(tmp_path / "machines.json")
    book.here("id-1", "attic", "home")

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("serving.machine_book.write_private", full)
    with pytest.raises(OSError, match="no space"):
        book.drain("attic", 1000.0)
    assert book.draining == {}


def test_only_a_machine_that_is_known_is_cordoned(tmp_path: Path) -> None:
    book = MachineBook(tmp_path / "machines.json")
    with pytest.raises(NoMachine, match=r"no machine shed; known: none\."):
        book.cordon("shed", True)
    book.here("id-1", "attic", "home")
    book.here("id-2", "den", "home")
    book.cordon("den", True)
    book.forget("den", ())
    assert book.cordoned == set()
    with pytest.raises(NoMachine, match=r"no machine den; known: attic\."):
        book.cordon("den", True)


def test_a_cordon_that_cannot_be_written_down_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = MachineBook(tmp_path / "machines.json")
    book.here("id-1", "attic", "home")

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("serving.machine_book.write_private", full)
    with pytest.raises(OSError, match="no space"):
        book.cordon("attic", True)
    assert book.cordoned == set()

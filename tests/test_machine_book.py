"""Which machines were ever here, and where."""

import json
from pathlib import Path

import pytest

from serving.joining import Known
from serving.machine_book import MachineBook, NotForgotten


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

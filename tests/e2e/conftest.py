"""Installations for tests; everything of them is ended afterwards, also when the test fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.processes import ours
from router.lifecycle import end_everything
from tests.e2e.installation import Homeport


@pytest.fixture(scope="package")
def homeport(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """One that runs, shared by the tests that leave it as they found it."""
    installed = Homeport(tmp_path_factory.mktemp("homeport"))
    try:
        installed.up()
        yield installed
    finally:
        end_everything(installed.paths)
    assert ours(installed.paths) == []


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Homeport]:
    """One that a test starts itself."""
    installed = Homeport(tmp_path)
    try:
        yield installed
    finally:
        end_everything(installed.paths)
    assert ours(installed.paths) == []

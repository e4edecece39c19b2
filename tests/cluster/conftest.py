"""Laboratories for tests. Where this machine has not what they need, the tests say so and are skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kernel import run
from tests.cluster.lab import Lab, laboratory, missing
from tests.cluster.several import prepare


@pytest.fixture(scope="session", autouse=True)
def equipped() -> None:
    lacks = missing()
    if lacks:
        pytest.skip(f"machines as namespaces need {', '.join(lacks)}, which this machine does not give")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A laboratory without machines."""
    with laboratory(tmp_path / "lab") as made:
        yield made


@pytest.fixture(scope="session")
def prepared(equipped: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What lies on the disks of machines with homeport's dependencies: a clone with a `.venv`."""
    folder = tmp_path_factory.mktemp("prepared")
    try:
        yield prepare(folder)
    finally:
        run("rm", "-rf", str(folder))

"""Laboratories for tests. Where this machine has not what they need, the tests say so and are skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kernel import run
from tests.cluster.lab import Lab, laboratory, missing, until
from tests.cluster.several import HOMEPORT, Several, prepare, several

SHARED = {"den-pc": "home", "tower": "home", "rack": "office", "attic": "office"}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that share one cluster come last, so that it does not run beside the laboratories of the others."""
    items.sort(key=lambda item: "shared" in getattr(item, "fixturenames", ()))


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


@pytest.fixture(scope="session")
def brought_up(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    """The machines of SHARED, up by `ray up` on the list as it is shipped. At the end nothing of them is left."""
    with several(tmp_path_factory.mktemp("shared") / "lab", prepared, SHARED) as made:
        for machine in made.members:
            machine.boot()
        made.ups()
        yield made
        made.head.ssh(f"{HOMEPORT} down --all")
        for machine in made.members:
            until(lambda machine=machine: not machine.commands(), f"the end of everything on {machine.name}")  # type: ignore[misc]


@pytest.fixture
def shared(brought_up: Several) -> Several:
    """One cluster for all tests that ask for it, whole when a test begins, whatever the one before left.

    It is mended by what people do: power, cable, `ray up`, `homeport uncordon`. A test that gives it another config,
    or further machines, takes them back itself; its sessions have names that no other test uses.
    """
    brought_up.becomes_whole()
    return brought_up

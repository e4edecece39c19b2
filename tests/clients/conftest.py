"""Client programs as their users have them, against a real homeport; where they are not set up, the tests say so."""

import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.chat import Chat, chat
from tests.clients.prepare import lacking
from tests.clients.programs import Programs, programs
from tests.clients.scenarios import Client
from tests.clients.scripted import scripted_homeport
from tests.e2e.installation import Homeport, ended_after
from tests.e2e.talk import MODEL


@pytest.fixture(scope="session")
def installed() -> Programs:
    if (why := lacking()) is not None:
        pytest.skip(f"client programs: {why}")
    found = programs()
    if not found.is_whole:
        pytest.fail("the client programs are not set up: run `make test-clients`")
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as Ctrl-C does, so that what was started ends too
    return found


@pytest.fixture(scope="package")
def real(installed: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """The bundled model, exclusive, on each core."""
    folder = tmp_path_factory.mktemp("real")
    with ended_after(Homeport(folder, hold="1s", queue="60s", context=8192)) as homeport:
        homeport.up()
        yield homeport


@pytest.fixture(scope="package")
def scripted(installed: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """Two exclusive replicas whose answers stand in a script: for agents, of whom no small model makes anything."""
    with ended_after(scripted_homeport(tmp_path_factory.mktemp("scripted"))) as homeport:
        homeport.up("--allow-script")
        yield homeport


@pytest.fixture
def world(request: pytest.FixtureRequest, client: Client) -> Homeport:
    """What the client talks to."""
    homeport = request.getfixturevalue("real" if client.model == MODEL else "scripted")
    assert isinstance(homeport, Homeport)
    return homeport


@pytest.fixture
def new_chat(world: Homeport, client: Client, tmp_path: Path) -> Iterator[Callable[[], Chat]]:
    """Begins conversations, each in a home of its own."""
    numbers = itertools.count(1)
    with ExitStack() as open_chats:
        yield lambda: open_chats.enter_context(
            chat(tmp_path / f"{tmp_path.name}-{next(numbers)}", world.ports["router"], client.model)
        )

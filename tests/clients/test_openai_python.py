"""OpenAI's SDK for Python."""

from pathlib import Path

import pytest

from tests.clients.programs import Programs
from tests.clients.scenarios import (  # noqa: F401  the tests themselves
    Client,
    test_a_restart_of_the_client_resumes,
    test_cancel_frees,
    test_turns_stay,
    test_two_conversations_at_once_get_two_homes,
)
from tests.clients.sdk import Sdk, runs_as_printed
from tests.e2e.installation import Homeport

pytestmark = pytest.mark.clients


@pytest.fixture
def client(installed: Programs) -> Client:
    return Sdk(installed, "openai")


def test_what_connect_prints_runs_as_it_stands_there(
    installed: Programs, scripted: Homeport, tmp_path: Path
) -> None:
    runs_as_printed(installed, scripted, tmp_path / tmp_path.name, "openai-sdk")

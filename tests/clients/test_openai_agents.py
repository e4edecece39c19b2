"""OpenAI's Agents SDK, over the Responses API."""

import pytest

from tests.clients.programs import Programs
from tests.clients.scenarios import (  # noqa: F401  the tests themselves
    Client,
    test_a_restart_of_the_client_resumes,
    test_cancel_frees,
    test_turns_stay,
    test_two_conversations_at_once_get_two_homes,
)
from tests.clients.scripted import AGENT
from tests.clients.sdk import Sdk

pytestmark = pytest.mark.clients


@pytest.fixture
def client(installed: Programs) -> Client:
    return Sdk(installed, "agents", model=AGENT)

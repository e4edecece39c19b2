"""Continue's `cn`: a process a turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.chat import Chat
from tests.clients.connected import connected
from tests.clients.programs import Programs
from tests.clients.scenarios import (  # noqa: F401  the tests themselves
    Client,
    test_a_restart_of_the_client_resumes,
    test_cancel_frees,
    test_tool_calls_go_on_at_home,
    test_two_conversations_at_once_get_two_homes,
)
from tests.clients.scripted import AGENT

pytestmark = pytest.mark.clients

QUIET = {"CONTINUE_TELEMETRY_ENABLED": "0"}


@dataclass(frozen=True, slots=True)
class Continue:
    programs: Programs
    source: str = "guess"
    model: str = AGENT

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        (line,) = words
        goes_on = ["--resume"] if (connected(chat, "continue").parent / "sessions").exists() else []
        command = [self.programs.node, self.programs.continue_, "--allow", "Bash", *goes_on]
        return [*command, "-p", line], QUIET


@pytest.fixture
def client(installed: Programs) -> Client:
    return Continue(installed)

"""opencode: `opencode run`, a process a turn."""

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
    test_a_title_request_does_not_disturb,
    test_cancel_frees,
    test_tool_calls_go_on_at_home,
    test_two_conversations_at_once_get_two_homes,
)
from tests.clients.scripted import AGENT

pytestmark = pytest.mark.clients

QUIET = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
}


@dataclass(frozen=True, slots=True)
class Opencode:
    programs: Programs
    source: str = "header"
    model: str = AGENT

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        (line,) = words
        connected(chat, "opencode")
        goes_on = ["--continue"] if (chat.folder / ".local" / "share" / "opencode").exists() else []
        return [self.programs.opencode, "run", *goes_on, line], QUIET


@pytest.fixture
def client(installed: Programs) -> Client:
    return Opencode(installed)

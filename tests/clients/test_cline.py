"""Cline's command line: a process a task, beside which it leaves one of its own running.

Without a terminal it goes on with no earlier task.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.chat import Chat
from tests.clients.connected import printed
from tests.clients.programs import Programs
from tests.clients.scenarios import (  # noqa: F401  the tests themselves
    Client,
    test_cancel_frees,
    test_tool_calls_go_on_at_home,
    test_two_conversations_at_once_get_two_homes,
)
from tests.clients.scripted import AGENT

pytestmark = pytest.mark.clients

PROVIDER = "openai-compatible"
QUIET = {"CLINE_TELEMETRY_DISABLED": "1"}


@dataclass(frozen=True, slots=True)
class Cline:
    programs: Programs
    source: str = "guess"
    model: str = AGENT

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        (line,) = words
        data = chat.folder / ".cline" / "data"
        (data / "settings").mkdir(parents=True, exist_ok=True)
        (data / "settings" / "providers.json").write_text(json.dumps(settings(chat)))
        command = [self.programs.cline, "--json", "-P", PROVIDER, "-m", chat.model, line]
        return command, QUIET


def settings(chat: Chat) -> dict[str, Any]:
    words = dict(re.findall(r"^(.+?): +(.+)$", printed(chat, "cline"), re.MULTILINE))
    found = {
        "provider": PROVIDER,
        "apiKey": words["API Key"],
        "model": words["Model ID"],
        "baseUrl": words["Base URL"],
    }
    provider = {"settings": found, "updatedAt": "2026-01-01T00:00:00.000Z", "tokenSource": "manual"}
    return {"version": 1, "lastUsedProvider": PROVIDER, "modes": {}, "providers": {PROVIDER: provider}}


@pytest.fixture
def client(installed: Programs) -> Client:
    return Cline(installed)

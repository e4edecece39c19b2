"""`llm`, the command line: a process a turn, its conversations kept in its own database."""

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
    test_two_conversations_at_once_get_two_homes,
)
from tests.e2e.talk import MODEL

pytestmark = pytest.mark.clients


@dataclass(frozen=True, slots=True)
class Llm:
    programs: Programs
    source: str = "guess"
    model: str = MODEL

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        (line,) = words
        folder = connected(chat, "llm").parent
        goes_on = ["--continue"] if (folder / "logs.db").exists() else []
        if chat.key is not None:
            chat.run(
                [self.programs.command("sdks", "llm"), "keys", "set", "homeport", "--value", chat.key], {}
            )
        command = [self.programs.command("sdks", "llm"), "prompt", *goes_on, "-m", f"homeport/{chat.model}"]
        options = ["-o", "temperature", "0", "-o", "max_tokens", chat.max_tokens]
        return [*command, *options, line], {}


@pytest.fixture
def client(installed: Programs) -> Client:
    return Llm(installed)

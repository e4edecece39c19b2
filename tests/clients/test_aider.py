"""aider: a process a turn, its history in a file beside what it works on.

It moves a part of its instructions to the newest message at every turn, so that no guess knows its conversation again:
the base URL names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.chat import Chat
from tests.clients.connected import connected
from tests.clients.programs import Programs
from tests.clients.scenarios import (  # noqa: F401  the tests themselves
    ANOTHER,
    Client,
    NewChat,
    at_rest,
    home,
    rivers,
    say,
    test_cancel_frees,
    test_two_conversations_at_once_get_two_homes,
)
from tests.clients.scripted import AGENT
from tests.e2e.installation import Homeport

pytestmark = pytest.mark.clients

QUIET = [
    "--yes-always",
    "--no-git",
    "--no-gitignore",
    "--no-check-update",
    "--analytics-disable",
    "--no-show-release-notes",
    "--no-detect-urls",
    "--no-suggest-shell-commands",
]


@dataclass(frozen=True, slots=True)
class Aider:
    programs: Programs
    source: str = "path"
    model: str = AGENT

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        (line,) = words
        connected(chat, "aider", session=chat.folder.name)
        command = [self.programs.command("aider", "aider"), *QUIET]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        return [*command, "--restore-chat-history", "--message", line], env


@pytest.fixture
def client(installed: Programs) -> Client:
    return Aider(installed)


def test_a_restart_of_the_client_resumes(world: Homeport, client: Client, new_chat: NewChat) -> None:
    """What aider has moved, and what comes behind it, is evaluated anew."""
    at_rest(world)
    chat = new_chat()
    (first,) = say(client, chat, rivers())
    (second,) = say(client, chat, ANOTHER)
    assert (first.answer_headers["x-homeport-pin"], second.answer_headers["x-homeport-pin"]) == (
        "new",
        "kept",
    )
    assert home(first) == home(second)
    assert second.answer_headers["x-homeport-source"] == "path"
    assert second.told["cause"].startswith("edited@"), second.told
    assert second.told["reused_tokens"] > second.told["evaluated_tokens"]

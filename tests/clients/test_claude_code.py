"""Claude Code: `claude -p`, a process a turn, and as in a terminal."""

import json
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
    assert_goes_on,
    at_rest,
    rivers,
    talk,
    test_a_restart_of_the_client_resumes,
    test_cancel_frees,
    test_tool_calls_go_on_at_home,
    test_two_conversations_at_once_get_two_homes,
)
from tests.clients.scripted import AGENT, CAT
from tests.e2e.installation import Homeport, eventually

pytestmark = pytest.mark.clients

PROMPT = "\N{HEAVY RIGHT-POINTING ANGLE QUOTATION MARK ORNAMENT}"
"""Behind it a person writes."""
QUIET = {"DISABLE_AUTOUPDATER": "1", "DISABLE_TELEMETRY": "1", "DISABLE_ERROR_REPORTING": "1"}
NO_TITLES = "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"


@dataclass(frozen=True, slots=True)
class ClaudeCode:
    programs: Programs
    source: str = "header"
    model: str = AGENT

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        (line,) = words
        goes_on = ["--continue"] if (chat.folder / ".claude" / "projects").exists() else []
        connected(chat, "claude-code")
        return [self.programs.claude, "-p", *goes_on, "--allowedTools", f"Bash({CAT})", "--", line], QUIET


@pytest.fixture
def client(installed: Programs) -> Client:
    return ClaudeCode(installed)


def test_turns_in_a_terminal_stay_and_titles_do_not_disturb(
    installed: Programs, world: Homeport, client: Client, new_chat: NewChat
) -> None:
    """It asks for one before each turn, unless `homeport connect` has told it not to."""
    at_rest(world)
    chat = new_chat()
    trusted = {str(chat.work): {"hasTrustDialogAccepted": True}}
    known = {"hasCompletedOnboarding": True, "theme": "dark", "projects": trusted}
    (chat.folder / ".claude.json").write_text(json.dumps(known))

    def are_told(turns: int) -> bool:
        return len(talk(chat.turns)) == turns and all(turn.told for turn in chat.turns)

    file = connected(chat, "claude-code")
    settings = json.loads(file.read_text())
    del settings["env"][NO_TITLES]
    file.write_text(json.dumps(settings))
    with chat.terminal([installed.claude], QUIET) as write:
        eventually(lambda: PROMPT in chat.said, 60)
        write(rivers())
        eventually(lambda: are_told(1), 60)
        write(ANOTHER)
        eventually(lambda: are_told(2), 60)
    first, second = talk(chat.turns)
    assert_goes_on(first, second, client)
    told = [turn for turn in chat.turns if turn.told]
    assert len(told) > 2
    assert len({turn.answer_headers["x-homeport-session"] for turn in told}) == 1

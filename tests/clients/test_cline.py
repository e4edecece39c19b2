"""Cline's command line: a process a task, beside which it leaves one of its own running.

An earlier task it goes on with in a terminal alone.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.chat import Chat
from tests.clients.connected import printed
from tests.clients.programs import Programs
from tests.clients.scenarios import (  # noqa: F401  the tests themselves
    ANOTHER,
    Client,
    NewChat,
    assert_goes_on,
    at_rest,
    rivers,
    say,
    test_cancel_frees,
    test_tool_calls_go_on_at_home,
    test_two_conversations_at_once_get_two_homes,
)
from tests.clients.scripted import AGENT, ANSWER
from tests.e2e.installation import Homeport, eventually

pytestmark = pytest.mark.clients

LAST_SHOWN = ANSWER.split()[-1]
"""Of an answer in a terminal, which gets each word by itself."""
QUIET = {"CLINE_TELEMETRY_DISABLED": "1"}


@dataclass(frozen=True, slots=True)
class Cline:
    programs: Programs
    source: str = "guess"
    model: str = AGENT

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        (line,) = words
        if not (chat.folder / ".cline").exists():
            _, *told = shlex.split(printed(chat, "cline").partition("Its command line: ")[2])
            chat.run([self.programs.cline, *told], QUIET)
        return [self.programs.cline, "--json", line], QUIET


@pytest.fixture
def client(installed: Programs) -> Client:
    return Cline(installed)


def test_a_restart_in_a_terminal_resumes_and_turns_stay(
    installed: Programs, world: Homeport, client: Client, new_chat: NewChat
) -> None:
    at_rest(world)
    chat = new_chat()
    say(client, chat, rivers())
    (task,) = (folder.name for folder in (chat.folder / ".cline" / "data" / "sessions").iterdir())
    before = len(chat.said)

    def are_told(turns: int) -> bool:
        return len(chat.turns) == turns and all(turn.told for turn in chat.turns)

    command: list[Any] = [installed.cline, "--id", task]
    with chat.terminal(command, QUIET) as write:
        eventually(lambda: LAST_SHOWN in chat.said[before:], 60)
        write(ANOTHER)
        eventually(lambda: are_told(2), 60)
        write(ANOTHER)
        eventually(lambda: are_told(3), 60)
    first, second, third = chat.turns
    assert first.answer_headers["x-homeport-pin"] == "new"
    assert_goes_on(first, second, client)
    assert_goes_on(second, third, client)

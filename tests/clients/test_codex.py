"""Codex: `codex exec`, a process a turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.chat import Chat
from tests.clients.connected import connected
from tests.clients.programs import Programs
from tests.clients.scenarios import (  # noqa: F401  the tests themselves
    Client,
    NewChat,
    at_rest,
    rivers,
    say,
    test_a_restart_of_the_client_resumes,
    test_cancel_frees,
    test_tool_calls_go_on_at_home,
    test_two_conversations_at_once_get_two_homes,
)
from tests.clients.scripted import AGENT
from tests.e2e.installation import Homeport

pytestmark = pytest.mark.clients

QUIET = ("-c", "check_for_update_on_startup=false", "-c", "analytics.enabled=false")
UNASKED = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")


@dataclass(frozen=True, slots=True)
class Codex:
    programs: Programs
    source: str = "header"
    model: str = AGENT

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        (line,) = words
        home = connected(chat, "codex").parent
        goes_on = ["resume", "--last"] if (home / "sessions").exists() else []
        return [self.programs.codex, "exec", *UNASKED, *QUIET, *goes_on, line], {}


@pytest.fixture
def client(installed: Programs) -> Client:
    return Codex(installed)


def test_connect_says_what_arrives_of_it(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    with world.popen("connect", "codex", "--check", "--once") as check:
        try:
            assert check.stdout is not None
            assert check.stdout.readline().startswith("Watching ")
            (turn,) = say(client, new_chat(), rivers())
            seen, advice = check.stdout.read().splitlines()
        finally:
            check.kill()
    session, machine = (turn.answer_headers[f"x-homeport-{what}"] for what in ("session", "machine"))
    assert seen.startswith("codex_exec/")
    assert seen.endswith(
        f": responses, a stream, source header (session-id), session {session}, new at {machine}"
    )
    assert advice == "  Good: a header names its conversation, which keeps its home."

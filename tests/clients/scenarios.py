"""What holds for every client: a module of tests takes those of these that apply to its own, as fixture `client`."""

import itertools
import os
import random
import signal
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tests.clients.chat import Chat
from tests.clients.recorder import Exchange
from tests.clients.scripted import NOTE, READ_IT, SLOWLY
from tests.e2e.installation import Homeport, eventually
from tests.e2e.talk import at_once

KEY = "hp-of-the-second-chat"
ANOTHER = "And a fourth?"
LONG = "Write a long story about a harbour, a lighthouse and a storm."
LONG_TOKENS = 1200
SHOWN_BYTES = 8000
"""Of an answer's stream, by which it is well on its way."""
LEAVES_S = 20.0
"""For the program itself to hang up."""
FREE_S = 2.0

_numbers = itertools.count(random.randrange(1000, 9000))
NewChat = Callable[[], Chat]


class Known(Protocol):
    """Whose sessions homeport knows."""

    @property
    def source(self) -> str:
        """How, as `x-homeport-source` says it."""


class Client(Known, Protocol):
    """How a program is made to say something."""

    @property
    def model(self) -> str:
        """What it asks for."""

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        """The command and its environment that go on with this conversation, or begin it, and say these words, a turn
        each, until all are answered."""


def rivers() -> str:
    """Words to begin with: chats that begin alike would be one to those who guess."""
    return f"This is chat {next(_numbers)}. Name three rivers."


def say(client: Client, chat: Chat, *words: str) -> list[Exchange]:
    """The turns of one run of the program."""
    before = len(chat.turns)
    chat.run(*client.command(chat, words))
    turns = chat.turns[before:]
    assert all(turn.status == 200 and turn.told for turn in turns), turns
    return talk(turns)


def talk(turns: list[Exchange]) -> list[Exchange]:
    """Those of the conversation: what an agent asks beside it, a title for one, offers no tools."""
    return [turn for turn in turns if turn.body.get("tools")] or turns


def prompt_tokens(turn: Exchange) -> int:
    told = turn.told
    return int(told["reused_tokens"]) + int(told["evaluated_tokens"])


def home(turn: Exchange) -> str:
    return turn.answer_headers["x-homeport-replica"]


def assert_goes_on(first: Exchange, second: Exchange, client: Known) -> None:
    """The second turn came home, and only what is new in it was evaluated."""
    assert second.answer_headers["x-homeport-pin"] == "kept"
    assert home(first) == home(second)
    assert {turn.answer_headers["x-homeport-source"] for turn in (first, second)} == {client.source}
    assert second.told["cause"] is None, second.told
    assert second.told["reused_tokens"] >= prompt_tokens(first), (first.told, second.told)


def key_of(turn: Exchange) -> str | None:
    bearer = turn.headers.get("authorization", "")
    return bearer.removeprefix("Bearer ") or turn.headers.get("x-api-key")


def running(world: Homeport) -> int:
    return sum(int(world.host_state(replica)["running"]) for replica in world.replicas())


def at_rest(world: Homeport) -> None:
    """Until the router's picture shows no turn: it is up to a second old."""
    eventually(lambda: not any(r["running"] or r["waiting"] for r in world.replicas()), 60)


def test_two_conversations_at_once_get_two_homes(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    chats = [new_chat(), new_chat()]
    chats[1].key = KEY
    at_once(*(lambda c=c: say(client, c, f"{rivers()} {SLOWLY}") for c in chats))
    turns = [turn for chat in chats for turn in chat.turns]
    assert len({home(turn) for turn in turns}) == 2
    assert len({turn.answer_headers["x-homeport-session"] for turn in turns}) == 2
    assert {key_of(turn) for turn in chats[1].turns} == {KEY}


def test_turns_stay(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    first, second = say(client, new_chat(), rivers(), ANOTHER)
    assert first.answer_headers["x-homeport-pin"] == "new"
    assert_goes_on(first, second, client)


def test_a_restart_of_the_client_resumes(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    chat = new_chat()
    (first,) = say(client, chat, rivers())
    (second,) = say(client, chat, ANOTHER)
    assert chat.turns[0].answer_headers["x-homeport-pin"] == "new"
    assert_goes_on(first, second, client)


def test_cancel_frees(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    chat = new_chat()
    chat.max_tokens = LONG_TOKENS
    process = chat.start(*client.command(chat, [LONG]))
    eventually(lambda: any(len(turn.answer) > SHOWN_BYTES for turn in chat.turns), 60)
    assert running(world) == 1
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does at Ctrl-C
    eventually(lambda: chat.recorder.connections == 0, LEAVES_S)
    eventually(lambda: running(world) == 0, FREE_S)
    assert not chat.turns[-1].told


def test_a_title_request_does_not_disturb(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    chat = new_chat()
    (first,) = say(client, chat, rivers())
    (second,) = say(client, chat, ANOTHER)
    titles = [turn for turn in chat.turns if turn not in talk(chat.turns)]
    assert titles
    named = {turn.answer_headers["x-homeport-session"] for turn in (*titles, first, second)}
    assert len(named) == 1
    assert_goes_on(first, second, client)


def test_tool_calls_go_on_at_home(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    chat = new_chat()
    (chat.work / "note.txt").write_text(NOTE)
    asks, reads = say(client, chat, READ_IT)
    assert NOTE in reads.sent.decode()
    assert NOTE in chat.said
    assert_goes_on(asks, reads, client)

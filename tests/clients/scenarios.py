"""What holds for every client: a module of tests takes those of these that apply to its own, as fixture `client`."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import psutil

from tests.clients.chat import Chat
from tests.clients.recorder import Exchange
from tests.e2e.installation import Homeport, eventually
from tests.e2e.talk import at_once

ANOTHER = "And a fourth?"
LONG = "Write a long story about a harbour, a lighthouse and a storm."
LONG_TOKENS = 1200
SHOWN_BYTES = 2000
"""Of an answer's stream, by which it is well on its way."""
FREE_S = 2.0

_numbers = itertools.count(random.randrange(1000, 9000))
NewChat = Callable[[], Chat]


class Client(Protocol):
    """How a program is made to say something."""

    @property
    def source(self) -> str:
        """How homeport knows its sessions, as `x-homeport-source` says it."""

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
    return turns


def prompt_tokens(turn: Exchange) -> int:
    told = turn.told
    return int(told["reused_tokens"]) + int(told["evaluated_tokens"])


def home(turn: Exchange) -> str:
    return turn.answer_headers["x-homeport-replica"]


def assert_goes_on(first: Exchange, second: Exchange, client: Client) -> None:
    """The second turn came home, and only what is new in it was evaluated."""
    assert first.answer_headers["x-homeport-pin"] == "new"
    assert second.answer_headers["x-homeport-pin"] == "kept"
    assert home(first) == home(second)
    assert {turn.answer_headers["x-homeport-source"] for turn in (first, second)} == {client.source}
    assert second.told["cause"] is None, second.told
    assert second.told["reused_tokens"] >= prompt_tokens(first), (first.told, second.told)


def running(world: Homeport) -> int:
    return sum(int(world.host_state(replica)["running"]) for replica in world.replicas())


def at_rest(world: Homeport) -> None:
    """Until the router's picture shows no turn: it is up to a second old."""
    eventually(lambda: not any(r["running"] or r["waiting"] for r in world.replicas()), 60)


def test_two_conversations_at_once_get_two_homes(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    chats = [new_chat(), new_chat()]
    at_once(*(lambda c=c: say(client, c, rivers()) for c in chats))
    turns = [chat.turns[-1] for chat in chats]
    assert len({home(turn) for turn in turns}) == 2
    assert len({turn.answer_headers["x-homeport-session"] for turn in turns}) == 2


def test_turns_stay(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    first, second = say(client, new_chat(), rivers(), ANOTHER)
    assert_goes_on(first, second, client)


def test_a_restart_of_the_client_resumes(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    chat = new_chat()
    first = say(client, chat, rivers())[-1]
    second = say(client, chat, ANOTHER)[-1]
    assert_goes_on(first, second, client)


def test_cancel_frees(world: Homeport, client: Client, new_chat: NewChat) -> None:
    at_rest(world)
    chat = new_chat()
    chat.max_tokens = LONG_TOKENS
    process = chat.start(*client.command(chat, [LONG]))
    eventually(lambda: any(len(turn.answer) > SHOWN_BYTES for turn in chat.turns), 60)
    assert running(world) == 1
    interrupted = time.monotonic()
    for part in psutil.Process(process.pid).children(recursive=True):
        os.kill(part.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    eventually(lambda: running(world) == 0, FREE_S)
    assert time.monotonic() - interrupted < FREE_S
    assert not chat.turns[-1].told

"""What workers ask each other over their sockets, and what becomes of a sibling that is gone, silent or broken."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router import siblings
from router.arrival import Arrived
from router.decision import Ask
from router.keys import Key
from router.siblings import Answers, OpenTurn, Siblings, answering, open_turns
from router.workers import Worker

TURN = OpenTurn("a-session", "tiny", "anna", "header", "den/0", None)
CHILD = OpenTurn("another", "tiny", "bert", "guess", "", "a-session")
DESCRIPTORS = Path("/proc/self/fd")


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


class Told:
    """A worker that answers, and what it was told."""

    def __init__(self, *turns: OpenTurn, **zones: str) -> None:
        self.turns = list(turns)
        self.zones = zones
        self.ended: list[tuple[str, str]] = []
        self.making: list[str] = []

    def answers(self) -> Answers:
        def zones(said: Sequence[str]) -> dict[str, str]:
            return {each: self.zones[each] for each in said if each in self.zones}

        def cancel(response: str, key: str) -> dict[str, Any] | None:
            return {"id": response, "key": key} if response in self.making else None

        return Answers(
            lambda: self.turns, lambda *of: self.ended.append(of), zones, cancel, lambda _: Arrived(0)
        )


@asynccontextmanager
async def answer(folder: Path, *told: Told | None) -> AsyncIterator[Siblings]:
    """Workers from 2 on, None for one that is not there; the siblings as the first one asks them."""
    count = len(told) + 1
    blocks = [
        answering(Worker(number, count, folder), each.answers())
        for number, each in enumerate(told, 2)
        if each is not None
    ]
    for block in blocks:
        await block.__aenter__()
    try:
        yield Siblings(Worker(1, count, folder))
    finally:
        for block in blocks:
            await block.__aexit__(None, None, None)


async def test_all_that_are_there_are_asked(tmp_path: Path) -> None:
    two, four = Told(TURN, h1="home"), Told(CHILD, h1="home", h2="work")
    async with answer(tmp_path, two, None, four) as asked:
        assert sorted(await asked.turns(), key=lambda turn: turn.session) == [TURN, CHILD]
        assert await asked.zones(["h2", "h1", "h3"]) == {"h1": "home", "h2": "work"}
        await asked.ended("a-session", "tiny")
        assert two.ended == four.ended == [("a-session", "tiny")]
    assert files(tmp_path) == []


async def test_a_response_is_cancelled_where_it_is_being_made(tmp_path: Path) -> None:
    two, three = Told(), Told()
    three.making.append("resp_1")
    async with answer(tmp_path, two, three) as asked:
        assert await asked.cancel("resp_1", "ann") == {"id": "resp_1", "key": "ann"}
        assert await asked.cancel("resp_2", "ann") is None


async def test_many_turns_fit_into_an_answer(tmp_path: Path) -> None:
    async with answer(tmp_path, Told(*[TURN] * 20_000)) as asked:
        assert len(await asked.turns()) == 20_000


async def test_a_router_of_one_process_asks_nobody() -> None:
    asked = Siblings()
    await asked.ended("a-session", "tiny")
    assert (await asked.turns(), await asked.zones(["h1"])) == ([], {})
    async with answering(None, Told().answers()):
        pass


async def test_one_that_says_nothing_is_left_out_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "ANSWER_S", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "router-3.sock"))
        silent.listen()
        async with answer(tmp_path, Told(TURN), None) as asked:
            began = time.monotonic()
            assert await asked.turns() == [TURN]
            assert 0.15 < time.monotonic() - began < 2.0


@pytest.mark.parametrize("says", [b"", b"[{", b'{"a": 1}', b"null"])
async def test_one_that_says_nonsense_is_left_out(tmp_path: Path, says: bytes) -> None:
    async def babbles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(says)
        writer.close()

    server = await asyncio.start_unix_server(babbles, str(tmp_path / "router-2.sock"))
    async with server:
        assert await Siblings(Worker(1, 2, tmp_path)).turns() == []


@pytest.mark.parametrize("asks", [b"", b"{", b'{"type": "else"}', b'{"type": "ended"}'])
async def test_a_question_that_is_none_ends_the_connection_alone(tmp_path: Path, asks: bytes) -> None:
    async with answer(tmp_path, Told(TURN)) as asked:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "router-2.sock"))
        writer.write(asks)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert await asked.turns() == [TURN]


async def test_the_socket_of_a_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "router-2.sock"))
    async with answer(tmp_path, Told(TURN)) as asked:
        assert await asked.turns() == [TURN]


async def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    async with answer(tmp_path, Told(TURN), None) as asked:
        await asked.turns()
        await asyncio.sleep(0.05)
        before = len(files(DESCRIPTORS))
        for _ in range(20):
            await asked.turns()
        await asyncio.sleep(0.05)
        assert len(files(DESCRIPTORS)) == before


def test_only_turns_of_sessions_are_told() -> None:
    def turn(session: str | None) -> Any:
        ask = Ask("tiny", session, "r", family="f" if session else None)
        return SimpleNamespace(ask=ask, key=Key("anna"), source="header", replica=None)

    unread = SimpleNamespace(ask=None)
    told = open_turns([turn("a-session"), turn(None), unread])  # type: ignore[list-item]
    assert told == [OpenTurn("a-session", "tiny", "anna", "header", "", "f")]

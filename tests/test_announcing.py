"""When a head is announced: while a token to join by is open, and never otherwise."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import machine_tls, mdns, tls
from cluster.announced import Announced
from cluster.paths import Paths, write_private
from cluster.proof import key_of
from serving import announcing
from serving.announcing import Announcing
from serving.join_tokens import JoinTokens, Now, make

ADDRESS = "10.0.0.1"


class Air:
    """What is announced at present; `fails` with an error instead."""

    def __init__(self) -> None:
        self.now: list[Announced] = []
        self.tries = 0
        self.fails: Exception | None = None

    @contextlib.asynccontextmanager
    async def announced(self, head: Announced) -> AsyncIterator[None]:
        self.tries += 1
        if self.fails is not None:
            raise self.fails
        self.now.append(head)
        try:
            yield
        finally:
            self.now.remove(head)


@pytest.fixture
def air(monkeypatch: pytest.MonkeyPatch) -> Air:
    made = Air()
    monkeypatch.setattr(mdns, "announced", made.announced)
    monkeypatch.setattr(announcing, "LOOK_S", 0.01)
    return made


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    paths.make()
    write_private(paths.machine, json.dumps({"name": "den"}))
    return paths


@contextlib.asynccontextmanager
async def running(paths: Paths, control: dict[str, Any]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(Announcing(paths, lambda: control).run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(10.0):
        while not done():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.01)


async def test_a_head_is_announced_until_its_token_is_used(air: Air, paths: Paths) -> None:
    async with running(paths, {"host": ADDRESS, "port": 9090}):
        await asyncio.sleep(0.1)
        assert air.tries == 0
        token = make(paths, Now.here())
        await until(lambda: air.now == [Announced(ADDRESS, 9090, "den", None)])
        assert JoinTokens(paths, "the-clusters").take(key_of(token), "a" * 32, Now.here()) == "right"
        await until(lambda: air.now == [])


async def test_it_is_announced_until_its_token_expires(
    air: Air, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(paths, Now(time.time()))
    async with running(paths, {"host": ADDRESS, "port": 8090}):
        await until(lambda: air.now)
        monkeypatch.setattr(Now, "here", lambda: Now(time.time() + 601))
        await until(lambda: air.now == [])


async def test_nothing_is_announced_any_more_when_the_controller_ends(air: Air, paths: Paths) -> None:
    make(paths, Now.here())
    async with running(paths, {"host": ADDRESS, "port": 8090}):
        await until(lambda: air.now)
    assert air.now == []


async def test_a_head_that_speaks_tls_says_by_which_ca_it_is_known(air: Air, paths: Paths) -> None:
    machine_tls.certify_head(paths, "0" * 32, ADDRESS, time.time())
    token = make(paths, Now.here(), speaks_tls=True)
    async with running(paths, {"host": ADDRESS, "port": 8090, "tls": True}):
        await until(lambda: air.now)
        assert air.now[0].fingerprint == tls.fingerprint_in(token) is not None


async def test_a_head_of_its_own_machine_alone_announces_nothing(air: Air, paths: Paths) -> None:
    make(paths, Now.here())
    for control in ({"host": "127.0.0.1", "port": 8090}, {}):
        async with running(paths, control):
            await asyncio.sleep(0.1)
    assert air.tries == 0


async def test_what_goes_wrong_is_told_once_and_harms_nobody(
    air: Air, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    air.fails = OSError(98, "Address already in use")
    make(paths, Now.here())
    async with running(paths, {"host": ADDRESS, "port": 8090}) as task:
        await until(lambda: air.tries)
        await asyncio.sleep(0.1)
        assert air.tries == 1
        assert not task.done()
    async with running(paths, {"host": ADDRESS, "port": 8090, "tls": True}) as task:  # and there is no CA
        await asyncio.sleep(0.1)
        assert not task.done()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2
    assert "machines join by its address all the same: OSError: [Errno 98] Address already in use" in told[0]
    assert "No such file" in told[1]


async def test_after_a_failure_the_next_token_is_announced(air: Air, paths: Paths) -> None:
    air.fails = OSError(19, "No such device")
    token = make(paths, Now.here())
    async with running(paths, {"host": ADDRESS, "port": 8090}):
        await until(lambda: air.tries)
        air.fails = None
        JoinTokens(paths, "the-clusters").take(key_of(token), "a" * 32, Now.here())
        await asyncio.sleep(0.1)
        make(paths, Now.here())
        await until(lambda: air.now)

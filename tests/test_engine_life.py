"""serving/engine_life.py and when a host frees its engine: what no request can be timed to show. The rest is tested
through the host."""

import asyncio
from pathlib import Path

from serving.engine import Sampling, Turn
from serving.engine_life import EngineLife
from serving.host_app import About, build_app
from serving.host_memory import MemoryWatch
from serving.journal import Journal
from tests.fakes import Behaviour, FakeEngine
from tests.host_process import model_spec

PATIENCE_S = 10.0


async def test_whoever_wants_the_engine_once_it_is_to_be_freed_waits_for_the_next_one() -> None:
    engine = FakeEngine(Behaviour())
    life = EngineLife(engine, lambda: None, lambda: None, lambda reason, permanent: None)

    async def nothing_to_park() -> None:
        pass

    async with asyncio.timeout(PATIENCE_S):
        life.begin()
        await life.awake()
        freeing = life.unload(nothing_to_park)
        waking = asyncio.ensure_future(life.awake())
        await asyncio.sleep(0)
        assert not waking.done()
        await freeing
        await waking
    assert engine.loads == 2


async def test_a_turn_that_runs_without_its_client_keeps_the_engine(tmp_path: Path) -> None:
    engine = FakeEngine(Behaviour(endless=True, step_s=0.01))
    about = About("here/0", "here", 0, model_spec(unload_s=60.0), 1, "d", 1, tmp_path)
    journal = Journal(tmp_path / "journal.sqlite")
    app = build_app(engine, about, journal, "token", MemoryWatch(2**30), lambda _: "e" * 64, print)
    try:
        async with asyncio.timeout(PATIENCE_S):
            app.load()
            await app.awake()
            lease = app._turns.ask(None, "request")
            await app._turns.begin(lease, Turn(lease.turn, 0, (1,), None, Sampling()))
            app._unload()
            assert app.loaded
            app._turns.left(lease)
            while app.report()["running"]:
                await lease.next()
            app._unload()
            assert app._unloading is not None
            await app._unloading
            assert not app.report()["loaded"]
    finally:
        app.stop()
        app.close()
        journal.close()
        engine.close()

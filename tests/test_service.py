"""A worker's service goes on, whatever happens. Ray itself: tests/cluster/test_service.py."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cluster import join, service
from cluster.paths import Paths, write_private
from cluster.service import Service
from tests.heads import RAY, Head


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "worker", tmp_path / "locks")
    paths.make()
    return paths


def test_an_error_that_nobody_thought_of_is_written_down_and_tried_again(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    class Fails(Service):
        async def _live(self) -> str:
            seen.append(json.loads(paths.run.read_text())["steps"] if paths.run.exists() else {})
            if len(seen) == 3:
                raise asyncio.CancelledError
            raise KeyError("spec")

    monkeypatch.setattr(service, "backoff_s", lambda _: 0.0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Fails(paths)._heal())
    assert seen[1:] == [{"ray": {"state": "failed", "detail": "KeyError: 'spec'"}}] * 2
    assert "KeyError" in caplog.text


def test_a_head_whose_ray_has_moved_is_joined_anew_and_a_stranger_moves_nothing(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LOOK_S", 0.05)
    monkeypatch.setattr(service, "ASK_S", 0.0)

    async def misplaced(head: Head, seconds: float) -> str:
        made = Service(paths)
        made.run.data["ray"] = "10.0.0.1:1"
        return await asyncio.wait_for(made._misplaced(head.url, "127.0.0.1"), seconds)

    with Head(tmp_path) as head:
        write_private(paths.cluster_token, "of another cluster")
        with pytest.raises(TimeoutError):
            asyncio.run(misplaced(head, 0.5))
        write_private(paths.cluster_token, head.token)
        assert asyncio.run(misplaced(head, 10.0)) == f"the head's Ray is at {RAY} now: it joins anew"


def test_a_machine_that_joined_nothing_says_how(paths: Paths) -> None:
    with pytest.raises(join.JoinRefused, match="homeport join ADDRESS"):
        asyncio.run(Service(paths)._live())

"""A worker's service goes on, whatever happens. Ray itself: tests/cluster/test_service.py."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import certificates, join, machine_tls, service
from cluster.paths import Paths, write_private
from cluster.proof import machine_token
from cluster.service import Service
from serving.join_tokens import Now, make
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
        write_private(paths.machine_token, "of another cluster")
        with pytest.raises(TimeoutError):
            asyncio.run(misplaced(head, 0.5))
        write_private(paths.machine_token, machine_token(head.token, join.machine_id(paths)))
        assert asyncio.run(misplaced(head, 10.0)) == f"the head's Ray is at {RAY} now: it joins anew"


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ({"zone": "lab"}, "the head's config says otherwise of this machine now: it joins anew"),
        (
            {"reserve_memory_bytes": 5 << 20},
            "the head's config says otherwise of this machine now: it joins anew",
        ),
        ({}, None),
        ({"name": "cellar"}, None),
    ],
)
def test_what_the_config_says_otherwise_of_a_machine_reaches_it(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: dict[str, Any], expected: str | None
) -> None:
    """But for its name, which stands in the homes of its sessions."""
    monkeypatch.setattr(service, "LOOK_S", 0.05)
    monkeypatch.setattr(service, "ASK_S", 0.0)
    entry = {"name": "attic", "address": "127.0.0.1", "zone": "home"}
    with Head(tmp_path, [entry]) as head:
        join.settle(paths, join.ask(head.url, head.list_token, paths, None, 5.0))
        made = Service(paths)
        head.revision["machines"] = [{**entry, **says}]

        async def misplaced(seconds: float) -> str | None:
            try:
                return await asyncio.wait_for(made._misplaced(head.url, "127.0.0.1"), seconds)
            except TimeoutError:
                return None

        assert asyncio.run(misplaced(10.0 if expected else 0.7)) == expected
        kept = json.loads(paths.machine.read_text())
        assert (kept["name"], kept["zone"]) == ("attic", says.get("zone", "home"))
        assert asyncio.run(misplaced(0.5)) is None, "it is taken"


def test_a_certificate_that_ends_soon_is_renewed_and_ray_begins_anew_with_it(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: not again for a CA that ends as well, since its head has no better one."""
    monkeypatch.setattr(service, "LOOK_S", 0.05)
    monkeypatch.setattr(service, "ASK_S", 0.0)
    with Head(tmp_path, speaks_tls=True) as head:
        token = make(head.paths, Now.here(), speaks_tls=True)
        join.settle(paths, join.ask(head.url, token, paths, None, 5.0))
        made, lasting = Service(paths), paths.certificate.read_text()

        async def misplaced(seconds: float) -> str | None:
            try:
                return await asyncio.wait_for(made._misplaced(head.url, "127.0.0.1"), seconds)
            except TimeoutError:
                return None

        assert asyncio.run(misplaced(0.5)) is None
        assert paths.certificate.read_text() == lasting, "it was not to be renewed"
        monkeypatch.setattr(certificates, "MACHINE_DAYS", certificates.RENEW_DAYS - 1)
        machine_tls.keep(paths, ends_soon := a_certificate(head, paths), paths.ca.read_text())
        assert asyncio.run(misplaced(0.5)) is None, "what the head gives ends soon as well"
        assert paths.certificate.read_text() not in (lasting, ends_soon), "it was not asked for"
        monkeypatch.undo()
        monkeypatch.setattr(service, "LOOK_S", 0.05)
        monkeypatch.setattr(service, "ASK_S", 0.0)
        why = asyncio.run(misplaced(10.0))
        assert why == "its certificate was about to end and is renewed: Ray begins anew with it"
        assert asyncio.run(misplaced(0.5)) is None, "it is renewed"


def a_certificate(head: Head, paths: Paths) -> str:
    me = join.machine_id(paths)
    return machine_tls.certify(head.paths, machine_tls.request(paths, me), me, "127.0.0.1", time.time())


def test_what_ray_does_not_know_of_a_machine_is_taken_without_ray(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Head(tmp_path) as head:
        answer = join.ask(head.url, head.list_token, paths, None, 5.0)
        join.settle(paths, answer)
        told = {**answer.told, "of_a_later_version": ["x"]}
        assert not Service(paths)._is_another(head.url, told)
        assert join.joined(paths) == join.Joined(head.url, answer.name, answer.told), "it was asked again"


def test_a_disk_that_is_full_does_not_end_ray_for_what_cannot_be_kept(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Head(tmp_path) as head:
        answer = join.ask(head.url, head.list_token, paths, None, 5.0)
        join.settle(paths, answer)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(join, "settle", full)
        assert not Service(paths)._is_another(head.url, {**answer.told, "zone": "lab"})


def test_a_machine_that_joined_nothing_says_how(paths: Paths) -> None:
    with pytest.raises(join.JoinRefused, match="homeport join ADDRESS"):
        asyncio.run(Service(paths)._live())

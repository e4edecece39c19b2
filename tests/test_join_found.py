"""`homeport join` without an address: again, or by what is announced in the network; real heads, real multicast."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import mdns, tls
from cluster.announced import Announced
from cluster.ending import end_everything
from cluster.paths import write_private
from cluster.restarting import take_up_lock
from serving.join_tokens import Now, make
from tests.heads import Head
from tests.multicast import announces, needs_multicast
from tests.tap import Tap
from tests.workers import Worker, at, run, worker_in

# The command leaves its service running, as it should.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    with worker_in(tmp_path, monkeypatch) as worker:
        yield worker


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with Head(tmp_path) as head:
        yield head


def announcement(head: Head, name: str) -> Announced:
    ca = None if head.shown is None else tls.fingerprint(head.paths.ca.read_text())
    return Announced("127.0.0.1", head.port, name, ca)


def test_a_machine_that_joined_needs_no_address_to_ask_again(head: Head, worker: Worker) -> None:
    done = run("join", at(head), "--token", head.list_token, "--name", "attic")
    assert done[0] == 0
    code, told = run("join")
    assert (code, told) == (0, f"attic serves the head at {at(head)}: zone default, address 127.0.0.1.")
    end_everything(worker.paths)
    assert run("join", "--name", "attic")[0] == 0
    assert len(worker.services()) == 1


def test_a_head_is_found_by_the_ca_that_the_token_names(tmp_path: Path, worker: Worker) -> None:
    needs_multicast()
    with Head(tmp_path / "one", speaks_tls=True) as head, Head(tmp_path / "two", speaks_tls=True) as other:
        token = make(head.paths, Now.here(), speaks_tls=True)
        with announces(announcement(other, "other"), announcement(head, "den")):
            code, told = run("join", "--token-file", "-", "--name", "attic", stdin=f"{token}\n")
        assert code == 0, told
        assert told.startswith(f"found the head den at {at(head)} attic: the head lets it in")
        assert other.book.remembered() == {}
        assert token not in told


def test_who_only_says_to_be_the_head_is_told_nothing(tmp_path: Path, worker: Worker) -> None:
    needs_multicast()
    with Head(tmp_path / "one", speaks_tls=True) as head, Head(tmp_path / "two", speaks_tls=True) as liar:
        token = make(head.paths, Now.here(), speaks_tls=True)
        lie = replace(announcement(liar, "den"), fingerprint=tls.fingerprint_in(token))
        with announces(lie), Tap(liar.port) as tap:
            code, told = run("join", "--token", token)
        assert (code, "is not the head that this token is of: its CA is another one" in told) == (1, True)
        assert tap.asked == b""
        assert liar.book.remembered() == {}
        assert not worker.paths.joined.exists()


def test_a_head_that_nobody_announces_is_joined_by_its_address(worker: Worker, tmp_path: Path) -> None:
    with Head(tmp_path, speaks_tls=True) as head:
        token = make(head.paths, Now.here(), speaks_tls=True)
        code, told = run("join", "--token", token)
        assert code == 1
        assert "No head that this token could be of was found in this network segment." in told
        assert "only while a token can be used, 10 minutes from `homeport join-token` on" in told
        assert "Join by the address that `homeport join-token` printed: `homeport join ADDRESS`" in told
        assert token not in told
        assert run("join", at(head), "--token", token)[0] == 0


def test_a_token_that_names_no_ca_finds_the_one_head_in_clear(
    head: Head, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = [announcement(head, "den"), Announced("10.0.0.9", 8090, "tls", "f" * 43)]
    monkeypatch.setattr(mdns, "search", lambda *_: heard)
    code, told = run("join", "--token", make(head.paths, Now.here()))
    assert (code, told.startswith(f"found the head den at {at(head)} ")) == (0, True)


def test_of_several_heads_a_person_chooses(
    head: Head, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = [announcement(head, "den"), Announced("10.0.0.9", 8090, "shed")]
    monkeypatch.setattr(mdns, "search", lambda *_: heard)
    code, told = run("join", "--token", make(head.paths, Now.here()))
    assert (code, "Several heads were found that this token could be of." in told) == (2, True)
    assert f"`homeport join 10.0.0.9` (shed) or `homeport join {at(head)}` (den)" in told
    assert head.book.remembered() == {}


def test_a_machine_without_multicast_is_told_to_join_by_the_address(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> list[Announced]:
        raise mdns.CannotSearch("Address already in use")

    monkeypatch.setattr(mdns, "search", cannot)
    code, told = run("join", "--token", "t")
    assert code == 1
    assert "cannot search its network: Address already in use. Join by the address" in told


def test_a_head_does_not_search_for_itself(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = take_up_lock(worker.paths)
    assert lock is not None
    try:
        write_private(worker.paths.run, json.dumps({"address": "10.0.0.1"}))
        monkeypatch.delattr(mdns, "search")
        assert "This machine is the head itself" in run("join", "--token", "t")[1]
    finally:
        os.close(lock)

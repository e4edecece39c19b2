"""`homeport join`, `homeport join-token` and `homeport down --all`: against a real controller app, with a stand-in
for the service that would start Ray."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster import join
from cluster.build import ROOT, build_id
from cluster.ending import end_everything
from cluster.paths import Paths, read_json, secret, write_private
from cluster.proof import key_of
from cluster.restarting import take_up_lock
from router import cli, down_all, following, join_worker
from serving.join_tokens import JoinTokens, Now, make
from serving.machine_book import MachineBook
from tests.heads import Head
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


# join ADDRESS


def test_a_machine_joins_with_a_token_and_again_without(head: Head, worker: Worker) -> None:
    token = make(head.paths, Now.here())
    code, told = run("join", at(head), "--token", token, "--name", "attic")
    assert code == 0
    line = f"attic serves the head at {at(head)}: zone default, address 127.0.0.1."
    assert told.endswith(line)
    assert token not in told
    [service] = worker.services()
    assert run("join", at(head)) == (0, line)
    assert worker.services() == [service]
    assert (read_json(worker.paths.run) or {})["role"] == "worker"


def test_a_service_does_not_stay_in_the_folder_of_who_started_it(
    head: Head, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be deleted, and then Ray would not start any more."""
    monkeypatch.chdir(tmp_path)
    assert run("join", at(head), "--token", head.list_token)[0] == 0
    [service] = worker.services()
    assert Path(f"/proc/{service}/cwd").readlink() == ROOT


def test_a_token_may_come_from_a_file_or_from_stdin(head: Head, worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{head.list_token}\n")
    assert run("join", at(head), "--token-file", str(tmp_path / "token"))[0] == 0
    assert run("join", at(head), "--token-file", "-", stdin=f"{head.list_token}\nmore")[0] == 0


def test_the_token_that_ray_carried_is_found(head: Head, worker: Worker) -> None:
    worker.paths.join_token.parent.mkdir(parents=True)
    write_private(worker.paths.join_token, head.list_token)
    assert run("join", at(head))[0] == 0


def test_an_old_token_of_a_list_is_no_obstacle_to_a_machine_that_joined(head: Head, worker: Worker) -> None:
    assert run("join", at(head), "--token", head.list_token)[0] == 0
    worker.paths.join_token.parent.mkdir(parents=True)
    write_private(worker.paths.join_token, "of an earlier list")
    assert run("join", at(head))[0] == 0


def test_the_token_of_a_container_lets_it_in_once_and_is_then_no_obstacle(
    head: Head, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(join_worker.TOKEN, make(head.paths, Now.here()))
    assert run("join", at(head))[0] == 0
    [service] = worker.services()
    assert join_worker.TOKEN.encode() not in Path(f"/proc/{service}/environ").read_bytes()
    write_private(head.paths.join_tokens, "[]")
    assert run("join", at(head))[0] == 0
    assert worker.services() == [service]


@pytest.mark.parametrize("is_signal", [True, False], ids=["a signal", "homeport down"])
def test_who_stays_ends_with_this_machines_part(
    head: Head, worker: Worker, monkeypatch: pytest.MonkeyPatch, is_signal: bool
) -> None:
    monkeypatch.setattr(following, "QUIET_REFRESH_S", 0.05)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    stays, stay = threading.Event(), following.stay

    def staying(paths: Paths) -> int:
        stays.set()
        return stay(paths)

    def stop() -> None:
        stays.wait(60)
        if is_signal:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            end_everything(worker.paths)

    monkeypatch.setattr(following, "stay", staying)
    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        code, told = run("join", at(head), "--token", head.list_token, "--stay")
    finally:
        stopper.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (code, worker.services()) == (0, [])
    assert ("Everything is ended" if is_signal else "was ended from elsewhere") in told


def test_what_the_head_says_anew_begins_the_service_anew(head: Head, worker: Worker) -> None:
    assert run("join", at(head), "--token", head.list_token, "--name", "x1")[0] == 0
    [before] = worker.services()
    head.revision["machines"] = [{"name": "attic", "address": "127.0.0.1", "zone": "home"}]
    code, told = run("join", at(head), "--name", "x1")
    assert code == 0
    assert told.endswith("zone home, address 127.0.0.1 (its head calls it attic).")
    [after] = worker.services()
    assert after != before


@pytest.mark.parametrize("build", ["0.0.1+0123456789ab", None])
def test_a_service_of_another_version_is_begun_anew(head: Head, worker: Worker, build: str | None) -> None:
    assert run("join", at(head), "--token", head.list_token)[0] == 0
    [before] = worker.services()
    told = read_json(worker.paths.run) or {}
    assert told["build"] == build_id()
    write_private(worker.paths.run, json.dumps({**told, "build": build}))
    assert run("join", at(head))[0] == 0
    [after] = worker.services()
    assert after != before
    assert (read_json(worker.paths.run) or {})["build"] == build_id()


def test_a_head_that_is_not_up_yet_is_waited_for(
    head: Head, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_worker, "PATIENCE_S", 20.0)
    head.ray_is("starting")
    monkeypatch.setattr(time, "sleep", lambda _: head.ray_is("ready"))
    code, told = run("join", at(head), "--token", head.list_token)
    assert code == 0
    assert "waiting for the head: The head's Ray is not up yet." in told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "There is no token to join with. `homeport join-token` on the head makes one"),
        (("10.0.0.1", "--head", "list.yaml"), "Give the head's address, or with --head a machine list"),
        (("--head", "list.yaml", "--token", "t"), "the head needs none"),
        (("den.lan",), "den.lan is no address of a head. Write its IPv4 address"),
        (("10.0.0.1",), "There is no token to join with. `homeport join-token` on the head makes one"),
        (("10.0.0.1", "--token", "t", "--token-file", "f"), "Give --token or --token-file, not both."),
        (
            ("10.0.0.1", "--token-file", "/nowhere/token"),
            "/nowhere/token: No such file or directory. `homeport",
        ),
        (
            ("--head", "/nowhere/list.yaml"),
            "/nowhere/list.yaml: No such file or directory. Give the path of Ray's",
        ),
    ],
)
def test_wrong_words_are_refused(worker: Worker, words: tuple[str, ...], expected: str) -> None:
    code, told = run("join", *words)
    assert code == 2
    assert expected in told
    assert worker.services() == []


def test_a_token_file_without_a_token_is_refused(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "is empty" in run("join", "10.0.0.1", "--token-file", str(tmp_path / "empty"))[1]
    assert "is no text" in run("join", "10.0.0.1", "--token-file", str(tmp_path / "binary"))[1]


def test_a_refusal_of_the_head_is_told_here(head: Head, worker: Worker) -> None:
    code, told = run("join", at(head), "--token", "a-secret-that-is-wrong")
    assert code == 1
    assert "`homeport join-token` on the head makes a new one." in told
    assert "a-secret-that-is-wrong" not in told
    assert worker.services() == []
    assert not worker.paths.joined.exists()


def test_an_address_where_nobody_answers_is_told(worker: Worker) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        code, told = run("join", f"127.0.0.1:{probe.getsockname()[1]}", "--token", "t")
    assert code == 1
    assert "See that homeport is up on the head" in told


def test_a_homeport_that_runs_here_is_not_joined_over(head: Head, worker: Worker) -> None:
    lock = take_up_lock(worker.paths)
    assert lock is not None
    try:
        code, told = run("join", at(head), "--token", head.list_token)
        assert (code, "End it with `homeport down`, then join." in told) == (1, True)
        write_private(worker.paths.run, json.dumps({"address": "127.0.0.1"}))
        assert "End it with `homeport down`" in run("join", at(head), "--token", head.list_token)[1]
        write_private(worker.paths.run, json.dumps({"address": "10.0.0.1"}))
        assert "This machine is the head itself" in run("join", "10.0.0.1", "--token", "t")[1]
    finally:
        os.close(lock)
    assert head.book.remembered() == {}


def test_a_machine_that_serves_one_head_does_not_join_another(head: Head, worker: Worker) -> None:
    assert run("join", at(head), "--token", head.list_token)[0] == 0
    code, told = run("join", "10.0.0.1", "--token", "t")
    assert code == 1
    assert f"This machine serves the head at {at(head)}. End that with `homeport down`" in told


def test_no_token_travels_but_in_the_answer_to_a_first_join(head: Head, worker: Worker) -> None:
    one = make(head.paths, Now.here())
    ray_token = secret(head.paths.ray_token)
    with Tap(head.port) as tap:
        assert run("join", tap.at, "--token", one)[0] == 0
        own = worker.paths.machine_token.read_text()
        assert own.encode() in tap.answered
        assert not any(token.encode() in tap.asked for token in (one, own, ray_token))
        assert head.token.encode() not in tap.asked + tap.answered
        tap.asked.clear()
        tap.answered.clear()
        end_everything(worker.paths)
        assert run("join", tap.at)[0] == 0
        assert b"is_heard" in tap.answered
        assert not any(token.encode() in tap.asked + tap.answered for token in (one, own, ray_token))


def test_a_machines_token_goes_to_no_other_head(head: Head, worker: Worker) -> None:
    assert run("join", at(head), "--token", head.list_token)[0] == 0
    end_everything(worker.paths)
    assert "There is no token to join with" in run("join", "10.0.0.1")[1]


def test_what_keeps_ray_from_starting_is_told(head: Head, worker: Worker) -> None:
    worker.service_says("failed", "no free block of ports")
    code, told = run("join", at(head), "--token", head.list_token, "--name", "attic")
    assert code == 1
    assert "attic is not ready after 3 s: no free block of ports. It goes on trying" in told


def test_a_keeper_that_the_head_does_not_hear_is_told(head: Head, worker: Worker) -> None:
    head.hears_all = False
    code, told = run("join", at(head), "--token", head.list_token, "--name", "attic")
    assert (code, "the head does not hear its keeper yet" in told) == (1, True)


def test_a_service_that_ends_is_told_with_its_log(head: Head, worker: Worker) -> None:
    worker.service_says("gone")
    code, told = run("join", at(head), "--token", head.list_token)
    assert (code, "The service of this machine has ended. Its log:" in told) == (1, True)


def test_a_machine_that_joined_says_so_where_it_is_asked(head: Head, worker: Worker) -> None:
    assert run("join", at(head), "--token", head.list_token, "--name", "attic")[0] == 0
    line = f"attic serves the head at {head.url}; Ray here: ready. `homeport status` there shows more"
    assert line in run("status")[1]
    assert line in run("up")[1]
    assert run("join-token")[0] == 2
    code, told = run("down", "--all")
    assert (code, f"serves the head at {head.url}: run `homeport down --all` there" in told) == (2, True)
    assert len(worker.services()) == 1
    assert run("down") == (0, "ending the parent homeport is down.")
    assert worker.services() == []


# join-token


def test_a_token_is_made_on_a_head_only(head: Head, worker: Worker) -> None:
    assert run("join-token")[0] == 3
    worker.use(head.paths)
    lock = take_up_lock(head.paths)
    assert lock is not None
    try:
        write_private(head.paths.run, json.dumps({"address": "127.0.0.1"}))
        code, told = run("join-token")
        assert (code, "Give it its `address` below `machines`" in told) == (2, True)
        write_private(head.paths.run, json.dumps({"address": "10.0.0.1"}))
        write_private(head.paths.revision, json.dumps({"control": {"host": "10.0.0.1", "port": 9090}}))
        done = CliRunner().invoke(cli.app, ["join-token"])
    finally:
        os.close(lock)
    token = done.stdout.strip()
    assert "homeport join 10.0.0.1:9090 --token-file - (paste it there)" in done.stderr
    assert "In the same network segment the address can be left out" in " ".join(done.stderr.split())
    assert token not in done.stderr
    assert JoinTokens(head.paths, "x").check(key_of(token), "a" * 32, Now.here()) == "right"


# down --all


@pytest.fixture
def on_head(head: Head, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Head:
    monkeypatch.setattr(down_all, "END_S", 0.5)
    worker.use(head.paths)
    control = {"host": "127.0.0.1", "port": head.port}
    write_private(head.paths.revision, json.dumps({"control": control}))
    return head


def test_all_machines_end_their_part_and_the_silent_are_named(on_head: Head) -> None:
    on_head.leaving = {"left": ["attic"], "away": ["cellar"], "hosts": {"attic": ["127.0.0.1:1"]}}
    code, told = run("down", "--all")
    assert code == 1
    assert told.startswith("attic ends its part")
    assert "homeport is down. So is it on attic. Could not be asked: cellar." in told
    assert on_head.left == [True]


def test_all_is_well_where_all_have_left(on_head: Head) -> None:
    on_head.leaving = {"left": ["attic"], "away": [], "hosts": {"attic": []}}
    assert run("down", "--all") == (0, "attic ends its part homeport is down. So is it on attic.")


def test_a_machine_whose_hosts_live_on_is_named(on_head: Head) -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        on_head.leaving = {
            "left": ["attic"],
            "away": [],
            "hosts": {"attic": [f"127.0.0.1:{host.getsockname()[1]}"]},
        }
        code, told = run("down", "--all")
    assert (code, "Not yet ended: attic." in told) == (1, True)


def test_without_a_controller_those_that_were_here_are_named(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path / "head", tmp_path / "locks")
    worker.use(paths)
    paths.make()
    book = MachineBook(paths.revision.with_name("machines.json"))
    book.here(join.machine_id(paths), "den", "default")
    book.here("b" * 32, "attic", "default")
    code, told = run("down", "--all")
    assert (code, told) == (
        0,
        "homeport is down. Could not be asked: attic. Where homeport still runs, end it there with `homeport down`.",
    )
    lock = take_up_lock(paths)
    assert lock is not None
    try:
        assert run("down", "--all")[0] == 1  # a head ran: the others may well run yet
    finally:
        os.close(lock)


def test_down_alone_asks_nobody(on_head: Head) -> None:
    secret(on_head.paths.cluster_token)
    assert run("down") == (0, "homeport is down.")
    assert on_head.left == []

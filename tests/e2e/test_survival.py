"""What outlives what: each part is killed with SIGKILL while two sessions talk; homes and hosts stay."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.processes import ours
from tests.e2e.installation import Homeport, ended_after, eventually
from tests.e2e.talk import Conversation, at_once

WORDS = (
    "What is the capital of France?",
    "And of Italy?",
    "Which of them is larger?",
    "Name a river there.",
    "Thank you. Say goodbye.",
)


def actor(homeport: Homeport, title: str) -> psutil.Process:
    """The process of a Ray actor of ours."""
    found = [p for p in ours(homeport.paths, "ray") if f"ray::{title}" in _title(p.pid)]
    assert len(found) == 1, found
    return psutil.Process(found[0].pid)


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def router(homeport: Homeport) -> psutil.Process:
    found = ours(homeport.paths, "router")
    assert len(found) == 1, found
    return psutil.Process(found[0].pid)


def kill_when_streaming(victim: Callable[[], psutil.Process]) -> tuple[Callable[[], None], list[int]]:
    """A callback for a stream's chunks that kills the victim at the fourth; and the pids that it killed."""
    killed: list[int] = []
    chunks = 0

    def on_text() -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 4:
            process = victim()
            killed.append(process.pid)
            process.send_signal(signal.SIGKILL)

    return on_text, killed


def wait_until_restored(homeport: Homeport, killed: int, victim: Callable[[], psutil.Process]) -> None:
    """Until another process stands in for the killed one and the whole thing is ready."""
    eventually(lambda: victim().pid != killed, 30)
    eventually(lambda: homeport.get("/ready"), 30)


def test_two_sessions_of_five_turns_outlive_keeper_router_and_controller(homeport: Homeport) -> None:
    one, two = Conversation(homeport.url, "survivor-1"), Conversation(homeport.url, "survivor-2")
    victims: dict[int, tuple[str, Callable[[], psutil.Process]]] = {
        1: ("keeper", lambda: actor(homeport, "Keeper")),
        2: ("router", lambda: router(homeport)),
        3: ("controller", lambda: actor(homeport, "Controller")),
    }
    pids = {r["name"]: r["pid"] for r in homeport.replicas()}
    homes: dict[str, str] = {}
    for turn, words in enumerate(WORDS):
        name, victim = victims.get(turn, ("", None))
        on_text, killed = kill_when_streaming(victim) if victim else ((lambda: None), [])
        at_once(lambda w=words, f=on_text: one.say(w, on_text=f), lambda w=words: two.say(w))  # type: ignore[misc]
        if victim:
            assert len(killed) == 1, f"the {name} was not killed: the stream was too short"
            wait_until_restored(homeport, killed[0], victim)
        for talk in (one, two):
            answer = talk.answers[-1]
            if name == "router":
                assert answer.error or answer.finish
                continue
            assert answer.error is None, (turn, name, answer)
            assert answer.finish, (turn, name, answer)
            if turn == 0:
                homes[talk.name] = answer.headers["x-homeport-replica"]
            assert answer.headers["x-homeport-replica"] == homes[talk.name]
            assert answer.headers["x-homeport-pin"] == ("kept" if turn else "new")
    assert len(set(homes.values())) == 2
    assert {r["name"]: r["pid"] for r in eventually(lambda: with_pids(homeport))} == pids


def with_pids(homeport: Homeport) -> list[dict[str, object]]:
    replicas = homeport.replicas()
    return replicas if all(r["pid"] and r["state"] == "ready" for r in replicas) else []


def test_a_router_that_starts_while_the_controller_is_dead_still_finds_every_home(homeport: Homeport) -> None:
    talk = Conversation(homeport.url, "found-without-controller")
    first = talk.say(WORDS[0])
    controller, old_router = actor(homeport, "Controller"), router(homeport)
    controller.suspend()
    try:
        old_router.kill()
        eventually(lambda: router(homeport).pid != old_router.pid)
        eventually(lambda: talk.say(WORDS[1]).error is None, 30)
        second = talk.answers[-1]
        assert second.headers["x-homeport-pin"] == "kept"
        assert second.headers["x-homeport-replica"] == first.headers["x-homeport-replica"]
    finally:
        controller.resume()


def test_a_host_that_is_killed_comes_back_in_its_slot_and_its_sessions_return_to_it(
    homeport: Homeport,
) -> None:
    talk = Conversation(homeport.url, "host-killed")
    first = talk.say(WORDS[0])
    home = first.headers["x-homeport-replica"]
    before = next(r for r in homeport.replicas() if r["name"] == home)
    on_text, killed = kill_when_streaming(lambda: psutil.Process(before["pid"]))
    broken = talk.say("Tell me a very long story about a harbour.", 300, on_text)
    assert killed == [before["pid"]]
    assert broken.error, "a stream whose host died must end with an error"
    assert broken.finish is None
    again = talk.say(WORDS[1])
    assert again.error is None, again
    assert again.headers["x-homeport-replica"] == home
    assert again.headers["x-homeport-pin"] == "kept"
    after = next(r for r in homeport.replicas() if r["name"] == home)
    assert (after["port"], after["slice"]) == (before["port"], before["slice"])


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        *(("early", number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        ("ready", signal.SIGHUP),
    ],
)
def test_a_foreground_up_ends_everything_on_a_signal(
    fresh: Homeport, moment: str, number: signal.Signals
) -> None:
    """Once it is ready, `make up` is ended by SIGTERM in test_readme.py, and one by SIGINT below."""
    process = fresh.popen("up", "--config", str(fresh.config))
    try:
        assert process.stdout
        for line in process.stdout:
            if "router: ready" in line and moment == "early":
                break
            if "Listening on" in line:
                break
        began = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=20)
        assert time.monotonic() - began < 10
    finally:
        end(process)
    assert ours(fresh.paths) == []


def telling(homeport: Homeport) -> tuple[Conversation, threading.Thread]:
    """A session whose answer takes some seconds; returns once its first words are there."""
    talk, begun = Conversation(homeport.url, "tale"), threading.Event()
    thread = threading.Thread(target=talk.say, args=("Tell a long story about a ship.", 400, begun.set))
    thread.start()
    assert begun.wait(30), talk.answers
    return talk, thread


def test_down_lets_an_answer_that_is_open_end_before_its_host(fresh: Homeport) -> None:
    fresh.drain = "30s"
    fresh.configure()
    fresh.up()
    talk, thread = telling(fresh)
    done = fresh.run("down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting for 1 open request to end, at most 30 s" in done.stdout
    assert "cut" not in done.stdout
    thread.join(10)
    (answer,) = talk.answers
    assert answer.error is None
    assert answer.finish


def test_a_second_ctrl_c_cuts_what_the_first_one_lets_end(fresh: Homeport) -> None:
    fresh.drain = "10m"
    fresh.configure()
    process = fresh.popen("up", "--config", str(fresh.config))
    try:
        assert process.stdout
        assert any("Listening on" in line for line in process.stdout)
        talk, thread = telling(fresh)
        process.send_signal(signal.SIGINT)
        assert any("waiting for 1 open request" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        told, _ = process.communicate(timeout=20)
        assert "1 open request cut" in told
        assert time.monotonic() - began < 10
        thread.join(10)
        assert "The router is stopping" in (talk.answers[0].error or "")
    finally:
        end(process)
    assert ours(fresh.paths) == []


def test_a_foreground_up_that_is_killed_leaves_nothing_behind(fresh: Homeport) -> None:
    process = fresh.popen("up", "--config", str(fresh.config))
    try:
        assert process.stdout
        for line in process.stdout:
            if "Ray: ready" in line:
                break
        process.kill()
        process.wait()
        eventually(lambda: not ours(fresh.paths), 15)
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def test_another_ray_on_the_machine_is_never_touched(fresh: Homeport) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray-other-"))
    other = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",
            "--port=6399",
            f"--temp-dir={folder}",
            "--include-dashboard=false",
            "--disable-usage-stats",
            "--object-store-memory=80000000",
            "--num-cpus=1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert other.stdout
        assert any("Ray runtime started" in line for line in other.stdout)
        before = {p.pid for p in psutil.Process(other.pid).children(recursive=True)}
        assert before
        fresh.up()
        assert Conversation(fresh.url, "beside-another-ray").say(WORDS[0]).error is None
        assert fresh.run("down", timeout=30).returncode == 0
        assert other.poll() is None
        assert before <= {p.pid for p in psutil.Process(other.pid).children(recursive=True)}
    finally:
        for process in [p for p in psutil.process_iter() if _in_session(p.pid, other.pid)]:
            process.kill()
        end(other)
        shutil.rmtree(folder, ignore_errors=True)


def _in_session(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session
    except OSError:
        return False


# one after the other in one homeport, since a start takes ten seconds


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """One that the tests of this file start and stop."""
    with ended_after(Homeport(tmp_path_factory.mktemp("own"))) as installed:
        yield installed


@pytest.fixture
def standing(own: Homeport) -> Homeport:
    """It runs with its usual config, whatever the test before did: one that it left so is used as it is."""
    before = own.config.read_text()
    own.configure()
    if own.config.read_text() != before:
        assert own.run("down").returncode == 0
    own.up()
    return own


def test_two_ups_at_once_start_one(own: Homeport) -> None:
    own.run("down")
    both = [own.popen("up", "--detach", "--config", str(own.config)) for _ in range(2)]
    said = [process.communicate(timeout=90)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(ours(own.paths, "parent")) == 1
    assert Conversation(own.url, "one-of-two").say("Hello", 4).error is None


def test_ray_that_died_is_started_again_and_adopts_the_hosts(standing: Homeport) -> None:
    pids = {r["name"]: r["pid"] for r in standing.replicas()}
    gcs = next(p for p in ours(standing.paths, "ray") if p.name == "gcs_server")
    os.kill(gcs.pid, signal.SIGKILL)
    eventually(lambda: standing.step("ray")["state"] != "ready" or None)
    eventually(lambda: standing.step("ray")["state"] == "ready", 60)
    eventually(lambda: standing.get("/api/fleet")["controller"]["reachable"], 60)
    assert {r["name"]: r["pid"] for r in eventually(lambda: with_pids(standing), 60)} == pids


def test_homes_outlive_a_full_down_and_up(standing: Homeport) -> None:
    talks = [Conversation(standing.url, f"night-{n}") for n in range(2)]
    at_once(*(lambda t=t: t.say(WORDS[0]) for t in talks))
    homes = [t.answers[0].headers["x-homeport-replica"] for t in talks]
    assert len(set(homes)) == 2
    began = time.monotonic()
    down = standing.run("down", timeout=30)
    assert down.returncode == 0, down.stderr
    assert time.monotonic() - began < 10
    assert ours(standing.paths) == []
    assert standing.run("status").returncode == 3
    standing.up()
    for talk, home in zip(talks, homes, strict=True):
        again = talk.say(WORDS[1])
        assert again.error is None, again
        assert (again.headers["x-homeport-pin"], again.headers["x-homeport-replica"]) == ("kept", home)
        said = again.homeport
        assert (said["context"], said["cause"]) == ("resumed", None)
        assert said["reused_tokens"] >= talk.answers[0].usage.prompt_tokens


def test_a_session_whose_home_is_down_while_the_index_is_rebuilt_is_not_moved(standing: Homeport) -> None:
    talks = [Conversation(standing.url, f"down-{n}") for n in range(2)]
    homes = {t.name: t.say(WORDS[0]).headers["x-homeport-replica"] for t in talks}
    assert len(set(homes.values())) == 2
    away = next(r for r in standing.replicas() if r["name"] == homes["down-0"])
    assert standing.run("down", timeout=30).returncode == 0
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", away["port"]))
        squatter.listen()
        starting = standing.popen("up", "--detach", "--config", str(standing.config))
        eventually(lambda: [r for r in standing.replicas() if r["name"] == away["name"] and r["detail"]], 60)
        eventually(
            lambda: [r for r in standing.replicas() if r["name"] != away["name"] and r["state"] == "ready"]
        )
        other = talks[1].say(WORDS[1])
        assert (other.headers["x-homeport-pin"], other.headers["x-homeport-replica"]) == (
            "kept",
            homes["down-1"],
        )
        waiting = threading.Thread(target=talks[0].say, args=(WORDS[1],))
        waiting.start()
        waiting.join(3)
        assert waiting.is_alive(), talks[0].answers[-1]
    waiting.join()
    starting.communicate(timeout=60)
    back = talks[0].answers[-1]
    assert back.error is None, back
    assert (back.headers["x-homeport-pin"], back.headers["x-homeport-replica"]) == ("kept", homes["down-0"])


def test_hosts_outlive_ray_and_down_works_while_ray_is_dead(standing: Homeport) -> None:
    talk = Conversation(standing.url, "without-ray")
    first = talk.say(WORDS[0])
    pids = {r["name"]: r["pid"] for r in standing.replicas()}
    parent = psutil.Process(ours(standing.paths, "parent")[0].pid)
    parent.suspend()
    for process in ours(standing.paths, "ray"):
        os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not ours(standing.paths, "ray"))
    second = talk.say(WORDS[1])
    assert second.error is None, second
    assert second.headers["x-homeport-replica"] == first.headers["x-homeport-replica"]
    assert second.headers["x-homeport-context"] == "resident"
    assert all(psutil.pid_exists(pid) for pid in pids.values())
    down = standing.run("down", timeout=30)
    assert down.returncode == 0, down.stderr
    assert ours(standing.paths) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_down_works_with_the_keeper_dead_or_stopped(standing: Homeport, number: signal.Signals) -> None:
    actor(standing, "Keeper").send_signal(number)
    down = standing.run("down", timeout=30)
    assert down.returncode == 0, down.stderr
    assert ours(standing.paths) == []


def test_a_session_whose_home_the_config_took_away_is_told_so(standing: Homeport) -> None:
    talks = [Conversation(standing.url, f"removed-{n}") for n in range(2)]
    homes = {t.say("Hello", 4).headers["x-homeport-replica"]: t for t in talks}
    assert standing.run("down", timeout=30).returncode == 0
    standing.config.write_text(standing.config.read_text().replace("replicas: fill", "replicas: 1"))
    standing.up()
    (left,) = [r["name"] for r in standing.replicas()]
    assert homes.pop(left).say("Hello again", 4).headers["x-homeport-pin"] == "kept"
    for orphan in homes.values():
        answer = orphan.say("Hello again", 4)
        assert answer.error is not None
        assert "config no longer has" in answer.error


def test_a_changed_reserve_frees_the_core(standing: Homeport) -> None:
    before = standing.get("/api/fleet")["machines"][0]
    cores = [r["slice"]["cores"] for r in before["replicas"]]
    assert standing.run("down", timeout=30).returncode == 0
    reserve = (
        f"machines: [{{name: {before['name']}, reserve: {{cores: {before['reserve']['cores'] + 1}}}}}]\n"
    )
    standing.config.write_text(reserve + standing.config.read_text())
    standing.up()
    assert [r["slice"]["cores"] for r in standing.replicas()] == cores[:-1]

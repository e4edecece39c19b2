"""Many sessions on one replica: warm between turns, parked and resumed, and what is left of them after a kill."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.installation import Homeport, ended_after, eventually
from tests.e2e.talk import Conversation, at_once

TOPICS = ("rivers", "colours", "cities", "birds", "fruits", "metals", "planets", "tools")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """One replica that eight sessions share on purpose."""
    folder = tmp_path_factory.mktemp("shared")
    with ended_after(Homeport(folder, count="1", memory="2GiB", more=("sessions: 8",))) as installed:
        installed.up()
        yield installed


@pytest.fixture(scope="module")
def one_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    with ended_after(Homeport(tmp_path_factory.mktemp("single"), count="1")) as installed:
        yield installed


@pytest.fixture
def single(one_place: Homeport) -> Homeport:
    """One replica with one place, as the test before left it: it runs in any case."""
    one_place.up()
    return one_place


def only_replica(homeport: Homeport) -> dict[str, Any]:
    found = homeport.replicas()
    assert len(found) == 1
    return found[0]


def state(homeport: Homeport) -> dict[str, Any]:
    return homeport.host_state(only_replica(homeport))


def parked_files(homeport: Homeport) -> list[Path]:
    """Whole files of parked sessions; what is still being written does not count."""
    return sorted(homeport.paths.home.glob("replicas/*/parked/*.kv"))


def whole(talk: Conversation) -> dict[str, Any]:
    """What homeport said of the last turn, which must have gone well."""
    answer = talk.answers[-1]
    assert answer.error is None, (talk.name, answer)
    assert answer.finish in ("stop", "length"), (talk.name, answer)
    assert answer.text
    return answer.homeport


def test_eight_concurrent_streams_are_whole_and_their_second_turns_are_warm(shared: Homeport) -> None:
    talks = [Conversation(shared.url, f"eight-{topic}") for topic in TOPICS]
    at_once(*(lambda t=t, w=w: t.say(f"Name three {w}.") for t, w in zip(talks, TOPICS, strict=True)))
    for talk in talks:
        said = whole(talk)
        assert (said["pin"], said["cause"]) == ("new", "new")
    at_once(*(lambda t=t: t.say("And one more?") for t in talks))
    for talk in talks:
        first, second = talk.answers
        said = whole(talk)
        assert (said["pin"], said["context"], said["cause"]) == ("kept", "resident", None)
        assert said["reused_tokens"] >= first.usage.prompt_tokens
        assert said["reused_tokens"] == second.usage.prompt_tokens_details.cached_tokens
        assert said["reused_tokens"] + said["evaluated_tokens"] == second.usage.prompt_tokens
    assert len({talk.answers[-1].homeport["replica"] for talk in talks}) == 1


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def write_something_else(file: Path) -> None:
    file.write_bytes(b"this is no parked session" * 1000)


def test_damaged_files_are_dropped_and_the_prompts_evaluated_anew(single: Homeport) -> None:
    damages = (flip_a_bit, cut_off, write_something_else)
    talks = [Conversation(single.url, damage.__name__) for damage in damages]
    for talk, topic in zip(talks, TOPICS, strict=False):
        talk.say(f"Name three {topic}.")
    assert single.run("down").returncode == 0
    files = parked_files(single)
    assert len(files) == len(damages)
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
    for damage, file in zip(damages, files, strict=True):
        damage(file)
    single.up()
    pid = only_replica(single)["pid"]
    causes = []
    for talk in talks:
        talk.say("And a fourth?")
        said = whole(talk)
        assert (said["pin"], said["context"], said["reused_tokens"]) == ("kept", "evaluated", 0)
        causes.append(said["cause"])
    # Files lie in the order of their digests: which talk met which damage is not known here.
    assert sorted(causes) == ["engine_changed", "restore_failed", "restore_failed"]
    assert only_replica(single)["pid"] == pid


def test_a_host_that_is_killed_in_mid_answer_resumes_its_sessions(single: Homeport) -> None:
    before_it = parked_files(single)
    talk = Conversation(single.url, "killed-in-mid-answer")
    talk.say("Name three rivers of Europe.")
    eventually(lambda: set(parked_files(single)) - set(before_it))
    before = only_replica(single)
    killed = threading.Event()

    def kill() -> None:
        if not killed.is_set():
            killed.set()
            os.kill(before["pid"], signal.SIGKILL)

    talk.say("Tell me a long story about the first one.", max_tokens=400, on_text=kill)
    assert talk.answers[-1].error is not None
    eventually(lambda: only_replica(single)["pid"] not in (None, before["pid"]), 40)
    eventually(lambda: single.get("/ready"), 40)
    talk.say("Which of them is the longest?")
    said = whole(talk)
    assert (said["pin"], said["context"]) == ("kept", "resumed")
    assert said["reused_tokens"] >= talk.answers[0].usage.prompt_tokens


def test_a_quiet_engine_is_unloaded_and_the_next_turn_loads_it(single: Homeport) -> None:
    single.configure("unload: 2s")
    assert single.run("apply", "--yes", "--config", str(single.config)).returncode == 0
    talk = Conversation(single.url, "unloaded-meanwhile")
    talk.say("Name three rivers of Europe.")
    loaded = state(single)
    eventually(lambda: state(single)["loaded"] is False)
    unloaded = state(single)
    assert unloaded["pid"] == loaded["pid"]
    assert unloaded["memory"]["rss_bytes"] < loaded["memory"]["rss_bytes"]
    talk.say("Which of them is the longest?")
    said = whole(talk)
    assert (said["pin"], said["context"], said["cause"]) == ("kept", "resumed", None)
    assert state(single)["loaded"] is True

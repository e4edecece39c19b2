"""Parked sessions with llama.cpp and real models: what was resumed is proven by the tokens that come of it."""

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving.model import ModelSpec
from serving.source import SourceError, bundled_model
from tests.host_process import HostProcess, model_spec, session
from tests.models import gemma

GREEDY = {"temperature": 0, "max_tokens": 24}
STORY = "Tell me of a harbour and the ships that come home to it. " * 12
HELLO = "What is the capital of Italy?"
QUESTIONS = (STORY, "Which of them came first?", "And what did it bring?")
MakeHost = Callable[..., HostProcess]


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return bundled_model()
    except SourceError as error:
        pytest.skip(str(error))


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Makes hosts that are not started yet; whole process groups are ended afterwards."""
    made: list[HostProcess] = []

    def make(path: Path, spec: ModelSpec) -> HostProcess:
        host = HostProcess(tmp_path / str(len(made)), spec, str(path), None)
        made.append(host)
        return host

    yield make
    for host in made:
        host.kill()


class Talk:
    """A growing chat of one session, greedy."""

    def __init__(self, host: HostProcess, who: str) -> None:
        self.host = host
        self.who = who
        self.messages: list[dict[str, str]] = []
        self.texts: list[str] = []
        self.told: dict[str, Any] = {}

    def say(self, question: str) -> None:
        self.messages.append({"role": "user", "content": question})
        answer = self.host.chat({**GREEDY, "messages": self.messages}, who=self.who)
        assert answer.status == 200, answer.body
        text = answer.body["choices"][0]["message"]["content"]
        self.messages.append({"role": "assistant", "content": text})
        self.texts.append(text)
        self.told = answer.body["homeport"]


@dataclass(frozen=True)
class Straight:
    """What a chat says that was never interrupted, and what it reused in its last turn."""

    texts: list[str]
    reused: int


@pytest.fixture(scope="module")
def straight(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    host = HostProcess(tmp_path_factory.mktemp("straight"), model_spec(context=1024), str(model), None)
    try:
        host.start()
        talk = Talk(host, "ann")
        for question in QUESTIONS:
            talk.say(question)
        assert (talk.told["context"], talk.told["cause"]) == ("resident", None)
        return Straight(talk.texts, talk.told["reused_tokens"])
    finally:
        host.kill()


def wait_written(host: HostProcess, saves: int) -> None:
    host.wait_until(lambda state: state["parking"]["saves"] >= saves and not state["parking"]["unwritten"])


def two_turns(host: HostProcess) -> Talk:
    host.start()
    talk = Talk(host, "ann")
    for question in QUESTIONS[:2]:
        talk.say(question)
    return talk


def test_parked_to_memory_and_resumed_says_what_it_would_have_said(
    make_host: MakeHost, model: Path, straight: Straight
) -> None:
    host = make_host(model, model_spec(context=1024, hold_s=0.0))
    talk = two_turns(host)
    Talk(host, "ben").say("Who are you?")
    assert host.state()["parking"]["sessions"] == 1
    talk.say(QUESTIONS[2])
    assert talk.texts == straight.texts
    assert (talk.told["context"], talk.told["cause"]) == ("resumed", None)
    assert talk.told["reused_tokens"] == straight.reused


def test_parked_when_told_to_stop_and_resumed_in_a_new_process_says_what_it_would_have_said(
    make_host: MakeHost, model: Path, straight: Straight
) -> None:
    host = make_host(model, model_spec(context=1024))
    talk = two_turns(host)
    host.signal(signal.SIGTERM)
    assert host.wait_end() == 0
    assert host.faults() == ""
    host.start()
    talk.say(QUESTIONS[2])
    assert talk.texts == straight.texts
    assert (talk.told["context"], talk.told["cause"]) == ("resumed", None)
    assert talk.told["reused_tokens"] == straight.reused


def test_written_behind_and_killed_it_is_resumed_and_says_what_it_would_have_said(
    make_host: MakeHost, model: Path, straight: Straight
) -> None:
    host = make_host(model, model_spec(context=1024, hold_s=1.5))
    talk = two_turns(host)
    wait_written(host, saves=1)
    host.kill()
    host.start()
    talk.say(QUESTIONS[2])
    assert talk.texts == straight.texts
    assert (talk.told["context"], talk.told["cause"]) == ("resumed", None)
    assert talk.told["reused_tokens"] == straight.reused


def test_killed_in_mid_decode_it_loses_that_turn_only(
    make_host: MakeHost, model: Path, straight: Straight
) -> None:
    host = make_host(model, model_spec(context=1024, hold_s=0.5))
    host.start()
    talk = Talk(host, "ann")
    talk.say(STORY)
    held = host.state()["residents"][0]["tokens"]
    wait_written(host, saves=1)
    messages = [*talk.messages, {"role": "user", "content": QUESTIONS[1]}]
    stream = host.stream({"messages": messages, "max_tokens": 300, "logit_bias": {"2": -100}}, who="ann")
    stream.first_text()
    host.kill()
    host.start()
    talk.say(QUESTIONS[1])
    assert (talk.told["context"], talk.told["cause"]) == ("resumed", None)
    assert talk.told["reused_tokens"] == held
    assert talk.texts == straight.texts[:2]


def test_freed_and_loaded_again_it_says_what_it_would_have_said(
    make_host: MakeHost, model: Path, straight: Straight
) -> None:
    host = make_host(model, model_spec(context=1024, unload_s=2.0))
    talk = two_turns(host)
    with_it = host.state()["memory"]["rss_bytes"]
    state = host.wait_state(loaded=False)
    assert state["memory"]["rss_bytes"] < with_it - 50 * 2**20
    talk.say(QUESTIONS[2])
    assert talk.texts == straight.texts
    assert (talk.told["context"], talk.told["cause"]) == ("resumed", None)


HARMS = {
    "a flipped bit": "restore_failed",
    "truncated": "restore_failed",
    "another session's": "engine_changed",
    "not ours": "engine_changed",
}


def test_a_file_that_is_not_as_it_must_be_is_survived(make_host: MakeHost, model: Path) -> None:
    host = make_host(model, model_spec(context=512, hold_s=0.0))
    host.start()
    talks = {harm: Talk(host, harm) for harm in HARMS}
    for talk in talks.values():
        talk.say(HELLO)
    Talk(host, "ben").say("Who are you?")
    host.signal(signal.SIGTERM)
    assert host.wait_end() == 0
    for harm in HARMS:
        be_harmed(harm, file_of(host, harm), file_of(host, "ben"), model)
    host.start()
    anew = Talk(host, "cem")
    anew.say(HELLO)
    for harm, talk in talks.items():
        is_evaluated_anew(talk, anew, HARMS[harm])
    assert host.errors().count("a parked context is dropped") == len(HARMS)


def test_a_file_of_another_layout_is_survived(make_host: MakeHost, model: Path) -> None:
    host = make_host(model, model_spec(context=512, hold_s=0.0))
    host.start()
    talk = Talk(host, "ann")
    talk.say(HELLO)
    host.signal(signal.SIGTERM)
    assert host.wait_end() == 0
    moved = make_host(model, model_spec(context=256, hold_s=0.0))
    shutil.copytree(host.folder / "parked", moved.folder / "parked")
    moved.start()
    talk.host, anew = moved, Talk(moved, "cem")
    anew.say(HELLO)
    is_evaluated_anew(talk, anew, "engine_changed")
    assert moved.errors().count("a parked context is dropped") == 1


def file_of(host: HostProcess, who: str) -> Path:
    return host.folder / "parked" / f"{session(who)}.kv"


def be_harmed(harm: str, own: Path, other: Path, model: Path) -> None:
    data = bytearray(own.read_bytes())
    match harm:
        case "a flipped bit":
            data[len(data) // 2] ^= 4
            own.write_bytes(data)
        case "truncated":
            own.write_bytes(data[: len(data) // 2])
        case "another session's":
            shutil.copy(other, own)
        case _:
            own.write_bytes(model.read_bytes()[: len(data)])


def is_evaluated_anew(talk: Talk, anew: Talk, cause: str) -> None:
    """Its first question, with the words of one that was never parked."""
    talk.messages, talk.texts = [], []
    talk.say(HELLO)
    assert (talk.who, talk.told["context"], talk.told["cause"]) == (talk.who, "evaluated", cause)
    assert talk.told["reused_tokens"] == 0
    assert talk.texts == anew.texts


def test_a_sliding_window_is_parked_and_resumed_in_a_new_process(make_host: MakeHost) -> None:
    """Longer than Gemma's window, which cannot be cut: its checkpoints travel with it."""
    spec = model_spec(context=2048, hold_s=60.0)
    start = "The ships came home, one after another, each with its own story. " * 60
    greedy = {"temperature": 0, "max_tokens": 16}

    def both(host: HostProcess, pause: Callable[[], None]) -> tuple[list[str], dict[str, Any]]:
        texts, prompt, told = [], start, {}
        for more in ("", " And then", " At last"):
            prompt += more
            answer = host.post("/v1/completions", {**greedy, "prompt": prompt}, who="ann")
            assert answer.status == 200, answer.body
            texts.append(answer.body["choices"][0]["text"])
            prompt += texts[-1]
            told = answer.body["homeport"]
            pause()
        return texts, told

    straight = make_host(gemma(), spec)
    straight.start()
    texts, told = both(straight, lambda: None)
    assert told["context"] == "resident"
    paused = make_host(gemma(), spec)
    paused.start()

    def restart() -> None:
        paused.signal(signal.SIGTERM)
        assert paused.wait_end() == 0
        paused.start()

    assert both(paused, restart) == (texts, {**told, "context": "resumed"})

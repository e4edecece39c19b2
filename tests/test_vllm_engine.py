"""The vLLM engine over a stand-in that speaks as vLLM does: what it is asked, and every way in which it fails. The real
one is in tests/vllm."""

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import group
from cluster.slices import Slice
from serving import vllm_engine
from serving.engine import (
    Began,
    Broke,
    ChoiceEnded,
    Ended,
    Event,
    LoadError,
    PromptError,
    Sampling,
    Text,
    Turn,
    Usage,
)
from serving.vllm_engine import VllmEngine
from serving.vllm_options import VllmOptions
from tests.hf_folders import make_folder

GIB = 1024**3
CPU = min(os.sched_getaffinity(0))
CARVED = Slice((CPU,), (CPU,), (), 4 * GIB)
STANDIN = Path(__file__).with_name("standin_vllm.py")
PROMPT = tuple(range(40))


class Desk:
    """An engine, and what it said."""

    def __init__(self, folder: Path, *, share: str = "key") -> None:
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n')
        python.chmod(0o755)
        self.model = make_folder(folder / "model")
        self.deaths: queue.Queue[str] = queue.Queue()
        self.events: queue.Queue[Event] = queue.Queue()
        self.log = folder / "vllm.log"
        self.engine = VllmEngine(
            python,
            self.model,
            1024,
            2,
            CARVED,
            options=VllmOptions(share_prefix=share),  # type: ignore[arg-type]
            log=self.log,
            on_death=self.deaths.put,
        )
        self.turns = 0

    def up(self) -> None:
        self.engine.load(lambda _: None)
        self.engine.start(self.take)

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.put(event)

    def fault(self, name: str) -> None:
        (self.model / "fault").write_text(name)

    def asked(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.model / "last.json").read_text())
        return found

    def begin(self, **more: Any) -> int:
        self.turns += 1
        usual = Turn(self.turns, 0, PROMPT, 3, Sampling(temperature=0.0), scope="alice")
        self.engine.begin(replace(usual, **more))
        return self.turns

    def until_end(self, turn: int) -> list[Event]:
        found = []
        while True:
            event = self.events.get(timeout=20)
            if event.turn == turn:
                found.append(event)
                if isinstance(event, Ended | Broke):
                    return found

    def answer(self, **more: Any) -> list[Event]:
        return self.until_end(self.begin(**more))

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.model / "pids").read_text().split()]


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(**more: Any) -> Desk:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Desk(folder, **more))
        return made[-1]

    yield make
    for desk in made:
        desk.engine.close()


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    made = make_desk()
    made.up()
    return made


def are_gone(pids: list[int]) -> bool:
    """Soon."""
    deadline = time.monotonic() + 10
    while not all((seen := group.look(pid)) is None or seen.zombie for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def began(events: list[Event]) -> Began:
    return next(event for event in events if isinstance(event, Began))


def test_a_turn_is_answered_and_counted(desk: Desk) -> None:
    events = desk.answer()
    assert text(events) == "<0><1><2>"
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert (ended.reason, ended.usage.prompt, ended.usage.generated) == ("length", 40, 3)
    assert [event.reason for event in events if isinstance(event, ChoiceEnded)] == ["length"]
    assert desk.engine.tokens(0) == (*PROMPT, 0, 1, 2)
    assert (desk.engine.tokens_generated, desk.engine.tokens_evaluated) == (3, 40)


def test_the_stop_string_that_ended_an_answer_is_told(desk: Desk) -> None:
    (ended,) = [
        event
        for event in desk.answer(
            stop=("END", "."),
        )
        if isinstance(event, ChoiceEnded)
    ]
    assert (ended.reason, ended.stop) == ("stop", "END")


def test_the_next_turn_says_what_was_really_used_again(desk: Desk) -> None:
    desk.answer()
    events = desk.answer(prompt=(*PROMPT, 0, 1, 2, 9, 9))
    assert began(events).reused == 32
    assert began(events).held == 32, "all that could be was used again"
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert (ended.usage.reused, ended.usage.evaluated) == (32, 13)


def test_another_keys_context_is_never_used(desk: Desk) -> None:
    desk.answer()
    salt = desk.asked()["cache_salt"]
    events = desk.answer(sequence=1, scope="bob")
    assert began(events).reused == 0
    assert desk.asked()["cache_salt"] != salt
    assert "alice" not in salt
    assert began(desk.answer(sequence=1, scope="alice")).reused == 32, "within one key it is shared"


def test_without_sharing_a_session_finds_its_own_only_also_after_it_gave_way(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(share="off")
    desk.up()
    desk.answer()
    assert began(desk.answer(sequence=1)).reused == 0
    saved = desk.engine.save(0).result(10)
    desk.engine.erase(0)
    assert saved is not None
    assert began(desk.answer()).reused == 0, "another session's now"
    events = desk.answer(sequence=1, state=saved, prompt=saved.tokens)
    assert began(events).restored
    assert began(events).reused == 32


def test_a_context_that_is_gone_is_neither_restored_nor_a_fault(desk: Desk) -> None:
    desk.answer()
    saved = desk.engine.save(0).result(10)
    assert saved is not None
    events = desk.answer(state=replace(saved, tokens=tuple(range(500, 600))), prompt=tuple(range(500, 600)))
    assert (began(events).restored, began(events).held) == (None, 0), "so the host calls it evicted"


def test_several_answers_to_one_prompt(desk: Desk) -> None:
    events = desk.answer(choices=2)
    assert sorted(event.choice for event in events if isinstance(event, ChoiceEnded)) == [0, 1]
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert ended.usage.generated == 6
    assert desk.engine.tokens(0) == (*PROMPT, 0, 1, 2)


def test_a_cancel_ends_the_request(desk: Desk) -> None:
    turn = desk.begin(max_tokens=900)
    assert isinstance(desk.events.get(timeout=20), Text)
    desk.engine.cancel(turn)
    ended = desk.until_end(turn)[-1]
    assert isinstance(ended, Ended)
    assert ended.reason == "cancelled"
    assert ended.usage.generated < 900
    deadline = time.monotonic() + 10
    while b"vllm:num_requests_running 0" not in desk.engine._child.ask("GET", "/metrics")[1]:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_turn_that_is_cancelled_at_once_ends_all_the_same(desk: Desk) -> None:
    for _ in range(20):
        turn = desk.begin()
        desk.engine.cancel(turn)
        ended = desk.until_end(turn)
        assert ended == [Ended(turn, "cancelled", Usage(40, 0, 0, 0))]
    assert not desk.engine._running.running
    assert text(desk.answer()) == "<0><1><2>"


def test_a_turn_that_is_cancelled_later_counts_its_whole_prompt(desk: Desk) -> None:
    turn = desk.begin(max_tokens=900)
    assert isinstance(desk.events.get(timeout=20), Text)
    desk.engine.cancel(turn)
    ended = desk.until_end(turn)[-1]
    assert isinstance(ended, Ended)
    assert (ended.usage.prompt, ended.usage.reused, ended.usage.evaluated) == (40, 0, 40)


def test_what_is_asked_of_a_closed_engine_is_answered(desk: Desk) -> None:
    desk.engine.close()
    broke = desk.answer()
    assert broke == [Broke(desk.turns, "the engine is not loaded")]
    desk.engine.cancel(desk.turns)
    desk.engine.erase(0)


def test_turns_that_begin_while_it_closes_each_end_once(desk: Desk) -> None:
    closing = threading.Thread(target=desk.engine.close)
    closing.start()
    begun = [desk.begin() for _ in range(200)]
    saves = [desk.engine.save(0) for _ in range(20)]
    closing.join()
    assert all(save.result(5) is None for save in saves)
    ends: list[int] = []
    while not desk.events.empty():
        event = desk.events.get()
        if isinstance(event, Ended | Broke):
            ends.append(event.turn)
    assert sorted(ends) == begun


def test_what_it_refuses_is_the_turns_end_in_its_words(desk: Desk) -> None:
    broke = desk.answer(sampling=Sampling(temperature=1.5))[-1]
    assert broke == Broke(desk.turns, "temperature is too much", asked=True)
    assert text(desk.answer()) == "<0><1><2>"


def test_what_it_cannot_do_is_not_asked(desk: Desk) -> None:
    broke = desk.answer(sampling=Sampling(typical_p=0.5))[-1]
    assert isinstance(broke, Broke)
    assert broke.asked
    assert not (desk.model / "last.json").exists() or desk.asked()["max_tokens"] == 1


def test_an_answer_that_breaks_off_breaks_the_turn(desk: Desk) -> None:
    desk.fault("breaks off")
    broke = desk.answer()[-1]
    assert isinstance(broke, Broke)
    assert not broke.asked
    assert desk.engine.tokens(0) == ()


def test_when_it_dies_every_turn_ends_and_its_host_is_told(desk: Desk) -> None:
    slow = desk.begin(max_tokens=900, sequence=1)
    assert isinstance(desk.events.get(timeout=20), Text)
    pids = desk.pids()
    desk.fault("dies")
    desk.begin()
    assert isinstance(desk.until_end(slow)[-1], Broke)
    assert "exit code 3" in desk.deaths.get(timeout=20)
    assert are_gone(pids), "its child lives on"
    broke = desk.answer()[-1]
    assert isinstance(broke, Broke)
    assert "exit code 3" in broke.message


def test_when_its_parent_is_killed_its_children_go_too(desk: Desk) -> None:
    pids = desk.pids()
    os.kill(pids[0], signal.SIGKILL)
    desk.deaths.get(timeout=20)
    assert are_gone(pids)


def test_a_hang_is_a_turn_without_tokens_whatever_its_health_says(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "LOOK_S", 0.1)
    monkeypatch.setattr(vllm_engine, "STALL_S", 0.5)
    desk.fault("hangs")
    turn = desk.begin()
    broke = desk.until_end(turn)[-1]
    assert isinstance(broke, Broke)
    assert "hangs" in broke.message
    assert "hangs" in desk.deaths.get(timeout=20)
    assert are_gone(desk.pids())


def test_a_prompt_that_takes_long_is_no_hang(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "LOOK_S", 0.1)
    monkeypatch.setattr(vllm_engine, "STALL_S", 0.5)
    desk.fault("reads on")
    turn = desk.begin()
    time.sleep(2)
    desk.fault("")
    assert isinstance(desk.until_end(turn)[-1], Ended)
    assert desk.deaths.empty()


def test_why_it_did_not_load_is_said(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk()
    desk.fault("refuses to load")
    with pytest.raises(LoadError, match=r"No available memory for the cache blocks.*vllm\.log"):
        desk.engine.load(lambda _: None)
    assert desk.engine._child is not None
    assert not Path(desk.engine._child.place.folder).exists()


def test_a_machine_without_vllm_is_told_what_to_do(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model")
    engine = VllmEngine(
        tmp_path / "none",
        model,
        100,
        1,
        CARVED,
        options=VllmOptions(),
        log=tmp_path / "l",
        on_death=lambda _: None,
    )
    with pytest.raises(LoadError, match="homeport setup-vllm"):
        engine.load(lambda _: None)


def test_a_folder_that_is_not_there_is_named_with_what_makes_it(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk()
    (desk.model / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match=r"it has no tokenizer\.json\. Run `homeport setup-vllm`"):
        desk.engine.load(lambda _: None)


def test_a_context_that_the_model_was_not_made_for_is_refused(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk()
    desk.engine._context = 5000
    with pytest.raises(LoadError, match="2048 tokens"):
        desk.engine.load(lambda _: None)


def test_a_closed_engine_leaves_nothing_and_loads_again(desk: Desk) -> None:
    pids, own = desk.pids(), Path(desk.engine._child.place.folder)  # type: ignore[union-attr]
    turn = desk.begin(max_tokens=900)
    assert isinstance(desk.events.get(timeout=20), Text)
    desk.engine.close()
    ended = desk.until_end(turn)[-1]
    assert isinstance(ended, Ended)
    assert ended.reason == "cancelled"
    assert are_gone(pids)
    assert not own.exists()
    assert desk.engine.save(0).result(1) is None
    desk.engine.close()
    desk.up()
    assert desk.engine.tokens(0) == ()
    assert text(desk.answer()) == "<0><1><2>"
    assert desk.deaths.empty()


def test_a_load_that_nobody_waits_for_is_given_up(make_desk: Callable[..., Desk], tmp_path: Path) -> None:
    desk = make_desk()
    desk.engine._python.write_text("#!/bin/sh\nsleep 60\n")
    failed: queue.Queue[Exception] = queue.Queue()

    def load() -> None:
        try:
            desk.engine.load(lambda _: None)
        except (LoadError, RuntimeError) as error:
            failed.put(error)

    loading = threading.Thread(target=load)
    loading.start()
    while desk.engine._child is None:
        time.sleep(0.01)
    pids = desk.engine._child.pids()
    desk.engine.close()
    said = str(failed.get(timeout=20))
    assert "given up" in said or "ended while it loaded" in said
    loading.join()
    assert are_gone(pids)


def test_a_constraint_is_checked_before_it_is_asked_for(desk: Desk) -> None:
    assert desk.engine.constraint("start: /a+/") == "start: /a+/"
    with pytest.raises(PromptError, match="unknown name"):
        desk.engine.constraint("start: nothing")

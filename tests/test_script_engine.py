"""The scripted engine: its tokens, its pace, and that its memory is bookkept as a model's is."""

import json
import queue
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import script_vocab as vocab
from serving.deltas import CallArguments, CallBegan, Content, Reasoning
from serving.engine import (
    Began,
    Broke,
    Ended,
    Event,
    LoadError,
    Prefilled,
    PromptError,
    PromptTooLong,
    Sampling,
    Text,
    Turn,
)
from serving.script_answers import Message
from serving.script_engine import ScriptEngine

PATIENCE_S = 20.0
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
HELLO = [{"role": "user", "content": "Hello there."}]


@pytest.mark.parametrize("line", ["not json", "3", "[]", "{}", '{"function": 3}', "[" * 100_000])
def test_words_that_look_like_the_list_of_tools_are_no_fault(line: str) -> None:
    marked = f"<|im_start|>tools\n{line}\n<|im_end|>"
    whole = f"{marked}<|im_start|>user\n{marked}<|im_end|>\n<|im_start|>assistant\n"
    messages, tools = vocab.heard(vocab.tokens_of(whole, special=True))
    assert (messages[-1].role, tools) == ("user", frozenset())


class Running:
    """An engine on a script, and what it says."""

    def __init__(self, path: Path, context: int = 4096, sequences: int = 2) -> None:
        self.engine = ScriptEngine(path, context, sequences)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.engine.load(lambda _: None)
        self.engine.start(self._hear)
        self._turns = 0

    def _hear(self, events: Sequence[Event]) -> None:
        for event in events:
            self._events.put(event)

    def next(self) -> Event:
        return self._events.get(timeout=PATIENCE_S)

    def begin(self, prompt: Sequence[int], sequence: int = 0, **more: Any) -> int:
        self._turns += 1
        more.setdefault("max_tokens", None)
        self.engine.begin(Turn(self._turns, sequence, tuple(prompt), sampling=Sampling(), **more))
        return self._turns

    def until_end(self, turn: int) -> list[Event]:
        said: list[Event] = []
        while not said or not isinstance(said[-1], Ended | Broke):
            event = self.next()
            if event.turn == turn:
                said.append(event)
        return said

    def answer(self, prompt: Sequence[int], sequence: int = 0, **more: Any) -> list[Event]:
        return self.until_end(self.begin(prompt, sequence, **more))


Run = Callable[..., Running]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started: list[Running] = []

    def start(script: Any, **more: Any) -> Running:
        path = tmp_path / f"{len(started)}.json"
        path.write_text(json.dumps(script))
        started.append(Running(path, **more))
        return started[-1]

    yield start
    for running in started:
        running.engine.close()


def text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def ended(events: Sequence[Event]) -> Ended:
    assert isinstance(events[-1], Ended), events
    return events[-1]


# Tokens


@given(st.text(), st.text())
def test_texts_are_read_back_and_what_is_made_token_by_token_is_read_as_the_same(a: str, b: str) -> None:
    whole = vocab.tokens_of(a + "\n" + b, special=False)
    begun = vocab.tokens_of(a + "\n", special=False)
    assert vocab.text_of(whole) == (a + "\n" + b)
    assert whole[: len(begun)] == begun
    assert all(0 <= token < vocab.SIZE for token in whole)


def test_special_tokens_are_read_where_they_are_asked_for_only() -> None:
    assert vocab.tokens_of(vocab.END, special=True) == (vocab.END_ID,)
    assert vocab.END_ID not in vocab.tokens_of(vocab.END, special=False)


def test_half_a_character_is_a_token_like_any_other() -> None:
    assert vocab.tokens_of("\udcff", special=False) == vocab.tokens_of("?", special=False)


def test_a_conversation_is_read_back_out_of_its_prompt(run: Run) -> None:
    running = run({})
    calls = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "<sea>"}}}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "A\nship."},
    ]
    heard, tools = vocab.heard(running.engine.prompt(messages, [TOOL]))
    assert tools == {"look"}
    assert heard[0] == Message("system", "Be brief.")
    assert heard[1] == Message("user", "Hello there.")
    assert heard[2].text == '<tool_call>\n{"name": "look", "arguments": {"at": "<sea>"}}\n</tool_call>'
    assert heard[3] == Message("tool", "A\nship.", "look")


def test_a_prompt_without_roles_is_the_users(run: Run) -> None:
    running = run({})
    assert text(running.answer(running.engine.tokenize("Once upon"))) == "Once upon"


def test_its_format_reads_what_it_thinks_says_and_calls(run: Run) -> None:
    call = {"name": "look", "arguments": {"at": "the sea"}}
    running = run({"default": {"think": "Hm.", "say": "Let me see.", "call": call}})
    engine = running.engine
    assert engine.format.knows_tools
    parser = engine.format.parser(engine.format.prompt_end(HELLO, [TOOL]), [TOOL])
    deltas = [
        *(
            d
            for e in running.answer(engine.prompt(HELLO, [TOOL]))
            if isinstance(e, Text)
            for d in parser.push(e.text)
        ),
        *parser.finish(),
    ]
    assert "".join(d.text for d in deltas if isinstance(d, Reasoning)) == "Hm."
    assert "".join(d.text for d in deltas if isinstance(d, Content)) == "Let me see."
    assert [d.name for d in deltas if isinstance(d, CallBegan)] == ["look"]
    written = "".join(d.text for d in deltas if isinstance(d, CallArguments))
    assert json.loads(written) == {"at": "the sea"}


def test_ids_that_are_none_are_refused(run: Run) -> None:
    running = run({})
    with pytest.raises(PromptError):
        running.engine.detokenize([vocab.SIZE])
    (broke,) = running.answer([vocab.SIZE])
    assert isinstance(broke, Broke)
    bias = Sampling(logit_bias=((vocab.SIZE, 1.0),))
    running.engine.begin(Turn(99, 0, (5,), 1, bias))
    assert isinstance(running.until_end(99)[-1], Broke)
    with pytest.raises(PromptTooLong):
        running.engine.tokenize("x" * 4096 * vocab.LONGEST)


# Memory


def test_the_next_turn_evaluates_only_what_is_new_also_after_a_call(run: Run) -> None:
    call = {"name": "look", "arguments": {"at": "sea", "far": True}}
    running = run({"rules": [{"steps": [{"say": "I look.", "call": call}, {"say": "A ship.", "think": ""}]}]})
    engine = running.engine
    first = running.answer(engine.prompt(HELLO, [TOOL]))
    held = engine.tokens(0)
    calls = [{"id": "1", "type": "function", "function": call}]
    messages: list[dict[str, Any]] = [
        *HELLO,
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "Something."},
    ]
    second = running.answer(engine.prompt(messages, [TOOL]))
    assert text(second) == "A ship."
    began = second[0]
    assert isinstance(began, Began)
    assert began.reused == len(held) == ended(first).usage.prompt + ended(first).usage.generated - 1
    assert ended(second).usage.evaluated == ended(second).usage.prompt - began.reused


def test_a_saved_state_goes_on_in_another_engine(run: Run) -> None:
    first, second = run({}), run({})
    prompt = first.engine.prompt(HELLO)
    first.answer(prompt)
    state = first.engine.save(0).result(PATIENCE_S)
    assert state is not None
    longer = [*HELLO, {"role": "assistant", "content": "Hello there."}, {"role": "user", "content": "Again."}]
    began = second.answer(second.engine.prompt(longer), 1, state=state)[0]
    assert isinstance(began, Began)
    assert (began.restored, began.reused) == (True, len(state.tokens))


def test_bytes_that_are_no_state_are_not_taken(run: Run) -> None:
    running = run({})
    backend = running.engine._backend
    assert not backend.load(1, b"abc")
    assert not backend.load(1, b"\xff" * 8)
    assert backend.present(1) == 0


def test_a_session_of_the_same_key_begins_with_what_it_has_in_common(run: Run) -> None:
    running = run({})
    system = {"role": "system", "content": "Be brief. " * 40}
    prompts = [running.engine.prompt([system, {"role": "user", "content": name}]) for name in "ab"]
    running.answer(prompts[0], 0, scope="key")
    began = running.answer(prompts[1], 1, scope="key")[0]
    assert isinstance(began, Began)
    assert began.shared > 100
    state = running.engine.save(1).result(PATIENCE_S)
    assert state is not None
    assert array("I", state.data).tolist() == list(state.tokens)


def test_an_erased_sequence_and_a_closed_engine_hold_nothing(run: Run) -> None:
    running = run({})
    running.answer(running.engine.prompt(HELLO))
    assert running.engine.held(0) > 0
    running.engine.erase(0)
    assert running.engine.save(0).result(PATIENCE_S) is None
    running.engine.close()
    running.engine.load(lambda _: None)
    running.engine.start(running._hear)
    assert text(running.answer(running.engine.prompt(HELLO))) == "Hello there."


# Answers


def test_max_tokens_and_stop_strings_are_obeyed(run: Run) -> None:
    running = run({"default": {"say": "one two three. ", "repeat": 100}})
    prompt = running.engine.prompt(HELLO)
    short = running.answer(prompt, max_tokens=4)
    assert (ended(short).reason, ended(short).usage.generated) == ("length", 4)
    assert text(short) == "one two thre"
    stopped = running.answer(prompt, stop=("three",))
    assert (ended(stopped).reason, text(stopped)) == ("stop", "one two ")


def test_every_choice_is_the_whole_answer(run: Run) -> None:
    events = (running := run({})).answer(running.engine.prompt(HELLO), choices=3)
    by_choice = [[e for e in events if isinstance(e, Text) and e.choice == n] for n in range(3)]
    assert [text(each) for each in by_choice] == ["Hello there."] * 3


def test_log_probabilities_say_that_nothing_else_could_have_come(run: Run) -> None:
    running = run({})
    events = running.answer(running.engine.prompt(HELLO), logprobs=2)
    told = [sampled for e in events if isinstance(e, Text) for sampled in e.sampled]
    assert b"".join(sampled.chosen.piece for sampled in told) == b"Hello there."
    assert {sampled.chosen.logprob for sampled in told} == {0.0}


def test_a_grammar_is_checked_and_the_script_goes_its_own_way(run: Run) -> None:
    running = run({})
    with pytest.raises(PromptError, match="cannot be used"):
        running.engine.constraint("start: nonsense")
    constraint = running.engine.constraint('start: "yes"')
    assert text(running.answer(running.engine.prompt(HELLO), constraint=constraint)) == "Hello there."


def test_a_script_that_is_broken_later_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("rules: 5\n")
    with pytest.raises(LoadError, match=r"x\.yaml:1: rules: is not a list"):
        ScriptEngine(tmp_path / "x.yaml", 512, 1).load(lambda _: None)


# Pace


def test_prompts_and_answers_take_the_time_that_the_script_says(run: Run) -> None:
    running = run({"prompt_tokens_per_s": 200, "default": {"say": "x" * 30, "tokens_per_s": 50}})
    prompt = running.engine.tokenize("y" * 150)
    begun = time.monotonic()
    events = running.answer(prompt)
    took = time.monotonic() - begun
    assert ended(events).usage.generated == 11
    assert took > 50 / 200 + 10 / 50 - 0.05


def test_a_prompt_that_takes_long_is_told_in_chunks_beside_a_neighbour(run: Run) -> None:
    slow = {"when": {"last_user": "slow"}, "say": "z" * 3000, "tokens_per_s": 500}
    running = run({"rules": [slow]})
    neighbour = running.begin(running.engine.tokenize("slow"), 0)
    while not isinstance(running.next(), Text):
        pass
    events = running.answer(running.engine.tokenize("y" * 900), 1)
    assert len([event for event in events if isinstance(event, Prefilled)]) > 2
    running.engine.cancel(neighbour)
    running.until_end(neighbour)


@pytest.mark.parametrize("wait", [{"first_token_s": 3600}, {"tokens_per_s": 0.001}])
def test_a_cancel_does_not_wait_for_the_next_token(run: Run, wait: dict[str, float]) -> None:
    running = run({"default": {"say": "x" * 300, **wait}})
    turn = running.begin(running.engine.prompt(HELLO))
    while not isinstance(running.next(), Began):
        pass
    running.engine.cancel(turn)
    assert ended(running.until_end(turn)).reason == "cancelled"


def test_a_cancelled_prompt_is_evaluated_no_further(run: Run) -> None:
    running = run({"prompt_tokens_per_s": 0.01})
    turn = running.begin(running.engine.prompt(HELLO))
    while not isinstance(running.next(), Began):
        pass
    running.engine.cancel(turn)
    assert ended(running.until_end(turn)).usage.evaluated == 0
    assert running.engine.tokens_evaluated == 0


def test_a_neighbour_that_is_cancelled_costs_a_turn_nothing(run: Run) -> None:
    rules = [{"when": {"last_user": "slow"}, "say": "x" * 60, "tokens_per_s": 100}]
    running = run({"rules": [*rules], "default": {"say": "y", "first_token_s": 0.2}})
    slow = running.begin(running.engine.tokenize("slow"), 0)
    while not isinstance(running.next(), Text):
        pass
    other = running.begin(running.engine.tokenize("other"), 1)
    running.engine.cancel(other)
    said = []
    ends = 0
    while ends < 2:
        said.append(event := running.next())
        ends += isinstance(event, Ended)
    (end,) = [event for event in said if isinstance(event, Ended) and event.turn == slow]
    assert (end.reason, end.usage.generated) == ("stop", 21)


def test_close_does_not_wait_for_the_next_token(run: Run) -> None:
    running = run({"default": {"say": "x", "first_token_s": 3600}})
    turn = running.begin(running.engine.prompt(HELLO))
    while not isinstance(running.next(), Prefilled | Began):
        pass
    running.engine.close()
    assert ended(running.until_end(turn)).reason == "cancelled"

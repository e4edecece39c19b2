"""serving/llama_engine.py and decode_loop.py on the bundled model: one thread, greedy unless said otherwise."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving import llama_engine
from serving.engine import (
    Began,
    Broke,
    ChoiceEnded,
    Ended,
    Event,
    LoadError,
    ModelFacts,
    Prefilled,
    PromptError,
    PromptTooLong,
    Sampling,
    Text,
    Turn,
    Usage,
)
from serving.llama_engine import LlamaEngine
from serving.llama_options import EngineOptions
from serving.source import bundled_model
from tests.llama_driver import GREEDY, PATIENCE_S, Driver

CONTEXT = 512


@pytest.fixture(scope="module")
def model() -> Path:
    return bundled_model()


@pytest.fixture(scope="module")
def loaded(model: Path) -> Iterator[Driver]:
    engine = LlamaEngine(model, CONTEXT, sequences=1, threads=1, options=EngineOptions(batch=128))
    driver = Driver(engine)
    yield driver
    engine.close()


@pytest.fixture
def driver(loaded: Driver) -> Driver:
    """The one engine of these tests, with nothing in its sequence."""
    loaded.engine.erase(0)
    return loaded


@pytest.fixture(scope="module")
def pair(model: Path) -> Iterator[Driver]:
    """Two sequences, whose greedy text depends on the neighbour as little as can be had."""
    options = EngineOptions(batch=128, flash_attention=False, prompt_chunk=32)
    engine = LlamaEngine(model, CONTEXT, sequences=2, threads=1, options=options)
    yield Driver(engine)
    engine.close()


@pytest.fixture(scope="module")
def long_prompt(loaded: Driver) -> tuple[int, ...]:
    """Nearly the whole context: takes seconds to evaluate."""
    text = " ".join(f"Ship {index} left the harbour before noon." for index in range(100))
    return loaded.chat(text)[: CONTEXT - 16]


def paris(driver: Driver) -> tuple[int, ...]:
    return driver.chat("What is the capital of France?")


def is_text(event: Event) -> bool:
    return isinstance(event, Text)


def end_of(events: Sequence[Event]) -> Ended:
    end = events[-1]
    assert isinstance(end, Ended), end
    return end


# Loading


def test_loading_tells_the_facts_and_its_progress(driver: Driver) -> None:
    facts: ModelFacts = driver.engine.facts
    assert facts == driver.facts
    assert (facts.context, facts.sequences, facts.template) == (CONTEXT, 1, True)
    assert facts.kv_bytes_per_token == 23_040
    assert facts.vocabulary == 49_152
    assert "llama" in facts.description
    assert facts.load_s > 0
    assert driver.progress == sorted(driver.progress)
    assert driver.progress[-1] == 1.0


def load_failure(path: Path, context: int = 256, memory_bytes: int | None = None) -> str:
    engine = LlamaEngine(path, context, sequences=1, threads=1, memory_bytes=memory_bytes)
    with pytest.raises(LoadError) as caught:
        engine.load(lambda _: None)
    engine.close()
    return str(caught.value)


def test_one_decode_warms_up_before_the_engine_counts_as_loaded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LlamaEngine(model, CONTEXT, sequences=1, threads=1, options=EngineOptions(prompt_chunk=8))
    seen: list[float] = []
    decodes = []
    decode = engine._llama.decode

    def counted(spans: Any) -> bool:
        decodes.append(seen[-1])
        return decode(spans)

    monkeypatch.setattr(engine._llama, "decode", counted)
    try:
        engine.load(seen.append)
        assert decodes == [0.95]
        assert (seen[-1], engine.held(0)) == (1.0, 0)
    finally:
        engine.close()


def test_a_truncated_file_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    with model.open("rb") as whole:
        path.write_bytes(whole.read(20_000_000))
    assert "truncated" in load_failure(path)


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "poem.gguf"
    path.write_text("The sea, the sea, the open sea")
    assert "not a GGUF" in load_failure(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in load_failure(tmp_path / "none.gguf")
    assert "directory" in load_failure(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    assert "may not be read" in load_failure(path)


def test_a_model_that_llama_cpp_does_not_know_is_refused_with_its_words(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "future.gguf"
    data = bytearray(model.read_bytes())
    at = data.index(b"llama", data.index(b"general.architecture"))
    data[at : at + 5] = b"lllll"
    path.write_bytes(data)
    assert "lllll" in load_failure(path)


def test_a_context_beyond_the_slice_is_refused_with_the_sum(model: Path) -> None:
    message = load_failure(model, context=8192, memory_bytes=200 * 2**20)
    assert "180 MiB" in message
    assert "200 MiB are free" in message


def test_closing_while_it_loads_gives_up(model: Path) -> None:
    engine = LlamaEngine(model, 256, sequences=1, threads=1)
    closers: list[threading.Thread] = []

    def close_at_once(_: float) -> None:
        if not closers:
            closers.append(threading.Thread(target=engine.close))
            closers[0].start()
            while not engine._llama._abort:
                time.sleep(0.001)

    with pytest.raises(LoadError, match="given up"):
        engine.load(close_at_once)
    closers[0].join(PATIENCE_S)
    assert not closers[0].is_alive()


# Prompts


def test_the_template_gives_the_token_ids_that_transformers_gives(driver: Driver) -> None:
    """No BOS is added, special tokens are read as such, the default system message comes from the template."""
    ids = driver.engine.prompt([{"role": "user", "content": "What is the capital of France?"}])
    system = (
        1,
        9690,
        198,
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
        28,
        7018,
        411,
        407,
        19712,
        8182,
        2,
        198,
    )
    user = (1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198)
    assert ids == (*system, *user, 1, 520, 9531, 198)


def test_messages_that_the_template_cannot_take_are_a_prompt_error(driver: Driver) -> None:
    with pytest.raises(PromptError):
        driver.engine.prompt([{"role": "user"}])


def test_a_text_too_large_for_the_context_is_refused_without_tokenizing_it(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_engine.lib, "llama_tokenize", None)
    with pytest.raises(PromptTooLong) as caught:
        driver.chat("a" * 2**20)
    assert CONTEXT <= caught.value.at_least <= 2**20 / 8


def test_a_prompt_of_the_longest_tokens_is_counted_and_not_refused(driver: Driver) -> None:
    """No token stands for more bytes than the engine takes its longest one for."""
    pieces = [driver.engine._llama.piece(token) or b"" for token in range(driver.facts.vocabulary)]
    longest = max(pieces, key=len)
    assert driver.engine._llama._vocabulary().longest >= len(longest)
    text = longest.decode() * (CONTEXT - 64)
    assert len(driver.chat(text)) <= CONTEXT


class HeldTokenizer:
    """llama_tokenize that takes until `release` for texts of more than a thousand bytes."""

    def __init__(self, real: Callable[..., int]) -> None:
        self._real = real
        self.inside = threading.Event()
        self.release = threading.Event()

    def __call__(self, vocab: object, data: bytes, *rest: object) -> int:
        if len(data) > 1000:
            self.inside.set()
            assert self.release.wait(PATIENCE_S)
        return self._real(vocab, data, *rest)


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldTokenizer]:
    held = HeldTokenizer(llama_engine.lib.llama_tokenize)
    monkeypatch.setattr(llama_engine.lib, "llama_tokenize", held)
    yield held
    held.release.set()


def test_a_short_prompt_does_not_wait_for_a_long_one_but_closing_does(
    model: Path, tokenizer: HeldTokenizer
) -> None:
    driver = Driver(LlamaEngine(model, CONTEXT, sequences=1, threads=1))
    with ThreadPoolExecutor(3) as threads:
        long = threads.submit(driver.chat, "word " * 400)
        assert tokenizer.inside.wait(PATIENCE_S)
        try:
            assert len(threads.submit(driver.chat, "Hello?").result(PATIENCE_S / 4)) > 10
            closing = threads.submit(driver.engine.close)
            with pytest.raises(TimeoutError):
                closing.result(0.2)
        finally:
            tokenizer.release.set()
        closing.result(PATIENCE_S)
        assert len(long.result()) > 400


# Answers


def test_the_first_answer(driver: Driver) -> None:
    prompt = paris(driver)
    text, end = driver.ask(prompt, 64)
    assert text == "The capital of France is Paris."
    assert end.reason == "stop"
    assert end.usage == Usage(prompt=len(prompt), reused=0, evaluated=len(prompt), generated=8)


def test_events_come_in_order_and_add_up(driver: Driver, long_prompt: tuple[int, ...]) -> None:
    prompt = long_prompt[:300]
    generated, evaluated = driver.engine.tokens_generated, driver.engine.tokens_evaluated
    events = driver.until(driver.begin(prompt, 6), lambda event: isinstance(event, Ended))
    kinds = [type(event) for event in events]
    assert kinds == [Began, *[Prefilled] * 3, *[Text] * kinds.count(Text), ChoiceEnded, Ended]
    assert [event.done for event in events if isinstance(event, Prefilled)] == [128, 256, 300]
    assert sum(event.tokens for event in events if isinstance(event, Text)) == 6
    assert driver.engine.tokens_generated - generated == 6
    assert driver.engine.tokens_evaluated - evaluated == 300


def test_max_tokens_ends_with_length(driver: Driver) -> None:
    text, end = driver.ask(paris(driver), 3)
    assert (text, end.reason, end.usage.generated) == ("The capital of", "length", 3)


def test_the_end_of_the_context_ends_with_length(driver: Driver, long_prompt: tuple[int, ...]) -> None:
    _, end = driver.ask(long_prompt, None)
    assert (end.reason, end.usage.generated) == ("length", CONTEXT - len(long_prompt))
    assert driver.engine.held(0) == CONTEXT - 1


def test_a_stop_string_across_tokens_never_leaks(driver: Driver) -> None:
    text, end = driver.ask(paris(driver), 64, stop=("ital of Fr",))
    assert (text, end.reason) == ("The cap", "stop")


def test_a_stop_string_that_is_only_begun_comes_out(driver: Driver) -> None:
    text, end = driver.ask(paris(driver), 64, stop=("Paris. Yes",))
    assert (text, end.reason) == ("The capital of France is Paris.", "stop")


def test_a_character_of_many_tokens_is_never_split(driver: Driver) -> None:
    """A house takes several tokens; they are forced one after the other by what is biased away."""
    house = driver.engine.tokenize("🏠🏠")
    assert len(house) >= 4
    forced = Sampling(temperature=0, logit_bias=tuple((token, 100.0) for token in house))
    turn = driver.begin(paris(driver), 12, sampling=forced)
    events = driver.until(turn, lambda event: isinstance(event, Ended))
    texts = [event.text for event in events if isinstance(event, Text)]
    assert end_of(events).usage.generated == 12
    assert len(texts) < 12
    assert all(text == text.encode(errors="replace").decode() for text in texts)


def test_a_token_can_be_forbidden(driver: Driver) -> None:
    the = driver.engine.tokenize("The")[0]
    text, _ = driver.ask(paris(driver), 3, sampling=Sampling(temperature=0, logit_bias=((the, -100.0),)))
    assert text
    assert not text.startswith("The")


def test_a_frequency_penalty_breaks_a_loop(driver: Driver) -> None:
    prompt = driver.engine.tokenize("sea, sea, sea, sea, sea, sea, sea, sea,")
    plain, _ = driver.ask(prompt, 16)
    penalised, _ = driver.ask(prompt, 16, sampling=Sampling(temperature=0, frequency_penalty=2.0))
    assert plain.count("sea") == 8
    assert 0 < penalised.count("sea") < 8


def test_a_prompt_is_rendered_once_and_no_logits_are_copied_for_a_plain_answer(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    assert driver.engine.format is not None
    render = driver.engine.format.render

    def counted(*of: Any, **more: Any) -> str:
        rendered.append(of)
        return str(render(*of, **more))

    def never(row: int) -> None:
        raise AssertionError(f"logits of row {row} were asked for")

    monkeypatch.setattr(driver.engine.format, "render", counted)
    monkeypatch.setattr(driver.engine._llama._context, "logits", never)
    assert driver.ask(paris(driver), 64)[0] == "The capital of France is Paris."
    assert len(rendered) == 1


def test_a_presence_penalty_asks_for_other_words(driver: Driver) -> None:
    prompt = driver.engine.tokenize("sea, sea, sea, sea, sea, sea, sea, sea,")
    text, _ = driver.ask(prompt, 16, sampling=Sampling(temperature=0, presence_penalty=20.0))
    assert 1 <= text.count("sea") < 8


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.0001}, {"min_p": 1.0}])
def test_a_choice_narrowed_to_the_likeliest_is_greedy(driver: Driver, narrow: dict[str, Any]) -> None:
    prompt = driver.chat("Tell me a story.")
    greedy, _ = driver.ask(prompt, 16)
    wide = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=7)
    driver.engine.erase(0)
    assert driver.ask(prompt, 16, sampling=wide)[0] != greedy
    driver.engine.erase(0)
    assert driver.ask(prompt, 16, sampling=replace(wide, **narrow))[0] == greedy


def test_a_repeat_penalty_looks_back_into_the_prompt(driver: Driver) -> None:
    prompt = driver.engine.tokenize("sea, sea, sea, sea, sea, sea, sea, sea,")
    text, _ = driver.ask(prompt, 1, sampling=Sampling(temperature=0, repeat_penalty=3.0))
    assert "sea" not in text


def test_the_same_seed_gives_the_same_text(driver: Driver) -> None:
    prompt = driver.chat("Tell me a story.")
    texts = [
        driver.ask(prompt, 16, sampling=Sampling(temperature=1.5, seed=seed))[0] for seed in (7, 7, 8, -1)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_without_a_seed_texts_differ(driver: Driver) -> None:
    prompt = driver.chat("Tell me a story.")
    assert len({driver.ask(prompt, 16, sampling=Sampling(temperature=1.5))[0] for _ in range(3)}) > 1


# What stays between turns


def test_the_second_turn_evaluates_only_what_is_new(driver: Driver) -> None:
    question = "What is the capital of France?"
    first, _ = driver.ask(driver.chat(question), 64)
    prompt = driver.chat(question, first, "And of Italy?")
    held = driver.engine.held(0)
    turn = driver.begin(prompt, 24)
    began = driver.until(turn, lambda event: isinstance(event, Began))[0]
    warm, end = driver.answer(turn)
    assert began == Began(turn, held, held)
    assert (end.usage.reused, end.usage.evaluated) == (held, len(prompt) - held)
    driver.engine.erase(0)
    cold, end = driver.ask(prompt, 24)
    assert end.usage.reused == 0
    assert warm == cold


def test_the_same_prompt_again_evaluates_one_token(driver: Driver) -> None:
    prompt = paris(driver)
    first, _ = driver.ask(prompt, 64)
    second, end = driver.ask(prompt, 64)
    assert first == second
    assert end.usage.evaluated == 1


def test_an_edited_history_is_cut_at_the_difference(driver: Driver) -> None:
    driver.ask(driver.chat("What is the capital of France?", "It is Paris.", "Tell me more about it."), 8)
    edited = driver.chat("What is the capital of France?", "It is Lyon.", "Tell me more about it.")
    after_edit, end = driver.ask(edited, 16)
    shared = len(driver.chat("What is the capital of France?")) + 2
    assert end.usage.reused == shared
    driver.engine.erase(0)
    assert driver.ask(edited, 16)[0] == after_edit


def test_an_erased_sequence_holds_nothing(driver: Driver) -> None:
    driver.ask(paris(driver), 4)
    driver.engine.erase(0)
    _, end = driver.ask(paris(driver), 4)
    assert end.usage.reused == 0


# Cancelling


def test_a_cancelled_answer_generates_at_most_one_more_token(driver: Driver) -> None:
    turn = driver.begin(driver.chat("Write a long story about the sea."), None)
    for _ in range(3):
        driver.until(turn, is_text)
    before = driver.engine.tokens_generated
    driver.engine.cancel(turn)
    end = end_of(driver.until(turn, lambda event: isinstance(event, Ended)))
    assert end.reason == "cancelled"
    assert driver.engine.tokens_generated - before <= 1
    assert driver.ask(paris(driver), 64)[0] == "The capital of France is Paris."


def test_a_cancelled_prompt_leaves_a_sequence_that_is_right(
    model: Path, long_prompt: tuple[int, ...]
) -> None:
    """The prompt is one chunk here: that nothing of it is evaluated shows that the decode was ended early."""
    prompt = long_prompt[:300]
    engine = LlamaEngine(model, CONTEXT, sequences=1, threads=1, options=EngineOptions(batch=CONTEXT))
    driver = Driver(engine)
    try:
        driver.ask(prompt[:40], 1)
        turn = driver.begin(prompt, 4)
        driver.until(turn, lambda event: isinstance(event, Began))
        while turn not in engine._loop._abortable:
            time.sleep(0.001)
        engine.cancel(turn)
        end = end_of(driver.until(turn, lambda event: isinstance(event, Ended)))
        assert (end.reason, end.usage) == (
            "cancelled",
            Usage(prompt=300, reused=40, evaluated=0, generated=0),
        )
        assert engine.held(0) == 40
        after, end = driver.ask(prompt, 8)
        assert (end.usage.reused, end.usage.evaluated) == (40, 260)
        engine.erase(0)
        assert driver.ask(prompt, 8)[0] == after
    finally:
        engine.close()


def test_cancelling_what_is_not_there_changes_nothing(driver: Driver) -> None:
    driver.engine.cancel(10_000)
    turn = driver.begin(paris(driver), 64)
    text, _ = driver.answer(turn)
    driver.engine.cancel(turn)
    assert text == driver.ask(paris(driver), 64)[0]


def test_closing_ends_turns_as_cancelled(model: Path, long_prompt: tuple[int, ...]) -> None:
    engine = LlamaEngine(model, CONTEXT, sequences=1, threads=1)
    driver = Driver(engine)
    turn = driver.begin(long_prompt, None)
    driver.until(turn, lambda event: isinstance(event, Began))
    engine.close()
    engine.close()
    assert end_of(driver.until(turn, lambda event: isinstance(event, Ended))).reason == "cancelled"
    with pytest.raises(RuntimeError, match="closed"):
        driver.chat("Hello?")


# Turns that cannot be made


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (Turn(0, 1, (1, 2), 4, GREEDY), "no sequence 1"),
        (Turn(0, 0, (), 4, GREEDY), "prompt of 0 tokens"),
        (Turn(0, 0, (1,) * CONTEXT, 4, GREEDY), f"does not fit a context of {CONTEXT}"),
        (Turn(0, 0, (1, 49_152), 4, GREEDY), "token ids"),
        (
            Turn(0, 0, (1,), 4, Sampling(temperature=0, logit_bias=((49_152, 1.0),))),
            "logit_bias names token 49152",
        ),
    ],
)
def test_a_turn_against_the_contract_breaks_alone(driver: Driver, turn: Turn, words: str) -> None:
    number = len(driver._said)
    driver._said[number] = queue.SimpleQueue()
    driver.engine.begin(Turn(number, turn.sequence, turn.prompt, turn.max_tokens, turn.sampling))
    (event,) = driver.until(number, lambda _: True)
    assert isinstance(event, Broke)
    assert words in event.message
    assert driver.ask(paris(driver), 64)[0] == "The capital of France is Paris."


def test_a_second_turn_on_a_busy_sequence_breaks_and_the_first_goes_on(driver: Driver) -> None:
    first = driver.begin(paris(driver), 64)
    second = driver.begin(paris(driver), 64)
    (event,) = driver.until(second, lambda _: True)
    assert isinstance(event, Broke)
    assert driver.answer(first)[0] == "The capital of France is Paris."


def test_a_failure_breaks_the_turns_and_the_engine_goes_on(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise RuntimeError("no KV slot")

    with monkeypatch.context() as patch:
        patch.setattr(driver.engine._llama, "sample", fails)
        event = driver.until(driver.begin(paris(driver)), lambda event: isinstance(event, Broke))[-1]
    assert isinstance(event, Broke)
    assert "failed" in event.message
    text, end = driver.ask(paris(driver), 64)
    assert text == "The capital of France is Paris."
    assert end.usage.reused == 0


# Several sequences


def test_two_sequences_at_once_say_what_each_says_alone(pair: Driver) -> None:
    """What they say is clear-cut: rounding, which differs with the chunks of a prompt, does not change it."""
    counting = ", ".join(str(number) for number in range(1, 60))
    prompts = [paris(pair), pair.engine.tokenize(counting)]
    alone = [pair.ask(prompt, 24, sequence=index)[0] for index, prompt in enumerate(prompts)]
    for index in (0, 1):
        pair.engine.erase(index)
    turns = [pair.begin(prompt, 24, sequence=index) for index, prompt in enumerate(prompts)]
    together = [pair.answer(turn)[0] for turn in turns]
    assert together == alone
    assert alone[0] == "The capital of France is Paris."
    assert alone[1].startswith(", 60, 61, 62")


def test_a_neighbour_goes_on_while_a_long_prompt_is_evaluated(
    pair: Driver, long_prompt: tuple[int, ...]
) -> None:
    """Chunks of a prompt and tokens of the neighbour take turns; neither waits for the other's end."""
    for index in (0, 1):
        pair.engine.erase(index)
    talker = pair.begin(pair.chat("Write a long story about the sea."), 200)
    pair.until(talker, is_text)
    before = pair.engine.tokens_generated
    reader = pair.begin(long_prompt[:128], 1, sequence=1)
    pair.until(reader, lambda event: isinstance(event, Prefilled) and event.done == event.total)
    assert pair.engine.tokens_generated - before >= 128 // 32
    pair.engine.cancel(talker)
    pair.answer(talker)


def test_cancelling_a_prompt_leaves_the_neighbour_right(pair: Driver, long_prompt: tuple[int, ...]) -> None:
    for index in (0, 1):
        pair.engine.erase(index)
    prompt = pair.chat("Write a poem about a harbour.")
    alone, _ = pair.ask(prompt, 32)
    pair.engine.erase(0)
    talker = pair.begin(prompt, 32)
    pair.until(talker, is_text)
    for _ in range(3):
        reader = pair.begin(long_prompt, 1, sequence=1)
        pair.until(reader, lambda event: isinstance(event, Prefilled))
        pair.engine.cancel(reader)
        assert end_of(pair.until(reader, lambda event: isinstance(event, Ended))).reason == "cancelled"
    whole, _ = pair.answer(talker)
    assert alone.endswith(whole)
    _, end = pair.ask(pair.chat("Write a poem about a harbour.", alone, "Thanks."), 1)
    assert end.usage.reused > len(prompt)

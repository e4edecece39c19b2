"""serving/llama_backend.py and its parts: options, memory, embeddings, log probabilities, constraints, pieces."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from serving import llama_engine
from serving.backend import Span
from serving.constraint import Constraint
from serving.engine import Embed, Embedded, Ended, LoadError, PromptError, Sampled, Sampling, Text, Turn
from serving.likely import Scores
from serving.llama_backend import LlamaBackend
from serving.llama_context import Sizes
from serving.llama_engine import LlamaEngine
from serving.llama_options import EngineOptions
from tests.llama_driver import GREEDY, Driver
from tests.models import bundled_model, gemma

CONTEXT = 512


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    engine = LlamaEngine(bundled_model(), CONTEXT, sequences=2, threads=1)
    yield Driver(engine)
    engine.close()


@pytest.fixture
def prompt(driver: Driver) -> tuple[int, ...]:
    driver.engine.erase(0)
    return driver.chat("What is the capital of France?")


def load_failure(options: EngineOptions, memory_bytes: int | None = None, path: Path | None = None) -> str:
    engine = LlamaEngine(path or bundled_model(), 256, 1, 1, options=options, memory_bytes=memory_bytes)
    with pytest.raises(LoadError) as caught:
        engine.load(lambda _: None)
    engine.close()
    return str(caught.value)


def opened(options: EngineOptions, path: Path | None = None) -> LlamaBackend:
    backend = LlamaBackend(llama_engine.lib, path or bundled_model(), Sizes(256, 2, 1, 64), options, None)
    backend.open(lambda _: None)
    return backend


def logits(backend: LlamaBackend, tokens: Sequence[int]) -> Any:
    backend.clear()
    assert backend.decode([Span(0, 0, tokens, True)])
    return backend._context.logits(len(tokens) - 1).copy()


# Options


@pytest.mark.parametrize("why", [{"flash_attention": False}, {"exact": True}])
def test_a_small_kv_type_without_flash_attention_is_refused(why: dict[str, Any]) -> None:
    message = load_failure(EngineOptions(kv_type="q8_0", **why))
    assert "kv_type q8_0 needs flash attention" in message
    assert next(iter(why)) in message


@pytest.mark.parametrize(("kv_type", "bytes_"), [("q8_0", 12_240), ("q4_0", 6_480)])
def test_a_small_kv_type_takes_less_and_still_answers(kv_type: Any, bytes_: int) -> None:
    engine = LlamaEngine(bundled_model(), CONTEXT, 1, 1, options=EngineOptions(kv_type=kv_type))
    driver = Driver(engine)
    try:
        assert driver.facts.kv_bytes_per_token == bytes_
        assert driver.facts.memory.kv == pytest.approx(bytes_ * CONTEXT, rel=0.01)
        assert kv_type in driver.facts.layout
        text, _ = driver.ask(driver.chat("What is the capital of France?"), 32)
        assert "Paris" in text
    finally:
        engine.close()


def adapter(path: Path, width: int = 576) -> Path:
    """A LoRA adapter that shifts the queries of the first layer."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    random = np.random.default_rng(3)
    for half, shape in (("a", (4, width)), ("b", (576, 4))):
        data = random.standard_normal(shape).astype(np.float32)
        writer.add_tensor(f"blk.0.attn_q.weight.lora_{half}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_changes_what_the_model_says_and_the_layout(tmp_path: Path) -> None:
    tokens = (1, 4093, 198, 1780, 314)
    plain, changed = opened(EngineOptions()), opened(EngineOptions(lora=(str(adapter(tmp_path / "a.gguf")),)))
    try:
        assert np.abs(logits(plain, tokens) - logits(changed, tokens)).max() > 0.1
        assert plain.facts(0, 1, "b").layout != changed.facts(0, 1, "b").layout
        assert embedded(plain, tokens) != embedded(changed, tokens)
    finally:
        plain.shut()
        changed.shut()


def test_an_adapter_that_is_missing_or_of_another_model_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in load_failure(EngineOptions(lora=(str(tmp_path / "none.gguf"),)))
    other = adapter(tmp_path / "other.gguf", width=64)
    message = load_failure(EngineOptions(lora=(str(other),)))
    assert "other.gguf" in message
    assert "Remove it from lora" in message


def test_a_template_file_replaces_the_models_own(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{% for message in messages %}<{{ message.content }}>{% endfor %}")
    backend = opened(EngineOptions(chat_template=str(path)))
    try:
        ids = backend.prompt([{"role": "user", "content": "Hello"}], (), None)
        assert backend.detokenize(ids) == "<Hello>"
    finally:
        backend.shut()
    assert "cannot be read" in load_failure(EngineOptions(chat_template=str(tmp_path / "none")))
    path.write_text("{% for %}")
    assert "does not compile" in load_failure(EngineOptions(chat_template=str(path)))


def test_a_base_model_has_no_format_and_says_so() -> None:
    engine = LlamaEngine(gemma(), 256, 1, 1)
    try:
        engine.load(lambda _: None)
        assert engine.format is None
        with pytest.raises(PromptError, match="base model"):
            engine.prompt([{"role": "user", "content": "Hello"}])
        assert engine.tokenize("Hello")[0] == 2
        assert engine.detokenize(engine.tokenize("Hello, wörld")) == "<bos>Hello, wörld"
    finally:
        engine.close()


def test_more_shares_than_gpus_can_be_are_refused() -> None:
    assert "tensor_split" in load_failure(EngineOptions(tensor_split=(1.0,) * 1000))


def test_weights_can_be_locked_in_memory() -> None:
    backend = opened(EngineOptions(mlock=True))
    backend.shut()


# Memory


def test_what_is_foreseen_is_what_is_measured() -> None:
    """For both kinds of memory; else a slice would be refused, or burst, for nothing."""
    for path in (bundled_model(), gemma()):
        backend = opened(EngineOptions(), path)
        try:
            needs: dict[str, int] = {}
            hollow_need = backend._need
            model = backend._model
            needs = dict(hollow_need(type(model).hollow(backend._lib, path, backend._options, backend._log)))
        finally:
            backend.shut()
        assert needs["2 x 256 tokens of context"] == backend.memory.kv
        assert needs["weights"] == pytest.approx(backend.memory.weights, rel=0.1)
        # The output buffer grows by a row or two in the warm-up; nothing else may differ.
        assert needs["the buffers of a step"] == pytest.approx(backend.memory.compute, rel=0.1)


def test_the_sum_is_spelled_out_when_it_does_not_fit() -> None:
    message = load_failure(EngineOptions(), memory_bytes=64 * 2**20)
    for part in (
        "92 MiB for weights",
        "1 x 256 tokens",
        "buffers of a step",
        "embeddings",
        "the host itself",
    ):
        assert part in message
    assert "64 MiB are free" in message
    assert "needs.memory: " in message


def test_loading_what_does_not_fit_takes_no_memory() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    load_failure(EngineOptions(), memory_bytes=64 * 2**20, path=gemma())
    assert process.memory_info().rss - before < 200 * 2**20


# Embeddings


def embedded(backend: LlamaBackend, tokens: Sequence[int], room: int = 512) -> bytes:
    """A text's vector, of a backend without a loop."""
    *parts, vector = backend.embed(tokens, lambda: room)
    assert set(parts) <= {None}
    assert vector is not None
    return vector


def embed(driver: Driver, *inputs: Sequence[int]) -> list[Any]:
    number = driver.number()
    driver.engine.embed(Embed(number, tuple(map(tuple, inputs))))
    events = driver.until(number, lambda event: isinstance(event, Ended))
    (found,) = [event for event in events if isinstance(event, Embedded)]
    return [np.frombuffer(vector, dtype="<f4") for vector in found.vectors]


def test_embeddings_have_length_one_and_tell_texts_apart(driver: Driver) -> None:
    texts = ["The ship left the harbour.", "A boat sailed out of the port.", "import numpy as np"]
    ship, boat, code = embed(driver, *map(driver.engine.tokenize, texts))
    assert len(ship) == driver.facts.embedding == 576
    assert all(abs(float(vector @ vector) - 1) < 1e-5 for vector in (ship, boat, code))
    assert ship @ boat > ship @ code


def test_a_long_text_embedded_in_parts_is_what_it_is_in_one() -> None:
    tokens = list(range(1000, 1150))
    whole, parts = opened(EngineOptions()), opened(EngineOptions())
    assert whole._embedder is not None
    assert parts._embedder is not None
    try:
        parts._embedder.rows = 32
        one, many = (np.frombuffer(embedded(b, tokens), "<f4") for b in (whole, parts))
        assert one @ many == pytest.approx(1, abs=1e-3)
    finally:
        whole.shut()
        parts.shut()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_takes_the_tokens_that_the_model_says(pooling: str) -> None:
    backend = opened(EngineOptions())
    embedder = backend._embedder
    assert embedder is not None
    try:
        embedder._pooling = pooling  # type: ignore[assignment]
        tokens = (1000, 1001, 1002)
        vector = np.frombuffer(embedded(backend, tokens), "<f4")
        rows = embedder._outputs(embedder._kept, 3).astype(np.float64)
        wanted = {"mean": rows.sum(axis=0), "cls": rows[0], "last": rows[-1]}[pooling]
        assert np.allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-5)
    finally:
        backend.shut()


def test_an_embedding_touches_no_sequence(driver: Driver, prompt: tuple[int, ...]) -> None:
    first, _ = driver.ask(prompt, 16)
    embed(driver, range(1000, 1020))
    second, end = driver.ask(prompt, 16)
    assert second == first
    assert end.usage.evaluated == 1


# Log probabilities


def told(driver: Driver, turn: int) -> list[Sampled]:
    events = driver.until(turn, lambda event: isinstance(event, Ended))
    return [one for event in events if isinstance(event, Text) for one in event.sampled]


def test_log_probabilities_are_told_with_the_likeliest_tokens(
    driver: Driver, prompt: tuple[int, ...]
) -> None:
    found = told(driver, driver.begin(prompt, 16, logprobs=3))
    assert b"".join(one.chosen.piece for one in found).startswith(b"The capital of France is Paris.")
    for one in found:
        assert one.top[0] == one.chosen
        assert len(one.top) == 3
        assert 0 >= one.top[0].logprob >= one.top[1].logprob >= one.top[2].logprob
    assert found[1].chosen.logprob > math.log(0.5)


def test_log_probabilities_are_the_models_own_whatever_is_forbidden(
    driver: Driver, prompt: tuple[int, ...]
) -> None:
    free = told(driver, driver.begin(prompt, 1, logprobs=1))[0]
    driver.engine.erase(0)
    ban = Sampling(temperature=0, logit_bias=((free.chosen.token, -100.0),))
    other = told(driver, driver.begin(prompt, 1, sampling=ban, logprobs=1))[0]
    assert other.chosen.token != free.chosen.token
    assert other.top[0].token == free.chosen.token
    driver.engine.erase(0)
    digits = driver.engine.constraint("start: /[0-9]{4}/")
    bound = told(driver, driver.begin(prompt, 1, logprobs=1, constraint=digits))[0]
    assert bound.chosen.piece.isdigit()
    assert bound.top[0].token == free.chosen.token


def test_log_probabilities_add_up_and_ties_go_to_the_smaller_token() -> None:
    scores = Scores(np.array([1.0, 3.0, 3.0, -2.0], dtype=np.float32))
    sampled = scores.sampled(0, 9, lambda token: bytes([token]))
    assert [likely.token for likely in sampled.top] == [1, 2, 0, 3]
    assert sum(math.exp(likely.logprob) for likely in sampled.top) == pytest.approx(1)
    assert scores.sampled(3, 0, lambda _: b"").top == ()


# Constraints

SCHEMA = {
    "x-guidance": {"whitespace_flexible": False},
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "inhabitants": {"type": "integer", "maximum": 99999999},
    },
    "required": ["city", "inhabitants"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, seed=3, top_k=0, top_p=1, min_p=0)])
def test_an_answer_matches_its_schema_and_ends_itself(
    driver: Driver, prompt: tuple[int, ...], sampling: Sampling
) -> None:
    constraint = driver.engine.constraint(f"start: %json {json.dumps(SCHEMA)}")
    text, end = driver.ask(prompt, 200, sampling=sampling, constraint=constraint)
    answer = json.loads(text)
    assert set(answer) == {"city", "inhabitants"}
    assert isinstance(answer["inhabitants"], int)
    assert end.reason == "stop"


def test_two_answers_follow_one_constraint_at_the_same_time(driver: Driver, prompt: tuple[int, ...]) -> None:
    constraint = driver.engine.constraint("start: /[a-z]{3}-[0-9]{6}/")
    sampling = Sampling(temperature=2.0, seed=1)
    driver.engine.erase(1)
    turns = [driver.begin(prompt, 40, sequence=n, sampling=sampling, constraint=constraint) for n in (0, 1)]
    for turn in turns:
        text, end = driver.answer(turn)
        assert (len(text), text[3], end.reason) == (10, "-", "stop")


def test_a_constraint_outlives_the_model_that_it_was_made_for(prompt: tuple[int, ...]) -> None:
    engine = LlamaEngine(bundled_model(), CONTEXT, 1, 1)
    Driver(engine)
    constraint = engine.constraint("start: /[0-9]{5}/")
    engine.close()
    again = Driver(engine)
    try:
        text, _ = again.ask(prompt, 20, constraint=constraint)
        assert text.isdigit()
        assert len(text) == 5
    finally:
        engine.close()


@pytest.mark.parametrize(
    "grammar", ["start: other", '{"grammars": 7', 'start: %json {"type": "nonsense"}', ""]
)
def test_a_grammar_that_is_none_is_a_prompt_error(driver: Driver, grammar: str) -> None:
    with pytest.raises(PromptError):
        driver.engine.constraint(grammar)


def test_a_constraint_that_fails_breaks_its_turn_alone(
    driver: Driver, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    constraint = driver.engine.constraint("start: /[0-9]{5}/")
    stuck = constraint.start.deep_copy()
    assert not stuck.consume_token(prompt[1])
    broken = Constraint(constraint.grammar, stuck, constraint.home)
    driver.engine.erase(1)
    well = driver.begin(prompt, 32, sequence=1)
    ill = driver.begin(prompt, 32, constraint=broken)
    events = driver.until(ill, lambda event: type(event).__name__ in {"Broke", "Ended"})
    assert type(events[-1]).__name__ == "Broke"
    assert driver.answer(well)[0] == "The capital of France is Paris."


# Sampling and pieces


def test_typical_sampling_narrows_what_is_chosen(driver: Driver, prompt: tuple[int, ...]) -> None:
    def texts(typical: float) -> set[str]:
        wild = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": typical}
        return {
            driver.ask(prompt, 6, sampling=Sampling(seed=seed, **wild))[0]  # type: ignore[arg-type]
            for seed in range(6)
        }

    assert len(texts(0.01)) < len(texts(1.0))


def test_next_to_no_temperature_is_none(driver: Driver, prompt: tuple[int, ...]) -> None:
    cold = [driver.ask(prompt, 8, sampling=Sampling(temperature=t, seed=1))[0] for t in (0, 1e-40, 1e-5)]
    assert len(set(cold)) == 1


def test_special_tokens_show_only_where_they_are_asked_for(driver: Driver) -> None:
    backend = driver.engine._llama
    begin, end = driver.engine.tokenize("<|im_start|>", special=True)[0], 2
    assert (backend.piece(begin), backend.piece(begin, True)) == (b"", b"<|im_start|>")
    assert (backend.piece(end), backend.piece(end, True)) == (None, None)
    assert driver.engine.detokenize((begin, end)) == "<|im_start|><|im_end|>"
    vocabulary = backend._vocabulary()
    assert vocabulary.specials["<|im_start|>"] == begin
    assert set(vocabulary.ends) == {0, 2, 4}


def test_a_token_that_there_is_not_cannot_be_detokenized(driver: Driver) -> None:
    with pytest.raises(PromptError, match="no token 49152") as caught:
        driver.engine.detokenize((1, 49_152))
    assert caught.value.param == "tokens"
    assert driver.engine.detokenize(()) == ""


def test_a_turn_of_a_token_that_there_is_not_breaks(driver: Driver) -> None:
    assert driver.engine._llama.unfit(Turn(0, 0, (49_152,), 1, GREEDY)) is not None

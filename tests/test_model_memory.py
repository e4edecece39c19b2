"""serving/model_memory.py: what a model will take, beside what llama.cpp says that it took."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cpu import cpu_flags
from serving.embed_room import rows_of
from serving.llama_backend import LlamaBackend
from serving.llama_context import Sizes
from serving.llama_engine import lib
from serving.llama_options import EngineOptions
from serving.model_head import read_shape
from serving.model_memory import (
    Plan,
    copies_bytes,
    embedding_bytes,
    interleaved_kinds,
    kv_bytes,
    largest_context,
    layers_that_fit,
    llama_memory,
    vllm_kv_bytes,
)
from serving.model_shape import ModelShape
from tests.random_gguf import Shape, write

MIB = 2**20
OWN_OUTPUT = Shape("own", 256, 4, 8, 4, 704, 8192, "Q8_0", output="Q6_K")
WINDOWS = Shape("windows", 256, 6, 4, 2, 512, 16384, "Q4_0", architecture="gemma3", head=64, window=256)
PLANS = (
    Plan(512),
    Plan(4096, 3),
    Plan(32768, 1, EngineOptions(kv_type="q8_0")),
    Plan(8192, 1, EngineOptions(flash_attention=False)),
)


@pytest.fixture(scope="module", params=[OWN_OUTPUT, WINDOWS], ids=lambda shape: shape.name)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shape") / "model.gguf", request.param)


@pytest.fixture(scope="module")
def bundled() -> ModelShape:
    return read_shape("bundled")


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_what_is_foreseen_is_what_llama_cpp_takes(file: Path, plan: Plan) -> None:
    shape = read_shape(str(file))
    sizes = Sizes(plan.context, plan.sessions, 1, plan.options.batch)
    backend = LlamaBackend(lib, file, sizes, plan.options, None)
    backend.open(lambda _: None)
    try:
        took = backend.memory
    finally:
        backend.shut()
    told = llama_memory(shape, plan, cpu_flags()).told
    assert told.weights == pytest.approx(took.weights, rel=0.01)
    assert told.kv == pytest.approx(took.kv, rel=0.001)
    assert told.compute == pytest.approx(took.compute, rel=0.1)
    assert told.total == pytest.approx(took.total, rel=0.02)


def test_kv_is_counted_by_layer_session_and_type(bundled: ModelShape) -> None:
    # 23,040 bytes a token at f16: 30 layers, 3 heads, 64 numbers each, twice, two bytes
    assert kv_bytes(bundled, Plan(8192)) == 8192 * 23040
    assert kv_bytes(bundled, Plan(8192, 3)) == 3 * 8192 * 23040
    assert kv_bytes(bundled, Plan(8192, 1, EngineOptions(kv_type="q8_0"))) == 8192 * 23040 * 17 // 32
    assert kv_bytes(bundled, Plan(100)) == 256 * 23040, "cells come in 256s"


def test_layers_with_a_window_keep_the_window(file: Path) -> None:
    shape = read_shape(str(file))
    if not shape.window:
        assert not any(shape.windowed)
        return
    assert shape.windowed == (True,) * 5 + (False,)
    each = 2 * 2 * 64 * 2
    assert kv_bytes(shape, Plan(8192)) == each * (8192 + 5 * 512)
    assert kv_bytes(shape, Plan(256)) == each * 6 * 256


def test_copies_are_made_of_kinds_that_this_cpu_interleaves(file: Path) -> None:
    shape = read_shape(str(file))
    assert copies_bytes(shape, ()) == 0
    made = copies_bytes(shape, {"avx2"})
    if shape.kind == "Q8_0":
        assert made == 0
    else:  # the embeddings are the output, and so copied too; norms are not
        assert made == shape.weight_bytes - sum(group.size for group in shape.groups if group.kind == "F32")
    assert llama_memory(shape, Plan(512), {"avx2"}).needed == llama_memory(shape, Plan(512)).needed


def test_what_is_interleaved_depends_on_the_cpu() -> None:
    assert interleaved_kinds(()) == frozenset()
    assert interleaved_kinds({"avx2"}) == {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    assert "Q2_K" in interleaved_kinds({"avx2", "avx512f"})
    assert "Q8_0" in interleaved_kinds({"asimddp"})


def test_a_step_has_a_token_for_each_session_at_least() -> None:
    assert Plan(512, 600).batch == 600
    assert Plan(128, 1).batch == 256
    assert Plan(1024, 1, EngineOptions(batch=32)).batch == 32


def test_embeddings_have_a_context_of_their_own(bundled: ModelShape) -> None:
    rows = rows_of(256, bundled.vocabulary)
    assert (
        embedding_bytes(bundled, Plan(8192)) > kv_bytes(bundled, Plan(2048)) + 8 * rows * bundled.vocabulary
    )
    assert embedding_bytes(bundled, Plan(512)) < embedding_bytes(bundled, Plan(8192))


def test_the_largest_context_is_the_largest_that_fits(bundled: ModelShape) -> None:
    plan = Plan(8192, 2)
    free = llama_memory(bundled, Plan(4096, 2)).needed
    assert largest_context(bundled, plan, free) == 4096
    assert largest_context(bundled, plan, free - 1) == 4096 - 256
    assert largest_context(bundled, plan, bundled.weight_bytes) == 0
    assert largest_context(bundled, plan, 2**40) == bundled.trained_context


def test_layers_go_to_a_gpu_as_long_as_there_is_room(bundled: ModelShape) -> None:
    plan = Plan(8192)
    assert layers_that_fit(bundled, plan, 2**40) == bundled.layers + 1
    assert layers_that_fit(bundled, plan, 0) == 0
    compute = llama_memory(bundled, plan).compute
    layer = bundled.layer_bytes[-1] + kv_bytes(bundled, plan) // bundled.layers
    assert layers_that_fit(bundled, plan, compute + bundled.outside_bytes + 3 * layer) == 4
    assert layers_that_fit(bundled, plan, compute + bundled.outside_bytes + 3 * layer - 1) == 3


def test_vllm_keeps_whole_blocks(bundled: ModelShape) -> None:
    assert vllm_kv_bytes(bundled, 32, 1) == 32 * 23040
    assert vllm_kv_bytes(bundled, 33, 2) == 2 * 64 * 23040
    windowed = replace(bundled, window=64, windowed=(True,) * bundled.layers)
    assert vllm_kv_bytes(windowed, 8192, 1) == 4 * 32 * 23040

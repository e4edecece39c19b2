"""That what the config's `options` say reaches llama.cpp: its own parameters are read, no model is loaded."""

import pytest

from serving import llama_model
from serving.llama_context import Sizes, context_params
from serving.llama_engine import lib
from serving.llama_options import EngineOptions

SIZES = Sizes(context=300, sequences=4, threads=2, batch=128)


def test_the_file_is_mapped_and_locked_only_where_that_is_asked_for() -> None:
    usual, _ = llama_model._params(lib, EngineOptions())
    locked, _ = llama_model._params(lib, EngineOptions(mlock=True))
    assert usual.load_mode == lib.LLAMA_LOAD_MODE_MMAP
    assert locked.load_mode == lib.LLAMA_LOAD_MODE_MMAP_MLOCK


def test_gpus_get_the_layers_and_shares_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lib, "llama_max_devices", lambda: 2)
    params, _alive = llama_model._params(lib, EngineOptions(gpu_layers=7, tensor_split=(3.0, 1.0)))
    assert (params.n_gpu_layers, params.tensor_split[:2]) == (7, [3.0, 1.0])
    usual, _ = llama_model._params(lib, EngineOptions())
    assert usual.n_gpu_layers == lib.llama_model_default_params().n_gpu_layers
    assert not usual.tensor_split
    assert usual.n_gpu_layers < 0, "all layers, where there is a GPU"


def test_the_main_gpu_has_the_model_whole() -> None:
    params, _ = llama_model._params(lib, EngineOptions(main_gpu=1))
    assert (params.main_gpu, params.split_mode) == (1, lib.LLAMA_SPLIT_MODE_NONE)
    usual, _ = llama_model._params(lib, EngineOptions())
    assert usual.split_mode == lib.LLAMA_SPLIT_MODE_LAYER


@pytest.mark.parametrize("slow", [{"flash_attention": False}, {"exact": True}])
def test_flash_attention_is_off_where_it_is_not_wanted(slow: dict[str, bool]) -> None:
    usual = context_params(lib, SIZES, EngineOptions())
    plain = context_params(lib, SIZES, EngineOptions.from_options(slow))
    assert usual.flash_attn_type != lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    assert plain.flash_attn_type == lib.LLAMA_FLASH_ATTN_TYPE_DISABLED


def test_keys_and_values_have_the_type_and_room_that_is_asked_for() -> None:
    params = context_params(lib, SIZES, EngineOptions(kv_type="q8_0"))
    assert params.type_k == params.type_v == lib.GGML_TYPE_Q8_0
    assert (params.n_seq_max, params.n_ctx, params.n_batch) == (4, 4 * 512, 128)

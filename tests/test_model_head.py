"""serving/model_head.py: heads from disk and over real HTTP, with no more than the head fetched."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.model_head import FIRST_BYTES, NoHead, read_shape
from serving.model_shape import ModelShape
from tests.gguf_parts import split
from tests.hub import Hub, add, be_told, hub
from tests.models import bundled_model
from tests.random_gguf import Shape, write

MIB = 1024**2
SMALL = Shape("small", 256, 2, 8, 4, 512, 8192, "Q8_0", output="F16")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "small.gguf", SMALL)


@pytest.fixture
def served(small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has it, and that huggingface_hub was told of."""
    with hub({"o/r/small.gguf": add(small)}) as made:
        be_told(monkeypatch, made)
        yield made


def of_files(served: Hub) -> list[str]:
    """What was asked of it, without what huggingface_hub asks for itself."""
    return [asked for asked in served.asked if "/resolve/" in asked]


def refused(source: str) -> str:
    with pytest.raises(NoHead) as refusal:
        read_shape(source)
    return str(refusal.value)


def test_a_head_says_what_the_model_is_made_of(small: Path) -> None:
    shape = read_shape(str(small))
    assert (shape.format, shape.architecture, shape.layers, shape.width) == ("gguf", "llama", 2, 256)
    assert (shape.heads, shape.kv_heads, shape.key_size, shape.value_size) == (8, (4, 4), 32, 32)
    assert (shape.forward, shape.vocabulary, shape.trained_context) == (512, 8192, 32768)
    matrices = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 512) + 2 * 8192 * 256
    assert shape.parameters == matrices + 5 * 256
    assert not shape.tied
    assert shape.outside_bytes == 2 * 8192 * 256
    assert (
        sum(shape.layer_bytes) + shape.outside_bytes + 8192 * 256 // 32 * 34 + 4 * 256 == shape.weight_bytes
    )
    assert shape.kind == "F16"
    assert shape.file_bytes == small.stat().st_size


def test_the_bundled_model_is_read_where_it_is_installed() -> None:
    shape = read_shape("bundled")
    assert (shape.layers, shape.kv_heads[0], shape.tied, shape.kind) == (30, 3, True, "Q4_1")
    assert shape.parameters == 134_515_008


def test_only_the_head_of_a_file_on_the_hub_is_fetched(served: Hub, small: Path) -> None:
    assert read_shape("hf:o/r:small.gguf") == read_shape(str(small))
    assert served.total <= FIRST_BYTES < small.stat().st_size
    assert of_files(served) == [f"GET /o/r/resolve/main/small.gguf bytes=0-{FIRST_BYTES - 1}"]


def test_a_long_head_is_fetched_piece_by_piece(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.model_head.FIRST_BYTES", 1000)
    shape = read_shape("hf:o/r:small.gguf")
    assert shape.layers == 2
    ranges = [asked.rpartition("=")[2] for asked in of_files(served)]
    assert ranges[:3] == ["0-999", "1000-1999", "2000-3999"]
    assert served.total < MIB // 2


def test_a_model_of_the_hub_with_a_commit_is_asked_for_there(served: Hub) -> None:
    assert "has no revision v2" in refused("hf:o/r@v2:small.gguf")
    assert "has no file other.gguf" in refused("hf:o/r:other.gguf")
    assert "has no repository" in refused("hf:o/none:small.gguf")


def test_a_token_is_sent_to_the_hub_only(served: Hub, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.files["o/r/small.gguf"].gated = True
    assert "is gated" in refused("hf:o/r:small.gguf")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert read_shape("hf:o/r:small.gguf").layers == 2
    assert "status 401" in refused(f"{served.url}/o/r/resolve/main/small.gguf")


def test_an_address_is_read_by_ranges_too(served: Hub, small: Path) -> None:
    assert read_shape(f"{served.url}/o/r/resolve/main/small.gguf") == read_shape(str(small))
    assert served.total <= FIRST_BYTES


def test_a_server_without_ranges_is_left_at_once(served: Hub) -> None:
    served.files["o/r/small.gguf"].ignores_ranges = True
    assert "gives files as a whole only. Fetch it, and give its path" in refused("hf:o/r:small.gguf")


def test_nobody_at_the_address_is_told(served: Hub) -> None:
    assert "cannot be reached" in refused("http://127.0.0.1:9/m.gguf")
    assert "names no GGUF file" in refused("https://example.com/m.zip")


def test_parts_are_one_model(small: Path, tmp_path: Path) -> None:
    first = split(small, tmp_path, "parts", 3)
    shape = read_shape(str(first))
    assert (shape.parts, shape.parameters) == (3, read_shape(str(small)).parameters)
    assert "is part 2 of 3. Name the first part" in refused(str(first).replace("00001", "00002", 1))
    first.with_name("parts-00003-of-00003.gguf").unlink()
    assert "parts-00003-of-00003.gguf is missing" in refused(str(first))


def test_what_is_no_model_is_refused_with_the_remedy(small: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("words " * 100)
    assert "is no GGUF file" in refused(str(tmp_path / "text.gguf")).replace("This is", "is")
    (tmp_path / "cut.gguf").write_bytes(small.read_bytes()[:5000])
    assert "cut.gguf is truncated" in refused(str(tmp_path / "cut.gguf"))
    (tmp_path / "short.gguf").write_bytes(small.read_bytes()[:-100])
    assert "fewer bytes than its head promises" in refused(str(tmp_path / "short.gguf"))
    (tmp_path / "old.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    assert "GGUF version 1" in refused(str(tmp_path / "old.gguf"))
    assert "does not exist. Give `bundled`" in refused(str(tmp_path / "none.gguf"))


# Folders of safetensors


def folder(
    root: Path, config: dict[str, object], tensors: dict[str, tuple[str, list[int]]], count: int
) -> Path:
    """A Hugging Face folder of `count` files, the weights of which are zeros."""
    root.mkdir()
    (root / "config.json").write_text(json.dumps(config))
    names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    placed = {tensor: names[at % count] for at, tensor in enumerate(tensors)}
    for name in names:
        header, at = {}, 0
        for tensor, (dtype, shape) in tensors.items():
            if placed[tensor] == name:
                size = 2 if dtype == "BF16" else 4
                for dimension in shape:
                    size *= dimension
                header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
                at += size
        raw = json.dumps(header).encode()
        (root / name).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(at))
    if count > 1:
        (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    else:
        (root / names[0]).rename(root / "model.safetensors")
    return root


CONFIG: dict[str, object] = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "rope_theta": 1000000.0,
}
TENSORS: dict[str, tuple[str, list[int]]] = {
    "model.embed_tokens.weight": ("BF16", [1000, 64]),
    **{f"model.layers.{n}.mlp.up_proj.weight": ("BF16", [128, 64]) for n in range(2)},
    **{f"model.layers.{n}.input_layernorm.weight": ("BF16", [64]) for n in range(2)},
}


@pytest.mark.parametrize("count", [1, 2])
def test_a_folder_of_safetensors_is_read_by_its_headers(tmp_path: Path, count: int) -> None:
    shape = read_shape(str(folder(tmp_path / "m", CONFIG, TENSORS, count)))
    assert (shape.format, shape.architecture, shape.layers, shape.parts) == ("safetensors", "qwen3", 2, count)
    assert (shape.kv_heads, shape.key_size, shape.trained_context) == ((2, 2), 32, 4096)
    assert shape.parameters == 1000 * 64 + 2 * (128 * 64 + 64)
    assert shape.weight_bytes == 2 * shape.parameters
    assert (shape.kind, shape.tied, shape.rope_base) == ("BF16", True, 1e6)


def test_a_folder_on_the_hub_is_read_by_ranges(tmp_path: Path, served: Hub) -> None:
    made = folder(tmp_path / "m", CONFIG, TENSORS, 2)
    for path in sorted(made.iterdir()):
        served.files[f"o/big/{path.name}"] = add(path)
    assert read_shape("hf:o/big") == read_shape(str(made))
    assert all(" bytes=" in asked for asked in of_files(served))


def test_layers_of_a_window_and_experts_are_told_by_the_config(tmp_path: Path) -> None:
    config = {
        **CONFIG,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    tensors = {**TENSORS, "model.layers.0.mlp.experts.3.up_proj.weight": ("BF16", [128, 64])}
    shape: ModelShape = read_shape(str(folder(tmp_path / "m", config, tensors, 1)))
    assert (shape.window, shape.windowed) == (512, (True, False))
    assert (shape.experts, shape.experts_used) == (8, 2)
    assert sum(group.weights for group in shape.groups if group.expert) == 128 * 64


def test_packed_weights_count_as_what_they_hold(tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    tensors = {**TENSORS, "model.layers.0.self_attn.q_proj.qweight": ("I32", [8, 64])}
    shape = read_shape(str(folder(tmp_path / "m", config, tensors, 1)))
    assert shape.parameters == 1000 * 64 + 2 * (128 * 64 + 64) + 8 * 64 * 8


def test_a_folder_that_lacks_something_says_what(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in refused(str(tmp_path / "empty"))
    made = folder(tmp_path / "m", {"hidden_size": 64}, TENSORS, 1)
    assert "does not say num_hidden_layers" in refused(str(made))
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "model.safetensors").write_bytes(b"nothing of the kind")
    assert "is no safetensors file" in refused(str(made))


def test_the_bundled_model_read_by_its_path_is_the_same() -> None:
    assert read_shape(str(bundled_model())) == read_shape("bundled")

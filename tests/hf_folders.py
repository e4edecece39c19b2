"""Small models' folders as Hugging Face has them: a real tokenizer, no weights that mean anything."""

import json
import os
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "vocab_size": 259,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
    "eos_token_id": 257,
    "bos_token_id": 256,
}


def make_folder(folder: Path, template: str | None = TEMPLATE, **config: Any) -> Path:
    """A byte-level vocabulary: each byte is a token, 256 to 258 are special."""
    folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_end|>", "<|im_start|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "model.safetensors").write_bytes(weights(1 << 20))
    return folder


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def make_repository(folder: Path) -> Path:
    """The same with weights in two files of 2 MiB, and beside it much that is none of the model's."""
    make_folder(folder)
    (folder / "model.safetensors").unlink()
    for at, name in enumerate(SHARDS):
        (folder / name).write_bytes(weights(2 << 20, bytes([at + 1])))
    placed = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(placed))
    for other in ("README.md", "modeling.py", "pytorch_model.bin", "m.gguf", "consolidated.safetensors"):
        (folder / other).write_bytes(os.urandom(1 << 20))
    (folder / "original").mkdir()
    (folder / "original" / "x.safetensors").write_bytes(bytes(1 << 20))
    return folder


def weights(size: int, fill: bytes = b"\0") -> bytes:
    """A safetensors file of so many bytes, with one tensor in it."""
    header = {"t": {"dtype": "U8", "shape": [size - 108], "data_offsets": [0, size - 108]}}
    head = json.dumps(header).encode().ljust(100)
    assert len(head) == 100
    return len(head).to_bytes(8, "little") + head + fill * (size - 108)

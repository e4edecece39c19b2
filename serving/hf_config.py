"""What a model's folder, as Hugging Face has it, says of its size: `config.json` and the files beside it. Pure.

Reads no file (see hf_model.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

NO_GENERATORS = (
    *("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    *("BertModel", "RobertaModel"),
)
"""How architectures end that make no text."""
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
NAME_MAX = 100
SIZE_MAX = 2**31
"""No model has as much of anything that its config.json counts."""


class NotServed(Exception):
    """No text generator that can be served. The message says why."""


@dataclass(frozen=True, slots=True)
class HfConfig:
    architecture: str
    context: int
    """Tokens that it was trained for."""
    vocabulary: int
    weight_bytes: int
    """In memory, in the type that is served."""
    kv_bytes_per_token: int
    """Keys and values in all layers; an upper bound for models that keep less in some."""
    ends: tuple[int, ...]
    """Tokens that end an answer, the usual one first."""
    begin: int | None


def read_config(
    config: Mapping[str, Any], generation: Mapping[str, Any], file_bytes: int, dtype: str = "auto"
) -> HfConfig:
    """`config`, `generation`: config.json and generation_config.json ({} where there is none). `file_bytes`: of all
    safetensors. `dtype`: in which it is served. Raises NotServed."""
    text = config.get("text_config") or config
    names = config.get("architectures") or ["unknown"]
    if not isinstance(text, Mapping):
        _no_decoder("text_config is no object")
    if not isinstance(names, list):
        _no_decoder("architectures is no list")
    architecture = str(names[0])
    if len(architecture) > NAME_MAX:
        _no_decoder("the name of its architecture is too long")
    if architecture.endswith(NO_GENERATORS):
        raise NotServed(f"it makes no text: its config.json says {architecture}")
    if text.get("num_attention_heads") == 0:
        raise NotServed("its config.json describes a model without attention")
    layers, heads = _size(text, "num_hidden_layers"), _size(text, "num_attention_heads")
    width, vocabulary = _size(text, "hidden_size"), _size(text, "vocab_size")
    context = _size(text, "max_position_embeddings")
    kv_heads = _size(text, "num_key_value_heads", heads)
    head = _size(text, "head_dim", width // heads)
    if not head:
        _no_decoder("hidden_size is less than num_attention_heads")
    kept = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16")
    # vLLM serves float32 weights in a half type unless it is told otherwise.
    served = ("bfloat16" if kept == "float32" else kept) if dtype == "auto" else dtype
    element = ELEMENT_BYTES.get(served, 2)
    ends = generation.get("eos_token_id", config.get("eos_token_id", text.get("eos_token_id")))
    found = ends if isinstance(ends, list) else [ends]
    begin = config.get("bos_token_id", text.get("bos_token_id"))
    return HfConfig(
        architecture=architecture,
        context=context,
        vocabulary=vocabulary,
        weight_bytes=file_bytes * element // ELEMENT_BYTES.get(kept, element),
        kv_bytes_per_token=layers * 2 * kv_heads * head * element,
        ends=tuple(int(end) for end in found if isinstance(end, int)),
        begin=begin if isinstance(begin, int) else None,
    )


def _size(text: Mapping[str, Any], name: str, otherwise: int | None = None) -> int:
    """A whole number from 1 on. `otherwise`: what it is where nothing is said."""
    told = text.get(name)
    if otherwise is not None and not told:
        return otherwise
    if told is None:
        _no_decoder(f"{name} is missing")
    if isinstance(told, bool) or not isinstance(told, int | float):
        _no_decoder(f"{name} is not a number")
    if not 1 <= told <= SIZE_MAX or told != int(told):
        _no_decoder(f"{name} is not a whole number from 1 to {SIZE_MAX}")
    return int(told)


def _no_decoder(why: str) -> NoReturn:
    raise NotServed(f"its config.json does not describe a decoder-only text model ({why})")

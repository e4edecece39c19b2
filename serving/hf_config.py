"""What a model's folder, as Hugging Face has it, says of its size: `config.json` and the files beside it. Pure.

Reads no file (see hf_model.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_GENERATORS = (
    *("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    *("BertModel", "RobertaModel"),
)
"""How architectures end that make no text."""
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


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
    if str(names[0]).endswith(NO_GENERATORS):
        raise NotServed(f"it makes no text: its config.json says {names[0]}")
    try:
        layers, heads = int(text["num_hidden_layers"]), int(text["num_attention_heads"])
        width, vocabulary = int(text["hidden_size"]), int(text["vocab_size"])
        context = int(text["max_position_embeddings"])
        kv_heads = int(text.get("num_key_value_heads") or heads)
        head = int(text.get("head_dim") or width // heads)
    except ZeroDivisionError:
        raise NotServed("its config.json describes a model without attention") from None
    except (KeyError, TypeError, ValueError) as missing:
        raise NotServed(
            f"its config.json does not describe a decoder-only text model ({missing} is missing)"
        ) from None
    kept = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16")
    # vLLM serves float32 weights in a half type unless it is told otherwise.
    served = ("bfloat16" if kept == "float32" else kept) if dtype == "auto" else dtype
    element = ELEMENT_BYTES.get(served, 2)
    ends = generation.get("eos_token_id", config.get("eos_token_id", text.get("eos_token_id")))
    found = ends if isinstance(ends, list) else [ends]
    return HfConfig(
        architecture=str(names[0]),
        context=context,
        vocabulary=vocabulary,
        weight_bytes=file_bytes * element // ELEMENT_BYTES.get(kept, element),
        kv_bytes_per_token=layers * 2 * kv_heads * head * element,
        ends=tuple(int(end) for end in found if isinstance(end, int)),
        begin=config.get("bos_token_id", text.get("bos_token_id")),
    )

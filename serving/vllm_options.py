"""What the config's `options` ask of the vLLM engine itself. Pure.

How tokens are chosen where a request does not say stands in the same `options`, and is the chat surface's matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from cluster.machine import GIB
from serving.llama_options import SharePrefix

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
BASE_BYTES = 2 * GIB
"""What its processes take beside weights and KV cache on a CPU (measured with vLLM 0.32: 1.6 to 1.9 GiB)."""
GPU_USED = 0.92
"""The part of a GPU's memory that vLLM takes where nobody tells it: the rest is the driver's and CUDA's."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How vLLM is started."""

    python: str | None = None
    """Of an environment that has vLLM; None: the one that `homeport setup-vllm` made."""
    dtype: Dtype = "auto"
    batch: int | None = None
    """Tokens that one step takes at most; None: what vLLM takes."""
    block_size: int = 32
    """Tokens of a KV block: context is used again in whole blocks. 128 is vLLM's own choice on CPUs."""
    compile: bool = False
    """Whether the model is compiled before it serves: a minute or more at every start, for faster steps on GPUs."""
    kv_memory: int | None = None
    """Bytes of the KV cache; None: what all sessions need, as far as the slice has it."""
    share_prefix: SharePrefix = "key"
    """Whether sessions of one key may share a common prefix."""
    chat_template: str | None = None
    """Path of a Jinja file that replaces the model's own template."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """From `ModelSpec.options`; keys that are not the engine's are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in options.items() if key in known})

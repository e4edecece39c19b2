"""What the config's `options` ask of the llama.cpp engine itself. Pure.

How tokens are chosen where a request does not say (temperature and its like) stands in the same `options`, and is
the chat surface's matter. Values come checked (see `config`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

KvType = Literal["f16", "q8_0", "q4_0"]
SharePrefix = Literal["key", "off"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the model is loaded and how its steps are made."""

    batch: int = 256
    """Tokens that one decode takes at most; a cancel during a prompt loses at most these."""
    prompt_chunk: int | None = None
    """Prompt tokens in a step that a neighbour's next token waits for; None: measured while loading."""
    flash_attention: bool = True
    kv_type: KvType = "f16"
    """How keys and values are kept. All but f16 need flash attention."""
    mlock: bool = False
    """Keep the weights in memory, whatever else wants it."""
    gpu_layers: int | None = None
    """Layers on the GPUs; None: all that fit."""
    tensor_split: tuple[float, ...] = ()
    """Shares of the GPUs, in their order; empty: by their free memory."""
    main_gpu: int | None = None
    """The one of its GPUs, from 0, that has the model whole; None: it is split over all of them."""
    lora: tuple[str, ...] = ()
    """Paths of adapters, each applied in full."""
    exact: bool = False
    """A greedy text does not depend on what other sequences do. Costs the speed of batches, and flash attention, whose
    rounding depends on how many tokens a step has."""
    share_prefix: SharePrefix = "key"
    """Whether sessions of one key may share a common prefix."""
    chat_template: str | None = None
    """Path of a Jinja file that replaces the model's own template."""

    @property
    def flash(self) -> bool:
        """Whether attention is computed in the fast way."""
        return self.flash_attention and not self.exact

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """From `ModelSpec.options`; keys that are not the engine's are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in options.items() if key in known})

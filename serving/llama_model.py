"""One GGUF model in llama.cpp's memory: how it is loaded, refused and described.

The bindings come as an argument, because llama_engine.py alone imports them. No context is made here but those that
take no memory and tell what a real one would.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.engine import LoadError, MemoryUse
from serving.gguf import GgufError, Head, read_head
from serving.llama_context import Abort
from serving.llama_log import LlamaLog, errors
from serving.llama_memory import foreseen
from serving.llama_options import EngineOptions

logger = logging.getLogger(__name__)

ELEMENT_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Of one number in the KV, by its type."""


class LlamaModel:
    """A loaded model with its adapters. `free` it last."""

    def __init__(self, lib: Any, path: Path, pointer: Any) -> None:
        self._lib = lib
        self.path = path
        self.pointer = pointer
        self.vocab: Any = lib.llama_model_get_vocab(pointer)
        self._adapters: list[Any] = []

    @classmethod
    def load(
        cls,
        lib: Any,
        path: Path,
        options: EngineOptions,
        log: LlamaLog,
        abort: Abort,
        progress: Callable[[float], None],
    ) -> "LlamaModel":
        """`progress` gets 0.0 to 1.0. Raises LoadError, also when `abort` is set meanwhile."""

        @lib.llama_progress_callback  # type: ignore[untyped-decorator]
        def report(share: float, _: object) -> bool:
            try:
                progress(share)
            except Exception:
                logger.exception("the receiver of the loading progress failed")
            return not abort

        params, _shares = _params(lib, options)
        params.progress_callback = report
        with log.collecting() as lines:
            pointer = lib.llama_model_load_from_file(str(path).encode(), params)
        if not pointer:
            raise LoadError(_why_not(path, errors(lines), bool(abort)))
        model = cls(lib, path, pointer)
        try:
            model._adapt(options.lora, log)
        except LoadError:
            model.free()
            raise
        return model

    @classmethod
    def hollow(cls, lib: Any, path: Path, options: EngineOptions, log: LlamaLog) -> "LlamaModel":
        """Everything about the model but its weights, for whose memory nothing is taken. Raises LoadError."""
        params, _shares = _params(lib, options)
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        params.no_alloc = True
        with log.collecting(quiet=True) as lines:
            pointer = lib.llama_model_load_from_file(str(path).encode(), params)
        if not pointer:
            raise LoadError(_why_not(path, errors(lines), False))
        return cls(lib, path, pointer)

    def free(self) -> None:
        """The adapters go with it."""
        self._lib.llama_model_free(self.pointer)

    def context(self, params: Any, log: LlamaLog) -> tuple[Any, str]:
        """A context with the adapters applied, and "". Or None, and llama.cpp's words."""
        with log.collecting() as lines:
            context = self._lib.llama_init_from_model(self.pointer, params)
        if not context:
            return None, errors(lines) or "it gave no reason"
        if self._adapters:
            count = len(self._adapters)
            adapters = (self._lib.llama_adapter_lora_p_ctypes * count)(*self._adapters)
            scales = (ctypes.c_float * count)(*([1.0] * count))
            if self._lib.llama_set_adapters_lora(context, adapters, count, scales):
                self._lib.llama_free(context)
                return None, "an adapter cannot be applied"
        return context, ""

    def foresee(self, params: Any, log: LlamaLog) -> MemoryUse | None:
        """Of a hollow model: what a context takes. None: llama.cpp does not say."""
        with log.collecting(quiet=True) as lines:
            context = self._lib.llama_init_from_model(self.pointer, params)
        if not context:
            return None
        self._lib.llama_free(context)
        return replace(foreseen(line for _, line in lines), weights=0)

    def _adapt(self, paths: Sequence[str], log: LlamaLog) -> None:
        for path in paths:
            with log.collecting() as lines:
                adapter = self._lib.llama_adapter_lora_init(self.pointer, path.encode())
            if not adapter:
                why = errors(lines) or "it gave no reason"
                raise LoadError(
                    f"llama.cpp cannot apply {path} to {self.path.name}: {why}. Remove it from lora."
                )
            self._adapters.append(adapter)

    # What is known of it

    def check(self) -> None:
        """Refuse what cannot be served. Raises LoadError."""
        lib, pointer = self._lib, self.pointer
        generates = lib.llama_model_has_decoder(pointer) and not lib.llama_model_has_encoder(pointer)
        causal = self.meta(f"{self.architecture}.attention.causal") != "false"
        if not generates or not causal or lib.llama_model_is_diffusion(pointer):
            raise LoadError(
                f"{self.path.name} is no text generator: homeport serves decoder-only models. Choose another."
            )

    @property
    def architecture(self) -> str:
        return self.meta("general.architecture")

    def meta(self, key: str) -> str:
        """A value of the file's metadata as text; "" if it has none."""
        value = ctypes.create_string_buffer(256)
        self._lib.llama_model_meta_val_str(self.pointer, key.encode(), value, len(value))
        return value.value.decode(errors="replace")

    @property
    def description(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._lib.llama_model_desc(self.pointer, text, len(text))
        return text.value.decode(errors="replace")

    @property
    def weight_bytes(self) -> int:
        return int(self._lib.llama_model_size(self.pointer))

    @property
    def trained_context(self) -> int:
        return int(self._lib.llama_model_n_ctx_train(self.pointer))

    @property
    def window(self) -> int:
        """Tokens of a sliding window; 0 without."""
        return int(self._lib.llama_model_n_swa(self.pointer))

    @property
    def recurrent(self) -> bool:
        """Whether some of its memory is a state that only goes on."""
        return bool(
            self._lib.llama_model_is_recurrent(self.pointer) or self._lib.llama_model_is_hybrid(self.pointer)
        )

    @property
    def width(self) -> int:
        """Numbers in what it gives out for a token."""
        return int(self._lib.llama_model_n_embd_out(self.pointer))

    @property
    def pooling(self) -> str:
        """The number of enum llama_pooling_type, as text; "" where the file does not say."""
        return self.meta(f"{self.architecture}.pooling_type")

    @property
    def template(self) -> str | None:
        template = self._lib.llama_model_chat_template(self.pointer, None)
        return template.decode(errors="replace") if template else None

    def kv_bytes_per_token(self, kv_type: str) -> int:
        """Keys and values in every layer; an upper bound for models that keep less in some layers."""
        lib, pointer = self._lib, self.pointer
        heads = lib.llama_model_n_head_kv(pointer)
        usual = lib.llama_model_n_embd(pointer) // max(1, lib.llama_model_n_head(pointer))
        key = int(self.meta(f"{self.architecture}.attention.key_length") or usual)
        value = int(self.meta(f"{self.architecture}.attention.value_length") or usual)
        layers = lib.llama_model_n_layer(pointer)
        return int(layers * heads * (key + value) * ELEMENT_BYTES[kv_type])

    def host_share(self, gpu_layers: int | None) -> float:
        """The part of the model that is not on a GPU."""
        if not self._lib.llama_supports_gpu_offload():
            return 1.0
        layers = int(self._lib.llama_model_n_layer(self.pointer)) + 1
        return 0.0 if gpu_layers is None else max(0, layers - gpu_layers) / layers


def check_file(path: Path) -> Head:
    """What a GGUF file's head says. Raises LoadError for one that is missing, unreadable, no GGUF or cut off."""
    try:
        return read_head(path)
    except GgufError as error:
        raise LoadError(str(error)) from error


def check_options(options: EngineOptions) -> None:
    """Refuse what cannot be together. Raises LoadError."""
    if options.kv_type != "f16" and not options.flash:
        cause = "exact: true" if options.exact else "flash_attention: false"
        raise LoadError(
            f"kv_type {options.kv_type} needs flash attention. Remove {cause}, or use kv_type: f16."
        )


def _params(lib: Any, options: EngineOptions) -> tuple[Any, Any]:
    """The model's parameters, and an array that must live as long as they are used."""
    params = lib.llama_model_default_params()
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP_MLOCK if options.mlock else lib.LLAMA_LOAD_MODE_MMAP
    if options.gpu_layers is not None:
        params.n_gpu_layers = options.gpu_layers
    if options.main_gpu is not None:
        params.main_gpu, params.split_mode = options.main_gpu, lib.LLAMA_SPLIT_MODE_NONE
    shares = None
    if options.tensor_split:
        devices = lib.llama_max_devices()
        if len(options.tensor_split) > devices:
            raise LoadError(
                f"tensor_split names {len(options.tensor_split)} GPUs, llama.cpp takes {devices}. Shorten it."
            )
        shares = (ctypes.c_float * devices)(*options.tensor_split)
        params.tensor_split = shares
    return params, shares


def _why_not(path: Path, said: str, aborted: bool) -> str:
    said = said or "it gave no reason"
    if aborted:
        return f"loading {path.name} was given up: the engine was closed"
    if "unknown model architecture" in said:
        return f"{path.name} is of a kind that this llama.cpp does not know yet. Use another model. ({said})"
    return f"llama.cpp cannot load {path}: {said}. Try another file of this model."

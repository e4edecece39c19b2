"""The llama.cpp engine, on the low-level bindings of llama-cpp-python.

The only file that imports llama_cpp: all others get the bindings as an argument. Turns and their order are the
loop's matter (decode_loop.py), every call into llama.cpp is llama_backend.py's and its parts'.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as _bindings

from serving.batching import Budget
from serving.chat_format import ChatFormat
from serving.constraint import Constraint
from serving.decode_loop import DecodeLoop
from serving.engine import ModelFacts
from serving.llama_backend import LlamaBackend
from serving.llama_context import Sizes
from serving.llama_options import EngineOptions
from serving.loop_engine import LoopEngine
from serving.prefixes import spelled_as

# Ctypes bindings: their annotations do not say what they take.
lib: Any = _bindings

BUILD = f"llama-cpp-python {llama_cpp.__version__}"

USUAL = EngineOptions()


class LlamaEngine(LoopEngine):
    """One GGUF model with one context, as `Engine` says.

    `memory_bytes`: of the slice; a model that needs more is refused (None: more than the machine has free).
    """

    def __init__(
        self,
        path: Path,
        context: int,
        sequences: int,
        threads: int,
        *,
        options: EngineOptions = USUAL,
        memory_bytes: int | None = None,
    ) -> None:
        if min(context, sequences, threads, options.batch) < 1:
            raise ValueError("context, sequences, threads and batch must be at least 1")
        batch = max(options.batch, sequences)
        self._exact = options.exact
        self._llama = LlamaBackend(
            lib, path, Sizes(context, sequences, threads, batch), options, memory_bytes
        )
        super().__init__(
            DecodeLoop(
                self._llama,
                context,
                sequences,
                Budget(batch, max(1, batch // 4)),
                share=options.share_prefix == "key",
                exact=options.exact,
                prompt_chunk=options.prompt_chunk,
            )
        )

    @property
    def format(self) -> ChatFormat | None:
        return self._llama.format

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        begun = time.monotonic()
        self._loop.load(progress)
        self._facts = self._llama.facts(time.monotonic() - begun, self._loop.chunk, BUILD)
        return self._facts

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        return self._llama.prompt(messages, tools, variables)

    def tokenize(self, text: str, special: bool = False) -> tuple[int, ...]:
        return self._llama.tokenize(text, special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._llama.detokenize(tokens)

    def spelled_as(self, held: Sequence[int], prompt: Sequence[int]) -> tuple[int, ...]:
        if self._exact:  # What is said does not depend on whether a context was still there.
            return tuple(prompt)
        return spelled_as(held, prompt, self._llama.piece, self._llama.spell)

    def constraint(self, grammar: str) -> Constraint:
        return self._llama.constraint(grammar)

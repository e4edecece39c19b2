"""The scripted engine, for tests: it makes the tokens that a script says, and all around it is as with a model.

Turns, prefixes, saved states, cancels and tool calls go through the same code as llama.cpp's (decode_loop.py,
chat_format.py). No model library is imported.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from serving.batching import Budget
from serving.chat_format import ChatFormat
from serving.decode_loop import DecodeLoop
from serving.engine import MemoryUse, ModelFacts, PromptError, PromptTooLong
from serving.loop_engine import LoopEngine
from serving.script_backend import ScriptBackend
from serving.script_vocab import END, LONGEST, SIZE, SPECIALS, TEMPLATE, text_of, tokens_of

BATCH = 512
CHUNK = 64
"""Prompt tokens in a step beside a turn that makes its own."""
TOKEN_BYTES = 4
BUILD = "script 1"
"""Of saved states: it changes with what a token is."""


class ScriptEngine(LoopEngine):
    """One script, as `Engine` says. Makes no embeddings. Sampling, constraints and logit biases are checked, and change
    nothing."""

    def __init__(self, path: Path, context: int, sequences: int) -> None:
        batch = max(BATCH, sequences)
        self._path = path
        self._context = context
        self._sequences = sequences
        self._backend = ScriptBackend(path, sequences)
        self._format = ChatFormat(TEMPLATE, "", END, datetime.now, dict(zip(SPECIALS, range(2), strict=True)))
        super().__init__(
            DecodeLoop(
                self._backend, context, sequences, Budget(batch, CHUNK), share=True, prompt_chunk=CHUNK
            )
        )

    @property
    def format(self) -> ChatFormat:
        return self._format

    def load(self, progress: Callable[[float], None]) -> ModelFacts:
        begun = time.monotonic()
        self._loop.load(progress)
        rules = len(self._backend.script.rules)
        self._facts = ModelFacts(
            context=self._context,
            sequences=self._sequences,
            description=f"no model: the script {self._path.name}, {rules} rules",
            kv_bytes_per_token=TOKEN_BYTES,
            load_s=time.monotonic() - begun,
            template=True,
            vocabulary=SIZE,
            layout=BUILD,
            prompt_chunk=self._loop.chunk,
            memory=MemoryUse(0, TOKEN_BYTES * self._context * self._sequences, 0),
        )
        return self._facts

    def cancel(self, turn: int) -> None:
        """A step may be one long wait: it is cut short, whatever it waits for, and goes on where others need it."""
        super().cancel(turn)
        self._backend.abort()

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        return self._tokens(self._format.render(messages, tools, variables), special=True)

    def tokenize(self, text: str, special: bool = False) -> tuple[int, ...]:
        return self._tokens(text, special)

    def _tokens(self, text: str, special: bool) -> tuple[int, ...]:
        at_least = -(-len(text) // LONGEST)
        if at_least >= self._context:
            raise PromptTooLong(at_least)
        return tokens_of(text, special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        for token in tokens:
            if not 0 <= token < SIZE:
                raise PromptError(f"there is no token {token}; this model has {SIZE}", "tokens")
        return text_of(tokens)

    def constraint(self, grammar: str) -> str:
        from serving.constraint import checked

        return checked(grammar)

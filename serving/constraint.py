"""Answers that must match a grammar: llguidance on the logits, in place.

Knows no engine: it gets a way to make the tokenizer, and logits as an array. What a grammar says is tool_grammar.py's
matter.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.engine import PromptError
from serving.llama_vocab import Vocabulary

WORDS = 400
"""The most characters of the library's own words about a constraint."""

_WHERE = re.compile(r"^(at \d+\(\d+\): )")
_LISTING = re.compile(r"\n\s*(\d+ \||<non-verbose/>).*", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """A compiled grammar. May outlive the model it was compiled for."""

    grammar: str
    start: Any
    """The matcher before the first token; never moved, only copied."""
    home: "Grammars"


class Grammars:
    """Compiles grammars for one loaded model. Any thread; the first compilation makes the tokenizer, a second or so."""

    def __init__(self, tokenizer: Callable[[], Any], size: int, end: int | None) -> None:
        """`size`: of the vocabulary. `end`: the token that ends an answer; a model without one takes no grammar."""
        self._make_tokenizer = tokenizer
        self._size = size
        self._end = end
        self._tokenizer: Any = None
        self._making = threading.Lock()

    def compile(self, grammar: str) -> Constraint:
        """Raises PromptError with the library's words."""
        from llguidance import LLMatcher, LLParserLimits

        if self._end is None:
            raise PromptError("this model has no token that ends an answer: none can be constrained")
        with self._making:
            if self._tokenizer is None:
                self._tokenizer = self._make_tokenizer()
        limits = LLParserLimits(verbose_errors=False)
        start = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if not start.is_error():
            # What it takes to begin is done once, here, and not by each answer beside its neighbours.
            Followed(start, self._size, self._end).look()
        if start.is_error():
            raise PromptError(f"this constraint cannot be used: {_words(start)}")
        return Constraint(grammar, start, self)

    def follow(self, constraint: Constraint) -> "Followed":
        """Begin an answer. One that another model compiled is compiled anew. Raises PromptError."""
        if constraint.home is not self:
            constraint = self.compile(constraint.grammar)
        assert self._end is not None  # `compile` refuses otherwise
        return Followed(constraint.start.deep_copy(), self._size, self._end)


class Followed:
    """One answer that follows a constraint."""

    __slots__ = ("_address", "_bits", "_end", "_matcher", "_size")

    def __init__(self, matcher: Any, size: int, end: int) -> None:
        self._matcher = matcher
        self._size = size
        self._end = end
        self._bits = np.zeros(-(-size // 32), dtype=np.int32)
        self._address = self._bits.ctypes.data

    def mask(self, logits: NDArray[np.float32]) -> int | None:
        """Rule out what does not match, in place. Returns the token that ends the answer where nothing else can come:
        the grammar is complete. Raises PromptError when the library gives up on it."""
        self.look()
        if self._matcher.is_stopped():
            if self._matcher.is_error():
                raise PromptError(f"this constraint is too hard to follow: {_words(self._matcher)}")
            return self._end
        allowed = np.unpackbits(self._bits.view(np.uint8), count=self._size, bitorder="little")
        np.copyto(logits, -np.inf, where=allowed == 0)
        return None

    def look(self) -> None:
        """Find out what may come next."""
        if not self._matcher.is_stopped():
            self._matcher.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)

    def accept(self, token: int) -> None:
        """`token` was chosen among what `mask` left."""
        self._matcher.consume_token(token)


def checked(grammar: str) -> str:
    """The grammar, if the library takes it, whatever the model's tokens are. Raises PromptError with its words."""
    from llguidance import LLMatcher

    if told := LLMatcher.validate_grammar(grammar, None):
        raise PromptError(f"this constraint cannot be used: {_shortened(told)}")
    return grammar


def _words(matcher: Any) -> str:
    """What is wrong, in the library's words, without the grammar that it repeats: clients have not written that."""
    if str(matcher.get_error()).startswith("NoExtensionBias"):
        return "no text can match it"
    return _shortened(str(matcher.get_error()))


def _shortened(told: str) -> str:
    words = _LISTING.sub("", _WHERE.sub("", told))
    return words if len(words) <= WORDS else words[:WORDS] + "…"


def tokenizer_of(vocab: Vocabulary) -> Any:
    """llguidance's tokenizer of the same vocabulary, which it reads as long as it lives."""
    from llguidance import LLTokenizer

    special = set(vocab.specials.values())
    mark = b"\xff"  # in front of a special token's name: no text has this byte
    tokens = [mark * (token in special) + text for token, text in enumerate(vocab.all_spelled())]
    make: Any = LLTokenizer.from_llamacpp  # type: ignore[attr-defined]
    return make(
        tokens=tokens,
        vocab_ptr=vocab.address,
        tokenize_fptr=vocab.tokenize_address,
        eos_token=list(vocab.ends),
        slices=None,
    )

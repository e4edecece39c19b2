"""Text to tokens and back, by a loaded model's vocabulary.

The bindings come as an argument, because llama_engine.py alone imports them. Nothing here touches a context, so
any thread may ask.
"""

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from serving.engine import PromptError, PromptTooLong
from serving.readers import Readers


class Vocabulary:
    """Lives as long as its model is loaded. After `close` everything but `piece` of a known token raises
    RuntimeError: to use a freed vocabulary is a crash."""

    def __init__(self, lib: Any, vocab: Any) -> None:
        self._lib = lib
        self._vocab = vocab
        self._readers = Readers("the engine")
        self._pieces: dict[int, bytes | None] = {}
        self._special_pieces: dict[int, bytes | None] = {}
        self.size: int = lib.llama_vocab_n_tokens(vocab)
        self.longest = self._measure()
        """Bytes of text that one token stands for at most, special tokens' names included."""
        odd = self._odd()
        self.ends = self._ends(odd)
        """The tokens that end an answer, the usual one first."""
        self.specials = self._specials(odd)
        """Special tokens' ids by their text: what llguidance takes for one, not what is plain text to it."""
        self.begin: int | None = next((t for t in (lib.llama_vocab_bos(vocab),) if t >= 0), None)

    def reading(self) -> AbstractContextManager[None]:
        """Whoever holds it may use the vocabulary's address."""
        return self._readers.reading()

    @property
    def address(self) -> Any:
        return self._vocab

    @property
    def tokenize_address(self) -> int:
        """Of llama.cpp's own tokenizer, as a C function."""
        function = ctypes.cast(self._lib._lib.llama_tokenize, ctypes.c_void_p)
        return function.value or 0

    def close(self) -> None:
        """Wait for all who are reading, and let nobody in any more."""
        self._readers.close()

    def tokenize(self, text: str, context: int, *, begin: bool, special: bool) -> tuple[int, ...]:
        """`begin`: the beginning-of-text token in front, where the model wants one. `special`: names of special
        tokens are read as such. Raises PromptTooLong for what cannot have fewer than `context` tokens."""
        data = text.encode(errors="replace")
        at_least = -(-len(data) // self.longest)
        if at_least >= context:
            raise PromptTooLong(at_least)
        size = len(data) + 8
        while True:
            tokens = (self._lib.llama_token * size)()
            with self.reading():
                count = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, size, begin, special)
            if count >= 0:
                return tuple(tokens[:count])
            size = -count

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Special tokens included. Raises PromptError for an id that is none."""
        if wrong := [token for token in tokens if not 0 <= token < self.size]:
            raise PromptError(f"there is no token {wrong[0]}; this model has {self.size}", "tokens")
        array = (self._lib.llama_token * len(tokens))(*tokens)
        size = 8 * len(tokens) + 8
        while True:
            text = ctypes.create_string_buffer(size)
            with self.reading():
                count = self._lib.llama_detokenize(self._vocab, array, len(tokens), text, size, False, True)
            if count >= 0:
                return text.raw[:count].decode(errors="replace")
            size = -count

    def piece(self, token: int, special: bool = False) -> bytes | None:
        """The token's bytes, those of special tokens only if asked for; None for a token that ends an answer."""
        pieces = self._special_pieces if special else self._pieces
        try:
            return pieces[token]
        except KeyError:
            with self.reading():
                found = None if token in self.ends else self._look_up(token, special)
            return pieces.setdefault(token, found)

    def spelled(self, token: int) -> bytes:
        """The bytes that the token stands for, a special one's name included."""
        with self.reading():
            return self._look_up(token, True)

    def all_spelled(self) -> list[bytes]:
        """Those of all tokens."""
        with self.reading():
            return [self._look_up(token, True) for token in range(self.size)]

    def name(self, token: int | None) -> str:
        """A special token as templates write it; "" for None."""
        if token is None or token < 0:
            return ""
        with self.reading():
            text: bytes = self._lib.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace")

    def _look_up(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            text = ctypes.create_string_buffer(size)
            length = self._lib.llama_token_to_piece(self._vocab, token, text, size, 0, special)
            if length >= 0:
                return text.raw[:length]
            size = -length

    def _measure(self) -> int:
        text = ctypes.create_string_buffer(512)
        vocab, size, to_piece = self._vocab, len(text), self._lib.llama_token_to_piece
        lengths: Iterator[int] = (to_piece(vocab, token, text, size, 0, True) for token in range(self.size))
        return max(1, *map(abs, lengths))

    def _odd(self) -> dict[int, int]:
        """The attributes of the tokens that are not plain text, by token."""
        attributes, vocab, plain = (
            self._lib.llama_vocab_get_attr,
            self._vocab,
            self._lib.LLAMA_TOKEN_ATTR_NORMAL,
        )
        found = ((token, attributes(vocab, token)) for token in range(self.size))
        return {token: attribute for token, attribute in found if attribute != plain}

    def _ends(self, odd: Iterable[int]) -> tuple[int, ...]:
        lib, vocab = self._lib, self._vocab
        usual = lib.llama_vocab_eos(vocab)
        named = [token for token in (usual, lib.llama_vocab_eot(vocab)) if token >= 0]
        found = {token for token in (*odd, *named) if lib.llama_vocab_is_eog(vocab, token)}
        return tuple(sorted(found, key=lambda token: (token != usual, token)))

    def _specials(self, odd: Mapping[int, int]) -> dict[str, int]:
        found = {}
        for token, attribute in odd.items():
            if attribute & self._lib.LLAMA_TOKEN_ATTR_CONTROL:
                found[self._look_up(token, True).decode(errors="replace")] = token
            elif attribute & self._lib.LLAMA_TOKEN_ATTR_USER_DEFINED:
                text = self._look_up(token, True).decode(errors="replace")
                if text.startswith("<") and text.endswith(">"):
                    found[text] = token
        return found

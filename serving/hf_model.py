"""One model's folder as Hugging Face has it: its tokenizer and its chat template.

The only file that imports tokenizers. Holds no weights: an engine elsewhere does.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from serving.chat_format import ChatFormat, TemplateBroken
from serving.engine import LoadError, PromptError, PromptTooLong
from serving.hf_config import HfConfig, NotServed, read_config
from serving.hf_folder import weight_bytes


class HfModel:
    """Everything but the weights. May be used from any thread."""

    def __init__(self, folder: Path, dtype: str = "auto", template: Path | None = None) -> None:
        """`dtype`: in which it will be served. `template`: a Jinja file in place of its own. Raises LoadError."""
        try:
            described = _json(folder / "config.json")
            self.config: HfConfig = read_config(
                described, _json(folder / "generation_config.json", {}), weight_bytes(folder), dtype
            )
            self._named = _tokenizer(folder)
            self._plain = _tokenizer(folder)
            settings = _json(folder / "tokenizer_config.json", {})
            decoder = _json(folder / "tokenizer.json").get("decoder")
        except NotServed as refused:
            raise LoadError(f"{folder.name}: {refused}. Choose another.") from None
        except Exception as error:  # the tokenizer's library raises plain ones
            raise LoadError(f"{folder} cannot be read as a model: {error}. Fetch it again.") from error
        self._plain.encode_special_tokens = True
        self._is_of_bytes = "ByteLevel" in json.dumps(decoder)
        self.specials = _specials(self._named)
        self._special = frozenset(self.specials.values())
        self.size = max(self.config.vocabulary, self._named.get_vocab_size())
        names = {token: text for text, token in self.specials.items()}
        begin = -1 if self.config.begin is None else self.config.begin
        self.begin = _text(settings.get("bos_token")) or names.get(begin, "")
        end = _text(settings.get("eos_token"))
        # What the tokenizer calls the end may be another token than the model's own.
        known = self._named.token_to_id(end) if end else None
        own = [token for token in (known,) if token is not None and token not in self.config.ends]
        self.ends = (*self.config.ends, *own)
        self._pieces: dict[int, bytes] = {}
        self.longest = max(1, *(len(text.encode()) for text in self._named.get_vocab()))
        self.format = self._format(folder, template, settings, end or names.get((*self.ends, -1)[0], ""))

    def tokenize(self, text: str, context: int, *, begin: bool, special: bool) -> tuple[int, ...]:
        """`begin`: with the beginning-of-text token where the model wants one. `special`: names of special tokens are
        read as such. Raises PromptTooLong for what cannot have fewer than `context` tokens."""
        at_least = -(-len(text.encode(errors="replace")) // self.longest)
        if at_least >= context:
            raise PromptTooLong(at_least)
        tokenizer = self._named if special else self._plain
        encoded = tokenizer.encode(text.encode(errors="replace").decode(), add_special_tokens=begin)
        return tuple(encoded.ids)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Special tokens included. Raises PromptError for an id that is none."""
        if wrong := [token for token in tokens if not 0 <= token < self.size]:
            raise PromptError(f"there is no token {wrong[0]}; this model has {self.size}", "tokens")
        return str(self._named.decode(list(tokens), skip_special_tokens=False))

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; those of a part of a character where its vocabulary is of bytes."""
        found = self._pieces.get(token)
        if found is None:
            written = self._named.id_to_token(token) or ""
            special = token in self._special
            found = self._pieces[token] = (
                written.encode() if special else _bytes_of(written, self._is_of_bytes)
            )
        return found

    def plain(self, token: int) -> bytes:
        """The same, of a special token none."""
        return b"" if token in self._special else self.piece(token)

    def _format(
        self, folder: Path, template: Path | None, settings: Mapping[str, Any], end: str
    ) -> ChatFormat | None:
        text = _template(folder, template, settings)
        if text is None:
            return None
        try:
            return ChatFormat(text, self.begin, end, datetime.now, self.specials)
        except TemplateBroken as error:
            where = template or folder
            raise LoadError(
                f"the chat template of {where}: {error}. Name another in options.chat_template."
            ) from error


def _json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        if missing is None:
            raise
        return missing
    return found if isinstance(found, dict) else {}


def _template(folder: Path, template: Path | None, settings: Mapping[str, Any]) -> str | None:
    if template is not None:
        return template.read_text()
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text()
    told = settings.get("chat_template")
    if isinstance(told, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in told if isinstance(each, dict)}
        told = named.get("tool_use") or named.get("default")
    return told if isinstance(told, str) and told else None


def _text(told: Any) -> str:
    if isinstance(told, Mapping):
        told = told.get("content")
    return told if isinstance(told, str) else ""


def _specials(tokenizer: Tokenizer) -> dict[str, int]:
    """Special tokens by their text, as llguidance takes them: control tokens, and others of the form `<…>`."""
    added = tokenizer.get_added_tokens_decoder()
    return {
        token.content: number
        for number, token in added.items()
        if token.special or (token.content.startswith("<") and token.content.endswith(">"))
    }


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies, as GPT-2 wrote them: printable ones for
    themselves, the others from U+0100 on (github.com/openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_letters()


def _bytes_of(written: str, is_of_bytes: bool) -> bytes:
    """A token's bytes: letters that stand for bytes, or SentencePiece's text with `▁` for a blank and `<0x0A>`."""
    if len(written) == 6 and written.startswith("<0x") and written.endswith(">"):
        return bytes([int(written[3:5], 16)])
    if is_of_bytes and all(letter in _BYTES for letter in written):
        return bytes(_BYTES[letter] for letter in written)
    return written.replace("▁", " ").encode()


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # What is too long is refused, and not cut.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

"""What somebody wants to run, in words: `32B at Q4, 16k context, 2 sessions, 20 tokens/s`. Pure.

Understands sizes, not names of models: `homeport fit` knows those. What a wish needs says serving/advice.py.
"""

import re
from dataclasses import dataclass, replace

BITS = {
    "Q2": 3.16, "Q3": 4.00, "Q4": 4.89, "Q5": 5.70, "Q6": 6.56, "Q8": 8.50, "F16": 16.0, "BF16": 16.0, "FP16": 16.0,
    "FP8": 8.0, "F32": 32.0, "IQ2": 2.59, "IQ3": 3.76, "IQ4": 4.46,
}  # fmt: skip
"""Bits a weight of a whole model: llama.cpp's tools/quantize/README.md, of Llama 3.1 8B as Q2_K, Q3_K_M, Q4_K_M,
Q5_K_M, Q6_K, Q8_0, IQ2_M, IQ3_M, IQ4_XS."""
UNDERSTOOD = (
    "a size (32B, 270M, 30B-A3B), a quantization (Q4, Q8_0, F16, 4 bits), a context (16k context), "
    "sessions (2 sessions), a speed of each (20 tokens/s), and one of prompts (500 tokens/s prefill)"
)
EXAMPLE = "32B at Q4, 16k context, 2 sessions, 20 tokens/s"
SCALE = {"": 1, "k": 1024, "m": 10**6, "b": 10**9, "t": 10**12}

_NUMBER = r"(\d+(?:\.\d+)?)"
_SIZE = re.compile(rf"{_NUMBER}\s?([mbt])(?:[- ]a{_NUMBER}([mb]))?(?: parameters)?")
_KIND = re.compile(r"((?:i?q|bf|fp|f)\d+)(?:_[a-z0-9_]+)?")
_BITS = re.compile(rf"{_NUMBER}[- ]bits?")
_CONTEXT = re.compile(rf"{_NUMBER}\s?(k?) ?(?:tokens )?(?:of )?context")
_CONTEXT_AFTER = re.compile(rf"context (?:of )?{_NUMBER}\s?(k?)(?: tokens)?")
_SESSIONS = re.compile(r"(\d+) (?:sessions?|chats?|users?)(?: at once)?")
_SPEED = re.compile(rf"{_NUMBER}\s?(?:tokens|tok|t)\s?(?:/\s?s|/\s?sec|per second)")
_PREFILL = re.compile(
    rf"(?:prefill|prompts?)(?: at)? {_SPEED.pattern}|{_SPEED.pattern}(?: of)? (?:prefill|prompts?)"
)


class WishError(ValueError):
    """The words are not understood. The message names those that are."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted. Numbers that were not said are the usual ones."""

    parameters: float
    active: float
    """Parameters that a token goes through: fewer than all in a mixture of experts."""
    bits: float = BITS["Q4"]
    context: int = 8192
    sessions: int = 1
    decode_per_s: float = 10.0
    """Tokens a second for each of the sessions, all at once."""
    prefill_per_s: float | None = None


def parse(text: str) -> Wish:
    """Raises WishError."""
    words = re.sub(r"\b(prefill|prompts?) at ", r"\1 ", text.lower())
    wish: Wish | None = None
    later: list[str] = []
    parts = [part.strip() for part in re.split(r",|;| and | with | at | in |\bat\b", words) if part.strip()]
    for part in parts:
        if (size := _SIZE.fullmatch(part)) is not None and wish is None:
            whole = float(size[1]) * SCALE[size[2]]
            active = float(size[3]) * SCALE[size[4]] if size[3] else whole
            if not 0 < active <= whole:
                raise WishError(f"{part!r}: more parameters are used than there are.")
            wish = Wish(whole, active)
        else:
            later.append(part)
    if wish is None:
        raise WishError(
            f"The wish names no size of a model. What is understood: {UNDERSTOOD}. For example: {EXAMPLE}"
        )
    for part in later:
        wish = _with(wish, part)
    if (
        min(wish.context, wish.sessions) < 1
        or min(wish.decode_per_s, wish.bits, wish.prefill_per_s or 1.0) <= 0
    ):
        raise WishError("Sizes, sessions and speeds are more than 0.")
    return wish


def _with(wish: Wish, part: str) -> Wish:
    if (found := _PREFILL.fullmatch(part)) is not None:
        return replace(wish, prefill_per_s=float(found[1] or found[2]))
    if (found := _SPEED.fullmatch(part)) is not None or (
        found := re.fullmatch(rf"{_SPEED.pattern} each", part)
    ) is not None:
        return replace(wish, decode_per_s=float(found[1]))
    if (found := _CONTEXT.fullmatch(part) or _CONTEXT_AFTER.fullmatch(part)) is not None:
        return replace(wish, context=round(float(found[1]) * SCALE[found[2]]))
    if (found := _SESSIONS.fullmatch(part)) is not None:
        return replace(wish, sessions=int(found[1]))
    if (found := _BITS.fullmatch(part)) is not None:
        return replace(wish, bits=float(found[1]))
    if (found := _KIND.fullmatch(part)) is not None and (bits := BITS.get(found[1].upper())) is not None:
        return replace(wish, bits=bits)
    raise WishError(f"{part!r} is not understood. What is: {UNDERSTOOD}. For example: {EXAMPLE}")

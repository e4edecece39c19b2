"""How fast turns are that have the engine to themselves, from when their events came. Pure.

Turns that shared steps with others are left out, so that what is told can be held against what was foretold.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from serving.engine import Usage

KEPT = 32
DECODED_LEAST = 8
"""Tokens after the first one without which a turn says nothing about decoding."""
EVALUATED_LEAST = 64
"""Tokens of a prompt without which its time says nothing about prefill."""


@dataclass(slots=True)
class Pace:
    """When a turn's events came, in seconds on one clock."""

    began_s: float | None = None
    first_s: float | None = None
    first_tokens: int = 0
    """Behind its first text."""
    last_s: float = 0.0
    alone: bool = True

    def text(self, now: float, seen: int) -> float | None:
        """Text came; `seen` tokens are behind all of it so far. Seconds since the text before it; None: it is the
        first."""
        gap_s = None if self.first_s is None else now - self.last_s
        if gap_s is None:
            self.first_s, self.first_tokens = now, seen
        self.last_s = now
        return gap_s


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one turn, in tokens a second; None: it was too short."""

    decode_per_s: float | None
    prefill_per_s: float | None
    depth: int
    """Tokens that were held half-way through the answer."""
    prompt: int
    """Tokens of the prompt that were evaluated."""


def rate_of(pace: Pace, usage: Usage, seen: int) -> Rate | None:
    """None for a turn that says nothing: it shared the engine, or was too short."""
    if not pace.alone or pace.began_s is None or pace.first_s is None:
        return None
    decoded, decode_s = seen - pace.first_tokens, pace.last_s - pace.first_s
    decode = decoded / decode_s if decoded >= DECODED_LEAST and decode_s > 0 else None
    prompt_s = pace.first_s - pace.began_s
    prefill = usage.evaluated / prompt_s if usage.evaluated >= EVALUATED_LEAST and prompt_s > 0 else None
    if decode is None and prefill is None:
        return None
    return Rate(decode, prefill, usage.prompt + usage.generated // 2, usage.evaluated)


class Rates:
    """Of the last turns."""

    def __init__(self) -> None:
        self._kept: deque[Rate] = deque(maxlen=KEPT)

    def note(self, rate: Rate | None) -> None:
        if rate is not None:
            self._kept.append(rate)

    def report(self) -> dict[str, Any]:
        """Medians, with how many tokens were held, or evaluated, in the median; null where nothing was measured."""
        decodes = [each for each in self._kept if each.decode_per_s is not None]
        prefills = [each for each in self._kept if each.prefill_per_s is not None]
        return {
            "decode_per_s": _median(each.decode_per_s for each in decodes),
            "depth": _whole(each.depth for each in decodes),
            "prefill_per_s": _median(each.prefill_per_s for each in prefills),
            "prompt": _whole(each.prompt for each in prefills),
            "turns": len(self._kept),
        }


def _median(found: Iterable[float | None]) -> float | None:
    values = [each for each in found if each is not None]
    return round(median(values), 3) if values else None


def _whole(found: Iterable[int]) -> int | None:
    values = list(found)
    return round(median(values)) if values else None

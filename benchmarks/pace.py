"""From the times at which text came to tokens a second, and to gaps."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stream:
    """When each piece of an answer's text came (seconds of time.perf_counter), and how many tokens there were in all.

    A piece is mostly one token; a character that takes several tokens makes fewer pieces.
    """

    times: tuple[float, ...]
    tokens: int

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]


def pace(streams: Sequence[Stream]) -> float:
    """Tokens a second of all together, from when the last of them began until the first ended."""
    begin = max(stream.times[0] for stream in streams)
    end = min(stream.times[-1] for stream in streams)
    if end <= begin:
        raise ValueError("the streams did not run at the same time")
    tokens = sum(
        sum(begin < at <= end for at in stream.times) * stream.tokens / len(stream.times)
        for stream in streams
    )
    return tokens / (end - begin)

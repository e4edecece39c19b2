"""What a client is told while it waits: the words of its stream's comments, and how far its prompt is.

Pure. It sends nothing and knows no turn's life; the shape of what is sent stands in openai_wire.py.
"""

from serving.openai_wire import PromptProgress

LOADING = "loading the model"
READING = "reading the request"


def waiting(position: int, about_s: float | None) -> str:
    """Its place in the line, from 1 (0: none that is known), and how long it takes yet, if anything was measured."""
    words = ["waiting"]
    if position > 0:
        words.append(f"place {position} in the line")
    if about_s is not None:
        words.append(f"about {max(1, round(about_s))} s")
    return ", ".join(words)


class Prefill:
    """How far one turn's prompt is. `total`: tokens of the prompt."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._cache = 0
        self._done: int | None = None
        """None: the turn has no sequence yet."""
        self._began_s = 0.0

    def began(self, reused: int, now: float) -> None:
        """The turn has its sequence, which holds so much of the prompt already."""
        self._cache = self._done = reused
        self._began_s = now

    def evaluated(self, done: int) -> bool:
        """So many tokens of the prompt are in the sequence. Whether that is more than was known: what an aborted
        decode took back is not told anew."""
        if self._done is not None and done <= self._done:
            return False
        self._done = done
        return True

    def word(self) -> str:
        """What the turn does just now."""
        if self._done is None:
            return "getting the context"
        if self._done < self._total:
            return f"evaluating {self._done} of {self._total} tokens"
        return "answering"

    def progress(self, now: float) -> PromptProgress:
        """As llama-server tells it. The turn has begun."""
        return PromptProgress(
            self._total, self._cache, self._done or 0, max(0, round((now - self._began_s) * 1000))
        )

"""A stream of an answer of fixed length, with the time of each token; and a homeport to ask, ended afterwards."""

import http.client
import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from router.lifecycle import end_everything
from serving.source import bundled_model
from tests.e2e.installation import Homeport

MODEL = "smollm2"
END_TOKENS = {"0": -100, "2": -100, "4": -100}
"""SmolLM2 would end its answer at these; a measurement wants the whole length."""


PIECE = re.compile(rb'"delta": ?\{"content": ?"')
"""An event with text in it."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer. `times` are seconds of time.perf_counter at each token."""

    replica: str
    times: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """Decode speed: from the first token to the last."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


@contextmanager
def running() -> Iterator[Homeport]:
    """A homeport with a home on every core that may be used."""
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder:
        installed = Homeport(Path(folder))
        try:
            installed.up()
            yield installed
        finally:
            end_everything(installed.paths)


def stream(
    port: int, session: str, tokens: int, prompt: str = "Tell me a long story about a harbour."
) -> Timed:
    """Ask for exactly `tokens` tokens. Raises RuntimeError when the stream ended before."""
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": END_TOKENS,
        "messages": [{"role": "user", "content": prompt}],
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"content-type": "application/json", "x-session-id": session}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read().decode())
        times = [time.perf_counter() for line in answer if PIECE.search(line)]
        if len(times) < tokens * 0.8:
            raise RuntimeError(f"{len(times)} pieces of text for {tokens} tokens")
        return Timed(answer.headers["x-homeport-replica"], tuple(times))
    finally:
        connection.close()


def model_path() -> Path:
    """The bundled model's file."""
    return bundled_model()

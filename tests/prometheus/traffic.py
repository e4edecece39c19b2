"""Who talks to a homeport while Prometheus looks: whatever panels tell of, on a machine with two replicas or more."""

import threading
from collections.abc import Sequence
from functools import partial

from tests.e2e.installation import Homeport
from tests.e2e.talk import MODEL, SYSTEM, Conversation, at_once

HOLD, QUEUE = "0s", "1s"
"""What `talk` is written for."""
LONG = {"max_tokens": 300, "logit_bias": {"0": -100, "2": -100}}
"""An answer that outlasts QUEUE: without the model's last tokens it cannot end by itself."""


def installation(homeport: Homeport) -> Homeport:
    """Configured as `talk` wants it."""
    homeport.hold, homeport.queue = HOLD, QUEUE
    homeport.configure()
    return homeport


def talk(homeport: Homeport, names: str = "") -> None:
    """Some turns of each kind, in about ten seconds: sessions with homes, parked, resumed, in the line, refused."""
    replicas = len(homeport.replicas())
    sessions = [Conversation(homeport.url, f"{names}{number}") for number in range(replicas + 1)]
    for words in ("Name three colours.", "And three animals?"):
        for session in sessions:
            session.say(words, 16)
    wait_and_be_refused(homeport, [*(session.name for session in sessions), f"{names}late"])
    hi = {"messages": [SYSTEM, {"role": "user", "content": "Hi"}], "max_tokens": 1}
    homeport.post_whole({**hi, "model": "nobody-serves-this"}, {})
    homeport.post_whole({**hi, "model": f"{MODEL}@nowhere"}, {"x-session-id": f"{names}astray"})


def wait_and_be_refused(homeport: Homeport, names: Sequence[str]) -> None:
    """A long answer for each at once; there are more of them than places, and some outlast the line."""
    asked = {"messages": [SYSTEM, {"role": "user", "content": "Tell a story."}], **LONG}
    at_once(*[partial(homeport.post_whole, asked, {"x-session-id": name}) for name in names])


class Busy:
    """Talks again and again, until it is left."""

    def __init__(self, homeport: Homeport) -> None:
        self._homeport = homeport
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Busy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _run(self) -> None:
        rounds = 0
        while not self._left.is_set():
            talk(self._homeport, f"round-{rounds % 3}-")
            rounds += 1

"""One streamed turn of a session, whatever becomes of it; and many at the same moment. Blocks; one thread each."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.streams import END_TOKENS, MODEL

PATIENCE_S = 120.0
SYSTEM = {"role": "system", "content": "You are a helpful AI assistant."}
Messages = Sequence[Mapping[str, str]]


@dataclass(slots=True)
class Said:
    """What came of one turn so far. It is filled in while the stream comes, so that others may look on."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    pieces: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    homeport: dict[str, Any] = field(default_factory=dict)
    error: str | None = "it has not ended"
    """What broke it; None: it came whole."""

    @property
    def home(self) -> str | None:
        """The replica that it ran on, or was to; a head that went out before it was known does not say."""
        return self.homeport.get("replica") or self.headers.get("x-homeport-replica")

    @property
    def pin(self) -> str | None:
        """What the head said of the pin, or at last the answer's end."""
        return self.homeport.get("pin") or self.headers.get("x-homeport-pin")


@dataclass(frozen=True, slots=True)
class Ask:
    """One turn to be asked for. It is as long as `tokens` says: the model may not end it."""

    port: int
    session: str
    messages: Messages
    tokens: int = 4
    headers: Mapping[str, str] = field(default_factory=dict)
    """More of them."""


def ask(what: Ask, said: Said | None = None, on_piece: Callable[[int], None] = lambda pieces: None) -> Said:
    """The turn's end, good or bad: nothing that the other side does is raised.

    `said` is filled in where it is given. `on_piece` is called with the number of pieces of text, at each.
    """
    said = said or Said()
    connection = http.client.HTTPConnection("127.0.0.1", what.port, timeout=PATIENCE_S)
    try:
        _read(connection, what, said, on_piece)
    except (OSError, http.client.HTTPException, ValueError) as error:
        said.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return said


def at_once(asks: Sequence[Ask]) -> list[Said]:
    """All of them at the same moment, each on a connection that is open already; to the end of all."""
    barrier = threading.Barrier(len(asks))
    said = [Said() for _ in asks]

    def run(what: Ask, into: Said) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", what.port, timeout=PATIENCE_S)
        try:
            connection.connect()
            barrier.wait()
            _read(connection, what, into, lambda pieces: None)
        except (OSError, http.client.HTTPException, ValueError, threading.BrokenBarrierError) as error:
            into.error = f"{type(error).__name__}: {error}"
            barrier.abort()
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=pair) for pair in zip(asks, said, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def begun(what: Ask, on_piece: Callable[[int], None] = lambda pieces: None) -> tuple[Said, threading.Thread]:
    """The turn on its way in a thread of its own; join that for its end."""
    said = Said()
    thread = threading.Thread(target=ask, args=(what, said, on_piece))
    thread.start()
    return said, thread


def user(text: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [SYSTEM, {"role": "user", "content": text}]


def and_then(messages: Messages, said: Said, text: str) -> list[Mapping[str, str]]:
    """The conversation with what was said in it, and the next message."""
    return [*messages, {"role": "assistant", "content": said.text}, {"role": "user", "content": text}]


def until(wanted: Callable[[], object], seconds: float, what: str, pause_s: float = 0.1) -> None:
    """Look until it is true. Raises RuntimeError, which says that `what` did not come, after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if wanted():
                return
            last: object = "false"
        except (OSError, http.client.HTTPException, AssertionError, ValueError, LookupError) as error:
            last = error
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {seconds:.0f} s; last seen: {last!r}")
        time.sleep(pause_s)


def _read(
    connection: http.client.HTTPConnection, what: Ask, said: Said, on_piece: Callable[[int], None]
) -> None:
    headers = {"content-type": "application/json", "x-session-id": what.session, **what.headers}
    connection.request("POST", "/v1/chat/completions", json.dumps(_body(what)), headers)
    answer = connection.getresponse()
    said.headers = {name.lower(): value for name, value in answer.getheaders()}
    said.status = answer.status
    if answer.status != 200:
        said.error = f"{answer.status}: {answer.read().decode(errors='replace')}"
        return
    for line in answer:
        if line.startswith(b"data: [DONE]"):
            said.error = None
        elif line.startswith(b"data: "):
            _take(json.loads(line[6:]), said, on_piece)


def _take(event: Mapping[str, Any], said: Said, on_piece: Callable[[int], None]) -> None:
    if "error" in event:
        said.error = json.dumps(event["error"])
        return
    said.usage = event.get("usage") or said.usage
    said.homeport = event.get("homeport") or said.homeport
    if new := "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ())):
        said.text += new
        said.pieces += 1
        on_piece(said.pieces)


def _body(what: Ask) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": list(what.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": what.tokens,
        "temperature": 0,
        "logit_bias": END_TOKENS,
    }

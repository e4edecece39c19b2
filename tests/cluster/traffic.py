"""Turns without end through a router, one conversation a machine, while a test breaks things underneath.

`python -m tests.cluster.traffic` is the client: it stands in the head's network, but in none of its processes, so that
it outlives the head. It tells each turn that is over, and each change of what the router says of its machines.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = ("127.0.0.1", 8000)
PAUSE_S = 1.0
LOOK_S = 0.2
TURN_S = 100.0
"""What a turn may take: more than `queue`, which is the router's own patience."""
SYSTEM = {"role": "system", "content": "You are a helpful AI assistant."}
LONGEST = 100
"""Turns of one conversation; then the session begins another."""
NO_END = {"2": -100}
"""The token that would end an answer: each is as long as the others."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as its client saw it. Times are this machine's clock, in seconds."""

    session: str
    number: int
    """Which turn of the conversation; one that failed is asked again under its number."""
    began: float
    ended: float
    status: int
    """0: nobody answered."""
    error: str | None
    """None: the answer is whole. Else the error's code, `cut` for half a stream, or how the connection ended."""
    replica: str = ""
    pin: str = ""
    context: str = ""
    reused: int = 0
    """Tokens."""

    @property
    def machine(self) -> str:
        return self.replica.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Sight:
    """What the router said from this moment on: by machine, `up`, `suspect`, `out`, or its replica's state."""

    at: float
    machines: dict[str, str]
    """Empty while the router does not answer."""


@dataclass
class Traffic:
    """The client, as the test has it."""

    process: subprocess.Popen[str]
    turns: list[Turn] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)

    def rest(self, session: str) -> None:
        """No more turns of it, but for the one that runs."""
        self._order("rest", session)

    def go(self, session: str) -> None:
        self._order("go", session)

    def of(self, session: str, since: float, until: float = float("inf")) -> list[Turn]:
        """Its turns that began in this time and are over."""
        return [turn for turn in list(self.turns) if turn.session == session and since <= turn.began < until]

    def whole(self, session: str, since: float) -> list[Turn]:
        """Its turns that began since then and were answered."""
        return [turn for turn in self.of(session, since) if turn.error is None]

    def sight(self) -> dict[str, str]:
        return self.sights[-1].machines if self.sights else {}

    def seen(self, machine: str, words: Sequence[str], since: float) -> float | None:
        """When the router first said one of these words of the machine; None: not yet."""
        times = (s.at for s in list(self.sights) if s.at >= since and s.machines.get(machine) in words)
        return next(times, None)

    def read(self) -> None:
        """Take in what the client tells, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            if "turn" in told:
                self.turns.append(Turn(**told["turn"]))
            else:
                self.sights.append(Sight(**told["sight"]))

    def _order(self, *words: str) -> None:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)


@contextlib.contextmanager
def traffic(namespace: str, sessions: Sequence[str]) -> Iterator[Traffic]:
    """A client in this network namespace. Its sessions begin one after another, and then talk all at once."""
    client = [sys.executable, "-m", "tests.cluster.traffic", *sessions]
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{namespace}", *client],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    made = Traffic(process)
    reader = threading.Thread(target=made.read, name="traffic", daemon=True)
    reader.start()
    try:
        yield made
    finally:
        process.kill()
        process.wait()
        reader.join()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Client:
    """What runs in the namespace."""

    def __init__(self, sessions: Sequence[str]) -> None:
        self.may_talk = {session: threading.Event() for session in sessions}
        self._telling = threading.Lock()

    def main(self) -> None:
        """Until its orders end."""
        talks = [self._talk(session) for session in self.may_talk]
        for talk in talks:
            next(talk)
        for talk in talks:
            threading.Thread(target=deque, args=(talk, 0), daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        for line in sys.stdin:
            order, session = line.split()
            (self.may_talk[session].set if order == "go" else self.may_talk[session].clear)()
        os._exit(0)

    def _talk(self, session: str) -> Iterator[None]:
        history, number = [SYSTEM], 0
        self.may_talk[session].set()
        while True:
            self.may_talk[session].wait()
            words = {"role": "user", "content": f"What is {number} plus {number + 1}?"}
            turn, text = ask(session, number, [*history, words])
            self._tell("turn", asdict(turn))
            if turn.error is None:
                number += 1
                history = [*history, words, {"role": "assistant", "content": text}]
                history = [SYSTEM] if number % LONGEST == 0 else history
            yield
            time.sleep(PAUSE_S)

    def _watch(self) -> None:
        before: dict[str, str] | None = None
        while True:
            now = sight()
            if now != before:
                self._tell("sight", {"at": time.time(), "machines": now})
            before = now
            time.sleep(LOOK_S)

    def _tell(self, kind: str, told: dict[str, Any]) -> None:
        with self._telling:
            print(json.dumps({kind: told}), flush=True)


def ask(session: str, number: int, messages: list[dict[str, str]]) -> tuple[Turn, str]:
    """One streamed turn, and its text."""
    body = {"model": "smollm2", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    body |= {"max_tokens": 6, "logit_bias": NO_END, "messages": messages}
    began, text, said = time.time(), "", dict[str, Any]()
    status, error = 0, "cut"
    connection = http.client.HTTPConnection(*ADDRESS, timeout=TURN_S)
    try:
        headers = {"content-type": "application/json", "x-session-id": session}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        status = answer.status
        said = {name: answer.getheader(f"x-homeport-{name}", "") for name in ("replica", "pin", "context")}
        if status != 200:
            error = str(json.load(answer)["error"]["code"])
        for line in answer:
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                error = ""
            elif line.startswith(b"data: "):
                event = json.loads(data)
                error = str(event["error"]["code"]) if "error" in event else error
                text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
                last = event.get("homeport") or {}
                said |= {name: last[name] for name in ("pin", "context") if last.get(name)}
                said |= {"reused": last["reused_tokens"]} if last.get("reused_tokens") else {}
    except (OSError, http.client.HTTPException, ValueError) as failed:
        error = type(failed).__name__
    finally:
        connection.close()
    return Turn(session, number, began, time.time(), status, error or None, **said), text


def sight() -> dict[str, str]:
    """What the router says of its machines; empty where it does not answer."""
    connection = http.client.HTTPConnection(*ADDRESS, timeout=2.0)
    try:
        connection.request("GET", "/api/fleet")
        machines = json.load(connection.getresponse())["machines"]
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return {}
    finally:
        connection.close()
    return {machine["name"]: _word(replica) for machine in machines for replica in machine["replicas"]}


def _word(replica: dict[str, Any]) -> str:
    """`up` for one that serves; else what keeps it from serving."""
    reach, state = str(replica["reach"]), str(replica["state"])
    return state if reach == "up" and state != "ready" else reach


if __name__ == "__main__":
    Client(sys.argv[1:]).main()

"""A host as a real process over real sockets, for tests. Knows nothing of what a test is about."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.slices import Need, Slice
from cluster.tls import Files
from serving.model import ModelSpec, ParkingSpec
from tests.fakes import Behaviour
from tests.ports import free_port

TOKEN = "secret-of-the-cluster"
START_S = 60.0
ANSWER_S = 500.0
"""For thousands of tokens on a core that others use too; a test's own limit comes before."""


def session(name: str) -> str:
    """A session digest that is easy to tell from others."""
    return name.encode().hex().rjust(64, "0")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]


class Stream:
    """One streamed answer, read event by event. Closing it is a client that leaves."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.comments: list[str] = []
        self.done = False

    def events(self) -> Iterator[dict[str, Any]]:
        """Events until the stream's end; `done` says whether [DONE] was the last."""
        while (line := self._response.readline()) != b"":
            text = line.decode().rstrip("\n")
            if text.startswith(": "):
                self.comments.append(text[2:])
            elif text == "data: [DONE]":
                self.done = True
            elif text.startswith("data: "):
                yield json.loads(text[6:])

    def first_text(self) -> str:
        """Read up to the first text and return it."""
        return next(text for event in self.events() if (text := text_of(event)))

    def close(self) -> None:
        self._response.close()
        self._connection.close()


def text_of(event: Mapping[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", []))


class HostProcess:
    """One replica's folder, and the process that runs on it. `start` again after `wait_end` is a restart."""

    def __init__(
        self,
        folder: Path,
        model: ModelSpec,
        model_path: str,
        behaviour: Behaviour | None,
        shown: Files | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """`shown` and `trust`: it speaks TLS."""
        self.trust = trust
        self.folder = folder
        self.model = model
        self.port = free_port()
        self.incarnation = 0
        self.start_s = START_S
        self.process: subprocess.Popen[bytes] | None = None
        self._streams: list[Stream] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.be_opened_by(TOKEN)
        spec = {
            "replica": "den/0",
            "machine": "den",
            "slot": 0,
            "address": "127.0.0.1",
            "port": self.port,
            "model": model.to_json(),
            "model_path": model_path,
            "token_file": str(folder / "token"),
            "folder": str(folder),
            "slice": Slice((0,), (0,), (), 2 * 2**30).to_json(),
            "config_digest": "c" * 64,
            "tls": None if shown is None else shown.to_json(),
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        self.command = [sys.executable, "-m", "serving.host", str(folder / "spec.json")]
        if behaviour is not None:
            self.behave(behaviour)

    def be_opened_by(self, token: str) -> None:
        """From the next start on."""
        self.token = token
        (self.folder / "token").write_text(token + "\n")

    def behave(self, behaviour: Behaviour) -> None:
        """Be a FakeEngine that behaves so, from the next start on."""
        told = self.folder / "behaviour.json"
        told.write_text(json.dumps(asdict(behaviour)))
        self.command = [sys.executable, "-m", "tests.fakes", str(self.folder / "spec.json"), str(told)]

    def start(self, until: str | None = "ready") -> None:
        """Start it, and wait until its state is `until`; None: do not wait."""
        self.incarnation += 1
        env = {**os.environ, "HOMEPORT_INCARNATION": str(self.incarnation)}
        with (self.folder / "host.err").open("ab") as errors:
            self.process = subprocess.Popen(
                self.command, env=env, stdin=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
        deadline = time.monotonic() + self.start_s
        while until is not None:
            assert self.process.poll() is None, self.errors()
            assert time.monotonic() < deadline, "the host did not come up"
            try:
                if self.state()["state"] == until:
                    return
            except OSError:
                pass
            time.sleep(0.02)

    def faults(self) -> str:
        """What it has said of faults; whether its machine lets itself be kept awake is none of its own."""
        lines = self.errors().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("homeport: this machine: "))

    def errors(self) -> str:
        return (self.folder / "host.err").read_text()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait_end(self, timeout_s: float = 10.0) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """End the whole group, whatever state it is in, and close what was not read to its end."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for stream in self._streams:
            stream.close()

    def get(self, path: str, token: str | None = None) -> Answer:
        return self._ask("GET", path, None, {"authorization": f"Bearer {token or self.token}"})

    def delete(self, path: str) -> Answer:
        return self._ask("DELETE", path, None, {"authorization": f"Bearer {self.token}"})

    def put(self, path: str, body: Any) -> Answer:
        headers = {"authorization": f"Bearer {self.token}"}
        return self._ask("PUT", path, json.dumps(body).encode(), headers)

    def settle(self, settings: Mapping[str, Any], token: str | None = None) -> Answer:
        """POST what the config may change while the host runs."""
        headers = {"authorization": f"Bearer {token or self.token}"}
        return self._ask("POST", "/settings", json.dumps(settings).encode(), headers)

    def state(self) -> dict[str, Any]:
        return self.get("/state").body

    def wait_state(self, **wanted: object) -> dict[str, Any]:
        """The state once it has these values."""
        return self.wait_until(lambda state: all(state[name] == value for name, value in wanted.items()))

    def wait_until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The state once it is as wanted."""
        deadline = time.monotonic() + 10.0
        while not wanted(state := self.state()):
            assert time.monotonic() < deadline, state
            time.sleep(0.01)
        return state

    def chat(self, body: Any, headers: Mapping[str, str] | None = None, who: str | None = None) -> Answer:
        """Ask for a whole answer; `body` may be bytes, or messages' last user text."""
        return self._ask("POST", "/v1/chat/completions", self.body(body), self.headers(headers, who))

    def post(self, path: str, body: Any, who: str | None = None) -> Answer:
        """POST an object; the model's name is added."""
        return self._ask("POST", path, self.body(body), self.headers(None, who))

    def stream(
        self,
        body: Any,
        headers: Mapping[str, str] | None = None,
        who: str | None = None,
        path: str = "/v1/chat/completions",
        **fields: object,
    ) -> Stream:
        connection = self._connection()
        raw = self.body(body, stream=True, **fields)
        connection.request("POST", path, raw, self.headers(headers, who))
        stream = Stream(connection, connection.getresponse())
        self._streams.append(stream)
        return stream

    def post_and_wait(self, body: Any, who: str) -> socket.socket:
        """Send a request and return its socket, on which nothing is read yet."""
        raw = self.body(body)
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers(None, who).items())
        start = f"POST /v1/chat/completions HTTP/1.1\r\nhost: den\r\n{head}content-length: {len(raw)}\r\n\r\n"
        client = socket.create_connection(("127.0.0.1", self.port))
        client.sendall(start.encode() + raw)
        return client

    def body(self, body: Any, **fields: object) -> bytes:
        if isinstance(body, bytes):
            return body
        if isinstance(body, str):
            body = {"messages": [{"role": "user", "content": body}]}
        return json.dumps({"model": self.model.name, **body, **fields}).encode()

    def headers(self, more: Mapping[str, str] | None, who: str | None) -> dict[str, str]:
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        if who is not None:
            headers["x-homeport-session-key"] = session(who)
        return {**headers, **(more or {})}

    def _connection(self) -> http.client.HTTPConnection:
        if self.trust is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=ANSWER_S, context=self.trust)

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = self._connection()
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, json.loads(response.read()))
        finally:
            connection.close()


def model_spec(
    hold_s: float = 10.0,
    queue_s: float = 60.0,
    context: int = 4000,
    sessions: int = 1,
    parking: ParkingSpec | None = None,
    unload_s: float | None = None,
    **options: Any,
) -> ModelSpec:
    return ModelSpec(
        name="smollm2",
        engine="llama.cpp",
        source="bundled",
        machines="all",
        replicas=1,
        need=Need(1, 2**30, 0),
        take="needs",
        context=context,
        sessions=sessions,
        hold_s=hold_s,
        queue_s=queue_s,
        when_lost="wait",
        parking=parking or ParkingSpec(),
        unload_s=unload_s,
        options=tuple(sorted(options.items())),
    )

"""`python -m benchmarks.relay.host CONTROL_PORT PORT ...`: stand-in hosts and a controller that lists them.

Each host is a machine with one replica to homeport and a plain OpenAI server to all others. It computes nothing: its
answers are bytes made beforehand, so that the relay's cost can be measured beside it on two cores.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import uvloop

from benchmarks.relay import wire
from serving.pin_index import Candidate, Lost, PinIndex

TICK_S = 0.001
SLOTS = round(1 / wire.EVENTS_PER_S / TICK_S)
FULL_BYTES = 1 << 18
"""With so much unsent a stream skips its event: its relay does not keep up."""
PLACES = 4096
"""As one that batches: whoever is pinned there finds room."""

Answerer = Callable[[str, str, bytes], bytes]
"""Method, target and body to a whole response."""


class Wheel:
    """Sends every stream its next event in its slot: all of them each 10 ms, spread over the time between."""

    def __init__(self) -> None:
        self.events, self.ending = wire.events(), wire.ending()
        self.left_at = 0.0
        """When a connection ended last whose stream had not (time.monotonic, which processes share)."""
        self._slots: list[set[Host]] = [set() for _ in range(SLOTS)]
        self._next = 0
        self._entered = 0
        self._at = 0.0
        self._count = 0

    def enter(self, stream: "Host", soon: bool) -> None:
        """`soon`: its first event here is due in the next slot, else in one that spreads the streams evenly."""
        self._entered += 1
        stream.slot = (self._next if soon else self._entered) % SLOTS
        self._slots[stream.slot].add(stream)
        self._count += 1
        if self._count == 1:
            loop = asyncio.get_running_loop()
            self._at = loop.time() + TICK_S
            loop.call_at(self._at, self._tick)

    def leave(self, stream: "Host") -> None:
        if stream in self._slots[stream.slot]:
            self._slots[stream.slot].discard(stream)
            self._count -= 1

    def lost(self, stream: "Host") -> None:
        if stream in self._slots[stream.slot]:
            self.left_at = time.monotonic()
        self.leave(stream)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._at = max(self._at, now - SLOTS * TICK_S)  # What is later than a turn of the wheel is left out.
        while self._count and self._at <= now:
            slot = self._slots[self._next]
            for stream in tuple(slot):
                stream.tick()
            self._next = (self._next + 1) % SLOTS
            self._at += TICK_S
        if self._count:
            loop.call_at(self._at, self._tick)


class Server(asyncio.Protocol):
    """Takes whole requests off a connection, one after another."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._got = b""
        self._lacks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        while len(self._got) >= self._lacks and (at := self._got.find(wire.HEAD_END)) >= 0:
            head, body_at = self._got[:at], at + len(wire.HEAD_END)
            if length := wire.LENGTH.search(head):
                end = body_at + int(length[1])
            elif wire.CHUNKED.search(head):
                last = self._got.find(wire.LAST_CHUNK, body_at)
                end = last + len(wire.LAST_CHUNK) if last >= 0 else len(self._got) + 1
            else:
                end = body_at
            if len(self._got) < end:
                self._lacks = end
                return
            body, self._got, self._lacks = self._got[body_at:end], self._got[end:], 0
            self.asked(head, body)

    def asked(self, head: bytes, body: bytes) -> None:
        """One whole request; a chunked body still has its chunks' sizes in it."""
        raise NotImplementedError


class Pages(Server):
    """Answers with what a function makes of a request."""

    def __init__(self, answer: Answerer) -> None:
        super().__init__()
        self._answer = answer

    def asked(self, head: bytes, body: bytes) -> None:
        method, target = head.decode("latin-1").split(" ", 2)[:2]
        self.transport.write(self._answer(method, target, body))


class Host(Pages):
    """A host's connection: turns here, the rest in `answer`."""

    def __init__(self, machine: "Machine", wheel: Wheel) -> None:
        super().__init__(machine.answer)
        self.slot = 0
        self._machine = machine
        self._wheel = wheel
        self._left = 0

    def asked(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST /v1/chat/completions"):
            super().asked(head, body)
        elif not wire.STREAMED.search(body):
            self.transport.write(self._machine.whole)
        else:
            tokens = wire.TOKENS.search(body)
            self.transport.write(self._machine.begin)
            self._left = int(tokens[1]) if tokens else 1
            if b'"idle"' not in body:
                self._wheel.enter(self, self._left < wire.ENDLESS)

    def tick(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self._wheel.leave(self)
            self.transport.write(self._wheel.ending)
        elif self.transport.get_write_buffer_size() < FULL_BYTES:
            self.transport.write(self._wheel.events[self._left % len(self._wheel.events)])

    def connection_lost(self, exc: Exception | None) -> None:
        self._wheel.lost(self)


class Machine:
    """What one host says of itself."""

    def __init__(self, number: int, port: int) -> None:
        name = f"machine-{number}"
        self.name, self.port = f"{name}/0", port
        told = f"x-homeport-machine: {name}\r\nx-homeport-replica: {name}/0\r\nx-homeport-pin: kept\r\n"
        self.whole = wire.whole(told)
        self.begin = wire.stream_head(told) + wire.events()[0]
        state = {"replica": self.name, "incarnation": 1, "state": "ready", "progress": 1.0, "places": PLACES}
        models = {"object": "list", "data": [{"id": wire.MODEL, "object": "model", "owned_by": "bench"}]}
        self._pages = {
            "/state": wire.reply(200, json.dumps(state).encode()),
            "/v1/models": wire.reply(200, json.dumps(models).encode()),
            "/pins": wire.reply(200, b'{"pins": []}'),
            "/health": wire.reply(200, b"{}"),
            "/health_generate": wire.reply(200, b"{}"),
        }

    def answer(self, method: str, target: str, body: bytes) -> bytes:
        return self._pages.get(target.partition("?")[0]) or wire.reply(404, b"{}")

    def listed(self) -> dict[str, Any]:
        """As the controller lists it."""
        machine = self.name.rpartition("/")[0]
        replica = {"name": self.name, "slot": 0, "model": wire.MODEL, "port": self.port, "state": "ready"}
        replica |= {"address": "127.0.0.1", "progress": 1.0, "incarnation": 1}
        place = {"id": f"id-of-{machine}", "name": machine, "zone": "default", "address": "127.0.0.1"}
        return {**place, "state": "ready", "replicas": [replica]}


class Controller:
    """The fleet, and the real index of pins; no journal ever confirms one."""

    def __init__(self, machines: Sequence[Machine], wheel: Wheel) -> None:
        self._wheel = wheel
        models = [{"name": wire.MODEL, "context": 8192, "engine": "llama.cpp"}]
        listed = [machine.listed() for machine in machines]
        self._fleet = wire.reply(
            200, json.dumps({"revision": 1, "models": models, "machines": listed}).encode()
        )
        self._index = PinIndex()

    def answer(self, method: str, target: str, body: bytes) -> bytes:
        path = urlsplit(target).path
        if (method, path) == ("GET", "/fleet"):
            return self._fleet
        if path == wire.LEFT:
            return wire.reply(200, json.dumps(self._wheel.left_at).encode())
        if (method, path) == ("POST", "/claim"):
            return self._claim(json.loads(body))
        if method == "GET" and path.startswith("/pins/"):
            model = parse_qs(urlsplit(target).query)["model"][0]
            pin = self._index.get(path.removeprefix("/pins/"), model)
            return wire.reply(200, json.dumps(pin.to_json()).encode()) if pin else wire.reply(404, b"{}")
        return wire.reply(404, b"{}")

    def _claim(self, asked: dict[str, Any]) -> bytes:
        order = [Candidate(each["replica"], each["free"]) for each in asked["ranked"]]
        given = asked.get("instead_of")
        lost = None if given is None else Lost(given["replica"], given["generation"])
        now = asyncio.get_running_loop().time()
        pin, known = self._index.claim(
            asked["session"], asked["model"], order, frozenset(asked["refused"]), now, lost, asked["router"]
        )
        return wire.reply(200, json.dumps({"pin": pin.to_json(), "known": known}).encode())


async def serve(control_port: int, ports: Sequence[int]) -> None:
    """Until it is ended; says `up` once all listen."""
    loop, wheel = asyncio.get_running_loop(), Wheel()
    machines = [Machine(number, port) for number, port in enumerate(ports)]
    controller = Controller(machines, wheel)
    await loop.create_server(lambda: Pages(controller.answer), "127.0.0.1", control_port, backlog=2048)
    for machine in machines:
        await loop.create_server(partial(Host, machine, wheel), "127.0.0.1", machine.port, backlog=2048)
    print("up", flush=True)
    await asyncio.Event().wait()


def main(words: Sequence[str]) -> None:
    control_port, *ports = map(int, words)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(control_port, ports))


if __name__ == "__main__":
    main(sys.argv[1:])

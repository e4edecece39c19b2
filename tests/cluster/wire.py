"""Who listens on the wires of a laboratory: tells each magic packet that a bridge carries.

`python -m tests.cluster.wire br1 br2` stands in the namespace between the zones, where every bridge is.
"""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = 3
"""Linux's ETH_P_ALL."""
UDP, PORT = 17, 9


@dataclass(frozen=True, slots=True)
class Packet:
    """One magic packet: on which bridge, for which card, to which address, from which, and when."""

    bridge: str
    mac: str
    to: str
    source: str
    size: int
    """Of what the UDP packet carries."""
    at: float


@dataclass
class Wires:
    """What was heard; `on_packet` is called for each."""

    packets: list[Packet] = field(default_factory=list)
    on_packet: Callable[[Packet], None] = lambda _: None

    def of(self, mac: str) -> list[Packet]:
        return [packet for packet in list(self.packets) if packet.mac == mac]


@contextlib.contextmanager
def wires(namespace: str, bridges: Sequence[str]) -> Iterator[Wires]:
    """Listens for as long as the block."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-m", "tests.cluster.wire", *bridges],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    made = Wires()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            packet = Packet(**json.loads(line))
            made.packets.append(packet)
            made.on_packet(packet)

    reader = threading.Thread(target=read, name="wires", daemon=True)
    reader.start()
    try:
        yield made
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def read_magic(frame: bytes) -> tuple[str, str, str, int] | None:
    """(card, to, source, size) of an IPv4 packet that wakes a card; None: it is another."""
    head = (frame[0] & 15) * 4 if frame else 0
    if len(frame) < head + 8 or frame[0] >> 4 != 4 or frame[9] != UDP:
        return None
    carried = frame[head + 8 : head + int.from_bytes(frame[head + 4 : head + 6], "big")]
    if int.from_bytes(frame[head + 2 : head + 4], "big") != PORT or carried[:6] != b"\xff" * 6:
        return None
    if carried[6:12] * 16 != carried[6:]:
        return None
    card = carried[6:12].hex(":")
    return card, socket.inet_ntoa(frame[16:20]), socket.inet_ntoa(frame[12:16]), len(carried)


def main(bridges: Sequence[str]) -> None:
    listening = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERYTHING))
    print("listening", flush=True)
    while True:
        frame, (bridge, *_) = listening.recvfrom(2048)
        found = read_magic(frame) if bridge in bridges else None
        if found is not None:
            card, to, source, size = found
            told = {"bridge": bridge, "mac": card, "to": to, "source": source, "size": size}
            print(json.dumps({**told, "at": time.time()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

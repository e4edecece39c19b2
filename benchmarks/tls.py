"""`python -m benchmarks.tls`: what TLS between router and host adds to a small turn, and what a handshake costs.

Two real hosts with an engine that answers at once, one in clear and one over TLS, asked in turn with the router's
client: on connections that are kept, as a router keeps them, and each on a connection of its own.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from benchmarks.report import Figure
from cluster import machine_tls, tls
from cluster.certificates import issue, new_authority
from cluster.paths import Paths
from router.app import new_clients
from router.host_http import place_of
from router.hosts import Hosts
from router.request import host_request
from tests.fakes import Behaviour
from tests.host_process import TOKEN, HostProcess, model_spec, session

ROUNDS = 300
FRESH = 100
TARGET_KEPT = 1.15
TARGET_FRESH = 2.0
ANSWER = "It is so. " * 20


def measure() -> list[Figure]:
    """Medians over rounds, in which both hosts are asked one after the other."""
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder:
        home = Path(folder)
        paths = Paths(home / "machine", home / "locks")
        signer = new_authority(time.time())
        csr = machine_tls.request(paths, "a" * 32)
        machine_tls.keep(paths, issue(signer, csr, "a" * 32, "127.0.0.1", time.time()), signer.certificate)
        behaviour = Behaviour(answer=ANSWER)
        clear = HostProcess(home / "clear", model_spec(), "none", behaviour)
        secret = HostProcess(
            home / "secret",
            model_spec(),
            "none",
            behaviour,
            machine_tls.own_files(paths),
            tls.client_context(paths.ca),
        )
        try:
            clear.start()
            secret.start()
            return asyncio.run(_ask(clear, secret, paths.ca))
        finally:
            clear.kill()
            secret.kill()


async def _ask(clear: HostProcess, secret: HostProcess, ca: Path) -> list[Figure]:
    urls = (f"http://127.0.0.1:{clear.port}", f"https://127.0.0.1:{secret.port}")
    async with new_clients(ca) as clients:
        for url in urls:
            await _kept_turn(clients.hosts, url)
        kept = [[await _kept_turn(clients.hosts, url) for url in urls] for _ in range(ROUNDS)]
    connector = aiohttp.TCPConnector(ssl=tls.client_context(ca), force_close=True)
    async with aiohttp.ClientSession(connector=connector) as client:
        fresh = [[await _turn(client, url) for url in urls] for _ in range(FRESH)]
    kept_ms = [statistics.median(column) * 1000 for column in zip(*kept, strict=True)]
    fresh_ms = [statistics.median(column) * 1000 for column in zip(*fresh, strict=True)]
    ratio = kept_ms[1] / kept_ms[0]
    alone = fresh_ms[1] / fresh_ms[0]
    return [
        Figure(
            "a small turn over TLS against one in clear, on kept connections",
            f"<= {TARGET_KEPT} x",
            f"{ratio:.2f} x ({kept_ms[1]:.2f} against {kept_ms[0]:.2f} ms)",
            ratio <= TARGET_KEPT,
            f"a streamed answer of {len(ANSWER)} characters of an engine that makes them at once, router's client and "
            f"one host on this machine, median of {ROUNDS} alternating rounds",
        ),
        Figure(
            "the same on a connection of its own, which begins with a handshake",
            f"<= {TARGET_FRESH} x",
            f"{alone:.2f} x ({fresh_ms[1]:.2f} against {fresh_ms[0]:.2f} ms)",
            alone <= TARGET_FRESH,
            f"median of {FRESH} alternating rounds",
        ),
    ]


async def _kept_turn(hosts: Hosts, url: str) -> float:
    """As `_turn`, with the router's own connections."""
    place, (headers, body) = place_of(url), _request()
    began = time.perf_counter()
    told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = host_request("/v1/chat/completions", place.address, told, b"", len(body))
    answer = await hosts.ask(place, (head, body))
    text = await answer.read()
    answer.close()
    if answer.status != 200 or b"[DONE]" not in text:
        raise RuntimeError(f"{url} answered {answer.status}")
    return time.perf_counter() - began


def _request() -> tuple[dict[str, str], bytes]:
    body = {
        "model": "smollm2",
        "stream": True,
        "max_tokens": len(ANSWER),
        "messages": [{"role": "user", "content": "Hello."}],
    }
    headers = {
        "authorization": f"Bearer {TOKEN}",
        "content-type": "application/json",
        "x-homeport-session-key": session("tea"),
    }
    return headers, json.dumps(body).encode()


async def _turn(client: aiohttp.ClientSession, url: str) -> float:
    """Seconds of one streamed turn, to its last byte."""
    headers, body = _request()
    began = time.perf_counter()
    async with client.post(f"{url}/v1/chat/completions", data=body, headers=headers) as answer:
        text = await answer.read()
    if answer.status != 200 or b"[DONE]" not in text:
        raise RuntimeError(f"{url} answered {answer.status}")
    return time.perf_counter() - began


def main() -> int:
    figures = measure()
    for figure in figures:
        print(f"{'met   ' if figure.met else 'MISSED'}  {figure.question}: {figure.measured} ({figure.how})")
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())

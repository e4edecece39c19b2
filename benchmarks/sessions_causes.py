"""Each reason for which a context can be cold, brought about on a real host: is it told right?"""

import json
import random
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import one_host
from benchmarks.cores import Cores, share_out
from benchmarks.one_host import MeasuredHost
from benchmarks.report import Figure
from benchmarks.sessions_homeport import call
from serving import parked_file
from serving.host_app import PARKED
from serving.model import ParkingSpec
from tests.host_process import TOKEN, session

CONTEXT = 256
LENGTH = 40
"""Tokens of a prompt."""
IDS = (1000, 40_000)
"""Plain tokens of the vocabulary lie between these."""
NO_PARKING = ParkingSpec(memory_bytes=0, disk_bytes=0)
ONE_STATE = ParkingSpec(memory_bytes=1_500_000, disk_bytes=0)
"""A state of 40 tokens has 0.9 MB."""
ON_DISK = ParkingSpec(memory_bytes=0, disk_bytes=2**30)

Told = Mapping[str, Any]
Injected = tuple[str, Told]
"""What the turn should say, and what it said."""


def measure(times: int) -> list[Figure]:
    """Each cause so often; and as often a turn that is warm."""
    cores = share_out()
    counts, wrong = [], 0
    for name, inject in CAUSES.items():
        injected = inject(cores, times)
        bad = [(wanted, told) for wanted, told in injected if not _is_right(wanted, told)]
        for wanted, told in bad[:3]:
            print(f"  {name}: {wanted!r} expected, told {dict(told)}", flush=True)
        if len(injected) != times:
            raise RuntimeError(f"{name}: {len(injected)} times and not {times}")
        wrong += len(bad)
        counts.append(f"{name} {100 * (times - len(bad)) / times:.0f} %")
    return [
        Figure(
            f"each cause of a cold context injected {times} times",
            "100 % labelled right",
            ", ".join(counts),
            wrong == 0,
            "one host with the bundled model, prompts of 40 known tokens, N right too; evicted: without room and with "
            "room for one; restore_failed: a byte of the file changed, or half of it gone; moved: named so by the "
            "router, or moved in by POST /pins; engine_changed: started again with another kv_type; warm: a next turn, "
            "which must tell no cause",
        )
    ]


def _is_right(wanted: str, told: Told) -> bool:
    cold = bool(wanted) and not wanted.startswith("edited@")
    return (told["cause"] or "") == wanted and (not cold or told["context"] == "evaluated")


def prompt(seed: str, length: int = LENGTH) -> list[int]:
    """Token ids that are another prompt's for another seed, from the first token on."""
    return random.Random(seed).sample(range(*IDS), length)


def turn(host: MeasuredHost, who: str, tokens: list[int]) -> Told:
    """A turn of one token."""
    answer = host.post("/v1/completions", {"prompt": tokens, "max_tokens": 1, "temperature": 0}, who)
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.body}")
    told: Told = answer.body["homeport"]
    return told


def _new(cores: Cores, times: int) -> list[Injected]:
    with one_host.running(cores, CONTEXT, 1) as host:
        return [("new", turn(host, f"new-{n}", prompt(f"new-{n}"))) for n in range(times)]


def _warm(cores: Cores, times: int) -> list[Injected]:
    found = []
    with one_host.running(cores, CONTEXT, 1) as host:
        for n in range(times):
            tokens = prompt(f"warm-{n}")
            turn(host, f"warm-{n}", tokens)
            found.append(("", turn(host, f"warm-{n}", [*tokens, *prompt(f"more-{n}", 5)])))
    return found


def _edited(cores: Cores, times: int) -> list[Injected]:
    found = []
    with one_host.running(cores, CONTEXT, 1) as host:
        for n in range(times):
            tokens, same = prompt(f"edited-{n}"), 1 + n % (LENGTH - 2)
            turn(host, f"edited-{n}", tokens)
            other = [token + 1 for token in tokens[same:]]
            found.append((f"edited@{same}", turn(host, f"edited-{n}", [*tokens[:same], *other])))
    return found


def _evicted(cores: Cores, times: int) -> list[Injected]:
    """Half of them on a host that parks nothing, half on one that has room for the last one's context only."""
    found = []
    for parking, count in ((NO_PARKING, times - times // 2), (ONE_STATE, times // 2)):
        with one_host.running(cores, CONTEXT, 1, parking=parking) as host:
            for n in range(count):
                who, tokens = f"evicted-{n}", prompt(f"evicted-{n}")
                turn(host, who, tokens)
                for other in ("a", "b"):
                    turn(host, f"other-{n}{other}", prompt(f"other-{n}{other}"))
                found.append(("evicted", turn(host, who, tokens)))
    return found


def _restore_failed(cores: Cores, times: int) -> list[Injected]:
    found = []
    with one_host.running(cores, CONTEXT, 1, parking=ON_DISK) as host:
        for n in range(times):
            who, tokens = f"broken-{n}", prompt(f"broken-{n}")
            turn(host, who, tokens)
            turn(host, "other", prompt(f"other-{n}"))
            file = parked_file.path_of(host.folder / PARKED, session(who))
            _wait(lambda file=file: file.exists() and not host.state()["parking"]["unwritten"])  # type: ignore[misc]
            data = bytearray(file.read_bytes())
            if n % 2:
                data[len(data) // 2] ^= 1
            else:
                del data[len(data) // 2 :]
            file.write_bytes(data)
            found.append(("restore_failed", turn(host, who, tokens)))
    return found


def _moved(cores: Cores, times: int) -> list[Injected]:
    """Half of them as the router says it of a turn, half moved in before it."""
    found = []
    with one_host.running(cores, CONTEXT, 1) as host:
        for n in range(times):
            who = f"moved-{n}"
            headers = {"x-homeport-generation": "2", "x-homeport-pin": "kept" if n % 2 else "moved"}
            if n % 2:
                _move_in(host, who)
            body = {"messages": [{"role": "user", "content": f"Say {n}."}], "max_tokens": 1, "temperature": 0}
            answer = host.chat(body, headers, who)
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answer.body}")
            found.append(("moved", answer.body["homeport"]))
    return found


def _move_in(host: MeasuredHost, who: str) -> None:
    pin = {
        "session": session(who),
        "model": host.model.name,
        "replica": "den/0",
        "generation": 2,
        "created_s": time.time(),
        "public": "",
        "scope": None,
        "family": None,
        "guessed": False,
    }
    status, told = call(host.port, "POST", "/pins", {"pins": [pin]}, TOKEN)
    if status != 200:
        raise RuntimeError(f"the host took no pin: {status} {told}")


def _engine_changed(cores: Cores, times: int) -> list[Injected]:
    with one_host.running(cores, CONTEXT, 1, parking=ON_DISK) as host:
        names = [f"changed-{n}" for n in range(times)]
        for name in names:
            turn(host, name, prompt(name))
        _wait(lambda: not host.state()["parking"]["unwritten"])
        host.signal(signal.SIGTERM)
        host.wait_end()
        told = host.folder / "spec.json"
        spec = json.loads(told.read_text())
        spec["model"]["options"]["kv_type"] = "q8_0"
        told.write_text(json.dumps(spec))
        host.begin()
        return [("engine_changed", turn(host, name, prompt(name))) for name in names]


def _wait(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not wanted():
        if time.monotonic() > deadline:
            raise RuntimeError("a context was not written to disk within 10 s")
        time.sleep(0.01)


CAUSES: dict[str, Callable[[Cores, int], list[Injected]]] = {
    "new": _new,
    "edited@N": _edited,
    "evicted": _evicted,
    "restore_failed": _restore_failed,
    "moved": _moved,
    "engine_changed": _engine_changed,
    "warm": _warm,
}

"""What a session's first turn costs more than another's next one, on the same replica, of the same tokens.

Nothing is parked, so that both evaluate their whole prompt anew: what differs is the pin, which is claimed at the
controller and written to the host's journal before the answer's head.
"""

import http.client
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import Figure
from benchmarks.sessions_homeport import running
from benchmarks.streams import MODEL
from serving.isolation import percentile

TARGET_MS = 10.0
PROMPT = "The harbour was calm"
ROLES = ("new", "kept", "other")
PAUSE_S = 0.02
"""Between two turns: what a host does behind an answer is over."""
NOTHING_PARKED = "parking: {memory: 0B, disk: 0B}"
NOTHING_SHARED = 'options: {share_prefix: "off"}'


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds from request to whole answer. `kept` and `other` are two sessions that have their pins."""

    new: float
    kept: float
    other: float


def measure(rounds: int) -> list[Figure]:
    """A round: a new session and two kept ones, in an order of its own."""
    with running(count="1", hold="0s", more=(NOTHING_PARKED, NOTHING_SHARED)) as homeport:
        client = http.client.HTTPConnection("127.0.0.1", homeport.ports["router"], timeout=60)
        try:
            for number in range(5):  # the process's first turns are not what is measured
                _turn(client, f"warm-{number}", "new")
            for role in ROLES[1:]:
                _turn(client, role, "new")
            found = [_round(client, number, order) for number, order in enumerate(_orders(rounds))]
        finally:
            client.close()
    new, kept, other = ([getattr(one, name) for one in found] for name in ROLES)
    added = percentile([one.new - one.kept for one in found], 0.99)
    noise = percentile([one.other - one.kept for one in found], 0.99)
    median = statistics.median(one.new - one.kept for one in found)
    apart = percentile(new, 0.99) - percentile(kept + other, 0.99)
    return [
        Figure(
            "a new pin: added latency over a kept one",
            f"p99 <= {TARGET_MS:.0f} ms",
            f"p99 {added:.1f} ms, median {median:.1f} ms (a kept one over another kept one: p99 {noise:.1f} ms)",
            added <= TARGET_MS,
            f"{rounds} rounds of a new session's turn and those of two kept ones, one at a time in changing order on "
            "one exclusive replica through router and controller; differences within a round of the times to whole "
            "answers of 1 token to the same prompt, all of it evaluated each time (nothing parked or shared). p99 of "
            f"all new ones less p99 of all kept ones: {apart:.1f} ms ({percentile(new, 0.99):.1f} against "
            f"{percentile(kept + other, 0.99):.1f})",
        )
    ]


def _orders(rounds: int) -> Iterator[list[str]]:
    """For each round its order. None comes twice in a row: it would be resident then."""
    drawn, last = random.Random(7), ROLES[-1]
    for _ in range(rounds):
        order = [role for role in ROLES if role != last]
        drawn.shuffle(order)
        order.insert(drawn.randrange(1, 3), last)
        last = order[-1]
        yield order


def _round(client: http.client.HTTPConnection, number: int, order: Sequence[str]) -> Times:
    return Times(**{role: _turn(client, *_who(role, number)) for role in order})


def _who(role: str, number: int) -> tuple[str, str]:
    """Session and pin."""
    return (f"new-{number}", "new") if role == "new" else (role, "kept")


def _turn(client: http.client.HTTPConnection, session: str, pin: str) -> float:
    """Milliseconds. Raises RuntimeError unless the pin is as expected and the whole prompt was evaluated."""
    time.sleep(PAUSE_S)
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": 1, "temperature": 0})
    headers = {"content-type": "application/json", "x-session-id": session}
    began = time.perf_counter()
    client.request("POST", "/v1/completions", body, headers)
    answer = client.getresponse()
    told: dict[str, Any] = json.loads(answer.read())
    ms = (time.perf_counter() - began) * 1000
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {told}")
    said = told["homeport"]
    if said["pin"] != pin or said["evaluated_tokens"] != told["usage"]["prompt_tokens"]:
        raise RuntimeError(f"not a {pin} pin with all evaluated: {said}")
    return ms

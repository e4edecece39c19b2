"""What runs found, as figures with targets and as a table of all relays. Measures nothing."""

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import TypeVar

from benchmarks.relay.lookup import LOOKED_UP, MACHINES, SESSIONS, LookUp
from benchmarks.relay.measure import BUSY, CLIENTS, LEAVERS, MERGED, Cost, FirstToken, Found, Gone, Idle
from benchmarks.relay.relays import STREAMS, Relay
from benchmarks.relay.runs import Outcome
from benchmarks.relay.wire import EVENTS_PER_S
from benchmarks.report import Figure
from router.homes import REMEMBERED

OURS, PROXY = "homeport", "nginx"
RUST = ("vllm-router", "sglang-router")
AGAINST_RUST = {"streams": 0.8, "small": 0.8, "history": 1.0}
FIRST_P50_US = 300.0
IDLE_KIB = 20.0
GONE_MS = 50.0
LOOK_UP_P99_US, LOOK_UP_BYTES = 20.0, 300.0
WORDS = {
    "streams": f"{STREAMS} streams x {EVENTS_PER_S} events/s: CPU of an event",
    "small": f"{CLIENTS} connections, small requests: CPU of one",
    "history": f"{CLIENTS} connections, a 48 KiB history in each request: CPU of one",
    "first": "added time to the first event, nothing else to do",
    "busy": f"added time to the first event, at {BUSY:.0%} of a core",
    "idle": "idle open streams: memory of one",
    "gone": "a client leaves in the middle of a stream: until its host is told",
    "pins": f"pin look-up, {MACHINES:,} machines and {SESSIONS:,} sessions",
}
Outcomes = Mapping[str, Outcome]
F = TypeVar("F", Cost, FirstToken, Idle, Gone)


def figures(outcomes: Outcomes, pins: Mapping[str, LookUp], rounds: int) -> list[Figure]:
    """homeport's, each against its target."""
    found = [_cost(outcomes, work, rounds) for work in AGAINST_RUST]
    found += [_first(outcomes, work, rounds) for work in ("first", "busy")]
    return [*found, _idle(outcomes), _gone(outcomes), *_pins(pins)]


def every_relay(relays: Iterable[Relay], outcomes: Outcomes) -> str:
    """Markdown: a row for each relay, medians over rounds. Times in microseconds (of `gone` in
    milliseconds), memory in KiB."""
    lines = [
        "| relay | event | small request | 48 KiB request | first: p50, p99 | busy | idle | gone: p50, p99 | with |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for relay in relays:
        outcome = outcomes[relay.name]
        if outcome.missing is not None:
            lines.append(
                f"| {relay.name} | not measured: {_cell(outcome.missing)} | | | | | | | {relay.how} |"
            )
            continue
        cells = [_said(outcome, work, _costs) for work in AGAINST_RUST]
        cells += [_said(outcome, work, _firsts) for work in ("first", "busy")]
        cells += [_said(outcome, "idle", _idles), _said(outcome, "gone", _gones)]
        lines.append(f"| {relay.name} | {' | '.join(cells)} | {relay.how} |")
    return "\n".join(lines)


def _cost(outcomes: Outcomes, work: str, rounds: int) -> Figure:
    target = AGAINST_RUST[work]
    how = f"user and system time of the relay's process tree over what came back, median of {rounds} rounds"
    also = "; moonshot: nginx" if work == "streams" else ""
    ours = _median(outcomes, OURS, work, lambda cost: cost.micros, Cost)
    rust, name = _better(outcomes, work, lambda cost: cost.micros, Cost)
    proxy = _median(outcomes, PROXY, work, lambda cost: cost.micros, Cost)
    words = f"<= {target} x the better Rust router{also}"
    if ours is None or rust is None:
        return _nothing(WORDS[work], words, outcomes, work)
    measured = f"{ours / rust:.2f} x ({ours:.1f} against {rust:.1f} us of {name})"
    if proxy is not None:
        measured += f"; {ours / proxy:.2f} x nginx ({proxy:.1f} us)"
    return Figure(WORDS[work], words, measured, ours / rust <= target, how)


def _first(outcomes: Outcomes, work: str, rounds: int) -> Figure:
    words = f"p50 <= {FIRST_P50_US:.0f} us, p99 <= the better Rust router's"
    p50 = _median(outcomes, OURS, work, lambda first: first.p50, FirstToken)
    p99 = _median(outcomes, OURS, work, lambda first: first.p99, FirstToken)
    rust, name = _better(outcomes, work, lambda first: first.p99, FirstToken)
    if p50 is None or p99 is None or rust is None:
        return _nothing(WORDS[work], words, outcomes, work)
    return Figure(
        WORDS[work],
        words,
        f"p50 {p50:.0f} us, p99 {p99:.0f} us (p99 of {name}: {rust:.0f} us)",
        p50 <= FIRST_P50_US and p99 <= rust,
        "a host asked directly and through the relay in turn; the percentile through the relay less the direct one, "
        f"median of {rounds} rounds",
    )


def _idle(outcomes: Outcomes) -> Figure:
    target = f"<= {IDLE_KIB:.0f} KiB"
    found = _all(outcomes, OURS, "idle", Idle)
    if not found:
        return _nothing(WORDS["idle"], target, outcomes, "idle")
    kib = median(idle.stream_bytes for idle in found) / 1024
    how = (
        f"growth of the tree's proportional set size over {found[0].streams} streams that have had one event"
    )
    return Figure(WORDS["idle"], target, f"{kib:.1f} KiB", kib <= IDLE_KIB, how)


def _gone(outcomes: Outcomes) -> Figure:
    target = f"<= {GONE_MS:.0f} ms"
    found = _all(outcomes, OURS, "gone", Gone)
    if not found:
        return _nothing(WORDS["gone"], target, outcomes, "gone")
    how = f"from the client's close to the end of the host's connection, p99 of {LEAVERS}"
    return Figure(WORDS["gone"], target, str(found[0]), found[0].p99 <= GONE_MS, how)


def _pins(pins: Mapping[str, LookUp]) -> list[Figure]:
    if not pins:
        return []
    ours, plain = pins["router"], pins["dict"]
    met = ours.p99 <= LOOK_UP_P99_US and ours.session_bytes <= LOOK_UP_BYTES and ours.moved == 0
    return [
        Figure(
            WORDS["pins"],
            f"p99 <= {LOOK_UP_P99_US:.0f} us; <= {LOOK_UP_BYTES:.0f} B a session; adding a machine moves 0 pins",
            f"{ours}; {ours.moved} moved (a dict: {plain})",
            met,
            f"the router's `Homes.decide`, {LOOKED_UP:,} sessions in random order, one process, no network; it keeps "
            f"the {REMEMBERED:,} used last and asks the controller for the rest",
        )
    ]


def _nothing(question: str, target: str, outcomes: Outcomes, work: str) -> Figure:
    names = [name for name in (OURS, *RUST) if name not in outcomes or not outcomes[name].found.get(work)]
    return Figure(
        question, target, f"nothing to compare: {', '.join(names)} not measured", False, "see below"
    )


def _all(outcomes: Outcomes, name: str, work: str, kind: type[F]) -> list[F]:
    found = outcomes[name].found.get(work, []) if name in outcomes else []
    return [each for each in found if isinstance(each, kind)]


def _median(
    outcomes: Outcomes, name: str, work: str, value: Callable[[F], float], kind: type[F]
) -> float | None:
    found = _all(outcomes, name, work, kind)
    return median(map(value, found)) if found else None


def _better(
    outcomes: Outcomes, work: str, value: Callable[[F], float], kind: type[F]
) -> tuple[float | None, str]:
    """The lower of the Rust routers' medians, and whose it is."""
    medians = [(_median(outcomes, name, work, value, kind), name) for name in RUST]
    return min(((at, name) for at, name in medians if at is not None), default=(None, ""))


def _said(outcome: Outcome, work: str, words: Callable[[list[Found]], str]) -> str:
    if work in outcome.refused:
        return f"not measured: {_cell(outcome.refused[work])}"
    return words(outcome.found[work]) if outcome.found.get(work) else ""


def _costs(found: list[Found]) -> str:
    costs = [each for each in found if isinstance(each, Cost)]
    last = costs[-1]
    few = f" ({last.asked} streams)" if last.asked not in (STREAMS, CLIENTS) else ""
    merged = median(cost.merged for cost in costs)
    late = f" ({merged:.2f} events a read)" if merged > MERGED else ""
    return f"{median(cost.micros for cost in costs):.1f}{few}{late}"


def _firsts(found: list[Found]) -> str:
    first = [each for each in found if isinstance(each, FirstToken)]
    p50, p99, busy = (median(getattr(each, name) for each in first) for name in ("p50", "p99", "busy"))
    return f"{p50:.0f}, {p99:.0f} ({busy:.0%})"


def _idles(found: list[Found]) -> str:
    idle = [each for each in found if isinstance(each, Idle)]
    return f"{median(each.stream_bytes for each in idle) / 1024:.1f} ({idle[0].streams} streams)"


def _gones(found: list[Found]) -> str:
    gone = [each for each in found if isinstance(each, Gone)]
    return f"{gone[0].p50:.1f}, {gone[0].p99:.1f}"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("`", "'")

"""What a host's own account of itself (`GET /state`) says to Prometheus: for the host, and for a router of all hosts.

Asks nobody and keeps nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from prometheus_client import Metric

from serving.exposition import (
    Labels,
    add,
    add_histogram,
    build_info,
    counter,
    gauge,
    histogram,
    text,
    version,
)

State = Mapping[str, Any]
"""As the host tells it, its labels apart; an older host leaves out what it does not know."""

Wrong = Callable[[Labels, str, Exception], None]
"""Of which host, which family, and why."""

RESULTS = {"granted": "granted", "client_gone": "left", "queue_timeout": "expired"}
"""Of a lease; whatever else is said instead is a refusal."""


def own(labels: Labels, state: State) -> bytes:
    """The text of one host that tells of itself."""
    return text([build_info(version()), *families([(labels, state)])])


def families(
    hosts: Iterable[tuple[Labels, State]], wrong: Wrong = lambda _labels, _family, _error: None
) -> list[Metric]:
    """`hosts`: each with its model, machine and replica. A family of which one tells something else than this version
    expects is left out for that host, and `wrong` is called."""
    gaps = histogram(
        "homeport_time_between_tokens_seconds",
        "Between two events of one answer that carry text, as the client sees them.",
    )
    waits = histogram(
        "homeport_line_wait_seconds", "In the line, until the lease, its refusal, or the client left."
    )
    prompts = counter("homeport_prompt_tokens", "Tokens of prompts: found in the context, or evaluated.")
    generated = counter("homeport_generated_tokens", "Tokens made.")
    sessions = gauge("homeport_sessions", "Sessions pinned, resident, parked; turns waiting and running.")
    places = gauge("homeport_places", "Rooms for sessions.")
    leases = counter(
        "homeport_leases",
        "Leases granted, and turns that were refused one, ran out of time or were left by their client.",
    )
    parks = _transfers("park", "Contexts saved since their sessions gave way")
    resumes = _transfers("resume", "Saved contexts loaded again")
    parked = gauge("homeport_parked_bytes", "Saved contexts.")
    limits = gauge("homeport_parking_limit_bytes", "What saved contexts may take.")
    memory = gauge("homeport_memory_bytes", "What the replica's processes take now.")

    for labels, state in hosts:
        told = partial(_whole, labels, wrong)
        with told(sessions):
            for name, count in _sessions(state).items():
                add(sessions, {**labels, "state": name}, count)
        with told(places):
            add(places, labels, state.get("places", 0))
        with told(parked, limits):
            if (parking := state.get("parking")) is not None:
                for where in ("memory", "disk"):
                    add(parked, {**labels, "where": where}, parking[f"{where}_bytes"])
                    add(limits, {**labels, "where": where}, parking[f"{where}_limit_bytes"])
        with told(memory):
            if (taken := (state.get("memory") or {}).get("rss_bytes")) is not None:
                add(memory, labels, taken)
        if (counts := state.get("counts")) is None:
            continue
        with told(gaps):
            add_histogram(gaps, labels, counts["gaps"])
        with told(waits):
            add_histogram(waits, labels, counts["waits"])
        with told(prompts):
            for source in ("cached", "evaluated"):
                add(prompts, {**labels, "source": source}, counts["tokens"][source])
        with told(generated):
            add(generated, labels, counts["tokens"]["generated"])
        with told(leases):
            for how, count in counts["leases"].items():
                reason = "" if how == "granted" else how
                add(leases, {**labels, "result": RESULTS.get(how, "refused"), "reason": reason}, count)
        for each, kinds in (("parks", parks), ("resumes", resumes)):
            with told(*kinds):
                for part, family in zip(("count", "seconds", "bytes"), kinds, strict=True):
                    add(family, labels, counts[each][part])
    return [
        gaps,
        waits,
        prompts,
        generated,
        sessions,
        places,
        leases,
        *parks,
        *resumes,
        parked,
        limits,
        memory,
    ]


@contextmanager
def _whole(labels: Labels, wrong: Wrong, *families_: Metric) -> Iterator[None]:
    """All that is added within, or none of it."""
    before = [len(family.samples) for family in families_]
    try:
        yield
        for family, length in zip(families_, before, strict=True):
            for sample in family.samples[length:]:
                float(sample.value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        for family, length in zip(families_, before, strict=True):
            del family.samples[length:]
        wrong(labels, families_[0].name, error)


def _transfers(what: str, about: str) -> tuple[Metric, Metric, Metric]:
    return (
        counter(f"homeport_{what}s", f"{about}."),
        counter(f"homeport_{what}_seconds", f"{about}: how long that took."),
        counter(f"homeport_{what}_bytes", f"{about}: their size."),
    )


def _sessions(state: State) -> dict[str, int]:
    return {
        "pinned": state.get("pins", 0),
        "resident": len(state.get("residents", ())),
        "parked": (state.get("parking") or {}).get("sessions", 0),
        "waiting": state.get("waiting", 0),
        "running": state.get("running", 0),
    }

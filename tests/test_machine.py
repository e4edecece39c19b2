"""Machines as values: legal moves, the default reserve, JSON there and back."""

import itertools
from typing import Any

import pytest

from cluster.machine import (
    GIB,
    MOVES,
    STATES,
    CpuCore,
    Gpu,
    Hardware,
    Machine,
    Reserve,
    State,
    default_reserve,
    legal,
)

LEGAL: set[tuple[State, State]] = {
    ("joining", "ready"),
    ("joining", "lost"),
    ("ready", "cordoned"),
    ("ready", "draining"),
    ("ready", "lost"),
    ("cordoned", "ready"),
    ("cordoned", "draining"),
    ("cordoned", "lost"),
    ("draining", "ready"),
    ("draining", "cordoned"),
    ("draining", "lost"),
    ("lost", "joining"),
}


def hardware(cores: int, memory_bytes: int) -> Hardware:
    return Hardware(tuple(CpuCore(n, (n,), "unknown", 0) for n in range(cores)), memory_bytes, ())


@pytest.mark.parametrize(("before", "after"), list(itertools.product(STATES, STATES)))
def test_only_these_moves_are_legal(before: State, after: State) -> None:
    assert legal(before, after) == ((before, after) in LEGAL)


def test_every_state_can_be_left_and_reached() -> None:
    assert set(MOVES) == set(STATES)
    assert set().union(*MOVES.values()) == set(STATES)
    assert all(MOVES.values())


@pytest.mark.parametrize(
    ("cores", "memory", "reserved"),
    [
        (2, 24 * GIB, Reserve(0, GIB)),
        (3, 24 * GIB, Reserve(0, GIB)),
        (4, 24 * GIB, Reserve(1, GIB)),
        (64, 4 * GIB, Reserve(1, 4 * GIB // 10)),
    ],
)
def test_one_core_is_reserved_from_four_on_and_at_most_a_tenth_of_memory(
    cores: int, memory: int, reserved: Reserve
) -> None:
    assert default_reserve(hardware(cores, memory)) == reserved


def test_a_machine_survives_json() -> None:
    cores = (CpuCore(0, (0, 8), "performance", 0), CpuCore(1, (1, 9), "efficiency", 1))
    measured = Hardware(cores, 8 * GIB, (Gpu("GPU-1", "A card", 24 * GIB),), simulated=True)
    machine = Machine("id", "den", "home", "192.168.1.10", measured, Reserve(1, GIB), "cordoned")
    assert Machine.from_json(machine.to_json()) == machine


@pytest.mark.parametrize(
    ("cores", "complaint"),
    [
        ([{"id": 0, "cpus": []}], "no cpus"),
        ([{"id": 0, "cpus": [0]}, {"id": 1, "cpus": [0, 1]}], "shares a cpu"),
        ([{"id": 0, "cpus": [0]}, {"id": 0, "cpus": [1]}], "same id"),
        ([{"id": 0, "cpus": [0], "kind": "quick"}], "quick"),
    ],
)
def test_hardware_that_cannot_be_is_refused(cores: list[dict[str, Any]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Hardware.from_json({"cores": cores, "memory_bytes": GIB})


def test_a_machine_in_an_unknown_state_is_refused() -> None:
    machine = Machine("id", "den", "home", "::1", hardware(2, GIB), Reserve(0, 0), "ready")
    with pytest.raises(ValueError, match="asleep"):
        Machine.from_json({**machine.to_json(), "state": "asleep"})

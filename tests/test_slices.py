"""Slices: never two on one core, never the reserve, and a refusal that says why."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.machine import GIB, CoreKind, CpuCore, Gpu, Hardware, Reserve
from cluster.slices import Need, Refusal, Slice, Take, bytes_text, carve, still_fits, usable_cores

NOTHING = Reserve(0, 0)


def alike(count: int) -> list[CoreKind]:
    return ["unknown"] * count


def machine(
    *kinds: CoreKind, numa: tuple[int, ...] = (), smt: int = 1, memory: int = 16 * GIB, gpus: int = 0
) -> Hardware:
    """A core for each kind; sibling k of core n is cpu n + k * cores, as Linux numbers them."""
    cores = tuple(
        CpuCore(n, tuple(n + k * len(kinds) for k in range(smt)), kind, numa[n] if numa else 0)
        for n, kind in enumerate(kinds)
    )
    return Hardware(cores, memory, tuple(Gpu(f"GPU-{n}", "A card", 8 * GIB) for n in range(gpus)))


def carved(result: Slice | Refusal) -> Slice:
    assert isinstance(result, Slice), result
    return result


def refused(result: Slice | Refusal) -> tuple[str, ...]:
    assert isinstance(result, Refusal), result
    return result.reasons


@st.composite
def machines(draw: st.DrawFn) -> Hardware:
    kinds: list[CoreKind] = draw(
        st.lists(st.sampled_from(["performance", "efficiency", "unknown"]), min_size=1, max_size=12)
    )
    nodes = draw(st.lists(st.integers(0, 2), min_size=len(kinds), max_size=len(kinds)))
    return machine(
        *kinds,
        numa=tuple(nodes),
        smt=draw(st.integers(1, 2)),
        memory=draw(st.integers(0, 32)) * GIB,
        gpus=draw(st.integers(0, 3)),
    )


reserves = st.builds(Reserve, st.integers(0, 4), st.integers(0, 4).map(lambda n: n * GIB))
needs = st.builds(Need, st.integers(1, 4), st.integers(1, 8).map(lambda n: n * GIB), st.integers(0, 2))
takes: st.SearchStrategy[Take] = st.sampled_from(["needs", "needs", "needs", "rest"])
orders = st.lists(st.tuples(needs, takes, st.integers(0, 6)), max_size=12)


@given(machines(), reserves, orders)
def test_slices_never_overlap_and_the_reserve_is_never_given_away(
    hardware: Hardware, reserve: Reserve, orders: list[tuple[Need, Take, int]]
) -> None:
    """Slices come and go in any order (the third of an order is whose turn it is to go); refusals are true."""
    held: list[Slice] = []
    for need, take, gives_back in orders:
        if gives_back < len(held):
            held.pop(gives_back)
        free_cores = len(usable_cores(hardware, reserve)) - sum(len(other.cores) for other in held)
        result = carve(hardware, reserve, held, need, take)
        assert result == carve(hardware, reserve, held, need, take)
        if isinstance(result, Refusal):
            enough_memory = need.memory_bytes <= (
                hardware.memory_bytes - reserve.memory_bytes - sum(other.memory_bytes for other in held)
            )
            free_gpus = len(hardware.gpus) - sum(len(other.gpus) for other in held)
            short = (free_cores < need.cores, not enough_memory, free_gpus < need.gpus)
            assert len(result.reasons) == sum(short) > 0
        else:
            assert still_fits(result, hardware, reserve, need)
            if take == "needs":
                assert (len(result.cores), len(result.gpus)) == (need.cores, need.gpus)
            held.append(result)
        check(hardware, reserve, held)


def check(hardware: Hardware, reserve: Reserve, held: list[Slice]) -> None:
    cores = [core for other in held for core in other.cores]
    cpus = [cpu for other in held for cpu in other.cpus]
    gpus = [gpu for other in held for gpu in other.gpus]
    assert len(set(cores)) == len(cores)
    assert len(set(cpus)) == len(cpus)
    assert len(set(gpus)) == len(gpus)
    by_id = {core.id: core for core in hardware.cores}
    assert sorted(cpus) == sorted(cpu for core in cores for cpu in by_id[core].cpus)
    if held:
        assert len(hardware.cores) - len(cores) >= reserve.cores
        assert sum(other.memory_bytes for other in held) + reserve.memory_bytes <= hardware.memory_bytes
    # Performance cores are reserved only once no efficiency core is left to reserve.
    usable = usable_cores(hardware, reserve)
    kept = [core for core in hardware.cores if core not in usable]
    if any(core.kind != "efficiency" for core in kept):
        assert all(core.kind != "efficiency" for core in usable)


def test_a_core_is_given_with_all_its_siblings() -> None:
    part = carved(carve(machine("unknown", "unknown", smt=2), NOTHING, [], Need(1, GIB)))
    assert (part.cores, part.cpus) == ((0,), (0, 2))


def test_the_reserve_is_the_last_core() -> None:
    rest = carved(carve(machine(*alike(4)), Reserve(1, GIB), [], Need(1, GIB), "rest"))
    assert rest == Slice((0, 1, 2), (0, 1, 2), (), 15 * GIB)


def test_the_reserve_is_an_efficiency_core_where_there_is_one() -> None:
    hybrid = machine("efficiency", "performance", "performance")
    rest = carved(carve(hybrid, Reserve(1, 0), [], Need(1, GIB), "rest"))
    assert rest.cores == (1, 2)


def test_performance_cores_go_first() -> None:
    hybrid = machine("efficiency", "efficiency", "performance", "performance")
    assert carved(carve(hybrid, NOTHING, [], Need(2, GIB))).cores == (2, 3)


def test_cores_come_from_one_numa_node_when_one_has_enough() -> None:
    twofold = machine(*alike(6), numa=(0, 0, 0, 1, 1, 1))
    first = carved(carve(twofold, NOTHING, [], Need(2, GIB)))
    second = carved(carve(twofold, NOTHING, [first], Need(2, GIB)))
    third = carved(carve(twofold, NOTHING, [first, second], Need(2, GIB)))
    assert (first.cores, second.cores) == ((0, 1), (3, 4))
    assert third.cores == (2, 5), "two nodes when none suffices"


def test_a_small_slice_goes_where_the_larger_gap_stays() -> None:
    uneven = machine(*alike(5), numa=(0, 0, 0, 1, 1))
    assert carved(carve(uneven, NOTHING, [], Need(1, GIB))).cores == (3,)


def test_a_refusal_names_everything_that_is_short() -> None:
    small = machine("unknown", "unknown", "unknown", memory=4 * GIB, gpus=1)
    taken = [Slice((0,), (0,), ("GPU-0",), GIB)]
    assert refused(carve(small, Reserve(1, GIB), taken, Need(4, 3 * GIB, 2))) == (
        "needs 4 cores, 1 free (1 reserved)",
        "needs 3 GiB of memory, 2 GiB free (1 GiB reserved)",
        "needs 2 GPUs, 0 free",
    )


def test_a_reserve_larger_than_the_machine_leaves_nothing() -> None:
    reasons = refused(carve(machine("unknown", memory=GIB), Reserve(8, 2 * GIB), [], Need(1, GIB)))
    assert reasons == (
        "needs 1 core, 0 free (1 reserved)",
        "needs 1 GiB of memory, 0 bytes free (2 GiB reserved)",
    )


def test_a_slice_no_longer_fits_when_its_hardware_changed() -> None:
    hardware = machine(*alike(4), smt=2, gpus=1)
    need = Need(2, GIB, 1)
    part = carved(carve(hardware, NOTHING, [], need))
    assert still_fits(part, hardware, NOTHING, need)
    assert not still_fits(part, hardware, Reserve(3, 0), need), "a core of it is now reserved"
    assert not still_fits(part, hardware, Reserve(0, 16 * GIB), need), "its memory is now reserved"
    assert not still_fits(part, replace(hardware, cores=hardware.cores[1:]), NOTHING, need)
    assert not still_fits(part, replace(hardware, gpus=()), NOTHING, need)
    without_smt = tuple(replace(core, cpus=core.cpus[:1]) for core in hardware.cores)
    assert not still_fits(part, replace(hardware, cores=without_smt), NOTHING, need)
    assert not still_fits(part, hardware, NOTHING, replace(need, cores=3))
    assert not still_fits(part, hardware, NOTHING, replace(need, memory_bytes=2 * GIB))
    assert not still_fits(part, hardware, NOTHING, replace(need, gpus=2))


@given(machines(), needs)
def test_a_slice_survives_json(hardware: Hardware, need: Need) -> None:
    result = carve(hardware, NOTHING, [], need)
    if isinstance(result, Slice):
        assert Slice.from_json(result.to_json()) == result
    assert Need.from_json(need.to_json()) == need


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (12, "12 bytes"), (GIB, "1 GiB"), (3 * GIB // 2, "1.5 GiB"), (300 * 1024**2, "300 MiB")],
)
def test_bytes_are_told_in_the_unit_that_suits(count: int, text: str) -> None:
    assert bytes_text(count) == text

"""Slices: never two on one core, never the reserve, and a refusal that says why."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gpu_parts import PARTS, GpuHold
from cluster.machine import GIB, CoreKind, CpuCore, Gpu, GpuKind, GpuState, Hardware, Reserve
from cluster.slices import (
    Need,
    Refusal,
    Slice,
    Take,
    bytes_text,
    carve,
    gpus_exactly,
    overlap,
    still_fits,
    usable_cores,
)

NOTHING = Reserve(0, 0)
ONLY: GpuKind = "inventory only"
STATES: list[GpuState] = ["ok", "ok", "ok", "lost", "hung"]
KINDS: list[GpuKind] = ["card", "card", "card", "mig", ONLY]


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


def gpu(name: str, numa: int | None = None, kind: GpuKind = "card", state: GpuState = "ok") -> Gpu:
    return Gpu(name, "A card", 8 * GIB, numa, kind, state)


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
    cards = draw(
        st.lists(
            st.tuples(
                st.sampled_from([None, 0, 1, 2]),
                st.sampled_from(KINDS),
                st.sampled_from(STATES),
            ),
            max_size=4,
        )
    )
    made = machine(
        *kinds, numa=tuple(nodes), smt=draw(st.integers(1, 2)), memory=draw(st.integers(0, 32)) * GIB
    )
    return replace(made, gpus=tuple(gpu(f"GPU-{n}", *card) for n, card in enumerate(cards)))


reserves = st.builds(Reserve, st.integers(0, 4), st.integers(0, 4).map(lambda n: n * GIB))
needs = st.builds(
    Need,
    st.integers(1, 4),
    st.integers(1, 8).map(lambda n: n * GIB),
    st.sampled_from([0, 0, 1, 2, 0.5, 0.25, 0.05, 0.95]),
)
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
            short = (free_cores < need.cores, not enough_memory, not enough_gpus(hardware, held, need))
            assert len(result.reasons) == sum(short) > 0
        else:
            assert still_fits(result, hardware, reserve, need)
            if take == "needs":
                assert len(result.cores) == need.cores
                assert gpus_exactly(result, need)
            assert not any(overlap(result, other) for other in held)
            held.append(result)
        check(hardware, reserve, held)


def enough_gpus(hardware: Hardware, held: list[Slice], need: Need) -> bool:
    """Worked out apart from how it is carved."""
    free = {each.uuid: set(range(PARTS)) for each in hardware.gpus if each.usable}
    for hold in (hold for other in held for hold in other.gpu_holds):
        free[hold.uuid] -= set(hold.parts or range(PARTS))
    if need.gpu_parts:
        return any(len(parts) >= need.gpu_parts for parts in free.values())
    whole = [each for each in hardware.gpus if len(free.get(each.uuid, ())) == PARTS]
    cards = sum(each.kind == "card" for each in whole)
    return need.gpus <= (max(cards, 1) if whole else 0)


def check(hardware: Hardware, reserve: Reserve, held: list[Slice]) -> None:
    cores = [core for other in held for core in other.cores]
    cpus = [cpu for other in held for cpu in other.cpus]
    holds = [hold for other in held for hold in other.gpu_holds]
    parts = [(hold.uuid, part) for hold in holds for part in hold.parts or range(PARTS)]
    usable_gpus = {each.uuid: each for each in hardware.gpus if each.usable}
    assert len(set(cores)) == len(cores)
    assert len(set(cpus)) == len(cpus)
    assert len(set(parts)) == len(parts)
    assert all(tuple(hold.uuid for hold in other.gpu_holds) == other.gpus for other in held)
    for uuid in {hold.uuid for hold in holds}:
        told = sum(hold.memory_bytes for hold in holds if hold.uuid == uuid)
        assert told <= usable_gpus[uuid].memory_bytes
    for other in held:
        kinds = [usable_gpus[uuid].kind for uuid in other.gpus]
        assert "mig" not in kinds or len(kinds) == 1, "CUDA sees one instance only"
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


NEAR = replace(
    machine(*alike(6), numa=(0, 0, 0, 1, 1, 1)), gpus=(gpu("GPU-a", 0), gpu("GPU-b", 1), gpu("GPU-c", 1))
)


def test_cores_are_near_the_gpu() -> None:
    first = carved(carve(NEAR, NOTHING, [], Need(2, GIB, 1)))
    second = carved(carve(NEAR, NOTHING, [first], Need(2, GIB, 1)))
    assert (first.gpus, first.cores) == (("GPU-a",), (0, 1))
    assert (second.gpus, second.cores) == (("GPU-b",), (3, 4))


def test_a_gpu_whose_node_has_no_cores_left_comes_after_one_that_has() -> None:
    elsewhere = Slice((0, 1, 2), (0, 1, 2), (), GIB)
    assert carved(carve(NEAR, NOTHING, [elsewhere], Need(2, GIB, 1))).gpus == ("GPU-b",)


def test_two_gpus_are_of_one_node_where_one_has_two() -> None:
    part = carved(carve(NEAR, NOTHING, [], Need(2, GIB, 2)))
    assert (part.gpus, part.cores) == (("GPU-b", "GPU-c"), (3, 4))


def test_near_cores_come_first_where_they_do_not_suffice() -> None:
    part = carved(carve(replace(NEAR, gpus=NEAR.gpus[1:2]), NOTHING, [], Need(4, GIB, 1)))
    assert part.cores == (0, 3, 4, 5)


def test_a_gpu_is_shared_only_where_that_is_asked_for_and_says_how_much_of_it() -> None:
    two = machine(*alike(4), gpus=2)
    half = carved(carve(two, NOTHING, [], Need(1, GIB, 0.5)))
    assert half.gpu_holds == (GpuHold("GPU-0", 4 * GIB, tuple(range(10))),)
    assert half.shares_gpu
    quarter = carved(carve(two, NOTHING, [half], Need(1, GIB, 0.25)))
    assert quarter.gpu_holds == (GpuHold("GPU-0", 2 * GIB, tuple(range(10, 15))),), "the one that is shared"
    whole = carved(carve(two, NOTHING, [half, quarter], Need(1, GIB, 1)))
    assert whole.gpu_holds == (GpuHold("GPU-1", 8 * GIB),)
    assert not whole.shares_gpu
    assert refused(carve(two, NOTHING, [half, quarter, whole], Need(1, GIB, 1))) == ("needs 1 GPU, 0 free",)
    assert refused(carve(two, NOTHING, [half, quarter, whole], Need(1, GIB, 0.5))) == (
        "needs 0.5 of a GPU, 0.25 free",
    )


def test_the_rest_of_a_machine_is_no_more_of_a_shared_gpu_than_was_asked_for() -> None:
    rest = carved(carve(machine(*alike(4), gpus=2), NOTHING, [], Need(1, GIB, 0.5), "rest"))
    assert (rest.cores, rest.gpu_holds) == ((0, 1, 2, 3), (GpuHold("GPU-0", 4 * GIB, tuple(range(10))),))


def test_the_rest_has_whole_gpus_only() -> None:
    two = machine(*alike(4), gpus=2)
    half = carved(carve(two, NOTHING, [], Need(1, GIB, 0.5)))
    assert carved(carve(two, NOTHING, [half], Need(1, GIB, 0), "rest")).gpus == ("GPU-1",)


CUT = replace(machine(*alike(4)), gpus=(gpu("MIG-a", kind="mig"), gpu("MIG-b", kind="mig")))


def test_an_instance_is_a_gpu_of_its_own() -> None:
    first = carved(carve(CUT, NOTHING, [], Need(1, GIB, 1)))
    second = carved(carve(CUT, NOTHING, [first], Need(1, GIB, 1)))
    assert (first.gpus, second.gpus) == (("MIG-a",), ("MIG-b",))


def test_nobody_gets_two_instances_of_which_it_would_see_one() -> None:
    assert refused(carve(CUT, NOTHING, [], Need(1, GIB, 2))) == (
        "needs 2 GPUs, 0 free (2 instances of cut cards, of which a process can use one)",
    )
    assert carved(carve(CUT, NOTHING, [], Need(1, GIB, 0), "rest")).gpus == ("MIG-a",)


def test_a_lost_gpu_is_never_given_and_a_refusal_says_so() -> None:
    ill = replace(
        machine(*alike(4)), gpus=(gpu("GPU-a", state="lost"), gpu("GPU-b"), gpu("AMD-c", kind=ONLY))
    )
    part = carved(carve(ill, NOTHING, [], Need(1, GIB, 1)))
    assert part.gpus == ("GPU-b",)
    assert refused(carve(ill, NOTHING, [part], Need(1, GIB, 1))) == ("needs 1 GPU, 0 free (1 lost or hung)",)
    assert not still_fits(part, replace(ill, gpus=ill.gpus[:1]), NOTHING, Need(1, GIB, 1))


def test_a_slice_of_an_earlier_version_has_its_gpus_whole() -> None:
    old = Slice.from_json({"cores": [0], "cpus": [0], "gpus": ["GPU-0"], "memory_bytes": GIB})
    two = machine(*alike(4), gpus=2)
    assert not old.shares_gpu
    assert still_fits(old, two, NOTHING, Need(1, GIB, 1))
    assert not still_fits(old, two, NOTHING, Need(1, GIB, 0.5))
    assert carved(carve(two, NOTHING, [old], Need(1, GIB, 0.5))).gpus == ("GPU-1",)
    assert overlap(old, replace(old, cores=(1,), gpu_holds=(GpuHold("GPU-0", GIB, (3,)),)))


def test_parts_of_one_gpu_do_not_overlap() -> None:
    one = Slice((0,), (0,), ("GPU-0",), GIB, (GpuHold("GPU-0", GIB, (0, 1)),))
    beside = Slice((1,), (1,), ("GPU-0",), GIB, (GpuHold("GPU-0", GIB, (2, 3)),))
    assert not overlap(one, beside)
    assert overlap(one, replace(beside, gpu_holds=(GpuHold("GPU-0", GIB, (1, 2)),)))


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

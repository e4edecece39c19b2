"""Which slot a model gets, and that it keeps it."""

from dataclasses import replace

from cluster.machine import CpuCore, Hardware, Reserve
from cluster.slices import Need
from serving.model import ModelSpec
from serving.slots import Slot, Wish, assign

GIB = 1024**3
FOUR = Hardware(tuple(CpuCore(n, (n,), "unknown", 0) for n in range(4)), 16 * GIB, ())
NONE = Reserve(0, 0)
MODEL = ModelSpec(
    name="m",
    engine="llama.cpp",
    source="bundled",
    machines="all",
    replicas=1,
    need=Need(1, GIB, 0),
    take="needs",
    context=8192,
    sessions=1,
    hold_s=10.0,
    queue_s=60.0,
    when_lost="wait",
    options=(),
)


def two() -> list[Slot]:
    slots, refused = assign([], [Wish(MODEL, "d", 2)], FOUR, NONE, range(8100, 8200), {})
    assert not refused
    return slots


def test_slots_are_numbered_and_disjoint_and_have_ports() -> None:
    assert [(slot.number, slot.slice.cores, slot.port) for slot in two()] == [
        (0, (0,), 8100),
        (1, (1,), 8101),
    ]


def test_a_slot_keeps_number_slice_and_port() -> None:
    slots, _ = assign(two(), [Wish(MODEL, "d", 3)], FOUR, NONE, [8150], {})
    assert slots[:2] == two()
    assert (slots[2].number, slots[2].port) == (2, 8150)


def test_a_reserve_that_grew_leaves_as_many_as_memory_holds() -> None:
    slots, refused = assign(two(), [Wish(MODEL, "d", 2)], FOUR, Reserve(0, 15 * GIB), [], {})
    assert [slot.number for slot in slots] == [0]
    assert "memory" in str(refused["m"])


def test_new_settings_reach_a_kept_slot() -> None:
    changed = replace(MODEL, hold_s=1.0)
    slots, _ = assign(two(), [Wish(changed, "e", 2)], FOUR, NONE, [], {})
    assert [(s.number, s.model.hold_s, s.digest) for s in slots] == [(0, 1.0, "e"), (1, 1.0, "e")]


def test_what_is_no_longer_wanted_is_let_go_from_the_highest_number() -> None:
    slots, _ = assign(two(), [Wish(MODEL, "d", 1)], FOUR, NONE, [], {})
    assert [slot.number for slot in slots] == [0]


def test_another_model_never_gets_a_slice_that_is_taken() -> None:
    other = replace(MODEL, name="n", need=Need(2, GIB, 0))
    slots, refused = assign(
        two(), [Wish(MODEL, "d", 2), Wish(other, "x", 1)], FOUR, NONE, range(8102, 8200), {}
    )
    assert not refused
    cores = [core for slot in slots for core in slot.slice.cores]
    assert len(cores) == len(set(cores)) == 4


def test_a_refusal_names_its_reason() -> None:
    big = replace(MODEL, need=Need(9, GIB, 0))
    slots, refused = assign([], [Wish(big, "d", 1)], FOUR, NONE, [8100], {})
    assert slots == []
    assert "needs 9 cores, 4 free" in str(refused["m"])


def test_no_port_left_is_a_refusal_too() -> None:
    slots, refused = assign([], [Wish(MODEL, "d", 2)], FOUR, NONE, [8100], {})
    assert len(slots) == 1
    assert "network.ports" in str(refused["m"])


def test_a_number_stays_its_models_for_ever() -> None:
    other = replace(MODEL, name="n")
    wishes = [Wish(other, "x", 1), Wish(MODEL, "d", 1)]
    slots, _ = assign([], wishes, FOUR, NONE, range(8100, 8200), {0: "m", 1: "n"})
    assert {slot.number: slot.model.name for slot in slots} == {0: "m", 1: "n"}
    third, _ = assign([], [Wish(replace(MODEL, name="o"), "o", 1)], FOUR, NONE, [8100], {0: "m", 1: "n"})
    assert [slot.number for slot in third] == [2]


def test_what_fits_when_carved_anew_is_not_refused_for_what_runs() -> None:
    """a shrinks and b grows: were b carved beside the old a, it would be left too little."""
    a = replace(MODEL, name="a", need=Need(3, GIB, 0))
    b = replace(MODEL, name="b", need=Need(1, GIB, 0))
    before, refused = assign([], [Wish(a, "a", 1), Wish(b, "b", 1)], FOUR, NONE, range(8100, 8200), {})
    assert not refused
    a, b = replace(a, need=Need(1, GIB, 0)), replace(b, need=Need(3, GIB, 0))
    numbers = {slot.number: slot.model.name for slot in before}
    after, refused = assign(before, [Wish(a, "a", 1), Wish(b, "b", 1)], FOUR, NONE, [8102], numbers)
    assert not refused
    assert [(s.number, s.port) for s in after] == [(s.number, s.port) for s in before]


def test_a_model_that_took_the_rest_makes_room_for_one_above_it() -> None:
    rest, above = replace(MODEL, name="rest", take="rest"), replace(MODEL, name="above")
    before, _ = assign([], [Wish(rest, "r", 1)], FOUR, NONE, [8100], {})
    after, refused = assign(
        before, [Wish(above, "a", 1), Wish(rest, "r", 1)], FOUR, NONE, [8101], {0: "rest"}
    )
    assert not refused
    assert {slot.model.name: len(slot.slice.cores) for slot in after} == {"above": 1, "rest": 3}


def test_a_changed_need_is_carved_anew() -> None:
    larger = replace(MODEL, need=Need(2, GIB, 0))
    slots, _ = assign(two(), [Wish(larger, "d", 1)], FOUR, NONE, [8105], {})
    assert [(slot.number, slot.slice.cores) for slot in slots] == [(0, (0, 1))]


def test_a_slot_survives_json() -> None:
    slot = two()[0]
    assert Slot.from_json(slot.to_json()) == slot

"""Slices and slots of a machine whose config and hardware change at will: a Hypothesis state machine.

What is enforced of it by the kernel is read from /proc in tests/e2e/test_homes.py.
"""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.machine import Hardware, Reserve
from cluster.slices import Refusal, still_fits, usable_cores
from serving.slots import Slot, Wish, assign
from tests.test_slices import check, machines, needs, reserves, takes
from tests.test_slots import MODEL

MODELS = ("north", "south", "east")
PORTS = tuple(range(8100, 8108))

wishes = st.builds(
    lambda names, counts, need, take: [
        Wish(replace(MODEL, name=name, need=need, take=take), f"digest of {name}", count)
        for name, count in zip(names, counts, strict=False)
    ],
    st.lists(st.sampled_from(MODELS), unique=True, max_size=3),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    needs,
    takes,
)


class Machine(RuleBasedStateMachine):
    """One keeper's machine: slots as they are written down, and every number that was ever given."""

    @initialize(hardware=machines(), reserve=reserves)
    def begin(self, hardware: Hardware, reserve: Reserve) -> None:
        self.hardware, self.reserve = hardware, reserve
        self.wishes: list[Wish] = []
        self.slots: list[Slot] = []
        self.refused: dict[str, Refusal] = {}
        self.numbers: dict[int, str] = {}

    @rule(wishes=wishes)
    def configure(self, wishes: list[Wish]) -> None:
        self.wishes = wishes
        self.carry_out()

    @rule(hardware=machines())
    def exchange_the_hardware(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.carry_out()

    @rule(which=st.integers(0, 11))
    def lose_a_core(self, which: int) -> None:
        left = tuple(core for core in self.hardware.cores if core.id != which)
        if left:
            self.hardware = replace(self.hardware, cores=left)
            self.carry_out()

    @rule(which=st.integers(0, 3))
    def lose_a_gpu(self, which: int) -> None:
        gpus = tuple(
            replace(gpu, state="lost", reason="GPU is lost") if gpu.uuid == f"GPU-{which}" else gpu
            for gpu in self.hardware.gpus
        )
        self.hardware = replace(self.hardware, gpus=gpus)
        self.carry_out()

    @rule(reserve=reserves)
    def reserve_other(self, reserve: Reserve) -> None:
        self.reserve = reserve
        self.carry_out()

    @rule()
    def ask_again(self) -> None:
        """A keeper that starts anew with the same wishes changes nothing."""
        before = self.slots
        self.carry_out()
        assert self.slots == before

    def carry_out(self) -> None:
        self.slots, self.refused = assign(
            self.slots, self.wishes, self.hardware, self.reserve, PORTS, self.numbers
        )
        for slot in self.slots:
            assert self.numbers.setdefault(slot.number, slot.model.name) == slot.model.name

    @invariant()
    def slices_are_disjoint_and_outside_the_reserve(self) -> None:
        check(self.hardware, self.reserve, [slot.slice for slot in self.slots])
        usable = {core.id for core in usable_cores(self.hardware, self.reserve)}
        for slot in self.slots:
            assert usable >= set(slot.slice.cores)
            assert still_fits(slot.slice, self.hardware, self.reserve, slot.model.need)
            assert slot.slice.shares_gpu == (0 < slot.model.need.gpus < 1), (
                "shared only where the config says so"
            )

    @invariant()
    def numbers_and_ports_are_one_slots_each(self) -> None:
        for held in ([slot.number for slot in self.slots], [slot.port for slot in self.slots]):
            assert len(set(held)) == len(held)

    @invariant()
    def who_is_wanted_is_there_or_refused_with_a_reason(self) -> None:
        for wish in self.wishes:
            there = sum(slot.model.name == wish.model.name for slot in self.slots)
            assert there <= wish.count
            if there < wish.count:
                assert self.refused[wish.model.name].reasons
        assert {slot.model.name for slot in self.slots} <= {wish.model.name for wish in self.wishes}


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

"""What a router remembers: however little is at hand, the same as a plain mapping that forgets the oldest."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from router.decision import Home
from router.home_memory import HomeMemory, Remembered
from serving.pins import Pin

SIZE = 4
DIGESTS = [f"{number:064x}" for number in range(7)]
MODELS = ["tiny", "large"]
KEYS = st.tuples(st.sampled_from(DIGESTS), st.sampled_from(MODELS))


def home(key: tuple[str, str], generation: int = 1, fresh: bool = False) -> Home:
    return Home(Pin(*key, f"den/{generation % 3}", generation, 1_790_000_000.0 + generation / 7), fresh)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), KEYS, st.integers(1, 2**31), st.booleans()),
            st.tuples(st.just("get"), KEYS),
            st.tuples(st.just("unsure"), KEYS),
            st.tuples(st.just("drop"), KEYS),
        ),
        max_size=60,
    ),
    st.integers(1, SIZE + 1),
)
def test_it_is_a_mapping_that_forgets_what_was_used_least_of_late(steps: list[tuple], at_hand: int) -> None:  # type: ignore[type-arg]
    memory = HomeMemory(SIZE, at_hand)
    plain: OrderedDict[tuple[str, str], tuple[Home, bool]] = OrderedDict()
    for step, key, *more in steps:
        if step == "put":
            memory.put(home(key, *more), 1.0)
            plain.pop(key, None)
            plain[key] = home(key, *more), False
            while len(plain) > SIZE:
                plain.popitem(last=False)
        elif step == "drop":
            memory.drop(*key)
            plain.pop(key, None)
        else:
            found = memory.get(*key)
            known = plain.get(key)
            assert (found and (found.home, found.unsure)) == known
            if found is not None and known is not None:
                found.unsure = found.unsure or step == "unsure"
                plain[key] = known[0], found.unsure
                plain.move_to_end(key)
        assert len(memory) == len(plain)


def test_who_is_asked_again_is_not_remembered_for_long() -> None:
    """A home that was packed meanwhile is one that nobody has asked about."""
    memory = HomeMemory(SIZE, 1)
    for digest in DIGESTS[:2]:
        memory.put(home((digest, "tiny")), 5.0)
    at_hand = memory.get(DIGESTS[1], "tiny")
    assert at_hand == Remembered(home((DIGESTS[1], "tiny")), 5.0)
    packed = memory.get(DIGESTS[0], "tiny")
    assert packed is not None
    assert packed.asked_at < 0.0


def test_a_turn_without_a_session_has_no_home() -> None:
    assert HomeMemory(SIZE).get(None, "tiny") is None


def test_what_is_asked_for_in_vain_leaves_nothing_behind() -> None:
    memory = HomeMemory(SIZE, 1)
    for digest in DIGESTS[:2]:
        memory.put(home((digest, "tiny")), 5.0)
    names = list(memory._names)
    for number in range(10):
        assert memory.get(DIGESTS[0], f"model-{number}") is None
        memory.drop(DIGESTS[0], f"model-{number}")
    assert memory._names == names

"""Who is foreign on a GPU, and which GPUs are ill."""

from dataclasses import replace

from cluster.gpu_foreign import MOVED_BYTES, TOLD_MAX, UNLISTED, OnGpu, ill, news, on_gpus
from cluster.machine import Gpu

GIB = 2**30
GAME = OnGpu("GPU-a", 11, "game", 2 * GIB, (11, 10))
HOST = OnGpu("GPU-a", 21, "python", 4 * GIB, (20, 20))
CARD = Gpu("GPU-a", "A card", 8 * GIB)


def test_what_a_host_started_is_not_foreign_to_anybody_on_its_gpu() -> None:
    slots = {0: ("GPU-a",), 1: ("GPU-a",)}
    assert on_gpus([HOST, GAME], slots, [20]) == {0: (GAME,), 1: (GAME,)}
    assert on_gpus([HOST], slots, []) == {0: (HOST,), 1: (HOST,)}


def test_only_who_is_on_the_slots_own_gpus_is_told_the_largest_first_and_not_all() -> None:
    many = [replace(GAME, pid=100 + n, memory_bytes=n) for n in range(TOLD_MAX + 2)]
    unknown = replace(GAME, pid=1, memory_bytes=None)
    found = on_gpus([unknown, *many], {0: ("GPU-b",), 1: ("GPU-b", "GPU-a")}, [])
    assert found[0] == ()
    assert [each.memory_bytes for each in found[1]] == list(range(TOLD_MAX + 1, 1, -1))


def test_a_use_that_moves_little_is_no_news() -> None:
    before = {0: (GAME,)}
    near = {0: (replace(GAME, memory_bytes=2 * GIB + MOVED_BYTES // 2),)}
    far = {0: (replace(GAME, memory_bytes=2 * GIB + 2 * MOVED_BYTES),)}
    assert news(before, near) == before
    assert news(before, far) == far
    assert news(before, {0: ()}) == {0: ()}
    assert news({}, near) == near
    unknown = {0: (replace(GAME, memory_bytes=None),)}
    assert news(before, unknown) == unknown


def test_a_gpu_of_a_slice_is_ill_where_the_driver_says_so_or_does_not_know_it_any_more() -> None:
    assert ill(["GPU-a"], [CARD], "") == {}
    lost = replace(CARD, state="lost", reason="GPU is lost")
    assert ill(["GPU-a"], [lost], "") == {"GPU-a": {"state": "lost", "reason": "GPU is lost"}}
    assert ill(["GPU-a"], [], "") == {"GPU-a": {"state": "lost", "reason": UNLISTED}}
    assert ill(["GPU-a"], [], "no answer") == {"GPU-a": {"state": "hung", "reason": "no answer"}}
    assert ill([], [lost], "no answer") == {}

"""Whose CPUs are whose: the sums by hand, and the reading of /proc with real processes."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.foreign import (
    MOVED,
    TOLD_MAX,
    Foreign,
    Lived,
    Place,
    Ran,
    Spent,
    Use,
    news,
    on_places,
    spend,
    spread,
)
from cluster.foreign_watch import ForeignWatch, is_marked, running
from cluster.group import look

HOST = 4711
PERIOD = 500.0
"""Ticks of 5 s."""
SLICE = {0: Place(frozenset({2, 3}), HOST)}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc here")
BUSY = "import os, sys, time\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def use(name: str, ticks: dict[int, float], group: int = 1, session: int = 1) -> Use:
    return Use(name, (group, session), ticks)


def test_a_process_of_one_thread_ran_where_it_ran_last() -> None:
    assert spread(50, 3, None, {}) == {3: 50.0}


def test_a_process_of_many_threads_ran_where_these_did() -> None:
    before = {1: (100, 0), 2: (10, 1), 3: (500, 3)}
    after = {1: (130, 0), 2: (40, 2), 3: (500, 3), 4: (60, 2)}
    assert spread(120, 0, before, after) == {0: 30.0, 2: 90.0}


def test_of_threads_that_are_seen_first_their_whole_life_counts() -> None:
    assert spread(60, 0, None, {1: (100, 0), 2: (300, 5)}) == {0: 15.0, 5: 45.0}


def test_ticks_of_threads_that_are_gone_are_the_first_ones() -> None:
    assert spread(60, 4, {1: (9, 4)}, {1: (9, 4)}) == {4: 60.0}


def test_the_replicas_own_group_and_session_are_not_foreign() -> None:
    uses = [use("host", {2: 500}, group=HOST), use("child", {3: 500}, session=HOST), use("game", {3: 250})]
    assert on_places(uses, SLICE, PERIOD) == {0: (Foreign("game", 0.5),)}


def test_what_runs_elsewhere_or_takes_next_to_nothing_is_not_told() -> None:
    uses = [use("elsewhere", {0: 500}), use("idle", {2: 20}), use("least", {2: 25})]
    assert on_places(uses, SLICE, PERIOD) == {0: (Foreign("least", 0.05),)}


def test_programs_of_one_name_are_told_together_and_the_largest_first() -> None:
    uses = [use("make", {2: 100}), use("cc1", {2: 100, 0: 400}), use("cc1", {3: 150})]
    assert on_places(uses, SLICE, PERIOD) == {0: (Foreign("cc1", 0.5), Foreign("make", 0.2))}


def test_one_process_may_be_foreign_to_two_replicas() -> None:
    places = {0: Place(frozenset({0}), 1), 1: Place(frozenset({1}), None)}
    found = on_places([use("game", {0: 500, 1: 250}, group=9, session=9)], places, PERIOD)
    assert found == {0: (Foreign("game", 1.0),), 1: (Foreign("game", 0.5),)}


def test_no_more_than_some_programs_are_told() -> None:
    uses = [use(f"p{number}", {2: 30 + number}) for number in range(20)]
    told = on_places(uses, SLICE, PERIOD)[0]
    assert [each.name for each in told] == [f"p{number}" for number in range(19, 19 - TOLD_MAX, -1)]


def test_a_share_that_moves_a_little_is_no_news() -> None:
    before = {0: (Foreign("game", 0.5),)}
    assert news(before, {0: (Foreign("game", 0.5 + MOVED / 2),)}) == before
    moved = {0: (Foreign("game", 0.5 + 2 * MOVED),)}
    assert news(before, moved) == moved
    other = {0: (Foreign("game", 0.5), Foreign("cc1", 0.1))}
    assert news(before, other) == other
    assert news(before, {0: ()}) == {0: ()}
    assert news(before, {}) == {}


OWN, CHILD, OTHER = (HOST, 1), (4712, 9), (4713, 9)


def ran(
    busy: int, own: dict[tuple[int, int], int], host: int | None = HOST, **waited: dict[tuple[int, int], int]
) -> Ran:
    """All but the host are its children. `waited`: below that name, what each has of its ended children."""
    ended = waited.get("waited", {})
    lived = {
        process: Lived(ticks, ended.get(process, 0), 1 if process == OWN else HOST)
        for process, ticks in own.items()
    }
    return Ran(Place(frozenset({2}), host), busy, lived)


def test_what_a_slice_ran_and_its_host_did_not_is_foreign() -> None:
    spent = spend(Spent(), ran(1000, {OWN: 400}), ran(1500, {OWN: 700, CHILD: 50}))
    assert (spent.own, spent.foreign) == (350, 150)
    spent = spend(spent, ran(1500, {OWN: 700, CHILD: 50}), ran(1900, {OWN: 900, CHILD: 50}))
    assert (spent.own, spent.foreign) == (550, 350)


def test_of_the_first_look_and_of_another_host_nothing_is_known() -> None:
    before = Spent(own=5, foreign=7)
    assert spend(before, None, ran(1500, {OWN: 700})) == before
    assert spend(before, ran(1000, {OWN: 400}), ran(1500, {}, host=None)) == before


def test_on_a_slice_without_a_host_all_is_foreign() -> None:
    assert spend(Spent(), ran(10, {}, None), ran(40, {}, None)) == Spent(own=0, foreign=30)


def test_what_a_process_ran_that_has_ended_is_not_taken_for_foreign() -> None:
    spent = spend(Spent(), ran(1000, {OWN: 400, CHILD: 90}), ran(1500, {OWN: 500}))
    assert (spent.own, spent.foreign) == (100, 0)


def test_of_children_that_ended_all_counts_as_the_hosts_once() -> None:
    """The one that was seen ran 40 more; another came and went with 60."""
    before = ran(1000, {OWN: 400, CHILD: 90}, waited={OWN: 1000})
    now = ran(1500, {OWN: 500, OTHER: 10}, waited={OWN: 1190})
    assert spend(Spent(), before, now) == Spent(own=210, foreign=290)


def test_of_a_child_whose_parent_ended_too_what_ran_is_found_at_theirs() -> None:
    place = Place(frozenset({2}), HOST)
    before = Ran(place, 0, {OWN: Lived(0, 0, 1), CHILD: Lived(50, 5, HOST), OTHER: Lived(70, 0, CHILD[0])})
    assert spend(Spent(), before, Ran(place, 300, {OWN: Lived(0, 165, 1)})) == Spent(own=40, foreign=260)
    lost = Ran(place, 300, {OWN: Lived(0, 60, 1)})
    assert spend(Spent(), before, lost) == Spent(), "nobody waited for the grandchild"


def test_of_one_that_ended_without_a_parent_among_the_hosts_nothing_is_known() -> None:
    place = Place(frozenset({2}), HOST)
    before = Ran(place, 0, {OWN: Lived(0, 0, 1), CHILD: Lived(50, 0, 1)})
    assert spend(Spent(), before, Ran(place, 300, {OWN: Lived(20, 500, 1)})) == Spent(own=20)


def test_a_child_of_another_group_that_ended_hides_no_more_than_one_look() -> None:
    spent = spend(Spent(), ran(0, {OWN: 0, CHILD: 1}), ran(100, {OWN: 0}, waited={OWN: 10**6}))
    assert spent == Spent(own=100)


def test_ticks_that_the_kernel_counts_apart_are_evened_out() -> None:
    spent, looks = Spent(), [(0, 0), (97, 100), (203, 200), (300, 300), (420, 400)]
    for (busy, own), (later, more) in itertools.pairwise(looks):
        spent = spend(spent, ran(busy, {OWN: own}), ran(later, {OWN: more}))
        assert spent.foreign >= 0
    assert (spent.own, spent.foreign) == (400, 20)
    spent = Spent()
    for _ in range(50):  # as the CPU's count lags behind and catches up
        spent = spend(spent, ran(0, {OWN: 0}), ran(95, {OWN: 100}))
        spent = spend(spent, ran(0, {OWN: 0}), ran(105, {OWN: 100}))
    assert spent.foreign == 0, "nothing is made of what only comes late"


def write_stat(proc: Path, pid: int, parent: int, group: int, ticks: int, waited: int) -> None:
    """As the kernel writes it: half of the ticks are the kernel's."""
    fields = ["0"] * 50
    fields[:4] = ["S", str(parent), str(group), str(group)]
    fields[11:15] = [str(ticks - ticks // 2), str(ticks // 2), str(waited - waited // 2), str(waited // 2)]
    fields[17], fields[19], fields[36] = "1", str(pid), "2"
    (proc / str(pid)).mkdir(exist_ok=True)
    (proc / str(pid) / "stat").write_text(f"{pid} (a (strange) name) {' '.join(fields)}")


@LINUX
def test_a_host_whose_children_come_and_go_hides_no_foreign_load(tmp_path: Path) -> None:
    watch, places = ForeignWatch(tmp_path), {0: Place(frozenset({2}), HOST)}
    write_stat(tmp_path, 77, 1, 77, 0, 0)
    for look_number in range(6):
        child = 5000 + look_number
        if look_number:
            (tmp_path / str(child - 1) / "stat").unlink()
            (tmp_path / str(child - 1)).rmdir()
        (tmp_path / "stat").write_text(f"cpu  0 0 0 0 0 0 0\ncpu2 {500 * look_number} 0 0 0 0 0 0\n")
        write_stat(tmp_path, HOST, 1, HOST, 100 * look_number, 120 * look_number)
        write_stat(tmp_path, child, HOST, HOST, 20, 0)
        watch.look(places, 5.0 * look_number)
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    assert watch.spent_s(0) == (5 * 220 / ticks_per_s, 5 * 280 / ticks_per_s)


@pytest.fixture
def busy() -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Starts processes that do nothing but run on one CPU."""
    made: list[subprocess.Popen[bytes]] = []

    def start(cpu: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", BUSY, str(cpu)], start_new_session=True)
        made.append(process)
        deadline = time.monotonic() + 20
        while os.sched_getaffinity(process.pid) != {cpu}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    yield start
    for process in made:
        process.kill()
        process.wait()


@LINUX
def test_a_real_process_on_a_slice_is_found_and_its_own_host_is_not(
    busy: Callable[[int], subprocess.Popen[bytes]],
) -> None:
    first, *others = sorted(os.sched_getaffinity(0))
    game, host = busy(first), busy(first)
    places = {0: Place(frozenset({first}), host.pid), 1: Place(frozenset(others), None)}
    watch = ForeignWatch()
    name = Path(f"/proc/{game.pid}/comm").read_text().strip()
    assert watch.look(places, time.monotonic()) == {}, "nobody has looked before"

    def share() -> float:
        time.sleep(1.0)  # the time over which shares are measured
        found = watch.look(places, time.monotonic())
        return next((each.share for each in found[0] if each.name == name), 0.0)

    deadline = time.monotonic() + 30
    while not 0.05 <= (seen := share()) <= 1.05:
        assert time.monotonic() < deadline, seen
    spent = watch.spent_s(0)
    assert spent is not None
    assert min(spent) > 0, "its host and the other shared the CPU"
    assert watch.spent_s(2) is None
    game.kill()
    game.wait()
    names = {name}
    while name in names:
        share()
        names = {each.name for each in watch.look(places, time.monotonic())[0]}
        assert time.monotonic() < deadline + 30


@LINUX
def test_programs_are_found_by_the_name_that_the_kernel_keeps(tmp_path: Path) -> None:
    program = tmp_path / "a-game-of-a-long-name"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    names = ("no-such-program", program.name)
    assert running(names) == []
    with subprocess.Popen([str(program), "60"]) as process:
        deadline = time.monotonic() + 10
        while running(names) != [program.name]:  # it may not have begun yet
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert running(names, is_ours=lambda pid: pid == process.pid) == []
        process.kill()
        until_zombie(process.pid)
        assert running(names) == [], "what is dead and not waited for runs no more"
    assert running(names) == []


def until_zombie(pid: int) -> None:
    deadline = time.monotonic() + 10
    while (seen := look(pid)) is None or not seen.zombie:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@LINUX
def test_a_mark_in_an_environment_is_found() -> None:
    with subprocess.Popen(["/bin/sleep", "60"], env={"A": "1", "HOMEPORT_RUN": "x"}) as process:
        deadline = time.monotonic() + 10
        while not is_marked(process.pid, "HOMEPORT_RUN"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert is_marked(process.pid, "A")
        assert not is_marked(process.pid, "RUN")
        process.kill()
    assert not is_marked(process.pid, "A")

"""What `homeport apply` would change: the table, that keepers do just that, and that a second plan is empty."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.join import enter
from cluster.machine import Gpu, Machine, Reserve
from cluster.paths import Paths
from cluster.slices import Need
from router.apply_words import plan_lines
from serving.keeper import Keeper
from serving.model import ModelSpec, ParkingSpec, digest
from serving.model_changes import LIVE, RESTARTS, changes
from serving.plan import AWAY, Drain, Keep, LeftOut, Live, Plan, Start, Step, Stop, plan, shares
from serving.slots import Slot
from tests.planned import FOUR, Lab, revision

GIB = 1024**3
M = ModelSpec("m", "llama.cpp", "bundled", "all", 1, Need(1, GIB), "needs", 2048, 1, 10.0, 60.0, "wait")
N = replace(M, name="n")


def words(found: Plan) -> list[tuple[str, str]]:
    return [(type(step).__name__.lower(), step.replica) for step in found.steps]


def proposed(before: Sequence[ModelSpec], after: Sequence[ModelSpec]) -> Plan:
    """On one machine that serves `before`."""
    lab, first = Lab(), revision(1, *before)
    lab.apply(first)
    return plan(revision(2, *after), first, lab.fleet())


STARTS = [("start", f"den/{number}") for number in (1, 2, 3)]
TABLE: list[tuple[str, list[ModelSpec], list[ModelSpec], list[tuple[str, str]]]] = [
    ("the same", [M], [M], [("keep", "den/0")]),
    ("nothing ran", [], [M], [("start", "den/0")]),
    ("a model more", [M], [M, N], [("keep", "den/0"), ("start", "den/1")]),
    ("a model less", [M, N], [N], [("stop", "den/0"), ("keep", "den/1")]),
    ("another order", [M, N], [N, M], [("keep", "den/0"), ("keep", "den/1")]),
    ("more replicas", [M], [replace(M, replicas=2)], [("keep", "den/0"), ("start", "den/1")]),
    ("fewer replicas", [replace(M, replicas=2)], [M], [("keep", "den/0"), ("stop", "den/1")]),
    ("all that fit", [M], [replace(M, replicas="fill")], [("keep", "den/0"), *STARTS]),
    ("another context", [M, N], [replace(M, context=4096), N], [("drain", "den/0"), ("keep", "den/1")]),
    ("more cores", [M, N], [replace(M, need=Need(2, GIB)), N], [("drain", "den/0"), ("keep", "den/1")]),
    ("another hold", [M], [replace(M, hold_s=1.0)], [("live", "den/0")]),
    ("both", [M], [replace(M, hold_s=1.0, sessions=4)], [("drain", "den/0")]),
    ("other machines", [M, N], [replace(M, machines=("attic",)), N], [("stop", "den/0"), ("keep", "den/1")]),
    ("another name", [M], [N], [("stop", "den/0"), ("start", "den/1")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_what_would_happen(
    before: list[ModelSpec], after: list[ModelSpec], expected: list[tuple[str, str]]
) -> None:
    assert words(proposed(before, after)) == expected


@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        ({"context": 4096}, Drain, ("context 2048 -> 4096",)),
        ({"need": Need(2, 2 * GIB)}, Drain, ("needs.cores 1 -> 2", "needs.memory 1 GiB -> 2 GiB")),
        ({"options": (("threads", 2),)}, Drain, ("options.threads unset -> 2",)),
        ({"sessions": 4, "hold_s": 1.0}, Drain, ("sessions 1 -> 4",)),
        ({"hold_s": 1.5}, Live, ("hold 10 s -> 1.5 s",)),
        ({"when_lost": "move"}, Live, ("when_lost wait -> move",)),
        ({"unload_s": 1800.0}, Live, ("unload never -> 1800 s",)),
        ({"parking": ParkingSpec(disk_bytes=0)}, Live, ("parking.disk 8 GiB -> 0 bytes",)),
    ],
)
def test_what_changed_is_named(change: dict[str, Any], kind: type, expected: tuple[str, ...]) -> None:
    (step,) = proposed([M], [replace(M, **change)]).steps
    assert isinstance(step, Drain | Live)
    assert (type(step), step.changed) == (kind, expected)


def test_every_setting_of_a_model_either_restarts_it_or_applies_live_or_says_where_it_runs() -> None:
    where = {"name", "machines", "replicas", "take"}
    assert set(RESTARTS) | set(LIVE) | where == set(M.to_json())
    for restarts in (replace(M, context=1), replace(M, sessions=9), replace(M, source="/x")):
        assert digest(restarts, "c") != digest(M, "c")
    live = replace(M, hold_s=1.0, queue_s=2.0, unload_s=3.0, when_lost="fail", parking=ParkingSpec(0, 0, 0.0))
    assert digest(live, "c") == digest(M, "c")


def test_another_content_of_the_same_file_needs_a_restart() -> None:
    lab, first = Lab(), revision(1, M)
    lab.apply(first)
    (step,) = plan(revision(2, M, content="other"), first, lab.fleet()).steps
    assert isinstance(step, Drain)
    assert step.changed == ("the content of its files",)


def test_a_replica_that_was_given_up_starts_again_with_another_config_only() -> None:
    lab, first = Lab(), revision(1, M)
    lab.apply(first)
    lab.failed["den/0"] = "the file is no GGUF"
    lab.hosts["den"].clear()
    assert words(plan(revision(2, replace(M, hold_s=1.0)), first, lab.fleet())) == [("live", "den/0")]
    second = revision(2, replace(M, context=4096))
    assert words(plan(second, first, lab.fleet())) == [("start", "den/0")]
    lab.apply(second)
    assert "den/0" in lab.lives()


def test_a_host_that_is_about_to_start_is_no_change() -> None:
    lab, first = Lab(), revision(1, M)
    lab.apply(first)
    lab.hosts["den"].clear()
    assert words(plan(first, first, lab.fleet())) == [("keep", "den/0")]


def test_a_slice_that_is_carved_anew_needs_a_restart() -> None:
    lab, first = Lab(), revision(1, replace(M, take="rest"))
    lab.apply(first)
    second = revision(2, N, replace(M, take="rest"))
    drain, start = plan(second, first, lab.fleet()).steps
    assert isinstance(drain, Drain)
    assert (drain.replica, drain.changed) == ("den/0", ("cores 0,1,2,3 -> 1,2,3",))
    assert isinstance(start, Start)
    assert start.replica == "den/1"
    lab.apply(second)
    assert [slot.slice.cores for slot in lab.lives().values()] == [(0,), (1, 2, 3)]
    assert plan(second, second, lab.fleet()).changes == ()


def test_which_gpus_a_replica_gets_is_told_and_what_of_them_is_shared() -> None:
    cards = tuple(Gpu(f"GPU-{n}", "A card", 8 * GIB) for n in range(2))
    lab, nothing = Lab(hardware=replace(FOUR, gpus=cards)), revision(1)
    shares_one, whole = replace(M, need=Need(1, GIB, 0.5)), replace(N, need=Need(1, GIB, 1))
    first = revision(2, shares_one, whole)
    found = plan(first, nothing, lab.fleet())
    assert plan_lines(found)[1:] == [
        "  den/0  start  m on GPU-0 (0.5, shared)",
        "  den/1  start  n on GPU-1",
    ]
    lab.apply(first)
    second = plan(revision(3, replace(M, need=Need(1, GIB, 0.25)), whole), first, lab.fleet())
    assert plan_lines(second)[1] == (
        "  den/0  drain    m, then restart on GPU-0 (0.25, shared): needs.gpus 0.5 -> 0.25"
    )


def test_machines_that_are_away_are_told_and_their_steps_are_those_of_their_last_report() -> None:
    lab, first = Lab("attic", "den"), revision(1, M)
    lab.apply(first)
    lab.away = ("attic", "shed")
    far = replace(N, machines=("shed",))
    found = plan(revision(2, replace(M, context=4096), far), first, lab.fleet())
    assert words(found) == [("drain", "attic/0"), ("drain", "den/0")]
    assert (found.away, found.nowhere) == (("attic", "shed"), ())
    assert found.left_out == (LeftOut("n", "shed", AWAY),)


def test_what_a_machine_has_to_do_that_is_its_persons_is_told_and_comes_later() -> None:
    lab, first = Lab("attic", "den"), revision(1, M)
    lab.apply(first)
    lab.yielded = ("attic",)
    found = plan(revision(2, replace(M, context=4096), N), first, lab.fleet())
    steps = [("drain", "attic/0"), ("start", "attic/1"), ("drain", "den/0"), ("start", "den/1")]
    assert words(found) == steps
    assert (found.away, found.yielded, found.left_out) == ((), ("attic",), ())


def test_a_model_that_fits_nowhere_is_named_with_its_reasons() -> None:
    lab, first = Lab("attic", "den"), revision(1, M)
    lab.apply(first)
    found = plan(revision(2, M, replace(N, need=Need(9, GIB))), first, lab.fleet())
    assert found.nowhere == ("n",)
    reasons = {each.machine: each.reason for each in found.left_out}
    assert reasons == dict.fromkeys(("attic", "den"), "needs 9 cores, 3 free")
    nobody = plan(revision(2, replace(N, machines=("shed",))), first, lab.fleet())
    assert nobody.nowhere == ("n",)
    assert "no such machine" in nobody.left_out[0].reason


# keepers do just that


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """A real keeper of four cores whose own loop does not run: it starts no host."""
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    paths.make()
    inventory = tmp_path / "hardware.json"
    inventory.write_text(json.dumps(FOUR.to_json()))
    monkeypatch.setenv("HOMEPORT_HOME", str(paths.home))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(paths.locks))
    monkeypatch.setenv("HOMEPORT_INVENTORY", str(inventory))
    monkeypatch.setattr(Keeper, "_run", lambda _self: None)
    enter(paths, "den", "default", FOUR, Reserve(0, 0), (18100, 18199))
    made = Keeper()
    yield made
    made.close()
    made._loop.close()


@pytest.mark.parametrize(("before", "after"), [row[1:3] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_keeper_does_what_the_plan_said(
    keeper: Keeper, before: list[ModelSpec], after: list[ModelSpec]
) -> None:
    real, first, second = keeper, revision(1, *before), revision(2, *after)
    machine = Machine.from_json(real.report())
    real.apply(1, shares(first["models"], [machine]).machines[machine.id], "den")
    report = json.loads(json.dumps(real.report()))
    for replica in report["replicas"]:
        replica |= {"state": "ready", "pid": 1, "running_digest": replica["config_digest"]}
    found = plan(second, first, {"machines": [report]})
    was = dict(real.book.slots)
    real.apply(2, shares(second["models"], [machine]).machines[machine.id], "den")

    def did(number: int) -> str:
        if number not in real.book.slots:
            return "stop"
        if number not in was:
            return "start"
        if (was[number].digest, was[number].slice) != (
            real.book.slots[number].digest,
            real.book.slots[number].slice,
        ):
            return "drain"
        live = changes(was[number].model.to_json(), real.book.slots[number].model.to_json(), LIVE)
        return "live" if live else "keep"

    assert words(found) == [(did(n), f"den/{n}") for n in sorted({*was, *real.book.slots})]


# the fixpoint

specs = st.builds(
    lambda name, cores, replicas, context, hold, machines, take: replace(
        M,
        name=name,
        need=Need(cores, GIB),
        replicas=replicas,
        context=context,
        hold_s=hold,
        machines=machines,
        take=take,
    ),
    st.sampled_from("abc"),
    st.integers(1, 3),
    st.sampled_from([1, 2, "fill"]),
    st.sampled_from([1024, 2048]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(["all", ("den",), ("attic", "shed")]),
    st.sampled_from(["needs", "rest"]),
)
configs = st.lists(specs, max_size=3, unique_by=lambda spec: spec.name)


@settings(max_examples=150, deadline=None)
@given(st.lists(configs, min_size=2, max_size=4))
def test_a_second_plan_is_empty_and_the_first_told_who_lives(history: list[list[ModelSpec]]) -> None:
    lab, before = Lab("attic", "den"), revision(1)
    for number, models in enumerate(history, 2):
        wanted = revision(number, *models)
        found = plan(wanted, before, lab.fleet())
        was = lab.lives()
        lab.apply(wanted)
        lives = lab.lives()
        assert {s.replica for s in found.steps if not isinstance(s, Stop)} == set(lives)
        for step in found.steps:
            _check(step, was.get(step.replica), lives.get(step.replica))
        assert plan(wanted, wanted, lab.fleet()).changes == ()
        before = wanted


def _check(step: Step, was: Slot | None, lives: Slot | None) -> None:
    match step:
        case Start():
            assert was is None
            assert lives is not None
            assert lives.digest == step.digest
        case Stop():
            assert lives is None
        case Drain():
            assert was is not None
            assert lives is not None
            assert (was.digest, was.slice, was.port) != (lives.digest, lives.slice, lives.port)
        case Live() | Keep():
            assert was is lives

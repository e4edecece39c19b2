"""Shares are those of the whole fleet, and are worked out anew only where something is new."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.fit import Replicas, Where, ZoneOf
from cluster.machine import GIB, CpuCore, Hardware, Machine, Reserve
from cluster.slices import Need
from serving.model import ModelSpec
from serving.plan import shares
from serving.sharing import Sharing

ZONES = ("home", "office")
NAMES = ("den", "attic", "rack")
MODEL = ModelSpec("chat", "llama.cpp", "bundled", "all", 1, Need(1, GIB), "needs", 2048, 1, 1.0, 5.0, "wait")


def report(name: str, cores: int = 4, zone: str = "home", **more: Any) -> dict[str, Any]:
    hardware = Hardware(tuple(CpuCore(n, (n,), "unknown", 0) for n in range(cores)), 8 * GIB, ())
    machine = Machine(f"id-{name}", name, zone, "127.0.0.1", hardware, Reserve(0, 0), "ready")
    return {**machine.to_json(), "replicas": [], **more}


def by_id(*reports: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in reports}


def of_all(models: list[dict[str, Any]], reports: Mapping[str, dict[str, Any]]) -> Any:
    told = shares(models, [Machine.from_json(each) for each in reports.values()])
    return dict(told.machines), {model: dict(reasons) for model, reasons in told.left_out.items()}


wheres: st.SearchStrategy[Where] = st.one_of(
    st.just("all"),
    st.sampled_from(ZONES).map(ZoneOf),
    st.sets(st.sampled_from((*NAMES, "nowhere")), min_size=1).map(lambda names: tuple(sorted(names))),
)
replicas: st.SearchStrategy[Replicas] = st.one_of(st.just("fill"), st.integers(1, 3))
revisions = st.lists(
    st.builds(
        lambda where, count, cores: replace(MODEL, machines=where, replicas=count, need=Need(cores, GIB)),
        wheres,
        replicas,
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=3,
).map(
    lambda specs: [
        {"spec": replace(spec, name=f"m{n}").to_json(), "digest": "d"} for n, spec in enumerate(specs)
    ]
)
changes = st.one_of(
    st.builds(report, st.sampled_from(NAMES), st.integers(0, 6), st.sampled_from(ZONES)),
    st.sampled_from(NAMES),
    revisions,
)


@given(revisions, st.lists(changes, max_size=12))
def test_whatever_changes_the_shares_are_those_of_all_machines(
    models: list[dict[str, Any]], told: list[Any]
) -> None:
    """A report comes, a machine (its name) goes, or there is another revision."""
    sharing, reports = Sharing(), dict[str, dict[str, Any]]()
    for change in told:
        match change:
            case list():
                models = change
            case str():
                reports.pop(f"id-{change}", None)
            case _:
                reports[change["id"]] = change
        found = sharing.shares(models, reports)
        left_out = {model: dict(reasons) for model, reasons in found.left_out.items()}
        assert (dict(found.machines), left_out) == of_all(models, reports)


def test_a_report_with_no_new_hardware_leaves_every_share_as_it_is() -> None:
    sharing, models = Sharing(), [{"spec": MODEL.to_json(), "digest": "d"}]
    before = sharing.shares(models, by_id(report("den"), report("attic")))
    after = sharing.shares(models, by_id(report("den", replicas=["other"]), report("attic", cores=2)))
    assert after.machines["id-den"] is before.machines["id-den"]
    assert after.machines["id-attic"] is not before.machines["id-attic"]
    assert after.machines == before.machines


def test_another_revision_is_worked_out_for_every_machine() -> None:
    sharing, reports = Sharing(), by_id(report("den"))
    for count in (1, 2):
        models = [{"spec": replace(MODEL, replicas=count).to_json(), "digest": "d"}]
        assert [each["count"] for each in sharing.shares(models, reports).machines["id-den"]] == [count]

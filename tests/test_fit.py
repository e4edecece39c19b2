"""Fitting: models get machines in config order, and what does not fit says why, machine by machine."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.fit import Assignment, NoFit, Replicas, Where, Wish, ZoneOf, fit, fit_each
from cluster.machine import GIB, CpuCore, Hardware, Machine, Reserve, State, default_reserve
from cluster.slices import Need, Take


def machine(
    name: str, cores: int, memory_gib: int = 16, zone: str = "default", state: State = "ready"
) -> Machine:
    hardware = Hardware(tuple(CpuCore(n, (n,), "unknown", 0) for n in range(cores)), memory_gib * GIB, ())
    return Machine(f"id-{name}", name, zone, "127.0.0.1", hardware, default_reserve(hardware), state)


def wish(
    model: str,
    machines: Where = "all",
    replicas: Replicas = 1,
    cores: int = 1,
    memory_gib: int = 1,
    take: Take = "needs",
) -> Wish:
    return Wish(model, Need(cores, memory_gib * GIB, 0), take, machines, replicas)


def assigned(result: Assignment | NoFit) -> dict[str, dict[str, int]]:
    assert isinstance(result, Assignment), result
    return {name: dict(models) for name, models in result.machines.items()}


def refused(result: Assignment | NoFit) -> dict[str, dict[str, str]]:
    assert isinstance(result, NoFit), result
    return {model: dict(reasons) for model, reasons in result.reasons.items()}


def test_fill_gives_a_two_core_machine_two_homes_and_keeps_the_reserve_of_a_larger_one() -> None:
    result = fit([wish("a", replicas="fill")], [machine("den", 2), machine("attic", 8)])
    assert assigned(result) == {"den": {"a": 2}, "attic": {"a": 7}}


def test_fill_stops_where_memory_ends() -> None:
    assert assigned(fit([wish("a", replicas="fill", memory_gib=6)], [machine("den", 8)])) == {"den": {"a": 2}}


def test_models_share_a_machine_in_config_order() -> None:
    result = fit([wish("b", cores=2), wish("a", replicas="fill")], [machine("den", 6)])
    assert isinstance(result, Assignment)
    assert result.machines["den"] == (("b", 1), ("a", 3))


def test_a_machine_that_is_too_small_is_left_out_of_all_with_its_reason() -> None:
    result = fit([wish("a", cores=4)], [machine("den", 2), machine("attic", 8)])
    assert assigned(result) == {"den": {}, "attic": {"a": 1}}
    assert isinstance(result, Assignment)
    assert result.left_out == {"a": {"den": "needs 4 cores, 2 free"}}


def test_a_model_that_fits_nowhere_names_every_machine() -> None:
    result = fit([wish("a", cores=9, memory_gib=99)], [machine("den", 2), machine("attic", 8)])
    short = "needs 99 GiB of memory, 15 GiB free (1 GiB reserved)"
    assert refused(result) == {
        "a": {
            "den": f"needs 9 cores, 2 free; {short}",
            "attic": f"needs 9 cores, 7 free (1 reserved); {short}",
        }
    }


def test_a_model_must_fit_on_every_machine_that_it_names() -> None:
    machines = [machine("den", 2), machine("attic", 8)]
    assert refused(fit([wish("a", ("attic", "den"), cores=4)], machines)) == {
        "a": {"den": "needs 4 cores, 2 free"}
    }
    assert refused(fit([wish("a", ("attic", "cellar"))], machines)) == {
        "a": {"cellar": "no such machine (known: attic, den)"}
    }


def test_a_zone_means_its_machines_only() -> None:
    machines = [machine("den", 2, zone="home"), machine("desk", 2, zone="work")]
    assert assigned(fit([wish("a", ZoneOf("work"))], machines)) == {"den": {}, "desk": {"a": 1}}
    assert refused(fit([wish("a", ZoneOf("moon"))], machines)) == {
        "a": {"": "no machine in zone 'moon' (zones: home, work)"}
    }


def test_a_count_is_all_or_nothing_on_a_machine() -> None:
    assert refused(fit([wish("a", replicas=3)], [machine("den", 2)])) == {
        "a": {"den": "3 replicas wanted, 2 fit: one more needs 1 core, 0 free"}
    }


def test_a_model_below_one_that_takes_the_rest_is_told_so() -> None:
    reasons = refused(fit([wish("a", take="rest"), wish("b")], [machine("den", 2)]))
    assert list(reasons) == ["b"]
    assert "model 'a' above it takes all that is left here: put it last" in reasons["b"]["den"]
    assert assigned(fit([wish("b"), wish("a", take="rest")], [machine("den", 2)])) == {
        "den": {"b": 1, "a": 1}
    }


def test_a_lost_machine_keeps_what_is_assigned_to_it() -> None:
    machines = [machine("den", 2), machine("attic", 2, state="lost")]
    assert assigned(fit([wish("a")], machines)) == {"den": {"a": 1}, "attic": {"a": 1}}


def test_without_machines_nothing_fits() -> None:
    assert refused(fit([wish("a")], [])) == {"a": {"": "there are no machines"}}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["all", ("m0",), ZoneOf("z1")]),
            st.sampled_from([1, 2, "fill"]),
            st.integers(1, 3),
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_an_assignment_never_promises_a_core_twice(
    wishes: list[tuple[Where, Replicas, int]], sizes: list[int]
) -> None:
    asked = [wish(f"w{n}", where, count, cores) for n, (where, count, cores) in enumerate(wishes)]
    machines = [machine(f"m{n}", cores, zone=f"z{n}") for n, cores in enumerate(sizes)]
    result = fit(asked, machines)
    assert result == fit(asked, machines)
    if isinstance(result, NoFit):
        assert all(reasons for reasons in result.reasons.values())
        return
    need = {w.model: w.need.cores for w in asked}
    for host in machines:
        promised = sum(need[model] * count for model, count in result.machines[host.name])
        assert promised <= len(host.hardware.cores) - host.reserve.cores
    assert {model for models in result.machines.values() for model, _ in models} == set(need)


def test_reserve_of_the_machine_counts() -> None:
    den = machine("den", 2)
    stingy = Machine(den.id, den.name, den.zone, den.address, den.hardware, Reserve(2, 0), "ready")
    assert refused(fit([wish("a")], [stingy])) == {"a": {"den": "needs 1 core, 0 free (2 reserved)"}}


# each machine by itself


def test_a_model_runs_where_it_fits_though_it_names_a_machine_that_is_not_here() -> None:
    result = fit_each([wish("a", machines=("den", "attic")), wish("b")], [machine("den", 2)])
    assert assigned(result) == {"den": {"a": 1, "b": 1}}
    assert result.left_out == {"a": {"attic": "no such machine (known: den)"}}


def test_a_model_that_fits_nowhere_leaves_the_others_alone() -> None:
    wishes = [wish("big", cores=9), wish("far", machines=ZoneOf("lab")), wish("a")]
    result = fit_each(wishes, [machine("den", 2), machine("attic", 4)])
    assert assigned(result) == {"den": {"a": 1}, "attic": {"a": 1}}
    assert result.left_out == {
        "big": {"den": "needs 9 cores, 2 free", "attic": "needs 9 cores, 3 free (1 reserved)"},
        "far": {"": "no machine in zone 'lab' (zones: default)"},
    }


def test_a_machine_that_comes_or_goes_changes_nothing_on_another() -> None:
    wishes = [wish("a", machines=("den", "attic"), cores=3), wish("b", replicas="fill"), wish("c", ("den",))]
    den, attic = machine("den", 6), machine("attic", 2)
    alone, both = fit_each(wishes, [den]), fit_each(wishes, [den, attic])
    assert alone.machines["den"] == both.machines["den"] == (("a", 1), ("b", 2))
    assert both.left_out["c"].keys() == {"den"}


def test_each_by_itself_is_the_same_where_all_fits() -> None:
    wishes = [wish("a"), wish("b", machines=("attic",)), wish("c", replicas="fill", machines=ZoneOf("home"))]
    machines = [machine("den", 4, zone="home"), machine("attic", 6)]
    assert fit_each(wishes, machines) == fit(wishes, machines)


def test_without_machines_each_model_says_so() -> None:
    assert fit_each([wish("a")], []).left_out == {"a": {"": "there are no machines"}}

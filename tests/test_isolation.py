"""What a session notices of its neighbours: placement and figures, from made-up times."""

import itertools
import json

import pytest

from cluster.machine import CpuCore
from serving.isolation import (
    REGIMES,
    Cell,
    Regime,
    Report,
    figures,
    in_turns,
    markdown,
    neighbour_counts,
    neighbours_home,
    percentile,
    place,
    rows,
    verdicts,
    whole,
)

CORES = (
    CpuCore(0, (0, 2), "efficiency", 0),
    CpuCore(1, (1, 3), "performance", 0),
)


def cell(regime: Regime, neighbours: int, number: int, *gaps: float) -> Cell:
    """Asked at 10 s, the first token half a second later, then these gaps."""
    return Cell(regime, neighbours, number, 10.0, tuple(itertools.accumulate((10.5, *gaps))))


def report(cells: list[Cell]) -> Report:
    made, told = tuple(figures(cells)), tuple(verdicts(cells, 2))
    return Report("2 cores", "2026-11-29", "0.1.0", "sessions", 1, 0.0, made, told, ("as said",))


def measured(shared: float, dedicated: float, alone: float = 0.010) -> list[Cell]:
    """A round of each, with one gap all along."""
    found = [cell("shared", 0, 0, *[alone] * 9), cell("shared", 1, 0, *[shared] * 9)]
    return [*found, cell("dedicated", 0, 0, *[alone] * 9), cell("dedicated", 1, 0, *[dedicated] * 9)]


def test_an_engine_on_shared_cores_has_all_of_them_and_a_thread_for_each() -> None:
    assert whole(CORES).cpus == (0, 1, 2, 3)
    assert {(each.cores, each.cpus) for each in place("shared", CORES, 3, 7)} == {((0, 1), (0, 1, 2, 3))}


def test_dedicated_slices_are_disjoint_fast_cores_first_and_no_more_than_cores() -> None:
    assert [each.cores for each in place("dedicated", CORES, 5, 7)] == [(1,), (0,)]
    assert [each.cpus for each in place("dedicated", CORES, 5, 7)] == [(1, 3), (0, 2)]


def test_under_a_quota_an_engine_has_one_thread_anywhere() -> None:
    assert {(len(each.cores), each.cpus) for each in place("quota", CORES, 3, 7)} == {(1, (0, 1, 2, 3))}


def test_a_guest_has_one_virtual_cpu_which_runs_anywhere() -> None:
    assert place("vm", CORES, 3, 7) == place("quota", CORES, 3, 7)


def test_neighbours_without_a_home_of_their_own_share_those_of_others_never_the_watched_ones() -> None:
    assert [neighbours_home(number, 3) for number in (1, 2, 3, 4)] == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="no engine"):
        neighbours_home(1, 1)


def test_many_neighbours_are_counted_by_doubling() -> None:
    assert neighbour_counts(2) == (0, 1, 2)
    assert neighbour_counts(1) == (0, 1)
    assert neighbour_counts(12) == (0, 1, 2, 4, 8, 12)


def test_each_round_begins_with_another_regime() -> None:
    assert [in_turns(REGIMES, number)[0] for number in range(5)] == [*REGIMES, "shared"]
    assert all(sorted(in_turns(REGIMES, number)) == sorted(REGIMES) for number in range(4))


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 99.0
    assert percentile([5.0], 0.99) == 5.0


def test_figures_are_medians_over_rounds_and_the_longest_gap_of_all() -> None:
    cells = [
        *(cell("dedicated", 0, number, *[0.010] * 10) for number in range(3)),
        cell("dedicated", 1, 0, *[0.010] * 9, 0.011),
        cell("dedicated", 1, 1, *[0.010] * 9, 0.013),
        cell("dedicated", 1, 2, *[0.010] * 9, 0.900),  # one slow moment is no median
    ]
    alone, beside = figures(cells)
    assert (alone.neighbours, beside.neighbours) == (0, 1)
    assert alone.interference == pytest.approx(1.0)
    assert beside.p50_s == pytest.approx(0.010)
    assert beside.p99_s == pytest.approx(0.013)
    assert beside.max_s == pytest.approx(0.900)
    assert beside.interference == pytest.approx(1.3)
    assert beside.first_s == pytest.approx(0.5)
    assert alone.tokens_per_s == pytest.approx(100.0)


def test_a_ratio_is_taken_within_a_round_so_that_a_slow_round_hits_both() -> None:
    slow = [cell("dedicated", 0, 1, *[0.050] * 5), cell("dedicated", 1, 1, *[0.055] * 5)]
    fast = [cell("dedicated", 0, 0, *[0.010] * 5), cell("dedicated", 1, 0, *[0.011] * 5)]
    assert figures([*slow, *fast])[1].interference == pytest.approx(1.1)


def test_without_a_round_alone_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="without neighbours"):
        figures([cell("shared", 1, 0, 0.01)])


def test_the_verdict_is_met_where_slices_keep_what_shared_cores_lose() -> None:
    better, noticed = verdicts(measured(shared=0.400, dedicated=0.012), 2)
    assert better.measured == pytest.approx(33.33)
    assert noticed.measured == pytest.approx(1.2)
    assert (better.met, noticed.met) == (True, True)


def test_the_verdict_is_missed_where_a_neighbour_in_its_own_slice_is_noticed() -> None:
    better, noticed = verdicts(measured(shared=0.050, dedicated=0.013), 2)
    assert (better.met, noticed.met) == (False, False)


def test_a_neighbour_that_waits_in_a_line_is_no_proof() -> None:
    cells = [*measured(0.4, 0.012), cell("dedicated", 2, 0, *[0.5] * 9), cell("shared", 2, 0, *[0.6] * 9)]
    assert verdicts(cells, 2) == verdicts(measured(0.4, 0.012), 2)
    assert verdicts([each for each in cells if each.neighbours != 1], 2) == []


def test_the_table_names_machine_verdict_and_notes_and_the_report_outlives_json() -> None:
    made = report(measured(0.4, 0.012))
    text = markdown(made)
    assert "on 2 cores; homeport 0.1.0. Neighbours: sessions" in text
    assert "| shared cores | 1 | 400 ms | 400 ms | 400 ms | 2.5 | 500 ms | 40.00 x |" in text
    assert (
        "| p99 token gap beside 1 neighbour: shared cores / dedicated slices | >= 4 | 33.33 | met |" in text
    )
    assert text.endswith("- as said")
    assert len(rows(made)) == 4
    assert Report.from_json(json.loads(json.dumps(made.to_json()))) == made

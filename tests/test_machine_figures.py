"""serving/machine_figures.py: what follows from the times of a bench."""

import json
from dataclasses import replace

import pytest

from serving.machine_figures import (
    AttentionRate,
    EngineFigures,
    GpuFigures,
    KindRate,
    MachineFigures,
    Timing,
    Timings,
    engine_figures,
)

TURN_S, LAYER_S, WORD_S = 50e-6, 10e-6, 4e-9
HEAD_S, NUMBER_S, PAIR_S = 5e-9, 0.15e-9, 0.05e-9
BYTES_S, FLOPS = 18e9, 140e9


def timing(
    name: str, layers: int, weight_bytes: int, vocabulary: int, head: int = 64, heads: int = 16
) -> Timing:
    """Of a machine that is just as fast as the constants say."""
    weights = weight_bytes * 2

    def step_s(depth: int) -> float:
        looked = layers * heads * depth * (HEAD_S + 2 * head * NUMBER_S)
        return weight_bytes / BYTES_S + TURN_S + layers * LAYER_S + vocabulary * WORD_S + looked

    def prompt_s(tokens: int) -> float:
        pairs = tokens * (tokens + 1) / 2
        looked = layers * heads * 2 * head * pairs * PAIR_S
        return 2 * weights * tokens / FLOPS + TURN_S + layers * LAYER_S + vocabulary * WORD_S + looked

    made = Timing(
        name, layers, weight_bytes, weights, heads, head, vocabulary, step_s(16), 16, prompt_s(256), 256
    )
    if "/" in name:
        return replace(made, deep_step_s=step_s(1024), deep=1024, deep_prompt_s=prompt_s(1024))
    return made


TIMINGS = Timings(
    1,
    (
        timing("few", 4, 1000, 512, heads=1),
        timing("many", 64, 1000, 512, heads=1),
        timing("words", 4, 1000, 131072, heads=1),
        timing("f16/64", 2, 4_000_000, 512),
        timing("f16/128", 2, 4_000_000, 512, head=128, heads=8),
        timing("q8_0/64", 2, 4_000_000, 512),
        timing("Q4_0", 8, 71_000_000, 4096),
    ),
)


def test_what_a_machine_does_is_found_from_its_times() -> None:
    found = engine_figures(TIMINGS)
    assert found.layer_s == pytest.approx(LAYER_S, rel=0.05)
    assert found.vocabulary_s == pytest.approx(WORD_S, rel=0.05)
    assert found.turn_s == pytest.approx(TURN_S, rel=0.1)
    assert found.kinds["Q4_0"].bytes_s == pytest.approx(BYTES_S, rel=0.01)
    assert found.kinds["Q4_0"].flops == pytest.approx(FLOPS, rel=0.01)
    for kv_type in ("f16", "q8_0"):
        rate = found.attention[kv_type]
        assert rate.head_s == pytest.approx(HEAD_S, rel=0.01)
        assert rate.number_s == pytest.approx(NUMBER_S, rel=0.01)
        assert rate.prompt_number_s == pytest.approx(PAIR_S, rel=0.02)


def test_times_that_make_no_sense_give_no_figure_below_nothing() -> None:
    upset = [replace(each, step_s=each.step_s * (3 if each.name == "few" else 1)) for each in TIMINGS.all]
    found = engine_figures(Timings(1, upset))
    assert min(found.layer_s, found.vocabulary_s, found.turn_s) >= 0
    assert all(rate.bytes_s > 0 and rate.flops > 0 for rate in found.kinds.values())


def test_a_bench_without_its_small_models_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks its small models"):
        engine_figures(Timings(1, TIMINGS.all[3:]))


def engine(cores: int, bytes_s: float) -> EngineFigures:
    rates = {"Q4_0": KindRate(bytes_s, 8 * bytes_s)}
    return EngineFigures(
        cores, rates, {"f16": AttentionRate(8e-9 / cores, 1e-9 / cores, 1e-10)}, 1e-5, 1e-5, 1e-9
    )


FIGURES = MachineFigures(
    "2026-11-29T12:00:00+00:00", "0.1.0", "Some CPU", {1: 20e9, 8: 60e9}, 1e9, (engine(1, 10e9), engine(8, 40e9)),
    (GpuFigures("GPU-1", "Card", 24 * 2**30, 936e9), GpuFigures("GPU-2", "Other", 2**30, None)),
)  # fmt: skip


def test_figures_come_back_from_disk_as_they_were() -> None:
    assert MachineFigures.from_json(json.loads(json.dumps(FIGURES.to_json()))) == FIGURES
    with pytest.raises(KeyError):
        MachineFigures.from_json({"cpu": "x"})


def test_between_one_core_and_all_the_time_falls_as_amdahl_says() -> None:
    assert FIGURES.on(1) is FIGURES.engine[0]
    assert FIGURES.on(8) is FIGURES.engine[1]
    assert FIGURES.on(64) is FIGURES.engine[1]
    rates = [FIGURES.on(cores).kinds["Q4_0"].bytes_s for cores in (1, 2, 4, 8)]
    assert rates == sorted(rates)
    # 1/rate = a + b/n through (1, 1/10) and (8, 1/40): a = 1/70, b = 6/70
    assert FIGURES.on(2).kinds["Q4_0"].bytes_s == pytest.approx(70e9 / 4)
    assert FIGURES.on(2).attention["f16"].head_s == pytest.approx(4e-9)

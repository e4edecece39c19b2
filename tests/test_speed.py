"""serving/speed.py: how fast it will be, from what was measured."""

from dataclasses import replace

import pytest

from serving.machine_figures import AttentionRate, EngineFigures, KindRate
from serving.model_head import read_shape
from serving.model_shape import Group, ModelShape
from serving.speed import NotMeasured, active_bytes, active_weights, nearest, speed

FIGURES = EngineFigures(
    1,
    {"Q4_1": KindRate(10e9, 50e9), "Q8_0": KindRate(20e9, 100e9)},
    {"f16": AttentionRate(4e-9, 0.1e-9, 0.05e-9), "q8_0": AttentionRate(8e-9, 0.2e-9, 0.2e-9)},
    50e-6,
    10e-6,
    3e-9,
)


@pytest.fixture(scope="module")
def bundled() -> ModelShape:
    return read_shape("bundled")


def test_a_token_takes_its_weights_its_look_back_and_what_is_fixed(bundled: ModelShape) -> None:
    told = speed(bundled, FIGURES, "f16", 1000)
    assert told.weights_s == pytest.approx(66_355_200 / 10e9 + 30_081_024 / 20e9)
    assert told.looking_s == pytest.approx(30 * 9 * 1000 * (4e-9 + 128 * 0.1e-9))
    assert told.fixed_s == pytest.approx(50e-6 + 30 * 10e-6 + 49152 * 3e-9)
    assert told.decode_s == pytest.approx(told.weights_s + told.looking_s + told.fixed_s)
    assert told.decode_per_s == pytest.approx(1 / told.decode_s)
    assert not told.stand_ins


def test_a_prompt_needs_the_output_for_its_last_token_only(bundled: ModelShape) -> None:
    told = speed(bundled, FIGURES, "f16", 1000)
    layers = sum(group.weights for group in bundled.groups if group.part == "layer" and group.matrix)
    looked = 30 * 9 * 128 * (1000 * 1001 / 2) * 0.05e-9
    assert told.prompt_s == pytest.approx(2 * layers * 1000 / 50e9 + looked + told.fixed_s)
    assert told.prefill_per_s == pytest.approx(1000 / told.prompt_s)


def test_a_deeper_or_smaller_kept_context_is_slower(bundled: ModelShape) -> None:
    assert speed(bundled, FIGURES, "f16", 4000).decode_s > speed(bundled, FIGURES, "f16", 1000).decode_s
    assert speed(bundled, FIGURES, "q8_0", 1000).looking_s == pytest.approx(
        2 * speed(bundled, FIGURES, "f16", 1000).looking_s
    )


def test_a_window_bounds_how_far_it_looks(bundled: ModelShape) -> None:
    windowed = replace(bundled, window=512, windowed=(True,) * 30)
    assert speed(windowed, FIGURES, "f16", 8000).looking_s == speed(bundled, FIGURES, "f16", 512).looking_s
    assert speed(windowed, FIGURES, "f16", 8000).prompt_s < speed(bundled, FIGURES, "f16", 8000).prompt_s


def test_of_experts_those_that_are_used_count(bundled: ModelShape) -> None:
    mixture = replace(
        bundled,
        experts=16,
        experts_used=4,
        groups=(
            Group("layer", 0, "Q4_1", True, True, True, 16_000, 10_000),
            Group("layer", 0, "Q4_1", True, False, True, 1_600, 1_000),
            Group("embedding", None, "Q8_0", True, False, True, 800, 900),
            Group("output", None, "Q8_0", True, False, True, 800, 900),
        ),
    )
    assert active_bytes(mixture) == 2_500 + 1_000 + 900
    assert active_weights(mixture) == 4_000 + 1_600 + 800


def test_a_kind_that_was_not_measured_has_the_nearest_stand_in(bundled: ModelShape) -> None:
    assert nearest("Q4_1", FIGURES.kinds) == "Q4_1"
    assert nearest("Q4_K", FIGURES.kinds) == "Q4_1"
    assert nearest("F16", FIGURES.kinds) == "Q8_0"
    one = replace(FIGURES, kinds={"Q8_0": KindRate(20e9, 100e9)})
    assert speed(bundled, one, "f16", 10).stand_ins == (("Q4_1", "Q8_0"),)


def test_without_figures_nothing_is_foretold(bundled: ModelShape) -> None:
    with pytest.raises(NotMeasured):
        speed(bundled, replace(FIGURES, kinds={}), "f16", 10)

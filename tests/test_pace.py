"""What a benchmark makes of the times at which text came."""

import pytest

from benchmarks.pace import Stream, pace
from serving.isolation import percentile


def test_speed_counts_only_while_all_streams_run() -> None:
    early = Stream((0.0, 1.0, 2.0, 3.0), 4)
    late = Stream((1.0, 2.0, 3.0, 4.0), 4)
    assert pace([early, late]) == pytest.approx(2.0)


def test_a_piece_of_several_tokens_counts_as_these() -> None:
    assert pace([Stream((0.0, 1.0, 2.0), 6)]) == pytest.approx(2.0)


def test_streams_that_never_ran_at_once_have_no_common_speed() -> None:
    with pytest.raises(ValueError, match="at the same time"):
        pace([Stream((0.0, 1.0), 2), Stream((2.0, 3.0), 2)])


def test_percentiles_are_values_that_were_there() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 0.5) == 50.0
    assert percentile([3.0], 0.99) == 3.0

"""How long it takes until a model that could not be brought is tried again."""

from typing import get_args

from serving.model_trouble import Code, pause_s


def test_what_passes_is_tried_again_soon_and_at_least_each_minute() -> None:
    assert [pause_s("network", count) for count in (1, 2, 3, 9)] == [1.0, 5.0, 15.0, 60.0]
    assert [pause_s("gated", count) for count in (1, 9)] == [60.0, 60.0]


def test_what_costs_a_whole_download_for_nothing_is_tried_ever_more_seldom() -> None:
    for code in ("no_model", "digest"):
        assert [pause_s(code, count) for count in (1, 2, 3, 4, 99)] == [
            60.0,
            3600.0,
            21600.0,
            86400.0,
            86400.0,
        ]


def test_nothing_is_given_up() -> None:
    assert all(1.0 <= pause_s(code, count) <= 86400.0 for code in get_args(Code) for count in range(1, 20))

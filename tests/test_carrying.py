"""Whether a context can go along, and what is said where it cannot."""

import pytest

from serving.carrying import Fits, fits_of, why_not

LAYOUT = "llama-cpp-python 0.3.36 4096 cells for 1 f16 flash"
HERE = Fits("a" * 64, LAYOUT, 1)


def test_the_same_goes_along_as_far_as_there_is_a_disk() -> None:
    assert why_not(HERE, HERE) is None
    assert why_not(Fits("a" * 64, LAYOUT, 0), HERE) is None
    assert why_not(HERE, Fits("a" * 64, LAYOUT, 0)) == "the new home parks nothing on disk"


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        (LAYOUT, "the model's file differs"),
        (LAYOUT.replace("0.3.36", "0.3.37"), "the engine's build differs"),
        (LAYOUT.replace("0.3.36", "0.3.37").replace("f16", "q8_0"), "the engine's build differs"),
        (LAYOUT.replace("f16", "q8_0"), "the KV type differs"),
        (LAYOUT.replace("for 1", "for 4"), "the context or the number of sessions differs"),
        (LAYOUT.replace("flash", "plain"), "flash attention is on for one of them only"),
        (LAYOUT + " 0123456789abcdef", "the adapters differ"),
        ("something else", "the engine's build differs"),
    ],
)
def test_what_differs_is_named(layout: str, why: str) -> None:
    assert why_not(HERE, Fits("b" * 64, layout, 1)) == why


@pytest.mark.parametrize("state", [{}, {"parking": None}, {"parking": {"fingerprint": ""}}])
def test_of_a_host_that_says_nothing_nothing_fits(state: dict[str, object]) -> None:
    assert why_not(HERE, fits_of(state)) == "a host does not say what its contexts are bound to"


def test_what_a_host_says_is_read() -> None:
    told = {"parking": {"fingerprint": "a" * 64, "layout": LAYOUT, "disk_limit_bytes": 1}}
    assert fits_of(told) == HERE

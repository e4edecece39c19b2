"""serving/advice.py: what a wish needs, and what machines are good for."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.machine import CpuCore, Gpu, Hardware, Reserve
from serving.advice import (
    GIB,
    KV_PER_TOKEN,
    SYSTEM_BYTES,
    USED_SHARE,
    falls_short,
    kv_per_token,
    need,
    use_of,
    would_do,
)
from serving.hardware_classes import CLASSES, HardwareClass
from serving.machine_figures import AttentionRate, EngineFigures, KindRate, MachineFigures
from serving.machine_fit import MachineView
from serving.wish import parse

SEEDS = parse("32B at Q4, 16k context, 2 sessions, 20 tokens/s")


def view(memory_gib: int, bytes_s: float = 40e9, flops: float = 400e9, read_s: float = 45e9) -> MachineView:
    hardware = Hardware(tuple(CpuCore(n, (n,), "unknown", 0) for n in range(4)), memory_gib * GIB, ())
    engine = EngineFigures(4, {"Q4_K": KindRate(bytes_s, flops)}, {"f16": AttentionRate(0, 0, 0)}, 0, 0, 0)
    return MachineView(
        "den", hardware, Reserve(0, GIB), MachineFigures("", "", "", {4: read_s}, 1e9, (engine,))
    )


def test_the_seeds_wish_is_weights_contexts_and_a_bandwidth() -> None:
    found = need(SEEDS)
    assert found.weights == 32e9 * 4.89 / 8
    assert found.kv == 64 * 8 * 128 * 4 * 16384 * 2
    assert found.memory == found.weights + found.kv + found.buffers
    assert found.bytes_s == pytest.approx((found.weights + found.kv) * 20)
    assert found.named_bytes_s == pytest.approx(found.bytes_s / USED_SHARE)
    assert found.decode_flops == 2 * 32e9 * 2 * 20
    assert found.prefill_flops is None


def test_a_mixture_is_as_large_and_reads_less() -> None:
    dense, mixture = need(parse("30B")), need(parse("30B-A3B, 500 tokens/s prefill"))
    assert mixture.weights == dense.weights
    assert mixture.bytes_s < dense.bytes_s / 4
    assert mixture.prefill_flops == 2 * 3e9 * 500


def test_contexts_grow_with_the_model() -> None:
    assert kv_per_token(1e8) == KV_PER_TOKEN[0][1]
    assert kv_per_token(32e9) == 262144
    assert kv_per_token(14e9) < kv_per_token(20e9) < kv_per_token(32e9)
    assert kv_per_token(1e12) == KV_PER_TOKEN[-1][1]


def test_what_would_do_has_both_memory_and_bandwidth() -> None:
    found = need(SEEDS)
    made = [
        HardwareClass("small and fast", 24, 4e12, False, ""),
        HardwareClass("large and slow", 512, 90e9, True, ""),
        HardwareClass("both", 32, 1.8e12, False, ""),
        HardwareClass("shared, and the system wants its own", 28 + SYSTEM_BYTES // GIB - 2, 1.8e12, True, ""),
    ]
    assert [each.name for each in would_do(found, made)] == ["both"]
    rates = [each.bytes_s for each in would_do(need(parse("7B")), CLASSES)]
    assert rates == sorted(rates)
    assert would_do(need(parse("2T, F16")), CLASSES) == ()


def test_every_class_says_where_its_numbers_are_from() -> None:
    assert all(each.source and each.memory_gib > 0 and each.bytes_s > 1e9 for each in CLASSES)
    assert len({each.name for each in CLASSES}) == len(CLASSES)


def test_a_machine_is_good_for_what_it_holds_and_gets_through() -> None:
    small = use_of(view(8))
    assert small.pleasant == pytest.approx(40e9 / 10 / (4.89 / 8))
    assert need(parse(f"{small.fits / 1e9:.3f}B")).memory == pytest.approx(view(8).free_bytes, rel=0.01)
    assert small.good_for == small.pleasant
    assert small.limits[0] == "decoding: bandwidth"
    assert use_of(view(8, read_s=80e9)).limits[0] == "decoding: arithmetic of its cores"
    roomy = use_of(view(4, bytes_s=400e9, flops=1e9))
    assert roomy.limits[0].startswith("memory")
    assert any(limit.startswith("arithmetic: 2,048 tokens") for limit in roomy.limits)


def test_a_machine_that_was_not_measured_has_its_memory_alone() -> None:
    use = use_of(replace(view(8), figures=None))
    assert use.fits > 0
    assert (use.pleasant, use.limits) == (None, ("not measured: run `homeport bench machine` there",))


def test_memory_of_a_gpu_counts() -> None:
    plain = view(8)
    with_gpu = replace(plain, hardware=replace(plain.hardware, gpus=(Gpu("GPU-1", "Card", 24 * GIB),)))
    assert use_of(with_gpu).fits > 2 * use_of(plain).fits


def test_what_a_machine_lacks_for_a_wish_is_named() -> None:
    memory, decoding = falls_short(view(8), SEEDS)
    assert memory.startswith("memory: 27.1 GiB needed, 6.9 GiB free")
    assert decoding.startswith("decoding: ")
    assert falls_short(view(8), parse("1B, 5 tokens/s")) == ()
    assert falls_short(view(8), parse("1B, 1000 tokens/s prefill")) == (
        "arithmetic: 2e+02 tokens/s of prompt",
    )
    assert falls_short(replace(view(64), figures=None), parse("1B")) == (
        "not measured: run `homeport bench machine` there",
    )


def test_the_page_has_every_class_with_its_numbers() -> None:
    page = (Path(__file__).parent.parent / "docs" / "choosing.md").read_text()
    for each in CLASSES:
        row = f"| {each.name} | {each.memory_gib} | {each.bytes_s / 1e9:,.0f} | {each.source} |"
        assert row in page

"""serving/machine_bench.py and its models, for real but small: no figure is judged."""

from pathlib import Path

import pytest

from cluster.inventory import measure_cores
from cluster.paths import Paths
from serving.bench_gguf import FACTORS, BenchShape, bench_sizes, write_model
from serving.bench_kept import kept, take
from serving.machine_bench import FULL, core_counts, disk_rate, last_cache_bytes, memory_rate, models
from serving.model_head import read_shape


@pytest.mark.parametrize("kind", ["F16", *FACTORS])
def test_a_model_of_the_bench_is_what_it_says(kind: str, tmp_path: Path) -> None:
    shape = BenchShape(kind, 256, 2, 4, 2, 512, 1024)
    read = read_shape(str(write_model(tmp_path / "m.gguf", shape)))
    weights, size = bench_sizes(shape)
    assert (read.layers, read.width, read.kv_heads, read.vocabulary) == (2, 256, (2, 2), 1024)
    matrices = [group for group in read.groups if group.matrix and group.part != "embedding"]
    assert {group.kind for group in matrices} == {kind}
    assert (sum(g.weights for g in matrices), sum(g.size for g in matrices)) == (weights, size)


def test_models_are_larger_than_the_cache() -> None:
    cache = 32 * 2**20
    sizes = {name: bench_sizes(shape)[1] for name, _, shape in models(FULL, cache)}
    assert all(sizes[kind] > 2 * cache for kind in FULL.kinds)
    assert {"few", "many", "words", "f16/64", "f16/128", "q8_0/64", "q4_0/64"} < sizes.keys()


def test_cores_are_counted_by_doubling() -> None:
    assert core_counts(1) == [1]
    assert core_counts(6) == [1, 2, 4, 6]
    assert core_counts(8) == [1, 2, 4, 8]


def test_the_last_cache_is_found(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "32M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_cache_bytes(tmp_path) == 32 * 2**20
    assert last_cache_bytes(tmp_path / "none") == 32 * 2**20


def test_memory_and_disk_have_a_rate(tmp_path: Path) -> None:
    assert memory_rate(measure_cores()[:1], 1) > 0
    rate = disk_rate(tmp_path, 2**20)
    assert rate is None or rate > 0
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_a_quick_bench_is_kept_and_read_again(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    assert kept(paths) is None
    said: list[str] = []
    taken = take(paths, True, said.append)
    assert kept(paths) == taken
    assert taken.engine[0].cores == 1
    assert {"Q4_0", "Q8_0"} == set(taken.engine[0].kinds)
    assert "Q4_0 on 1 core" in said
    paths.bench.write_text('{"of": "another time"}')
    assert kept(paths) is None

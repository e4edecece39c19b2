"""serving/machine_fit.py: what fits where."""

import pytest

from cluster.machine import CpuCore, Gpu, Hardware, Reserve
from serving.machine_figures import GpuFigures, MachineFigures
from serving.machine_fit import HOST_BYTES, MachineView, machine_fit, off_by
from serving.model_head import read_shape
from serving.model_memory import Plan, kv_bytes, llama_memory
from serving.model_shape import ModelShape
from serving.speed import active_bytes
from tests.test_machine_figures import engine

GIB = 2**30
PLAN = Plan(8192, 2)


@pytest.fixture(scope="module")
def bundled() -> ModelShape:
    return read_shape("bundled")


def view(memory: int, cores: int = 4, gpus: tuple[Gpu, ...] = (), measured: bool = True) -> MachineView:
    hardware = Hardware(tuple(CpuCore(n, (n,), "unknown", 0) for n in range(cores)), memory, gpus)
    rates = tuple(GpuFigures(gpu.uuid, gpu.name, gpu.memory_bytes, 900e9) for gpu in gpus)
    figures = MachineFigures("", "", "", {1: 1e9}, None, (engine(1, 10e9), engine(4, 30e9)), rates)
    return MachineView("den", hardware, Reserve(1, GIB), figures if measured else None)


def test_a_machine_says_what_is_left_or_missing(bundled: ModelShape) -> None:
    needed = llama_memory(bundled, PLAN).needed
    exact = needed + GIB + HOST_BYTES
    assert machine_fit(bundled, PLAN, "llama.cpp", view(exact), None, 100).left_bytes == 0
    short = machine_fit(bundled, PLAN, "llama.cpp", view(exact - 1), None, 100)
    assert (short.left_bytes, short.fits) == (-1, False)
    assert short.largest_context == 8192 - 256
    assert machine_fit(bundled, PLAN, "llama.cpp", view(GIB), None, 100).largest_context == 0


def test_speed_is_that_of_the_cores_that_may_be_used(bundled: ModelShape) -> None:
    all_of_them = machine_fit(bundled, PLAN, "llama.cpp", view(8 * GIB), None, 100)
    one = machine_fit(bundled, PLAN, "llama.cpp", view(8 * GIB), 1, 100)
    assert (all_of_them.cores, one.cores) == (3, 1), "one of four is reserved"
    assert all_of_them.speed is not None
    assert one.speed is not None
    assert all_of_them.speed.decode_per_s > one.speed.decode_per_s


def test_a_machine_that_was_never_measured_says_how_to(bundled: ModelShape) -> None:
    told = machine_fit(bundled, PLAN, "llama.cpp", view(8 * GIB, measured=False), None, 100)
    assert told.fits
    assert told.speed is None
    assert "homeport bench machine" in told.why_no_speed


def test_a_gpu_takes_all_layers_or_some(bundled: ModelShape) -> None:
    large, small = Gpu("GPU-1", "Card", 24 * GIB), Gpu("GPU-2", "Chip", 256 * 2**20)
    told = machine_fit(bundled, PLAN, "llama.cpp", view(GIB, gpus=(large, small)), None, 100)
    whole, part = told.gpus
    assert told.fits, "on the GPU, though not in main memory"
    assert (whole.layers, whole.of) == (31, 31)
    assert 0 < part.layers < 31
    assert part.left_bytes < 0 < whole.left_bytes
    assert whole.most_per_s == pytest.approx(900e9 / (active_bytes(bundled) + kv_bytes(bundled, Plan(100))))
    assert told.largest_context == 8192


def test_vllm_is_given_its_share_of_a_gpu(bundled: ModelShape) -> None:
    told = machine_fit(
        bundled, Plan(8192), "vllm", view(8 * GIB, gpus=(Gpu("GPU-1", "Card", GIB),)), None, 100
    )
    assert told.gpus[0].left_bytes == int(0.92 * GIB) - bundled.weight_bytes - 8192 * 23040
    assert told.speed is None


def test_how_far_it_was_off_is_told_once_it_ran() -> None:
    assert off_by(100, {"engine": {"weights": 60, "kv": 40, "compute": 5}}) == pytest.approx(0.05)
    assert off_by(100, {"engine": None}) is None
    assert off_by(100, None) is None

"""On a real NVIDIA GPU, where there is one: `make test-gpu`. The stand-in of tests/nvml is not used here."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.confine import slice_environment
from cluster.gpu_parts import hold_of
from cluster.gpus import GpuProcess, NvidiaDriver, measure_gpus
from cluster.machine import GIB, Gpu
from cluster.slices import Slice
from serving.llama_engine import LlamaEngine, lib
from serving.llama_options import EngineOptions
from serving.source import bundled_model
from tests.llama_driver import Driver

pytestmark = pytest.mark.gpu

PATIENCE_S = 60.0
CUDA = """
import ctypes, json, sys, uuid
cuda = ctypes.CDLL("libcuda.so.1")
def ask(name, *args):
    code = getattr(cuda, name)(*args)
    if code: sys.exit(f"{name}: {code}")
NO_DEVICE = 100
def devices():
    code = cuda.cuInit(0)
    if code == NO_DEVICE: return []
    if code: sys.exit(f"cuInit: {code}")
    count = ctypes.c_int()
    ask("cuDeviceGetCount", ctypes.byref(count))
    found = []
    for number in range(count.value):
        device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        ask("cuDeviceGet", ctypes.byref(device), number)
        ask("cuDeviceGetUuid_v2", ctypes.byref(raw), device)
        found.append(str(uuid.UUID(bytes=bytes(raw))))
    return found
"""
SEES = "print(json.dumps(devices()))"
HOLDS = """
devices()
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
ask("cuDeviceGet", ctypes.byref(device), 0)
ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
ask("cuCtxSetCurrent", context)
ask("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(256 << 20))
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cards() -> list[Gpu]:
    """The GPUs that slices may have here."""
    found = measure_gpus()
    usable = [gpu for gpu in found.gpus if gpu.usable]
    if not usable:
        why = found.trouble or "; ".join(gpu.reason for gpu in found.gpus if gpu.reason)
        pytest.skip(f"no NVIDIA GPU that works here: {why or 'neither a driver nor a card'}")
    return usable


@pytest.fixture
def sees_processes() -> None:
    """NVML tells pids as the machine has them, not as a container does."""
    status = Path("/proc/self/status").read_text()
    numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
    if len(numbers) > 1 or Path("/.dockerenv").exists():
        pytest.skip("this is a container with process ids of its own")


def environment(*gpus: Gpu) -> dict[str, str]:
    holds = tuple(map(hold_of, gpus))
    carved = Slice((0,), (0,), tuple(gpu.uuid for gpu in gpus), GIB, holds)
    return {**os.environ, **slice_environment(carved)}


def seen(env: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CUDA + SEES],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@contextmanager
def holding(gpu: Gpu) -> Iterator[int]:
    """The pid of a process with 256 MiB on it."""
    with subprocess.Popen(
        [sys.executable, "-c", CUDA + HOLDS],
        env=environment(gpu),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "holds\n"
        try:
            yield process.pid
        finally:
            process.kill()


def on(driver: NvidiaDriver, pid: int) -> GpuProcess | None:
    return next((each for each in driver.ask().processes if each.pid == pid), None)


@pytest.fixture
def driver() -> Iterator[NvidiaDriver]:
    made = NvidiaDriver()
    yield made
    made.close()


def test_the_inventory_is_what_nvidia_smi_says(cards: list[Gpu]) -> None:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("there is no nvidia-smi")
    listed = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    ).stdout
    for gpu in cards:
        assert gpu.uuid in listed
    assert all(gpu.memory_bytes >= 0 and gpu.name for gpu in cards)


def test_a_process_sees_the_gpus_of_its_slice_and_no_others(cards: list[Gpu]) -> None:
    for gpu in cards:
        assert seen(environment(gpu)) == [gpu.uuid.partition("-")[2]]
    assert seen(environment()) == []


@pytest.mark.usefixtures("sees_processes")
def test_who_is_on_a_gpu_is_told_by_pid_with_what_it_holds(cards: list[Gpu], driver: NvidiaDriver) -> None:
    with holding(cards[0]) as pid:
        deadline = time.monotonic() + PATIENCE_S
        while (found := on(driver, pid)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert found.gpu == cards[0].uuid
        assert found.memory_bytes is None or found.memory_bytes >= 256 << 20


@pytest.mark.usefixtures("cards")
def test_llama_cpp_puts_its_layers_on_the_gpu(driver: NvidiaDriver) -> None:
    if not lib.llama_supports_gpu_offload():
        pytest.skip(
            "llama.cpp was built for the CPU here: `make setup` builds it for the GPU (docs/operations.md)"
        )
    engine = LlamaEngine(
        bundled_model(),
        512,
        sequences=1,
        threads=1,
        options=EngineOptions(batch=128, gpu_layers=999, main_gpu=0),
    )
    driven = Driver(engine)
    try:
        text, _ = driven.ask(engine.tokenize("The capital of France is"), 8)
        assert "Paris" in text
        held = on(driver, os.getpid())
        if held is not None:  # in a container it is not told
            assert held.memory_bytes is None or held.memory_bytes >= 64 << 20
    finally:
        engine.close()

"""The GPUs of a machine, as NVIDIA's driver tells them: pynvml's own code, on the stand-in library of tests/nvml."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import gpus, inventory
from cluster.gpus import Found, NvidiaDriver, amd, measure_gpus, numa_of
from cluster.join import books
from cluster.machine import CpuCore, Gpu, Hardware, Machine, Reserve
from tests.nvml.probe import command

MIB, GIB = 2**20, 2**30
FIRST = "GPU-0a7e41d2-55c0-4c1f-8e21-6b0f9d3c2a10"
SECOND = "GPU-1a7e41d2-55c0-4c1f-8e21-6b0f9d3c2a11"
LONG_S = 60.0
"""What answers does so by then."""


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A machine with a card at each of its two processors, and others of other makers."""
    for place, node in (("0000:07:00.0", 0), ("0000:b7:00.0", 1), ("0000:01:00.0", -1)):
        folder = tmp_path / "bus/pci/devices" / place
        folder.mkdir(parents=True)
        for name, text in (("numa_node", node), ("class", "0x030000"), ("vendor", "0x10de")):
            (folder / name).write_text(f"{text}\n")
    return tmp_path


def found(answers: str, sysfs: Path, silent_s: float = LONG_S) -> Found:
    driver = NvidiaDriver(command(answers), silent_s, sysfs)
    try:
        return driver.ask()
    finally:
        driver.close()


def test_a_card_is_known_by_uuid_with_name_memory_and_driver(sysfs: Path) -> None:
    told = found("one_24gib", sysfs)
    card = Gpu("GPU-3f1c5a90-7d2e-4b6a-9c88-0a1b2c3d4e5f", "NVIDIA GeForce RTX 4090", 24564 * MIB)
    assert (told.gpus, told.driver, told.trouble) == ((card,), "550.54.15", "")
    assert [(p.gpu, p.pid, p.memory_bytes) for p in told.processes] == [(card.uuid, 2211, 418 * MIB)]


def test_each_card_is_on_the_node_of_its_place(sysfs: Path) -> None:
    assert [(gpu.uuid, gpu.numa, gpu.memory_bytes) for gpu in found("two_80gib", sysfs).gpus] == [
        (FIRST, 0, 80 * GIB),
        (SECOND, 1, 80 * GIB),
    ]


def test_how_a_card_does_is_told_as_far_as_its_driver_says(sysfs: Path) -> None:
    memory = {"total_bytes": 85899345920.0, "used_bytes": 629145600.0}
    figures = {"utilization": 0.37, "power_w": 251.5, "temperature_c": 64.0, "energy_j": 90071992547409.93}
    assert found("two_80gib", sysfs).now == {FIRST: memory | figures, SECOND: memory}


@pytest.mark.parametrize(
    ("pci", "node"),
    [("00000000:B7:00.0", 1), ("00000000:01:00.0", None), ("00010000:B7:00.0", None), ("", None)],
)
def test_a_place_that_the_kernel_does_not_know_has_no_node(sysfs: Path, pci: str, node: int | None) -> None:
    assert numa_of(pci, sysfs) == node


def test_a_card_that_is_cut_is_its_instances(sysfs: Path) -> None:
    told = found("mig", sysfs)
    assert [(gpu.kind, gpu.uuid[:4], gpu.name[-11:], gpu.memory_bytes) for gpu in told.gpus] == [
        ("mig", "MIG-", "MIG 3g.40gb", 40448 * MIB),
        ("mig", "MIG-", "MIG 2g.20gb", 20096 * MIB),
        ("mig", "MIG-", "MIG 1g.10gb", 9856 * MIB),
    ]
    assert {gpu.card for gpu in told.gpus} == {"GPU-8b9c0d1e-2f3a-4b5c-8d6e-7f8091a2b3c4"}
    assert told.trouble == ""


def test_a_cut_card_without_instances_is_told_of_with_the_remedy(sysfs: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text((Path(__file__).parent / "nvml/mig.json").read_text().replace('"instances"', '"none"'))
    driver = NvidiaDriver(command(path), LONG_S, sysfs)
    told = driver.ask()
    driver.close()
    assert told.gpus == ()
    assert "GPU-8b9c0d1e" in told.trouble
    assert "nvidia-smi mig -cgi" in told.trouble


@pytest.mark.parametrize("answers", ["one_lost", "one_gone"])
def test_a_lost_gpu_is_told_as_lost_and_the_other_goes_on(sysfs: Path, answers: str) -> None:
    lost, well = found(answers, sysfs).gpus
    assert (lost.state, lost.reason, lost.usable) == ("lost", "GPU is lost", False)
    assert lost.uuid == (FIRST if answers == "one_lost" else "GPU at index 0")
    assert (well.uuid, well.state, well.usable) == (SECOND, "ok", True)


def test_without_driver_and_card_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert found("missing", tmp_path) == Found()


def test_a_card_without_its_driver_is_told_of(sysfs: Path) -> None:
    assert found("missing", sysfs) == Found(trouble="an NVIDIA card without its driver: it is not used")


def test_a_driver_that_is_not_loaded_is_told_of(sysfs: Path) -> None:
    assert found("not_loaded", sysfs) == Found(trouble="NVIDIA's driver: Driver Not Loaded")


def test_a_driver_that_hangs_is_told_of_and_its_child_ended(sysfs: Path) -> None:
    told = found("hangs", sysfs, silent_s=0.5)
    assert told == Found(trouble="NVIDIA's driver has not answered for 0.5 s")
    assert not ours()


def test_a_gpu_that_hangs_is_left_out_and_the_other_asked_anew(sysfs: Path) -> None:
    told = found("one_hangs", sysfs, silent_s=4.0)
    assert [(gpu.uuid, gpu.state) for gpu in told.gpus] == [(FIRST, "hung"), (SECOND, "ok")]
    assert told.gpus[0].reason == "NVIDIA's driver has not answered for 4 s"
    assert not ours()


def test_a_driver_that_holds_its_callers_is_not_asked_again_before_it_lets_one_go(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that the kernel cannot end: one that only looks as if it had ended does for it."""
    monkeypatch.setattr(gpus, "HUNG_MAX", 1)
    monkeypatch.setattr(gpus, "END_S", 0.0)
    driver = NvidiaDriver(command("hangs"), 0.5, sysfs)
    monkeypatch.setattr("subprocess.Popen.kill", lambda _: None)
    driver.ask()
    monkeypatch.undo()
    monkeypatch.setattr(gpus, "HUNG_MAX", 1)
    (held,) = ours()
    assert "has not answered" in driver.ask().trouble
    assert ours() == [held], "it was not asked again"
    os.kill(held, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(held)], timeout=10)
    driver.ask()
    assert not ours()
    driver.close()


def test_one_child_answers_again_and_ends_with_who_asks(sysfs: Path) -> None:
    driver = NvidiaDriver(command("two_80gib"), LONG_S, sysfs)
    first = driver.ask()
    children = ours()
    assert driver.ask() == first
    assert ours() == children
    assert len(children) == 1
    driver.close()
    assert not ours()
    assert "asked no more" in driver.ask().trouble


def test_a_child_that_dies_is_told_of_and_replaced(sysfs: Path) -> None:
    driver = NvidiaDriver(command("two_80gib"), LONG_S, sysfs)
    driver.ask()
    os.kill(ours()[0], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.Process(ours()[0]).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert driver.ask().trouble
    assert len(driver.ask().gpus) == 2
    driver.close()


def test_amds_cards_are_in_the_inventory_only(tmp_path: Path) -> None:
    folder = tmp_path / "class/drm/card1/device"
    folder.mkdir(parents=True)
    for name, text in (
        ("vendor", "0x1002"),
        ("device", "0x744c"),
        ("mem_info_vram_total", "25753026560"),
        ("unique_id", "2b7e151628aed2a6"),
        ("numa_node", "-1"),
    ):
        (folder / name).write_text(f"{text}\n")
    (tmp_path / "class/drm/card1-DP-1").mkdir()
    (card,) = amd(tmp_path)
    assert card == Gpu("AMD-2b7e151628aed2a6", "AMD GPU 0x744c", 25753026560, None, "inventory only")
    assert not card.usable


def test_apples_gpu_is_in_the_inventory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setenv("PATH", "")
    (gpu,) = gpus.apple()
    assert (gpu.kind, gpu.usable) == ("inventory only", False)


def test_the_inventory_has_them_all(monkeypatch: pytest.MonkeyPatch, sysfs: Path) -> None:
    monkeypatch.setattr(gpus, "COMMAND", command("two_80gib"))
    monkeypatch.setattr(inventory, "measure_gpus", lambda: measure_gpus(sysfs))
    hardware = inventory.measure({})
    assert [gpu.uuid for gpu in hardware.gpus if gpu.kind == "card"] == [FIRST, SECOND]
    assert (hardware.gpu_driver, hardware.gpu_trouble) == ("535.129.03", "")
    assert type(hardware).from_json(hardware.to_json()) == hardware


def test_a_machine_whose_driver_hangs_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch, sysfs: Path
) -> None:
    monkeypatch.setattr(gpus, "COMMAND", command("hangs"))
    monkeypatch.setattr(gpus, "SILENT_S", 0.5)
    monkeypatch.setattr(inventory, "measure_gpus", lambda: measure_gpus(sysfs))
    hardware = inventory.measure({})
    assert hardware.cores
    assert "has not answered" in hardware.gpu_trouble


def test_rays_books_have_the_gpus_that_slices_may_have(sysfs: Path) -> None:
    amds = Gpu("AMD-1", "A card", GIB, kind="inventory only")
    hardware = Hardware((CpuCore(0, (0,), "unknown", 0),), GIB, (*found("one_lost", sysfs).gpus, amds))
    machine = Machine("id", "den", "default", "127.0.0.1", hardware, Reserve(0, 0), "ready")
    assert (books(machine).gpus, books(machine).keeper_gpus) == (1, 1)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert not ours()


def ours() -> list[int]:
    """Children that ask a driver."""
    return [child.pid for child in psutil.Process().children()]

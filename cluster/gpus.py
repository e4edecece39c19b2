"""The GPUs of this machine: NVIDIA's for slices, AMD's and Apple's for the inventory alone.

NVIDIA's driver is asked in a child process (gpu_probe.py), which is killed where it does not answer: a call into a
broken driver may never return, and the process that made it may not die either. Shares out nothing.
"""

import contextlib
import json
import os
import platform
import select
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from cluster.machine import Gpu

COMMAND = (sys.executable, "-P", "-m", "cluster.gpu_probe")
SILENT_S = 10.0
"""A driver that has to wake its cards first takes seconds; one that says nothing for so long hangs."""
HUNG_MAX = 2
"""Children that a driver may hold at once; then it is not asked again before one of them has ended."""
END_S = 1.0
LIBRARY_MISSING = 12
"""nvmlReturn_t: NVML_ERROR_LIBRARY_NOT_FOUND."""
SYSFS = Path("/sys")
NVIDIA, AMD = "0x10de", "0x1002"
NO_INSTANCES = "{0} has MIG on and no instances: make some (nvidia-smi mig -cgi PROFILE -C), or turn MIG off"
HUNG = "NVIDIA's driver has not answered for {0:g} s"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a GPU. `memory_bytes`: what it holds there; None where the driver does not tell."""

    gpu: str
    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Found:
    """The GPUs of a machine."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    """The version of NVIDIA's; "" where it does not tell."""
    trouble: str = ""
    """Why there are none, or fewer than there are cards."""
    processes: tuple[GpuProcess, ...] = ()
    bytes_s: Mapping[str, float] = field(default_factory=dict)
    """By UUID, how fast its memory is as the driver says it; without those that do not say."""
    now: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By UUID, how it does, as far as the driver tells: total_bytes and used_bytes, utilization (of the time, 0 to 1),
    power_w, temperature_c, and energy_j since the driver was loaded."""
    hung: int | None = field(default=None, compare=False)
    """The index of the GPU at which the driver stopped answering."""


class NvidiaDriver:
    """Asks NVIDIA's driver, again and again in one child while that answers. For one thread, `close` apart."""

    def __init__(self, command: Sequence[str] = (), silent_s: float = 0.0, sysfs: Path = SYSFS) -> None:
        self._command, self._silent_s, self._sysfs = command, silent_s or SILENT_S, sysfs
        self._child: subprocess.Popen[bytes] | None = None
        self._hung: list[subprocess.Popen[bytes]] = []
        self._closing = threading.Lock()
        self._closed = self._asking = False

    def ask(self) -> Found:
        """What it tells. Where it hangs at one GPU, the others are asked in another child. Raises nothing."""
        found, skip = Found(), list[int]()
        for _ in range(HUNG_MAX + 1):
            told = read(*self._told(skip), self._sysfs)
            found = replace(
                told,
                gpus=(*found.gpus, *told.gpus),
                driver=told.driver or found.driver,
                trouble="; ".join(filter(None, (found.trouble, told.trouble))),
                processes=(*found.processes, *told.processes),
                now={**found.now, **told.now},
            )
            if told.hung is None:
                break
            skip = list(range(told.hung + 1))
        return found

    def close(self) -> None:
        """End the child; a question that waits for it is answered with what came."""
        with self._closing:
            self._closed = True
            if self._child is not None and self._child.poll() is None:
                self._child.kill()
        if not self._asking:
            self._end()

    def _told(self, skip: Sequence[int]) -> tuple[list[dict[str, Any]], str]:
        """The child's lines as far as they came, and why there are no more; "" where it answered."""
        self._hung = [child for child in self._hung if child.poll() is None]
        if len(self._hung) >= HUNG_MAX:
            return [], HUNG.format(self._silent_s)
        lines: list[dict[str, Any]] = []
        why = HUNG.format(self._silent_s)
        self._asking = True
        try:
            child = self._begin()
            for told in self._exchange(child, json.dumps({"skip": list(skip)}) + "\n"):
                lines.append(told)
                if "done" in told:
                    return lines, ""
            if child.poll() is not None:
                why = f"what asks NVIDIA's driver ended with code {child.returncode}"
        except (OSError, ValueError) as error:
            why = f"NVIDIA's driver cannot be asked: {error}"
        finally:
            self._asking = False
        self._end()
        return lines, why

    def _begin(self) -> subprocess.Popen[bytes]:
        """Raises OSError."""
        with self._closing:
            if self._closed:
                raise OSError("it is asked no more")
            if self._child is None:
                root = str(Path(__file__).resolve().parent.parent)
                self._child = subprocess.Popen(
                    self._command or COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": root},
                    start_new_session=True,  # a key that ends who asks is no answer
                )
            return self._child

    def _exchange(self, child: subprocess.Popen[bytes], order: str) -> Iterator[dict[str, Any]]:
        """Its lines, until it ends or says nothing for too long. Raises OSError and ValueError."""
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(order.encode())
        child.stdin.flush()
        waiting = select.poll()
        waiting.register(child.stdout, select.POLLIN)
        text = b""
        while waiting.poll(self._silent_s * 1000):
            more = os.read(child.stdout.fileno(), 65536)
            if not more:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(END_S)
                return
            *lines, text = (text + more).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def _end(self) -> None:
        with self._closing:
            child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_S)
        if child.returncode is None:
            self._hung.append(child)


def measure_gpus(sysfs: Path = SYSFS) -> Found:
    """All GPUs of this machine; those that no slice may have are marked. Raises nothing."""
    driver = NvidiaDriver(sysfs=sysfs)
    try:
        found = driver.ask()
    finally:
        driver.close()
    return replace(found, gpus=(*found.gpus, *amd(sysfs), *apple()))


def read(lines: Sequence[Mapping[str, Any]], why: str, sysfs: Path = SYSFS) -> Found:
    """What the lines of gpu_probe.py say. `why`: for what reason there are no more of them; "" where it said all."""
    gpus, processes, cut, trouble = list[Gpu](), list[GpuProcess](), dict[str, str](), list[str]()
    driver, rates, now = "", dict[str, float](), dict[str, Mapping[str, float]]()
    at: Mapping[str, Any] = {}
    for line in lines:
        if "none" in line:
            trouble += _no_driver(line, sysfs)
        driver = line.get("driver", driver)
        at = line if "at" in line else at
        told = line.get("gpu")
        if told is None:
            continue
        if told.get("cut"):
            cut[told["uuid"]] = NO_INSTANCES.format(told["uuid"])
            continue
        cut.pop(told.get("card", ""), None)
        gpus.append(_gpu(told, sysfs))
        if told.get("bytes_s"):
            rates[told["uuid"]] = told["bytes_s"]
        if told.get("now"):
            now[told["uuid"]] = told["now"]
        processes += [GpuProcess(told["uuid"], pid, held) for pid, held in told.get("processes", ())]
    hung = at["at"] if why and at and not _is_told(at, gpus, lines) else None
    if hung is not None:
        gpus.append(Gpu(at["uuid"] or _nameless(hung), "", 0, state="hung", reason=why))
    elif why:
        trouble.append(why)
    return Found(
        tuple(gpus), driver, "; ".join([*trouble, *cut.values()]), tuple(processes), rates, now, hung
    )


def amd(sysfs: Path = SYSFS) -> tuple[Gpu, ...]:
    """As the kernel's amdgpu driver tells them."""
    found = []
    for device in sorted(sysfs.glob("class/drm/card[0-9]*/device")):
        if _text(device / "vendor") != AMD:
            continue
        uuid = _text(device / "unique_id") or device.resolve().name
        name = _text(device / "product_name") or f"AMD GPU {_text(device / 'device')}"
        memory = _text(device / "mem_info_vram_total")
        numa = _node(_text(device / "numa_node"))
        found.append(Gpu(f"AMD-{uuid}", name, int(memory) if memory.isdigit() else 0, numa, "inventory only"))
    return tuple({gpu.uuid: gpu for gpu in found}.values())


def apple() -> tuple[Gpu, ...]:
    """The one of Apple's own processors, which has no memory of its own."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return ()
    try:
        asked = ("sysctl", "-n", "machdep.cpu.brand_string")
        name = subprocess.run(
            asked, capture_output=True, text=True, timeout=SILENT_S, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        name = "Apple GPU"
    return (Gpu("apple", name, 0, None, "inventory only"),)


def program(pid: int) -> str | None:
    """The name of a process; None for one that is gone, or not to be seen from here."""
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return None


def _gpu(told: Mapping[str, Any], sysfs: Path) -> Gpu:
    failed = told.get("failed", "")
    return Gpu(
        told["uuid"] or _nameless(told["index"]),
        told["name"],
        told["memory_bytes"],
        numa_of(told["pci"], sysfs),
        "mig" if told.get("card") else "card",
        "lost" if failed else "ok",
        failed,
        told.get("card", ""),
    )


def _is_told(at: Mapping[str, Any], gpus: Sequence[Gpu], lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all was said of the GPU that was asked last; of one that is cut, that is not known."""
    last = lines[-1].get("gpu", {})
    return last.get("index") == at["at"] and not last.get("cut") and not last.get("card") and bool(gpus)


def _nameless(index: int) -> str:
    return f"GPU at index {index}"


def _no_driver(line: Mapping[str, Any], sysfs: Path) -> list[str]:
    """Nothing where there is neither driver nor card."""
    if line["code"] != LIBRARY_MISSING:
        return [f"NVIDIA's driver: {line['none']}"]
    cards = (path.parent for path in sysfs.glob("bus/pci/devices/*/class") if _text(path).startswith("0x03"))
    has_card = any(_text(card / "vendor") == NVIDIA for card in cards)
    return ["an NVIDIA card without its driver: it is not used"] if has_card else []


def numa_of(pci: str, sysfs: Path = SYSFS) -> int | None:
    """The NUMA node of a card by NVML's id of its place, `00000000:3B:00.0`; None where the kernel has none."""
    domain, colon, place = pci.lower().partition(":")
    if not colon:
        return None
    return _node(_text(sysfs / "bus/pci/devices" / f"{int(domain, 16):04x}:{place}" / "numa_node"))


def _node(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""

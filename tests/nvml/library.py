"""A stand-in for NVIDIA's management library (libnvidia-ml.so.1), below pynvml: pynvml's own code runs on it.

What it answers stands in the JSON files beside it. They were written by hand after NVIDIA's documentation, not recorded
on cards: the NVML API reference (nvmlReturn_t, nvmlMemory_t, nvmlPciInfo_t, nvmlProcessInfo_t, the chapters on device
queries and multi-instance GPUs) for the shapes, error codes and who returns which, and the MIG user guide for the names
and sizes of instances. Names and memory are those of the cards' data sheets; UUIDs are made up in the documented form.

Of a file: `library` "missing" stands for no such library; `init` is what nvmlInit returns; `devices` are the cards,
each with `returns` (a code for calls by name) and `hangs` (calls that never return), and where MIG is on its
`instances`.
"""

import ctypes
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NAME = "libnvidia-ml.so.1"

SUCCESS, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, INSUFFICIENT_SIZE = 0, 2, 3, 6, 7
UNINITIALIZED = 1
INSTANCES_MAX = 7
NOT_AVAILABLE = 2**64 - 1


class Library:
    """Looked up by the names of NVML's functions, as a CDLL is; each takes what ctypes hands to C."""

    def __init__(self, answers: Path) -> None:
        """Raises OSError, as the loader does, where the library is missing."""
        self._path = answers
        self._open = 0
        self._made: dict[str, Callable[..., Any]] = {}
        if self._read().get("library") == "missing":
            raise OSError(f"{NAME}: cannot open shared object file: No such file or directory")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        known = getattr(type(self), f"_{name}", None)
        if known is None:
            raise AttributeError(name)  # as for a function that an older library lacks
        if name not in self._made:

            def call(*args: Any) -> Any:
                return known(self, *args)

            self._made[name] = call
        return self._made[name]

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path.read_text())
        return found

    # the library

    def _nvmlErrorString(self, code: int) -> bytes:  # noqa: N802
        return {9: b"Driver Not Loaded", 15: b"GPU is lost"}.get(int(code), b"Unknown Error")

    def _nvmlInitWithFlags(self, _flags: int) -> int:  # noqa: N802
        self._answers = self._read()
        if self._answers.get("init") == "hangs":
            _hang()
        code = int(self._answers.get("init", SUCCESS))
        self._open += code == SUCCESS
        return code

    def _nvmlShutdown(self) -> int:  # noqa: N802
        if not self._open:
            return UNINITIALIZED
        self._open -= 1
        return SUCCESS

    def _nvmlSystemGetDriverVersion(self, buffer: Any, _size: Any) -> int:  # noqa: N802
        buffer.value = self._answers["driver"].encode()
        return SUCCESS

    def _nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self._answers["devices"])
        return SUCCESS

    # a device: 1 + index of a card; 1000 * that + 1 + index of an instance

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:  # noqa: N802
        handle = index.value + 1
        _point(device, handle)
        return self._returns(handle, "nvmlDeviceGetHandleByIndex")

    def _nvmlDeviceGetUUID(self, device: Any, buffer: Any, _size: Any) -> int:  # noqa: N802
        buffer.value = self._device(device)["uuid"].encode()
        return self._returns(_number(device), "nvmlDeviceGetUUID")

    def _nvmlDeviceGetName(self, device: Any, buffer: Any, _size: Any) -> int:  # noqa: N802
        buffer.value = self._device(device)["name"].encode()
        return self._returns(_number(device), "nvmlDeviceGetName")

    def _nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:  # noqa: N802
        for key, value in self._device(device)["memory"].items():
            setattr(memory._obj, key, value)
        return self._returns(_number(device), "nvmlDeviceGetMemoryInfo")

    def _nvmlDeviceGetUtilizationRates(self, device: Any, rates: Any) -> int:  # noqa: N802
        code, percent = self._figure(device, "utilization_percent", "nvmlDeviceGetUtilizationRates")
        rates._obj.gpu = percent
        return code

    def _nvmlDeviceGetPowerUsage(self, device: Any, milliwatts: Any) -> int:  # noqa: N802
        code, milliwatts._obj.value = self._figure(device, "milliwatts", "nvmlDeviceGetPowerUsage")
        return code

    def _nvmlDeviceGetTemperature(self, device: Any, _sensor: Any, celsius: Any) -> int:  # noqa: N802
        code, celsius._obj.value = self._figure(device, "celsius", "nvmlDeviceGetTemperature")
        return code

    def _nvmlDeviceGetTotalEnergyConsumption(self, device: Any, millijoules: Any) -> int:  # noqa: N802
        call = "nvmlDeviceGetTotalEnergyConsumption"
        code, millijoules._obj.value = self._figure(device, "millijoules", call)
        return code

    def _figure(self, device: Any, name: str, call: str) -> tuple[int, int]:
        value = self._device(device).get(name)
        return (NOT_SUPPORTED, 0) if value is None else (self._returns(_number(device), call), int(value))

    def _nvmlDeviceGetPciInfo_v3(self, device: Any, info: Any) -> int:  # noqa: N802
        info._obj.busId = self._device(device)["pci"].encode()
        return self._returns(_number(device), "nvmlDeviceGetPciInfo")

    def _nvmlDeviceGetMigMode(self, device: Any, current: Any, pending: Any) -> int:  # noqa: N802
        card = self._device(device)
        if "mig" not in card:
            return NOT_SUPPORTED
        current._obj.value, pending._obj.value = card["mig"]
        return self._returns(_number(device), "nvmlDeviceGetMigMode")

    def _nvmlDeviceGetMaxMigDeviceCount(self, device: Any, count: Any) -> int:  # noqa: N802
        count._obj.value = INSTANCES_MAX if self._device(device).get("mig", [0])[0] else 0
        return SUCCESS

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: Any, instance: Any) -> int:  # noqa: N802
        if index.value >= len(self._device(device).get("instances", ())):
            return NOT_FOUND
        _point(instance, 1000 * _number(device) + index.value + 1)
        return SUCCESS

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, device: Any, count: Any, found: Any) -> int:  # noqa: N802
        return self._processes(device, "compute", count, found)

    def _nvmlDeviceGetGraphicsRunningProcesses_v3(self, device: Any, count: Any, found: Any) -> int:  # noqa: N802
        return self._processes(device, "graphics", count, found)

    def _processes(self, device: Any, kind: str, count: Any, found: Any) -> int:
        code = self._returns(_number(device), f"nvmlDeviceGet{kind.capitalize()}RunningProcesses")
        listed = self._device(device).get(kind, [])
        room, count._obj.value = count._obj.value, len(listed)
        if code != SUCCESS or not listed:
            return code
        if found is None or room < len(listed):
            return INSUFFICIENT_SIZE
        for at, (pid, held) in enumerate(listed):
            found[at].pid = pid
            found[at].usedGpuMemory = NOT_AVAILABLE if held is None else held
        return SUCCESS

    def _device(self, device: Any) -> dict[str, Any]:
        return self._numbered(_number(device))

    def _numbered(self, number: int) -> dict[str, Any]:
        if number > 1000:
            instance: dict[str, Any] = self._numbered(number // 1000)["instances"][number % 1000 - 1]
            return instance
        card: dict[str, Any] = self._answers["devices"][number - 1]
        return card

    def _returns(self, number: int, call: str) -> int:
        device = self._numbered(number)
        if call in device.get("hangs", ()):
            _hang()
        return int(device.get("returns", {}).get(call, SUCCESS))


def install(answers: Path) -> None:
    """From now on the loader of this process finds this library. To be called before pynvml loads it."""
    loader = ctypes.CDLL

    def load(name: str | None, *args: Any, **kwargs: Any) -> Any:
        return Library(answers) if name == NAME else loader(name, *args, **kwargs)

    ctypes.CDLL = load  # type: ignore[assignment,misc]


def _hang() -> None:
    threading.Event().wait()


def _number(device: Any) -> int:
    return int(ctypes.cast(device, ctypes.c_void_p).value or 0)


def _point(device: Any, number: int) -> None:
    ctypes.memmove(
        ctypes.byref(device._obj), ctypes.byref(ctypes.c_void_p(number)), ctypes.sizeof(ctypes.c_void_p)
    )

"""Asks NVIDIA's driver, through NVML, which GPUs there are and who runs on them. The only file that imports pynvml.

Run by cluster/gpus.py as a child process, since a call into a broken driver may never return. Judges nothing.

Speaks JSON by the line. Orders come on stdin until it ends: {"skip": [index of a GPU that is not to be asked]}. Each is
answered with {"none": why} where there is no driver, else with {"driver": version, "count": GPUs}, and for each GPU
{"at": index, "uuid": "" | uuid} before the calls that may hang, then its {"gpu": …}, several for a card that is cut
into MIG instances; last comes {"done": true}.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pynvml

TRANSFERS = 2


def main() -> None:
    for line in sys.stdin:
        _answer(json.loads(line)["skip"])
        _say({"done": True})


def _answer(skip: Collection[int]) -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _say({"none": str(error), "code": int(error.value)})
        return
    try:
        driver, count = _text(pynvml.nvmlSystemGetDriverVersion()), int(pynvml.nvmlDeviceGetCount())
        _say({"driver": driver, "count": count})
        for index in range(count):
            if index not in skip:
                for gpu in _look(index):
                    _say({"gpu": gpu})
    except pynvml.NVMLError as error:
        _say({"none": str(error), "code": int(error.value)})
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _look(index: int) -> Iterator[dict[str, Any]]:
    """One GPU: the card, or what it is cut into. Whatever fails for it alone is told of it."""
    _say({"at": index, "uuid": ""})
    told: dict[str, Any] = {"index": index, "uuid": "", "name": "", "memory_bytes": 0, "pci": ""}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        told["uuid"] = _text(pynvml.nvmlDeviceGetUUID(handle))
        _say({"at": index, "uuid": told["uuid"]})
        told["name"] = _text(pynvml.nvmlDeviceGetName(handle))
        told["pci"] = _text(_known(lambda: pynvml.nvmlDeviceGetPciInfo(handle).busId, ""))
        current, _pending = _known(lambda: pynvml.nvmlDeviceGetMigMode(handle), (0, 0))
        if current == pynvml.NVML_DEVICE_MIG_ENABLE:
            yield from _instances(handle, told)
        else:
            yield {**told, **_filled(handle)}
    except pynvml.NVMLError as error:
        yield {**told, "failed": str(error), "code": int(error.value)}


def _instances(card: Any, told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The card itself is told of too: it says that it is cut."""
    yield {**told, "cut": True}
    for number in range(int(pynvml.nvmlDeviceGetMaxMigDeviceCount(card))):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
            continue  # an instance that was not made
        uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        yield {
            **told,
            "uuid": _text(uuid),
            "name": _text(name),
            "card": told["uuid"],
            **_filled(handle),
        }


def _filled(handle: Any) -> dict[str, Any]:
    """Its memory, 0 where it has none of its own, how fast that is, where it says so, the processes on it, by pid,
    with the bytes that each holds, and its figures."""
    total = _known(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total), 0)
    processes: dict[int, int | None] = {}
    for process in [
        *_known(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle), ()),
        *_known(lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle), ()),
    ]:
        held, before = process.usedGpuMemory, processes.get(int(process.pid))
        processes[int(process.pid)] = before if held is None else max(int(held), before or 0)
    listed = [[pid, held] for pid, held in processes.items()]
    bytes_s, now = _known(lambda: _bytes_s(handle), None), _now(handle)
    return {"memory_bytes": total, "processes": listed, "bytes_s": bytes_s, "now": now}


def _now(handle: Any) -> dict[str, float]:
    """How it does, without what it does not tell: a figure that cannot be had is no fault of the GPU."""
    asks: dict[str, Callable[[], float]] = {
        "total_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).total,
        "used_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used,
        "utilization": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "energy_j": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
    }
    found = {}
    for name, ask in asks.items():
        with contextlib.suppress(pynvml.NVMLError):
            found[name] = float(ask())
    return found


def _bytes_s(handle: Any) -> float:
    """How fast its memory is: bus width times clock, which transfers at both edges."""
    bits = int(pynvml.nvmlDeviceGetMemoryBusWidth(handle))
    mhz = int(pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM))
    return bits / 8 * mhz * 1e6 * TRANSFERS


def _known(ask: Callable[[], Any], otherwise: Any) -> Any:
    """What not every GPU can tell, nor tells everybody."""
    try:
        return ask()
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_FunctionNotFound,
    ):
        return otherwise


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _say(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()

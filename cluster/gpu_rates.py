"""How fast the memory of this machine's GPUs is, as their driver says: bus width times clock. Measures nothing."""

import pynvml

TRANSFERS = 2
"""A clock of memory that transfers at both edges."""


def gpu_bytes_s() -> dict[str, float]:
    """By UUID, bytes a second; without those that do not say."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    found: dict[str, float] = {}
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            try:
                bits = int(pynvml.nvmlDeviceGetMemoryBusWidth(handle))
                mhz = int(pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM))
                uuid = pynvml.nvmlDeviceGetUUID(handle)
            except pynvml.NVMLError:
                continue
            found[uuid.decode() if isinstance(uuid, bytes) else uuid] = bits / 8 * mhz * 1e6 * TRANSFERS
    except pynvml.NVMLError:
        return found
    finally:
        pynvml.nvmlShutdown()
    return found

"""What this machine's CPU is called, and what it can do, as the kernel says."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
MODEL_KEYS = ("model name", "Model", "Hardware", "cpu model")


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """As /proc/cpuinfo spells them (`flags`, on Arm `Features`); empty where there is none (macOS)."""
    return frozenset((_value(cpuinfo, ("flags", "Features")) or "").split())


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """`AMD EPYC 9454`; "" where it is not told."""
    return _value(cpuinfo, MODEL_KEYS) or ""


def _value(cpuinfo: Path, keys: tuple[str, ...]) -> str | None:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, colon, value = line.partition(":")
        if colon and key.strip() in keys:
            return value.strip()
    return None

"""Whether this machine runs guests at the speed of its own CPU, with all that its engines use of it. Starts none."""

import fcntl
import os
import platform
import struct
from collections.abc import Mapping, Set
from pathlib import Path

from cluster.cpu import cpu_flags

DEVICE = Path("/dev/kvm")
GET_SUPPORTED_CPUID = 0xC008AE05
"""KVM_GET_SUPPORTED_CPUID (linux/kvm.h): a count, then so many of ENTRY."""
ENTRY = struct.Struct("7I12x")
"""function, index, flags, eax, ebx, ecx, edx."""
MOST = 256
VECTORS = {
    "avx": (1, "ecx", 28),
    "avx2": (7, "ebx", 5),
    "avx512f": (7, "ebx", 16),
    "amx_tile": (7, "edx", 24),
}
"""By their names in /proc/cpuinfo: function of the instruction CPUID (index 0), register, bit."""


def why_not(device: Path = DEVICE) -> str | None:
    """Why no guest here could do what this machine does; None where it could."""
    if platform.machine() != "x86_64":
        return "guests are made on x86-64 only"
    try:
        descriptor = os.open(device, os.O_RDWR)
    except OSError as error:
        remedy = "its CPU's virtualisation may be off in the firmware, or this user not in the group kvm"
        return f"{device} cannot be opened ({error.strerror}): {remedy}"
    try:
        kept = withheld(cpu_flags(), _supported(descriptor))
    except OSError as error:
        return f"{device} does not say what guests may use ({error.strerror})"
    finally:
        os.close(descriptor)
    if kept:
        return f"{device} keeps {', '.join(kept)} from guests, and llama.cpp is built for them here"
    return None


def withheld(flags: Set[str], supported: Mapping[tuple[int, str], int]) -> tuple[str, ...]:
    """Which of the machine's vector instructions guests do not get. `supported`: by function and register."""
    return tuple(
        name
        for name, (function, register, bit) in VECTORS.items()
        if name in flags and not supported.get((function, register), 0) >> bit & 1
    )


def _supported(descriptor: int) -> dict[tuple[int, str], int]:
    told = bytearray(struct.pack("II", MOST, 0) + bytes(ENTRY.size * MOST))
    fcntl.ioctl(descriptor, GET_SUPPORTED_CPUID, told, True)
    (count,) = struct.unpack_from("I", told)
    found = dict[tuple[int, str], int]()
    for function, index, _, _, ebx, ecx, edx in ENTRY.iter_unpack(told[8 : 8 + ENTRY.size * count]):
        if index == 0:
            found |= {(function, "ebx"): ebx, (function, "ecx"): ecx, (function, "edx"): edx}
    return found

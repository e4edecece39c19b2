"""Kinds of hardware that can be bought, by what their makers say. Pure.

No prices: they change by the week. docs/choosing.md has where each number comes from.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HardwareClass:
    """`memory_gib`: that a model may be in, at most; `bytes_s`: of that memory, as its maker counts it; `shared`: a
    machine's main memory, of which the system takes some."""

    name: str
    memory_gib: int
    bytes_s: float
    shared: bool
    source: str


def _ddr(transfers_s: float, channels: int) -> float:
    """Eight bytes a transfer and channel (JEDEC)."""
    return transfers_s * 8 * channels


CLASSES = (
    HardwareClass("desktop, DDR4-3200, 2 channels", 128, _ddr(3.2e9, 2), True, "JEDEC: 2 x 8 B x 3.2 GT/s"),
    HardwareClass("desktop, DDR5-5600, 2 channels", 192, _ddr(5.6e9, 2), True, "JEDEC: 2 x 8 B x 5.6 GT/s"),
    HardwareClass("Apple M4", 32, 120e9, True, "Apple, Mac mini (2024), technical specifications"),
    HardwareClass("AMD Ryzen AI Max+ 395", 128, 256e9, True, "AMD, product page: 256 bits of LPDDR5X-8000"),
    HardwareClass("Apple M4 Pro", 64, 273e9, True, "Apple, Mac mini (2024), technical specifications"),
    HardwareClass("NVIDIA DGX Spark", 128, 273e9, True, "NVIDIA, DGX Spark, hardware overview"),
    HardwareClass("server, DDR5-4800, 8 channels", 1024, _ddr(4.8e9, 8), True, "JEDEC: 8 x 8 B x 4.8 GT/s"),
    HardwareClass("Apple M4 Max", 128, 546e9, True, "Apple, Mac Studio (2025), technical specifications"),
    HardwareClass("server, DDR5-6000, 12 channels", 1536, _ddr(6.0e9, 12), True, "JEDEC: 12 x 8 B x 6 GT/s"),
    HardwareClass("Apple M3 Ultra", 512, 819e9, True, "Apple, Mac Studio (2025), technical specifications"),
    HardwareClass("NVIDIA RTX 4060 Ti 16 GB", 16, 288e9, False, "NVIDIA, product page"),
    HardwareClass("NVIDIA RTX 3060 12 GB", 12, 360e9, False, "NVIDIA, product page"),
    HardwareClass("NVIDIA L40S", 48, 864e9, False, "NVIDIA, data sheet"),
    HardwareClass("NVIDIA RTX 3090", 24, 936e9, False, "NVIDIA, product page"),
    HardwareClass("NVIDIA RTX 4090", 24, 1008e9, False, "NVIDIA, product page"),
    HardwareClass("NVIDIA RTX 5090", 32, 1792e9, False, "NVIDIA, product page"),
    HardwareClass("NVIDIA RTX PRO 6000 Blackwell", 96, 1792e9, False, "NVIDIA, data sheet"),
    HardwareClass("NVIDIA A100 80 GB PCIe", 80, 1935e9, False, "NVIDIA, data sheet"),
    HardwareClass("NVIDIA H100 SXM", 80, 3350e9, False, "NVIDIA, data sheet"),
    HardwareClass("NVIDIA H200", 141, 4800e9, False, "NVIDIA, data sheet"),
)

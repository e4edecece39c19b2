"""Virtual machines that begin in a second or two: what they need is found, and the command that starts one.

A guest has one virtual CPU that no CPU of the machine is kept for, as people get who start a virtual machine, sees the
machine's files as the user who starts it, and is asked over a forwarded port. Not part of how homeport serves: it is
what slices are measured against. Starts nothing, installs nothing. Whether guests are fast says cluster/kvm.py.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.guest_image import ADDRESS, ROOT_TAG, Lacking, image, init, modules_of, stands_alone

PROGRAM = "qemu-system-x86_64"
MEMORY_BYTES = 1536 * 2**20
GUEST_BYTES = MEMORY_BYTES + 2**27
"""What a guest takes of the machine, QEMU around it included."""
PACKAGES = {
    PROGRAM: "qemu-system-x86",
    "a busybox without libraries": "busybox-static",
    "a kernel with its modules that this user may read": "linux-image-amd64",
}
"""What a guest needs, and Debian's packages that bring it."""
UNPACK = {".xz": "xz", ".gz": "gzip", ".zst": "zstd"}
"""Programs that unpack modules."""


class NoGuests(Exception):
    """What is missing, and how to get it, in a sentence's part."""


@dataclass(frozen=True, slots=True)
class Guests:
    """All that a guest needs. `accelerator`: `kvm`, or QEMU's own `tcg`, which emulates the CPU and is slow."""

    program: str
    shell: Path
    kernel: Path
    modules: tuple[Path, ...]
    """In the order in which they are loaded."""
    accelerator: str = "kvm"

    def command(
        self, folder: Path, program: Sequence[str], env: Mapping[str, str], forwarded: tuple[str, int] | None
    ) -> tuple[str, ...]:
        """What starts a guest that runs `program` with `env`, then ends. What it says comes to stdout. `folder` gets
        what it boots from. `forwarded`: an address and port here that lead to the same port of ADDRESS in it; it
        reaches nothing by itself. Raises OSError and CalledProcessError."""
        loaded = {path.name.partition(".")[0] + ".ko": _unpacked(path) for path in self.modules}
        boot = folder / "guest.cpio"
        boot.touch(0o600)
        boot.write_bytes(image(self.shell.read_bytes(), loaded, init(loaded, program, env)))
        port = (
            ""
            if forwarded is None
            else f",hostfwd=tcp:{forwarded[0]}:{forwarded[1]}-{ADDRESS}:{forwarded[1]}"
        )
        return (
            self.program,
            *("-machine", f"q35,accel={self.accelerator}", "-cpu", "max", "-smp", "1"),
            *("-m", f"{MEMORY_BYTES >> 20}", "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-serial", "stdio"),
            *("-kernel", str(self.kernel), "-initrd", str(boot)),
            *("-append", "console=ttyS0 quiet panic=-1"),
            *("-fsdev", "local,id=files,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", f"virtio-9p-pci,fsdev=files,mount_tag={ROOT_TAG}"),
            *("-netdev", f"user,id=net,restrict=on{port}", "-device", "virtio-net-pci,netdev=net,romfile="),
        )


def find(root: Path) -> Guests:
    """What guests need, the kernel and its modules below `root` (`/`, or where a kernel's package was unpacked): the
    running one if it will do, else the newest. Raises NoGuests."""
    program, shell, kernel = shutil.which(PROGRAM), _shell(), next(_kernels(root), None)
    if program and shell and kernel:
        return Guests(program, shell, *kernel)
    found = zip(PACKAGES, (program, shell, kernel), strict=True)
    lacks = [what for what, has in found if has is None]
    packages = " ".join(PACKAGES[what] for what in lacks)
    raise NoGuests(f"it needs {' and '.join(lacks)} (`apt-get install {packages}`)")


def _shell() -> Path | None:
    found = shutil.which("busybox")
    return Path(found) if found and stands_alone(Path(found).read_bytes()) else None


def _kernels(root: Path) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Kernels that will do, the running one first, then by version downwards."""
    running = os.uname().release
    folders = (root / "lib" / "modules").glob("*")
    best = sorted(folders, key=lambda each: (each.name == running, _version(each.name)), reverse=True)
    for folder in best:
        places = (root / "boot" / f"vmlinuz-{folder.name}", folder / "vmlinuz")
        kernel = next((place for place in places if os.access(place, os.R_OK)), None)
        modules = _modules(folder)
        if kernel is not None and modules is not None:
            yield kernel, modules


def _modules(folder: Path) -> tuple[Path, ...] | None:
    """None where one of them is missing or cannot be unpacked."""
    try:
        names = modules_of(*((folder / f"modules.{name}").read_text() for name in ("dep", "builtin")))
    except (OSError, Lacking):
        return None
    paths = tuple(folder / name for name in names)
    tools = {UNPACK[path.suffix] for path in paths if path.suffix in UNPACK}
    readable = all(os.access(path, os.R_OK) for path in paths)
    return paths if readable and all(map(shutil.which, tools)) else None


def _version(name: str) -> list[tuple[bool, int, str]]:
    """`6.1.0-57-amd64` after `6.1.0-9-amd64`."""
    parts = name.replace("-", ".").split(".")
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _unpacked(path: Path) -> bytes:
    tool = UNPACK.get(path.suffix)
    if tool is None:
        return path.read_bytes()
    return subprocess.run([tool, "-dc", str(path)], stdout=subprocess.PIPE, check=True).stdout

"""`python -m tests.guests`: before `make test`, brings what virtual machines need: QEMU, a shell, a kernel.

On Debian and its kin, as root: programs are installed, a kernel is only unpacked into the cache, so that this machine
never boots from it. Elsewhere it says what is missing and that those tests are skipped; never a failure.
"""

import contextlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.guest import PACKAGES, PROGRAM, Guests, NoGuests, find
from cluster.install import cache_folder
from tests.cluster.packages import install, nothing_starts

KERNEL = "linux-image-amd64"
XZ = b"\xfd7zXZ\x00"
ELF = b"\x7fELF"
COMMAND_S = 300


def guests() -> Guests:
    """With the kernel in the cache, else one of this machine. Raises NoGuests."""
    folder = kernel_folder()
    return find(folder if folder.is_dir() else Path("/"))


def main() -> int:
    """0 always: what is missing then is told by the skipped tests themselves, too."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        with contextlib.suppress(NoGuests):
            guests()
            return 0
        print("Bringing QEMU and a kernel: tests of virtual machines need them.", flush=True)
        wanted = {PROGRAM: PACKAGES[PROGRAM], "busybox": "busybox-static"}
        with nothing_starts():
            install([package for name, package in wanted.items() if shutil.which(name) is None])
        try:
            _bring_kernel(kernel_folder())
        except (OSError, subprocess.SubprocessError, NoGuests) as error:
            print(f"{KERNEL}: {error}", flush=True)
    try:
        guests()
    except NoGuests as lacking:
        print(f"The tests of virtual machines are skipped: {lacking}.", flush=True)
    return 0


def kernel_folder() -> Path:
    """Where the kernel for tests is, once it was brought."""
    return cache_folder(os.environ) / "guest-kernel"


def _bring_kernel(kept: Path) -> None:
    """Of the kernel's package, what `find` finds in it. Raises OSError, SubprocessError and NoGuests."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as made:
        folder, whole, part = Path(made), Path(made) / "whole", Path(made) / "part"
        depends = _run(folder, "apt-cache", "depends", KERNEL).split("Depends: ")[1].split()[0]
        _run(folder, "apt-get", "download", "-qq", depends)
        _run(folder, "dpkg", "-x", *map(str, folder.glob("*.deb")), str(whole))
        _run(folder, "busybox", "depmod", "-b", str(whole), depends.removeprefix("linux-image-"))
        found = find(whole)
        modules = whole / "lib" / "modules" / depends.removeprefix("linux-image-")
        for file in (*found.modules, modules / "modules.dep", modules / "modules.builtin"):
            copy = part / file.relative_to(whole)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        (part / "boot").mkdir()
        (part / found.kernel.relative_to(whole)).write_bytes(_unpacked(found.kernel.read_bytes()))
        shutil.rmtree(kept, ignore_errors=True)
        part.replace(kept)


def _unpacked(kernel: bytes) -> bytes:
    """The kernel proper where it is packed with xz, which an emulated CPU would take a minute to unpack."""
    at = kernel.find(XZ)
    with contextlib.suppress(lzma.LZMAError):
        inner = lzma.LZMADecompressor().decompress(kernel[at:])
        return inner if inner.startswith(ELF) else kernel
    return kernel


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=COMMAND_S,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

"""What a virtual machine boots from beside its kernel: a shell, the kernel's modules and what it is to do. Pure.

The machine around the guest is its disk: seen whole, and what the guest writes stays in the guest's memory. Finds no
file and starts nothing (cluster/guest.py).
"""

import shlex
import struct
from collections.abc import Iterable, Mapping, Sequence

ADDRESS = "10.0.2.15"
"""The guest's, in the network of its own that QEMU's user networking makes."""
ROOT_TAG = "root"
"""Under this name QEMU shares the files of the machine."""
WANTED = ("virtio_pci", "virtio_net", "9pnet_virtio", "9p", "overlay")
"""Modules: devices, network, the shared files, and what is written above them."""
SHELL = "bin/busybox"
FOLDERS = ("bin", "dev", "modules", "shared", "own", "root")
FOLDER, FILE, LINK = 0o040755, 0o100755, 0o120777
MAGIC = "070701"
ELF64, INTERP = b"\x7fELF\x02", 3
INIT = """\
#!/bin/busybox sh
PATH=/bin
fail() {{ echo "homeport: the guest could not $1"; poweroff -f; }}
for each in {modules}; do insmod /modules/$each || fail "load $each"; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 {tag} /shared || fail "see the machine's files"
mount -t tmpfs own /own && mkdir /own/upper /own/work
mount -t overlay -o lowerdir=/shared,upperdir=/own/upper,workdir=/own/work root /root || fail "write above them"
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t devtmpfs dev /root/dev
mkdir /root/dev/shm && mount -t tmpfs shm /root/dev/shm
ip link set lo up
ip addr add {address}/24 dev eth0 && ip link set eth0 up || fail "reach its network"
{exports}
/bin/chroot /root {command}
echo "homeport: the guest's program ended with code $?"
/bin/poweroff -f
"""
APPLETS = ("sh", "insmod", "mount", "mkdir", "ip", "chroot", "poweroff")


class Lacking(Exception):
    """A module that a guest needs is no part of the kernel. The message names it."""


def stands_alone(program: bytes) -> bool:
    """Whether it is a program (ELF, 64 bits) that needs no other file, no loader of libraries first of all."""
    if program[:5] != ELF64:
        return False
    (start,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    return all(struct.unpack_from("<I", program, start + size * each) != (INTERP,) for each in range(count))


def modules_of(dependencies: str, built_in: str) -> tuple[str, ...]:
    """Files of the modules in the order in which they are loaded, from the texts `modules.dep` and `modules.builtin`.
    Raises Lacking."""
    lines = (line.partition(":") for line in dependencies.splitlines())
    known = {_name(path): (path, needs.split()) for path, _, needs in lines}
    within = {_name(path) for path in built_in.split()}
    ordered = dict[str, None]()
    for name in WANTED:
        if name in within:
            continue
        if name not in known:
            raise Lacking(name)
        path, needs = known[name]
        ordered |= dict.fromkeys((*reversed(needs), path))
    return tuple(ordered)


def init(modules: Iterable[str], command: Sequence[str], env: Mapping[str, str]) -> str:
    """The script that the guest's kernel starts: it runs `command` with `env`, then turns the guest off."""
    exports = (f"export {name}={shlex.quote(value)}" for name, value in env.items() if name.isidentifier())
    return INIT.format(
        modules=" ".join(modules),
        tag=ROOT_TAG,
        address=ADDRESS,
        exports="\n".join(exports),
        command=shlex.join(command),
    )


def image(shell: bytes, modules: Mapping[str, bytes], script: str) -> bytes:
    """An archive as kernels unpack it (cpio, `newc`: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    entries = [
        *((name, FOLDER, b"") for name in FOLDERS),
        (SHELL, FILE, shell),
        *((f"bin/{name}", LINK, b"busybox") for name in APPLETS),
        *((f"modules/{name}", FILE, data) for name, data in modules.items()),
        ("init", FILE, script.encode()),
        ("TRAILER!!!", 0, b""),
    ]
    return b"".join(_entry(number, *each) for number, each in enumerate(entries, 1))


def _entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    """inode, mode, uid, gid, links, time, size, four device numbers, length of the name, checksum."""
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = (MAGIC + "".join(f"{field:08x}" for field in fields) + name).encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")

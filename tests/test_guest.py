"""Virtual machines for `homeport bench isolation`: what they need, what they boot from, and real ones.

Real ones emulate the CPU (QEMU's `tcg`): that works wherever QEMU and a kernel are. How fast guests are is no matter
here; the one test of that is test_bench_isolation.py's, where KVM gives them the machine's own CPU.
"""

import dataclasses
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import guest_image, kvm
from cluster.guest import Guests, NoGuests, find
from cluster.guest_image import ADDRESS, WANTED, Lacking, modules_of, stands_alone
from tests.e2e.installation import eventually
from tests.guests import guests
from tests.ports import free_port

BOOT_S = 60.0
DEPENDENCIES = """\
kernel/virtio_ring.ko:
kernel/virtio_pci.ko.xz: kernel/virtio.ko kernel/virtio_ring.ko
kernel/virtio.ko: kernel/virtio_ring.ko
kernel/virtio-net.ko: kernel/virtio.ko kernel/virtio_ring.ko
kernel/9pnet.ko:
kernel/9p.ko: kernel/9pnet.ko
kernel/9pnet_virtio.ko: kernel/virtio.ko kernel/9pnet.ko kernel/virtio_ring.ko
"""


@pytest.fixture
def emulated() -> Guests:
    try:
        return dataclasses.replace(guests(), accelerator="tcg")
    except NoGuests as lacking:
        pytest.skip(str(lacking))


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Of all programs that a guest needs only these are there; none of them needs libraries."""
    for name in names:
        (folder / name).write_bytes(b"\x7fELF\x02" + bytes(59))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def kernel(root: Path, version: str, dependencies: str = DEPENDENCIES) -> Path:
    folder = root / "lib" / "modules" / version
    for line in dependencies.splitlines():
        file = folder / line.partition(":")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (folder / "modules.dep").write_text(dependencies)
    (folder / "modules.builtin").write_text("kernel/fs/overlay.ko\n")
    (root / "boot").mkdir(exist_ok=True)
    (root / "boot" / f"vmlinuz-{version}").touch()
    return root / "boot" / f"vmlinuz-{version}"


def test_modules_are_loaded_after_those_that_they_need_and_each_once() -> None:
    names = [path.rpartition("/")[2] for path in modules_of(DEPENDENCIES, "kernel/fs/overlay.ko")]
    assert names[:3] == ["virtio_ring.ko", "virtio.ko", "virtio_pci.ko.xz"]
    assert names[3:] == ["virtio-net.ko", "9pnet.ko", "9pnet_virtio.ko", "9p.ko"]


def test_a_kernel_without_a_module_that_guests_need_will_not_do() -> None:
    with pytest.raises(Lacking, match="overlay"):
        modules_of(DEPENDENCIES, "")
    assert modules_of("", "\n".join(f"kernel/{name}.ko" for name in WANTED)) == ()


def test_a_program_with_libraries_does_not_stand_alone() -> None:
    assert not stands_alone(Path(sys.executable).read_bytes())
    assert not stands_alone(b"#!/bin/sh\n")


def test_all_that_is_missing_is_named_with_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(tmp_path, monkeypatch)
    with pytest.raises(NoGuests, match="`apt-get install qemu-system-x86 busybox-static linux-image-amd64`"):
        find(tmp_path)
    programs(tmp_path, monkeypatch, "qemu-system-x86_64", "busybox")
    kernel(tmp_path, "6.1.0-57-cloud-amd64", DEPENDENCIES.replace("kernel/9p.ko", "kernel/other.ko"))
    with pytest.raises(
        NoGuests, match=r"^it needs a kernel with its modules .*`apt-get install linux-image-amd64`"
    ):
        find(tmp_path)


def test_the_running_kernel_is_taken_else_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, monkeypatch, "qemu-system-x86_64", "busybox", "xz")
    old, new = kernel(tmp_path, "6.1.0-9-amd64"), kernel(tmp_path, "6.1.0-57-amd64")
    assert find(tmp_path).kernel == new
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "den", "6.1.0-9-amd64", "", "x86_64")))
    assert find(tmp_path).kernel == old
    (tmp_path / "xz").unlink()
    with pytest.raises(NoGuests):
        find(tmp_path)


def test_a_kvm_that_keeps_the_machines_vectors_from_guests_is_seen() -> None:
    flags = frozenset({"avx", "avx2", "sse2"})
    assert kvm.withheld(flags, {(1, "ecx"): 1 << 28, (7, "ebx"): 1 << 5}) == ()
    assert kvm.withheld(flags, {(1, "ecx"): 1 << 28, (7, "ebx"): 1 << 16}) == ("avx2",)
    assert kvm.withheld(flags, {}) == ("avx", "avx2")


def test_without_kvm_it_is_said_what_may_be_off(tmp_path: Path) -> None:
    assert "in the firmware" in (kvm.why_not(tmp_path / "kvm") or "")


@contextmanager
def started(command: tuple[str, ...]) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_guest_sees_the_machines_files_changes_none_and_answers_on_its_port(
    emulated: Guests, tmp_path: Path
) -> None:
    port = free_port()
    serve = f"python -m http.server {port} --bind {ADDRESS}".split()
    written = tmp_path / "written"
    script = f'echo "$TOLD" > {written}; cd {tmp_path}; exec "$@"'
    command = ("/bin/sh", "-c", script, "sh", sys.executable, *serve[1:])
    told = {"TOLD": "it's $HOME", "BASH_FUNC_x%%": "no name in a shell"}
    with started(emulated.command(tmp_path, command, told, ("127.0.0.1", port))):
        address = f"http://127.0.0.1:{port}/written"

        def answered() -> bytes:
            try:
                with urllib.request.urlopen(address, timeout=5.0) as response:
                    return bytes(response.read())
            except OSError:
                return b""

        assert eventually(answered, BOOT_S) == b"it's $HOME\n"
    assert not written.exists()


def test_a_guest_ends_with_its_program_and_says_how(emulated: Guests, tmp_path: Path) -> None:
    with started(emulated.command(tmp_path, ("/bin/false",), {}, None)) as process:
        said, _ = process.communicate(timeout=BOOT_S)
    assert "the guest's program ended with code 1" in said
    assert process.returncode == 0


def test_what_a_guest_boots_from_unpacks_as_any_archive_of_its_kind(tmp_path: Path, emulated: Guests) -> None:
    made = guest_image.image(b"shell", {"a.ko": b"module"}, "#!/bin/busybox sh\n")
    subprocess.run(
        [emulated.shell, "cpio", "-idm"], input=made, cwd=tmp_path, check=True, capture_output=True
    )
    assert (tmp_path / "modules" / "a.ko").read_bytes() == b"module"
    assert (tmp_path / "bin" / "sh").read_bytes() == b"shell"
    assert os.access(tmp_path / "init", os.X_OK)

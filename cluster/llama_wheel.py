"""Gets a wheel of llama-cpp-python that fits this machine: from the cache, else built once and put there.

Decides nothing about what to build (`llama_build.py` does) and installs nothing into homeport.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.commands import Progress, SetupError, run
from cluster.llama_build import (
    CMAKE_FLAGS,
    COMPILER_PACKAGES,
    Backend,
    NoChoice,
    Seen,
    advanced,
    choose_backend,
    compiled_with,
    cpu_identity,
    duration,
    no_compiler,
    progress_text,
    usually,
    wheel_key,
)

BUILD_BYTES = 1 << 30
"""Room that a build takes: the source, the objects, cmake and ninja."""

GPU_VENDORS = frozenset({"0x10de", "0x1002", "0x8086"})


@dataclass(frozen=True, slots=True)
class Target:
    """The wheel that this machine wants; `key` names it in the cache."""

    version: str
    backend: Backend
    key: str
    hints: tuple[str, ...]


def wanted(version: str, env: Mapping[str, str]) -> Target:
    """What to build here. Raises SetupError if HOMEPORT_LLAMA asks for what cannot be built."""
    choice = choose_backend(look(env), env.get("HOMEPORT_LLAMA") or "auto")
    if isinstance(choice, NoChoice):
        raise SetupError(choice.reason)
    cpu = _cpu()
    key = wheel_key(version, choice.backend, cpu, _gpus(), sysconfig.get_platform(), compiled_with(env, cpu))
    return Target(version, choice.backend, key, choice.hints)


def look(env: Mapping[str, str]) -> Seen:
    """Which devices and toolkits this machine has. Reads files and PATH, runs nothing: every start asks."""
    path = env.get("PATH", os.defpath)
    devices, toolkits = set[str](), set[str]()
    if platform.system() == "Darwin":
        if platform.machine() == "arm64":
            devices.add("metal")
        toolkits.add("metal")
    if _any("/dev/nvidia[0-9]*", "/proc/driver/nvidia/gpus/*", "/usr/lib/wsl/lib/libcuda.so.1"):
        devices.add("cuda")
    if Path("/dev/kfd").exists():
        devices.add("rocm")
    if any(
        _read(file).strip() in GPU_VENDORS for file in Path("/sys/class/drm").glob("renderD*/device/vendor")
    ):
        devices.add("vulkan")
    if shutil.which("nvcc", path=path):
        toolkits.add("cuda")
    if shutil.which("hipcc", path=path):
        toolkits.add("rocm")
    headers = (Path(env.get("VULKAN_SDK") or "/usr"), Path("/usr"), Path("/usr/local"))
    if shutil.which("glslc", path=path) and any(
        (root / "include/vulkan/vulkan.h").exists() for root in headers
    ):
        toolkits.add("vulkan")
    return Seen(platform.system(), frozenset(devices), frozenset(toolkits))


def check_compiler(env: Mapping[str, str]) -> None:
    """Raises SetupError, naming the package to install, unless C and C++ can be compiled here."""
    path = env.get("PATH", os.defpath)
    c = (env.get("CC", ""), "cc", "gcc", "clang")
    cpp = (env.get("CXX", ""), "c++", "g++", "clang++")
    found = all(
        any(name and shutil.which(name.split()[0], path=path) for name in names) for names in (c, cpp)
    )
    if found and platform.system() == "Darwin":
        # Without Apple's tools /usr/bin/cc is only an invitation to install them.
        found = (
            subprocess.run(["/usr/bin/xcode-select", "-p"], capture_output=True, check=False).returncode == 0
        )
    if not found:
        managers = [name for name in COMPILER_PACKAGES if shutil.which(name, path=path)]
        raise SetupError(no_compiler(platform.system(), managers))


def cached(cache: Path, key: str) -> Path | None:
    """The wheel of this key, if the cache has it whole; a damaged entry is removed."""
    folder = cache / "llama" / key
    try:
        record = json.loads((folder / "build.json").read_text())
        wheel = folder / str(record["wheel"])
        if hashlib.sha256(wheel.read_bytes()).hexdigest() == record["sha256"]:
            return wheel
    except FileNotFoundError:
        if not folder.exists():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    discard(cache, key)
    return None


def discard(cache: Path, key: str) -> None:
    """Take a wheel out of the cache, because it is damaged or does not load here."""
    shutil.rmtree(cache / "llama" / key, ignore_errors=True)


def obtain(
    cache: Path,
    target: Target,
    tools: Path,
    requirement: str,
    env: Mapping[str, str],
    log: Path,
    progress: Progress,
) -> Path:
    """The wheel from the cache, else built and put there. Two set-ups at once build it once.

    `tools` is the lock of the build's tools, `requirement` the lock's text for the source package.
    Raises SetupError.
    """
    with _only_builder(cache, progress):
        wheel = cached(cache, target.key)
        if wheel is not None:
            return wheel
        check_compiler(env)
        _remove_leftovers(cache)
        with tempfile.TemporaryDirectory(
            prefix="build-", dir=cache / "llama", ignore_cleanup_errors=True
        ) as folder:
            return _build(cache, Path(folder), target, tools, requirement, env, log, progress)


def _build(
    cache: Path,
    folder: Path,
    target: Target,
    tools: Path,
    requirement: str,
    env: Mapping[str, str],
    log: Path,
    progress: Progress,
) -> Path:
    """Build in `folder`, move the result into the cache in one step."""
    cores = _usable_cores()
    usual_s, words = usually(target.backend, cores, _measured_s(cache, target.backend, cores))
    name = "this CPU" if target.backend == "cpu" else target.backend
    progress.say(
        f"- llama.cpp: PyPI has only its source, so it is built here, for {name} ({words} on {cores} cores)"
    )
    python = folder / "tools" / "bin" / "python"
    out, temporary, source = folder / "out", folder / "tmp", folder / "source.txt"
    out.mkdir()
    temporary.mkdir()
    source.write_text(requirement)
    build_env = {
        **compiled_with(env, _cpu()),
        "TMPDIR": str(temporary),
        "PATH": f"{python.parent}{os.pathsep}{env.get('PATH', os.defpath)}",
        "CMAKE_ARGS": " ".join([*CMAKE_FLAGS[target.backend], env.get("CMAKE_ARGS", "")]).strip(),
    }
    far = (0, 0)
    began_s = 0.0

    def heard(line: str) -> None:
        nonlocal far
        far = advanced(far, line)

    def text(elapsed_s: float) -> str:
        return progress_text(*far, began_s + elapsed_s, usual_s, words)

    pip = [str(python), "-m", "pip"]
    hashed = ["--require-hashes", "-r", str(source)]
    commands = [
        [sys.executable, "-m", "venv", str(folder / "tools")],
        [*pip, "install", "--only-binary=:all:", "--require-hashes", "-r", str(tools)],
        # pip's own cache of built wheels knows neither CPU nor backend, so it is not asked.
        [*pip, "wheel", "-v", "--no-cache-dir", "--no-deps", "--no-build-isolation", *hashed, "-w", str(out)],
    ]
    for command in commands:
        began_s += run(command, env=build_env, cwd=folder, log=log, progress=progress, text=text, heard=heard)
    progress.say(f"- llama.cpp: built in {duration(began_s)}, kept in {cache}")
    return _publish(cache, out, target, began_s, cores)


def _publish(cache: Path, out: Path, target: Target, took_s: float, cores: int) -> Path:
    """Move a finished build into the cache: it is there whole or not at all."""
    (wheel,) = out.glob("*.whl")
    record = {
        "wheel": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "backend": target.backend,
        "seconds": round(took_s, 1),
        "cores": cores,
    }
    (out / "build.json").write_text(json.dumps(record))
    final = cache / "llama" / target.key
    out.rename(final)
    return final / wheel.name


@contextmanager
def _only_builder(cache: Path, progress: Progress) -> Iterator[None]:
    """Hold the cache's lock; says so if another set-up has it. The kernel frees it when its holder ends."""
    (cache / "llama").mkdir(parents=True, exist_ok=True)
    with (cache / "llama" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("- llama.cpp: another set-up is building it; waiting for that one")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftovers(cache: Path) -> None:
    """Builds that were killed. Only the holder of the lock may do this."""
    for folder in (cache / "llama").glob("build-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _measured_s(cache: Path, backend: Backend, cores: int) -> float | None:
    """How long the newest build for this backend took on as many cores, if the cache remembers one."""
    found: list[tuple[float, float]] = []
    for file in (cache / "llama").glob("*/build.json"):
        try:
            record = json.loads(file.read_text())
            if record["backend"] == backend and record["cores"] == cores:
                found.append((file.stat().st_mtime, float(record["seconds"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)[1] if found else None


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    text = _read(Path("/proc/cpuinfo"))
    if not text and platform.system() == "Darwin":
        name = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        text = subprocess.run(name, capture_output=True, text=True, check=False).stdout
    return cpu_identity(text, platform.machine())


def _gpus() -> list[str]:
    """The models of NVIDIA's GPUs, for which a native CUDA build holds code."""
    lines = "\n".join(
        _read(file) for file in Path("/proc/driver/nvidia/gpus").glob("*/information")
    ).splitlines()
    return sorted({line.partition(":")[2].strip() for line in lines if line.startswith("Model:")})


def _any(*patterns: str) -> bool:
    return any(any(Path("/").glob(pattern.lstrip("/"))) for pattern in patterns)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""

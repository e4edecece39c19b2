"""What llama.cpp is built for, under which key the wheel is kept, and what is said meanwhile. Pure.

Does not look at the machine, run anything or touch a file: `llama_wheel.py` does. Like all of set-up it needs
nothing but the standard library, because it runs before anything is installed.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Backend = Literal["cpu", "cuda", "rocm", "vulkan", "metal"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
AUTO: tuple[Backend, ...] = ("metal", "cuda", "rocm", "vulkan")
"""In which order `auto` prefers them."""

TOOLKITS: Mapping[str, str] = {
    "cuda": "the CUDA toolkit with nvcc (package nvidia-cuda-toolkit, or NVIDIA's own cuda-toolkit)",
    "rocm": "the ROCm toolkit with hipcc (packages hipcc, libhipblas-dev and librocblas-dev)",
    "vulkan": "Vulkan's headers and glslc (packages libvulkan-dev and glslc)",
    "metal": "macOS with Apple's command line tools (xcode-select --install)",
}
DEVICES: Mapping[str, str] = {
    "cuda": "An NVIDIA GPU",
    "rocm": "An AMD GPU with its compute driver",
    "vulkan": "A GPU that speaks Vulkan",
    "metal": "An Apple GPU",
}
CMAKE_FLAGS: Mapping[Backend, tuple[str, ...]] = {
    "cpu": ("-DGGML_METAL=OFF",),
    "cuda": ("-DGGML_CUDA=ON",),
    "rocm": ("-DGGML_HIP=ON",),
    "vulkan": ("-DGGML_VULKAN=ON",),
    "metal": ("-DGGML_METAL=ON",),
}
BUILD_VARIABLES = ("CMAKE_ARGS", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDAARCHS")
"""What of a person's environment changes the wheel."""

COMPILER_PACKAGES: Mapping[str, str] = {
    "apt-get": "apt-get install g++",
    "dnf": "dnf install gcc-c++",
    "zypper": "zypper install gcc-c++",
    "pacman": "pacman -S gcc",
    "apk": "apk add g++",
}
NO_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
CORE_SECONDS = (720, 840)
"""Least and most that a build for the CPU usually takes, in seconds of one core (measured on two)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What this machine has: `devices` and `toolkits` hold names of backends."""

    system: str
    devices: frozenset[str]
    toolkits: frozenset[str]


@dataclass(frozen=True, slots=True)
class Choice:
    """Build for `backend`. `hints` are sentences about what would make more of the machine."""

    backend: Backend
    hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NoChoice:
    """What was asked for cannot be built here; `reason` is a sentence that names the remedy."""

    reason: str


def choose_backend(seen: Seen, wanted: str) -> Choice | NoChoice:
    """Which backend to build for; `wanted` is HOMEPORT_LLAMA.

    1. auto           -> the first of AUTO whose device and toolkit are both here, else the CPU; a device
                         without its toolkit gives a hint
    2. a backend      -> that one, if its toolkit is here (the device need not be: a wheel can be built ahead)
    3. anything else  -> NoChoice
    """
    if wanted == "auto":
        here = [backend for backend in AUTO if backend in seen.devices]
        ready = [backend for backend in here if backend in seen.toolkits]
        chosen: Backend = ready[0] if ready else "cpu"
        better = here[: here.index(chosen)] if chosen in here else here
        return Choice(chosen, tuple(_hint(backend, chosen) for backend in better[:1]))
    for backend in BACKENDS:
        if backend == wanted:
            if backend == "cpu" or backend in seen.toolkits:
                return Choice(backend)
            return NoChoice(
                f"HOMEPORT_LLAMA={backend} needs {TOOLKITS[backend]}; install it, or set HOMEPORT_LLAMA=cpu."
            )
    known = ", ".join(("auto", *BACKENDS))
    return NoChoice(f"HOMEPORT_LLAMA={wanted} is not known; it can be one of {known}.")


def _hint(backend: Backend, chosen: Backend) -> str:
    target = "the CPU" if chosen == "cpu" else chosen
    return (
        f"{DEVICES[backend]} is here, but not {TOOLKITS[backend]}: building for {target}. "
        "Install it and run `make setup` again to use the GPU."
    )


def no_compiler(system: str, managers: Collection[str]) -> str:
    """The sentence for a machine without a C++ compiler; `managers` are the package managers it has."""
    if system == "Darwin":
        remedy = "run `xcode-select --install`"
        return f"llama.cpp must be built once and there is no C++ compiler: {remedy}, then try again."
    commands = [command for manager, command in COMPILER_PACKAGES.items() if manager in managers]
    remedy = f"run `{commands[0]}`" if commands else "install the package g++ (gcc-c++ on Fedora)"
    return f"llama.cpp must be built once and there is no C++ compiler: {remedy} as root, then try again."


def cpu_identity(cpuinfo: str, machine: str) -> str:
    """What of a CPU decides the code that a native build may contain: its model and its instruction sets.

    `cpuinfo` is /proc/cpuinfo's text (or one line that names the CPU). Clock rates, core numbers,
    microcode and the order of the flags do not count.
    """
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().lower(), value.strip())
    model = [
        facts[name] for name in ("model name", "cpu implementer", "cpu part", "cpu variant") if name in facts
    ]
    flags = sorted((facts.get("flags") or facts.get("features") or "").split())
    return "\n".join([machine, *(model or [cpuinfo.strip()]), *flags])


def compiled_with(env: Mapping[str, str], cpu: str) -> dict[str, str]:
    """The environment of a build for this CPU (as `cpu_identity` tells it).

    Without AMX's tiles: gcc 12 drops the stores of their set-up, since its `_tile_loadconfig` says that it reads eight
    bytes, and the first prompt then ends the process with an illegal instruction (ggml-org/llama.cpp#26954).
    """
    if "amx_tile" not in cpu.splitlines():
        return dict(env)
    flags = {name: " ".join([*env.get(name, "").split(), *NO_AMX]) for name in ("CFLAGS", "CXXFLAGS")}
    return {**env, **flags}


def wheel_key(
    version: str, backend: Backend, cpu: str, gpus: Collection[str], platform: str, options: Mapping[str, str]
) -> str:
    """The name under which a built wheel is kept: equal only where the same build would come out.

    The Python version is not part of it: the wheel holds no extension module and fits every Python 3.
    """
    parts = {
        "cpu": cpu,
        "gpus": [] if backend == "cpu" else sorted(gpus),
        "platform": platform,
        "options": {name: options[name] for name in BUILD_VARIABLES if options.get(name)},
        "flags": CMAKE_FLAGS[backend],
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{version}-{backend}-{digest[:16]}"


def locked(lock: str, name: str) -> tuple[str, str]:
    """Version and requirement text, hashes included, of one package of a lock. LookupError if it has none."""
    match = re.search(rf"^{re.escape(name)}==(\S+)(?:[^\n]*\\\n)*[^\n]*\n?", lock, re.MULTILINE)
    if match is None:
        raise LookupError(f"{name} is not in the lock")
    return match[1], match[0]


def advanced(seen: tuple[int, int], line: str) -> tuple[int, int]:
    """How far a build is, (done, of) after one more line of its output; (0, 0) before the first `[n/m]`.

    Some backends run a smaller build inside the large one: a count out of fewer files is not ours.
    """
    match = re.match(r"\s*\[(\d+)/(\d+)\]", line)
    if match is None:
        return seen
    done, of = int(match[1]), int(match[2])
    return (done, of) if of >= seen[1] and done <= of else seen


def usually(backend: Backend, cores: int, measured_s: float | None) -> tuple[float, str]:
    """How long a build takes, in seconds and in words. `measured_s` is what one took before, if one did."""
    if measured_s is not None:
        return measured_s, f"last time {duration(measured_s)}"
    # A GPU's kernels are compiled many times over, for each type and size.
    slower = (1, 1) if backend in ("cpu", "metal") else (2, 4)
    low, high = (seconds * factor / cores for seconds, factor in zip(CORE_SECONDS, slower, strict=True))
    if _minutes(low) == _minutes(high):
        return high, f"usually {_minutes(high)} min"
    return high, f"usually {_minutes(low)} to {_minutes(high)} min"


def left_s(done: int, of: int, elapsed_s: float, usual_s: float) -> float:
    """How long it still takes, about; never negative. At first what is usual, from half-way on its own pace."""
    if done == 0:
        return max(0.0, usual_s - elapsed_s)
    part = done / of
    trust = min(1.0, 2 * part)
    return (1 - part) * (trust * elapsed_s / part + (1 - trust) * usual_s)


def progress_text(done: int, of: int, elapsed_s: float, usual_s: float, words: str) -> str:
    """The progress line of a build: what happens, how far it is, how long it has taken and will take."""
    if of == 0:
        return f"building llama.cpp: preparing, {_clock(elapsed_s)} so far ({words})"
    left = _clock(left_s(done, of, elapsed_s, usual_s))
    return f"building llama.cpp: step {done} of {of}, {_clock(elapsed_s)} so far, about {left} left ({words})"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """`97.3` as `1 min 37 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _minutes(seconds: float) -> int:
    return max(1, round(seconds / 60))


def explain(lines: Sequence[str]) -> str | None:
    """Why a step failed, read from the output of pip, cmake or a compiler: one sentence with its remedy.

    None if nothing known is in it. Causes are tried in their order: without a network pip ends by saying that
    a package does not exist, which is true of everything then.
    """
    for pattern, sentence in _CAUSES:
        for line in reversed(lines):
            match = re.search(pattern, line)
            if match:
                return sentence.format(*match.groups())
    return None


NO_SPACE = (
    "The disk is full: free some space (HOMEPORT_CACHE can name a folder on a larger disk), then try again."
)
NO_NETWORK = (
    "The package index cannot be reached: set-up needs the network once; check the connection "
    "(or pip's own settings for a proxy or a mirror), then try again."
)
NO_SUCH_PACKAGE = (
    "The package index has no {0} that fits this Python and this machine: use Python 3.11 to 3.14 "
    "on 64-bit Linux with glibc, or on a Mac with Apple silicon."
)
NO_MEMORY = (
    "Memory ran out while compiling: close other programs, or compile one file at a time with "
    "`CMAKE_BUILD_PARALLEL_LEVEL=1 make setup`."
)
WRONG_HASH = (
    "A downloaded package is not the one that the lock names and was not installed; try again, "
    "and if it stays so, distrust the package index in use."
)
NOT_WRITABLE = "{0} cannot be written: make it writable or clone homeport elsewhere, then try again."
NO_CXX = "cmake finds no C++ compiler: install the package g++ (gcc-c++ on Fedora), then try again."
_UNREACHABLE = (
    "NewConnectionError|Failed to establish a new connection|NameResolutionError|Name or service not known",
    "Temporary failure in name resolution|Network is unreachable|Connection refused|ConnectTimeoutError",
    "ReadTimeoutError|Read timed out|ProxyError|SSLError|Max retries exceeded",
)
_CAUSES: tuple[tuple[str, str], ...] = (
    (r"No space left on device|\[Errno 28\]|Disk quota exceeded", NO_SPACE),
    (r"(?:Read-only file system|Permission denied): '([^']+)'", NOT_WRITABLE),
    (r"DO NOT MATCH THE HASHES|HashMismatch", WRONG_HASH),
    ("|".join(_UNREACHABLE), NO_NETWORK),
    (r"No matching distribution found for ([^\s(]+)", NO_SUCH_PACKAGE),
    (
        r"Killed signal terminated program|virtual memory exhausted|out of memory|Cannot allocate memory",
        NO_MEMORY,
    ),
    (r"No CMAKE_C(?:XX)?_COMPILER could be found", NO_CXX),
)

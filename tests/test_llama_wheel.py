"""The cache of built wheels."""

import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cluster import llama_wheel
from cluster.commands import Progress, SetupError
from cluster.llama_wheel import Target, cached, check_compiler, look, obtain

TARGET = Target("0.3.36", "cpu", "0.3.36-cpu-0123456789abcdef", ())
WHEEL = "llama_cpp_python-0.3.36-py3-none-any.whl"
LOCAL = os.environ | {"CC": sys.executable, "CXX": sys.executable}


def entry(cache: Path, content: bytes = b"wheel", *, seconds: float = 100.0, key: str = TARGET.key) -> Path:
    folder = cache / "llama" / key
    folder.mkdir(parents=True)
    (folder / WHEEL).write_bytes(content)
    record = {
        "wheel": WHEEL,
        "sha256": hashlib.sha256(b"wheel").hexdigest(),
        "backend": "cpu",
        "seconds": seconds,
        "cores": 2,
    }
    (folder / "build.json").write_text(json.dumps(record))
    return folder / WHEEL


def get(cache: Path, env: Mapping[str, str], out: io.StringIO) -> Path:
    return obtain(cache, TARGET, cache / "tools.lock", "", env, cache / "log", Progress(out))


def test_a_whole_wheel_is_taken_without_a_compiler(tmp_path: Path) -> None:
    wheel = entry(tmp_path)
    assert get(tmp_path, {"PATH": ""}, io.StringIO()) == wheel


def test_a_damaged_wheel_is_no_wheel(tmp_path: Path) -> None:
    wheel = entry(tmp_path, b"whe")
    assert cached(tmp_path, TARGET.key) is None
    assert not wheel.parent.exists()


def test_a_broken_record_is_no_wheel(tmp_path: Path) -> None:
    (entry(tmp_path).parent / "build.json").write_text("{")
    assert cached(tmp_path, TARGET.key) is None


def test_an_empty_cache_has_nothing_and_stays_empty(tmp_path: Path) -> None:
    assert cached(tmp_path, TARGET.key) is None
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_nothing_is_built_and_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no C\+\+ compiler.*g\+\+|xcode-select"):
        get(tmp_path, {"PATH": str(tmp_path)}, io.StringIO())


def test_a_compiler_of_ones_own_is_seen() -> None:
    check_compiler({"PATH": "", "CC": sys.executable, "CXX": f"{sys.executable} -x"})


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[Path]]:
    """Replaces the build by a callable that takes its time, followed by the real publishing."""

    def replace(work: Callable[[], None]) -> list[Path]:
        folders: list[Path] = []

        def build(cache: Path, folder: Path, target: Target, *_: object) -> Path:
            folders.append(folder)
            out = folder / "out"
            out.mkdir()
            (out / WHEEL).write_bytes(b"built")
            work()
            return llama_wheel._publish(cache, out, target, 12.3, 2)

        monkeypatch.setattr(llama_wheel, "_build", build)
        return folders

    return replace


def test_a_build_is_published_whole_and_its_folder_goes(
    tmp_path: Path, building: Callable[[Callable[[], None]], list[Path]]
) -> None:
    folders = building(lambda: None)
    wheel = get(tmp_path, LOCAL, io.StringIO())
    assert wheel.read_bytes() == b"built"
    assert cached(tmp_path, TARGET.key) == wheel
    assert not folders[0].exists()
    assert llama_wheel._measured_s(tmp_path, "cpu", 2) == 12.3


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, building: Callable[[Callable[[], None]], list[Path]]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    building(interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path, LOCAL, io.StringIO())
    assert [path.name for path in (tmp_path / "llama").iterdir()] == ["lock"]


def test_what_a_killed_build_left_is_removed_by_the_next(
    tmp_path: Path, building: Callable[[Callable[[], None]], list[Path]]
) -> None:
    building(lambda: None)
    left = tmp_path / "llama" / "build-killed"
    left.mkdir(parents=True)
    get(tmp_path, LOCAL, io.StringIO())
    assert not left.exists()


class Waiting(io.StringIO):
    """Says when the other set-up has told that it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def write(self, text: str) -> int:
        if "waiting" in text:
            self.told.set()
        return super().write(text)


def test_two_set_ups_at_once_build_once(
    tmp_path: Path, building: Callable[[Callable[[], None]], list[Path]]
) -> None:
    out, started = Waiting(), threading.Event()

    def until_the_other_waits() -> None:
        started.set()
        assert out.told.wait(10)

    folders = building(until_the_other_waits)
    got: list[Path] = []
    first = threading.Thread(target=lambda: got.append(get(tmp_path, LOCAL, io.StringIO())))
    first.start()
    assert started.wait(10)
    got.append(get(tmp_path, LOCAL, out))
    first.join(10)
    assert len(folders) == 1
    assert got[0] == got[1]


def test_the_time_of_the_last_build_is_remembered(tmp_path: Path) -> None:
    entry(tmp_path, seconds=391.2, key="0.3.35-cpu-0")
    assert llama_wheel._measured_s(tmp_path, "cpu", 2) == 391.2
    assert llama_wheel._measured_s(tmp_path, "cpu", 8) is None
    assert llama_wheel._measured_s(tmp_path, "cuda", 2) is None


def test_a_toolkit_is_seen_on_path(tmp_path: Path) -> None:
    for name in ("nvcc", "hipcc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert {"cuda", "rocm"} <= look({"PATH": str(tmp_path)}).toolkits
    assert not {"cuda", "rocm"} & look({"PATH": str(tmp_path / "none")}).toolkits


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="nvcc"):
        llama_wheel.wanted("0.3.36", {"PATH": str(tmp_path), "HOMEPORT_LLAMA": "cuda"})

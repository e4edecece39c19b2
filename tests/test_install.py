"""Set-up does what is missing, once, and says in one sentence why it cannot."""

import errno
import io
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import install, llama_wheel, wheelhouse
from cluster.commands import Progress, SetupError
from cluster.install import Setup, cache_folder, sentence_for
from cluster.stamp import BUILD_LOCK, LOCKS, NODEPS_LOCK, Profile, Stamp

ROOT = Path(__file__).parent.parent
SOURCES = (*LOCKS.values(), BUILD_LOCK, NODEPS_LOCK, "pyproject.toml", "cluster")
WANTED = Stamp("locks", "python", "llama")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in which nothing is set up."""
    root = tmp_path / "clone"
    root.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch, clone: Path) -> Callable[..., list[str]]:
    """Runs set-up in the clone with its steps replaced by their names; returns which were taken."""
    taken: list[str] = []

    def step(name: str, work: Callable[[Path], None] = lambda _: None) -> None:
        def run(self: Setup, *_: object) -> None:
            taken.append(name)
            work(self.venv)

        monkeypatch.setattr(Setup, f"_{name}", run)

    def make_venv(venv: Path) -> None:
        (venv / "bin").mkdir(exist_ok=True)
        if not (venv / "bin" / "python").exists():
            (venv / "bin" / "python").symlink_to(sys.executable)

    step("make_venv", make_venv)
    for name in ("check_room", "install_packages", "install_llama", "install_model", "pip"):
        step(name)
    monkeypatch.setattr(llama_wheel, "check_compiler", lambda _: None)

    def run(profile: Profile = "runtime", **env: str) -> list[str]:
        taken.clear()
        places = {"PATH": os.environ["PATH"], "HOMEPORT_CACHE": str(clone / "cache")}
        Setup(clone, profile, {**places, **env}, Progress(io.StringIO())).run(quiet=True)
        return list(taken)

    return run


def test_the_second_run_does_nothing(set_up: Callable[..., list[str]]) -> None:
    assert "install_packages" in set_up()
    assert set_up() == []


def test_tests_after_up_bring_the_tools_and_up_after_tests_brings_nothing(
    set_up: Callable[..., list[str]],
) -> None:
    set_up("runtime")
    assert "install_packages" in set_up("dev")
    assert set_up("runtime") == []
    assert set_up("dev") == []
    assert "install_packages" in set_up("bench")
    assert set_up("dev") == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-nodeps.lock", "pyproject.toml"])
def test_a_changed_lock_is_set_up_anew(set_up: Callable[..., list[str]], clone: Path, name: str) -> None:
    set_up()
    with (clone / name).open("a") as file:
        file.write("# changed\n")
    assert "install_packages" in set_up()
    assert set_up() == []


def test_other_build_options_or_a_lost_python_are_set_up_anew(
    set_up: Callable[..., list[str]], clone: Path
) -> None:
    set_up()
    assert "install_llama" in set_up(CMAKE_ARGS="-DGGML_NATIVE=OFF")
    (clone / ".venv" / "bin" / "python").unlink()
    assert "make_venv" in set_up(CMAKE_ARGS="-DGGML_NATIVE=OFF")


def test_a_step_that_fails_leaves_nothing_that_passes_for_done(
    monkeypatch: pytest.MonkeyPatch, set_up: Callable[..., list[str]], clone: Path
) -> None:
    set_up()
    with (clone / "requirements.lock").open("a") as file:
        file.write("# changed\n")
    whole = Setup._install_model

    def fail(self: Setup) -> None:
        raise SetupError("no")

    monkeypatch.setattr(Setup, "_install_model", fail)
    with pytest.raises(SetupError):
        set_up()
    assert not (clone / ".venv" / "homeport.json").exists()
    monkeypatch.setattr(Setup, "_install_model", whole)
    assert "install_model" in set_up()


def test_a_stamp_that_cannot_be_read_is_no_stamp(set_up: Callable[..., list[str]], clone: Path) -> None:
    set_up()
    (clone / ".venv" / "homeport.json").write_text('{"digest": 1, "other": 2}')
    assert "install_packages" in set_up()


def test_a_stamp_covers_its_own_profile_and_less() -> None:
    dev = Stamp("locks", "python", "llama", "dev")
    bench = Stamp("locks", "python", "llama", "bench")
    assert bench.covers(dev)
    assert not dev.covers(bench)
    assert dev.covers(WANTED)
    assert dev.covers(dev)
    assert not WANTED.covers(dev)
    assert not Stamp("locks", "python", "other", "dev").covers(WANTED)


def test_a_wheelhouse_is_for_the_runtime_and_a_failure_with_it_names_it(
    monkeypatch: pytest.MonkeyPatch, set_up: Callable[..., list[str]], clone: Path
) -> None:
    (clone / "wheelhouse").mkdir()
    wheelhouse.seal(clone / "wheelhouse", wheelhouse.wanted(clone))
    asked: dict[str, dict[str, str]] = {}

    def note(self: Setup) -> None:
        asked[self.profile] = self._pip_env()

    monkeypatch.setattr(Setup, "_install_packages", note)
    set_up("runtime")
    assert asked["runtime"]["PIP_FIND_LINKS"] == (clone / "wheelhouse").as_uri()
    set_up("dev")
    assert "PIP_NO_INDEX" not in asked["dev"]

    def fail(self: Setup) -> None:
        raise SetupError("No wheel.")

    monkeypatch.setattr(Setup, "_install_packages", fail)
    (clone / ".venv" / "homeport.json").unlink()
    with pytest.raises(SetupError, match="Nothing but wheelhouse/ was asked"):
        set_up("runtime")


class Llama:
    """The environment's llama-cpp-python as the steps see it: `loads` says for each wheel whether it does."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *loads: bool, cache: bool = True
    ) -> None:
        self.loads, self.kept, self.built, self.installed = list(loads), cache, 0, 0
        (tmp_path / ".venv").mkdir()
        self.setup = Setup(tmp_path, "runtime", {"HOMEPORT_LLAMA": "cpu"}, Progress(io.StringIO()))
        monkeypatch.setattr(llama_wheel, "cached", lambda *_: Path("wheel") if self.kept else None)
        monkeypatch.setattr(llama_wheel, "obtain", self.obtain)
        monkeypatch.setattr(llama_wheel, "discard", self.discard)
        monkeypatch.setattr(Setup, "_pip", self.install)
        monkeypatch.setattr(Setup, "_loads", lambda *_: self.loads.pop(0))

    def obtain(self, *_: object) -> Path:
        self.built += not self.kept
        self.kept = True
        return Path("wheel")

    def discard(self, *_: object) -> None:
        self.kept = False

    def install(self, *_: object) -> None:
        self.installed += 1

    def run(self) -> None:
        target = llama_wheel.Target("0.3.36", "cpu", "key", ())
        self.setup._install_llama(target, "requirement", Path("cache"))


def test_the_cached_wheel_is_installed_and_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llama = Llama(monkeypatch, tmp_path, True, True)
    llama.run()
    assert (llama.built, llama.installed) == (0, 1)
    assert llama.setup.llama_mark.read_text() == "key"
    llama.run()
    assert llama.installed == 1


def test_a_cached_wheel_that_does_not_load_is_built_anew_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    llama = Llama(monkeypatch, tmp_path, False, True)
    llama.run()
    assert (llama.built, llama.installed) == (1, 2)


def test_a_built_wheel_that_does_not_load_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    llama = Llama(monkeypatch, tmp_path, False, cache=False)
    with pytest.raises(SetupError, match="does not load here"):
        llama.run()
    assert llama.built == 1
    assert not llama.kept
    assert not llama.setup.llama_mark.exists()


def test_a_wheel_that_a_person_installed_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llama = Llama(monkeypatch, tmp_path, True)
    llama.setup = Setup(tmp_path, "runtime", {}, Progress(io.StringIO()))
    llama.run()
    assert llama.installed == 0


Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_said_before_anything_is_installed(
    monkeypatch: pytest.MonkeyPatch, clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 200 << 20))
    monkeypatch.setattr(install, "ROOT", clone)
    monkeypatch.setenv("HOMEPORT_CACHE", str(clone / "cache"))
    monkeypatch.setattr(llama_wheel, "check_compiler", lambda _: None)
    assert install.main([]) == 1
    said = capsys.readouterr().err
    assert "0.2 GiB are free and set-up needs 2.5 GiB" in said
    assert said.count("\n") == 1
    assert not (clone / ".venv" / "bin").exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "The disk is full"),
        (errno.EROFS, "/clone/.venv cannot be written"),
        (errno.EACCES, "/clone/.venv cannot be written"),
        (errno.ENOTDIR, "Set-up failed: Not a directory (/clone/.venv)"),
    ],
)
def test_errors_of_the_file_system_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, said: str
) -> None:
    def fail(self: Setup, *, quiet: bool) -> None:
        raise OSError(number, os.strerror(number), "/clone/.venv")

    monkeypatch.setattr(Setup, "run", fail)
    assert install.main([]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_an_interrupt_is_one_sentence_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: Setup, *, quiet: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Setup, "run", interrupt)
    assert install.main([]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_cache_has_one_folder() -> None:
    assert cache_folder({"HOMEPORT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/homeport")
    assert cache_folder({}) == Path.home() / ".cache" / "homeport"


def test_an_unnamed_error_keeps_its_words() -> None:
    assert "Invalid argument" in sentence_for(OSError(errno.EINVAL, "Invalid argument", "x"))


def bootstrap(clone: Path, **env: str) -> subprocess.CompletedProcess[str]:
    places = {"HOME": str(clone), "HOMEPORT_CACHE": str(clone / "cache"), "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, "-m", "cluster.bootstrap"]
    return subprocess.run(
        command, cwd=clone, env={**places, **env}, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_machine_without_a_compiler_is_told_which_package_brings_one(clone: Path) -> None:
    done = bootstrap(clone, PATH=str(clone))
    assert done.returncode == 1
    assert "no C++ compiler" in done.stderr
    assert "g++" in done.stderr or "xcode-select" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (clone / ".venv" / "bin").exists()


def test_a_machine_without_a_network_is_told_so_and_nothing_passes_for_done(clone: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # Bound and not listening: connections are refused for as long as we hold it.
        index = f"http://127.0.0.1:{listener.getsockname()[1]}/simple"
        env = {"PIP_INDEX_URL": index, "PIP_RETRIES": "1", "CC": sys.executable, "CXX": sys.executable}
        done = bootstrap(clone, PATH="", **env)
    assert done.returncode == 1
    assert "package index cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (clone / ".venv" / "homeport.json").exists()

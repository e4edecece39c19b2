"""Brings the client programs that `make test-clients` runs, or says why not: `python -m tests.clients.prepare`.

From Python's and npm's package indexes; node itself comes from the former. Afterwards nothing is fetched any more.
"""

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.commands import Progress, SetupError, alone, run
from cluster.llama_build import duration
from cluster.wheelhouse import pip_environment
from tests.clients.programs import LOCKS, NODE, PEERS, PYTHON, Programs, programs, versions

ROOM_BYTES = 6 << 30
"""3 GiB in the end, and the downloads."""
UV = Path(sys.executable).parent / "uv"


def lacking() -> str | None:
    """Why these tests cannot run here; None: they can, once it is set up."""
    if sys.platform != "linux":
        return "they are run on Linux only"
    target = programs()
    if not target.is_whole:
        target.folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.folder.parent).free
        if free < ROOM_BYTES:
            return f"they need {ROOM_BYTES >> 30} GiB of disk, and {free / 2**30:.1f} are free in {target.folder}"
    return None


@dataclass(frozen=True, slots=True)
class Setup:
    """One run of set-up."""

    target: Programs
    env: Mapping[str, str]
    progress: Progress

    def run(self) -> None:
        """Install what the locks name, unless it is there. Raises SetupError or OSError."""
        above = self.target.folder.parent
        above.mkdir(parents=True, exist_ok=True)
        with alone(
            above / "setup.lock", self.progress, "Another set-up of the clients runs; waiting for it."
        ):
            if self.target.is_whole:
                return
            for old in (path for path in above.iterdir() if path.is_dir()):
                shutil.rmtree(old, ignore_errors=True)
            (self.target.folder / "tmp").mkdir(parents=True)
            took_s = sum(map(self._python, (*PYTHON, PEERS))) + self._npm() + self._sources()
            shutil.rmtree(self.target.folder / "tmp", ignore_errors=True)
            self.target.stamp.write_text(json.dumps(versions()))
        self.progress.say(f"The client programs are installed: {duration(took_s)}")

    def _python(self, environment: str) -> float:
        folder = self.target.folder / environment
        made_s = self._run([str(UV), "venv", "--python", sys.executable, str(folder)], environment)
        sync = [str(UV), "pip", "sync", "--python", str(folder / "bin" / "python")]
        return made_s + self._run([*sync, str(LOCKS / f"{environment}.txt")], environment)

    def _npm(self) -> float:
        folder = self.target.folder / NODE
        folder.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(LOCKS / name, folder / name)
        # Not `ci`: it minds that the lock lacks binaries of other systems, which an index may not have. Install
        # scripts only put in place what the packages of binaries hold.
        quiet = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=http"]
        return self._run([*self.target.npm, "install", *quiet, "--prefix", str(folder)], NODE)

    def _sources(self) -> float:
        """Peers' releases, for the tests in them and how those are set up; nothing is built or installed."""
        fetched = self.target.folder / "tmp" / "sources"
        pinned = LOCKS / "sources.txt"
        names = [line.partition("==")[0] for line in pinned.read_text().split()]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ",".join(names),
        ]
        took_s = self._run([*pip, "--dest", str(fetched), "--requirement", str(pinned)], "sources")
        for archive in sorted(fetched.glob("*.tar.gz")):
            with tarfile.open(archive) as held:
                wanted = [m for m in held if "/tests/" in m.name or m.name.count("/") == 1]
                held.extractall(self.target.folder / "sources", wanted, filter="data")
        return took_s

    def _run(self, command: list[str], what: str) -> float:
        seen = 0

        def heard(_: str) -> None:
            nonlocal seen
            seen += 1

        return run(
            command,
            env=self._env(),
            cwd=self.target.folder,
            log=self.target.folder / "setup.log",
            progress=self.progress,
            text=lambda seconds: f"client programs ({what}): {seen} lines, {duration(seconds)} so far",
            heard=heard,
        )

    def _env(self) -> dict[str, str]:
        temporary = self.target.folder / "tmp"
        path = f"{self.target.folder / 'sdks' / 'bin'}{os.pathsep}{self.env.get('PATH', '')}"
        return {**pip_environment(self.env, temporary, None), "PATH": path, "UV_LINK_MODE": "copy"}


def main() -> None:
    if (why := lacking()) is not None:
        print(f"The clients are not set up: {why}. Their tests are skipped.")
        return
    try:
        Setup(programs(), os.environ, Progress(sys.stdout)).run()
    except SetupError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

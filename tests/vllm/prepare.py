"""Sets vLLM up for the tests, or says why this machine cannot: `python -m tests.vllm.prepare`."""

import os
import shutil
import sys

import psutil

from cluster.commands import Progress, SetupError
from cluster.install import cache_folder
from cluster.vllm_env import bundled_folder, vllm_env
from cluster.vllm_install import ROOM_BYTES, VllmSetup
from serving.source import bundled_model

NEEDED_BYTES = 8 << 30
"""Both engines, Ray, and the tests."""


def lacking() -> str | None:
    """Why these tests cannot run here; None: they can, once it is set up."""
    if sys.platform != "linux":
        return "vLLM for CPUs comes for Linux only"
    if len(os.sched_getaffinity(0)) < 2:
        return "two engines side by side need two cores, and there is one"
    free = psutil.virtual_memory().available
    if free < NEEDED_BYTES:
        return f"both engines need {NEEDED_BYTES >> 30} GiB of memory, and {free / 2**30:.1f} are free"
    if not is_set_up():
        folder = cache_folder(os.environ)
        folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(folder).free
        if disk < ROOM_BYTES["cpu"]:
            return f"vLLM needs {ROOM_BYTES['cpu'] >> 30} GiB of disk, and {disk / 2**30:.1f} are free in {folder}"
    return None


def is_set_up() -> bool:
    return vllm_env(os.environ, "cpu").is_whole and bundled_folder(os.environ).is_dir()


def main() -> None:
    if (why := lacking()) is not None:
        print(f"vLLM is not set up: {why}. Its tests are skipped.")
        return
    try:
        VllmSetup(os.environ, "cpu", Progress(sys.stdout)).run(bundled_model())
    except SetupError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

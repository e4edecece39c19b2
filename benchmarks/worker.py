"""A child process that does as it is told: a line of JSON in, a line of JSON out."""

import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from benchmarks.cores import Cores, starting_on


class Worker:
    """`command` are Python's arguments. It says its first line when it is ready; it ends when stdin does."""

    def __init__(self, cores: Cores, *command: str) -> None:
        self._name = " ".join(command)
        with starting_on(cores.engines) as env:
            self._process = subprocess.Popen(
                [sys.executable, *command], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        self.ready = self._hear()

    def tell(self, **command: Any) -> dict[str, Any]:
        """Its answer. Raises RuntimeError when it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with code {self._process.wait()}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

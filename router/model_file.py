"""router.json while the router runs: what the config says of models, watched for change.

Who changes it is router/lifecycle.py. What else stands there holds from the router's start.
"""

import asyncio
import json
import logging
from pathlib import Path

from cluster.paths import stamp
from serving.model import ModelSpec

LOOK_S = 1.0

log = logging.getLogger("homeport.router")


class ModelFile:
    """Keeps `specs` as the file says, in place: whoever was given it sees the change."""

    def __init__(self, path: Path, specs: dict[str, ModelSpec]) -> None:
        self._path = path
        self._specs = specs
        self._stamp: tuple[int, int] | None = None

    async def run(self) -> None:
        """For ever. A file that cannot be read changes nothing."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Look at it now. It is replaced whole, so that another content is another inode."""
        now = stamp(self._path)
        if now in (None, self._stamp):
            return
        try:
            told = json.loads(self._path.read_text())["models"]
            specs = {spec.name: spec for spec in map(ModelSpec.from_json, told)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be used, what it said of models holds on: %s", self._path, error)
            return
        self._stamp = now
        if specs != self._specs:
            log.info("models: %s", ", ".join(specs))
            self._specs.clear()
            self._specs.update(specs)

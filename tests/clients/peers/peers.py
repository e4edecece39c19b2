"""Peers whose own tests are run against a homeport as they are, and which of those are left out and why. Pure.

The tests come with the sources of the pinned releases (`tests/clients/locks/sources.txt`). Each is either run or named
in `left_out.toml`, itself or its file or folder.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

LEFT_OUT = Path(__file__).with_name("left_out.toml")


@dataclass(frozen=True, slots=True)
class Peer:
    """One whose tests speak HTTP to whoever listens."""

    name: str
    source: str
    """The package whose source holds them."""
    folder: PurePosixPath
    """Where they are run, within the source."""
    suite: PurePosixPath
    """Which folder of tests, within that."""
    workers: int = 2
    """How many of them run at once."""


LLAMA_SERVER = Peer(
    "llama-server",
    "llama-cpp-python",
    PurePosixPath("vendor/llama.cpp/tools/server/tests"),
    PurePosixPath("unit"),
    workers=0,  # each worker would look for a server of its own
)
OPENAI = Peer("openai-python", "openai", PurePosixPath("."), PurePosixPath("tests/api_resources"))
ANTHROPIC = Peer("anthropic-python", "anthropic", PurePosixPath("."), PurePosixPath("tests/api_resources"))
PEERS = (LLAMA_SERVER, OPENAI, ANTHROPIC)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why some tests do not apply."""

    text: str
    tests: tuple[str, ...]
    """Below the suite: files, folders or `file::test`; a test stands for itself with each of its parameters, and one in
    a class is named without it."""


def left_out(path: Path = LEFT_OUT) -> dict[str, tuple[Reason, ...]]:
    """By the peer's name."""
    told = tomllib.loads(path.read_text())
    return {
        name: tuple(Reason(each["reason"], tuple(each["tests"])) for each in reasons)
        for name, reasons in told.items()
    }


def plain(test: str) -> str:
    """A test's name as pytest says it, without its class."""
    file, _, rest = test.partition("::")
    path, bracket, given = rest.partition("[")
    return f"{file}::{path.rpartition('::')[2]}{bracket}{given}"


def covers(left: str, test: str) -> bool:
    """Whether what is left out is this test or above it."""
    return test == left or test.startswith((f"{left}/", f"{left}::", f"{left}["))


def applies(reasons: tuple[Reason, ...], test: str) -> bool:
    """Whether a test is to pass: its plain name, below the suite."""
    return not any(covers(left, test) for reason in reasons for left in reason.tests)


def as_table(reasons: Mapping[str, tuple[Reason, ...]]) -> str:
    """For docs/compatibility.md."""
    rows = ["| peer | left out | why |", "| --- | --- | --- |"]
    for peer, each in reasons.items():
        rows += [f"| {peer} | {', '.join(f'`{test}`' for test in one.tests)} | {one.text} |" for one in each]
    return "\n".join(rows)

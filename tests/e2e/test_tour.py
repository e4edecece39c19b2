"""docs/sessions.md is run from top to bottom, pasted into one shell as a reader does.

Its blocks are indented. In them lines with `#` are promises: each is to be found, in their order, in what the command
above it prints. Changed is only where homeport listens and which virtual environment runs. In a promise stand:

- `den-pc` for the name of this machine, `den-pc/0` for one replica, the same on the whole page
- `hp_4c99…` for one session, the same on the whole page and no other's; `hp_…` for any
- 0 for 0, another number for any but 0, seconds for any time, `…` for anything
- `(…)` behind two spaces for nothing: it is a remark
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.installation import Homeport, eventually

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "sessions.md").read_text()
LISTEN = "127.0.0.1:8000"
MACHINE, HOME = "den-pc", "den-pc/0"
END = "--- that was it ---"
TOKEN = re.compile(r"hp_[0-9a-f]*…|den-pc/0|den-pc|…|\d+ s\b|\d+|\s+|.", re.DOTALL)


@dataclass(frozen=True)
class Step:
    """What is pasted at once, and what the page says that it prints."""

    command: str
    promises: tuple[str, ...]


def steps() -> list[Step]:
    """Of the page, in their order. A block's lines up to its promises are one."""
    found = []
    for block in re.findall(r"(?:^ {4}.*\n)+", PAGE, re.MULTILINE):
        command: list[str] = []
        promises: list[str] = []
        for line in (line[4:] for line in block.splitlines()):
            if promises and not line.startswith("#"):
                found.append(Step("\n".join(command), tuple(promises)))
                command, promises = [], []
            (promises if line.startswith("#") else command).append(line)
        found.append(Step("\n".join(command), tuple(promises)))
    return found


class Shell:
    """One bash that keeps its functions and variables, as a reader's does."""

    def __init__(self, homeport: Homeport) -> None:
        self._listen = f"127.0.0.1:{homeport.ports['router']}"
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=ROOT,
            env=homeport.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def paste(self, command: str) -> list[str]:
        """The lines that it prints."""
        command = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/").replace(
            LISTEN, self._listen
        )
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.write(f"{{\n{command}\n}} < /dev/null\nprintf '\\n%s\\n' '{END}'\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line == f"{END}\n":
                return lines
            lines.append(line.rstrip("\r\n"))
        raise AssertionError("the shell has ended:\n" + "\n".join(lines))

    def end(self) -> None:
        """With all that it started."""
        os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.communicate()


@pytest.fixture
def shell(homeport: Homeport, tmp_path: Path) -> Iterator[Shell]:
    """In the shared homeport, whose sessions are afterwards those that were there before."""
    before = {session["id"] for session in homeport.get("/api/sessions")["sessions"]}
    made = Shell(homeport)
    try:
        made.paste(f"export TMPDIR={tmp_path}")
        yield made
    finally:
        made.end()
        for session in homeport.get("/api/sessions")["sessions"]:
            if session["id"] not in before:
                homeport.run("end", session["id"])


@dataclass
class Promises:
    """Compares, and remembers what the page's names stand for."""

    known: dict[str, str] = field(default_factory=dict)

    def check(self, step: Step, printed: list[str]) -> None:
        rest = iter(printed)
        for promise in step.promises:
            if not any(self._holds(promise, line) for line in rest):
                shown = "\n".join(printed)
                raise AssertionError(
                    f"{step.command}\ndoes not print, in its order:\n{promise}\nbut:\n{shown}"
                )

    def _holds(self, promise: str, line: str) -> bool:
        said = re.sub(r"\s{2,}\(.*\)$", "", promise.removeprefix("#").strip())
        names: list[str] = []
        found = re.search("".join(self._pattern(token, names) for token in TOKEN.findall(said)), line)
        if found is None or set(found.groups()) & set(self.known.values()):
            return False
        self.known.update(zip(names, found.groups(), strict=True))
        return True

    def _pattern(self, token: str, names: list[str]) -> str:
        """`names`: what the groups stand for, in their order; it grows here."""
        if token in self.known:
            return re.escape(self.known[token]) + r"(?![\w/])"
        if token == "hp_…":
            return "hp_[0-9a-f]{24}"
        if token.startswith("hp_"):
            names.append(token)
            return "(hp_[0-9a-f]{24})"
        if token == HOME:
            names.append(token)
            return rf"({re.escape(self.known[MACHINE])}/\d+)"
        if token == "…":
            return ".*"
        if token.endswith(" s"):
            return r"\d+ (?:s|min)\b"
        if token.isdigit():
            return r"(?<!\d)0(?!\d)" if token == "0" else r"(?<!\d)[1-9]\d*"
        return r"\s+" if token.isspace() else re.escape(token)


def answer(printed: list[str]) -> dict[str, Any]:
    found = json.loads(next(line for line in printed if line.startswith("{")))
    assert isinstance(found, dict)
    return found


def picture_is_true(homeport: Homeport) -> bool:
    """Whether the router has heard of all that its hosts did: a reader is slower than that."""
    counts = ("turns", "running", "waiting")
    return all(
        [replica[name] for name in counts] == [homeport.host_state(replica)[name] for name in counts]
        for replica in homeport.replicas()
    )


def test_the_tour_shows_what_it_promises(homeport: Homeport, shell: Shell) -> None:
    promises = Promises({MACHINE: homeport.get("/api/fleet")["machines"][0]["name"]})
    held = 0
    for step in steps():
        eventually(lambda: picture_is_true(homeport))
        printed = shell.paste(step.command)
        promises.check(step, printed)
        if step.command.startswith("turn harbour"):
            told = answer(printed)
            about, usage = told["homeport"], told["usage"]
            assert about["reused_tokens"] + about["evaluated_tokens"] == usage["prompt_tokens"]
            if about["pin"] == "kept":  # a template may write the end of an answer otherwise
                assert about["reused_tokens"] >= held - 2, "its context is used again"
            held = usage["total_tokens"]


def test_each_command_of_the_tour_has_a_promise() -> None:
    assert "```" not in PAGE, "blocks are indented here"
    helpers, *others = steps()
    assert [line for line in helpers.command.splitlines() if line[0].isalpha()] == [
        "chats=$(mktemp -d)",
        "ask() {  # MESSAGES [OPTIONS OF CURL]",
        "turn() {  # SESSION WORDS [OPTIONS OF CURL]",
    ]
    assert len(others) >= 12
    assert [step.command for step in others if not step.promises] == []


def test_the_tour_names_the_times_of_the_config() -> None:
    model = yaml.safe_load((ROOT / "configs" / "homeport.yaml").read_text())["models"][0]
    assert (model["hold"], model["queue"], model["parking"]["keep"]) == ("10s", "60s", "30d")
    for words in ("`hold` (10 s)", "`queue` (60 s)", "`parking.keep` (30 days)"):
        assert words in PAGE

"""Every command of the README is run, as it stands there but for ports and a quick bench; each promise names a test
that exists."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.processes import ours
from tests.e2e.installation import Homeport

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
LISTEN = "127.0.0.1:8000"


def commands() -> list[str]:
    """The shell commands of the README in their order, continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def shell(homeport: Homeport, command: str) -> subprocess.CompletedProcess[str]:
    """A command in a clone whose virtual environment is the one that runs the tests. The bench is a quick one: a whole
    one takes minutes, on cores that other tests use too."""
    command = command.replace("homeport bench machine", "homeport bench machine --quick")
    command = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    command = command.replace(LISTEN, f"127.0.0.1:{homeport.ports['router']}")
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**homeport.env, "HOMEPORT_CONFIG": str(homeport.config)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.timeout(300)
def test_each_command_does_what_the_readme_says(fresh: Homeport) -> None:
    found = commands()
    assert found[:2] == ["make up", "make test"], "the two commands come first"
    assert subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, check=False).returncode == 0
    process = subprocess.Popen(
        ["make", "up"],
        cwd=ROOT,
        env={**fresh.env, "HOMEPORT_CONFIG": str(fresh.config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "Listening on" in line:
                break
        else:
            raise AssertionError("".join(printed))
        rest = found[2:]
        for command in [c for c in rest if not re.search(r"homeport (up|down)", c)]:
            done = shell(fresh, command)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            if command.startswith("curl"):
                assert "Paris" in spoken(done.stdout), done.stdout
        assert "Paris" in python_block(fresh)
        process.terminate()
        process.communicate(timeout=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert ours(fresh.paths) == []
    for command in [c for c in rest if re.search(r"homeport (up|down)", c)]:
        done = shell(fresh, command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert ours(fresh.paths) == []


def spoken(stream: str) -> str:
    """The text of a stream of events, which must be whole."""
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", stream
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def python_block(homeport: Homeport) -> str:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block
    script = block[1].replace(LISTEN, f"127.0.0.1:{homeport.ports['router']}")
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_promise_names_a_test_that_exists() -> None:
    promised = re.findall(r"`(test_\w+)`", README)
    assert len(promised) >= 8
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [name for name in promised if not re.search(rf"def {name}\w*\(", written)]
    assert missing == []


def headings(file: Path) -> set[str]:
    """The names that a page's headings have in links, as GitHub makes them."""
    found = re.findall(r"^##+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_each_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert links
    files = {link: ROOT / (link.partition("#")[0] or "README.md") for link in links}
    assert [link for link, file in files.items() if not file.exists()] == []
    marks = {link: link.partition("#")[2] for link in links if "#" in link}
    assert [link for link, mark in marks.items() if mark not in headings(files[link])] == []

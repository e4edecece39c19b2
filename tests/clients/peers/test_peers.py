"""Peers' own tests, as they were released, against a whole homeport with the bundled model."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.clients.peers.peers import ANTHROPIC, LLAMA_SERVER, OPENAI, Peer, applies, covers, left_out, plain
from tests.clients.programs import PEERS as ENVIRONMENT
from tests.clients.programs import Programs
from tests.e2e.installation import Homeport, ended_after
from tests.ports import free_port

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[3]
NAME = "gpt-6-astra"
"""As OpenAI's tests call their model."""
TEMPLATE = ROOT / "tests" / "templates" / "smollm2_tools.jinja"
MODEL = (
    f"  - {{name: {NAME}, source: bundled, needs: {{cores: 1, memory: 1GiB}}, sessions: 8, hold: 1s, queue: 60s,\n"
    f"     context: 768, options: {{chat_template: {TEMPLATE}}}}}\n"
)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of what stands before the homeport."""
    with ended_after(Homeport(tmp_path_factory.mktemp("peers"), models=MODEL)) as homeport:
        homeport.up()
        with fronted(homeport) as port:
            yield port


@contextmanager
def fronted(homeport: Homeport) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "tests.clients.peers.front", str(port), homeport.url, NAME]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as front:
        try:
            assert front.stdout is not None
            assert front.stdout.readline() == "listening\n"
            yield port
        finally:
            front.kill()


def ran(folder: Path, python: Path, env: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "--timeout", "120", *more]
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as tests:  # fmt: skip
        try:
            said, _ = tests.communicate()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(tests.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, tests.returncode, said)


@pytest.mark.parametrize("peer", [LLAMA_SERVER, OPENAI, ANTHROPIC], ids=lambda peer: peer.name)
def test_what_applies_passes(peer: Peer, installed: Programs, port: int, tmp_path: Path) -> None:
    base = f"http://127.0.0.1:{port}"
    env = {
        **os.environ,
        "DEBUG_EXTERNAL": "1",  # llama-server's tests then start none
        "PORT": str(port),
        "TEST_API_BASE_URL": base if peer is ANTHROPIC else f"{base}/v1",
    }
    folder, python = installed.source(peer.source) / peer.folder, installed.python(ENVIRONMENT)
    collected = ran(folder, python, env, "-n", "0", "--collect-only", "-q", str(peer.suite))
    tests = [line for line in collected.stdout.splitlines() if line.startswith(f"{peer.suite}/")]
    assert tests, collected.stdout[-4000:]
    names = {test: plain(test.removeprefix(f"{peer.suite}/")) for test in tests}
    reasons = left_out()[peer.name]
    for left in (each for reason in reasons for each in reason.tests):
        assert any(covers(left, name) for name in names.values()), f"{left}: no test of this release"
    chosen = [test for test, name in names.items() if applies(reasons, name)]
    arguments = tmp_path / "tests"
    arguments.write_text("".join(f"{test}\n" for test in chosen))
    done = ran(folder, python, env, "-n", str(peer.workers), f"@{arguments}")
    print(f"{peer.name}: {len(chosen)} of {len(tests)} tests apply")
    assert done.returncode == 0, done.stdout[-8000:]

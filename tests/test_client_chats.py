"""The home that a client program gets in tests, with this Python as the program: it leaves nothing behind."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.clients.chat import Chat, chat
from tests.clients.offline import direct
from tests.ports import free_port

LEAVES = """
import os, subprocess, tempfile
child = ["sleep", "600"]
print(tempfile.mkdtemp(), subprocess.Popen(child, start_new_session=True).pid)
"""


def ran(talk: Chat, code: str) -> list[str]:
    talk.run([sys.executable, "-c", code], {})
    return talk.said.split()


def test_what_a_program_leaves_behind_ends_with_its_chat(tmp_path: Path) -> None:
    with chat(tmp_path / "home", free_port(), "none") as talk:
        folder, child = ran(talk, LEAVES)
        assert Path(folder).is_dir()
        assert psutil.pid_exists(int(child))
    assert not Path(folder).exists()
    assert not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE


def test_a_program_sees_nothing_of_the_environment_that_tests_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "https_proxy", "ANTHROPIC_API_KEY", "NODE_OPTIONS", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with chat(tmp_path / "home", free_port(), "none") as talk:
        said = " ".join(ran(talk, "import os; print(*map(str, os.environ.items()))"))
    assert "127.0.0.1:9" not in said
    assert f"'HOME', '{tmp_path / 'home'}'" in said
    assert os.environ["HOME"] != str(tmp_path / "home")


def test_nobody_is_asked_through_a_proxy() -> None:
    assert direct({"HTTPS_PROXY": "x", "http_proxy": "x", "NO_PROXY": "x", "PATH": "/bin"}) == {
        "PATH": "/bin"
    }

"""The unit for systemd: what stands in it, that what it names starts, that `down` stops it. No systemd runs here."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster import service_unit
from cluster.ending import end_everything
from cluster.paths import Paths, read_json, secret, write_private
from cluster.processes import ours
from cluster.restarting import running, take_up_lock
from router import cli

PATIENCE_S = 30.0
CONFIG = """\
router: {{listen: 127.0.0.1:{port}}}
network: {{control: {control}, ports: 18100-18110}}
models: [{{name: m, source: bundled, needs: {{memory: 64MiB}}, context: 1024}}]
"""


class Account:
    """One user's folders; a `systemctl` that writes down what it is told, or none that works."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.paths = Paths(folder / "ho me%", folder / "locks")
        self.paths.make()
        self.said, self.bin = folder / "said", folder / "bin"
        self.bin.mkdir()
        monkeypatch.setenv("HOMEPORT_HOME", str(self.paths.home))
        monkeypatch.setenv("HOMEPORT_LOCKS", str(self.paths.locks))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        monkeypatch.setenv("PATH", str(self.bin))
        self.config = folder / "homeport.yaml"

    @property
    def unit(self) -> Path:
        return self.folder / "config" / "systemd" / "user" / "homeport.service"

    def with_systemd(self) -> None:
        for name in ("systemctl", "loginctl"):
            program = self.bin / name
            program.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.said}\n')
            program.chmod(0o755)

    def joins(self, head: str) -> None:
        write_private(self.paths.joined, json.dumps({"head": head, "name": None}))

    def serves(self, port: int = 18000) -> None:
        self.config.write_text(CONFIG.format(port=port, control=18090))

    def run(self, *words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, ["service", *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    def lines(self, key: str) -> list[str]:
        """The values of a key, in order."""
        text = self.unit.read_text().splitlines()
        return [line.partition("=")[2] for line in text if line.startswith(f"{key}=")]

    def words(self, key: str) -> list[str]:
        """As systemd reads them: unquoted, %% and $$ halved."""
        return [
            word.replace("%%", "%").replace("$$", "$")
            for line in self.lines(key)
            for word in shlex.split(line, posix=True)
        ]

    def start(self) -> subprocess.Popen[str]:
        """What systemd would do."""
        environment = dict(word.split("=", 1) for word in self.words("Environment"))
        return subprocess.Popen(
            self.words("ExecStart"),
            env={"PATH": os.defpath, "HOME": str(self.folder), **environment},
            cwd=self.lines("WorkingDirectory")[0].replace("%%", "%"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    return Account(tmp_path, monkeypatch)


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_machine_that_joined_gets_its_service_and_is_told_what_to_run(account: Account) -> None:
    account.joins("http://10.0.0.1:8090")
    code, told = account.run("install")
    assert code == 0, told
    for line in (
        "systemctl --user daemon-reload && systemctl --user enable --now homeport.service",
        "loginctl enable-linger",
    ):
        assert line in told
    assert account.words("ExecStart")[1:] == ["-m", "cluster.service", "--wait"]
    assert (account.lines("Restart"), account.lines("KillMode")) == (["always"], ["process"])
    assert "@" not in account.unit.read_text()
    assert f"HOMEPORT_HOME={account.paths.home}" in account.words("Environment")


def test_systemd_finds_nothing_wrong_with_it(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    analyze = shutil.which("systemd-analyze", path=os.defpath)
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    account.joins("http://10.0.0.1:8090")
    account.run("install")
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(account.unit)], capture_output=True, text=True, check=False
    )
    ours_only = [line for line in done.stderr.splitlines() if "homeport.service" in line]
    assert ours_only == [], done.stderr


def test_where_systemd_answers_it_is_enabled_and_disabled(account: Account) -> None:
    account.with_systemd()
    account.joins("http://10.0.0.1:8090")
    code, told = account.run("install")
    assert (code, "It is enabled" in told) == (0, True)
    assert account.said.read_text().splitlines() == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now homeport.service",
        "loginctl enable-linger",
    ]
    account.said.unlink()
    assert account.run("remove")[0] == 0
    assert not account.unit.exists()
    assert account.said.read_text().splitlines()[0] == "systemctl --user disable --now homeport.service"
    assert "nothing is to be removed" in account.run("remove")[1]


def test_down_stops_the_unit_of_its_own_state_folder_only(account: Account, tmp_path: Path) -> None:
    account.with_systemd()
    account.joins("http://10.0.0.1:8090")
    account.run("install")
    account.said.unlink()
    other = Paths(tmp_path / "other", tmp_path / "locks")
    other.make()
    service_unit.stop(other)
    assert not account.said.exists()
    end_everything(account.paths)
    assert account.said.read_text() == "systemctl --user stop homeport.service\n"


def test_what_the_unit_names_starts_the_service_and_waits_while_another_one_runs(account: Account) -> None:
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        account.joins(f"http://127.0.0.1:{taken.getsockname()[1]}")
        secret(account.paths.cluster_token)
        account.run("install")
        lock = take_up_lock(account.paths)
        assert lock is not None
        service = account.start()
        try:
            until(lambda: ours(account.paths, "parent"), "`down` does not find it")
            assert not account.paths.run.exists()
            os.close(lock)

            def heals() -> bool:
                step = (read_json(account.paths.run) or {}).get("steps", {}).get("ray", {})
                return bool(step.get("state") == "failed")

            until(heals, "it did not begin")
            run = running(account.paths)
            assert run is not None
            assert (run["role"], run["parent"]) == ("worker", service.pid)
        finally:
            service.terminate()
            told = service.communicate(timeout=PATIENCE_S)[0]
        assert service.returncode == 0, told
        assert "Traceback" not in told


def test_a_head_starts_with_its_config_or_says_why_not(account: Account) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        account.serves(port=taken.getsockname()[1])
        code, told = account.run("install", "--config", str(account.config))
        assert code == 0, told
        assert account.words("ExecStart")[1:] == ["-m", "router.head_service", str(account.config)]
        service = account.start()
        told = service.communicate(timeout=PATIENCE_S)[0]
    assert service.returncode == 1
    assert "is taken by" in told
    assert "Traceback" not in told


def test_a_config_that_is_wrong_installs_nothing(account: Account) -> None:
    account.config.write_text("models: [")
    code, _ = account.run("install", "--config", str(account.config))
    assert (code, account.unit.exists()) == (2, False)

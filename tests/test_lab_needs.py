"""Whether a laboratory can be built here is found by trying, and what is brought for it starts nothing."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster import lab, packages


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, unshare: str) -> None:
    """All that a laboratory needs is there, and this is `unshare`."""
    for name in lab.NEEDS:
        (folder / name).write_text(f"#!/bin/sh\n{unshare if name == 'unshare' else 'exit 0'}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(lab, "HIDDEN", ())


def test_root_of_a_container_that_may_make_no_namespaces_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs(tmp_path, monkeypatch, "echo 'Operation not permitted' >&2; exit 1")
    assert lab.missing() == ["namespaces (CAP_SYS_ADMIN)"]
    assert packages.main() == 0
    assert "are skipped, for want of namespaces (CAP_SYS_ADMIN)." in capsys.readouterr().out


def test_where_it_works_nothing_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, monkeypatch, "exit 0")
    assert lab.missing() == []


def test_what_is_installed_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(packages, "POLICY", policy)
    with packages.nothing_starts():
        assert subprocess.run([policy, "ssh", "start"], check=False).returncode == 101
    assert not policy.exists()
    policy.write_text("a person's")
    with packages.nothing_starts():
        assert policy.read_text() == "a person's"
    assert policy.read_text() == "a person's"
    monkeypatch.setattr(packages, "POLICY", tmp_path / "nowhere" / "policy-rc.d")
    with packages.nothing_starts():
        pass


def test_what_is_installed_does_not_start_at_boot_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    packages.not_at_boot(["dbus-daemon", "prometheus"])
    assert told.read_text() == "disable --quiet prometheus\n"

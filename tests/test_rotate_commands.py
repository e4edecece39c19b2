"""`homeport rotate-secrets`. That machines get in again afterwards: tests/cluster/test_tls.py."""

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster import machine_tls
from cluster.paths import Paths, secret, write_private
from cluster.restarting import take_up_lock
from router import cli
from serving.join_tokens import Now, make


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    monkeypatch.setenv("HOMEPORT_HOME", str(made.home))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(made.locks))
    return made


def have_secrets(paths: Paths) -> dict[Path, str]:
    """Everything that a head has made once; it is told by its file."""
    machine_tls.certify_head(paths, "0" * 32, "10.99.0.1", time.time())
    make(paths, Now.here(), speaks_tls=True)
    paths.join_token.parent.mkdir(exist_ok=True)
    write_private(paths.join_token, "of a list")
    for part in paths.spoken:
        secret(part)
    files = (*paths.spoken, paths.authority, paths.key, paths.join_token, paths.join_tokens)
    return {part: part.read_text() for part in files}


def rotate() -> Result:
    return CliRunner().invoke(cli.app, ["rotate-secrets"])


def test_nothing_that_was_known_is_left_and_the_next_start_makes_others(paths: Paths) -> None:
    before = have_secrets(paths)
    digest_key = secret(paths.digest_key)
    paths.gcs.mkdir(parents=True)
    done = rotate()
    assert done.exit_code == 0, done.output
    assert "new CA" in done.output
    assert not any(part.exists() for part in before)
    assert not paths.gcs.exists(), "Ray would wait for machines that cannot come back"
    assert paths.digest_key.read_text() == digest_key, "sessions are named by it"
    after = have_secrets(paths)
    assert all(after[part] != text for part, text in before.items() if part != paths.join_token)


def test_under_a_running_cluster_nothing_is_changed(paths: Paths) -> None:
    before = have_secrets(paths)
    lock = take_up_lock(paths)
    assert lock is not None
    try:
        refused = rotate()
    finally:
        os.close(lock)
    assert refused.exit_code == 2
    assert "homeport down --all" in refused.output
    assert {part: part.read_text() for part in before} == before


def test_a_machine_that_joined_says_where(paths: Paths) -> None:
    before = have_secrets(paths)
    write_private(paths.joined, json.dumps({"head": "https://10.99.0.1:8090", "name": "attic"}))
    refused = rotate()
    assert refused.exit_code == 2
    assert "https://10.99.0.1:8090" in refused.output
    assert {part: part.read_text() for part in before} == before


def test_where_nothing_was_ever_started_there_is_nothing_to_change(paths: Paths) -> None:
    refused = rotate()
    assert refused.exit_code == 2
    assert "on its head" in refused.output


def test_a_folder_that_cannot_be_written_is_named(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    have_secrets(paths)

    def read_only(part: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system", str(part))

    monkeypatch.setattr(Path, "unlink", read_only)
    refused = rotate()
    monkeypatch.undo()
    assert refused.exit_code == 1
    assert "Read-only file system" in refused.output

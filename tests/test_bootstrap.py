"""Which Python sets up, and what is said where none will do."""

import ast
import sys
from pathlib import Path

import pytest

from cluster import bootstrap

ROOT = Path(__file__).parent.parent


class Handed(Exception):
    """Raised in the place of exec."""


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []

    def execv(program: str, arguments: list[str]) -> None:
        calls.append([program, *arguments[1:]])
        raise Handed

    monkeypatch.setattr("os.execv", execv)
    return calls


def program(folder: Path, name: str, script: str) -> str:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("file", ["cluster/bootstrap.py", "cluster/__init__.py"])
def test_an_old_python_can_read_the_entry(file: str) -> None:
    ast.parse((ROOT / file).read_text(), feature_version=(3, 6))


def test_too_old_and_nothing_newer_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 18, "final", 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bootstrap.main([]) == 1
    said = capsys.readouterr().err
    assert "needs Python 3.11 or newer" in said
    assert "this is 3.8" in said
    assert "install python3.11" in said
    assert said.count("\n") == 1


def test_too_old_hands_over_to_a_newer_one_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, handed: list[list[str]]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 18, "final", 0))
    program(tmp_path / "shims", "python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    program(tmp_path / "shims", "python3.12", "printf 'False\\nvenv\\n'")
    good = program(tmp_path / "bin", "python3.12", "printf 'True\\nvenv\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{tmp_path / 'bin'}")
    with pytest.raises(Handed):
        bootstrap.main(["dev"])
    assert handed == [[good, "-m", "cluster.bootstrap", "dev"]]


def test_a_python_that_makes_no_environments_names_python3_venv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "can_make_environments", lambda: False)
    program(tmp_path, "python3", "echo True; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bootstrap.main([]) == 1
    said = capsys.readouterr().err
    assert "python3-venv" in said
    assert sys.executable in said


def test_a_python_without_environments_hands_over_to_one_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, handed: list[list[str]]
) -> None:
    monkeypatch.setattr(bootstrap, "can_make_environments", lambda: False)
    good = program(tmp_path, "python3.11", "printf 'True\\nvenv\\n'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Handed):
        bootstrap.main([])
    assert handed == [[good, "-m", "cluster.bootstrap"]]


def test_this_python_is_found_complete_by_its_own_probe() -> None:
    assert bootstrap.probe(sys.executable) == (True, True)

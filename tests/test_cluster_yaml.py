"""configs/cluster.yaml and bin/ray: what Ray does with them, without any machine. tests/cluster/ does it for real."""

import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LIST = yaml.safe_load((ROOT / "configs" / "cluster.yaml").read_text())


def test_every_command_of_the_list_is_one_that_a_shell_can_read() -> None:
    found = [command for key, value in LIST.items() if key.endswith("commands") for command in value]
    assert len(found) == 4
    for command in found:
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0, command
        assert subprocess.run(["sh", "-n", "-c", f"({command})"], check=False).returncode == 0, command


def test_the_environment_keys_and_caches_of_a_clone_stay_where_they_are() -> None:
    assert LIST["file_mounts"] == {"~/homeport": "serving/.."}
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    excluded = {name.strip("/") for name in LIST["rsync_exclude"]}
    assert ignored - excluded == {"wheelhouse", "junit*.xml"}


def test_the_path_is_written_into_bashrc_once(tmp_path: Path) -> None:
    (command,) = LIST["head_setup_commands"]
    for _ in range(2):
        subprocess.run(
            ["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True
        )
    lines = (tmp_path / ".bashrc").read_text().splitlines()
    assert len(lines) == 1
    shown = subprocess.run(
        ["bash", "-c", "source ~/.bashrc; echo $PATH"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == f"{tmp_path}/homeport/bin:/usr/bin:/bin"


@pytest.mark.parametrize(
    ("given", "started"),
    [
        (["stop"], "homeport down --all"),
        (["stop", "--force"], "homeport down --all"),
        (["status"], "ray status"),
        (["up", "-y", "a b.yaml"], "ray up -y a b.yaml"),
        ([], "ray"),
    ],
)
def test_ray_stop_ends_homeport_and_everything_else_is_rays(
    tmp_path: Path, given: list[str], started: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray").write_text((ROOT / "bin" / "ray").read_text())
    (tmp_path / "bin" / "ray").chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("homeport", "ray"):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    done = subprocess.run([tmp_path / "bin" / "ray", *given], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == started

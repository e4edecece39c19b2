"""`homeport advise`: what it prints, and how it ends."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router import cli
from tests.test_fit_commands import GIB, alone, machine
from tests.test_machine_figures import FIGURES

__all__ = ["alone"]
WISH = "32B at Q4, 16k context, 2 sessions, 20 tokens/s"


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["advise", *words])
    return done.exit_code, done.output


@pytest.fixture
def listed(alone: Path) -> Path:
    path = alone / "machines.json"
    machines = [machine("den", 32 * GIB, FIGURES.to_json()), machine("attic", 2 * GIB)]
    path.write_text(json.dumps({"machines": machines}))
    return path


def test_each_machine_is_told_what_it_is_good_for(listed: Path) -> None:
    code, told = run("--machines", str(listed), "--sessions", "2")
    assert code == 0
    den = next(line for line in told.splitlines() if line.strip().startswith("den"))
    assert "decoding: " in den
    assert "smollm2 with 2 sessions fits on den: " in told
    assert "attic" in told
    assert "not measured: run `homeport bench machine` there" in told
    assert "Not looked at: the network" in told


def test_a_wish_says_what_to_buy(listed: Path) -> None:
    code, told = run(WISH, "--machines", str(listed))
    assert code == 0
    assert "memory      27.1 GiB (18.2 for weights, 8.0 for contexts, 0.8 for buffers and the host)" in told
    assert "bandwidth   563 GB/s read, so about 1,024 GB/s by its maker's count" in told
    assert "attic: memory: 27.1 GiB needed" in told
    assert "NVIDIA RTX 5090" in told
    assert "NVIDIA RTX 4090" not in told


def test_a_small_wish_is_met_by_what_is_there(listed: Path) -> None:
    code, told = run("1B, 5 tokens/s", "--machines", str(listed))
    assert code == 0
    assert "den would do" in told


def test_a_script_gets_json(listed: Path) -> None:
    code, told = run(WISH, "--machines", str(listed), "--json")
    found = json.loads(told)
    assert code == 0
    assert (
        found["need"]["memory"] == found["need"]["weights"] + found["need"]["kv"] + found["need"]["buffers"]
    )
    assert set(found["machines"]) == {"den", "attic"}
    code, told = run("--machines", str(listed), "--json")
    assert [use["machine"] for use in json.loads(told)["machines"]] == ["den", "attic"]


def test_unknown_words_and_files_say_what_is_known(listed: Path, tmp_path: Path) -> None:
    code, told = run("32B, blue", "--machines", str(listed))
    assert code == 2
    assert "'blue' is not understood. What is: a size" in told
    broken = tmp_path / "broken.json"
    broken.write_text('[{"name": "den"}]')
    assert run("--machines", str(broken))[0] == 2
    assert "'hardware' is missing. Give what `/api/fleet`" in run("--machines", str(broken))[1]
    broken.write_text("no json")
    assert "is no list of machines" in run("--machines", str(broken))[1]
    assert "No such file" in run("--machines", str(tmp_path / "none.json"))[1]

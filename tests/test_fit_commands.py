"""`homeport fit`: what it prints and how it ends, with and without a homeport that runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.machine import CpuCore, Hardware
from router import cli, command_line
from tests.test_cli import FakeRouter, router
from tests.test_machine_figures import FIGURES

__all__ = ["router"]
GIB = 2**30


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["fit", *words])
    return done.exit_code, done.output


def machine(name: str, memory: int, bench: Any = None, replicas: tuple[Any, ...] = ()) -> dict[str, Any]:
    hardware = Hardware(tuple(CpuCore(n, (n,), "unknown", 0) for n in range(4)), memory, ())
    return {
        "name": name,
        "state": "ready",
        "hardware": hardware.to_json(),
        "reserve": {"cores": 1, "memory_bytes": GIB},
        "bench": bench,
        "replicas": list(replicas),
    }


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of its own, on a machine that is told."""
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps(machine("den", 8 * GIB)["hardware"]))
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOMEPORT_INVENTORY", str(inventory))
    monkeypatch.setattr(command_line.out, "width", 200)
    return tmp_path


def test_without_a_homeport_this_machine_alone_is_told(alone: Path) -> None:
    code, told = run("bundled", "--sessions", "2")
    assert code == 0
    assert "0.13 billion parameters in 5.7 bits (most Q4_1), 30 layers" in told
    assert "360 MiB for 2 x 8,192 tokens" in told
    assert "speed not measured: run `homeport bench machine` there" in told
    (alone / "home" / "bench.json").write_text(json.dumps(FIGURES.to_json()))
    code, told = run("bundled", "--context", "4096")
    assert "decode after 1,024" in told
    assert "tokens/s on 3 cores" in told
    assert "not every kind of weights was measured: Q8_0 (as Q4_0), Q4_1 (as Q4_0)" in told


def test_a_script_gets_json(alone: Path) -> None:
    code, told = run("bundled", "--json", "--kv-type", "q8_0")
    found = json.loads(told)
    assert code == 0
    assert (found["context"], found["sessions"], found["parameters"]) == (8192, 1, 134_515_008)
    assert found["machines"][0]["fits"]
    assert found["machines"][0]["decode_per_s"] is None


def test_a_model_of_the_config_brings_its_context_and_sessions(alone: Path) -> None:
    config = alone / "homeport.yaml"
    config.write_text(
        "models:\n  - {name: tea, source: bundled, context: 2048, sessions: 3, options: {kv_type: q8_0}}\n"
    )
    code, told = run("tea", "-c", str(config))
    assert code == 0
    assert "for 3 x 2,048 tokens" in told
    code, told = run("coffee", "-c", str(config))
    assert code == 2
    assert "There is no file coffee, and the config has no such model; it has: tea." in told


def test_what_does_not_fit_says_how_much_is_missing(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone / "inventory.json").write_text(json.dumps(machine("den", GIB // 2)["hardware"]))
    code, told = run("bundled", "--sessions", "4")
    assert code == 1
    assert "no" in told
    assert "GiB missing" in told


def test_bad_input_says_what_to_write(alone: Path) -> None:
    assert run("bundled", "--kv-type", "f8") == (2, "--kv-type f8 is not one of f16, q8_0, q4_0.\n")
    code, told = run("./none.gguf")
    assert code == 2
    assert "does not exist" in told


def test_every_machine_of_the_fleet_is_told_and_what_was_measured(router: FakeRouter) -> None:
    took = {"weights": 10**8, "kv": 10**8, "compute": 0}
    replica = {"name": "attic/0", "model": "smollm2", "memory": {"engine": took}}
    machines = [machine("den", 8 * GIB, FIGURES.to_json()), machine("attic", GIB, None, (replica,))]
    router.answers["/api/fleet"] = 200, {"machines": machines}
    code, told = run("bundled", "--json")
    assert code == 0
    den, attic = json.loads(told)["machines"]
    assert (den["machine"], den["fits"], attic["machine"], attic["fits"]) == ("den", True, "attic", False)
    assert den["decode_per_s"] > 0
    assert "bench machine" in attic["why_no_speed"]
    code, told = run("smollm2")
    assert "attic/0 runs it: its engine took 190.7 MiB, " in told
    assert "tokens/s after" not in told


def test_the_speed_of_its_last_turns_is_held_against_what_was_foretold(router: FakeRouter) -> None:
    rates = {"decode_per_s": 50.0, "depth": 300, "prefill_per_s": None, "prompt": None, "turns": 4}
    replica = {"name": "den/0", "model": "smollm2", "rates": rates, "slice": {"cores": [1], "gpus": []}}
    elsewhere = replica | {"name": "attic/0"}
    machines = [
        machine("den", 8 * GIB, FIGURES.to_json(), (replica,)),
        machine("attic", GIB, None, (elsewhere,)),
    ]
    router.answers["/api/fleet"] = 200, {"machines": machines}
    _, told = run("smollm2", "--depth", "300", "--cores", "1", "--json")
    found = json.loads(told)
    expected = 50.0 / found["machines"][0]["decode_per_s"] - 1
    assert found["measured"]["den/0"]["decode_off"] == pytest.approx(expected, abs=0.01)
    assert found["measured"]["attic/0"] == {"decode_per_s": 50.0, "depth": 300}, "it was never benched"
    _, told = run("smollm2")
    assert f"den/0 runs it: 50.0 tokens/s after 300 ({expected:+.0%} against what is foretold)" in told
    assert "attic/0 runs it: 50.0 tokens/s after 300\n" in told

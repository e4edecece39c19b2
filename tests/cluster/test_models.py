"""Models on machines, in a laboratory: a head and two workers in one zone, one in another, a stand-in of Hugging Face
in the head's network. The tests go on from one another. Each prints what it measured (`-s`)."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving.source import bundled_model
from tests.cluster.lab import LabMachine, until
from tests.cluster.several import HOMEPORT, Several, processes, several, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]
NAMES = {"den-pc": "home", "tower": "home", "attic": "home", "rack": "office"}
HUB_PORT = 9999
MIB = 1024**2
BIG, SECOND = "hf:o/r:big.gguf", "hf:o/r:second.gguf"
BIG_BYTES = 1024 * MIB
RATE = 8 * MIB
PATIENCE_S = 180.0


@dataclass
class Models:
    """A cluster that is up, and the hub that it fetches from."""

    several: Several

    def left_hub(self, file: str) -> dict[str, int]:
        """Bytes of a file that left the hub, by the zone of who asked."""
        zones = {machine.address: machine.zone for machine in self.several.members}
        sent = dict.fromkeys(NAMES.values(), 0)
        for line in (self.several.laptop.home / "homeport" / "hub.log").read_text().splitlines():
            told = json.loads(line)
            if told["asked"].endswith(f"/{file}"):
                sent[zones[told["from"]]] += told["sent"]
        return sent

    def machine(self, name: str) -> LabMachine:
        return self.several.lab.machines[name]

    def left(self, name: str) -> int:
        """Bytes that left this machine, of whatever kind."""
        machine = self.machine(name)
        counter = f"/sys/class/net/{machine.veth}/statistics/rx_bytes"
        done = self.several.lab.net_output("cat", counter)
        return int(done)

    def models(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.several.fleet().get(name, {}).get("models") or {}
        return found

    def head(self, words: str, timeout: float = 300.0, code: int = 0) -> str:
        done = self.several.head.ssh(f"{HOMEPORT} {words}", check=False, timeout=timeout)
        assert done.returncode == code, done.stdout + done.stderr + self.several.logs()
        return done.stdout

    def configure(self, source: str, machines: str, network: str = "") -> None:
        """A config with one model, put beside the first one on the head."""
        text = self.several.config.read_text()
        before, _, rest = text.partition("source: bundled")
        rest = rest.partition("\n")[2]
        text = f"{before}source: {source}\n{rest}".replace("machines: all", f"machines: {machines}")
        text = text.replace("  private: true", f"  private: true\n  {network}")
        (self.several.head.home / "other.yaml").write_text(text)


@pytest.fixture(scope="module")
def models(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    with several(tmp_path_factory.mktemp("models") / "lab", prepared, NAMES) as made:
        hub = f"http://{made.laptop.address}:{HUB_PORT}"
        for machine in made.members:
            sshd = machine.disk / "sshd_config"
            sshd.write_text(sshd.read_text().replace("SetEnv ", f'SetEnv "HF_ENDPOINT={hub}" '))
            machine.boot()
        for name, size in (("big.gguf", BIG_BYTES), ("second.gguf", 128 * MIB)):
            with (made.laptop.home / name).open("wb") as file:
                file.write(bundled_model().read_bytes())
                file.truncate(size)
                file.seek(size - 64)
                file.write(name.ljust(64).encode())
        files = " ".join(f"o/r/{name}=$HOME/{name}" for name in ("big.gguf", "second.gguf"))
        start = f".venv/bin/python -m tests.hub 0.0.0.0 {HUB_PORT} hub.log {files}"
        made.laptop.ssh(f"cd homeport && touch hub.log && {{ nohup {start} > hub.out 2>&1 < /dev/null & }}")
        up = made.ray("up")
        assert up.returncode == 0, up.stdout
        wait_for(lambda: made.ready() == set(NAMES), "all machines ready", PATIENCE_S, made.logs)
        until((made.laptop.home / "homeport" / "hub.out").read_text, "the hub listens")
        yield Models(made)


def test_a_model_of_a_gib_leaves_the_hub_once_for_each_zone(models: Models) -> None:
    before = {name: models.left(name) for name in NAMES}
    began = time.monotonic()
    told = json.loads(models.head(f"pull {BIG} --json"))
    took = time.monotonic() - began
    assert {name: at["state"] for name, at in told["machines"].items()} == dict.fromkeys(NAMES, "whole")
    outside = models.left_hub("big.gguf")
    copied = {name: (models.left(name) - before[name]) / BIG_BYTES for name in NAMES}
    print(f"\na 1 GiB model to {len(NAMES)} machines in {took:.0f} s; from outside / its size:", end=" ")
    print(", ".join(f"{zone} {sent / BIG_BYTES:.4f}" for zone, sent in outside.items()))
    print("  left each machine / its size:", ", ".join(f"{name} {part:.4f}" for name, part in copied.items()))
    assert all(0 < sent <= BIG_BYTES for sent in outside.values())
    assert copied["rack"] < 0.05  # nothing but what TCP and Ray say
    assert sum(copied[name] for name in ("den-pc", "tower", "attic")) == pytest.approx(2.0, abs=0.15)


def test_a_source_that_is_killed_in_the_middle_of_a_copy_is_survived(models: Models) -> None:
    models.configure(SECOND, "[attic, den-pc]", f"copy_rate: {RATE // MIB}MiB")
    models.head("apply --yes --config other.yaml", timeout=300)
    answer = models.several.ask(("tea", "Hello"))[0]
    assert (answer.status, answer.machine in ("attic", "den-pc")) == (200, True), answer
    assert models.left_hub("second.gguf") == {"home": 128 * MIB, "office": 0}
    models.configure(SECOND, "[attic, den-pc, tower]", f"copy_rate: {RATE // MIB}MiB")
    models.several.head.ssh(
        f"nohup {HOMEPORT} apply --yes --config other.yaml > apply.out 2>&1 < /dev/null &"
    )

    def coming() -> dict[str, Any]:
        found: dict[str, Any] = models.models("tower").get("bringing", {}).get(SECOND) or {}
        return found if found.get("got", 0) > 8 * MIB else {}

    wait_for(lambda: bool(coming()), "a copy is under way", 60.0, models.several.logs)
    told = coming()
    giver = str(told["from"])
    if giver == "attic":
        models.machine("attic").kill()
    else:
        (keeper,) = processes(models.several.head, "ray::Keeper")
        os.kill(keeper, signal.SIGKILL)
    took = wait_for(
        lambda: "tower" in models.several.ready(), "tower serves", PATIENCE_S, models.several.logs
    )
    outside = models.left_hub("second.gguf")
    print(
        f"\n{giver} was killed when {told['got'] / told['size']:.0%} were copied: whole after {took:.0f} s;",
        end=" ",
    )
    print(", ".join(f"{zone} {sent / (128 * MIB):.4f}" for zone, sent in outside.items()), "from outside")
    assert outside == {"home": 128 * MIB, "office": 0}
    held = models.models("tower")["held"][SECOND]
    assert held["parts"][0]["size"] == 128 * MIB

"""`homeport wake` on a homeport that runs: by a command, and why not."""

import sys
from pathlib import Path

from cluster.paths import read_json
from tests.e2e.installation import Homeport


def wake(homeport: Homeport, *words: str) -> tuple[int, str]:
    done = homeport.run("wake", *words)
    return done.returncode, done.stdout + done.stderr


def test_machines_are_woken_by_a_command_or_it_is_said_why_not(fresh: Homeport, tmp_path: Path) -> None:
    woken = tmp_path / "woken"
    touch = [sys.executable, "-c", f"open({str(woken)!r}, 'w').write('$HOME')"]
    fails = [sys.executable, "-c", "raise SystemExit('the plug does not answer')"]
    fresh.count = "1"
    fresh.extra = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"}
    fresh.configure()
    text = fresh.config.read_text()
    text += "machines:\n"
    text += f"  - {{name: attic, wake: {{command: {touch}}}}}\n"
    text += f"  - {{name: loft, wake: {{command: {fails}}}}}\n"
    text += '  - {name: tower, zone: far, address: 192.0.2.99, wake: {mac: "3c:ec:ef:01:23:45"}}\n'
    text += "  - {name: shed}\n"
    fresh.config.write_text(text)
    assert wake(fresh, "attic") == (3, "homeport does not run here. `homeport up` starts it.\n")
    fresh.up()
    own = str((read_json(fresh.paths.machine) or {})["name"])
    assert wake(fresh, own) == (0, f"{own} is awake.\n")
    code, said = wake(fresh, "nowhere")
    assert (code, said.startswith("There is no machine nowhere; known: ")) == (1, True), said
    code, said = wake(fresh, "shed")
    assert (code, said.startswith("The config does not say how shed is woken.")) == (1, True), said
    assert wake(fresh, "attic", "--no-wait") == (0, "attic: its command has run.\n")
    assert woken.read_text() == "$HOME", "no shell has read it"
    code, said = wake(fresh, "loft")
    assert (code, said) == (1, "The command that wakes loft ended with code 1: the plug does not answer\n")
    (machine,) = fresh.get("/api/fleet")["machines"]
    assert machine["state"] == "ready"
    assert (machine["wakes"], bool(machine["power"])) == (False, True), "there is no logind, which is said"
    status = fresh.run("status")
    assert "power: " in status.stdout

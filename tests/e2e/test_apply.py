"""`homeport apply` on a homeport that runs, and one that systemd would start."""

import shlex
import signal
import subprocess
import threading
from typing import Any

from cluster.paths import read_json
from cluster.processes import ours
from tests.e2e.installation import Homeport, eventually

ANN = {"x-session-id": "ann"}


def body(tokens: int) -> dict[str, Any]:
    """With no way to end sooner: both of the model's last tokens are out."""
    asked = [{"role": "user", "content": "Count from one to a hundred."}]
    return {"max_tokens": tokens, "messages": asked, "logit_bias": {"0": -100, "2": -100}}


def is_ready(homeport: Homeport) -> bool:
    return [replica["state"] for replica in homeport.replicas()] == ["ready"]


def apply(homeport: Homeport, *words: str) -> str:
    done = homeport.run("apply", "--config", str(homeport.config), *words)
    assert done.returncode == 0, done.stdout + done.stderr + homeport.logs()
    return done.stdout


def test_what_needs_it_restarts_after_its_turns_the_rest_is_live_and_pins_survive(fresh: Homeport) -> None:
    fresh.count = "1"
    fresh.configure()
    fresh.up()
    (before,) = fresh.replicas()
    assert fresh.post_whole(body(1), ANN)[1]["x-homeport-pin"] == "new"
    assert "nothing is to be changed" in apply(fresh)

    fresh.configure("sessions: 2")
    assert "drain" in apply(fresh, "--dry-run")
    assert fresh.replicas()[0]["pid"] == before["pid"]
    answers: list[tuple[int, Any, Any]] = []
    turn = threading.Thread(target=lambda: answers.append(fresh.post_whole(body(300), ANN)))
    turn.start()
    eventually(lambda: fresh.replicas()[0]["running"] == 1)
    told = apply(fresh, "--yes")
    turn.join()
    assert answers[0][0] == 200, "the turn was finished first"
    assert answers[0][2]["usage"]["completion_tokens"] == 300
    name = before["name"]
    assert f"{name}  drain  smollm2, then restart: sessions 1 -> 2" in told
    assert f"{name}: restarted, serves smollm2" in told
    (after,) = fresh.replicas()
    assert after["pid"] != before["pid"]
    status, headers, _ = fresh.post_whole(body(1), ANN)
    assert (status, headers["x-homeport-pin"], headers["x-homeport-replica"]) == (200, "kept", name)

    fresh.hold = "2s"
    fresh.configure("sessions: 2", "when_lost: fail")
    told = apply(fresh, "--yes")
    assert f"{name}  live" in told
    assert "hold 1 s -> 2 s, when_lost wait -> fail" in told
    eventually(lambda: fresh.host_state(after)["settings"]["hold_s"] == 2.0)
    eventually(lambda: "models: smollm2" in (fresh.paths.logs / "router.log").read_text())
    assert fresh.replicas()[0]["pid"] == after["pid"]
    assert "nothing is to be changed" in apply(fresh)


def test_what_the_unit_names_starts_a_head_and_again_after_its_death(fresh: Homeport) -> None:
    fresh.count = "1"
    fresh.configure()
    fresh.extra = {"XDG_CONFIG_HOME": str(fresh.folder / "config")}
    done = fresh.run("service", "install", "--config", str(fresh.config))
    assert done.returncode == 0, done.stdout + done.stderr
    unit = fresh.folder / "config" / "systemd" / "user" / "homeport.service"
    settings = [line.partition("=")[::2] for line in unit.read_text().splitlines()]
    command = next(shlex.split(value) for key, value in settings if key == "ExecStart")
    folder = next(value for key, value in settings if key == "WorkingDirectory")
    marks = dict(shlex.split(value)[0].split("=", 1) for key, value in settings if key == "Environment")

    def start() -> subprocess.Popen[bytes]:
        log = (fresh.folder / "journal").open("ab")
        with log:
            return subprocess.Popen(command, env={**fresh.env, **marks}, cwd=folder, stdout=log, stderr=log)

    first = start()
    eventually(lambda: is_ready(fresh), 90.0)
    pid = fresh.replicas()[0]["pid"]
    assert {process.pid for process in ours(fresh.paths, "parent")} == {first.pid}
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start()

    def is_parent() -> bool:
        assert second.poll() is None, (fresh.folder / "journal").read_text()
        return bool((read_json(fresh.paths.run) or {}).get("parent") == second.pid)

    eventually(is_parent, 90.0)
    eventually(lambda: fresh.step("controller")["state"] == "ready", 90.0)
    eventually(lambda: is_ready(fresh), 90.0)
    assert eventually(lambda: fresh.replicas()[0]["pid"], 90.0) == pid, "hosts live on"
    assert fresh.run("down").returncode == 0
    assert second.wait(10) == -signal.SIGKILL
    assert ours(fresh.paths) == []

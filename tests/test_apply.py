"""`homeport apply` against a controller's real HTTP, whose keepers do at once what keepers do."""

import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.inventory import measure
from cluster.join import enter
from cluster.paths import Paths, read_json, secret, write_private
from cluster.restarting import take_up_lock
from router import applying, cli, lifecycle
from serving.plan import Drain, Live, Start, Stop
from tests.planned import FOUR, Lab

CONFIG = """\
router: {{listen: 127.0.0.1:{listen}, workers: {workers}}}
network: {{control: {control}, ports: {ports}}}
machines: [{{name: den, zone: {zone}, yield_to: [{yield_to}], reserve: {{cores: 0, memory: 0MiB}}}}]
models:
{models}
"""
MODEL = "- {{name: {name}, source: bundled, needs: {{memory: 64MiB}}, context: {context}, hold: {hold}}}"


def model(name: str = "m", context: int = 2048, hold: str = "10s") -> str:
    return MODEL.format(name=name, context=context, hold=hold)


class Controller(http.server.ThreadingHTTPServer):
    """Tells of a lab's machines; at each question, one of them that is behind takes the revision that lies on disk."""

    def __init__(self, paths: Paths) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.lab, self.paths = Lab("attic", "den"), paths
        self.asked = 0
        self.passed: dict[str, str] = {}
        self.on_ask: Callable[[int], None] = lambda _asked: None
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def fleet(self) -> dict[str, Any]:
        self.asked += 1
        self.on_ask(self.asked)
        wanted = read_json(self.paths.revision) or {}
        behind = [name for name in ("den", "attic") if self.lab.revision[name] < wanted["revision"]]
        told = {**self.lab.fleet(), "revision": wanted["revision"]}
        for name in [name for name in behind if name not in self.lab.away][:1]:
            self.lab.apply(wanted, name)
        return {**told, "giving": {"busy": {}, "waiting": behind[1:], "passed": self.passed}}


class Answer(http.server.BaseHTTPRequestHandler):
    server: Controller

    def do_GET(self) -> None:
        is_asked = self.path == "/fleet"
        is_let_in = self.headers["authorization"] == f"Bearer {secret(self.server.paths.cluster_token)}"
        body = json.dumps(self.server.fleet() if is_asked and is_let_in else {}).encode()
        self.send_response(200 if is_asked and is_let_in else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Head:
    """What `homeport apply` finds on the head of a homeport that runs."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder / "home", folder / "locks")
        self.paths.make()
        self.config = folder / "homeport.yaml"
        secret(self.paths.cluster_token)
        self.controller = Controller(self.paths)
        self.lab = self.controller.lab
        self.shape: dict[str, Any] = {
            "listen": 18000,
            "workers": 1,
            "control": self.controller.server_port,
            "ports": "18100-18199",
            "zone": "home",
            "yield_to": "",
        }
        self.says(model())

    def says(self, *models: str, **shape: Any) -> None:
        self.shape |= shape
        self.config.write_text(CONFIG.format(models="\n".join(models), **self.shape))

    def start(self) -> int:
        """As `up` would leave it; the lock that says that it runs."""
        lock = take_up_lock(self.paths)
        assert lock is not None
        write_private(self.paths.machine, json.dumps({"name": "den"}))
        prepared = lifecycle.prepare(self.paths, self.config, os.environ)
        here = prepared.machine
        machine = enter(self.paths, here.name, here.zone, here.hardware, here.reserve, (18100, 18199))
        lifecycle.write_revision(self.paths, prepared.config, machine, (18100, 18199))
        write_private(self.paths.run, json.dumps({"machine": machine.to_json(), "address": machine.address}))
        self.lab.apply(self.revision())
        return lock

    def revision(self) -> dict[str, Any]:
        return read_json(self.paths.revision) or {}

    def apply(self, *words: str, answer: str | None = None) -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, ["apply", "--config", str(self.config), *words], input=answer)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    inventory = tmp_path / "hardware.json"
    inventory.write_text(json.dumps(FOUR.to_json()))
    monkeypatch.setenv("HOMEPORT_INVENTORY", str(inventory))
    assert len(measure(os.environ).cores) == 4
    made = Head(tmp_path)
    monkeypatch.setenv("HOMEPORT_HOME", str(made.paths.home))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(made.paths.locks))
    monkeypatch.setattr(applying, "LOOK_S", 0.01)
    yield made
    made.controller.shutdown()
    made.controller.server_close()


@pytest.fixture
def head(stopped: Head) -> Iterator[Head]:
    lock = stopped.start()
    yield stopped
    os.close(lock)


def test_the_plan_is_shown_carried_out_machine_by_machine_and_empty_when_asked_again(head: Head) -> None:
    head.says(model(context=4096), model("n"))
    code, told = head.apply("--yes")
    assert (code, told.splitlines()) == (
        0,
        [
            "Revision 2, one machine at a time:",
            "attic",
            "  attic/0  drain  m, then restart: context 2048 -> 4096",
            "  attic/1  start  n",
            "den",
            "  den/0  drain  m, then restart: context 2048 -> 4096",
            "  den/1  start  n",
            "den/0: restarted, serves m",
            "den/1: started, serves n",
            "attic/0: restarted, serves m",
            "attic/1: started, serves n",
            "Revision 2 is carried out.",
        ],
    )
    assert head.apply() == (0, "It serves what the config says; nothing is to be changed.\n")
    assert head.revision()["revision"] == 2


def test_what_needs_no_restart_is_live_and_what_nobody_wants_stops(head: Head) -> None:
    head.says(model(), model("n"))
    head.apply("--yes")
    head.says(model(hold="5s"))
    code, told = head.apply("--yes")
    assert code == 0
    for line in (
        "den/0  live  m: hold 10 s -> 5 s",
        "den/1  stop  n",
        "attic/0: hold 10",
        "attic/1: stopped",
    ):
        assert line in told


def test_a_dry_run_changes_nothing(head: Head) -> None:
    before = head.revision()
    head.says(model(context=4096))
    code, told = head.apply("--dry-run")
    assert (code, head.revision()) == (0, before)
    assert "den/0  drain" in told
    assert "restarted" not in told


def test_without_a_terminal_it_needs_a_yes(head: Head) -> None:
    before = head.revision()
    head.says(model(context=4096))
    code, told = head.apply(answer="y\n")
    assert (code, head.revision()) == (2, before)
    assert "There is no terminal to ask on. Run it with --yes" in told


@pytest.mark.parametrize(
    ("answer", "number", "words"), [("n\n", 1, "Nothing was changed."), ("y\n", 2, "is carried out")]
)
def test_on_a_terminal_it_asks(
    head: Head, monkeypatch: pytest.MonkeyPatch, answer: str, number: int, words: str
) -> None:
    monkeypatch.setattr("router.apply_commands._has_terminal", lambda: True)
    head.says(model(context=4096))
    code, told = head.apply(answer=answer)
    assert (code, head.revision()["revision"]) == (0, number)
    assert "Do this?" in told
    assert words in told


def test_ctrl_c_leaves_it_going_on(head: Head) -> None:
    def interrupt(asked: int) -> None:
        if asked == 2:
            raise KeyboardInterrupt

    head.says(model(context=4096))
    asked = applying.fleet_of
    count = [0]

    def ask(*args: Any) -> Any:
        count[0] += 1
        interrupt(count[0])
        return asked(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(applying, "fleet_of", ask)
        code, told = head.apply("--yes")
    assert code == 130
    assert "It goes on by itself. `homeport apply` again shows what is left" in told
    assert head.revision()["revision"] == 2
    head.controller.fleet()
    code, told = head.apply()
    assert (code, "attic/0: restarted" in told) == (0, True), "without asking: it was agreed to before"
    assert head.apply()[1] == "It serves what the config says; nothing is to be changed.\n"


def test_a_machine_that_is_away_holds_nobody_up_and_is_named(head: Head) -> None:
    head.lab.away = ("attic",)
    head.says(model(context=4096))
    code, told = head.apply("--yes")
    assert code == 0
    assert "attic (is away: this comes when it is back)" in told
    assert "Revision 2 is carried out; what attic has to do comes when it is back." in told
    head.lab.away = ()
    code, told = head.apply()
    assert (code, "attic/0: restarted" in told) == (0, True)


def test_a_machine_that_goes_away_meanwhile_is_no_longer_waited_for(head: Head) -> None:
    def leaves(asked: int) -> None:
        if asked > 1:
            head.lab.away = ("attic",)

    head.controller.on_ask = leaves
    head.says(model(context=4096))
    code, told = head.apply("--yes")
    assert code == 0
    assert "attic is away: its part comes when it is back" in told


def test_a_machine_that_its_person_has_holds_nobody_up_and_is_named(head: Head) -> None:
    head.lab.yielded = ("attic",)
    head.says(model(context=4096))
    code, told = head.apply("--yes")
    assert code == 0
    assert "attic (is yielded: this comes when that is over)" in told
    assert "Revision 2 is carried out; what attic has to do comes when it is back." in told
    head.lab.yielded = ()
    assert "nothing is to be changed" in head.apply()[1], "its keeper has taken it meanwhile"


def test_a_machine_that_its_person_takes_meanwhile_is_no_longer_waited_for(head: Head) -> None:
    def is_wanted(asked: int) -> None:
        if asked > 1:
            head.lab.yielded = ("attic",)

    head.controller.on_ask = is_wanted
    head.says(model(context=4096))
    code, told = head.apply("--yes")
    assert code == 0
    assert "attic is yielded: its part comes when that is over" in told


def test_to_which_programs_the_head_yields_holds_at_once(head: Head) -> None:
    assert (read_json(head.paths.machine) or {})["yield_to"] == []
    head.says(model(), yield_to="steam, blender")
    code, told = head.apply("--yes")
    assert (code, "holds after" in told) == (0, False)
    kept = read_json(head.paths.machine) or {}
    assert (kept["name"], kept["yield_to"]) == ("den", ["steam", "blender"])
    assert "nothing is to be changed" in head.apply()[1]


def test_a_replica_that_fails_is_told_and_the_exit_code_says_so(head: Head) -> None:
    head.controller.passed = {"den": "not ready after 180 s: den/0 failed (no file)"}

    def fails(asked: int) -> None:
        if asked > 2:
            head.lab.failed["den/0"] = "the file is no GGUF"

    head.controller.on_ask = fails
    head.says(model(context=4096))
    code, told = head.apply("--yes")
    assert code == 1
    assert "den/0: failed: the file is no GGUF" in told
    assert "den: not ready after 180 s: den/0 failed (no file); the others go on" in told
    assert "Revision 2 is carried out, 1 failed." in told


def test_what_the_router_waits_for_holds_after_down_and_up(head: Head) -> None:
    head.config.write_text(
        head.config.read_text().replace(
            "listen:", "drain: 5s, cors: ['http://a'], list_machines: true, listen:"
        )
    )
    _, told = head.apply("--yes")
    assert (
        "holds after `homeport down` and `homeport up`: router.cors, router.drain, router.list_machines."
        in told
    )
    assert (read_json(head.paths.router_settings) or {})["limits"]["drain_s"] == 30.0


def test_a_queue_that_is_longer_than_the_running_router_lets_a_stream_wait_is_named(head: Head) -> None:
    text = head.config.read_text()
    longer = text.replace("listen:", "first_token: 20m, listen:")
    head.config.write_text(longer.replace("hold: 10s", "hold: 10s, queue: 5m"))
    assert "its queue" not in head.apply("--yes")[1]
    head.config.write_text(longer.replace("hold: 10s", "hold: 10s, queue: 10m"))
    for _ in range(2):
        _, told = head.apply("--yes")
        assert "holds after `homeport down` and `homeport up`: router.first_token." in told
        assert (
            "model m: its queue (600 s) is not shorter than the router's first_token as it runs (600 s): until "
            "`homeport down` and `homeport up`, a stream that waits so long ends with an error."
        ) in told
    head.config.write_text(text)
    assert "its queue" not in head.apply("--yes")[1]


def test_what_holds_after_down_and_up_is_named_and_what_runs_stays(head: Head) -> None:
    head.says(model(), listen=18001, workers=2, ports="18100-18150")
    code, told = head.apply("--yes")
    assert (code, head.revision()["revision"]) == (0, 1)
    assert "nothing is to be changed" in told
    head.says(model(), zone="office")
    code, told = head.apply("--yes")
    assert "No replica starts, stops or changes." in told
    assert head.revision()["machines"][0]["zone"] == "office", "machines that join are told"
    later = "router.listen, router.workers, network.ports, machines: zone of den"
    assert f"Not changed, holds after `homeport down` and `homeport up`: {later}." in told
    head.says(model(context=1024))
    head.apply("--yes")
    kept = head.revision()
    assert (kept["control"]["port"], kept["machine"]["ports"]) == (
        head.controller.server_port,
        [18100, 18199],
    )
    settings = read_json(head.paths.router_settings) or {}
    assert (settings["port"], settings["models"][0]["context"]) == (18000, 1024)


def test_a_config_that_cannot_be_served_changes_nothing(head: Head) -> None:
    head.says(model(context=-1))
    code, told = head.apply("--yes")
    assert (code, "homeport.yaml" in told) == (2, True)
    head.says("- {name: m, source: bundled, needs: {cores: 9, memory: 64MiB}}")
    code, told = head.apply("--yes")
    assert (code, "fits nowhere" in told, head.revision()["revision"]) == (2, True, 1)


def test_a_controller_that_is_away_is_said(head: Head) -> None:
    head.controller.shutdown()
    head.controller.server_close()
    head.says(model(context=4096))
    code, told = head.apply("--yes")
    assert (code, head.revision()["revision"]) == (1, 1)
    assert "The controller cannot be asked what runs" in told


def test_where_nothing_runs_or_a_head_elsewhere_is_served_it_is_refused(stopped: Head) -> None:
    code, told = stopped.apply()
    assert (code, "`homeport up` starts it" in told) == (3, True)
    lock = stopped.start()
    write_private(stopped.paths.run, json.dumps({"role": "worker", "steps": {}}))
    code, told = stopped.apply()
    os.close(lock)
    assert (code, "Apply the config there." in told) == (2, True)


def test_every_kind_of_step_has_an_outcome() -> None:
    from router.apply_words import outcome

    replica = {"name": "den/0", "state": "loading", "config_digest": "b", "running_digest": "b", "detail": ""}
    den: dict[str, Any] = {"name": "den", "revision": 2, "replicas": [replica], "ending": [1]}
    drain, start = Drain("den", "den/0", "m", "b", ("context",)), Start("den", "den/0", "m", "b")
    assert outcome(drain, {"machines": []}, 2) == (False, "den is gone")
    assert outcome(drain, {"machines": [{**den, "revision": 1}]}, 2) is None
    assert outcome(start, {"machines": [den]}, 2) is None
    replica |= {"state": "ready", "running_digest": "a"}
    assert outcome(drain, {"machines": [den]}, 2) is None
    assert outcome(Stop("den", "den/1", "n"), {"machines": [den]}, 2) is None
    assert outcome(Live("den", "den/0", "m", ("hold 1 s -> 2 s",)), {"machines": [den]}, 2) is not None
    den["replicas"] = []
    found = outcome(start, {"machines": [den]}, 2)
    assert found is not None
    assert found[0] is False

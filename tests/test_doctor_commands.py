"""`homeport doctor`: which machines it looks at, what it prints, and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import doctor_session
from cluster.doctor import Finding, Seen
from cluster.doctor_pairs import Between, PortRange
from cluster.doctor_session import Looked, Target
from cluster.paths import Paths
from router import api_client, cli, doctor_commands, egress_check
from router.join_head import own_addresses
from tests.test_doctor import facts

LIST = """\
cluster_name: homeport
provider: {type: local, head_ip: 10.9.0.1, worker_ips: [10.9.0.2]}
auth: {ssh_user: ann, ssh_private_key: ~/.ssh/key}
"""

Look = Callable[..., list[Target]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("HOMEPORT_CONFIG", raising=False)
    return tmp_path


class Looks:
    """Stands in for machines; remembers what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.targets: list[Target] = []
        self.ranges: list[PortRange] = []
        self.machines: tuple[Seen, ...] = ()
        monkeypatch.setattr(doctor_commands, "look", self.look)

    async def look(self, targets: list[Target], ranges: list[PortRange]) -> Looked:
        self.targets, self.ranges = targets, ranges
        seen = self.machines or tuple(Seen(t.address, t.address, facts()) for t in targets)
        return Looked(seen, Between(ranges, (), {}, {}))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["doctor", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def listed(tmp_path: Path) -> str:
    file = tmp_path / "list.yaml"
    file.write_text(LIST)
    return str(file)


def test_the_machines_of_a_list_are_looked_at_over_ssh_the_head_first(looks: Looks, listed: str) -> None:
    code, said = run(listed)
    assert (code, [t.address for t in looks.targets]) == (0, ["10.9.0.1", "10.9.0.2"])
    assert looks.targets[0] == doctor_session.over_ssh("10.9.0.1", "ann", "~/.ssh/key")
    assert said.index("10.9.0.1") < said.index("10.9.0.2")
    assert "all 2 machines reach" in said


def test_this_machine_needs_no_ssh(looks: Looks, tmp_path: Path) -> None:
    own = own_addresses()
    if not own:
        pytest.skip("this machine has no address but loopback")
    file = tmp_path / "own.yaml"
    file.write_text(LIST.replace("10.9.0.1", own[0]))
    run(str(file))
    assert looks.targets[0] == Target(own[0])


def test_a_failure_is_exit_code_1_and_comes_with_its_remedy(looks: Looks, listed: str) -> None:
    away = Seen("10.9.0.2", "10.9.0.2", None, "ssh: connect to host 10.9.0.2 port 22: No route to host")
    looks.machines = (Seen("den", "10.9.0.1", facts()), away)
    code, said = run(listed)
    assert code == 1
    assert "is it off?" in said
    assert "-> switch it on" in said
    assert "1 to mend" in said


def test_warnings_are_exit_code_0(looks: Looks, listed: str) -> None:
    looks.machines = (Seen("den", "10.9.0.1", facts(linger=False)),)
    code, said = run(listed)
    assert (code, "1 to look at" in said) == (0, True)


def test_json_has_every_finding(looks: Looks, listed: str) -> None:
    looks.machines = (Seen("den", "10.9.0.1", facts(linger=False)),)
    code, said = run(listed, "--json")
    told = json.loads(said)
    assert (code, told["worst"]) == (0, "warn")
    (linger,) = [finding for finding in told["findings"] if finding["severity"] == "warn"]
    assert linger == {
        "severity": "warn",
        "machine": "den",
        "topic": "linger",
        "what": "what runs for this user ends when nobody is logged in",
        "remedy": "sudo loginctl enable-linger ann",
    }


def test_here_is_this_machine_alone(looks: Looks) -> None:
    code, _ = run("--here")
    assert (code, looks.targets) == (0, [Target("127.0.0.1")])


def test_without_a_list_of_ones_own_it_is_this_machine(looks: Looks) -> None:
    code, said = run()
    assert (code, looks.targets) == (0, [Target("127.0.0.1")])
    assert "is as it was shipped" in said


def test_a_head_knows_its_list(looks: Looks, listed: str, home: Path) -> None:
    paths = Paths(home / "home", home / "locks")
    paths.make()
    paths.machine_list.write_text(listed)
    run()
    assert [t.address for t in looks.targets] == ["10.9.0.1", "10.9.0.2"]


def test_the_ports_are_those_of_the_config(looks: Looks, listed: str, tmp_path: Path) -> None:
    config = tmp_path / "homeport.yaml"
    config.write_text(
        "network: {control: 9000, files: 9001, ports: 9100-9110}\nmodels: nothing that can be read\n"
    )
    run(listed, "--config", str(config))
    assert [each.text for each in looks.ranges][:3] == ["9000", "9001", "9100-9110"]
    for text in ("network: {control: none}", "- 1", "\t"):
        config.write_text(text)
        run(listed, "--config", str(config))
        assert [each.text for each in looks.ranges][:3] == ["8090", "8091", "8100-8199"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("/nowhere.yaml",), 2, "No such file"),
        (("LIST", "--here"), 2, "not both"),
        (("LIST", "--egress"), 2, "takes no list"),
        (("--here", "--egress"), 2, "takes no list"),
        (("--egress",), 3, "does not run here"),
        (("--nothing",), 2, "No such option"),
    ],
)
def test_wrong_input_is_refused(
    looks: Looks, listed: str, words: tuple[str, ...], code: int, said: str
) -> None:
    found, told = run(*(listed if word == "LIST" else word for word in words))
    assert (found, said in " ".join(told.split())) == (code, True), told
    assert looks.targets == []


def test_a_list_without_a_user_is_refused(looks: Looks, tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    for text in (LIST.replace("ann", "YOUR_USER"), LIST.partition("auth")[0]):
        file.write_text(text)
        code, said = run(str(file))
        assert (code, "ssh_user" in said) == (2, True)


def test_egress_asks_every_host_that_the_router_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    grades = ["ok", "ok"]

    async def check(machines: Any, addresses: Any, token: Any, trust: Any) -> list[Finding]:
        asked.append((machines, addresses, token("id"), trust))
        return [Finding(grade, "den", "egress", f"den/{n}: so") for n, grade in enumerate(grades)]  # type: ignore[arg-type]

    fleet = {"machines": [{"name": "den", "replicas": []}]}
    monkeypatch.setattr(doctor_commands, "running", lambda _: {"url": "http://x", "address": "10.9.0.1"})
    monkeypatch.setattr(api_client, "ask", lambda *_, **__: fleet)
    monkeypatch.setattr(egress_check, "check", check)
    assert run("--egress")[0] == 0
    assert asked[0][:2] == (fleet["machines"], ["10.9.0.1"])
    grades[0] = "fail"
    assert run("--egress")[0] == 1
    grades.clear()
    code, said = run("--egress")
    assert (code, "nothing could be asked" in said) == (1, True)


def test_egress_on_a_machine_that_serves_a_head_elsewhere_points_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_commands, "running", lambda _: {"role": "worker", "steps": {}})
    code, said = run("--egress")
    assert (code, "Ask there" in said) == (2, True)

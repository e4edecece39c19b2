"""`homeport join --head LIST`: the first machine of Ray's machine list becomes the head."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.build import build_id
from cluster.machine_tls import authority
from cluster.paths import Paths, read_json, write_private
from cluster.processes import mark
from cluster.restarting import take_up_lock
from cluster.tls import fingerprint, fingerprint_in
from router import cli, following, join_head, lifecycle
from router.join_head import MachineList, describe, own_addresses, read_list
from router.lifecycle import UpRefused

CONFIG = """\
router: {{listen: 127.0.0.1:{port}}}
network: {{control: {control}, ports: 18100-18110, private: {private}}}
machines: [{{name: den, address: {address}, zone: home}}]
models: [{{name: m, source: bundled, needs: {{memory: 64MiB}}, context: {context}}}]
"""


class Clone:
    """What `homeport join --head` finds on a machine."""

    def __init__(self, folder: Path, address: str) -> None:
        self.address = address
        self.paths = Paths(folder / "home", folder / "locks")
        self.config, self.list = folder / "homeport.yaml", folder / "cluster.yaml"
        self.shape: dict[str, Any] = {"port": 18000, "control": 18090, "private": "true", "context": 2048}
        self.configure()
        self.list_is({"type": "local", "head_ip": address, "worker_ips": ["10.9.9.9"]})

    def configure(self, **shape: Any) -> None:
        self.shape |= shape
        self.config.write_text(CONFIG.format(address=self.address, **self.shape))

    def list_is(self, provider: dict[str, Any]) -> None:
        self.list.write_text(yaml.safe_dump({"cluster_name": "lab", "provider": provider}))

    def run(self) -> tuple[int, str]:
        words = ["join", "--head", str(self.list), "--config", str(self.config)]
        done = CliRunner().invoke(cli.app, words)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    if not (addresses := own_addresses()):
        pytest.skip("this machine is in no network")
    made = Clone(tmp_path, addresses[0])
    monkeypatch.setenv("HOMEPORT_HOME", str(made.paths.home))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(made.paths.locks))
    monkeypatch.setattr(following, "start_signals", lambda: None)
    monkeypatch.setattr(join_head, "RAYS_STATE", tmp_path)
    return made


@pytest.fixture
def started(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a start was told; nothing is started."""
    told: list[Any] = []

    def start(
        paths: Paths,
        prepared: lifecycle.Prepared,
        env: Any,
        owner: int,
        lock: int,
        machines: Path | None,
        say: Any,
    ) -> None:
        told.append((prepared.machine.address, prepared.machine.zone, machines))
        os.close(lock)

    monkeypatch.setattr(lifecycle, "start", start)
    monkeypatch.setattr(following, "follow", lambda *_, **__: 0)
    return told


def running(clone: Clone, **run: Any) -> int:
    """A homeport seems to run with this config; the lock that says so."""
    lock = take_up_lock(clone.paths)
    assert lock is not None
    prepared = lifecycle.prepare(clone.paths, clone.config, os.environ, clone.address)
    lifecycle.write_revision(clone.paths, prepared.config, prepared.machine, (18100, 18110))
    told = {"address": clone.address, "url": "http://127.0.0.1:1", "build": build_id(), **run}
    write_private(clone.paths.run, json.dumps(told))
    return lock


# starting


def test_a_head_starts_with_its_list_and_a_token_for_the_others(clone: Clone, started: list[Any]) -> None:
    clone.paths.make()
    write_private(clone.paths.joined, "{}")
    code, told = clone.run()
    assert code == 0, told
    assert started == [(clone.address, "home", clone.list)]
    assert len(clone.paths.join_token.read_text()) == 64
    assert clone.paths.join_token.stat().st_mode & 0o777 == 0o600
    assert clone.paths.join_token.read_text() not in told
    assert not clone.paths.joined.exists()
    assert "10.9.9.9 is being set up by Ray; `homeport status` shows it" in told


def test_the_token_of_a_list_stays_the_same(clone: Clone, started: list[Any]) -> None:
    clone.run()
    token = clone.paths.join_token.read_text()
    clone.run()
    assert clone.paths.join_token.read_text() == token


def test_a_new_token_has_ray_set_all_machines_up_again_since_it_brings_it_only_then(
    clone: Clone, started: list[Any]
) -> None:
    notes = join_head.RAYS_STATE / "cluster-lab.state"
    notes.write_text("{}")
    clone.run()
    assert not notes.exists()
    notes.write_text("{}")
    clone.run()
    assert notes.exists(), "they have the token"
    clone.configure(private="false")
    clone.run()
    assert not notes.exists()
    notes.write_text("{}")
    lock = running(clone)
    clone.paths.join_token.unlink()
    clone.run()
    os.close(lock)
    assert notes.exists(), "Ray reads it while it runs"


def test_the_token_of_a_list_names_the_ca_where_machines_speak_tls(clone: Clone, started: list[Any]) -> None:
    clone.configure(private="false")
    clone.run()
    token = clone.paths.join_token.read_text()
    assert fingerprint_in(token) == fingerprint(authority(clone.paths, 0.0).certificate)
    clone.run()
    assert clone.paths.join_token.read_text() == token
    clone.configure(private="true")
    clone.run()
    assert clone.paths.join_token.read_text() == token.partition(".")[0]


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ({}, "it has no provider.head_ip"),
        ({"head_ip": 5}, "it has no provider.head_ip"),
        (
            {"head_ip": "den.lan"},
            "den.lan is not an address that other machines reach. Write each machine's IPv4",
        ),
        ({"head_ip": "127.0.0.1"}, "127.0.0.1 is not an address that other machines reach"),
        ({"head_ip": "10.1.1.1", "worker_ips": "10.1.1.2"}, "provider.worker_ips is no list of addresses"),
        ({"head_ip": "10.1.1.1", "worker_ips": ["attic"]}, "attic is not an address"),
        ({"head_ip": "203.0.113.77"}, "the head is 203.0.113.77, and this machine is"),
    ],
)
def test_a_list_that_is_none_is_refused(
    clone: Clone, started: list[Any], provider: Any, expected: str
) -> None:
    clone.list_is(provider)
    code, told = clone.run()
    assert (code, started) == (2, [])
    assert expected in told


@pytest.mark.parametrize("text", ["", "[]", "provider: local", "a: [", "\0"])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(UpRefused, match=r"list\.yaml: "):
        read_list(tmp_path / "list.yaml")


def test_the_list_that_comes_with_homeport_is_read() -> None:
    read_list(Path(__file__).parent.parent / "configs" / "cluster.yaml")


# running already


def test_a_head_that_runs_with_the_same_config_is_left_alone(clone: Clone, started: list[Any]) -> None:
    lock = running(clone)
    before = read_json(clone.paths.revision)
    code, told = clone.run()
    os.close(lock)
    assert code == 0, told
    assert "nothing is to be changed" in told
    assert (started, read_json(clone.paths.revision)) == ([], before)
    assert clone.paths.machine_list.read_text() == str(clone.list)


def test_a_changed_config_is_given_to_a_head_that_runs(clone: Clone, started: list[Any]) -> None:
    lock = running(clone)
    clone.configure(context=1024)
    code, told = clone.run()
    assert (code, started) == (0, [])
    assert "models are being changed to revision 2." in told
    assert "holds after `homeport down`" not in told
    clone.configure(port=18001)
    told = clone.run()[1]
    assert "What it says of router, ports and this machine holds after `homeport down`" in told
    assert "nothing is to be changed" not in told
    settings = read_json(clone.paths.router_settings) or {}
    assert (settings["port"], settings["models"][0]["context"]) == (18000, 1024)
    os.close(lock)


def test_new_ports_of_replicas_wait_for_an_end_of_all(clone: Clone, started: list[Any]) -> None:
    lock = running(clone)
    clone.config.write_text(clone.config.read_text().replace("18100-18110", "18200-18210"))
    code, told = clone.run()
    os.close(lock)
    assert (code, "What it says of router, ports and this machine holds after" in told) == (0, True)
    assert "models are being changed" not in told
    assert (read_json(clone.paths.revision) or {})["machine"]["ports"] == [18100, 18110]


def test_what_is_new_of_machines_that_are_in_is_said_to_wait(clone: Clone, started: list[Any]) -> None:
    lock = running(clone)
    clone.config.write_text(
        clone.config.read_text().replace("zone: home}]", "zone: home}, {name: x, zone: lab}]")
    )
    code, told = clone.run()
    os.close(lock)
    assert code == 0
    assert "take a new zone or reserve by themselves, within half a minute; a new name after" in told


RESTARTER = """
import fcntl, sys, time
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def restarter(clone: Clone) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A homeport seems to run: a process of ours that has the lock, and what it wrote."""
    with ExitStack() as stack:

        def start(**run: Any) -> subprocess.Popen[str]:
            os.close(running(clone, **run))
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RESTARTER, str(clone.paths.up_lock)],
                    env={**os.environ, **mark(clone.paths, "parent")},
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            return process

        yield start


@pytest.mark.parametrize("build", ["0.0.1+0123456789ab", None])
def test_another_version_takes_over_from_a_head_that_runs(
    clone: Clone, started: list[Any], restarter: Callable[..., subprocess.Popen[str]], build: str | None
) -> None:
    old = restarter(build=build)
    code, told = clone.run()
    assert (code, started) == (0, [(clone.address, "home", clone.list)])
    assert f"this one ({build_id()}) takes over. The replicas go on as they are" in told
    old.wait(timeout=5.0)  # raises where it still runs


@pytest.mark.parametrize("given", ["a config with a mistake", "another port of the controller"])
def test_what_cannot_start_takes_over_nothing(
    clone: Clone, started: list[Any], restarter: Callable[..., subprocess.Popen[str]], given: str
) -> None:
    old = restarter(build="an older one")
    clone.configure(**({"context": 0} if "mistake" in given else {"control": 18091}))
    code, told = clone.run()
    assert code in (1, 2), told
    assert (started, old.poll()) == ([], None)


def test_homeport_up_takes_over_on_one_machine_too(
    clone: Clone, started: list[Any], restarter: Callable[..., subprocess.Popen[str]]
) -> None:
    old = restarter(build="an older one")
    done = CliRunner().invoke(cli.app, ["up", "--detach", "--config", str(clone.config)])
    assert (done.exit_code, started) == (0, [(clone.address, "home", None)]), done.output
    old.wait(timeout=5.0)  # raises where it still runs
    assert "takes over" in done.output


def test_a_signal_while_it_takes_over_ends_no_replica(
    clone: Clone, restarter: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Paths] = []

    def interrupt(*_: Any, **__: Any) -> None:
        raise following.Ended

    monkeypatch.setattr(following, "end", ended.append)
    monkeypatch.setattr(lifecycle, "start", interrupt)
    restarter(build="an older one")
    done = CliRunner().invoke(cli.app, ["up", "--detach", "--config", str(clone.config)])
    assert (done.exit_code, ended) == (130, [])
    assert "The replicas go on as they are" in done.output


def test_a_signal_ends_what_this_call_started_and_nothing_that_ran_before(
    clone: Clone, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Paths] = []

    def interrupt(*_: Any, **__: Any) -> None:
        raise following.Ended

    monkeypatch.setattr(following, "end", ended.append)
    monkeypatch.setattr(following, "say_running", interrupt)
    lock = running(clone)
    assert clone.run()[0] == 130
    assert CliRunner().invoke(cli.app, ["up", "--config", str(clone.config)]).exit_code == 130
    assert ended == []
    os.close(lock)
    monkeypatch.setattr(lifecycle, "start", interrupt)
    assert clone.run()[0] == 130
    assert ended == [clone.paths]


def test_another_port_of_the_controller_needs_an_end_of_all(clone: Clone, started: list[Any]) -> None:
    lock = running(clone)
    clone.configure(control=18091)
    code, told = clone.run()
    os.close(lock)
    assert (code, "Run `homeport down --all`, then try again." in told) == (1, True)
    assert (read_json(clone.paths.revision) or {})["control"]["port"] == 18090


def test_another_word_on_whether_the_network_is_private_needs_an_end_of_all(
    clone: Clone, started: list[Any]
) -> None:
    lock = running(clone)
    clone.configure(private="false")
    code, said = clone.run()
    os.close(lock)
    assert (code, "network.private has changed" in said, "homeport down --all" in said) == (1, True, True)
    assert (read_json(clone.paths.revision) or {})["control"]["tls"] is False


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"address": "127.0.0.1"}, "A homeport runs here at 127.0.0.1, and the list says"),
        ({"role": "worker"}, "This machine serves a head elsewhere. End that with `homeport down`"),
    ],
)
def test_another_homeport_that_runs_here_is_not_taken_over(
    clone: Clone, started: list[Any], run: Any, expected: str
) -> None:
    lock = running(clone, **run)
    code, told = clone.run()
    os.close(lock)
    assert (code, started) == (1, [])
    assert expected in told


# what it says of the machines


def test_machines_that_are_here_and_those_that_are_not_have_a_line_each() -> None:
    listed = MachineList(Path("l"), "lab", "10.0.0.1", ("10.0.0.2", "10.0.0.3", "10.0.0.4"))
    here = [{"name": "den", "address": "10.0.0.1", "zone": "home", "state": "ready"}]
    words = {"10.0.0.2": "waiting-for-ssh", "10.0.0.3": "setting-up", "10.0.0.4": "update-failed"}
    first, second, third, fourth = describe(listed, here, words)
    assert first.split() == ["den", "10.0.0.1", "zone", "home,", "ready"]
    assert "10.0.0.2" in second
    assert "is it off?" in second
    assert "is being set up by Ray" in third
    assert "could not be set up" in fourth


def test_a_machine_that_is_away_has_one_line_with_what_ray_says_of_it() -> None:
    listed = MachineList(Path("l"), "lab", "10.0.0.1", ("10.0.0.2",))
    known = [
        {"name": "den", "address": "10.0.0.1", "zone": "home", "state": "ready"},
        {"name": "attic", "address": "10.0.0.2", "zone": "home", "state": "lost"},
    ]
    _, attic = describe(listed, known, {"10.0.0.2": "waiting-for-ssh"})
    assert "zone home, lost: does not answer over SSH" in attic
    assert describe(listed, known, {})[1].endswith("zone home, lost")
    *_, note = describe(listed, [{**known[1], "unlisted": True}], {})
    assert note.startswith("attic is not on the list any more: it serves its sessions and takes no new ones.")


def test_what_ray_says_is_read_where_it_says_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_head, "RAYS_STATE", tmp_path)
    listed = MachineList(Path("l"), "lab", "10.0.0.1", ())
    assert join_head._rays_words(listed) == {}
    (tmp_path / "cluster-lab.state").write_text("[]")
    assert join_head._rays_words(listed) == {}
    state = {"10.0.0.2": {"tags": {"ray-node-status": "up-to-date"}}}
    (tmp_path / "cluster-lab.state").write_text(json.dumps(state))
    assert join_head._rays_words(listed) == {"10.0.0.2": "up-to-date"}


def test_own_addresses_are_no_loopback() -> None:
    assert "127.0.0.1" not in own_addresses()
    for address in own_addresses():
        socket.create_server((address, 0)).close()

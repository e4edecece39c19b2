"""Whether hosts have a way out: what they try, what is made of it, and a keeper's real hosts that are asked."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import network
from cluster.egress import verdict
from router import egress_check
from router.lifecycle import end_everything
from serving.egress import WORD, Egress
from serving.request_fields import BadRequest
from tests.fakes import Behaviour
from tests.host_process import HostProcess, model_spec
from tests.test_keeper import PATIENCE_S, TALKS, Machine
from tests.test_network import needs_namespaces, own_address

HERE = "10.0.0.1"
CLOSED = {"address": HERE, "port": 9, "tcp": "ENETUNREACH", "udp": "ENETUNREACH"}
OPEN = {"interfaces": ["lo", "eth0"], "targets": [{**CLOSED, "tcp": "ok", "udp": "ok"}], "name": "ok"}
SHUT = {"interfaces": ["lo"], "targets": [CLOSED], "name": "no name"}


def judged(told: Any, heard: bool = False, *notes: str) -> tuple[str, str, str]:
    found = verdict("den", "den/0", told, heard, notes)
    assert (found.machine, found.topic) == ("den", "egress")
    return found.severity, found.what, found.remedy


def test_a_host_that_reaches_nothing_has_no_way_out() -> None:
    assert judged(SHUT) == ("ok", "den/0: no way out (network unreachable)", "")
    assert judged({**SHUT, "name": None})[0] == "ok"


def test_every_way_out_is_named() -> None:
    severity, what, remedy = judged(OPEN, True)
    assert severity == "fail"
    for words in ("connects to 10.0.0.1:9", "sends datagrams to", "was heard", "looks up names", "has eth0"):
        assert words in what
    assert "started without a network" in remedy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": [{**CLOSED, "tcp": "ok"}]}, "connects to 10.0.0.1:9"),
        ({"targets": [{**CLOSED, "udp": "ok"}]}, "sends datagrams to 10.0.0.1:9"),
        ({"name": "ok"}, "looks up names"),
        ({"interfaces": ["lo", "wlan0"], "targets": [{**CLOSED, "tcp": "timeout"}]}, "has wlan0"),
    ],
)
def test_one_way_is_enough(change: dict[str, Any], words: str) -> None:
    severity, what, remedy = judged({**SHUT, **change})
    assert (severity, words in what, bool(remedy)) == ("fail", True, True)


def test_its_own_loopback_is_no_way_out() -> None:
    own = {"address": "127.0.0.1", "port": 9, "tcp": "ECONNREFUSED", "udp": "ok"}
    assert judged({**SHUT, "targets": [own]})[:2] == ("ok", "den/0: no way out (ECONNREFUSED)")
    assert judged({**SHUT, "targets": [CLOSED, own]})[:2] == ("ok", "den/0: no way out (network unreachable)")
    assert judged({**SHUT, "targets": [own]}, True)[0] == "fail", "unless it was heard by it"


def test_the_reason_of_its_record_says_the_remedy() -> None:
    assert "isolate: true" in judged(OPEN, False, "network: network.isolate is false in the config")[2]
    assert "homeport doctor" in judged(OPEN, False, "network: unshare: Operation not permitted")[2]
    assert "firewall" in judged(OPEN, False, f"network: {network.NOT_HERE}")[2]


def test_one_that_does_not_answer_proves_nothing() -> None:
    assert judged(None)[0] == "fail"


@pytest.fixture
def ear() -> Iterator[tuple[socket.socket, socket.socket]]:
    with network.listen("127.0.0.1", 0) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(listener.getsockname())
        datagrams.settimeout(5)
        yield listener, datagrams


async def test_what_is_tried_is_really_tried(ear: tuple[socket.socket, socket.socket]) -> None:
    listener, datagrams = ear
    where = list(listener.getsockname())
    with network.listen("127.0.0.1", 0) as gone:
        nobody = list(gone.getsockname())
    told = await Egress().attempt({"targets": [where, nobody], "name": "name.invalid", "word": "abc"})
    first, second = told["targets"]
    assert first == {"address": where[0], "port": where[1], "tcp": "ok", "udp": "ok"}
    assert second["tcp"] == "ECONNREFUSED"
    assert told["name"] not in ("ok", None)
    assert "lo" in told["interfaces"]
    listener.settimeout(5)
    listener.accept()[0].close()
    assert datagrams.recv(100) == WORD + b"abc"


async def test_a_look_up_that_hangs_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def hang(_: str) -> str:
        begun.set()
        go.wait(10)
        return "ok"

    monkeypatch.setattr("serving.egress.look_up", hang)
    monkeypatch.setattr("serving.egress.LOOKUP_S", 0.1)
    told = await Egress().attempt({"targets": [["127.0.0.1", 1]], "name": "example.com", "word": ""})
    go.set()
    assert begun.is_set()
    assert told["name"] == "timeout"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], "the body"),
        ({"word": ""}, "targets"),
        ({"targets": [], "word": ""}, "targets"),
        ({"targets": [["127.0.0.1", 9]] * 9, "word": ""}, "targets"),
        ({"targets": [["example.com", 9]], "word": ""}, "targets"),
        ({"targets": [["127.0.0.1", 0]], "word": ""}, "targets"),
        ({"targets": ["127.0.0.1"], "word": ""}, "targets"),
        ({"targets": [["127.0.0.1", 9]], "word": "ä"}, "word"),
        ({"targets": [["127.0.0.1", 9]], "word": "x" * 65}, "word"),
        ({"targets": [["127.0.0.1", 9]], "word": "", "name": ""}, "name"),
    ],
)
async def test_a_body_that_asks_for_something_else_is_refused(body: object, param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await Egress().attempt(body)
    assert refused.value.param == param


def test_a_host_is_asked_with_the_clusters_token_and_takes_nothing_else(tmp_path: Path) -> None:
    host = HostProcess(tmp_path, model_spec(), "none", Behaviour())
    host.start()
    try:
        assert host._ask("POST", "/egress", b"{}", {"authorization": "Bearer wrong"}).status == 401
        refused = host.post("/egress", {"targets": "everything"})
        assert (refused.status, refused.body["error"]["param"]) == (400, "targets")
        assert host.get("/egress").status == 405
        told = host.post("/egress", {"targets": [["127.0.0.1", host.port]], "word": "x"})
        assert told.body["targets"][0]["tcp"] == "ok", "it was started without a launcher, in this network"
    finally:
        host.kill()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path, monkeypatch)
    made.behaviours = [TALKS]
    try:
        yield made
    finally:
        made.keeper.close()
        end_everything(made.paths)


def checked(machine: Machine) -> Any:
    (found,) = asyncio.run(
        egress_check.check([machine.keeper.report()], [own_address()], lambda _: machine.token)
    )
    return found


@needs_namespaces
def test_a_keepers_host_has_no_way_out_until_the_config_leaves_it_one(machine: Machine) -> None:
    model = replace(model_spec(), replicas=1)
    machine.give(1, [(model, "d" * 64)])
    machine.lives(0, 1)
    assert "network" in machine.replica(0)["limits"]["enforced"]
    found = checked(machine)
    assert (found.severity, found.machine) == ("ok", "den"), found
    assert "den/0: no way out" in found.what
    assert machine.ask(0, 3)

    machine.give(2, [(replace(model, isolate=False), "e" * 64)])
    machine.lives(0, 2)
    assert machine.replica(0)["limits"]["notes"] == ["network: network.isolate is false in the config"]
    found = checked(machine)
    assert found.severity == "fail"
    assert "CAN connect: connects to" in found.what
    assert "was heard by datagram" in found.what
    assert "isolate: true" in found.remedy


@needs_namespaces
def test_a_host_without_a_network_is_adopted_and_told_to_stop(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.serve(1)
    before = machine.lives(0, 1)
    machine.replace_keeper()
    after = machine.until(0, lambda replica: replica["state"] == "ready")
    assert (after["pid"], after["incarnation"]) == (before["pid"], before["incarnation"])
    assert after["limits"] == before["limits"]
    assert checked(machine).severity == "ok"
    machine.keeper.apply(2, [], "den")
    deadline = time.monotonic() + PATIENCE_S
    while (report := machine.keeper.report())["replicas"] or report["ending"]:
        assert time.monotonic() < deadline, report
        machine.keeper.report(report["version"], 1.0)


async def test_a_host_that_is_gone_fails() -> None:
    with network.listen("127.0.0.1", 0) as gone:
        port = gone.getsockname()[1]
    replica = {"name": "den/0", "address": "127.0.0.1", "port": port, "pid": 1}
    for state, pid in (("ready", 1), ("lost", None)):
        machine = {"name": "den", "state": state, "replicas": [{**replica, "pid": pid}]}
        (found,) = await egress_check.check([machine], [], lambda _: "token")
        assert (found.severity, "did not answer" in found.what) == ("fail", True)


async def test_a_replica_without_a_host_is_not_asked() -> None:
    replica = {"name": "den/0", "address": "127.0.0.1", "port": 1, "pid": None, "state": "failed"}
    assert (
        await egress_check.check(
            [{"name": "den", "state": "ready", "replicas": [replica]}], [], lambda _: "t"
        )
        == []
    )

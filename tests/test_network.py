"""Hosts without a network, as real processes: what they still can, what they cannot, and where it is not permitted."""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster import network
from cluster.confine import Launch, LaunchFailed, Record, alive, end_group, launch, read_record
from cluster.machine import GIB
from cluster.slices import Slice
from tests.ports import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has network namespaces")

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 20.0
MARK = "HOMEPORT_TEST_MARK"

# A host: one JSON answer a connection. It executes itself anew once where it is told to, as a stuck host does.
HOST = """
import json, os, socket, sys
from cluster import network
from cluster.locks import LOCK_FDS, adopt_locks
locks = adopt_locks()
listener = network.adopt_listener(os.environ)
if os.environ.pop("ANEW", ""):
    for lock in locks: os.set_inheritable(lock, True)
    kept = {LOCK_FDS: ",".join(map(str, locks)), **network.hand_down(listener), "LIFE": "2"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **kept})
def word(call):
    try: call()
    except OSError as error: return errno.errorcode.get(error.errno, str(error))
    return "ok"
import errno
def send(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending: sending.sendto(b"hello", tuple(address))
def back():
    with open("/proc/1/ns/net") as there: os.setns(there.fileno()) if hasattr(os, "setns") else setns(there.fileno())
def setns(number):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(number, 0): raise OSError(ctypes.get_errno(), "setns")
outside, = json.loads(os.environ["OUTSIDE"]),
while True:
    connection, _ = listener.accept()
    with connection:
        own = socket.create_server(("127.0.0.1", 0))
        told = {
            "up": [name for _, name in socket.if_nameindex() if network.is_up(name)],
            "tcp": word(lambda: socket.create_connection(outside, 2).close()),
            "udp": word(lambda: send(outside)),
            "loopback": word(lambda: socket.create_connection(own.getsockname(), 2).close()),
            "back": word(back),
            "uid": os.getuid(), "life": os.environ.get("LIFE", "1"), "pid": os.getpid(),
            "fd in environment": network.LISTEN_FD in os.environ,
            "inherited": listener.get_inheritable(),
            "locks": len(locks),
        }
        connection.sendall(json.dumps(told).encode())
        own.close()
"""
# Who starts one, as a keeper does; run as somebody who may more or less.
STARTS = """
import json, os, socket, sys
from pathlib import Path
from cluster.confine import Launch, alive, end_group, launch, read_record
order = Launch.from_json(json.load(sys.stdin))
record = launch(order)
try:
    with socket.create_connection((order.address, order.port), 20) as asking:
        told = json.loads(asking.makefile().read())
    told["found"] = read_record(order.record) == record and alive(record)
    told["mark"] = b"HOMEPORT_TEST_MARK=1" in Path(f"/proc/{record.pid}/environ").read_bytes()
    told["written"] = (order.folder / "incarnation").read_text()
finally:
    ended = end_group(record, 1.0)
print(json.dumps({**told, "record": record.to_json(), "ended": ended}))
"""
FORBID = 'echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"'
SOMEBODY = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
FORBIDDEN = ("unshare", "--user", "--map-root-user", "sh", "-c", FORBID, "sh")


def works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(
    sys.platform == "linux" and network.why_not() is not None,
    reason=f"not permitted here: {network.why_not()}",
)
needs_somebody = pytest.mark.skipif(not works(*SOMEBODY), reason="user namespaces are not permitted here")


class Hosts:
    """Orders for hosts, and a listener of this machine's that they try to reach."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records: list[Record] = []
        self.ear = network.listen(own_address(), 0)

    def order(self, slot: int = 0, isolate: bool = True, env: Mapping[str, str] | None = None) -> Launch:
        outside = json.dumps(self.ear.getsockname())
        return Launch(
            replica=f"den/{slot}",
            slice=Slice((9000 + slot,), (9000 + slot,), (), GIB),
            command=(sys.executable, "-c", HOST),
            env={
                "PYTHONPATH": str(ROOT),
                "PATH": os.environ["PATH"],
                "OUTSIDE": outside,
                MARK: "1",
                **(env or {}),
            },
            folder=self.root / "replicas" / str(slot),
            record=self.root / "locks" / f"home-{slot}.json",
            locks=self.root / "locks",
            port=free_port(),
            config_digest="digest",
            address="127.0.0.1",
            isolate=isolate,
        )

    def launch(self, order: Launch) -> Record:
        record = launch(order)
        self.records.append(record)
        return record

    def close(self) -> None:
        for record in self.records:
            assert end_group(record, 0)
        self.ear.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


def own_address() -> str:
    """An address of this machine that is not loopback; else loopback, which is another one in a namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def ask(order: Launch) -> dict[str, Any]:
    with socket.create_connection(("127.0.0.1", order.port), PATIENCE_S) as asking:
        told: dict[str, Any] = json.loads(asking.makefile().read())
        return told


def started_by(order: Launch, *wrapper: str) -> dict[str, Any]:
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", STARTS],
        input=json.dumps(order.to_json()).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def is_closed(word: str) -> bool:
    """Unreachable; or, where this machine has no address but loopback, the namespace's own loopback."""
    return word in ("ENETUNREACH", "ECONNREFUSED")


@needs_namespaces
def test_a_host_serves_and_reaches_nothing_but_its_own_loopback(hosts: Hosts) -> None:
    order = hosts.order()
    record = hosts.launch(order)
    told = ask(order)
    assert "network" in record.limits.enforced
    assert record.limits.notes == ()
    assert told["up"] == ["lo"]
    assert is_closed(told["tcp"]), told
    assert told["loopback"] == "ok"
    assert told["udp"] == "ENETUNREACH" or own_address() == "127.0.0.1"
    assert (told["fd in environment"], told["inherited"]) == (False, False)
    assert told["pid"] == record.pid


@needs_namespaces
def test_a_host_cannot_go_back(hosts: Hosts) -> None:
    order = hosts.order()
    hosts.launch(order)
    assert ask(order)["back"] in ("EPERM", "EACCES")


@needs_namespaces
def test_its_port_is_taken_in_the_network_of_who_started_it(hosts: Hosts) -> None:
    order = hosts.order()
    hosts.launch(order)
    with pytest.raises(OSError, match="in use"):
        network.listen("127.0.0.1", order.port)


@needs_namespaces
def test_a_host_that_executes_itself_anew_keeps_socket_locks_and_record(hosts: Hosts) -> None:
    order = hosts.order(env={"ANEW": "1"})
    record = hosts.launch(order)
    told = ask(order)
    assert (told["life"], told["pid"]) == ("2", record.pid)
    assert told["locks"] == 2, "folder and core"
    assert told["up"] == ["lo"]
    assert is_closed(told["tcp"])
    found = read_record(order.record)
    assert found == record
    assert alive(record)


def test_a_host_may_be_left_its_network(hosts: Hosts) -> None:
    order = hosts.order(isolate=False)
    record = hosts.launch(order)
    told = ask(order)
    assert "network" in record.limits.watched
    assert record.limits.notes == ("network: network.isolate is false in the config",)
    assert (told["tcp"], told["udp"]) == ("ok", "ok")


@needs_somebody
def test_one_who_is_not_root_has_hosts_without_a_network_too(hosts: Hosts) -> None:
    """What is done with it from outside works as before: its record, its environment, its end."""
    told = started_by(hosts.order(), *SOMEBODY)
    assert "network" in told["record"]["limits"]["enforced"], told["record"]["limits"]
    assert told["uid"] == 1000
    assert told["up"] == ["lo"]
    assert is_closed(told["tcp"])
    assert told["back"] in ("EPERM", "EACCES")
    assert (told["found"], told["mark"], told["ended"], told["written"]) == (True, True, True, "1\n")


@needs_somebody
def test_where_it_is_not_permitted_the_host_serves_and_the_reason_is_told(hosts: Hosts) -> None:
    told = started_by(hosts.order(), *FORBIDDEN)
    limits = told["record"]["limits"]
    assert "network" in limits["watched"]
    assert limits["notes"] == ["network: unshare: No space left on device"]
    assert told["tcp"] == "ok"
    assert told["ended"]


def test_a_taken_port_is_told_and_nothing_is_left(hosts: Hosts) -> None:
    order = hosts.order()
    with network.listen("127.0.0.1", order.port):
        with pytest.raises(
            LaunchFailed, match=rf"cannot listen on 127.0.0.1:{order.port} \(Address already in use\)"
        ):
            launch(order)
        assert not order.record.exists()
        assert not (order.folder / "incarnation").exists()
    hosts.launch(order)


def test_whether_it_is_permitted_is_found_out_without_a_change() -> None:
    mine = [Path("/proc/self/ns", name) for name in ("net", "user")]
    before = [path.readlink() for path in mine]
    network.why_not()
    assert [path.readlink() for path in mine] == before


def test_without_a_socket_that_was_handed_down_there_is_none() -> None:
    assert network.adopt_listener({}) is None
    assert network.adopt_listener({network.LISTEN_FD: ""}) is None


@pytest.mark.parametrize("module", ["network", "doctor_probe"])
def test_what_travels_to_other_machines_is_read_by_an_old_python(module: str) -> None:
    source = (ROOT / "cluster" / f"{module}.py").read_text()
    ast.parse(source, feature_version=(3, 8))
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    tops = {
        alias.name.partition(".")[0] for node in names if isinstance(node, ast.Import) for alias in node.names
    }
    tops |= {str(node.module).partition(".")[0] for node in names if isinstance(node, ast.ImportFrom)}
    assert tops <= {*sys.stdlib_module_names, "cluster"}

"""Machines in a network that is not declared private: what they say to each other, heard by somebody on the way."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kernel import run
from tests.cluster.lab import Lab, LabMachine, until
from tests.cluster.several import CLONE, HOMEPORT, Answer, Several, processes, several, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
NAMES = {"den-pc": "home", "tower": "home", "attic": "office"}
"""The head; one of Ray's list; one that joins by hand."""
WORD = "zanzibarquince"
PATIENCE_S = 120.0
STATE = Path(".local/state/homeport")
LISTEN = """
import socket, sys
hears = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
with open(sys.argv[1], "wb", buffering=0) as kept:
    print("hears", flush=True)
    while True:
        kept.write(hears.recv(65536))
"""
KNOCK = """
import socket, ssl, sys
address, port, *own = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
if own:
    context.load_cert_chain(*own)
try:
    with socket.create_connection((address, int(port)), 5) as there, context.wrap_socket(there) as spoken:
        spoken.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(3) + b"\\x04" + bytes(5))
        print("answers" if spoken.recv(100) else "ends")
except ssl.SSLError as error:
    print("refuses", error.reason)
except OSError as error:
    print("refuses", error)
"""
ASK_HOST = """
import ssl, sys, urllib.error, urllib.request
url, token, ca = sys.argv[1:]
request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
try:
    print(urllib.request.urlopen(request, timeout=5, context=ssl.create_default_context(cafile=ca)).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


REQUEST = """
import os
from cluster import join, machine_tls
from cluster.paths import Paths
paths = Paths.from_env(os.environ)
print(machine_tls.request(paths, join.machine_id(paths)))
"""
SIGN = """
import os, sys, time
from cluster import certificates, machine_tls
from cluster.paths import Paths
certificates.MACHINE_DAYS = 3
print(machine_tls.certify(Paths.from_env(os.environ), *sys.argv[1:], time.time()))
"""


@contextlib.contextmanager
def somebody_on_the_way(lab: Lab, kept: Path) -> Iterator[None]:
    """Keeps every frame that passes between the machines."""
    inside = ["ip", "netns", "exec", f"{lab.prefix}-net", sys.executable, "-c", LISTEN, str(kept)]
    with subprocess.Popen(inside, stdout=subprocess.PIPE) as hears:
        try:
            assert hears.stdout is not None
            assert hears.stdout.readline() == b"hears\n"
            yield
        finally:
            hears.kill()


def state(machine: LabMachine, file: str) -> str:
    return (machine.home / STATE / file).read_text()


def secrets(cluster: Several) -> dict[str, str]:
    """Every token that a machine of the cluster keeps."""
    found = {}
    for machine in cluster.members:
        for folder in ("secrets", "join"):
            for file in (machine.home / STATE / folder).glob("*"):
                found[f"{machine.name}: {file.name}"] = file.read_text().strip()
    return found


def knock(at: LabMachine, *words: str) -> str:
    return at.ssh(f"{CLONE}/.venv/bin/python - {' '.join(words)} <<'END'\n{KNOCK}\nEND").stdout.strip()


def ask_host(at: LabMachine, replica: dict[str, Any], token: str) -> str:
    url = f"https://{replica['address']}:{replica['port']}/state"
    told = at.ssh(
        f"{CLONE}/.venv/bin/python - {url} {token} ~/{STATE}/tls/ca.pem <<'END'\n{ASK_HOST}\nEND", check=False
    )
    return told.stdout.strip() or told.stderr


def readdress(machine: LabMachine, last: int) -> None:
    net, ip = machine.address.rpartition(".")[0], ("ip", "-n", machine.namespace)
    run(*ip, "addr", "del", f"{machine.address}/24", "dev", "eth0")
    run(*ip, "addr", "add", f"{net}.{last}/24", "dev", "eth0")
    run(*ip, "route", "replace", "default", "via", f"{net}.1")
    machine.address = f"{net}.{last}"


def test_nothing_of_a_cluster_can_be_read_on_the_way(prepared: Path, tmp_path: Path) -> None:
    """`ray up` on a list, a machine by a token, turns, an address that changes: no token, no prompt, no answer."""
    with several(tmp_path / "lab", prepared, NAMES, private=False) as cluster:
        den, tower, attic = cluster.members
        cluster.write_list(den.address, [tower.address])
        run("rm", "-rf", str(attic.home / "homeport"))
        run("cp", "-al", str(prepared), str(attic.home / "homeport"))
        kept = tmp_path / "kept"
        with somebody_on_the_way(cluster.lab, kept):
            for machine in cluster.members:
                machine.boot()
            up = cluster.ray("up")
            assert up.returncode == 0, up.stdout + cluster.logs()
            wait_for(lambda: cluster.ready() == {"den-pc", "tower"}, "the list", PATIENCE_S, cluster.logs)
            token = den.ssh(f"{HOMEPORT} join-token").stdout.strip()
            joins = f"{HOMEPORT} join {den.address} --token-file - <<< {token}"
            joined = attic.ssh(joins, check=False, timeout=200)
            assert joined.returncode == 0, joined.stdout + joined.stderr + cluster.logs()
            wait_for(lambda: cluster.ready() == set(NAMES), "all three", PATIENCE_S, cluster.logs)

            sessions = [(f"tls-{number}", f"Say {WORD}.") for number in range(len(NAMES))]
            first = cluster.ask(*sessions)
            assert [answer.status for answer in first] == [200] * len(NAMES)
            assert {answer.machine for answer in first} == set(NAMES)
            nobody_gets_in(cluster)

            machine = json.loads(state(attic, "machine.json"))
            certificate, ca = state(attic, "tls/machine.pem"), state(attic, "tls/ca.pem")
            readdress(attic, 77)
            wait_for(
                lambda: (
                    cluster.fleet().get("attic", {}).get("address") == attic.address
                    and cluster.ready() == set(NAMES)
                ),
                "attic at its new address",
                PATIENCE_S,
                cluster.logs,
            )
            assert json.loads(state(attic, "machine.json"))["id"] == machine["id"]
            assert state(attic, "tls/machine.pem") != certificate
            assert state(attic, "tls/ca.pem") == ca
            again = cluster.ask(*sessions)
            assert [(answer.status, answer.machine, answer.pin) for answer in again] == [
                (200, answer.machine, "kept") for answer in first
            ]
            known = {**secrets(cluster), "join-token": token}
        heard = kept.read_bytes()
        assert b"SSH-2.0" in heard, "the ear hears nothing"
        assert len(heard) > 1_000_000
        assert len(known) >= 6
        for name, secret in known.items():
            assert secret.encode() not in heard, f"{name} was heard"
        for words in (WORD, "chat/completions", "x-homeport", "homeport-session", "authorization: Bearer"):
            assert words.encode() not in heard, f"{words} was heard"
        certificates_are_renewed(cluster, sessions, again)
        all_ends(cluster)
        secrets_are_rotated(cluster, known, sessions, again)
        all_ends(cluster)


def all_ends(cluster: Several) -> None:
    down = cluster.ray("down")
    print(down.stdout)
    assert down.returncode == 0, cluster.logs()
    until(lambda: not any(m.commands() for m in cluster.members), "the end of everything")


def certificates_are_renewed(cluster: Several, sessions: list[tuple[str, str]], before: list[Answer]) -> None:
    """A worker's and the head's that end soon: hosts live on and show the new ones."""
    den, tower, _ = cluster.members
    hosts = [processes(machine, "serving.host") for machine in cluster.members]
    assert all(len(found) == 1 for found in hosts)
    short = {machine.name: give_one_that_ends_soon(den, machine) for machine in (den, tower)}
    wait_for(
        lambda: all(state(machine, "tls/machine.pem") != short[machine.name] for machine in (den, tower)),
        "new certificates",
        PATIENCE_S,
        cluster.logs,
    )
    wait_for(lambda: cluster.ready() == set(NAMES), "all three again", PATIENCE_S, cluster.logs)
    wait_for(
        lambda: all(shown(cluster, machine) == state(machine, "tls/machine.pem") for machine in (den, tower)),
        "their hosts to show them",
        PATIENCE_S,
        cluster.logs,
    )
    answers = cluster.ask(*sessions)
    assert [(answer.status, answer.machine, answer.pin) for answer in answers] == [
        (200, answer.machine, "kept") for answer in before
    ]
    now = [processes(machine, "serving.host") for machine in cluster.members]
    assert now == hosts, "a host was started anew"


def secrets_are_rotated(
    cluster: Several, known: dict[str, str], sessions: list[tuple[str, str]], before: list[Answer]
) -> None:
    """After what docs/operations.md says: nothing that was known before opens anything, and the sessions are there."""
    den, tower, attic = cluster.members
    ca = state(den, "tls/ca.pem")
    print(den.ssh(f"{HOMEPORT} rotate-secrets").stdout)
    up = cluster.ray("up")
    assert up.returncode == 0, up.stdout + cluster.logs()
    wait_for(lambda: cluster.ready() == {"den-pc", "tower"}, "the list", PATIENCE_S, cluster.logs)
    old = attic.ssh(f"{HOMEPORT} join {den.address}", check=False, timeout=200)
    assert old.returncode != 0
    assert "homeport join-token" in old.stdout + old.stderr
    token = den.ssh(f"{HOMEPORT} join-token").stdout.strip()
    joined = attic.ssh(f"{HOMEPORT} join {den.address} --token-file - <<< {token}", check=False, timeout=200)
    assert joined.returncode == 0, joined.stdout + joined.stderr + cluster.logs()
    wait_for(lambda: cluster.ready() == set(NAMES), "all three", PATIENCE_S, cluster.logs)
    for machine in cluster.members:
        assert state(machine, "tls/ca.pem") not in ("", ca)
    assert state(den, "tls/ca.pem") == state(tower, "tls/ca.pem") == state(attic, "tls/ca.pem")
    now = {secret for name, secret in secrets(cluster).items() if not name.endswith(": digest_key")}
    assert not now & set(known.values()), "something is as it was"
    answers = cluster.ask(*sessions)
    assert [(answer.status, answer.machine) for answer in answers] == [
        (200, answer.machine) for answer in before
    ]


def give_one_that_ends_soon(den: LabMachine, machine: LabMachine) -> str:
    csr = machine.ssh(f"{CLONE}/.venv/bin/python - <<'END'\n{REQUEST}\nEND").stdout
    me = json.loads(state(machine, "machine.json"))["id"]
    made = den.ssh(f"{CLONE}/.venv/bin/python - '{csr}' {me} {machine.address} <<'END'\n{SIGN}\nEND").stdout
    machine.ssh(f"cat > ~/{STATE}/tls/new.pem <<'END'\n{made}\nEND")
    machine.ssh(f"mv ~/{STATE}/tls/new.pem ~/{STATE}/tls/machine.pem")
    return state(machine, "tls/machine.pem")


def shown(cluster: Several, machine: LabMachine) -> str:
    """What its host shows to whoever calls."""
    replica = cluster.fleet()[machine.name]["replicas"][0]
    asks = f"ssl.get_server_certificate(({replica['address']!r}, {replica['port']}))"
    words = f'{CLONE}/.venv/bin/python -c "import ssl; print({asks}, end=str())"'
    return cluster.head.ssh(words, check=False).stdout


def nobody_gets_in(cluster: Several) -> None:
    """A machine with its own secrets reaches no other machine's hosts; who has no certificate, not Ray either."""
    den, tower, _ = cluster.members
    replicas = {name: machine["replicas"][0] for name, machine in cluster.fleet().items()}
    own = state(tower, "secrets/machine_token")
    assert ask_host(tower, replicas["tower"], own) == "200"
    assert ask_host(tower, replicas["attic"], own) == "401"
    assert ask_host(tower, replicas["den-pc"], own) == "401"
    assert not (tower.home / STATE / "secrets" / "cluster_token").exists()

    ray = json.loads(state(den, "run.json"))["ray"].split(":")
    print(den.ssh("ss -ltn", check=False).stdout)
    assert knock(tower, *ray) != "answers"
    files = (f"~/{STATE}/tls/machine.pem", f"~/{STATE}/tls/machine.key")
    assert knock(tower, *ray, *files) == "answers"

"""The controller over its real HTTP, with stand-ins for Ray's side of it."""

import asyncio
import http.server
import json
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.join import RayIs, ray_of
from cluster.machine import CpuCore, Hardware
from cluster.paths import Paths, secret, write_private
from cluster.proof import machine_token
from cluster.slices import Need
from serving import controller as controller_
from serving import leaving
from serving.controller import Controller
from serving.journal_file import NOTHING, JournalNews, Mark
from serving.machine_book import MachineBook
from serving.membership import Members
from serving.model import ModelSpec
from tests.ports import free_port

GIB = 1024**3
MODEL = ModelSpec("m", "llama.cpp", "bundled", "all", 1, Need(1, GIB), "needs", 2048, 1, 1.0, 5.0, "wait")
SESSION = "ab" * 32
STARTED: list[Controller] = []


class OneMachine:
    """Answers at once, and remembers what it was told to serve."""

    def __init__(
        self, pins: list[dict[str, Any]] | None = None, id_: str = "id-1", name: str = "den"
    ) -> None:
        self.id, self.name = id_, name
        self.journal = pins or []
        self.here = True
        self.readable = True
        """Whether its journal can be read."""
        self.hosts: list[dict[str, Any]] = []
        self.yielded: dict[str, Any] | None = None
        """For whom the machine is, as its keeper says."""
        self.changes = 0
        self.whole = 0
        """How often the journal was begun anew."""
        self.applied: list[tuple[int, list[dict[str, Any]]]] = []
        self.kept = (0, "")
        """The revision that its keeper has, and of which head."""
        self.left: list[str] = []
        self.models: dict[str, Any] | None = None
        """What its keeper reports of models; and what it was told to bring."""
        self.brought: list[dict[str, Any]] = []
        self.woke: list[tuple[str, str, list[str]]] = []
        self.told: dict[str, Any] = {}
        """What else its keeper reports."""
        self.answers = threading.Event()
        self.answers.set()

    def machines(self) -> list[str]:
        return [self.id] if self.here else []

    def _report(self) -> dict[str, Any]:
        hardware = Hardware((CpuCore(0, (0,), "unknown", 0),), 8 * GIB, ())
        return {
            "id": self.id,
            "name": self.name,
            "zone": "default",
            "address": "127.0.0.1",
            "state": "ready",
            "version": len(self.applied) + self.changes,
            "revision": self.kept[0],
            "head": self.kept[1],
            "hardware": hardware.to_json(),
            "reserve": {"cores": 0, "memory_bytes": 0},
            "yielded": self.yielded,
            "replicas": [
                {**host, "state": "yielded" if self.yielded else host["state"], "journal": str(self.changes)}
                for host in self.hosts
            ],
            **({} if self.models is None else {"models": self.models}),
            **self.told,
        }

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        if not self.answers.is_set():
            await asyncio.sleep(0.05)
            raise TimeoutError
        for _ in range(round(wait_s / 0.02)):
            if known != len(self.applied) + self.changes:
                break
            await asyncio.sleep(0.02)
        if not self.here:
            raise TimeoutError
        return self._report()

    async def apply(
        self, machine: str, revision: int, wishes: list[dict[str, Any]], head: str
    ) -> dict[str, Any]:
        self.applied.append((revision, wishes))
        self.kept = (revision, head)
        return self._report()

    async def yield_machine(self, machine: str, for_s: float | None, ends: bool) -> dict[str, Any]:
        if not self.answers.is_set():
            raise TimeoutError
        self.yielded = None if ends else {"by": "person", "until": for_s}
        self.changes += 1
        return self._report()

    async def bring(self, machine: str, orders: dict[str, Any]) -> dict[str, Any]:
        self.brought.append(orders)
        self.changes += 1
        self.models = {**(self.models or {}), "orders": orders["key"]}
        return self._report()

    async def leave(self, machine: str) -> None:
        if not self.answers.is_set():
            raise TimeoutError
        self.left.append(machine)

    async def wake(self, machine: str, mac: str, networks: list[str]) -> int:
        if not self.answers.is_set():
            raise TimeoutError
        self.woke.append((machine, mac, networks))
        return len(networks)

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        if not self.readable:
            return {}
        mark = Mark("e", self.whole, self.changes)
        return {0: JournalNews(list(self.journal), mark, known.get(0, NOTHING).removed != self.whole)}


class SilentKeeper(OneMachine):
    """Its machine is there, its keeper does not answer until `answers` is set."""

    def __init__(self, pins: list[dict[str, Any]] | None = None) -> None:
        super().__init__(pins)
        self.answers.clear()


class Several:
    """Machines side by side."""

    def __init__(self, *machines: OneMachine) -> None:
        self._each = {machine.id: machine for machine in machines}

    def machines(self) -> list[str]:
        return [id_ for each in self._each.values() for id_ in each.machines()]

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        return await self._each[machine].report(machine, known, wait_s)

    async def apply(
        self, machine: str, revision: int, wishes: list[dict[str, Any]], head: str
    ) -> dict[str, Any]:
        return await self._each[machine].apply(machine, revision, wishes, head)

    async def yield_machine(self, machine: str, for_s: float | None, ends: bool) -> dict[str, Any]:
        return await self._each[machine].yield_machine(machine, for_s, ends)

    async def bring(self, machine: str, orders: dict[str, Any]) -> dict[str, Any]:
        return await self._each[machine].bring(machine, orders)

    async def leave(self, machine: str) -> None:
        await self._each[machine].leave(machine)

    async def wake(self, machine: str, mac: str, networks: list[str]) -> int:
        return await self._each[machine].wake(machine, mac, networks)

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        return await self._each[machine].pins(machine, known)


class Running:
    """A controller on a port of its own."""

    def __init__(
        self,
        folder: Path,
        members: Members,
        wanted: Sequence[ModelSpec] = (MODEL,),
        lost_after_s: float = 30.0,
    ) -> None:
        paths = Paths(folder / "home", folder / "locks")
        paths.make()
        self.port = free_port()
        control = {"host": "127.0.0.1", "port": self.port, "lost_after_s": lost_after_s}
        models = [{"spec": model.to_json(), "digest": "d"} for model in wanted]
        write_private(paths.revision, json.dumps({"revision": 3, "models": models, "control": control}))
        self.token = secret(paths.cluster_token)
        self.controller = Controller(lambda: members)
        STARTED.append(self.controller)

    def ask(
        self, path: str, body: Any = None, token: str | None = None, method: str | None = None
    ) -> tuple[int, Any]:
        """(status, JSON); waits for the controller to listen."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {token or self.token}"},
            method=method,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)
            except urllib.error.URLError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def until_stands(self, name: str, state: str) -> dict[str, Any]:
        """The machine as the fleet tells it, once it stands so."""
        deadline = time.monotonic() + 10
        while True:
            machines: dict[str, dict[str, Any]] = {m["name"]: m for m in self.ask("/fleet")[1]["machines"]}
            if machines.get(name, {}).get("state") == state:
                return machines[name]
            assert time.monotonic() < deadline, machines
            time.sleep(0.05)

    def until_saved(self) -> None:
        deadline = time.monotonic() + 10
        while self.controller.index.unsaved or self.controller.roll.unsaved or self.controller.known._saving:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def until(self, path: str, body: Any, status: int) -> Any:
        """The answer once it has that status."""
        deadline = time.monotonic() + 10
        while (found := self.ask(path, body))[0] != status:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found[1]


CLAIM = {"session": SESSION, "model": "m", "ranked": [{"replica": "den/0", "free": 1}], "refused": []}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Controllers that were started below it are ended after the test."""
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOMEPORT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(controller_, "TICK_S", 0.2)
    yield tmp_path
    while STARTED:
        STARTED.pop().end()


def test_a_machine_is_told_once_what_to_serve(folder: Path) -> None:
    members = OneMachine()
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    assert [(revision, [w["count"] for w in wishes]) for revision, wishes in members.applied] == [(3, [1])]
    assert running.ask("/fleet")[1]["machines"][0]["revision"] == 3


@pytest.mark.parametrize("kept", [(1, "id-1"), (9, "id-1"), (3, "another"), (9, "another"), (3, "")])
def test_a_machine_that_served_another_head_or_revision_is_told_too(
    folder: Path, kept: tuple[int, str]
) -> None:
    members = OneMachine()
    members.kept = kept
    paths = Paths(folder / "home", folder / "locks")
    paths.make()
    write_private(paths.machine, json.dumps({"id": "id-1"}))
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    deadline = time.monotonic() + 10
    while members.kept != (3, "id-1"):
        assert time.monotonic() < deadline, members.kept
        time.sleep(0.02)
    assert running.ask("/fleet")[1]["machines"][0]["revision"] == 3


def test_a_machine_that_has_this_heads_revision_is_left_alone(folder: Path) -> None:
    members = OneMachine()
    members.kept = (3, "")
    Running(folder, members).until("/claim", CLAIM, 200)
    assert members.applied == []


def test_nobody_is_new_before_the_journals_are_read(folder: Path) -> None:
    kept = {"session": SESSION, "model": "m", "replica": "den/7", "generation": 1, "created_s": 1.0}
    members = SilentKeeper([kept])
    running = Running(folder, members)
    assert running.ask("/claim", CLAIM)[0] == 503
    assert running.ask(f"/pins/{SESSION}?model=m")[0] == 503
    members.answers.set()
    answer = running.until("/claim", CLAIM, 200)
    assert (answer["pin"]["replica"], answer["known"]) == ("den/7", True)


def test_a_session_that_no_journal_knows_is_new(folder: Path) -> None:
    running = Running(folder, OneMachine())
    answer = running.until("/claim", CLAIM, 200)
    assert (answer["pin"]["replica"], answer["known"]) == ("den/0", False)
    assert running.ask(f"/pins/{'cd' * 32}?model=m")[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {**CLAIM, "ranked": []},
        [1],
        {**CLAIM, "ranked": "den/0"},
        {**CLAIM, "ranked": [{"replica": "den/0", "free": "many"}]},
        {**CLAIM, "session": "ann"},
        {**CLAIM, "session": 7},
        {**CLAIM, "instead_of": {"replica": "den/0", "generation": 0}},
    ],
)
def test_what_is_no_claim_is_refused(folder: Path, body: Any) -> None:
    assert Running(folder, OneMachine()).ask("/claim", body)[0] == 400


def test_nothing_is_told_without_the_clusters_token(folder: Path) -> None:
    running = Running(folder, OneMachine())
    assert running.ask("/fleet", token="wrong")[0] == 401
    assert running.ask("/claim", CLAIM, token="wrong")[0] == 401
    assert running.ask("/machines/den/forget", {}, token="wrong")[0] == 401
    assert running.ask(f"/pins/{SESSION}?model=m", token="wrong", method="DELETE")[0] == 401


# homes that are lost


def kept(replica: str = "den/0", generation: int = 1, **more: Any) -> dict[str, Any]:
    pin = {"session": SESSION, "model": "m", "replica": replica, "generation": generation, "created_s": 1.0}
    return pin | more


def was_here(folder: Path, name: str) -> None:
    """A machine of that name was here once: its zone is known, which a home in another's stead must share."""
    paths = Paths(folder / "home", folder / "locks")
    paths.make()
    MachineBook(paths.revision.with_name("machines.json")).here(f"id-{name}", name, "default")


def test_a_session_whose_home_is_lost_moves_once_whoever_asks(folder: Path) -> None:
    was_here(folder, "attic")
    running = Running(folder, OneMachine([kept("attic/0")]))
    running.until("/claim", CLAIM, 200)
    lost = {"replica": "attic/0", "generation": 1}
    answer = running.ask("/claim", {**CLAIM, "instead_of": lost})[1]
    assert (answer["pin"]["replica"], answer["pin"]["generation"], answer["known"]) == ("den/0", 2, False)
    elsewhere = {**CLAIM, "ranked": [{"replica": "den/1", "free": 1}], "instead_of": lost}
    assert running.ask("/claim", elsewhere)[1]["pin"] == answer["pin"]


@pytest.mark.parametrize("lost", [{}, {"replica": "a/0"}, {"replica": "a/0", "generation": "x"}, "a/0"])
def test_a_claim_that_does_not_say_what_is_lost_is_refused(folder: Path, lost: Any) -> None:
    assert Running(folder, OneMachine()).ask("/claim", {**CLAIM, "instead_of": lost})[0] == 400


class Hears:
    """A host that says yes, and what it was asked."""

    def __init__(self, port: int = 0) -> None:
        heard = self.heard = []  # type: ignore[var-annotated]

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                heard.append((self.command, self.path, self.headers["authorization"], body))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            do_DELETE = do_POST  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def until(self, count: int) -> list[Any]:
        deadline = time.monotonic() + 10
        while len(self.heard) < count:
            assert time.monotonic() < deadline, self.heard
            time.sleep(0.02)
        return self.heard

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def host() -> Iterator[Hears]:
    host = Hears()
    yield host
    host.close()


def replica_at(host: Hears, state: str = "ready") -> dict[str, Any]:
    told = {"name": "den/0", "slot": 0, "model": "m", "port": host.port, "state": state, "pins": 1}
    return {**told, "config_digest": "d"}


def test_a_machine_that_returns_is_told_of_the_newer_homes(folder: Path, host: Hears) -> None:
    members = OneMachine([kept()])
    members.hosts = [replica_at(host)]
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    moved = kept("attic/0", 2, public="hp_x", scope="s")
    assert running.ask("/pins", {"pins": [moved]})[1]["pins"] == [{**moved, "confirmed": True}]
    members.changes += 1
    for method, path, authorization, body in list(host.until(1)):  # twice where its share came in between
        assert (method, path, authorization) == (
            "POST",
            "/pins",
            f"Bearer {machine_token(running.token, 'id-1')}",
        )
        assert [(pin["replica"], pin["generation"]) for pin in body["pins"]] == [("attic/0", 2)]
    members.journal = [kept("attic/0", 2)]
    members.changes += 1
    time.sleep(0.2)
    told = len(host.heard)
    members.changes += 1
    time.sleep(0.2)
    assert len(host.heard) == told, "it has learned"


def test_a_journal_that_could_not_be_read_is_not_one_without_pins(folder: Path, host: Hears) -> None:
    members = OneMachine([kept()])
    members.hosts = [replica_at(host)]
    members.readable = False
    running = Running(folder, members)
    assert running.ask("/claim", {**CLAIM, "ranked": [{"replica": "den/1", "free": 1}]})[0] == 503
    members.changes += 1
    time.sleep(0.2)
    assert running.ask("/claim", {**CLAIM, "ranked": [{"replica": "den/1", "free": 1}]})[0] == 503
    members.readable = True
    members.changes += 1
    assert running.until("/claim", CLAIM, 200)["known"] is True


def test_a_home_is_not_lost_while_its_keeper_says_that_it_is_ready(folder: Path, host: Hears) -> None:
    was_here(folder, "attic")
    members = OneMachine([kept()])
    members.hosts = [replica_at(host)]
    running = Running(folder, members)
    elsewhere = {**CLAIM, "ranked": [{"replica": "attic/0", "free": 1}]}
    lost = {**elsewhere, "instead_of": {"replica": "den/0", "generation": 1}}
    running.until("/claim", CLAIM, 200)
    assert running.ask("/claim", lost)[1] == {"pin": kept(), "known": True}
    members.hosts = [replica_at(host, "starting")]
    members.changes += 1
    deadline = time.monotonic() + 10
    while (answer := running.ask("/claim", lost)[1])["known"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (answer["pin"]["replica"], answer["pin"]["generation"]) == ("attic/0", 2)


# pins that are told, ended, and gone


def test_a_session_is_found_by_its_public_id(folder: Path) -> None:
    running = Running(folder, OneMachine([kept(public="hp_x", scope="s")]))
    running.until("/claim", CLAIM, 200)
    status, pin = running.ask("/pins/hp_x?model=m")
    assert (status, pin["session"], pin["public"], pin["scope"]) == (200, SESSION, "hp_x", "s")
    assert running.ask("/pins/hp_y?model=m")[0] == running.ask("/pins/hp_x?model=other")[0] == 404


def test_who_lives_on_a_replica_is_told_be_its_machine_there_or_not(folder: Path) -> None:
    running = Running(folder, OneMachine([kept(public="hp_x", scope="s")]))
    running.until(f"/pins/{SESSION}?model=m", None, 200)
    home = kept()["replica"]
    ((status, told), (_, nobody)) = (running.ask(f"/pins?replica={name}") for name in (home, "attic/9"))
    assert (status, [(pin["session"], pin["public"], pin["scope"]) for pin in told["pins"]]) == (
        200,
        [(SESSION, "hp_x", "s")],
    )
    assert nobody == {"pins": []}


def test_an_ended_session_is_new_again_and_old_homes_drop_what_they_have(folder: Path, host: Hears) -> None:
    members = OneMachine([kept("attic/0", 2)])
    members.hosts = [replica_at(host)]
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    path = f"/pins/{SESSION}?model=m"
    assert running.ask(path, method="DELETE") == (200, {"ended": True})
    assert running.ask(path, method="DELETE") == (200, {"ended": False})
    assert running.ask(path)[0] == 404
    assert [heard[:2] for heard in host.until(1)] == [("DELETE", path)]
    assert running.ask("/claim", CLAIM)[1]["known"] is False


def test_what_is_gone_from_a_journal_is_gone_from_the_index(folder: Path, host: Hears) -> None:
    members = OneMachine([kept()])
    members.hosts = [replica_at(host)]
    running = Running(folder, members)
    running.until(f"/pins/{SESSION}?model=m", None, 200)
    members.journal = []
    members.whole += 1
    members.changes += 1
    running.until(f"/pins/{SESSION}?model=m", None, 404)


def test_the_index_says_of_a_pin_whether_a_journal_has_it(folder: Path) -> None:
    members = OneMachine()
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    path = f"/pins/{SESSION}?model=m"
    assert running.ask(path)[1]["confirmed"] is False
    running.ask("/pins", {"pins": [kept()]})
    assert running.ask(path)[1]["confirmed"] is True


def test_only_the_pin_that_is_disowned_is_forgotten_and_a_young_claim_outlives_an_end(folder: Path) -> None:
    running = Running(folder, OneMachine([kept()]))
    running.until("/claim", CLAIM, 200)
    path = f"/pins/{SESSION}?model=m"
    other = kept() | {"created_s": 2.0}
    assert running.ask(path, {"only": other}, method="DELETE") == (200, {"ended": False})
    assert running.ask(path, {"only": kept()}, method="DELETE") == (200, {"ended": True})
    assert running.ask("/claim", CLAIM)[1]["known"] is False
    running.ask(path, {"took_s": 60.0}, method="DELETE")
    assert running.ask(path)[0] == 200
    running.ask(path, {"took_s": 0.0}, method="DELETE")
    assert running.ask(path)[0] == 404


@pytest.mark.parametrize("body", [{"only": {}}, {"took_s": "x"}, ["only"], 7])
def test_what_is_no_end_is_refused(folder: Path, body: Any) -> None:
    assert Running(folder, OneMachine()).ask(f"/pins/{SESSION}?model=m", body, method="DELETE")[0] == 400


@pytest.mark.parametrize("body", [{}, [], {"pins": [{}]}, {"pins": [7]}, {"pins": 7}])
def test_what_are_no_pins_is_refused(folder: Path, body: Any) -> None:
    assert Running(folder, OneMachine()).ask("/pins", body)[0] == 400


# machines that are forgotten

FORGOTTEN = {"id": "id-1", "name": "den", "zone": "default"}


def test_a_machine_that_is_gone_can_be_forgotten_until_it_is_here_again(folder: Path) -> None:
    members = OneMachine()
    running = Running(folder, members, lost_after_s=3.0)  # It is asked every second, not every ten.
    running.until("/claim", CLAIM, 200)
    status, answer = running.ask("/machines/den/forget", {})
    assert status == 409
    assert "homeport down" in answer["error"]["message"]
    assert running.ask("/machines/attic/forget", {})[0] == 404
    members.here = False
    running.until("/machines/den/forget", {}, 200)
    fleet = running.ask("/fleet")[1]
    assert (fleet["forgotten"], fleet["machines"]) == ([FORGOTTEN], [])
    assert not running.controller.roll.kept
    book = Paths(folder / "home", folder / "locks").revision.with_name("machines.json")
    kept = {"name": "den", "zone": "default", "address": "127.0.0.1"}
    assert json.loads(book.read_text())["forgotten"] == {"id-1": kept}
    members.here = True
    deadline = time.monotonic() + 10
    while running.ask("/fleet")[1]["forgotten"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.until("/claim", CLAIM, 200)


def test_a_controller_that_starts_anew_still_knows_who_was_forgotten(folder: Path) -> None:
    members = OneMachine()
    members.here = False
    paths = Paths(folder / "home", folder / "locks")
    paths.make()
    MachineBook(paths.revision.with_name("machines.json")).here("id-1", "den", "default")
    running = Running(folder, members)
    running.until("/machines/den/forget", {}, 200)
    again = Running(folder, members)
    assert again.ask("/fleet")[1]["forgotten"] == [FORGOTTEN]


# machines that come and go


def test_a_model_of_a_machine_that_is_not_here_keeps_no_other_from_being_served(folder: Path) -> None:
    members = OneMachine()
    running = Running(folder, members, [replace(MODEL, name="far", machines=("attic",)), MODEL])
    running.until("/claim", CLAIM, 200)
    assert [[w["model"]["name"] for w in wishes] for _, wishes in members.applied] == [["m"]]
    problems = running.ask("/fleet")[1]["problems"]
    assert problems == {"far": {"attic": "no such machine (known: den)"}}


def test_all_but_the_head_are_asked_to_leave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "RETURNS_S", 1.0)
    members = OneMachine()
    members.hosts = [{"name": "den/0", "slot": 0, "address": "127.0.0.1", "port": 8100, "state": "ready"}]
    running = Running(folder, members)
    paths = Paths(folder / "home", folder / "locks")
    running.until("/claim", CLAIM, 200)
    running.controller.book.here("id-2", "attic", "default", "10.0.0.7")
    left = {"left": ["den"], "away": ["attic"], "hosts": {"den": ["127.0.0.1:8100"]}}
    assert running.ask("/leave", {}) == (200, left)
    assert members.left == ["id-1"]
    write_private(paths.machine, json.dumps({"id": "id-1"}))
    assert running.ask("/leave", {}) == (200, {"left": [], "away": ["attic"], "hosts": {}})
    assert members.left == ["id-1"]


def test_a_machine_whose_keeper_comes_back_within_seconds_leaves_too(folder: Path) -> None:
    members = OneMachine()
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    members.answers.clear()
    threading.Timer(1.0, members.answers.set).start()
    assert running.ask("/leave", {})[1]["left"] == ["den"]
    assert members.left == ["id-1"]


def test_a_keeper_that_does_not_answer_is_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "RETURNS_S", 1.0)
    members = OneMachine()
    running = Running(folder, members)
    running.until("/claim", CLAIM, 200)
    members.answers.clear()
    assert running.ask("/leave", {})[1] == {"left": [], "away": ["den"], "hosts": {}}


def test_what_a_keeper_says_again_is_not_worked_out_anew(folder: Path) -> None:
    running = Running(folder, OneMachine(), lost_after_s=0.6)
    deadline = time.monotonic() + 10
    while [each["revision"] for each in running.ask("/fleet")[1]["machines"]] != [3]:
        assert time.monotonic() < deadline
    told = running.controller._fleet()
    heard = [running.controller.roll._heard["id-1"]]
    while len(heard) < 4:  # A question for news waits for a third of `lost_after`.
        assert time.monotonic() < deadline
        time.sleep(0.02)
        if (last := running.controller.roll._heard["id-1"]) != heard[-1]:
            heard.append(last)
    assert running.controller._fleet() is told
    assert running.ask("/fleet")[1]["machines"][0]["state"] == "ready"


def test_where_ray_is_the_controller_says_once_it_is_up(folder: Path) -> None:
    running = Running(folder, OneMachine())
    head = f"http://127.0.0.1:{running.port}"
    running.until("/claim", CLAIM, 200)
    running.controller.book.here(
        "id-2", "attic", "default", "10.0.0.7"
    )  # not heard since the controller began
    assert ray_of(head, machine_token(running.token, "id-1"), "id-1", 5.0) is None
    run = {"ray": "10.0.0.1:20100", "steps": {"ray": {"state": "ready"}}}
    write_private(Paths(folder / "home", folder / "locks").run, json.dumps(run))
    assert ray_of(head, machine_token(running.token, "id-1"), "id-1", 5.0) == RayIs(
        "10.0.0.1:20100", is_heard=True
    )
    assert ray_of(head, machine_token(running.token, "id-2"), "id-2", 5.0) == RayIs(
        "10.0.0.1:20100", is_heard=False
    )
    assert running.ask("/join", {})[0] == 400


# machines that are away


def test_a_keeper_that_is_silent_is_lost_and_back_when_it_is_heard_again(folder: Path, host: Hears) -> None:
    members = OneMachine()
    members.hosts = [replica_at(host)]
    running = Running(folder, members, lost_after_s=0.6)
    assert running.until_stands("den", "ready")["heard_s"] is None
    members.answers.clear()
    den = running.until_stands("den", "lost")
    assert time.time() - den["heard_s"] < 5.0
    assert [each["state"] for each in den["replicas"]] == ["unknown"]
    assert running.ask("/fleet")[1]["lost_after_s"] == 0.6
    members.answers.set()
    running.until_stands("den", "ready")


def test_nobody_asks_a_machine_that_is_gone_until_it_is_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try would have Ray make a keeper for it, every few seconds, for as long as it sleeps or is off."""
    monkeypatch.setattr(controller_, "TICK_S", 0.05)

    class Counts(OneMachine):
        looks = tries = 0

        def machines(self) -> list[str]:
            self.looks += 1
            return super().machines()

        async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
            if not self.here:
                self.tries += 1
            return await super().report(machine, known, wait_s)

    members = Counts()
    running = Running(folder, members, lost_after_s=1.0)
    running.until_stands("den", "ready")
    members.here = False
    running.until_stands("den", "lost")
    tries, looks = members.tries, members.looks
    deadline = time.monotonic() + 10
    while members.looks < looks + 20:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert members.tries == tries
    members.here = True
    running.until_stands("den", "ready")


def test_a_machine_that_has_not_reported_to_this_controller_is_unknown_and_then_lost(
    folder: Path, host: Hears
) -> None:
    members = OneMachine()
    members.hosts = [replica_at(host)]
    first = Running(folder, members)
    first.until_stands("den", "ready")
    first.until_saved()
    members.here = False
    again = Running(folder, members, lost_after_s=1.0)
    den = again.until_stands("den", "unknown")
    assert (den["heard_s"], den["hardware"]["memory_bytes"]) == (None, 8 * GIB)
    assert [(each["name"], each["port"]) for each in den["replicas"]] == [("den/0", host.port)]
    assert again.until_stands("den", "lost")["heard_s"] is None
    members.here = True
    again.until_stands("den", "ready")


def test_sessions_of_a_machine_that_is_away_are_known_to_a_controller_that_begins_anew(folder: Path) -> None:
    den = OneMachine([kept("den/7", public="hp_x", scope="s")])
    attic = OneMachine(id_="id-2", name="attic")
    first = Running(folder, Several(den, attic))
    first.until(f"/pins/{SESSION}?model=m", None, 200)
    first.until_saved()
    den.here = False
    again = Running(folder, Several(den, attic))
    elsewhere = {**CLAIM, "ranked": [{"replica": "attic/0", "free": 1}]}
    answer = again.until("/claim", elsewhere, 200)
    assert (answer["pin"]["replica"], answer["known"]) == ("den/7", True)
    assert again.ask("/pins/hp_x?model=m")[1]["session"] == SESSION
    den.journal, den.whole, den.here = [], 1, True
    again.until(f"/pins/{SESSION}?model=m", None, 404)
    again.until_saved()
    assert Running(folder, Several(den, attic)).controller.index.pins == {}


def test_without_the_file_everything_comes_back_from_the_machines(folder: Path) -> None:
    den, attic = OneMachine([kept("den/7")]), OneMachine(id_="id-2", name="attic")
    first = Running(folder, Several(den, attic))
    first.until(f"/pins/{SESSION}?model=m", None, 200)
    first.until_saved()
    Paths(folder / "home", folder / "locks").known_pins.unlink()
    again = Running(folder, Several(den, attic))
    answer = again.until("/claim", CLAIM, 200)
    assert (answer["pin"]["replica"], answer["known"]) == ("den/7", True)
    again.until_saved()
    assert len(Running(folder, Several(den, attic)).controller.index.pins) == 1


def test_a_forgotten_machines_sessions_are_not_kept(folder: Path) -> None:
    den, attic = OneMachine([kept("den/7")]), OneMachine(id_="id-2", name="attic")
    first = Running(folder, Several(den, attic))
    first.until(f"/pins/{SESSION}?model=m", None, 200)
    first.until_saved()
    den.here = False
    first.until("/machines/den/forget", {}, 200)
    deadline = time.monotonic() + 10
    while first.controller.known._dropped or first.controller.known._saving:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with sqlite3.connect(Paths(folder / "home", folder / "locks").known_pins) as file:
        assert file.execute("SELECT count(*) FROM pins").fetchone() == (0,)
    file.close()


def test_an_end_reaches_a_machine_that_was_away_and_its_older_pin_wins_no_more(
    folder: Path, host: Hears
) -> None:
    den, attic = OneMachine([kept()]), OneMachine([kept("attic/0", 2)], "id-2", "attic")
    den.hosts = [replica_at(host)]
    first = Running(folder, Several(den, attic))
    path = f"/pins/{SESSION}?model=m"
    deadline = time.monotonic() + 10
    while len(host.heard) < 1:  # It has learned of the newer home, and its journal says the older one still.
        assert time.monotonic() < deadline
        time.sleep(0.02)
    den.here, port = False, host.port
    host.close()
    assert first.ask(path)[1]["replica"] == "attic/0"
    attic.journal, attic.whole = [], 1
    attic.changes += 1
    assert first.ask(path, method="DELETE") == (200, {"ended": True})
    again = Running(folder, Several(den, attic))
    elsewhere = {**CLAIM, "ranked": [{"replica": "den/0", "free": 1}, {"replica": "attic/0", "free": 1}]}
    answer = again.until("/claim", elsewhere, 200)
    assert (answer["pin"]["replica"], answer["known"]) == ("attic/0", False), "not where it is still to end"
    anew = {**answer["pin"], "public": "hp_x", "scope": "s"}
    again.ask("/pins", {"pins": [anew]})
    back = Hears(port)
    try:
        den.here = True
        assert back.until(1)[0][:2] == ("DELETE", path)
        assert again.ask(path)[1]["generation"] == 1
        assert again.ask(path)[1]["replica"] == "attic/0"
        den.journal, den.whole = [], 1
        den.changes += 1
        again.until_saved()
        assert again.ask(path)[1]["replica"] == "attic/0"
        assert not any(again.controller.index.ends.values())
    finally:
        back.close()


# machines that are cordoned


def test_a_cordoned_machine_takes_no_new_sessions_and_stays_so(folder: Path) -> None:
    members = OneMachine([kept("den/7")])
    running = Running(folder, members)
    other = {**CLAIM, "session": "cd" * 32}
    running.until("/claim", CLAIM, 200)
    assert running.ask("/machines/den/cordon", {}) == (200, {"machine": "den", "cordoned": True})
    assert running.until_stands("den", "cordoned")["cordoned"] is True
    assert running.ask("/claim", other)[0] == 503
    assert running.ask("/claim", CLAIM)[1]["pin"]["replica"] == "den/7", "its own are served"
    assert running.ask("/claim", {**other, "session": "ef" * 32, "child": True})[0] == 200
    both = [{"replica": "den/0", "free": 1}, {"replica": "attic/0", "free": 0}]
    assert running.ask("/claim", {**other, "ranked": both})[1]["pin"]["replica"] == "attic/0"
    again = Running(folder, members)
    again.until_stands("den", "cordoned")
    assert again.ask("/machines/den/uncordon", {}) == (200, {"machine": "den", "cordoned": False})
    again.until_stands("den", "ready")
    assert again.until("/claim", other, 200)["pin"]["replica"] == "den/0"


def test_a_machine_that_is_taken_off_the_list_takes_no_new_sessions_until_it_is_put_back_or_kept(
    folder: Path,
) -> None:
    members = OneMachine([kept("den/7")])
    running = Running(folder, members)
    paths = running.controller.paths

    def give_list(*workers: str) -> None:
        told = {"provider": {"head_ip": "10.0.0.1", "worker_ips": list(workers)}}
        (folder / "cluster.yaml").write_text(json.dumps(told))
        paths.machine_list.write_text(str(folder / "cluster.yaml"))

    def until_off(is_off: bool) -> None:
        deadline = time.monotonic() + 10
        while True:
            (den,) = running.ask("/fleet")[1]["machines"]
            if (den["unlisted"], den["cordoned"]) == (is_off, is_off) and den["state"] == "ready":
                return
            assert time.monotonic() < deadline, den
            time.sleep(0.05)

    give_list("127.0.0.1")
    running.until("/claim", CLAIM, 200)
    deadline = time.monotonic() + 10
    while not paths.revision.with_name("listed.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    until_off(False)
    other = {**CLAIM, "session": "cd" * 32}
    give_list()
    until_off(True)
    assert running.ask("/claim", other)[0] == 503
    assert running.ask("/claim", CLAIM)[1]["pin"]["replica"] == "den/7", "its own are served"
    give_list("127.0.0.1")
    until_off(False)
    assert running.until("/claim", other, 200)["pin"]["replica"] == "den/0"
    give_list()
    until_off(True)
    running.ask("/machines/den/uncordon", {})
    until_off(False)


def test_a_machine_that_nobody_knows_is_not_cordoned(folder: Path) -> None:
    running = Running(folder, OneMachine())
    running.until_stands("den", "ready")
    for act in ("cordon", "uncordon"):
        status, answer = running.ask(f"/machines/shed/{act}", {})
        assert (status, answer["error"]["message"]) == (404, "There is no machine shed; known: den.")
        assert running.ask(f"/machines/den/{act}", {}, token="wrong")[0] == 401


# machines that their persons want


def test_a_machine_that_its_person_wants_takes_no_new_sessions_and_loses_none(folder: Path) -> None:
    den, attic = OneMachine([kept("den/7")]), OneMachine(id_="id-2", name="attic")
    den.hosts = [host_of(den, "d")]
    running = Running(folder, Several(den, attic))
    running.until("/claim", CLAIM, 200)
    asked = running.ask("/machines/den/yield", {"for_s": 60})
    assert asked == (200, {"machine": "den", "yielded": {"by": "person", "until": 60.0}})
    assert running.until_stands("den", "yielded")["replicas"][0]["state"] == "yielded"
    both = [{"replica": "den/0", "free": 1}, {"replica": "attic/0", "free": 0}]
    other = {**CLAIM, "session": "cd" * 32, "ranked": both}
    assert running.ask("/claim", other)[1]["pin"]["replica"] == "attic/0"
    assert running.ask("/claim", CLAIM)[1]["pin"]["replica"] == "den/7"
    assert running.ask("/machines/den/yield", {"end": True}) == (200, {"machine": "den", "yielded": None})
    running.until_stands("den", "ready")
    assert running.ask("/claim", {**other, "session": "ef" * 32})[1]["pin"]["replica"] == "den/0"


def test_no_home_is_lost_that_only_its_person_keeps(folder: Path) -> None:
    den, attic = OneMachine([kept("den/0")]), OneMachine(id_="id-2", name="attic")
    den.hosts = [host_of(den, "d")]
    running = Running(folder, Several(den, attic))
    running.until("/claim", CLAIM, 200)
    running.ask("/machines/den/yield", {})
    lost = {"replica": "den/0", "generation": 1}
    moves = {**CLAIM, "ranked": [{"replica": "attic/0", "free": 1}], "instead_of": lost}
    assert running.ask("/claim", moves)[1]["pin"]["replica"] == "den/0"
    den.hosts = [{**host_of(den, "d"), "state": "failed"}]
    running.ask("/machines/den/yield", {"end": True})
    assert running.until("/claim", moves, 200)["pin"]["replica"] == "attic/0", "then it is"


@pytest.mark.parametrize("body", [{"for_s": "2h"}, {"end": 1}, []])
def test_what_cannot_be_asked_of_a_machine_is_said(folder: Path, body: Any) -> None:
    running = Running(folder, OneMachine())
    running.until_stands("den", "ready")
    status, answer = running.ask("/machines/den/yield", body)
    assert status == 400
    assert "for_s" in answer["error"]["message"]
    assert running.ask("/machines/den/yield", {}, token="wrong")[0] == 401
    status, answer = running.ask("/machines/shed/yield", {})
    assert (status, answer["error"]["message"]) == (404, "There is no machine shed; known: den.")


def test_a_keeper_that_does_not_take_it_is_said(folder: Path) -> None:
    members = OneMachine()
    running = Running(folder, members)
    running.until_stands("den", "ready")
    members.answers.clear()
    status, answer = running.ask("/machines/den/yield", {})
    assert status == 503
    assert "`homeport yield`" in answer["error"]["message"]


def test_nobody_waits_with_a_revision_for_a_machine_that_its_person_has(folder: Path) -> None:
    den, attic = OneMachine(), OneMachine(id_="id-2", name="attic")
    for machine in (den, attic):
        machine.hosts = [host_of(machine, "old")]
    attic.yielded = {"by": "steam", "until": None}
    attic.hosts[0]["pid"] = None
    running = Running(folder, Several(den, attic))
    running.until_stands("attic", "yielded")
    deadline = time.monotonic() + 20
    while not (den.applied and attic.applied):
        assert time.monotonic() < deadline, running.ask("/fleet")
        time.sleep(0.05)
    assert running.ask("/fleet")[1]["giving"]["passed"] == {}


# a revision, one machine at a time


def host_of(machine: OneMachine, running_digest: str) -> dict[str, Any]:
    digests = {"config_digest": "d", "running_digest": running_digest}
    return {"name": f"{machine.name}/0", "slot": 0, "model": "m", "state": "ready", "pid": 1, **digests}


def test_the_next_machine_takes_a_revision_when_the_one_before_is_ready_with_it(folder: Path) -> None:
    den, attic = OneMachine(), OneMachine(id_="id-2", name="attic")
    for machine in (den, attic):
        machine.hosts = [host_of(machine, "old")]
    running = Running(folder, Several(den, attic))
    deadline = time.monotonic() + 10
    while running.ask("/fleet")[1]["giving"] != {
        "busy": {"attic": ["attic/0 restarts"]},
        "waiting": ["den"],
        "passed": {},
    }:
        assert time.monotonic() < deadline, running.ask("/fleet")[1]["giving"]
        time.sleep(0.05)
    assert (len(attic.applied), den.applied) == (1, [])
    attic.hosts = [host_of(attic, "d")]
    attic.changes += 1
    while not den.applied:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [revision for revision, _ in den.applied] == [3]


SOURCE = "hf:o/r:m.gguf"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_machine_is_told_from_where_it_gets_a_model_once(folder: Path) -> None:
    machine = OneMachine()
    machine.models = {"orders": "", "url": None, "problem": None, "held": {}, "bringing": {}}
    running = Running(folder, machine, [replace(MODEL, source=SOURCE)])
    until(lambda: bool(machine.brought))
    told = machine.brought[0]
    assert told["sources"] == {SOURCE: {"do": "fetch", "content": None}}
    assert told["named"] == [SOURCE]
    content = {"commit": "c" * 40, "parts": [{"name": "m.gguf", "size": 7, "sha256": "a" * 64}]}
    machine.models = {**machine.models, "held": {SOURCE: content}}
    machine.changes += 1
    until(lambda: machine.brought[-1]["sources"] == {})
    known = running.controller.paths.known_models
    until(lambda: json.loads(known.read_text())["known"] == {SOURCE: content})
    assert len(machine.brought) == 2
    (listed,) = running.ask("/fleet")[1]["machines"]
    assert listed["models"]["held"] == {SOURCE: content}


def test_a_pull_is_taken_from_who_has_the_token_and_says_what_it_wants(folder: Path) -> None:
    machine = OneMachine()
    machine.models = {"orders": "", "url": None, "problem": None, "held": {}, "bringing": {}}
    running = Running(folder, machine)
    until(lambda: running.ask("/fleet")[1]["machines"] != [])
    assert running.ask("/models/pull", {"source": SOURCE}, token="wrong")[0] == 401
    for wrong in (
        {},
        {"source": "bundled"},
        {"source": "/etc/passwd"},
        {"source": "hf:o/r:../x.gguf"},
        {"source": SOURCE, "machines": []},
        {"source": SOURCE, "machines": {"name": "den"}},
        {"source": SOURCE, "machines": [1]},
        ["no", "object"],
    ):
        assert running.ask("/models/pull", wrong)[0] == 400, wrong
    assert machine.brought == []
    assert running.ask("/models/pull", {"source": SOURCE, "machines": ["attic"]}) == (
        200,
        {"source": SOURCE, "machines": []},
    )
    assert running.ask("/models/pull", {"source": SOURCE}) == (200, {"source": SOURCE, "machines": ["den"]})
    until(lambda: bool(machine.brought) and SOURCE in machine.brought[-1]["sources"])

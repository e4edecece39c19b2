"""What people are told of the fleet: all of it to an admin, to a key that only uses it what concerns it."""

import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from router.admin import limits_of
from router.peers import ListedReplica, read_fleet
from tests.standins import MODEL, AnswersHost, routed

LOGGED = "no such file: /home/anna/models/secret.gguf"


class FailedHost(AnswersHost):
    """Its engine did not load. The keeper has its last words."""

    def listed(self) -> dict[str, Any]:
        return super().listed() | {"state": "failed", "detail": LOGGED, "stderr": [LOGGED]}

    async def get_state(self, request: web.Request) -> web.Response:
        told = json.loads((await super().get_state(request)).text or "")
        return web.json_response(told | {"detail": LOGGED})


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    def entry(name: str, more: str) -> str:
        return f"- {{name: {name}, sha256: '{sha256(name.encode()).hexdigest()}', {more}}}\n"

    file = tmp_path / "keys.yaml"
    file.write_text(
        entry("anna", "machines: [m0]")
        + entry("zoned", "zones: [home]")
        + entry("slow", "requests_per_minute: 1")
        + entry("boss", "role: admin")
    )
    file.chmod(0o600)
    return file


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


async def test_a_key_that_uses_it_sees_its_machines_without_what_logs_say(
    tmp_path: Path, keys_file: Path
) -> None:
    hosts = [
        FailedHost("m0/0", state="failed", zone="home"),
        AnswersHost("m0/1", zone="home"),
        AnswersHost("m1/0", zone="work"),
    ]
    async with routed(tmp_path, *hosts, keys_file=keys_file) as router:
        await router.until(lambda: router.parts.fleet.snapshot().replicas["m0/0"].heard_at is not None)
        for name in ("anna", "zoned"):
            answer = await router.get("/api/fleet", headers=bearer(name))
            assert "secret" not in answer.body.decode()
            (machine,) = answer.json()["machines"]
            failed, ready = machine["replicas"]
            assert (machine["name"], ready["name"], ready["state"]) == ("m0", "m0/1", "ready")
            assert (failed["state"], failed["model"], failed["stderr"]) == ("failed", MODEL, [])
            assert failed["detail"] == "an admin sees why in `homeport status`"
        for name in ("boss", "the-cluster-token"):
            fleet = (await router.get("/api/fleet", headers=bearer(name))).json()
            assert [machine["name"] for machine in fleet["machines"]] == ["m0", "m1"]
            assert fleet["machines"][0]["replicas"][0]["detail"] == LOGGED
            assert fleet["machines"][0]["replicas"][0]["stderr"] == [LOGGED]


async def test_what_is_left_out_or_forgotten_elsewhere_is_not_told_either(
    tmp_path: Path, keys_file: Path
) -> None:
    async with routed(tmp_path, AnswersHost("m0/0", zone="home"), keys_file=keys_file) as router:
        fleet = router.parts.fleet
        told = json.loads(fleet._text)
        why = {"": "no machine in zone 'x' (zones: home, work)", "m0": "needs 24 GiB", "m1": "needs 48 GiB"}
        told |= {"problems": {"huge": why}, "forgotten": [{"id": "x", "name": "m9", "zone": "work"}]}
        await router.controller.stop()
        fleet._take(read_fleet(json.dumps(told).encode()))
        for name, problems, forgotten in (("zoned", ["m0"], []), ("boss", ["", "m0", "m1"], ["m9"])):
            seen = (await router.get("/api/fleet", headers=bearer(name))).json()
            assert list(seen["problems"]["huge"]) == problems
            assert [each["name"] for each in seen["forgotten"]] == forgotten


async def test_a_machine_that_is_away_is_told_with_how_long(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0"), AnswersHost("m1/0")) as router:
        router.controller.away = {"m0": time.time() - 120.0, "m1": None}
        await router.parts.fleet.refresh_controller()
        away, never = (await router.get("/api/fleet")).json()["machines"]
        assert (away["state"], 119.0 < away["away_s"] < 130.0) == ("lost", True)
        assert (never["state"], never["away_s"]) == ("lost", None)
        assert [replica["name"] for replica in away["replicas"]] == ["m0/0"]


async def test_an_error_does_not_say_what_a_log_says(tmp_path: Path, keys_file: Path) -> None:
    async with routed(tmp_path, FailedHost("m0/0", state="failed"), keys_file=keys_file) as router:
        await router.until(lambda: "m0/0" in router.parts.fleet.snapshot().replicas)
        for name, is_told in (("anna", False), ("boss", True)):
            answer = await router.chat(headers=bearer(name))
            assert (answer.status, answer.code) == (503, "model_unavailable")
            assert ("secret" in answer.body.decode()) == is_told
        for path in ("/health", "/ready"):
            assert "secret" not in (await router.get(path)).body.decode()


async def test_questions_that_all_hosts_are_asked_count_as_requests(tmp_path: Path, keys_file: Path) -> None:
    public = "hp_" + "0" * 24
    async with routed(tmp_path, AnswersHost("m0/0"), keys_file=keys_file) as router:
        assert (await router.get("/api/sessions", headers=bearer("slow"))).status == 200
        for method, path in (
            ("GET", "/api/sessions"),
            ("DELETE", f"/api/sessions/{public}"),
            ("POST", f"/api/sessions/{public}/move"),
            ("GET", "/m/m0/api/sessions"),
            ("GET", "/api/fleet?watch"),
            ("GET", "/api/fleet?a&%77atch=1"),
            ("GET", "/m/m0/api/fleet?watch"),
        ):
            answer = await router.ask(method, path, headers=bearer("slow"))
            assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
        assert (await router.chat(headers=bearer("slow"))).status == 429
        assert (await router.get("/api/fleet", headers=bearer("slow"))).status == 200
        for _ in range(3):
            own = bearer("the-cluster-token")
            assert (await router.get("/api/sessions", headers=own)).status == 200


ON_GPU = {"gpu": "GPU-a", "pid": 4711, "program": "blender", "memory_bytes": 2**30}


class SharedHost(AnswersHost):
    """Its machine's person runs something on its cores."""

    def listed(self) -> dict[str, Any]:
        return super().listed() | {
            "foreign": [{"program": "blender", "share": 0.75}],
            "foreign_gpu": [ON_GPU],
        }


async def test_which_programs_a_person_runs_is_told_to_admins_alone(tmp_path: Path, keys_file: Path) -> None:
    async with routed(tmp_path, SharedHost("m0/0", zone="home"), keys_file=keys_file) as router:
        fleet = (await router.get("/api/fleet", headers=bearer("boss"))).json()
        assert fleet["machines"][0]["replicas"][0]["foreign"] == [{"program": "blender", "share": 0.75}]
        assert fleet["machines"][0]["replicas"][0]["foreign_gpu"] == [ON_GPU]
        assert fleet["machines"][0]["limits"] == {"enforced": ["cores"], "watched": ["memory"]}
        router.controller.yielded["m0"] = {"by": "blender", "until": None}
        await router.until(lambda: router.parts.fleet.snapshot().machines["m0"].state == "yielded")
        fleet = (await router.get("/api/fleet", headers=bearer("boss"))).json()
        assert fleet["machines"][0]["yielded"] == {"by": "blender", "until": None}
        seen = await router.get("/api/fleet", headers=bearer("anna"))
        assert seen.json()["machines"][0]["yielded"] == {"by": None, "until": None}
        assert b"blender" not in seen.body
        refused = await router.ask(
            "POST",
            "/v1/chat/completions",
            data=json.dumps({"model": MODEL, "messages": []}).encode(),
            headers={**bearer("anna"), "content-type": "application/json", "x-session-id": "t"},
        )
        assert b"blender" not in refused.body
        given = await router.ask("POST", "/api/machines/m0/yield", data=b"{}", headers=bearer("anna"))
        assert given.status == 403


def test_a_machine_is_kept_to_what_all_its_replicas_are() -> None:
    def of(*limits: dict[str, list[str]] | None) -> dict[str, list[str]]:
        return limits_of(
            [ListedReplica(name=f"m/{n}", model="m", port=1, limits=each) for n, each in enumerate(limits)]
        )

    cores = {"enforced": ["cores", "gpus"], "watched": ["memory"]}
    assert of() == {"enforced": [], "watched": []}
    assert of(None, {"enforced": [], "watched": []}) == {"enforced": [], "watched": []}
    assert of(cores) == cores
    worse = {"enforced": ["gpus"], "watched": ["cores", "memory"]}
    assert of(cores, None, worse) == {"enforced": ["gpus"], "watched": ["cores", "memory"]}

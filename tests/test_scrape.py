"""What the router answers Prometheus: everything, one process's own, where all are; and who may ask."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from router.metrics import PINS, pin_of
from serving.counts import Counts
from tests.standins import (
    Answer,
    AnswersHost,
    Controller,
    FailsHost,
    Router,
    routed,
    running,
    running_router,
)
from tests.test_admin import bearer, keys_file

__all__ = ["keys_file"]

LABELS = {
    "error", "gpu", "kind", "le", "machine", "model", "pin", "reason", "replica", "result", "source", "state", "status",
    "version", "where", "zone",
}  # fmt: skip


class CountsHost(AnswersHost):
    """Tells what it has counted, as a real one does."""

    async def get_state(self, request: web.Request) -> web.Response:
        return web.json_response(self.account())

    def account(self) -> dict[str, Any]:
        counts = Counts()
        counts.text(1, None)
        counts.text(1, 0.03)
        parking = {
            "sessions": 2,
            "memory_bytes": 1,
            "memory_limit_bytes": 2,
            "disk_bytes": 3,
            "disk_limit_bytes": 4,
        }
        return {
            "replica": self.replica,
            "incarnation": self.incarnation,
            "state": self.state,
            "places": 1,
            "residents": self.residents,
            "pins": len(self.pins),
            "memory": {"rss_bytes": 9},
            "parking": parking,
            "counts": counts.report(),
        }


def samples(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith("text/plain")
    return [s for f in text_string_to_metric_families(answer.body.decode()) for s in f.samples]


def values(answer: Answer, name: str, **labels: str) -> list[float]:
    return [s.value for s in samples(answer) if s.name == name and labels.items() <= s.labels.items()]


async def test_without_a_role_all_hosts_and_the_controller_are_told_of(tmp_path: Path) -> None:
    async with routed(tmp_path, CountsHost("m0/0"), CountsHost("m1/0")) as router:
        told = await router.get("/metrics")
        assert values(told, "homeport_time_between_tokens_seconds_count") == [1, 1]
        assert values(told, "homeport_generated_tokens_total", machine="m1", replica="m1/0") == [2]
        assert values(told, "homeport_memory_bytes", model="tiny") == [9, 9]
        assert values(told, "homeport_controller_up") == [1]
        assert b"# of the controller, asked {'keepers': ''}" in told.body
        assert len(values(told, "homeport_build_info")) == 1


class ForeignHost(CountsHost):
    """Of another version: what it has counted has another shape."""

    def account(self) -> dict[str, Any]:
        return {**super().account(), "counts": {"gaps": 5}}


async def test_a_host_of_another_shape_takes_only_its_own_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with routed(tmp_path, CountsHost("m0/0"), ForeignHost("m1/0")) as router:
        for _ in range(2):
            told = await router.get("/metrics")
            assert values(told, "homeport_places") == [1, 1]
            assert values(told, "homeport_generated_tokens_total", replica="m0/0") == [2]
            assert not values(told, "homeport_generated_tokens_total", replica="m1/0")
    lines = [each.getMessage() for each in caplog.records if "metrics" in each.getMessage()]
    assert len(lines) == 1
    assert "m1/0" in lines[0]


async def test_what_is_no_request_to_a_model_is_not_counted_as_one(tmp_path: Path) -> None:
    async with routed(tmp_path, CountsHost("m0/0")) as router:
        for path in ("/nonsense", "/metrics", "/api/sessions"):
            assert (await router.get(path, headers={"host": "elsewhere.example"})).status == 403
        assert not values(await router.get("/metrics"), "homeport_requests_total")
        answer = await router.chat(headers={"host": "elsewhere.example"})
        told = await router.get("/metrics")
        assert values(told, "homeport_requests_total", model="other", status=answer.code) == [1]


async def test_of_a_host_that_does_not_answer_nothing_is_told(tmp_path: Path) -> None:
    silent = CountsHost("m1/0")
    async with routed(tmp_path, CountsHost("m0/0"), silent) as router:
        await silent.stop()
        await router.until(lambda: "m1/0" not in router.parts.fleet.reachable())
        told = await router.get("/metrics")
        assert values(told, "homeport_places") == [1]
        assert (await router.get("/metrics?role=host&name=m1/0")).status == 503


async def test_without_the_controller_the_rest_is_told_all_the_same(tmp_path: Path) -> None:
    async with routed(tmp_path, CountsHost("m0/0")) as router:
        await router.controller.stop()
        told = await router.get("/metrics")
        assert values(told, "homeport_controller_up") == [0]
        assert values(told, "homeport_places") == [1]
        answer = await router.get("/metrics?role=controller")
        assert (answer.status, answer.code) == (503, "not_reached")


async def test_what_was_counted_at_a_machine_is_told_for_as_long_as_that_is_there(tmp_path: Path) -> None:
    leaves = CountsHost("m1/0")
    async with routed(tmp_path, CountsHost("m0/0"), leaves) as router:

        async def told(path: str = "/metrics") -> dict[str, float]:
            found = samples(await router.get(path))
            return {s.labels["machine"]: s.value for s in found if s.name == "homeport_requests_total"}

        for machine in ("m0", "m1"):
            assert (await router.chat(model=f"tiny@{machine}")).status == 200
        router.controller.away["m1"] = 1.0
        await leaves.stop()
        await router.until(lambda: "m1/0" not in router.parts.fleet.reachable())
        assert await told() == {"m0": 1, "m1": 1}, "a machine that is lost is one"
        router.controller.forgotten.append("m1")
        await router.until(lambda: "m1/0" not in router.parts.fleet.known)
        assert await told() == await told("/metrics?role=router") == {"m0": 1}
        del router.controller.away["m1"]
        router.controller.forgotten.clear()
        await leaves.start()
        await router.until(lambda: "m1/0" in router.parts.fleet.reachable())
        assert await told() == {"m0": 1, "m1": 1}, "as if it had been there"


async def test_with_a_role_one_process_tells_its_own(tmp_path: Path) -> None:
    async with routed(tmp_path, CountsHost("m0/0"), CountsHost("m1/0")) as router:
        assert (await router.chat(session="tea")).status == 200
        own = await router.get("/metrics?role=router")
        assert sum(values(own, "homeport_requests_total")) == 1
        assert not values(own, "homeport_places")
        assert b"# of the controller" not in own.body
        assert (await router.get("/metrics?role=host&name=m1/0")).body == b"# of m1/0\n"
        told = await router.get("/metrics?role=controller")
        assert told.body == b"# of the controller, asked {}\n"
        told = await router.get("/metrics?role=keeper&name=m1")
        assert told.body == b"# of the controller, asked {'keeper': 'm1'}\n"
        router.controller.silent_keepers.add("m1")
        assert (await router.get("/metrics?role=keeper&name=m1")).status == 503


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("role=nobody", 400, "invalid_value"),
        ("role=", 400, "invalid_value"),
        ("role=host", 400, "missing_required_parameter"),
        ("role=keeper", 400, "missing_required_parameter"),
        ("role=host&name=m9/0", 404, "replica_not_found"),
        ("role=host&name=../fleet", 404, "replica_not_found"),
        ("role=keeper&name=m9", 404, "machine_not_found"),
    ],
)
async def test_what_cannot_be_asked_for_is_said(tmp_path: Path, query: str, status: int, code: str) -> None:
    async with routed(tmp_path, CountsHost("m0/0")) as router:
        answer = await router.get(f"/metrics?{query}")
        assert (answer.status, answer.code) == (status, code)
        assert "role" in answer.json()["error"]["message"] or "/sd" in answer.json()["error"]["message"]


async def test_every_process_is_listed_and_each_target_can_be_asked(tmp_path: Path) -> None:
    async with routed(tmp_path, CountsHost("m0/0", zone="home"), CountsHost("m1/0")) as router:
        targets = (await router.get("/sd")).json()
        address = router.url.removeprefix("http://")
        assert all(each["targets"] == [address] for each in targets)
        labels = [each["labels"] for each in targets]
        assert labels == [
            {"role": "router", "instance": "router", "__param_role": "router"},
            {"role": "controller", "instance": "controller", "__param_role": "controller"},
            *(
                {
                    "role": role,
                    "instance": name,
                    "machine": name[:2],
                    "zone": zone,
                    "__param_role": role,
                    "__param_name": name,
                }
                for role, name, zone in (
                    ("keeper", "m0", "home"),
                    ("keeper", "m1", "default"),
                    ("host", "m0/0", "home"),
                    ("host", "m1/0", "default"),
                )
            ),
        ]
        for each in labels:
            asked = {key.removeprefix("__param_"): v for key, v in each.items() if key.startswith("__param_")}
            assert (await router.get("/metrics", params=asked)).status == 200, each


@pytest.fixture
def with_metrics(keys_file: Path) -> Path:
    """Also a key whose role is metrics."""
    digest = hashlib.sha256(b"prometheus").hexdigest()
    more = f"- {{name: prometheus, role: metrics, sha256: '{digest}'}}\n"
    keys_file.write_text(keys_file.read_text() + more)
    return keys_file


@pytest.mark.parametrize("path", ["/metrics", "/metrics?role=host&name=m0/0", "/sd"])
async def test_metrics_are_for_keys_of_role_metrics_and_admin(
    tmp_path: Path, with_metrics: Path, path: str
) -> None:
    async with routed(tmp_path, CountsHost("m0/0"), keys_file=with_metrics) as router:
        assert (await router.get(path)).status == 401
        assert (await router.get(path, headers=bearer("anna"))).status == 403
        for name in ("prometheus", "boss"):
            assert (await router.get(path, headers=bearer(name))).status == 200
        assert (await router.get("/api/fleet", headers=bearer("prometheus"))).status == 403


@pytest.mark.parametrize(
    ("status", "said", "is_session", "became"),
    [
        *(("ok", pin, True, pin) for pin in sorted(PINS)),
        ("queue_timeout", "kept", True, "kept"),
        ("machine_lost", None, True, "refused"),
        ("machine_lost", None, False, "none"),
        ("client_gone", None, True, "none"),
        *((status, None, True, "none") for status in ("router_stopping", "session_ended", "slow_client")),
        ("session_ended", "kept", True, "kept"),
        ("ok", "something a host made up", True, "none"),
    ],
)
def test_what_becomes_of_a_pin(status: str, said: str | None, is_session: bool, became: str) -> None:
    assert pin_of(status, said, is_session) == became


async def test_a_refused_pin_is_counted_with_its_reason(tmp_path: Path) -> None:
    controller = Controller([])
    async with running(controller), running_router(tmp_path, controller.port, queue_s=0.2) as router:
        router.controller = controller
        await router.until(lambda: router.parts.fleet.controller_reachable is True)
        answer = await router.chat(session="tea")
        told = await router.get("/metrics")
        reason = answer.code
        assert values(told, "homeport_pin_outcomes_total", pin="refused", reason=reason) == [1]
        assert values(told, "homeport_requests_total", pin="refused", status=reason, machine="") == [1]


async def test_a_turn_that_failed_at_its_home_is_counted_there(tmp_path: Path) -> None:
    async with routed(tmp_path, FailsHost("m0/0")) as router:
        answer = await router.chat(session="tea")
        told = await router.get("/metrics")
        assert values(told, "homeport_requests_total", status=answer.code, machine="m0", model="tiny") == [1]
        assert values(told, "homeport_request_duration_seconds_count", model="tiny") == [1]
        assert not any(values(told, "homeport_time_to_first_token_seconds_count"))


SECRET = "a-secret"


async def _says_secrets(router: Router, key: Mapping[str, str]) -> None:
    """Puts it wherever a client can write."""
    named = {
        "x-homeport-zone": SECRET,
        "user-agent": SECRET,
        "x-request-id": SECRET,
        "x-homeport-parent": SECRET,
    }
    prompt = [{"role": "user", "content": SECRET}]
    for headers in ({}, named, {"x-homeport-when-lost": SECRET}, {"authorization": f"Bearer {SECRET}"}):
        await router.chat(
            session=SECRET, headers={**key, **headers}, messages=prompt, stream=True, user=SECRET
        )
    await router.chat(session=SECRET, headers=key, model=SECRET)
    await router.chat(session=SECRET, headers=key, model=f"tiny@{SECRET}")
    for path in (f"/s/{SECRET}/v1", f"/m/{SECRET}/v1", f"/s/{SECRET}/m/{SECRET}/v1"):
        await router.post(f"{path}/chat/completions", headers=key, messages=prompt)
    for path in (
        f"/{SECRET}",
        f"/v1/models/{SECRET}",
        f"/metrics?role={SECRET}",
        f"/metrics?role=host&name={SECRET}",
    ):
        await router.get(path)
    await router.get("/metrics", headers={"host": SECRET})
    await router.ask("DELETE", f"/api/sessions/{SECRET}")
    await router.ask("POST", f"/api/machines/{SECRET}/cordon")
    await router.ask(SECRET.upper().replace("-", ""), "/v1/chat/completions")


@pytest.mark.parametrize("keyed", [False, True])
async def test_no_label_holds_what_a_client_wrote(tmp_path: Path, keys_file: Path, keyed: bool) -> None:
    secret_session = {"session": SECRET, "quiet_s": 1.0, "busy": True, "tokens": 3}
    host = CountsHost("m0/0", residents=[secret_session])
    more = {"keys_file": keys_file} if keyed else {}
    async with routed(tmp_path, host, **more) as router:
        await _says_secrets(router, bearer("anna") if keyed else {})
        as_admin = {"headers": bearer("boss")} if keyed else {}
        told = await router.get("/metrics", **as_admin)
        assert values(told, "homeport_requests_total", status="ok", model="tiny", machine="m0") != []
        assert values(told, "homeport_requests_total", model="other") != []
        text = told.body.decode()
        assert SECRET not in text.lower()
        assert "anna" not in text
        assert not re.search(r"hp_|[0-9a-f]{32}", text), "no public id and no digest either"
        assert {label for each in samples(told) for label in each.labels} <= LABELS

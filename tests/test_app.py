"""The front door as a client meets it: paths, names, bad input, the openai SDK, and the process itself."""

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import router_end
from router.identity import digest, public_id
from router.names import Names, may_name
from router.request import read_head
from serving.router_limits import RouterLimits
from tests.ports import free_port
from tests.standins import (
    MODEL,
    TOKEN,
    AnswersHost,
    Controller,
    EndlessHost,
    Router,
    model_spec,
    routed,
    running,
    running_router,
)

# paths


async def test_alive_before_anything_is_ready(tmp_path: Path) -> None:
    async with running_router(tmp_path, free_port()) as router:
        assert (await router.get("/health")).json()["status"] == "alive"
        ready = await router.get("/ready")
        assert (ready.status, ready.code) == (503, "not_ready")
        assert ready.headers["retry-after"] == "2"
        assert (await router.get("/api/fleet")).json()["controller"] == {"reachable": False}


async def test_ready_once_a_model_is(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0"), AnswersHost("den/1", state="loading")) as router:
        ready = await router.get("/ready")
        assert (ready.status, ready.json()) == (200, {"status": "ready", "models": {MODEL: True}})


async def test_the_fleet_names_machines_slices_and_owners_by_public_id(tmp_path: Path) -> None:
    tea = digest("local", "", "tea")
    host = AnswersHost("den/0", residents=[{"session": tea, "quiet_s": 3.0, "busy": False, "tokens": 12}])
    async with routed(tmp_path, host) as router:
        fleet = (await router.get("/api/fleet")).json()
        assert fleet["revision"] == 1
        assert fleet["models"] == [
            {"name": MODEL, "context": 512, "engine": "llama.cpp", "when_lost": "wait"}
        ]
        assert fleet["controller"] == {"reachable": True}
        (machine,) = fleet["machines"]
        assert (machine["name"], machine["state"]) == ("den", "ready")
        (replica,) = machine["replicas"]
        assert replica["slice"]["cores"] == [0]
        assert replica["limits"] == {"enforced": ["cores"], "watched": ["memory"]}
        assert (replica["state"], replica["reach"]) == ("ready", "up")
        assert replica["owners"] == [public_id(b"a digest key", tea)]
        assert tea not in json.dumps(fleet)


async def test_sessions_are_listed_with_their_state(tmp_path: Path) -> None:
    def resident(name: str, *, busy: bool) -> dict[str, Any]:
        return {"session": digest("local", "", name), "quiet_s": 0.0, "busy": busy, "tokens": 7}

    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        for name in ("runs", "rests", "parked"):
            await router.chat(session=name)
        host.residents = [resident("runs", busy=True), resident("rests", busy=False)]
        listed = (await router.get("/api/sessions")).json()
        assert listed["unreachable"] == []
        states = {each["id"]: each["state"] for each in listed["sessions"]}
        key = b"a digest key"
        assert states == {
            public_id(key, digest("local", "", "runs")): "running",
            public_id(key, digest("local", "", "rests")): "resident",
            public_id(key, digest("local", "", "parked")): "parked",
        }
        assert {each["replica"] for each in listed["sessions"]} == {"den/0"}
        assert "rests" not in json.dumps(listed)


async def test_a_session_that_waits_for_its_first_home_is_listed(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0", state="loading")) as router:
        turn = asyncio.create_task(router.chat(session="tea"))
        async with asyncio.timeout(5):
            while not router.parts.relay.turns:
                await router.parts.fleet.changed(0.05)
        (session,) = (await router.get("/api/sessions")).json()["sessions"]
        assert (session["state"], session["replica"]) == ("waiting", "")
        turn.cancel()


async def test_hosts_that_cannot_be_asked_are_named(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        await router.chat(session="tea")
        await host.stop()
        assert (await router.get("/api/sessions")).json() == {"sessions": [], "unreachable": ["den/0"]}


async def test_metrics_hold_no_session_and_only_known_names(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        await router.chat(session="my-secret-project", stream=True)
        await router.chat(session="my-secret-project", model="my-secret-model")
        await router.parts.fleet.refresh("den/0")
        text = (await router.get("/metrics")).body.decode()
        assert "my-secret" not in text
        assert 'homeport_requests_total{machine="den",model="tiny",pin="new",status="ok"} 1.0' in text
        refused = (
            'homeport_requests_total{machine="",model="other",pin="refused",status="model_not_found"} 1.0'
        )
        assert refused in text
        pinned = 'homeport_sessions{machine="den",model="tiny",replica="den/0",state="pinned"} 1.0'
        assert pinned in text
        assert "homeport_build_info{version=" in text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/images", 404, "not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
async def test_errors_have_openais_shape_and_a_request_id_everywhere(
    tmp_path: Path, method: str, path: str, status: int, code: str
) -> None:
    async with running_router(tmp_path, free_port()) as router:
        sent = {"x-request-id": "mine"}
        async with router.client.request(method, router.url + path, headers=sent) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (status, code)
            assert set(error) >= {"message", "type", "param", "code"}
            assert response.headers["x-request-id"] == "mine"
            assert status != 405 or response.headers["allow"]


# Host, Origin, request id

PATHS = ("/v1/models", "/health", "/metrics", "/api/fleet", "/v1/chat/completions", "/nowhere")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "localhost.evil.example"},
        {"host": "192.168.1.10:8000"},
        {"host": ""},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
    ],
)
async def test_foreign_names_and_pages_are_refused_on_every_path(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with running_router(tmp_path, free_port()) as router:
        for path in PATHS:
            method = "POST" if path.endswith("completions") else "GET"
            async with router.client.request(method, router.url + path, headers=headers) as response:
                error = (await response.json())["error"]
                assert response.status == 403
                assert error["code"] in ("host_not_allowed", "origin_not_allowed")
                assert "localhost" in error["message"], "the message names the remedy"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": "LOCALHOST:1234"},
        {"host": "127.0.0.1"},
        {"host": "[::1]:8000"},
        {"host": "127.0.0.2:1"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1"},
    ],
)
async def test_loopback_names_are_let_in(tmp_path: Path, headers: dict[str, str]) -> None:
    async with running_router(tmp_path, free_port()) as router:
        assert (await router.get("/health", headers=headers)).status == 200


async def test_http_1_1_without_host_is_refused_and_1_0_is_served(tmp_path: Path) -> None:
    async with running_router(tmp_path, free_port()) as router:
        host, port = router.url.removeprefix("http://").split(":")
        for protocol, status in ((b"1.1", b"403"), (b"1.0", b"200")):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET /health HTTP/" + protocol + b"\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).split(b" ")[1] == status
            writer.close()


@given(st.text(st.characters(codec="latin-1")).map(lambda text: text.encode("latin-1")))
def test_no_host_header_breaks_the_check_or_passes_by_accident(authority: bytes) -> None:
    assert may_name(authority, Names()) in (True, False)
    assert not may_name(authority + b".evil.example", Names())


@pytest.mark.parametrize("value", [b"", b"a" * 129, b"line\x0bfeed", b"caf\xe9", b" padded "])
def test_a_request_id_that_is_not_sane_is_replaced(value: bytes) -> None:
    assert read_head([(b"x-request-id", value)], lambda: "fresh").request_id == b"fresh"


# bad input


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "empty_body", None),
        (b"   ", "empty_body", None),
        (b"{", "invalid_json", None),
        (b"nonsense", "invalid_json", None),
        (b'{"model": "tiny", "messages": [], "x": tru}', "invalid_json", None),
        (b'{"model": "tiny", "messages": ' + b"[" * 100_000, "invalid_json", None),
        (b"[]", "invalid_type", None),
        (b'"text"', "invalid_type", None),
        (b"{}", "missing_required_parameter", "model"),
        (b'{"model": "tiny"}', "missing_required_parameter", "messages"),
        (b'{"model": 7, "messages": []}', "invalid_type", "model"),
        (b'{"model": null, "messages": []}', "invalid_type", "model"),
        (b'{"model": "", "messages": []}', "invalid_value", "model"),
        (b'{"model": "tiny", "messages": [], "stream": "yes"}', "invalid_type", "stream"),
    ],
)
async def test_a_body_that_cannot_be_routed_is_400_with_the_field(
    tmp_path: Path, body: bytes, code: str, param: str | None
) -> None:
    async with running_router(tmp_path, free_port()) as router:
        async with router.client.post(f"{router.url}/v1/chat/completions", data=body) as response:
            error = (await response.json(content_type=None))["error"]
            assert (response.status, error["code"], error["param"]) == (400, code, param)
            assert error["type"] == "invalid_request_error"
        assert router.count(code, "", model="other") == 1


async def test_an_unknown_model_is_404_with_the_known_names_and_reaches_no_host(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea", model="huge")
        assert (answer.status, answer.code) == (404, "model_not_found")
        assert answer.json()["error"]["param"] == "model"
        assert MODEL in answer.json()["error"]["message"]
        assert host.bodies == []


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"x-session-id": "a" * 600}, "invalid_session_name"),
        ({"x-homeport-zone": "two words"}, "invalid_value"),
        ({"x-homeport-when-lost": "stay"}, "invalid_value"),
        ({"x-homeport-parent": ""}, "invalid_session_name"),
    ],
)
async def test_a_header_that_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, header: dict[str, str], code: str
) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.chat(headers=header)
        assert (answer.status, answer.code) == (400, code)
        assert answer.json()["error"]["param"] == next(iter(header))
        assert host.bodies == []


@pytest.mark.parametrize("declared", [True, False])
async def test_33_mebibytes_are_413_and_the_client_gets_to_read_it(tmp_path: Path, declared: bool) -> None:
    host = AnswersHost("den/0")
    size = 33 << 20

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size >> 16):
            yield b"x" * (1 << 16)

    async with routed(tmp_path, host) as router:
        data: Any = io.BytesIO(bytes(size)) if declared else pieces()
        async with router.client.post(f"{router.url}/v1/chat/completions", data=data) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "body_too_large"
        assert host.bodies == []
        async with asyncio.timeout(5):
            while router.count("body_too_large", "", model="other") == 0:
                await router.parts.fleet.changed(0.05)
        assert (await router.chat()).status == 200


async def test_a_client_that_asks_first_is_told_413_before_it_sends(tmp_path: Path) -> None:
    async with running_router(tmp_path, free_port()) as router:
        reader, writer = await asyncio.open_connection(*router.url.removeprefix("http://").split(":"))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-length: 40000000\r\nexpect: 100-continue\r\n\r\n"
        )
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 413")
        writer.close()


async def test_the_config_says_how_much_a_body_may_be(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host, limits=RouterLimits(max_body_bytes=2048)) as router:
        assert (await router.chat()).status == 200
        answer = await router.chat(user="x" * 2048)
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert "2 KiB" in answer.json()["error"]["message"]
        assert "router.max_body" in answer.json()["error"]["message"]
        assert len(host.bodies) == 1


async def test_31_mebibytes_go_through(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        body = b'{"model": "tiny", "messages": ["' + b"x" * (31 << 20) + b'"]}'
        url = f"{router.url}/v1/chat/completions"
        async with router.client.post(url, data=io.BytesIO(body)) as response:
            assert response.status == 200
        assert host.bodies == [body]


async def test_a_compressed_body_is_refused_clearly(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.chat(headers={"content-encoding": "gzip"})
        assert (answer.status, answer.code) == (415, "unsupported_encoding")


async def test_a_fault_of_the_routers_own_is_a_500_in_openais_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        words = "the messages of a client"

        async def fails(*_: object) -> None:
            raise KeyError(words)

        router.parts.relay.homes.decide = fails  # type: ignore[method-assign,assignment]
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (500, "internal_error")
        assert router.count("internal_error", "") == 1
    assert "KeyError" in caplog.text
    assert words not in caplog.text


# the openai SDK


@asynccontextmanager
async def sdk(router: Router) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


async def test_the_openai_sdk_chats_whole_and_streamed(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router, sdk(router) as client:
        named = {"x-session-id": "tea"}
        whole = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], extra_headers=named
        )
        assert whole.choices[0].message.content == "Hello there"
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True, extra_headers=named
        )
        words = [part.choices[0].delta.content async for part in stream]
        assert words == ["Hello", " there"]
        assert [model.id async for model in client.models.list()] == [MODEL]


async def test_the_openai_sdk_raises_its_own_errors(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router, sdk(router) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="huge", messages=[])
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(
                model=MODEL, messages=[], extra_headers={"x-session-id": "a" * 600}
            )
        assert bad.value.param == "x-session-id"


async def test_the_openai_sdk_raises_when_the_host_is_lost_in_mid_stream(tmp_path: Path) -> None:
    host = EndlessHost("den/0")
    async with routed(tmp_path, host) as router, sdk(router) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=[], stream=True)

        async def read() -> None:
            async for _ in stream:
                await host.stop()

        with pytest.raises(openai.APIError, match="ended in the middle"):
            await asyncio.wait_for(read(), 10)


# the process


@asynccontextmanager
async def process(home: Path, control_port: int, **changes: Any) -> AsyncIterator[tuple[str, Any]]:
    """`python -m router.app` on a free port; killed with the block if it still runs."""
    (home / "token").write_text(TOKEN + "\n")
    (home / "key").write_text("ab" * 32)
    settings = {
        "host": "127.0.0.1",
        "port": free_port(),
        "control_url": f"http://127.0.0.1:{control_port}",
        "token_file": str(home / "token"),
        "digest_key_file": str(home / "key"),
        "fleet_file": str(home / "router" / "fleet.json"),
        "models": [model_spec().to_json()],
    } | changes
    (home / "router.json").write_text(json.dumps(settings))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router.app", "--config-json", str(home / "router.json")),
        cwd=Path(__file__).parent.parent,
        env=dict(os.environ),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield f"http://{settings['host']}:{settings['port']}", child
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
        await child.communicate()


async def listening(child: Any) -> None:
    async with asyncio.timeout(30):
        while b"listening on" not in (line := await child.stderr.readline()):
            assert line, "it ended without listening"


@pytest.mark.parametrize(
    ("drain_s", "then", "least_s"),
    [(1.0, signal.SIGTERM, 1.0), (0.0, signal.SIGTERM, 0.0), (60.0, router_end.HURRY, 0.0)],
)
async def test_the_process_lets_open_streams_go_on_as_long_as_it_may_and_ends_them_for_who_is_in_a_hurry(
    tmp_path: Path, drain_s: float, then: signal.Signals, least_s: float
) -> None:
    host = EndlessHost("den/0")
    controller = Controller([host])
    limits = {"drain_s": drain_s}
    async with running(host, controller), process(tmp_path, controller.port, limits=limits) as (url, child):
        await listening(child)
        body = {"model": MODEL, "messages": [], "stream": True}
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{url}/v1/chat/completions", json=body) as response,
        ):
            assert response.status == 200
            await response.content.readline()
            child.send_signal(signal.SIGINT)
            await response.content.readline()
            began = asyncio.get_running_loop().time()
            child.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)  # else the two could be one
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(then)
            rest = await response.read()
            assert await asyncio.wait_for(child.wait(), 10) == 0
            took = asyncio.get_running_loop().time() - began
        assert b"router_stopping" in rest
        assert least_s <= took < least_s + 5
        assert b"WARNING homeport.router: 1 requests are cut" in await child.stderr.read()
        assert (tmp_path / "router" / "fleet.json").exists()


async def test_an_idle_process_ends_at_once(tmp_path: Path) -> None:
    async with process(tmp_path, free_port()) as (url, child):
        await listening(child)
        async with aiohttp.ClientSession() as client, client.get(f"{url}/health") as response:
            assert response.status == 200
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 5) == 0


async def test_a_taken_port_is_told_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with process(tmp_path, free_port(), port=port) as (_, child):
            _, told = await asyncio.wait_for(child.communicate(), 30)
            assert child.returncode == 2
            assert f"cannot listen on 127.0.0.1:{port}".encode() in told
            assert b"router.listen" in told


async def test_it_listens_nowhere_but_on_loopback(tmp_path: Path) -> None:
    async with process(tmp_path, free_port(), host="0.0.0.0") as (_, child):
        _, told = await asyncio.wait_for(child.communicate(), 30)
        assert child.returncode == 2
        assert b"loopback only" in told

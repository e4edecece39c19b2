"""Pages of other sites as their browsers meet the front door, over real sockets."""

import hashlib
import json
from pathlib import Path

import aiohttp
import pytest

from tests.ports import free_port
from tests.standins import (
    AnswersHost,
    BreaksDownHost,
    Router,
    routed,
    running_router,
)

CHAT = "https://chat.example.com"
LISTED = frozenset({CHAT.encode()})
ASKS = {
    "origin": CHAT,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization",
}
PATHS = ("/v1/chat/completions", "/s/tea/v1/chat/completions", "/v1/models", "/api/sessions", "/nowhere")


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.yaml"
    digest = hashlib.sha256(b"secret").hexdigest()
    file.write_text(json.dumps([{"name": "anna", "sha256": digest}]))
    return file


async def options(router: Router, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    async with router.client.options(router.url + path, headers=headers) as response:
        return (
            response.status,
            {name.lower(): value for name, value in response.headers.items()},
            await response.read(),
        )


@pytest.mark.parametrize("path", PATHS)
async def test_who_asks_beforehand_is_answered_without_a_key(
    tmp_path: Path, keys_file: Path, path: str
) -> None:
    async with running_router(tmp_path, free_port(), keys_file=keys_file, origins=LISTED) as router:
        status, told, body = await options(router, path, ASKS)
        assert (status, body) == (204, b"")
        assert told["access-control-allow-origin"] == CHAT
        assert "POST" in told["access-control-allow-methods"]
        assert told["access-control-allow-headers"] == "authorization"
        assert int(told["access-control-max-age"]) > 0
        assert told["vary"] == "origin"
        assert "x-request-id" in told
        assert "content-length" not in told, "a 204 has none"
        assert "transfer-encoding" not in told


async def test_a_connection_on_which_was_asked_beforehand_takes_the_request_itself(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0"), origins=LISTED) as router:
        one = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=one) as browser:
            url = f"{router.url}/v1/chat/completions"
            async with browser.options(url, headers=ASKS) as response:
                assert response.status == 204
            body = {"model": "tiny", "messages": []}
            async with browser.post(url, headers={"origin": CHAT}, json=body) as response:
                assert response.status == 200
                assert response.headers["access-control-allow-origin"] == CHAT


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_may_be_read_with_what_homeport_says_of_it(tmp_path: Path, stream: bool) -> None:
    async with routed(tmp_path, AnswersHost("den/0"), origins=LISTED) as router:
        answer = await router.chat(session="tea", stream=stream, headers={"origin": CHAT})
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == CHAT
        assert answer.headers["vary"] == "origin"
        shown = answer.headers["access-control-expose-headers"].split(", ")
        said = [
            name.lower() for name in answer.headers if name.lower().startswith(("x-homeport-", "x-request-"))
        ]
        assert said
        assert set(said) <= set(shown)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/health", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/chat/completions", 400),
        ("GET", "/v1/models/huge", 404),
    ],
)
async def test_pages_and_errors_may_be_read_too(tmp_path: Path, method: str, path: str, status: int) -> None:
    async with running_router(tmp_path, free_port(), origins=LISTED) as router:
        answer = await router.ask(method, path, headers={"origin": CHAT})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, CHAT)


async def test_errors_of_keys_hosts_and_names_may_be_read_too(tmp_path: Path, keys_file: Path) -> None:
    host = BreaksDownHost("den/0")
    async with routed(tmp_path, host, keys_file=keys_file, origins=LISTED) as router:
        nobody = await router.chat(headers={"origin": CHAT})
        assert (nobody.status, nobody.headers["access-control-allow-origin"]) == (401, CHAT)
        anna = {"origin": CHAT, "authorization": "Bearer secret"}
        broken = await router.chat(stream=True, headers=anna)
        assert (broken.status, broken.headers["access-control-allow-origin"]) == (200, CHAT)
        foreign = await router.chat(headers={**anna, "host": "evil.example"})
        assert (foreign.code, foreign.headers["access-control-allow-origin"]) == ("host_not_allowed", CHAT)


async def test_a_site_that_is_not_listed_stays_outside(tmp_path: Path) -> None:
    async with running_router(tmp_path, free_port(), origins=LISTED) as router:
        for origin in ("https://evil.example", "null", f"{CHAT}:8443"):
            status, told, body = await options(router, "/v1/models", {**ASKS, "origin": origin})
            assert (status, json.loads(body)["error"]["code"]) == (403, "origin_not_allowed")
            assert "access-control-allow-origin" not in told
            answer = await router.get("/v1/models", headers={"origin": origin})
            assert "router.cors" in answer.json()["error"]["message"]


async def test_who_asks_beforehand_under_a_foreign_name_is_told_nothing(tmp_path: Path) -> None:
    async with running_router(tmp_path, free_port(), origins=frozenset({b"*"})) as router:
        status, told, body = await options(router, "/v1/models", {**ASKS, "host": "evil.example"})
        assert (status, json.loads(body)["error"]["code"]) == (403, "host_not_allowed")
        assert "access-control-allow-methods" not in told


async def test_an_own_name_is_let_in_as_ever_and_listed_if_another_port_is_to_read_it(tmp_path: Path) -> None:
    async with running_router(tmp_path, free_port(), origins=frozenset({b"http://localhost:3000"})) as router:
        other = await router.get("/v1/models", headers={"origin": "http://localhost:4000"})
        assert (other.status, "access-control-allow-origin" in other.headers) == (200, False)
        listed = await router.get("/v1/models", headers={"origin": "http://localhost:3000"})
        assert listed.headers["access-control-allow-origin"] == "http://localhost:3000"


async def test_a_star_lets_every_site_in(tmp_path: Path) -> None:
    async with running_router(tmp_path, free_port(), origins=frozenset({b"*"})) as router:
        for origin in ("https://anything.example", "null"):
            answer = await router.get("/v1/models", headers={"origin": origin})
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/chat/completions", {"POST", "OPTIONS"}),
        ("/m/den/v1/embeddings", {"POST", "OPTIONS"}),
        ("/v1/models", {"GET", "OPTIONS"}),
        ("/api/sessions", {"GET", "OPTIONS"}),
        ("/api/machines/den/drain", {"POST", "OPTIONS"}),
    ],
)
async def test_who_asks_what_a_path_takes_is_told(tmp_path: Path, path: str, allowed: set[str]) -> None:
    async with running_router(tmp_path, free_port()) as router:
        status, told, body = await options(router, path, {})
        assert (status, body) == (204, b"")
        assert set(told["allow"].split(", ")) == allowed
        assert "access-control-allow-origin" not in told
        assert router.count("method_not_allowed", "", model="other") == 0
        refused = await router.ask("PUT", path)
        assert (refused.status, set(refused.headers["allow"].split(", ")) | {"OPTIONS"}) == (405, allowed)


async def test_what_a_path_takes_is_told_to_nobody_without_a_key(tmp_path: Path, keys_file: Path) -> None:
    async with running_router(tmp_path, free_port(), keys_file=keys_file, origins=LISTED) as router:
        status, _, _ = await options(router, "/v1/models", {"origin": CHAT})
        assert status == 401

"""What `/api/arrivals` and `homeport connect --check` tell of requests: over real sockets, before stand-ins."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from router.arrival import Arrival, advice, astray, client_of, naming_header, product, words
from router.connect import CLIENTS
from router.identity import SESSION_HEADERS
from router.request import ENDPOINTS
from serving.router_limits import RouterLimits
from tests.router_workers import two_workers
from tests.standins import AnswersHost, Router, routed

RECORDED = {
    "claude-cli/2.1.332 (external, cli)": "claude-code",
    "codex_exec/0.171.0 (Debian 12.0.0; x86_64) dumb (codex_exec; 0.171.0)": "codex",
    "opencode/1.18.33 ai-sdk/provider-utils/4.0.23 runtime/bun/1.3.14": "opencode",
    "OpenAI/Python 3.57.0": "openai-sdk",
    "AsyncOpenAI/Python 3.57.0": "openai-sdk",
    "Agents/Python 0.24.0": "openai-sdk",
    "ls/JS 5.23.2": None,
}


@dataclass
class Looking:
    """One who looks at what arrives."""

    response: aiohttp.ClientResponse

    async def begun(self) -> None:
        assert await self.response.content.readline() == b": watching\n"

    async def next(self) -> Arrival:
        """Raises EOFError at the end."""
        async with asyncio.timeout(30):
            while not (line := await self.response.content.readline()).startswith(b"data: "):
                if not line:
                    raise EOFError
        return msgspec.json.decode(line[6:], type=Arrival)


@asynccontextmanager
async def looking(
    url: str, client: aiohttp.ClientSession, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Looking]:
    async with client.get(f"{url}/api/arrivals", headers=headers) as response:
        assert response.status == 200
        looks = Looking(response)
        await looks.begun()
        yield looks


async def test_a_turn_is_told_with_what_named_it_and_where_it_ran(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0")) as router, looking(router.url, router.client) as looks:
        sent = {"x-session-affinity": "tea", "user-agent": "opencode/1.18.33 of Ann's"}
        answer = await router.chat(headers=sent, stream=True)
        seen = await looks.next()
        assert seen == Arrival(
            path="/v1/chat/completions",
            outcome="ok",
            agent="opencode/1.18.33",
            source="header",
            header="x-session-affinity",
            session=answer.headers["x-homeport-session"],
            pin="new",
            machine="m0",
            streams=True,
        )
        await router.chat(user="Ann")
        assert ((await looks.next()).source, seen.is_child) == ("guess", False)
        await router.chat(session="leaf", headers={"x-homeport-parent": "tea"})
        assert (await looks.next()).is_child


class AsideHost(AnswersHost):
    """Makes all that it is asked aside."""

    async def whole(self, request: web.Request, told: dict[str, str]) -> web.StreamResponse:
        return await super().whole(request, {**told, "x-homeport-aside": "yes"})


async def test_a_title_is_known_as_one_and_only_who_looks_is_told(tmp_path: Path) -> None:
    async with routed(tmp_path, AsideHost("m0/0")) as router, looking(router.url, router.client) as looks:
        answer = await router.chat(session="tea")
        assert "x-homeport-aside" not in answer.headers
        seen = await looks.next()
        assert seen.is_aside
        assert words(seen).endswith("new at m0, made aside, as a title is")
        assert "its context was left alone" in "".join(advice(seen, None))


async def test_nothing_that_somebody_wrote_is_told(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0")) as router, looking(router.url, router.client) as looks:
        url = "/s/secret-name/v1/chat/completions"
        said = [{"role": "user", "content": "secret-words"}]
        headers = {"user-agent": "x secret-agent", "authorization": "Bearer secret-key"}
        await router.post(url, headers=headers, messages=said)
        await router.post("/s/secret-name/secret-path", headers=headers)
        for _ in range(2):
            assert b"secret" not in msgspec.json.encode(await looks.next())


async def test_what_becomes_no_turn_is_told_with_what_is_wrong(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0")) as router, looking(router.url, router.client) as looks:
        for path, outcome, where in (
            ("/chat/completions", "not_found", "add_v1"),
            ("/v1/v1/chat/completions", "not_found", "drop_v1"),
            ("/v1/audio/speech", "not_found", "unknown"),
        ):
            assert (await router.post(path)).status == 404
            seen = await looks.next()
            assert (seen.path, seen.outcome, seen.astray) == ("", outcome, where)
        await router.post("/v1/chat/completions", model="none", messages=[])
        seen = await looks.next()
        assert (seen.path, seen.outcome) == ("/v1/chat/completions", "model_not_found")
        await router.ask("POST", "/api/machines/m0/cordon")
        await router.get("/v1/models")
        await router.chat(session="tea")
        assert (await looks.next()).source == "header"


async def test_nothing_is_kept_while_nobody_looks(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0")) as router:
        arrivals = router.parts.relay.arrivals
        await router.chat(session="tea")
        await router.post("/nowhere")
        assert (arrivals.is_watched, arrivals._last, list(arrivals._kept)) == (False, 0, [])
        async with looking(router.url, router.client) as looks:
            await router.chat(session="tea")
            await looks.next()
            assert arrivals.is_watched
        await router.until(lambda: not arrivals.is_watched)
        assert (list(arrivals._kept), arrivals._looking) == ([], set())


async def test_all_who_look_are_told_the_same(tmp_path: Path) -> None:
    async with (
        routed(tmp_path, AnswersHost("m0/0")) as router,
        looking(router.url, router.client) as one,
        looking(router.url, router.client) as other,
    ):
        for _ in range(3):
            await router.chat(session="tea")
        assert [await one.next() for _ in range(3)] == [await other.next() for _ in range(3)]


async def test_only_admins_are_told_and_a_key_that_is_not_known_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    roles = {"anna": "use", "grafana": "metrics", "boss": "admin"}
    entries = [{"name": n, "sha256": sha256(n.encode()).hexdigest(), "role": r} for n, r in roles.items()]
    file.write_text(json.dumps(entries))
    file.chmod(0o600)
    async with routed(tmp_path, AnswersHost("m0/0"), keys_file=file) as router:
        for name, status in (("anna", 403), ("grafana", 403), ("nobody", 401)):
            answer = await router.get("/api/arrivals", headers={"authorization": f"Bearer {name}"})
            assert answer.status == status
        boss = {"authorization": "Bearer boss"}
        async with looking(router.url, router.client, boss) as looks:
            await router.chat(headers={"authorization": "Bearer nobody"})
            seen = await looks.next()
            assert (seen.path, seen.outcome) == ("/v1/chat/completions", "invalid_api_key")
            file.write_text(json.dumps(entries[:2]))
            assert router.parts.keys is not None
            router.parts.keys.look()
            async with asyncio.timeout(30):
                with pytest.raises(EOFError):
                    await looks.next()


async def test_who_looks_does_not_hold_up_the_routers_end(tmp_path: Path) -> None:
    limits = RouterLimits(drain_s=60.0)
    async with (
        routed(tmp_path, AnswersHost("m0/0"), limits=limits) as router,
        looking(router.url, router.client) as looks,
    ):
        router.server.stop()
        with pytest.raises(EOFError):
            await looks.next()


async def test_who_looks_at_one_worker_is_told_what_comes_to_all(tmp_path: Path) -> None:
    async with two_workers(tmp_path, AnswersHost("m0/0")) as rig:
        one, other = await rig.both()
        async with looking(rig.url, await other.connected()) as looks:
            assert (await one.chat("tea")).status == 200
            assert (await other.chat("tea")).status == 200
            seen = [await looks.next(), await looks.next()]
            assert [each.source for each in seen] == ["header", "header"]
            assert len({each.session for each in seen}) == 1


# --- homeport connect --check


@asynccontextmanager
async def checking(router: Router, home: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command in a process of its own, watching."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router.cli", "connect", "--check", "--url", router.url, *words),
        env={"HOMEPORT_HOME": str(home / "other"), "PATH": "", "HOME": str(home)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            assert (await process.stderr.readline()).startswith(b"Watching ")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_command_says_of_the_first_request_what_is_good_about_it(tmp_path: Path) -> None:
    async with (
        routed(tmp_path, AnswersHost("m0/0")) as router,
        checking(router, tmp_path, "--once") as check,
    ):
        sent = {"x-session-id": "tea", "user-agent": "OpenAI/Python 3.57.0"}
        public = (await router.chat(headers=sent, stream=True)).headers["x-homeport-session"]
        out, _ = await asyncio.wait_for(check.communicate(), 30)
        assert out.decode().splitlines() == [
            f"OpenAI/Python: chat completions, a stream, source header (x-session-id), session {public}, new at m0",
            "  Good: a header names its conversation, which keeps its home.",
        ]
        assert check.returncode == 0


async def test_the_command_goes_on_until_the_router_ends(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0")) as router, checking(router, tmp_path) as check:
        await router.chat()
        await router.post("/chat/completions")
        router.server.stop()
        out, why = await asyncio.wait_for(check.communicate(), 30)
        assert "Source: guess." in out.decode()
        assert "Its base URL must end in /v1" in out.decode()
        assert (check.returncode, "The router has ended." in why.decode()) == (1, True)


async def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0")) as router, checking(router, tmp_path) as check:
        check.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(check.wait(), 30) == 130
        await router.until(lambda: not router.parts.relay.arrivals.is_watched)


# --- in words


@pytest.mark.parametrize(("agent", "name"), RECORDED.items())
def test_clients_are_known_by_their_user_agents(agent: str, name: str | None) -> None:
    found = client_of(product(agent))
    assert (None if found is None else found.name) == name


def test_a_client_that_is_expected_is_not_taken_for_the_library_that_it_is_built_upon() -> None:
    llm = CLIENTS["llm"]
    assert client_of("OpenAI/Python", llm) is client_of("", llm) is client_of("curl/8.5.0", llm) is llm
    assert client_of("opencode/1.18.33", llm) is CLIENTS["opencode"]
    assert client_of("OpenAI/Python") is CLIENTS["openai-sdk"]


@pytest.mark.parametrize("agent", ["", " Ann", "(Ann)", "\x00", "<b>", "é"])
def test_what_is_no_product_is_not_told(agent: str) -> None:
    assert product(agent) == ""
    assert product("x" * 5000) == "x" * 40


def test_the_header_that_names_is_the_first_of_the_ladder_that_says_something() -> None:
    named = ((b"thread-id", b"a"), (b"session-id", b"b"), (b"session_id", b""))
    assert naming_header(named, SESSION_HEADERS) == "session-id"
    assert naming_header((), SESSION_HEADERS) == ""


def test_a_path_goes_astray_in_one_of_three_ways() -> None:
    paths = ("/v1/chat/completions", "/chat/completions", "/v1/v1/chat/completions", "/v1/files")
    assert [astray(path, ENDPOINTS) for path in paths] == ["", "add_v1", "drop_v1", "unknown"]


def said(client: str | None, **seen: Any) -> str:
    arrival = Arrival(**{"path": "/v1/chat/completions", "outcome": "ok", **seen})
    return "\n".join(advice(arrival, None if client is None else CLIENTS[client]))


def test_what_is_missing_is_said_with_its_remedy() -> None:
    assert "which it can do: `homeport connect open-webui` says how" in said("open-webui", source="guess")
    assert "which it can do: `homeport connect aider` says how" in said("aider", source="guess")
    assert "`homeport connect cline` --session NAME gives" in said("cline", source="guess")
    assert "this one session" in said("cline", source="path")
    assert "homeport key new NAME" in said(None, outcome="invalid_api_key")
    assert "belongs to no session" in said(None, source="none", path="/v1/embeddings")
    assert "`homeport connect zed` names one" in said("zed", outcome="model_not_found", source="body")
    assert "must not end in /v1" in said("claude-code", path="", astray="drop_v1", outcome="not_found")
    assert "context_length_exceeded" in said("codex", outcome="context_length_exceeded", source="header")


def test_the_line_says_what_is_known_and_no_more() -> None:
    bare = Arrival(path="/v1/embeddings", outcome="ok")
    assert words(bare) == "a client: embeddings, no stream, source none"
    lost = Arrival(path="", outcome="not_found", astray="unknown")
    assert words(lost) == "a client: a path that homeport does not have (not_found)"
    assert "Ollama" in words(Arrival(path="/api/chat", outcome="ok"))
    child = Arrival(path="/v1/messages", outcome="ok", source="header", session="hp_1", is_child=True)
    assert words(child) == "a client: messages, no stream, source header, session hp_1, a sub-agent's"

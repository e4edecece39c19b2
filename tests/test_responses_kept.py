"""Responses that go on from one another by id, through a real router and real hosts, with engines that count."""

import asyncio
import hashlib
import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router import kept
from router.dialects.responses_ids import session_of
from router.kept import Kept, Record
from router.keys import Key
from router.responses_api import page_of
from tests.fakes import Behaviour
from tests.host_process import HostProcess, model_spec
from tests.moving_world import Machines, World, router_of, world
from tests.standins import AnswersHost, routed
from tests.test_moves import make_host, make_world

__all__ = ["make_host", "make_world"]

FAKE = Behaviour()
HELLO = "hello " * 40
MakeWorld = Callable[..., Any]


class Client:
    """One of a router's that speaks Responses. Sends each time only what is new."""

    def __init__(self, world: World, **headers: str) -> None:
        self.world = world
        self.headers = headers

    async def ask(self, words: str = "and?", previous: str | None = None, **fields: Any) -> dict[str, Any]:
        """A whole answer, which must go well."""
        status, told = await self.try_(words, previous, **fields)
        assert status == 200, told
        return told

    async def try_(
        self, words: str = "and?", previous: str | None = None, **fields: Any
    ) -> tuple[int, dict[str, Any]]:
        body = {"model": "smollm2", "input": words, "previous_response_id": previous, **fields}
        return await self.call("POST", "/v1/responses", body)

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        url = self.world.url + path
        async with self.world.client.request(method, url, json=body, headers=self.headers) as answer:
            return answer.status, await answer.json()

    async def stream(self, words: str = "and?", previous: str | None = None, **fields: Any) -> Any:
        """The response of an answer's stream, open: `events_of` reads it."""
        body = {
            "model": "smollm2",
            "input": words,
            "previous_response_id": previous,
            "stream": True,
            **fields,
        }
        return await self.world.client.post(self.world.url + "/v1/responses", json=body, headers=self.headers)


async def events_of(answer: Any) -> list[dict[str, Any]]:
    text = (await answer.read()).decode()
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def tokens(response: Mapping[str, Any]) -> tuple[int, int]:
    """Of its prompt: how many were there already, and how many were evaluated."""
    told = response["homeport"]
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == told["reused_tokens"]
    return told["reused_tokens"], told["evaluated_tokens"]


def goes_on(response: Mapping[str, Any], words: str = "and?") -> None:
    """Only the new words were evaluated, behind the answer's end."""
    reused, evaluated = tokens(response)
    assert reused >= len(HELLO)
    assert evaluated <= len(f"\nuser:{words}\nassistant:")


async def test_a_response_goes_on_from_another_and_evaluates_only_new_words(make_world: MakeWorld) -> None:
    client = Client(await make_world(den=("home", FAKE), attic=("home", FAKE)))
    first = await client.ask(HELLO)
    second = await client.ask(previous=first["id"])
    goes_on(second)
    third = await client.ask(previous=second["id"])
    reused, _ = tokens(third)
    assert reused > tokens(second)[0]
    assert {each["homeport"]["machine"] for each in (first, second, third)} == {first["homeport"]["machine"]}
    assert {session_of(each["id"]) for each in (first, second, third)} == {session_of(first["id"])}
    assert third["previous_response_id"] == second["id"]


async def test_a_streamed_answer_can_be_gone_on_from_once_its_last_event_is_there(
    make_world: MakeWorld,
) -> None:
    client = Client(await make_world(den=("home", FAKE)))
    *_, last = await events_of(await client.stream(HELLO))
    assert last["type"] == "response.completed"
    *_, last = await events_of(await client.stream(previous=last["response"]["id"]))
    goes_on(last["response"])
    assert (await client.call("GET", f"/v1/responses/{last['response']['id']}"))[1] == last["response"]


async def test_two_go_on_from_one_answer_and_both_know_what_was_said(make_world: MakeWorld) -> None:
    client = Client(await make_world(den=("home", FAKE)))
    first = await client.ask(HELLO)
    left = await client.ask("left?", first["id"])
    right = await client.ask("right?", first["id"])
    goes_on(left, "left?")
    assert tokens(right)[0] >= len(HELLO)
    assert str(right["homeport"]["cause"]).startswith("edited@")
    again = await client.ask("more?", left["id"])
    assert tokens(again)[0] >= len(HELLO)
    assert session_of(left["id"]) == session_of(right["id"]) == session_of(again["id"])
    said = [
        (await client.call("GET", f"/v1/responses/{each['id']}/input_items"))[1] for each in (left, right)
    ]
    assert [each["data"][0]["content"][0]["text"] for each in said] == ["left?", "right?"]


async def test_what_is_kept_is_read_listed_and_removed(make_world: MakeWorld) -> None:
    client = Client(await make_world(den=("home", FAKE)))
    items = [{"role": "user", "content": each} for each in (HELLO, "b", "c")]
    first = await client.ask(items)  # type: ignore[arg-type]
    path = f"/v1/responses/{first['id']}"
    assert await client.call("GET", path) == (200, first)
    status, page = await client.call("GET", f"{path}/input_items?order=asc&limit=2")
    assert (status, page["has_more"], [each["content"] for each in page["data"]]) == (200, True, [HELLO, "b"])
    status, rest = await client.call("GET", f"{path}/input_items?order=asc&after={page['last_id']}")
    assert ([each["content"] for each in rest["data"]], rest["has_more"]) == (["c"], False)
    status, newest = await client.call("GET", f"{path}/input_items")
    assert [each["content"] for each in newest["data"]] == ["c", "b", HELLO]
    unfit = (
        ("order=up", "order"),
        ("limit=0", "limit"),
        (f"limit={'9' * 5000}", "limit"),
        ("after=x", "after"),
    )
    for wrong, field in unfit:
        status, told = await client.call("GET", f"{path}/input_items?{wrong}")
        assert (status, told["error"]["param"]) == (400, field)
    status, told = await client.call("GET", f"{path}?stream=true")
    assert (status, told["error"]["param"]) == (400, "stream")
    status, told = await client.call("POST", f"{path}/cancel")
    assert (status, told["error"]["code"]) == (400, "response_complete")
    below = f"/m/den{path}"
    assert await client.call("GET", below) == (200, first)
    assert await client.call("DELETE", path) == (
        200,
        {"id": first["id"], "object": "response", "deleted": True},
    )
    for method, gone in (
        ("GET", path),
        ("DELETE", path),
        ("GET", f"{path}/input_items"),
        ("POST", f"{path}/cancel"),
    ):
        status, told = await client.call(method, gone)
        assert (status, told["error"]["code"]) == (404, "response_not_found"), (method, gone)
    await not_found(client, first["id"])


async def not_found(client: Client, previous: str) -> None:
    status, told = await client.try_(previous=previous)
    assert (status, told["error"]["code"]) == (400, "previous_response_not_found")
    assert told["error"]["param"] == "previous_response_id"
    assert "Send the conversation itself" in told["error"]["message"]


async def test_what_is_not_to_be_kept_is_not(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE))
    client = Client(world)
    first = await client.ask("not to be stored", store=False)
    await not_found(client, first["id"])
    assert (await client.call("GET", f"/v1/responses/{first['id']}"))[0] == 404
    assert not any(
        b"not to be stored" in file.read_bytes() for file in world.host("den").folder.glob("kept*")
    )
    second = await client.ask("to be stored")
    third = await client.ask(
        previous=second["id"], store=False
    )  # It may go on, and is no more to go on from.
    await not_found(client, third["id"])


async def test_an_ended_session_leaves_nothing_to_go_on_from(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE))
    client = Client(world)
    first = await client.ask("a secret " + HELLO)
    await client.call("DELETE", f"/api/sessions/{session_of(first['id'])}")
    await not_found(client, first["id"])
    assert not any(b"a secret" in file.read_bytes() for file in world.host("den").folder.glob("kept*"))


async def test_one_that_goes_on_is_known_after_restarts_of_host_and_router(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = await make_world(den=("home", FAKE))
    first = await Client(world).ask(HELLO)
    host = world.host("den")
    host.signal(signal.SIGKILL)
    host.wait_end()
    await asyncio.to_thread(host.start)
    async with router_of(world, tmp_path, host.model):
        second = await Client(world).ask(previous=first["id"])
    assert tokens(second)[0] + tokens(second)[1] > len(HELLO)
    assert session_of(second["id"]) == session_of(first["id"])


async def test_one_that_goes_on_waits_for_its_home(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    client = Client(world)
    first = await client.ask(HELLO)
    await indexed(world, first)
    host: HostProcess = world.host(first["homeport"]["machine"])
    host.signal(signal.SIGTERM)
    host.wait_end()
    waiting = asyncio.create_task(client.stream(previous=first["id"]))
    await asyncio.to_thread(host.start)
    *_, last = await events_of(await waiting)
    assert last["type"] == "response.completed"
    goes_on(last["response"])
    assert last["response"]["homeport"]["machine"] == first["homeport"]["machine"]


async def test_one_that_goes_on_does_so_where_its_session_moved(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    client = Client(world)
    first = await client.ask(HELLO)
    old = first["homeport"]["machine"]
    new = next(name for name in world.machines.hosts if name != old)
    path = f"/api/sessions/{session_of(first['id'])}/move"
    assert (await client.call("POST", path, {"machine": new}))[1]["context"] == "carried"
    second = await client.ask(previous=first["id"])
    goes_on(second)
    assert second["homeport"]["machine"] == new
    assert (await client.call("GET", f"/v1/responses/{first['id']}"))[0] == 200


async def test_an_answer_that_breaks_off_is_not_kept(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", Behaviour(endless=True, step_s=0.01)))
    client = Client(world)
    stream = await client.stream(HELLO)
    told = json.loads((await stream.content.readuntil(b"\n\n")).partition(b"data: ")[2])
    host = world.host("den")
    host.signal(signal.SIGKILL)
    host.wait_end()
    *_, last = await events_of(stream)
    assert last["type"] == "response.failed"
    host.behave(FAKE)
    await asyncio.to_thread(host.start)
    await world.until(
        lambda _: world.parts.fleet.snapshot().replicas["den/0"].serves(world.parts.relay.clock()),
        "it serves",
    )
    assert (await client.call("GET", f"/v1/responses/{told['response']['id']}"))[0] == 404
    await not_found(client, told["response"]["id"])


async def test_a_response_that_is_being_made_is_cancelled(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", Behaviour(endless=True, step_s=0.01)))
    client = Client(world)
    stream = await client.stream(HELLO)
    told = json.loads((await stream.content.readuntil(b"\n\n")).partition(b"data: ")[2])
    response = told["response"]["id"]
    status, cancelled = await client.call("POST", f"/v1/responses/{response}/cancel")
    assert (status, cancelled["id"], cancelled["status"]) == (200, response, "cancelled")
    *_, last = await events_of(stream)
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "response_cancelled")
    await asyncio.to_thread(world.host("den").wait_state, running=0)
    assert (await client.call("POST", f"/v1/responses/{response}/cancel"))[0] == 404


async def test_a_conversation_is_gone_on_with_by_its_name(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE))
    client = Client(world)
    first = await client.ask(HELLO, conversation="conv_trip")
    second = await client.ask(conversation={"id": "conv_trip"})
    goes_on(second)
    assert (first["conversation"], session_of(first["id"])) == ({"id": "conv_trip"}, session_of(second["id"]))
    other = await client.ask(conversation="conv_other")
    assert tokens(other)[0] == 0


async def test_a_conversation_is_its_own_session_whatever_key_its_cache_is_asked_by(
    make_world: MakeWorld,
) -> None:
    client = Client(await make_world(den=("home", FAKE)))
    first = await client.ask(HELLO, conversation="conv_trip", prompt_cache_key="app")
    assert session_of((await client.ask("x", prompt_cache_key="app"))["id"]) != session_of(first["id"])
    second = await client.ask(conversation="conv_trip", prompt_cache_key="other app")
    assert session_of(second["id"]) == session_of(first["id"])
    assert sum(tokens(second)) > len(HELLO)
    path = "/v1/conversations/conv_trip"
    assert len((await client.call("GET", f"{path}/items"))[1]["data"]) == 4
    await client.call("DELETE", path)
    for each in (first, second):
        assert (await client.call("GET", f"/v1/responses/{each['id']}"))[0] == 404


async def test_a_conversation_whose_beginning_is_not_kept_says_so(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    client = Client(world)
    first = await client.ask(HELLO, conversation="conv_trip")
    old = first["homeport"]["machine"]
    new = next(name for name in world.machines.hosts if name != old)
    (world.host(new).folder / "kept.sqlite").mkdir()
    await client.call("POST", f"/api/sessions/{session_of(first['id'])}/move", {"machine": new})
    (world.host(new).folder / "kept.sqlite").rmdir()
    status, told = await client.try_(conversation="conv_trip")
    assert (status, told["error"]["code"]) == (400, "conversation_not_kept")
    await not_found(client, first["id"])


async def test_another_session_can_go_on_from_an_answer_and_a_single_item_be_named(
    make_world: MakeWorld,
) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    first = await Client(world).ask(HELLO)
    other = Client(world, **{"x-session-id": "other"})
    second = await other.ask(previous=first["id"])
    assert session_of(second["id"]) != session_of(first["id"])
    assert sum(tokens(second)) > len(HELLO)
    third = await other.ask(previous=second["id"])
    assert sum(tokens(third)) > sum(tokens(second))
    named = [{"type": "item_reference", "id": first["output"][0]["id"]}, {"role": "user", "content": "and?"}]
    fourth = await other.ask(named)  # type: ignore[arg-type]
    assert sum(tokens(fourth)) > len(first["output"][0]["content"][0]["text"])


async def test_what_was_said_in_a_zone_is_gone_on_from_in_that_zone_only(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("office", FAKE))
    private = await Client(world, **{"x-homeport-zone": "home"}).ask("private " + HELLO)
    abroad = Client(world, **{"x-session-id": "abroad", "x-homeport-zone": "office"})
    await abroad.ask("hello")
    named = [
        {"type": "item_reference", "id": private["output"][0]["id"]},
        {"role": "user", "content": "and?"},
    ]
    attempts: list[tuple[Any, str | None]] = [("and?", private["id"]), (named, None)]
    for words, previous in attempts:
        for client in (abroad, Client(world, **{"x-session-id": "at-attic"})):
            base = "" if client is abroad else "/m/attic"
            body = {"model": "smollm2", "input": words, "previous_response_id": previous}
            status, told = await client.call("POST", f"{base}/v1/responses", body)
            assert (status, told["error"]["code"]) == (400, "zone_conflict"), told
    settled = [Client(world, **{"x-session-id": f"settled-{number}"}) for number in range(4)]
    homes = [(await each.ask("hello"))["homeport"]["machine"] for each in settled]
    settled_abroad = settled[homes.index("attic")]
    status, told = await settled_abroad.try_(previous=private["id"])
    assert (status, told["error"]["code"]) == (400, "zone_conflict"), told
    assert b"private" not in (world.host("attic").folder / "kept.sqlite").read_bytes()


async def test_a_new_session_begins_in_the_zone_of_what_it_goes_on_from(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE), attic=("office", FAKE))
    for zone, machine in (("home", "den"), ("office", "attic")):
        first = await Client(world, **{"x-homeport-zone": zone}).ask(HELLO)
        named = [
            {"type": "item_reference", "id": first["output"][0]["id"]},
            {"role": "user", "content": "so"},
        ]
        for number in range(3):
            branch = Client(world, **{"x-session-id": f"{zone}-{number}"})
            assert (await branch.ask(previous=first["id"]))["homeport"]["machine"] == machine
            branch = Client(world, **{"x-session-id": f"item-{zone}-{number}"})
            assert (await branch.ask(named))["homeport"]["machine"] == machine  # type: ignore[arg-type]


async def test_another_model_reads_what_was_said_in_the_zone_where_it_was_said(
    tmp_path: Path, make_host: Callable[..., HostProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = model_spec(hold_s=0.0)
    other = replace(usual, name="other")
    machines = Machines()
    for name, zone, spec in (("den", "home", usual), ("rack", "office", other)):
        machines.add(name, zone, make_host(FAKE, spec))
        await asyncio.to_thread(machines.hosts[name].start)
    async with world(tmp_path, machines, usual, monkeypatch) as abroad:
        first = await Client(abroad).ask("private " + HELLO)
        for base in ("", "/m/rack"):
            body = {"model": "other", "input": "and?", "previous_response_id": first["id"]}
            status, told = await Client(abroad).call("POST", f"{base}/v1/responses", body)
            assert status in {400, 503}, told
        assert not (abroad.host("rack").folder / "kept.sqlite").exists()
    machines.zones["rack"] = "home"
    async with world(tmp_path / "again", machines, usual, monkeypatch) as home:
        second = await Client(home).ask("and?", first["id"], model="other")
        assert sum(tokens(second)) > len(HELLO)


async def test_an_answer_of_another_key_is_not_there(make_world: MakeWorld, tmp_path: Path) -> None:
    world = await make_world(den=("home", FAKE))
    keys = tmp_path / "keys.yaml"
    entries = [
        f"- {{name: {name}, sha256: {hashlib.sha256(f'sk-{name}'.encode()).hexdigest()}}}\n"
        for name in ("ann", "ben")
    ]
    keys.write_text("".join(entries))
    keys.chmod(0o600)
    host = world.host("den")
    async with router_of(world, tmp_path / "keyed", host.model, keys_file=keys):
        ann, ben = (Client(world, authorization=f"Bearer sk-{name}") for name in ("ann", "ben"))
        first = await ann.ask(HELLO)
        await not_found(ben, first["id"])
        status, told = await ben.call("GET", f"/v1/responses/{first['id']}")
        assert (status, told["error"]["code"]) == (404, "response_not_found")
        assert (await ben.call("DELETE", f"/v1/responses/{first['id']}"))[0] == 404
        goes_on(await ann.ask(previous=first["id"]))


async def test_a_conversation_is_made_up_listed_and_forgotten(make_world: MakeWorld) -> None:
    client = Client(await make_world(den=("home", FAKE)))
    status, made = await client.call("POST", "/v1/conversations", {"metadata": {"topic": "trip"}})
    assert (status, made["object"], made["metadata"]) == (200, "conversation", {"topic": "trip"})
    path = f"/v1/conversations/{made['id']}"
    assert (await client.call("GET", path))[1]["created_at"] == made["created_at"] > 0
    assert (await client.call("GET", f"{path}/items"))[1]["data"] == []
    await client.ask(HELLO, conversation=made["id"])
    second = await client.ask(conversation=made["id"])
    goes_on(second)
    status, items = await client.call("GET", f"{path}/items?order=asc")
    assert [item["role"] for item in items["data"]] == ["user", "assistant", "user", "assistant"]
    unfit = ({"metadata": 7}, {"metadata": {"a": 1}}, {"metadata": {"half": "\ud83d"}})
    for body in ({"items": [{"role": "user", "content": "x"}]}, ["no object"], *unfit):
        assert (await client.call("POST", "/v1/conversations", body))[0] == 400
    assert (await client.call("POST", f"{path}/items", {"items": []}))[0] == 400
    assert (await client.call("DELETE", path))[1]["deleted"] is True
    assert (await client.call("GET", f"{path}/items"))[1]["data"] == []
    assert (await client.call("GET", f"/v1/responses/{second['id']}"))[0] == 404
    third = await client.ask(conversation=made["id"])
    assert sum(tokens(third)) < len(HELLO)


@pytest.mark.parametrize(
    ("below", "headers"),
    [("", {"x-session-id": "tea"}), ("/s/tea", {}), ("", {"x-homeport-zone": "home"}), ("/m/den", {})],
)
async def test_a_conversation_is_listed_for_whoever_names_its_session_as_its_turns_do(
    make_world: MakeWorld, below: str, headers: dict[str, str]
) -> None:
    world = await make_world(den=("home", FAKE))
    client, elsewhere = Client(world, **headers), Client(world)
    body = {"model": "smollm2", "input": HELLO, "conversation": "conv_trip"}
    status, told = await client.call("POST", f"{below}/v1/responses", body)
    assert status == 200, told

    async def said(asker: Client, path: str) -> list[str]:
        status, told = await asker.call("GET", f"{path}/items?order=asc")
        assert status == 200, told
        return [item["role"] for item in told["data"]]

    path = "/v1/conversations/conv_trip"
    assert await said(elsewhere, path) == []
    assert (await elsewhere.call("DELETE", path))[0] == 200
    assert await said(client, below + path) == ["user", "assistant"]
    assert (await client.call("DELETE", below + path))[0] == 200
    assert await said(client, below + path) == []


async def test_a_conversation_of_an_odd_name_is_refused(make_world: MakeWorld) -> None:
    client = Client(await make_world(den=("home", FAKE)))
    for path in ("a%00b", "a" * 513):
        status, told = await client.call("GET", f"/v1/conversations/{path}/items")
        assert (status, told["error"]["param"]) == (400, "conversation")


async def test_a_chain_through_many_sessions_is_followed_only_so_far(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await make_world(den=("home", FAKE))
    monkeypatch.setattr(kept, "HISTORY_BYTES_MAX", 3 << 10)
    previous, outcomes = None, []
    for number in range(4):
        client = Client(world, **{"x-session-id": f"link-{number}"})
        status, told = await client.try_("x" * 100, previous)
        outcomes.append("ok" if status == 200 else told["error"]["code"])
        previous = told.get("id", previous)
    assert outcomes[:2] == ["ok", "ok"]
    assert outcomes[-1] == "context_length_exceeded"


async def test_nothing_is_asked_for_behind_an_item_that_is_not_there(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await make_world(den=("home", FAKE))
    client = Client(world)
    first = await client.ask(HELLO)
    asked: list[str] = []
    of_router: Kept = world.parts.relay.kept
    get = of_router.get

    async def counted(response: str, key: Key, zone: str | None = None) -> Record | None:
        asked.append(response)
        return await get(response, key, zone)

    monkeypatch.setattr(of_router, "get", counted)
    root = first["id"].removeprefix("resp_")[:24]
    forged = [{"type": "item_reference", "id": f"msg_{root}{number:032x}00"} for number in range(9)]
    status, told = await client.call("POST", "/v1/responses", {"model": "smollm2", "input": forged})
    assert (status, told["error"]["code"]) == (400, "item_not_found")
    assert len(asked) == 1


async def indexed(world: World, response: Mapping[str, Any]) -> None:
    """Until the controller has read in the host's journal whose session it is."""
    peers, public = world.parts.relay.addressing._finder._peers, session_of(response["id"])

    async def is_known() -> bool:
        found = await peers.indexed(public, "smollm2")
        return found is not None and found.scope is not None

    async with asyncio.timeout(30):
        while not await is_known():  # noqa: ASYNC110  (over HTTP nobody calls back)
            await asyncio.sleep(0.1)


async def test_a_home_that_is_away_is_not_taken_for_one_that_has_nothing(make_world: MakeWorld) -> None:
    world = await make_world(den=("home", FAKE))
    client = Client(world)
    first = await client.ask(HELLO)
    await indexed(world, first)
    host = world.host("den")
    host.signal(signal.SIGKILL)
    host.wait_end()
    status, told = await client.call("GET", f"/v1/responses/{first['id']}")
    assert (status, told["error"]["code"]) == (503, "machine_unavailable")
    assert (await client.call("GET", "/v1/responses/resp_none"))[0] == 404


async def test_a_router_that_is_to_keep_nothing_keeps_nothing(make_world: MakeWorld, tmp_path: Path) -> None:
    world = await make_world(den=("home", FAKE))
    async with router_of(world, tmp_path / "other", world.host("den").model, keep_responses=False):
        client = Client(world)
        first = await client.ask(HELLO)
        await not_found(client, first["id"])


async def test_a_conversation_of_which_nothing_is_kept_goes_on_after_a_move(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = await make_world(den=("home", FAKE), attic=("home", FAKE))
    async with router_of(world, tmp_path / "other", world.host("den").model, keep_responses=False):
        client = Client(world)
        first = await client.ask(HELLO, conversation="conv_trip")
        new = next(name for name in world.machines.hosts if name != first["homeport"]["machine"])
        path = f"/api/sessions/{session_of(first['id'])}/move"
        assert (await client.call("POST", path, {"machine": new}))[0] == 200
        second = await client.ask(HELLO, conversation="conv_trip")
    assert second["homeport"]["machine"] == new


@pytest.mark.parametrize("limit", ["1", "2", "3"])
def test_paging_ends_also_where_a_client_sent_an_id_twice(limit: str) -> None:
    items = [{"id": each} for each in "abab"]
    after, pages = None, 0
    while (page := page_of(items, "asc", after, limit))["has_more"]:
        after, pages = page["last_id"], pages + 1
        assert pages <= len(items)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_kept_goes_out_all_the_same(tmp_path: Path, stream: bool) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:  # it has nowhere to keep anything
        answer = await router.post("/v1/responses", input="Hi", stream=stream)
    assert answer.status == 200
    assert b"Hello there" in answer.body

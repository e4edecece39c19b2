"""Turns through the router to stand-in hosts: faults over real sockets, and what their clients see."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from router import patience
from router.home_memory import HomeMemory
from router.identity import digest, key_scope, public_id
from serving.known_pins import Batch, KnownFile, Said
from serving.pins import pin_from_json
from serving.router_limits import RouterLimits
from tests.standins import (
    DONE,
    MODEL,
    Answer,
    AnswersHost,
    BreaksDownHost,
    Controller,
    DropsBeforeHeadHost,
    DropsMidStreamHost,
    DropsPackets,
    EndlessHost,
    FailsAfterPinningHost,
    FailsHost,
    HangsHost,
    LingersHost,
    OnlyCommentsHost,
    Refuses421Host,
    SplitsEverywhereHost,
    TakenWhileItHangsHost,
    bearer_of,
    chunk,
    routed,
    running,
    running_router,
)

TEA = digest("local", "", "tea")
COFFEE = digest("local", "", "coffee")


def pin(replica: str, generation: int = 1, created_s: float = 1.0, session: str = TEA) -> dict[str, Any]:
    return {
        "session": session,
        "model": MODEL,
        "replica": replica,
        "generation": generation,
        "created_s": created_s,
    }


def standing(answer: Answer) -> tuple[str, ...]:
    """What the answer says of the session's home."""
    return tuple(answer.headers[f"x-homeport-{name}"] for name in ("machine", "replica", "pin"))


# the plain way


async def test_an_answer_comes_back_as_the_host_sent_it(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea")
        assert answer.status == 200
        assert answer.json()["choices"][0]["message"]["content"] == "Hello there"
        assert answer.headers["x-homeport-machine"] == "den"
        assert answer.headers["x-homeport-replica"] == "den/0"
        assert answer.headers["x-homeport-pin"] == "new"
        assert answer.headers["x-homeport-source"] == "header"
        assert answer.headers["x-homeport-session"] == public_id(b"a digest key", TEA)
        assert answer.headers["x-request-id"]
        assert "server" not in {name.lower() for name in answer.headers}
        assert router.count("ok", "den/0") == 1


async def test_a_stream_comes_back_byte_for_byte(tmp_path: Path) -> None:
    host = AnswersHost("den/0", words=("a", "b" * 100_000, "c"))
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea", stream=True)
        assert answer.body == b"".join(chunk(word) for word in host.words) + DONE
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert router.count("ok", "den/0") == 1
        labels = {"pin": "new", "reason": ""}
        assert router.registry.get_sample_value("homeport_pin_outcomes_total", labels) == 1
        labels = {"model": MODEL}
        assert router.registry.get_sample_value("homeport_request_duration_seconds_count", labels) == 1
        assert router.registry.get_sample_value("homeport_time_to_first_token_seconds_count", labels) == 1


async def test_events_that_come_byte_by_byte_arrive_whole(tmp_path: Path) -> None:
    async with routed(tmp_path, SplitsEverywhereHost("den/0")) as router:
        answer = await router.chat(stream=True)
        assert answer.body == chunk("Hello") + DONE
        assert router.count("ok", "den/0") == 1


async def test_the_host_gets_the_clients_bytes_and_what_the_router_believes(tmp_path: Path) -> None:
    host = AnswersHost("den/0", incarnation=5)
    async with routed(tmp_path, host) as router:
        body = b'{ "model":"tiny",  "messages":[{"role":"user","content":"\\u00fc"}], "user":"x" }'
        headers = {
            "x-session-id": "tea",
            "authorization": "Bearer a-client-key",
            "cookie": "a=b",
            "x-homeport-session-key": "ee" * 32,
            "x-homeport-claim": "free",
            "x-homeport-scope": "ff" * 32,
            "te": "trailers",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "x-request-id": "my request",
        }
        url = f"{router.url}/v1/chat/completions"
        async with router.client.post(url, data=body, headers=headers) as response:
            assert response.status == 200
            assert response.headers["x-request-id"] == "my request"
        assert host.bodies == [body]
        seen = host.seen[0]
        assert seen["authorization"] == bearer_of("den/0")
        assert seen["x-homeport-session-key"] == TEA
        assert seen["x-homeport-replica"] == "den/0"
        assert seen["x-homeport-incarnation"] == "5"
        assert seen["x-homeport-generation"] == "1"
        assert seen["x-homeport-pin"] == "new"
        assert seen["x-homeport-scope"] == key_scope("local")
        assert 0 < int(seen["x-homeport-queue-left-ms"]) <= 60_000
        assert seen["x-request-id"] == "my request"
        assert seen["traceparent"] == headers["traceparent"]
        assert not {"cookie", "te", "x-session-id"} & set(seen)
        assert "a-client-key" not in str(seen)


async def test_completions_go_home_like_chats(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    async with routed(tmp_path, *hosts) as router:
        first = await router.chat(session="tea")
        again = await router.post("/v1/completions", session="tea", prompt="Once", stream=True)
        assert standing(again) == (*standing(first)[:2], "kept")
        assert again.body.endswith(DONE)
        (host,) = [host for host in hosts if host.paths]
        assert host.paths == ["/v1/chat/completions", "/v1/completions"]
        assert json.loads(host.bodies[1])["prompt"] == "Once"


async def test_embeddings_leave_nothing_behind_whatever_session_they_name(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.post("/v1/embeddings", session="tea", input="Once")
        assert (answer.status, answer.headers["x-homeport-pin"]) == (200, "none")
        assert answer.headers["x-homeport-source"] == "none"
        assert "x-homeport-session" not in answer.headers
        assert host.paths == ["/v1/embeddings"]
        assert not {"x-homeport-session-key", "x-homeport-generation"} & set(host.seen[0])
        assert host.seen[0]["x-homeport-scope"] == key_scope()
        assert host.pins == {}
        assert router.controller.claims == []


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
async def test_other_endpoints_need_a_model_and_no_messages(tmp_path: Path, path: str) -> None:
    async with routed(tmp_path, FailsHost("den/0", code="missing_required_parameter")) as router:
        answer = await router.post(path)
        assert (answer.status, answer.code) == (400, "missing_required_parameter")
        assert answer.json()["error"]["message"] == "missing_required_parameter it is", "the host's own words"
        answer = await router.post(path, model=3)
        assert (answer.status, answer.code, answer.json()["error"]["param"]) == (400, "invalid_type", "model")


async def test_a_turn_without_a_session_has_no_pin(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.chat(messages=[{"role": "system", "content": "Be brief."}])
        assert answer.headers["x-homeport-pin"] == "none"
        assert answer.headers["x-homeport-source"] == "none"
        assert "x-homeport-session" not in answer.headers
        assert host.seen[0]["x-homeport-pin"] == "none"
        assert not {"x-homeport-session-key", "x-homeport-generation", "x-homeport-claim"} & set(host.seen[0])
        assert host.pins == {}


async def test_a_session_goes_home_again(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    async with routed(tmp_path, *hosts) as router:
        first = await router.chat(session="tea")
        for _ in range(4):
            again = await router.chat(session="tea", stream=True)
            assert again.headers["x-homeport-replica"] == first.headers["x-homeport-replica"]
            assert again.headers["x-homeport-pin"] == "kept"


async def test_nobody_counts_as_new_while_the_controller_reads_the_journals(tmp_path: Path) -> None:
    host, other = AnswersHost("den/0"), AnswersHost("den/1")
    controller = Controller([host, other], reads_journals=True)
    async with running(host, other, controller), running_router(tmp_path, controller.port) as router:
        await router.ready("den/0", "den/1")
        turn = asyncio.create_task(router.chat(session="tea"))
        await router.until(lambda: len(controller.claims) >= 2)
        assert not turn.done()
        assert host.bodies == other.bodies == []
        controller.reads_journals = False
        assert (await turn).status == 200


async def test_a_pin_that_a_refusal_tells_of_is_kept(tmp_path: Path) -> None:
    """The host wrote the pin down and then failed: the next turn must not be claimed anew elsewhere."""
    host, other = FailsAfterPinningHost("den/0"), AnswersHost("den/1", running=1)
    controller = Controller([host, other])
    async with running(host, other, controller), running_router(tmp_path, controller.port) as router:
        await router.ready("den/0", "den/1")
        assert (await router.chat(session="tea")).status == 500
        await host.stop()
        router.parts.fleet.saw_refused("den/0")
        turn = asyncio.create_task(router.chat(session="tea"))
        turns = router.parts.relay.turns
        await router.until(lambda: turn.done() or any(each.replica == "den/0" for each in turns))
        assert not turn.done()
        turn.cancel()
        assert other.bodies == []


async def test_a_claim_is_not_given_up_while_another_turn_of_the_session_is_there(tmp_path: Path) -> None:
    host, other = TakenWhileItHangsHost("den/0"), AnswersHost("attic/0", running=1)
    async with routed(tmp_path, host, other) as router:
        first = asyncio.create_task(router.chat(session="tea"))
        await host.arrived.wait()
        second = await router.chat(session="tea")
        assert (second.status, second.headers["x-homeport-replica"]) == (200, "den/0")
        assert (len(host.bodies), other.bodies) == (3, [])
        first.cancel()


async def test_a_home_whose_first_client_left_unanswered_is_kept(tmp_path: Path) -> None:
    """The host may have written the pin down: nobody else may get the session."""
    host, other = HangsHost("den/0"), AnswersHost("attic/0", running=1)
    async with routed(tmp_path, host, other) as router:
        first = asyncio.create_task(router.chat(session="tea"))
        await host.arrived.wait()
        first.cancel()
        await host.left.wait()
        await host.stop()
        router.parts.fleet.saw_refused("den/0")
        second = asyncio.create_task(router.chat(session="tea"))
        turns = router.parts.relay.turns
        await router.until(lambda: second.done() or any(turn.replica == "den/0" for turn in turns))
        assert not second.done()
        assert other.bodies == []
        second.cancel()


async def test_simultaneous_new_sessions_get_as_many_homes(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(4)]
    async with routed(tmp_path, *hosts) as router:
        answers = await asyncio.gather(*(router.chat(session=f"s{number}") for number in range(4)))
        assert {a.headers["x-homeport-replica"] for a in answers} == {host.replica for host in hosts}


async def test_another_router_finds_the_home_through_the_controller(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    controller = Controller(list(hosts))
    async with running(*hosts, controller):
        homes = []
        for number in range(2):
            async with running_router(tmp_path / str(number), controller.port) as router:
                await router.ready(*(host.replica for host in hosts))
                homes.append(await router.chat(session="tea"))
    assert homes[0].headers["x-homeport-replica"] == homes[1].headers["x-homeport-replica"]
    assert [answer.headers["x-homeport-pin"] for answer in homes] == ["new", "kept"]


# the head is gone


async def test_without_a_controller_the_hosts_are_asked_who_knows_the_session(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    hosts[2].pins[(TEA, MODEL)] = pin("m2/0", generation=4)
    async with routed(tmp_path, *hosts) as router:
        await router.controller.stop()
        answer = await router.chat(session="tea")
        assert answer.headers["x-homeport-replica"] == "m2/0"
        assert hosts[2].seen[0]["x-homeport-generation"] == "4"
        assert hosts[2].seen[0]["x-homeport-pin"] == "kept"


async def test_twins_that_a_partition_left_are_merged_by_generation(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    hosts[0].pins[(TEA, MODEL)] = pin("m0/0", created_s=1.0)
    hosts[1].pins[(TEA, MODEL)] = pin("m1/0", generation=2, created_s=9.0)
    async with routed(tmp_path, *hosts) as router:
        await router.controller.stop()
        assert (await router.chat(session="tea")).headers["x-homeport-replica"] == "m1/0"


async def test_without_a_controller_a_new_session_gets_one_home_for_all_its_turns(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    async with routed(tmp_path, *hosts) as router:
        await router.controller.stop()
        answers = await asyncio.gather(*(router.chat(session="tea") for _ in range(6)))
        assert len({answer.headers["x-homeport-replica"] for answer in answers}) == 1
        assert sum(len(host.pins) for host in hosts) == 1


async def test_without_a_controller_a_host_that_is_away_may_be_the_sessions_home(tmp_path: Path) -> None:
    away, well = AnswersHost("m0/0"), AnswersHost("m1/0")
    away.pins[(TEA, MODEL)] = pin("m0/0", generation=2)
    async with routed(tmp_path, away, well) as router:
        await router.controller.stop()
        await away.stop()
        router.parts.fleet.saw_refused("m0/0")
        turn = asyncio.create_task(router.chat(session="tea"))
        await router.until(lambda: bool(router.parts.relay.turns))
        await away.start()
        assert (await turn).headers["x-homeport-replica"] == "m0/0"
        assert well.bodies == []


async def test_without_a_controller_a_host_that_stays_away_is_not_waited_for_long(tmp_path: Path) -> None:
    away, well = AnswersHost("m0/0"), AnswersHost("m1/0")
    async with routed(tmp_path, away, well, queue_s=2.0) as router:
        await router.controller.stop()
        await away.stop()
        router.parts.fleet.saw_refused("m0/0")
        answer = await router.chat(session="tea")
        assert (answer.status, answer.headers["x-homeport-replica"]) == (200, "m1/0")
        assert int(well.seen[0]["x-homeport-queue-left-ms"]) <= 1000


async def test_a_router_that_is_there_before_the_controller_gives_no_session_a_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a reboot of the head, whose own hosts come last: it has their names on disk."""
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    away, well = AnswersHost("m0/0"), AnswersHost("m1/0")
    away.pins[(TEA, MODEL)] = pin("m0/0", generation=2)
    well.pins[(COFFEE, MODEL)] = pin("m1/0", session=COFFEE)
    async with routed(tmp_path, away, well) as router:
        control_port = router.controller.port
    async with running(well), running_router(tmp_path, control_port) as router:
        await router.ready("m1/0")
        waits = asyncio.create_task(router.chat(session="tea"))
        known = await router.chat(session="coffee")
        assert known.headers["x-homeport-replica"] == "m1/0", "whose home can be asked waits for nobody"
        assert not (await asyncio.wait({waits}, timeout=1.0))[0], "it counts as new"
        async with running(away):
            answer = await waits
        assert (answer.headers["x-homeport-replica"], answer.headers["x-homeport-pin"]) == ("m0/0", "kept")
        assert len(well.bodies) == 1


def known_file(path: Path, *pins: dict[str, Any], ended: dict[str, Any] | None = None) -> Path:
    """What a controller wrote down."""
    said = [Said(str(each["replica"]), (each["session"], MODEL), pin_from_json(each)) for each in pins]
    if ended is not None:
        said = [replace(each, ended=pin_from_json(ended)) for each in said]
    KnownFile(path).write(Batch(said))
    return path


async def test_where_no_controller_answers_what_it_wrote_down_keeps_a_session_at_its_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the controller takes to come."""
    monkeypatch.setattr(patience, "UNHEARD_PATIENCE_S", 0.0)
    away, well = AnswersHost("m0/0"), AnswersHost("m1/0")
    away.pins[(TEA, MODEL)] = pin("m0/0")
    async with routed(tmp_path, away, well) as router:
        control_port = router.controller.port
    file = known_file(tmp_path / "known.sqlite", pin("m0/0"), pin("m1/0", session=COFFEE))
    async with running(well), running_router(tmp_path, control_port, known_file=file) as router:
        await router.ready("m1/0")
        waits = asyncio.create_task(router.chat(session="tea"))
        answer = await router.chat(session="coffee")
        assert (answer.headers["x-homeport-replica"], answer.headers["x-homeport-pin"]) == ("m1/0", "new")
        assert not (await asyncio.wait({waits}, timeout=1.0))[0], "it counts as new"
        async with running(away):
            answer = await waits
        assert (answer.headers["x-homeport-replica"], answer.headers["x-homeport-pin"]) == ("m0/0", "kept")


@pytest.mark.parametrize("ended", [None, pin("m0/0", generation=2, created_s=2.0)])
async def test_what_a_controller_wrote_down_is_not_believed_against_a_host_or_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: dict[str, Any] | None
) -> None:
    monkeypatch.setattr(patience, "UNHEARD_PATIENCE_S", 0.0)
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        control_port = router.controller.port
    file = known_file(tmp_path / "known.sqlite", pin("m0/0"), ended=ended)
    there = hosts if ended is None else hosts[1:]
    async with running(*there), running_router(tmp_path, control_port, known_file=file) as router:
        await router.ready(*(host.replica for host in there))
        answer = await router.chat(session="tea")
        assert (answer.status, answer.headers["x-homeport-pin"]) == (200, "new")


# the host knows better: 421


async def test_a_taken_place_is_claimed_anew_elsewhere(tmp_path: Path) -> None:
    hosts = [Refuses421Host(f"m{number}/0", reason="taken", times=0) for number in range(2)]
    async with routed(tmp_path, *hosts) as router:
        probe = await router.chat(session="tea")
    home = probe.headers["x-homeport-replica"]
    hosts = [Refuses421Host(host.replica, reason="taken", times=int(host.replica == home)) for host in hosts]
    async with routed(tmp_path / "again", *hosts) as router:
        answer = await router.chat(session="tea")
        assert answer.status == 200
        assert answer.headers["x-homeport-replica"] != home
        assert answer.headers["x-homeport-pin"] == "new"
        (refuser,) = (host for host in hosts if host.replica == home)
        assert refuser.seen[0]["x-homeport-claim"] == "free"


async def test_when_all_places_are_taken_the_session_stands_in_line_at_one(tmp_path: Path) -> None:
    host = Refuses421Host("den/0", reason="taken")
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea")
        assert answer.status == 200
        assert [seen.get("x-homeport-claim") for seen in host.seen] == ["free", None]
        assert host.seen[1]["x-homeport-pin"] == "new"


async def test_a_restarted_host_is_asked_anew_with_its_new_incarnation(tmp_path: Path) -> None:
    host = AnswersHost("den/0", incarnation=1)
    async with routed(tmp_path, host) as router:
        await router.chat(session="tea")
        host.incarnation = 2
        answer = await router.chat(session="tea")
        assert answer.status == 200
        assert host.seen[-1]["x-homeport-incarnation"] == "2"
        assert answer.headers["x-homeport-pin"] == "kept"


async def test_a_pin_of_a_higher_generation_is_followed(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        old = (await router.chat(session="tea")).headers["x-homeport-replica"]
        new = "m1/0" if old == "m0/0" else "m0/0"
        (left,) = (host for host in hosts if host.replica == old)
        left.post_chat = Refuses421Host(  # type: ignore[method-assign]
            old, reason="generation", knows=pin(new, generation=3)
        ).post_chat
        await left.stop()
        await left.start()
        (moved_to,) = (host for host in hosts if host.replica == new)
        moved_to.pins[TEA, MODEL] = pin(new, generation=3)
        answer = await router.chat(session="tea")
        assert answer.headers["x-homeport-replica"] == new
        assert moved_to.seen[-1]["x-homeport-generation"] == "3"


async def test_a_new_session_finds_a_home_however_many_places_were_taken_meanwhile(tmp_path: Path) -> None:
    taken = [Refuses421Host(f"m{number}/0", reason="taken") for number in range(6)]
    async with routed(tmp_path, *taken) as router:
        answer = await router.chat(session="tea")
        assert (answer.status, answer.headers["x-homeport-pin"]) == (200, "new")
        claims = [seen.get("x-homeport-claim") for host in taken for seen in host.seen]
        assert claims.count("free") == 6, "each is asked once whether it has a free place"


async def test_hosts_that_never_agree_end_in_503_after_three_more_tries(tmp_path: Path) -> None:
    host = Refuses421Host("den/0", reason="incarnation", times=100)
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (503, "host_unsettled")
        assert "Retry-After" in answer.headers
        assert standing(answer) == ("den", "den/0", "none"), "no host has written it down"
        assert len(host.seen) == 4
        assert router.count("host_unsettled", "den/0") == 1


# the host fails


async def test_an_error_of_the_host_passes_with_its_status_and_counts_by_its_code(tmp_path: Path) -> None:
    async with routed(tmp_path, FailsHost("den/0")) as router:
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (400, "context_length_exceeded")
        assert router.count("context_length_exceeded", "den/0") == 1


async def test_a_host_that_fails_without_an_error_of_ours_is_a_502(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    host.whole = None  # type: ignore[assignment]
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (502, "host_error")
        assert standing(answer) == ("den", "den/0", "none")
        assert "Retry-After" in answer.headers


async def test_a_host_that_refuses_the_clusters_token_is_not_blamed_on_the_client(tmp_path: Path) -> None:
    async with routed(tmp_path, FailsHost("den/0", status=401, code="invalid_token")) as router:
        answer = await router.chat()
        assert (answer.status, answer.code) == (502, "host_refused")


async def test_a_host_that_dies_in_mid_stream_ends_it_with_an_error_and_no_done(tmp_path: Path) -> None:
    host = DropsMidStreamHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea", stream=True)
        assert answer.body.startswith(chunk("Hel"))
        assert b"half an ev" not in answer.body, "half an event would break the client's parser"
        assert json.loads(answer.events[-1])["error"]["code"] == "host_lost"
        assert b"[DONE]" not in answer.body
        assert len(host.bodies) == 1, "nothing is tried again after the engine's first event"
        assert router.count("host_lost", "den/0") == 1


async def test_a_stream_that_the_host_ends_with_an_error_counts_by_its_code(tmp_path: Path) -> None:
    async with routed(tmp_path, BreaksDownHost("den/0")) as router:
        answer = await router.chat(stream=True)
        assert b"[DONE]" not in answer.body
        assert router.count("queue_timeout", "den/0") == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_host_lost_before_its_first_word_is_tried_again_at_home(tmp_path: Path, stream: bool) -> None:
    host, other = DropsBeforeHeadHost("den/0", times=2), DropsBeforeHeadHost("attic/0", times=2)
    async with routed(tmp_path, host, other) as router:
        answer = await router.chat(session="tea", stream=stream)
        assert answer.status == 200
        # Twice lost, once as one that may be written down there, and then as a new one.
        assert sorted([len(host.bodies), len(other.bodies)]) == [0, 4], "the home, and only the home"
        assert answer.headers["x-homeport-pin"] == "new"


async def test_a_turn_that_kills_its_host_is_not_tried_for_ever(tmp_path: Path) -> None:
    host = DropsBeforeHeadHost("den/0", times=100)
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (502, "host_lost")
        assert standing(answer) == ("den", "den/0", "none"), "no host has said that it is written down"
        assert "Retry-After" in answer.headers
        assert len(host.bodies) == 3


async def test_a_read_timeout_is_final(tmp_path: Path) -> None:
    host = HangsHost("den/0")
    async with routed(tmp_path, host, limits=RouterLimits(between_bytes_s=0.2)) as router:
        answer = await router.chat(session="tea", stream=True)
        assert (answer.status, answer.code) == (502, "host_lost")
        assert standing(answer) == ("den", "den/0", "none"), "no host has said that it is written down"
        assert len(host.bodies) == 1, "the host may be at work on it still"


async def test_a_stream_whose_first_token_does_not_come_in_time_ends_with_an_error(tmp_path: Path) -> None:
    host = OnlyCommentsHost("den/0")
    async with routed(tmp_path, host, limits=RouterLimits(first_token_s=0.3)) as router:
        answer = await router.chat(session="tea", stream=True)
        assert answer.status == 200
        assert json.loads(answer.events[-1])["error"]["code"] == "host_lost"
        assert b"[DONE]" not in answer.body
        assert len(host.bodies) == 1, "the host may be at work on it still"


async def test_a_whole_answer_takes_as_long_as_it_takes(tmp_path: Path) -> None:
    limits = RouterLimits(between_bytes_s=0.1, first_token_s=0.1)
    host = AnswersHost("den/0")
    whole = host.whole

    async def takes_long(request: Any, told: dict[str, str]) -> Any:
        await asyncio.sleep(0.5)
        return await whole(request, told)

    host.whole = takes_long  # type: ignore[method-assign]
    async with routed(tmp_path, host, limits=limits) as router:
        assert (await router.chat(session="tea")).status == 200


@pytest.mark.parametrize(
    "said", [b": waiting\n\n", b'data: {"choices":[],"prompt_progress":{"total":9}}\n\n']
)
async def test_what_comes_before_an_answer_is_no_first_word(tmp_path: Path, said: bytes) -> None:
    host = DropsMidStreamHost("den/0", first=said + b": wai")
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea", stream=True)
        assert answer.body == said + chunk("Hello") + chunk(" there") + DONE
        assert len(host.bodies) == 2
        assert router.count("ok", "den/0") == 1


async def test_a_whole_answer_is_never_cut_short_in_silence(tmp_path: Path) -> None:
    host = AnswersHost("den/0")

    async def half(request: Any, told: dict[str, str]) -> Any:
        response = aiohttp.web.StreamResponse(headers={**told, "content-length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        request.transport.close()
        return response

    host.whole = half  # type: ignore[method-assign]
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (502, "host_lost")


async def test_a_new_session_goes_elsewhere_when_the_connection_is_refused(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        await hosts[0].stop()
        for number in range(8):  # by rendezvous some of them would have gone to the one that is gone
            answer = await router.chat(session=f"s{number}")
            assert (answer.status, answer.headers["x-homeport-replica"]) == (200, "m1/0")


async def test_a_silent_hosts_turns_are_ended_when_it_is_lost(tmp_path: Path) -> None:
    host = HangsHost("den/0")
    async with routed(tmp_path, host, queue_s=1.0) as router:
        turn = asyncio.create_task(router.chat(session="tea"))
        await host.arrived.wait()
        await host.stop()
        router.parts.fleet.saw_refused("den/0")
        router.parts.relay.lost("den/0")
        answer = await asyncio.wait_for(turn, 10)
        assert (answer.status, answer.code) == (503, "machine_unavailable")


# waiting for a home


async def test_a_turn_waits_for_its_home_to_load_and_is_then_served(tmp_path: Path) -> None:
    host, other = AnswersHost("den/0"), AnswersHost("attic/0")
    async with routed(tmp_path, host, other) as router:
        home = (await router.chat(session="tea")).headers["x-homeport-replica"]
        (at,) = (each for each in (host, other) if each.replica == home)
        at.state = "loading"
        await router.parts.fleet.refresh(home)
        turn = asyncio.create_task(router.chat(session="tea"))
        await router.parts.fleet.changed(5)
        assert not turn.done()
        at.state = "ready"
        answer = await asyncio.wait_for(turn, 10)
        assert (answer.status, answer.headers["x-homeport-replica"]) == (200, home)
        assert answer.headers["x-homeport-pin"] == "kept"
        assert int(at.seen[-1]["x-homeport-queue-left-ms"]) < 60_000, "what it waited here is gone"


async def test_a_home_that_stays_away_is_503_with_retry_after_and_its_name(tmp_path: Path) -> None:
    host, other = AnswersHost("den/0"), AnswersHost("attic/0")
    async with routed(tmp_path, host, other, queue_s=1.0) as router:
        home = (await router.chat(session="tea")).headers["x-homeport-replica"]
        await (host if home == "den/0" else other).stop()
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (503, "machine_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        assert home in answer.json()["error"]["message"]
        assert standing(answer) == (home.partition("/")[0], home, "kept")
        assert router.count("machine_unavailable", home) == 1


async def test_a_session_whose_home_the_config_took_away_is_told_so_at_once(tmp_path: Path) -> None:
    host, other = AnswersHost("den/0"), AnswersHost("den/1", running=1)
    async with routed(tmp_path, host, other) as router:
        assert (await router.chat(session="tea")).headers["x-homeport-replica"] == "den/0"
        router.controller.hosts.remove(host)
        await host.stop()
        await router.until(lambda: "den/0" not in router.parts.fleet.snapshot().replicas)
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (410, "home_removed")
        assert answer.headers["x-should-retry"] == "false"
        assert other.bodies == []


async def test_a_stream_sees_life_after_five_seconds_and_then_its_answer(tmp_path: Path) -> None:
    host = AnswersHost("den/0", state="loading")
    async with routed(tmp_path, host) as router:
        async with router.client.post(
            f"{router.url}/v1/chat/completions",
            json={"model": MODEL, "messages": [], "stream": True},
            headers={"x-session-id": "tea"},
        ) as response:
            began = time.monotonic()
            assert response.status == 200
            assert (await response.content.readline()).startswith(b": waiting for")
            assert time.monotonic() - began < 2, "head and comment come together"
            host.state = "ready"
            rest = await response.read()
        assert rest == b"\n" + chunk("Hello") + chunk(" there") + DONE


async def test_a_stream_whose_home_stays_away_ends_with_an_error_event(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host, queue_s=6.0) as router:
        await router.chat(session="tea")
        await host.stop()
        answer = await router.chat(session="tea", stream=True)
        assert answer.status == 200
        assert answer.body.startswith(b": waiting for den/0")
        assert answer.headers["x-homeport-replica"] == "den/0"
        assert json.loads(answer.events[-1])["error"]["code"] == "machine_unavailable"
        assert b"[DONE]" not in answer.body


async def test_a_host_that_says_503_while_it_loads_is_waited_for(tmp_path: Path) -> None:
    host = FailsHost("den/0", status=503, code="loading")
    async with routed(tmp_path, host, queue_s=1.0) as router:
        host.state = "loading"
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (503, "machine_unavailable")
        assert len(host.bodies) <= 1


async def test_a_machine_that_never_reported_is_waited_for(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    controller = Controller([host])
    async with (
        running(host, controller),
        running_router(tmp_path, controller.port, queue_s=1.0) as router,
    ):
        await router.ready("den/0")
        host.pins[(TEA, MODEL)] = pin("shed/0")
        await controller.stop()
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (503, "machine_unavailable")
        assert "shed" in answer.json()["error"]["message"]
        assert host.bodies == []


async def test_a_host_whose_packets_are_dropped_slows_nobody_else(tmp_path: Path) -> None:
    silent, well = AnswersHost("m0/0"), AnswersHost("m1/0")
    async with routed(tmp_path, silent, well, queue_s=1.0) as router:
        by_home: dict[str, str] = {}
        for number in range(8):
            answer = await router.chat(session=f"s{number}")
            by_home[answer.headers["x-homeport-replica"]] = f"s{number}"
        await silent.stop()
        async with running(DropsPackets(port=silent.port)):
            known = router.parts.fleet.known["m0/0"]
            known.refused = False
            stuck = asyncio.create_task(router.chat(session=by_home["m0/0"]))
            began = time.monotonic()
            assert (await router.chat(session=by_home["m1/0"])).status == 200
            assert (await router.get("/v1/models")).status == 200
            assert time.monotonic() - began < 1
            assert (await asyncio.wait_for(stuck, 20)).code == "machine_unavailable"


@pytest.mark.parametrize(("generation", "created_s"), [(2, 100.0), (1, 0.5)])
async def test_a_waiting_turn_follows_its_session_to_a_new_home(
    tmp_path: Path, generation: int, created_s: float
) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        old = (await router.chat(session="tea")).headers["x-homeport-replica"]
        (left,) = (host for host in hosts if host.replica == old)
        (new,) = (host for host in hosts if host.replica != old)
        await left.stop()
        turn = asyncio.create_task(router.chat(session="tea"))
        await router.parts.fleet.changed(3)
        index = router.controller.index
        moved = index.claims.pop((TEA, MODEL)).pin
        moved = replace(moved, replica=new.replica, generation=generation, created_s=created_s)
        index.pins[TEA, MODEL] = moved
        new.pins[TEA, MODEL] = moved.to_json()
        answer = await asyncio.wait_for(turn, 15)
        assert answer.headers["x-homeport-replica"] == new.replica
        assert new.seen[-1]["x-homeport-generation"] == str(generation)


async def test_a_router_that_remembers_few_homes_asks_again_and_moves_nobody(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    async with routed(tmp_path, *hosts) as router:
        homes = router.parts.relay.homes
        homes._homes = HomeMemory(2)
        names = [f"s{number}" for number in range(6)]
        first = [(await router.chat(session=name)).headers["x-homeport-replica"] for name in names]
        again = [(await router.chat(session=name)).headers["x-homeport-replica"] for name in names]
        assert first == again
        assert len(homes._homes) == 2


# the client goes


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_the_hosts_turn_at_once(tmp_path: Path, stream: bool) -> None:
    host: AnswersHost = EndlessHost("den/0") if stream else HangsHost("den/0")
    async with routed(tmp_path, host) as router:
        body = {"model": MODEL, "messages": [], "stream": stream}
        url = f"{router.url}/v1/chat/completions"
        if stream:
            async with router.client.post(url, json=body) as response:
                await response.content.readline()
                response.close()
        else:
            turn = asyncio.create_task(router.client.post(url, json=body))
            await host.arrived.wait()
            turn.cancel()
        await asyncio.wait_for(host.left.wait(), 5)
        async with asyncio.timeout(5):
            while router.parts.relay.turns:
                await router.parts.fleet.changed(0.05)
        assert router.count("client_gone", "den/0") == 1
        assert router.parts.fleet.snapshot().open_turns == {}


async def test_a_client_that_has_all_of_its_stream_and_closes_counts_as_served(tmp_path: Path) -> None:
    host = LingersHost("den/0")
    async with routed(tmp_path, host) as router:
        body = {"model": MODEL, "messages": [], "stream": True}
        async with router.client.post(f"{router.url}/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"[DONE]\n\n")
            response.close()
        await asyncio.wait_for(host.left.wait(), 5)
        async with asyncio.timeout(5):
            while router.parts.relay.turns:
                await router.parts.fleet.changed(0.05)
        assert (router.count("ok", "den/0"), router.count("client_gone", "den/0")) == (1, 0)


async def test_a_client_that_leaves_while_its_home_is_away_leaves_nothing_behind(tmp_path: Path) -> None:
    host = AnswersHost("den/0", state="loading")
    async with routed(tmp_path, host) as router:
        turn = asyncio.create_task(router.chat(session="tea"))
        async with asyncio.timeout(5):
            while not router.parts.relay.turns:
                await router.parts.fleet.changed(0.05)
            turn.cancel()
            while router.parts.relay.turns:
                await router.parts.fleet.changed(0.05)
        assert host.bodies == []


async def test_a_slow_reader_holds_back_its_host(tmp_path: Path) -> None:
    host = AnswersHost("den/0", words=("x" * 65_536,) * 400)
    sent = 0

    async def write(request: Any, response: Any) -> None:
        nonlocal sent
        for word in host.words:
            await response.write(chunk(word))
            sent += 1
        await response.write(DONE)

    host.write = write  # type: ignore[method-assign]
    async with routed(tmp_path, host) as router:
        reader, writer = await asyncio.open_connection(
            *router.url.removeprefix("http://").split(":"), limit=1
        )
        body = json.dumps({"model": MODEL, "messages": [], "stream": True}).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        await host.arrived.wait()
        before = -1
        while sent != before:  # until it comes to a standstill
            before = sent
            await router.parts.fleet.changed(1.5)
        assert sent < len(host.words), "26 MB do not fit into any buffer on the way"
        writer.close()
        del reader


async def test_stopping_ends_open_streams_with_an_error_that_says_so(tmp_path: Path) -> None:
    host = EndlessHost("den/0")
    async with routed(tmp_path, host) as router:
        turn = asyncio.create_task(router.chat(stream=True))
        await host.arrived.wait()
        router.server.stop()
        answer = await asyncio.wait_for(turn, 10)
        assert json.loads(answer.events[-1])["error"]["code"] == "router_stopping"
        assert b"[DONE]" not in answer.body
        await asyncio.wait_for(host.left.wait(), 5)

"""Which session a turn is of and where that has its home: paths, zones, families, guesses, lost machines."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from router import api_client
from router.decision import Ask
from router.identity import digest, key_scope, public_id, scope_of
from router.keys import Key
from serving.model import WhenLost
from serving.pin_index import Candidate
from serving.pins import Pin, pin_from_json
from tests.standins import (
    MODEL,
    AnswersHost,
    Controller,
    DropsPackets,
    FailsBeforePinningHost,
    Refuses421Host,
    Router,
    routed,
    running,
    running_router,
)

KEY = b"a digest key"
TEA = digest("local", "", "tea")


def talk(*words: str) -> list[dict[str, str]]:
    """A chat: the user's words and the answers to them, in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": said} for at, said in enumerate(words)]


async def lose(router: Router, host: AnswersHost) -> None:
    """Nothing was heard of that host for longer than a home is waited for."""
    await host.stop()
    fleet = router.parts.fleet
    fleet.saw_refused(host.replica)
    heard_at = fleet.known[host.replica].heard_at
    assert heard_at is not None
    fleet.known[host.replica].heard_at = heard_at - 40.0
    fleet.saw_refused(host.replica)


async def at_home(router: Router, *hosts: AnswersHost, session: str = "tea") -> AnswersHost:
    """The host at which the session has its home, once it has written that down and the controller knows."""
    replica = (await router.chat(session=session)).headers["x-homeport-replica"]
    (host,) = (each for each in hosts if each.replica == replica)
    router.controller.index.confirm([pin_from_json(pin) for pin in host.pins.values()], replica)
    return host


# paths and places


@pytest.mark.parametrize("path", ["/s/tea/v1/chat/completions", "/s/t%65a/v1/chat/completions"])
async def test_a_path_names_the_session(tmp_path: Path, path: str) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.post(path, messages=talk("Hi"))
        assert (answer.status, answer.headers["x-homeport-source"]) == (200, "path")
        assert answer.headers["x-homeport-session"] == public_id(KEY, TEA)
        assert (await router.chat(session="tea")).headers["x-homeport-pin"] == "kept"


async def test_the_command_line_names_a_session_in_any_script(tmp_path: Path) -> None:
    body = {"model": MODEL, "stream": True, "messages": talk("Hi")}

    async with routed(tmp_path, AnswersHost("den/0")) as router:

        def said(name: str) -> int:
            return len(list(api_client.stream_chat(router.url, body, {"x-session-id": name}, 5.0)))

        names = ("tea", "thé", "お茶")
        assert [await asyncio.to_thread(said, name) for name in names] == [2, 2, 2]
        listed = (await router.get("/api/sessions")).json()["sessions"]
        assert {each["id"] for each in listed} == {
            public_id(KEY, digest("local", "", name)) for name in names
        }


async def test_a_name_in_a_path_may_hold_a_slash(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.post("/s/a%2Fb/v1/chat/completions", messages=talk("Hi"))
        assert answer.headers["x-homeport-session"] == public_id(KEY, digest("local", "", "a/b"))


@pytest.mark.parametrize("path", ["/s/tea/m/attic/v1/chat/completions", "/m/attic/s/tea/v1/chat/completions"])
async def test_session_and_machine_stand_in_either_order(tmp_path: Path, path: str) -> None:
    async with routed(tmp_path, AnswersHost("den/0"), AnswersHost("attic/0")) as router:
        answer = await router.post(path, messages=talk("Hi"))
        assert answer.headers["x-homeport-replica"] == "attic/0"
        session = digest("local", scope_of("attic", None), "tea")
        assert answer.headers["x-homeport-session"] == public_id(KEY, session)


async def test_a_machine_may_be_named_behind_the_model_and_its_host_gets_the_plain_name(
    tmp_path: Path,
) -> None:
    hosts = [AnswersHost("den/0"), AnswersHost("attic/0")]
    async with routed(tmp_path, *hosts) as router:
        for number in range(4):
            answer = await router.chat(session=f"s{number}", model=f"{MODEL}@attic", seed=1e3)
            assert (answer.status, answer.headers["x-homeport-replica"]) == (200, "attic/0")
        assert hosts[0].bodies == []
        assert json.loads(hosts[1].bodies[0])["model"] == MODEL
        assert b'"seed":1000.0' in hosts[1].bodies[0], "all else keeps its bytes"


async def test_two_different_machines_in_one_request_are_a_conflict(tmp_path: Path) -> None:
    hosts = [AnswersHost("den/0"), AnswersHost("attic/0")]
    async with routed(tmp_path, *hosts) as router:
        path = "/m/den/v1/chat/completions"
        answer = await router.post(path, messages=talk("Hi"), model=f"{MODEL}@attic")
        assert (answer.status, answer.code) == (400, "machine_conflict")
        answer = await router.post(path, messages=talk("Hi"), model=f"{MODEL}@den")
        assert (answer.status, answer.headers["x-homeport-replica"]) == (200, "den/0")


async def test_an_unknown_machine_is_404_with_the_known_names(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.post("/m/shed/v1/chat/completions", messages=talk("Hi"))
        assert (answer.status, answer.code) == (404, "machine_not_found")
        assert "den" in answer.json()["error"]["message"]
        assert (await router.get("/m/shed/v1/models")).code == "machine_not_found"
        assert [each["id"] for each in (await router.get("/m/den/v1/models")).json()["data"]] == [MODEL]
        assert (await router.get("/s/tea/v1/models")).status == 200
        assert (await router.get("/s/tea/nowhere")).code == "not_found"


async def test_embeddings_run_on_the_named_machine_too(tmp_path: Path) -> None:
    hosts = [AnswersHost("den/0"), AnswersHost("attic/0")]
    async with routed(tmp_path, *hosts) as router:
        for _ in range(4):
            answer = await router.post("/m/attic/v1/embeddings", input="Once")
            assert (answer.headers["x-homeport-replica"], answer.headers["x-homeport-pin"]) == (
                "attic/0",
                "none",
            )


async def test_a_zone_keeps_a_session_there_and_is_part_of_its_key(tmp_path: Path) -> None:
    hosts = [AnswersHost("den/0", zone="home"), AnswersHost("lab/0", zone="work")]
    async with routed(tmp_path, *hosts) as router:
        homes = {}
        for zone in ("home", "work"):
            answer = await router.chat(session="tea", headers={"x-homeport-zone": zone})
            homes[answer.headers["x-homeport-replica"]] = answer.headers["x-homeport-session"]
        assert list(homes) == ["den/0", "lab/0"]
        assert len(set(homes.values())) == 2
        answer = await router.chat(session="tea", headers={"x-homeport-zone": "moon"})
        assert (answer.status, answer.code) == (404, "zone_not_found")


# public ids


async def test_a_public_id_that_is_sent_back_means_that_session(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    async with routed(tmp_path, *hosts) as router:
        first = await router.chat(session="tea")
        public = first.headers["x-homeport-session"]
        for path, headers in (
            ("/v1/chat/completions", {"x-homeport-session": public}),
            (f"/s/{public}/v1/chat/completions", {}),
        ):
            answer = await router.post(path, headers=headers, messages=talk("Hi"))
            assert answer.headers["x-homeport-session"] == public
            assert answer.headers["x-homeport-replica"] == first.headers["x-homeport-replica"]
            assert answer.headers["x-homeport-pin"] == "kept"
        await router.controller.stop()
        answer = await router.chat(headers={"x-homeport-session": public})
        assert answer.headers["x-homeport-pin"] == "kept", "the hosts know it as well"


async def test_a_public_id_of_another_key_or_of_nobody_is_404(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        public = (await router.chat(session="tea")).headers["x-homeport-session"]
        host.pins[TEA, MODEL]["scope"] = "ee" * 32
        for sent in (public, "hp_" + "0" * 24):
            answer = await router.chat(headers={"x-homeport-session": sent})
            assert (answer.status, answer.code) == (404, "session_not_found")
        assert len(host.bodies) == 1


# families


async def test_a_child_goes_to_its_parents_home_although_others_are_free(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        home.residents = [{"session": TEA, "quiet_s": 1.0, "busy": False, "tokens": 9}]
        await router.parts.fleet.refresh(home.replica)
        for number, parent in enumerate(("tea", public_id(KEY, TEA))):
            headers = {"x-homeport-parent": parent}
            answer = await router.chat(session=f"child-{number}", headers=headers)
            assert answer.headers["x-homeport-replica"] == home.replica
            assert home.seen[-1]["x-homeport-parent-key"] == TEA
            assert "x-homeport-claim" not in home.seen[-1]


async def test_a_child_whose_parent_nobody_knows_is_a_session_like_any_other(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.chat(session="child", headers={"x-parent-session-id": "tea"})
        assert (answer.status, answer.headers["x-homeport-pin"]) == (200, "new")
        assert host.seen[0]["x-homeport-parent-key"] == TEA


async def test_a_child_goes_to_the_later_home_of_its_parent_whoever_knows_of_it(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        (pin,) = map(pin_from_json, home.pins.values())
        later, last = (host.replica for host in hosts if host is not home)
        router.parts.relay.homes.told(replace(pin, replica=later, generation=2, created_s=pin.created_s + 1))
        child = await router.chat(session="one", headers={"x-homeport-parent": "tea"})
        assert child.headers["x-homeport-replica"] == later, "the controller has not read it yet"
        anew = replace(pin, replica=last, generation=1, created_s=pin.created_s + 2)
        router.controller.index.remove(pin.session, pin.model)
        router.controller.index.confirm([anew], last)
        child = await router.chat(session="two", headers={"x-homeport-parent": "tea"})
        assert child.headers["x-homeport-replica"] == last, "it was ended and has begun anew"


async def test_a_child_of_a_lost_home_goes_where_its_parent_goes(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(4)]
    async with routed(tmp_path, *hosts, when_lost="move") as router:
        await lose(router, await at_home(router, *hosts))
        child = await router.chat(session="child", headers={"x-homeport-parent": "tea"})
        parent = await router.chat(session="tea")
        assert child.headers["x-homeport-replica"] == parent.headers["x-homeport-replica"]
        assert parent.headers["x-homeport-pin"] == "moved"


# guesses


async def test_a_nameless_conversation_finds_its_home_again(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(3)]
    async with routed(tmp_path, *hosts) as router:
        first = await router.chat(messages=talk("Hi"))
        assert first.headers["x-homeport-source"] == "guess"
        assert first.headers["x-homeport-pin"] == "new"
        again = await router.chat(messages=talk("Hi", "Hello there", "And now?"))
        for name in ("session", "replica"):
            assert again.headers[f"x-homeport-{name}"] == first.headers[f"x-homeport-{name}"]
        assert again.headers["x-homeport-pin"] == "kept"
        (home,) = (host for host in hosts if host.bodies)
        assert [seen["x-homeport-rank"] for seen in home.seen] == ["guessed", "guessed"]
        assert "x-homeport-continues" not in home.seen[0]
        assert home.seen[1]["x-homeport-continues"] == home.seen[0]["x-homeport-history"]


async def test_a_guess_that_went_another_way_is_a_session_of_its_own(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0"), AnswersHost("attic/0")) as router:
        first = await router.chat(messages=talk("Hi"))
        await router.chat(messages=talk("Hi", "Hello there", "And now?"))
        other = await router.chat(messages=talk("Hi", "Something else", "Why?"))
        assert other.headers["x-homeport-session"] != first.headers["x-homeport-session"]
        assert other.headers["x-homeport-pin"] == "new"


async def test_of_two_that_it_may_continue_the_longer_one_is_found(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        finder = router.parts.relay.addressing._finder
        histories = [f"{number:064x}" for number in range(3)]
        for at, host in enumerate(hosts):
            key = (f"{at:x}" * 64, MODEL)
            host.pins[key] = {
                "session": key[0],
                "model": MODEL,
                "replica": host.replica,
                "generation": 1,
                "created_s": 1.0,
                "scope": key_scope(),
                "used_s": 100.0 - at,
            }
            host.histories[histories[2 - at]] = key
        ask = Ask(MODEL, None, "r")
        found = await finder.by_history(histories, ask)
        assert found is not None
        assert found.pin.replica == "m1/0", "the other one was used later, and has less in common"
        assert await finder.by_history(histories, structs.replace(ask, key=Key("anna"))) is None


async def test_a_public_id_works_before_the_controller_has_read_the_journal(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        public = (await router.chat(session="tea")).headers["x-homeport-session"]
        router.controller.hosts = []
        again = await router.chat(headers={"x-homeport-session": public})
        assert again.headers["x-homeport-pin"] == "kept"


async def test_a_host_that_says_parted_gets_a_session_of_its_own(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        first = await router.chat(messages=talk("Hi"))
        # Between the router's question and its turn the session went on.
        real, host.parts = host.parts, lambda headers: len(host.seen) == 2  # type: ignore[method-assign]
        again = await router.chat(messages=talk("Hi"))
        host.parts = real  # type: ignore[method-assign]
        assert (again.status, again.headers["x-homeport-pin"]) == (200, "new")
        assert again.headers["x-homeport-session"] != first.headers["x-homeport-session"]
        assert host.seen[2]["x-homeport-session-key"] != host.seen[1]["x-homeport-session-key"]
        assert list(again.headers.keys()).count("x-homeport-session") == 1


# its machine is lost


async def test_a_lost_home_is_503_at_once_under_wait(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        await lose(router, home)
        began = time.monotonic()
        answer = await router.chat(session="tea")
        assert time.monotonic() - began < 2
        assert (answer.status, answer.code) == (503, "machine_lost")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-homeport-replica"] == home.replica


@pytest.mark.parametrize(("policy", "asked"), [("fail", None), ("move", "fail")])
async def test_a_lost_home_is_410_under_fail(tmp_path: Path, policy: WhenLost, asked: str | None) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts, when_lost=policy) as router:
        await lose(router, await at_home(router, *hosts))
        headers = {} if asked is None else {"x-homeport-when-lost": asked}
        answer = await router.chat(session="tea", headers=headers)
        assert (answer.status, answer.code) == (410, "machine_lost")
        assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("policy", "asked"), [("move", None), ("wait", "move")])
async def test_a_lost_home_is_left_for_another_under_move(
    tmp_path: Path, policy: WhenLost, asked: str | None
) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts, when_lost=policy) as router:
        home = await at_home(router, *hosts)
        await lose(router, home)
        headers = {} if asked is None else {"x-homeport-when-lost": asked}
        answer = await router.chat(session="tea", headers=headers)
        (other,) = (host for host in hosts if host is not home)
        assert (answer.status, answer.headers["x-homeport-pin"]) == (200, "moved")
        assert answer.headers["x-homeport-replica"] == other.replica
        assert other.seen[-1]["x-homeport-generation"] == "2"
        again = await router.chat(session="tea", headers=headers)
        assert (again.headers["x-homeport-replica"], again.headers["x-homeport-pin"]) == (
            other.replica,
            "kept",
        )


@pytest.mark.parametrize("first", ["tea", "leaf"])
async def test_a_family_moves_to_one_home(tmp_path: Path, first: str) -> None:
    home, *others = (
        AnswersHost("m0/0"),
        *(AnswersHost(f"m{number}/0", state="loading") for number in (1, 2, 3)),
    )
    async with routed(tmp_path, home, *others, when_lost="move") as router:
        headers = {"tea": {}, "leaf": {"x-parent-session-id": "tea"}}
        for name in ("tea", "leaf"):
            await router.chat(session=name, headers=headers[name])
        router.controller.index.confirm([pin_from_json(pin) for pin in home.pins.values()], "m0/0")
        for host in others:
            host.state = "ready"
        await router.ready(*(host.replica for host in others))
        await lose(router, home)
        second = "leaf" if first == "tea" else "tea"
        answers = [await router.chat(session=name, headers=headers[name]) for name in (first, second)]
        assert {answer.headers["x-homeport-pin"] for answer in answers} == {"moved"}
        assert len({answer.headers["x-homeport-replica"] for answer in answers}) == 1


async def test_two_turns_of_a_lost_session_move_to_one_home(tmp_path: Path) -> None:
    hosts = [AnswersHost(f"m{number}/0") for number in range(4)]
    async with routed(tmp_path, *hosts, when_lost="move") as router:
        await lose(router, await at_home(router, *hosts))
        answers = await asyncio.gather(*(router.chat(session="tea") for _ in range(6)))
        assert len({answer.headers["x-homeport-replica"] for answer in answers}) == 1


async def test_a_stream_that_may_move_says_whose_return_it_waits_for_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.turn.HEAD_AFTER_S", 0.1)
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts, when_lost="move", queue_s=1.0) as router:
        home = await at_home(router, *hosts)
        await lose(router, home)
        router.controller.reads_journals = True
        answer = await router.chat(session="tea", stream=True)
        assert (answer.status, answer.headers.get("x-homeport-replica")) == (200, home.replica)
        assert answer.headers["x-homeport-pin"] == "kept"
        assert answer.headers["x-homeport-session"] == public_id(KEY, TEA)
        assert answer.headers["x-homeport-source"] == "header"


async def test_nobody_moves_out_of_its_zone(tmp_path: Path) -> None:
    hosts = [AnswersHost("den/0", zone="home"), AnswersHost("lab/0", zone="work")]
    async with routed(tmp_path, *hosts, when_lost="move") as router:
        await lose(router, await at_home(router, *hosts))
        assert (await router.chat(session="tea")).code == "machine_lost"


@pytest.mark.parametrize("gone", [False, True])
async def test_a_new_home_that_is_taken_or_gone_is_given_up_within_the_zone_only(
    tmp_path: Path, gone: bool
) -> None:
    home = AnswersHost("den/0", zone="home")
    near = Refuses421Host("attic/0", zone="home", reason="taken", state="loading")
    far = AnswersHost("lab/0", zone="work", state="loading")
    async with routed(tmp_path, home, near, far, when_lost="move", queue_s=2.0) as router:
        await at_home(router, home)
        near.state = far.state = "ready"
        await router.ready("attic/0", "lab/0")
        await lose(router, home)
        if gone:
            await near.stop()
        answer = await router.chat(session="tea")
        assert not far.seen
        assert answer.headers.get("x-homeport-replica") == (None if gone else "attic/0"), "a claim is no home"
        assert answer.status == (503 if gone else 200)


async def test_a_home_that_is_promised_to_another_routers_turn_is_waited_for(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts, queue_s=2.0) as router:
        index = router.controller.index
        promised, _ = index.claim(TEA, MODEL, [Candidate("m0/0", 1)], frozenset(), 100.0, router="another")
        router.parts.fleet.saw_refused("m0/0")
        await hosts[0].stop()
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code, answer.headers["x-homeport-replica"]) == (
            503,
            "machine_unavailable",
            "m0/0",
        )
        assert answer.headers["x-homeport-pin"] == "none", "no host has said that it is written down"
        assert (index.get(TEA, MODEL), hosts[1].bodies) == (promised, [])


async def test_nobody_goes_unclaimed_to_a_replica_that_came_to_serve_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = AnswersHost("den/0", state="loading")
    async with routed(tmp_path, host) as router:
        await router.until(lambda: "den/0" in router.parts.fleet.snapshot().replicas)

        async def indexed_pin(*_asked: object, **_more: object) -> None:
            host.state = "ready"
            await router.parts.fleet.refresh("den/0")

        monkeypatch.setattr(router.parts.relay.homes._peers, "indexed_pin", indexed_pin)
        assert (await router.chat(session="tea")).headers["x-homeport-pin"] == "new"
        assert [claim["session"] for claim in router.controller.claims] == [TEA]


async def test_a_claim_is_asked_for_again_unless_a_turn_is_on_its_way(tmp_path: Path) -> None:
    hosts = [FailsBeforePinningHost("m0/0"), FailsBeforePinningHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        for turn in range(2):
            assert (await router.chat(session="tea")).code == "context_length_exceeded"
            assert len(router.controller.claims) == turn + 1
            assert router.controller.claims[turn]["router"]


async def test_the_last_word_on_a_home_is_its_hosts(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        (other,) = (host for host in hosts if host is not home)
        homes = router.parts.relay.homes
        twin = Pin(TEA, MODEL, other.replica, 1, created_s=time.time() + 60.0)
        known = homes.told(twin).pin
        assert (known.replica, known.generation) == (home.replica, 1), "the older one holds"
        assert homes.corrected(twin, other.replica).pin == known
        assert homes.corrected(twin, home.replica).pin == twin


async def test_a_session_that_its_home_does_not_know_begins_anew(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        pin = router.controller.index.get(TEA, MODEL)
        home.pins.clear()
        answer = await router.chat(session="tea")
        assert (answer.status, answer.headers["x-homeport-pin"]) == (200, "new")
        assert router.controller.disowned[-1] == pin


async def test_nothing_is_called_kept_of_which_the_last_word_is_unknown(tmp_path: Path) -> None:
    host = Refuses421Host("den/0", reason="unknown", times=100)
    async with routed(tmp_path, host) as router:
        router.controller.index.confirm([Pin(TEA, MODEL, "den/0", 1, 1.0)], "den/0")
        answer = await router.chat(session="tea")
        assert (answer.status, answer.code) == (503, "host_unsettled")
        assert answer.headers["x-homeport-pin"] == "none"


async def test_who_names_a_lost_machine_waits_for_it(tmp_path: Path) -> None:
    hosts = [AnswersHost("den/0"), AnswersHost("attic/0")]
    async with routed(tmp_path, *hosts, when_lost="move") as router:
        path = "/s/tea/m/den/v1/chat/completions"
        assert (await router.post(path, messages=talk("Hi"))).status == 200
        await lose(router, hosts[0])
        assert (await router.post(path, messages=talk("Hi"))).code == "machine_lost"


async def test_without_a_controller_nobody_moves(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts, when_lost="move") as router:
        home = await at_home(router, *hosts)
        await router.controller.stop()
        await lose(router, home)
        assert (await router.chat(session="tea")).code == "machine_lost", (
            "the list is still taken for current"
        )
        await router.parts.fleet.refresh_controller()
        assert (await router.chat(session="tea")).code == "machine_lost"
        await home.start()
        await router.ready(home.replica)
        answer = await router.chat(session="tea")
        assert (answer.headers["x-homeport-replica"], answer.headers["x-homeport-pin"]) == (
            home.replica,
            "kept",
        )


async def test_another_routers_move_is_noticed_where_the_home_counts_as_lost(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        (other,) = (host for host in hosts if host is not home)
        await lose(router, home)
        assert (await router.chat(session="tea")).code == "machine_lost"
        async with running_router(tmp_path / "2", router.controller.port, when_lost="move") as second:
            await second.ready(other.replica)
            await router.parts.fleet.changed(0.1)
            second.parts.fleet.known[home.replica].known_at -= 40.0
            second.parts.fleet.saw_refused(home.replica)
            assert (await second.chat(session="tea")).headers["x-homeport-pin"] == "moved"
        router.controller.index.confirm([pin_from_json(pin) for pin in other.pins.values()], other.replica)
        async with asyncio.timeout(10):
            while (answer := await router.chat(session="tea")).status != 200:
                await router.parts.fleet.changed(0.5)
        assert answer.headers["x-homeport-replica"] == other.replica


async def test_sessions_of_a_forgotten_machine_get_new_homes_whatever_their_model_says(
    tmp_path: Path,
) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0"), AnswersHost("m2/0", zone="elsewhere", running=1)]
    async with routed(tmp_path, *hosts, when_lost="fail") as router:
        home = await at_home(router, hosts[0], hosts[1])
        machine = home.replica.partition("/")[0]
        await lose(router, home)
        router.controller.there = False
        done = await router.ask("POST", f"/api/machines/{machine}/forget")
        assert done.status == 200
        answer = await router.chat(session="tea")
        assert (answer.status, answer.headers["x-homeport-pin"]) == (200, "moved")
        assert answer.headers["x-homeport-replica"] not in (home.replica, "m2/0")


# a machine whose packets are dropped


async def test_models_are_told_at_once_while_a_machine_and_the_head_drop_packets(tmp_path: Path) -> None:
    silent, well = AnswersHost("m0/0"), AnswersHost("m1/0")
    wall, head = DropsPackets(), DropsPackets()
    async with routed(tmp_path, silent, well) as router:
        control = router.controller.port
        await router.controller.stop()
        await silent.stop()
        wall.port, head.port = silent.port, control
        async with running(wall, head):
            router.parts.fleet.known["m0/0"].refused = False
            for _ in range(5):
                began = time.monotonic()
                assert (await router.get("/v1/models")).status == 200
                assert time.monotonic() - began < 0.25


async def test_a_guess_waits_only_briefly_for_a_host_that_drops_packets(tmp_path: Path) -> None:
    silent, well = AnswersHost("m0/0"), AnswersHost("m1/0")
    async with routed(tmp_path, silent, well) as router:
        first = await router.chat(messages=talk("Hi"))
        (home, other) = (silent, well) if first.headers["x-homeport-replica"] == "m0/0" else (well, silent)
        await other.stop()
        async with running(DropsPackets(port=other.port)):
            router.parts.fleet.known[other.replica].refused = False
            began = time.monotonic()
            again = await router.chat(messages=talk("Hi", "Hello there", "More"))
            assert time.monotonic() - began < 1.5
            assert again.headers["x-homeport-replica"] == home.replica


async def test_while_the_journals_are_read_a_public_id_is_waited_for(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    controller = Controller([host])
    async with running(host, controller), running_router(tmp_path, controller.port) as router:
        await router.ready("den/0")
        public = (await router.chat(session="tea")).headers["x-homeport-session"]
        controller.reads_journals = True
        turn = asyncio.create_task(router.chat(headers={"x-homeport-session": public}))
        await router.until(lambda: bool(router.parts.relay.turns))
        await router.parts.fleet.changed(0.3)
        assert not turn.done()
        controller.reads_journals = False
        assert (await turn).headers["x-homeport-pin"] == "kept"


async def test_a_stream_whose_public_id_cannot_be_looked_up_yet_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.turn.HEAD_AFTER_S", 0.2)
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        public = (await router.chat(session="tea")).headers["x-homeport-session"]
        router.controller.reads_journals = True
        turn = asyncio.create_task(router.chat(headers={"x-homeport-session": public}, stream=True))
        await router.until(lambda: any(turn._reply.head_sent for turn in router.parts.relay.turns))
        router.controller.reads_journals = False
        answer = await turn
        assert answer.body.startswith(b": waiting")
        assert answer.events[-1] == b"[DONE]"


async def test_a_guess_asks_a_host_that_was_silent_for_a_moment(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        first = await router.chat(messages=talk("Hi"))
        router.parts.fleet.saw_silent(first.headers["x-homeport-replica"])
        again = await router.chat(messages=talk("Hi", "Hello there", "More"))
        assert (again.headers["x-homeport-session"], again.headers["x-homeport-pin"]) == (
            first.headers["x-homeport-session"],
            "kept",
        )


async def test_a_public_id_that_neither_head_nor_home_can_confirm_is_no_404(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host, queue_s=1.0) as router:
        public = (await router.chat(session="tea")).headers["x-homeport-session"]
        await router.controller.stop()
        await host.stop()
        router.parts.fleet.saw_refused("den/0")
        answer = await router.chat(headers={"x-homeport-session": public})
        assert (answer.status, answer.code) == (503, "machine_unavailable")
        assert "den/0" in answer.json()["error"]["message"]

"""Ending and moving sessions and giving machines up, through the API: by whom, in which order, and when not."""

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from router.identity import digest, key_scope, public_id
from router.peers import Unreachable
from serving.moving import Mover
from serving.pins import pin_from_json
from tests.ports import free_port
from tests.standins import (
    MODEL,
    AnswersHost,
    EndlessHost,
    HangsHost,
    Router,
    bearer_of,
    routed,
    running_router,
)

TEA = digest("local", "", "tea")
PUBLIC = public_id(b"a digest key", TEA)


async def at_home(router: Router, *hosts: AnswersHost) -> AnswersHost:
    replica = (await router.chat(session="tea")).headers["x-homeport-replica"]
    (host,) = (each for each in hosts if each.replica == replica)
    router.controller.index.confirm([pin_from_json(pin) for pin in host.pins.values()], replica)
    return host


async def move(router: Router, machine: str, session: str = PUBLIC) -> Any:
    return await router.ask("POST", f"/api/sessions/{session}/move", json={"machine": machine})


@pytest.mark.parametrize("named", [PUBLIC, "tea"])
async def test_a_session_that_was_ended_begins_anew(tmp_path: Path, named: str) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        answer = await router.ask("DELETE", f"/api/sessions/{named}")
        assert (answer.status, answer.json()) == (200, {"id": PUBLIC, "ended": True, "models": [MODEL]})
        assert (home.ended, router.controller.ended) == ([TEA], [TEA])
        assert (await router.chat(session="tea")).headers["x-homeport-pin"] == "new"


async def test_a_name_with_a_slash_is_ended_and_moved_as_any_other(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0", state="loading")]
    async with routed(tmp_path, *hosts) as router:
        public = (await router.chat(session="a/b")).headers["x-homeport-session"]
        hosts[1].state = "ready"
        await router.ready("m1/0")
        path = router.url + "/api/sessions/a%2Fb"
        async with router.client.post(URL(f"{path}/move", encoded=True), json={"machine": "m1"}) as moved:
            told = await moved.json()
            assert (told["id"], told["machine"], told["replicas"]) == (public, "m1", ["m1/0"])
            assert told["context"] == "evaluated anew"
        async with router.client.delete(URL(path, encoded=True)) as ended:
            assert (ended.status, (await ended.json())["id"]) == (200, public)


async def test_a_turn_that_waits_in_the_router_ends_with_its_session(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        home.state = "loading"
        await router.parts.fleet.refresh(home.replica)
        turn = asyncio.create_task(router.chat(session="tea"))
        await router.until(lambda: any(turn.replica for turn in router.parts.relay.turns))
        assert (await router.ask("DELETE", f"/api/sessions/{PUBLIC}")).status == 200
        answer = await asyncio.wait_for(turn, 5)
        assert (answer.status, answer.code) == (409, "session_ended")
        assert answer.headers["x-should-retry"] == "false"


async def test_a_first_turn_that_has_no_home_yet_is_ended_too(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0", state="loading")) as router:
        turn = asyncio.create_task(router.chat(session="tea"))
        await router.until(lambda: any(turn.ask for turn in router.parts.relay.turns))
        assert (await router.ask("DELETE", f"/api/sessions/{PUBLIC}")).status == 200
        assert (await asyncio.wait_for(turn, 5)).code == "session_ended"


async def test_a_session_whose_home_is_away_is_not_called_ended(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        await home.stop()
        router.parts.fleet.saw_refused(home.replica)
        answer = await router.ask("DELETE", f"/api/sessions/{PUBLIC}")
        assert (answer.status, answer.code) == (503, "machine_unavailable")
        assert home.replica in answer.json()["error"]["message"]


async def test_an_end_that_its_home_did_not_answer_is_not_done_and_the_index_goes_on_knowing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        home = await at_home(router, *hosts)
        (other,) = (host for host in hosts if host is not home)
        away = {home.replica}
        peers = router.parts.relay.homes._peers
        end = peers.end

        async def ended(base: str, session: str, model: str) -> None:
            if any(base == router.parts.fleet.base(replica) for replica in away):
                raise Unreachable("it is silent")
            await end(base, session, model)

        monkeypatch.setattr(peers, "end", ended)
        answer = await router.ask("DELETE", f"/api/sessions/{PUBLIC}")
        assert (answer.status, answer.code) == (503, "machine_unavailable")
        assert home.replica in answer.json()["error"]["message"]
        assert router.controller.ended == []
        assert router.controller.index.get(TEA, MODEL) is not None
        away = {other.replica}
        assert (await router.ask("DELETE", f"/api/sessions/{PUBLIC}")).status == 200, (
            "that one has nothing of it"
        )
        assert (home.ended, router.controller.ended) == ([TEA], [TEA])


async def test_a_session_that_nobody_knows_is_404(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        for answer in (await router.ask("DELETE", f"/api/sessions/{PUBLIC}"), await move(router, "den")):
            assert (answer.status, answer.code) == (404, "session_not_found")


async def test_a_moved_session_is_written_at_its_new_home_first_and_then_told(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        old = await at_home(router, *hosts)
        (new,) = (host for host in hosts if host is not old)
        answer = await move(router, new.replica.partition("/")[0])
        assert (answer.status, answer.json()["replicas"]) == (200, [new.replica])
        (told,) = new.told
        assert (told["generation"], told["replica"]) == (2, new.replica)
        assert (told["public"], told["scope"]) == (PUBLIC, key_scope())
        assert router.controller.told == old.told == [told]
        turn = await router.chat(session="tea")
        assert turn.headers["x-homeport-replica"] == new.replica
        assert new.seen[-1]["x-homeport-generation"] == "2"


async def test_what_a_crossing_turn_said_at_the_former_home_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = "11" * 32, "22" * 32
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        old = await at_home(router, *hosts)
        (new,) = (host for host in hosts if host is not old)
        (pin,) = old.pins.values()
        pin |= {"guessed": True, "history": before}
        leave = Mover.leave

        async def crossed(mover: Mover, base: str, pin: dict[str, Any]) -> tuple[str, bool]:
            assert await leave(mover, base, pin) == (None, True)
            return after, True

        monkeypatch.setattr(Mover, "leave", crossed)
        assert (await move(router, new.replica.partition("/")[0])).status == 200
        assert [told["history"] for told in new.told] == [before, after]
        assert new.told[1] == {**new.told[0], "history": after}


async def test_a_session_moves_although_its_old_home_is_away(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        old = await at_home(router, *hosts)
        (new,) = (host for host in hosts if host is not old)
        await old.stop()
        router.parts.fleet.saw_refused(old.replica)
        assert (await move(router, new.replica.partition("/")[0])).status == 200
        assert (await router.chat(session="tea")).headers["x-homeport-replica"] == new.replica


async def test_a_session_that_runs_is_not_moved(tmp_path: Path) -> None:
    hosts = [HangsHost("m0/0"), HangsHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        turn = asyncio.create_task(router.chat(session="tea"))
        await asyncio.wait(
            [asyncio.create_task(host.arrived.wait()) for host in hosts], return_when=asyncio.FIRST_COMPLETED
        )
        (old,) = (host for host in hosts if host.bodies)
        (new,) = (host for host in hosts if not host.bodies)
        await router.until(lambda: bool(old.pins))
        answer = await move(router, new.replica.partition("/")[0])
        assert (answer.status, answer.code) == (409, "session_busy")
        assert new.told == []
        turn.cancel()


async def test_a_turn_through_another_router_counts_too(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        old = await at_home(router, *hosts)
        (new,) = (host for host in hosts if host is not old)
        old.pins[TEA, MODEL]["state"] = "running"
        assert (await move(router, new.replica.partition("/")[0])).code == "session_busy"


async def test_no_session_leaves_its_zone(tmp_path: Path) -> None:
    hosts = [AnswersHost("den/0", zone="home"), AnswersHost("lab/0", zone="work", running=1)]
    async with routed(tmp_path, *hosts) as router:
        await at_home(router, *hosts)
        assert (await move(router, "lab")).code == "zone_conflict"
        assert (await move(router, "shed")).code == "machine_not_found"
        assert (await move(router, "den")).json()["replicas"] == ["den/0"]
        assert hosts[0].told == hosts[1].told == []


async def test_without_a_controller_nobody_is_moved_or_forgotten(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        await at_home(router, *hosts)
        await router.controller.stop()
        await router.parts.fleet.refresh_controller()
        assert (await move(router, "m0")).code == "controller_unreachable"
        assert (await router.ask("POST", "/api/machines/m0/forget")).code == "controller_unreachable"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"machine": 7}', b'{"machine": ""}'])
async def test_a_move_to_nowhere_is_400(tmp_path: Path, body: bytes) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.ask("POST", f"/api/sessions/{PUBLIC}/move", data=body)
        assert answer.status == 400


async def test_a_move_with_a_huge_body_is_413(tmp_path: Path) -> None:
    async with running_router(tmp_path, free_port()) as router:
        answer = await router.ask("POST", f"/api/sessions/{PUBLIC}/move", data=b" " * (1 << 20))
        assert (answer.status, answer.code) == (413, "body_too_large")


async def test_a_machine_that_is_there_is_not_forgotten(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.ask("POST", "/api/machines/den/forget")
        assert (answer.status, answer.code) == (409, "machine_is_there")
        assert "stop it first" in answer.json()["error"]["message"]
        assert (await router.ask("POST", "/api/machines/shed/forget")).code == "machine_not_found"
        router.controller.there = False
        assert (await router.ask("POST", "/api/machines/den/forget")).status == 200
        assert [each["name"] for each in (await router.get("/api/fleet")).json()["forgotten"]] == ["den"]


async def test_a_cordoned_machine_serves_its_own_and_takes_nobody_new(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        answer = await router.chat(session="tea")
        home = answer.headers["x-homeport-machine"]
        cordoned = await router.ask("POST", f"/api/machines/{home}/cordon")
        assert (cordoned.status, cordoned.json()) == (200, {"machine": home, "cordoned": True})
        machines = {m["name"]: m for m in (await router.get("/api/fleet")).json()["machines"]}
        assert (machines[home]["state"], machines[home]["cordoned"]) == ("cordoned", True)
        assert (await router.chat(session="tea")).headers["x-homeport-machine"] == home
        for number in range(8):
            assert (await router.chat(session=f"new-{number}")).headers["x-homeport-machine"] != home
        assert (await router.ask("POST", f"/api/machines/{home}/uncordon")).status == 200
        machines = {m["name"]: m for m in (await router.get("/api/fleet")).json()["machines"]}
        assert machines[home]["state"] == "ready"
        refused = await router.ask("POST", "/api/machines/shed/cordon")
        assert (refused.status, refused.code) == (404, "machine_not_found")
        assert "m0, m1" in refused.json()["error"]["message"]


async def test_a_machine_that_its_person_wants_keeps_its_sessions_and_gets_no_other(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts, when_lost="move") as router:
        answer = await router.chat(session="tea")
        home = answer.headers["x-homeport-machine"]
        host = next(each for each in hosts if each.replica.startswith(home))
        given = await router.ask("POST", f"/api/machines/{home}/yield", data=b'{"for_s": 600}')
        assert given.status == 200
        assert given.json()["yielded"]["by"] == "person"
        await host.stop()
        await router.until(lambda: router.parts.fleet.snapshot().replicas[host.replica].refused)
        refused = await router.chat(session="tea")
        assert (refused.status, refused.code) == (503, "machine_yielded")
        assert 590 <= int(refused.headers["retry-after"]) <= 600
        assert "for 10 min more" in refused.json()["error"]["message"]
        assert refused.headers["x-homeport-replica"] == host.replica
        for number in range(4):
            assert (await router.chat(session=f"new-{number}")).headers["x-homeport-machine"] != home
        assert (await router.ask("POST", f"/api/machines/{home}/yield", data=b'{"end": true}')).json() == {
            "machine": home,
            "yielded": None,
        }
        await host.start()
        await router.ready(host.replica)
        again = await router.chat(session="tea")
        assert (again.headers["x-homeport-replica"], again.headers["x-homeport-pin"]) == (
            host.replica,
            "kept",
        )


async def test_a_turn_whose_host_goes_for_its_person_is_told_so(tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts) as router:
        home = (await router.chat(session="tea")).headers["x-homeport-machine"]
        host = next(each for each in hosts if each.replica.startswith(home))
        await host.stop()
        waiting = asyncio.ensure_future(router.chat(session="tea", stream=True))
        await router.until(lambda: router.parts.fleet.snapshot().replicas[host.replica].refused)
        await router.ask("POST", f"/api/machines/{home}/yield", data=b"{}")
        answer = await waiting
        assert (answer.status, answer.code) == (503, "machine_yielded")


@pytest.mark.parametrize("body", [b"[]", b'{"for_s": -1}', b'{"for_s": 5, "end": true}', b'{"to": "steam"}'])
async def test_a_yield_that_says_nothing_possible_is_refused(tmp_path: Path, body: bytes) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.ask("POST", "/api/machines/den/yield", data=body)
        assert (answer.status, answer.code) == (400, "invalid_body")
        assert "for_s" in answer.json()["error"]["message"]


async def test_a_yield_of_a_machine_that_cannot_be_asked_says_what_to_do(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        refused = await router.ask("POST", "/api/machines/shed/yield", data=b"{}")
        assert (refused.status, refused.code) == (404, "machine_not_found")
        router.controller.silent_keepers.add("den")
        away = await router.ask("POST", "/api/machines/den/yield", data=b"{}")
        assert (away.status, away.code) == (503, "machine_unavailable")
        assert away.json()["error"]["message"] == "den is away."


async def test_sessions_are_listed_with_parent_source_and_place_in_the_line(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        await router.chat(session="tea")
        await router.chat(session="child", headers={"x-homeport-parent": "tea"})
        await router.chat()
        host.line = [{"session": TEA, "position": 2, "waited_s": 1.5, "about_s": 40.0}]
        listed = (await router.get("/api/sessions")).json()["sessions"]
        by_id = {each["id"]: each for each in listed}
        child = by_id[public_id(b"a digest key", digest("local", "", "child"))]
        assert (child["parent"], child["line"]) == (PUBLIC, None)
        assert by_id[PUBLIC]["line"] == {"position": 2, "waited_s": 1.5, "about_s": 40.0}
        assert (by_id[PUBLIC]["state"], by_id[PUBLIC]["parent"]) == ("waiting", None)
        assert [each["source"] for each in listed].count("guess") == 1


# keys


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    def entry(name: str, more: str = "") -> str:
        return f"- {{name: {name}, sha256: '{sha256(name.encode()).hexdigest()}'{more}}}\n"

    file = tmp_path / "keys.yaml"
    file.write_text(
        entry("anna", ", machines: [m0], places: 2, weight: 3.0")
        + entry("bert")
        + entry("boss", ", role: admin")
        + entry("eyes", ", role: metrics")
        + entry("slow", ", requests_per_minute: 1")
        + entry("other", ", models: [huge]")
        + entry("zoned", ", zones: [home]")
    )
    file.chmod(0o600)
    return file


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


async def test_who_has_no_key_is_401_but_for_health(tmp_path: Path, keys_file: Path) -> None:
    async with running_router(tmp_path, free_port(), keys_file=keys_file) as router:
        for headers in ({}, bearer("nobody")):
            for path in ("/v1/models", "/m/m0/v1/models", "/api/sessions", "/metrics"):
                answer = await router.get(path, headers=headers)
                assert (answer.status, answer.code) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
            assert (await router.chat(headers=headers)).status == 401
            assert (await router.get("/health", headers=headers)).status == 200
        assert (await router.get("/v1/models", headers={"x-api-key": "bert"})).status == 200
        assert (await router.get("/api/fleet", headers=bearer("the-cluster-token"))).status == 200


async def test_roles_open_what_is_theirs(tmp_path: Path, keys_file: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0"), keys_file=keys_file) as router:
        assert (await router.get("/metrics", headers=bearer("eyes"))).status == 200
        assert (await router.get("/metrics", headers=bearer("bert"))).code == "key_not_allowed"
        assert (await router.chat(headers=bearer("eyes"))).code == "key_not_allowed"
        forget = "/api/machines/m0/forget"
        assert (await router.ask("POST", forget, headers=bearer("bert"))).status == 403
        assert (await router.ask("POST", forget, headers=bearer("boss"))).status == 409
        for act in ("cordon", "uncordon"):
            path = f"/api/machines/m0/{act}"
            assert (await router.ask("POST", path, headers=bearer("bert"))).code == "key_not_allowed"
            assert (await router.ask("POST", path, headers=bearer("boss"))).status == 200


async def test_a_keys_limits_reach_choice_and_host(tmp_path: Path, keys_file: Path) -> None:
    hosts = [AnswersHost("m0/0", running=1), AnswersHost("m1/0")]
    async with routed(tmp_path, *hosts, keys_file=keys_file) as router:
        answer = await router.chat(session="tea", headers=bearer("anna"))
        assert answer.headers["x-homeport-replica"] == "m0/0"
        seen = hosts[0].seen[0]
        assert (seen["x-homeport-key-places"], seen["x-homeport-weight"]) == ("2", "3")
        assert seen["x-homeport-scope"] == key_scope("anna")
        assert seen["authorization"] == bearer_of("m0/0")
        answer = await router.post("/m/m1/v1/chat/completions", headers=bearer("anna"), messages=[])
        assert (answer.status, answer.code) == (403, "key_not_allowed")
        answer = await router.chat(session="tea", headers=bearer("other"))
        assert (answer.status, answer.code) == (403, "key_not_allowed")
        assert (await router.get("/v1/models", headers=bearer("other"))).json()["data"] == []
        for name in ("anna", "zoned"):
            answer = await router.get("/m/m1/v1/models", headers=bearer(name))
            assert (answer.code, "m1" in answer.body.decode()) == ("machine_not_found", False)


@pytest.mark.parametrize(("name", "kind"), [("anna", "machine"), ("zoned", "zone"), ("other", "model")])
async def test_a_key_moves_its_sessions_within_its_limits_only(
    tmp_path: Path, keys_file: Path, name: str, kind: str
) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0")]
    session = digest(name, "", "tea")
    public = public_id(b"a digest key", session)
    pin = {"session": session, "model": MODEL, "replica": "m0/0", "generation": 1, "created_s": 1.0}
    hosts[0].pins[session, MODEL] = {**pin, "public": public, "scope": key_scope(name)}
    async with routed(tmp_path, *hosts, keys_file=keys_file) as router:
        path = f"/api/sessions/{public}/move"
        barred = await router.ask("POST", path, json={"machine": "m1"}, headers=bearer(name))
        assert (barred.status, barred.code) == (403, "key_not_allowed")
        assert f"the {kind} " in barred.json()["error"]["message"]
        assert (await router.ask("POST", path, json={"machine": "m1"}, headers=bearer("bert"))).status == 404
        assert (await router.ask("POST", path, json={"machine": "m1"}, headers=bearer("boss"))).status == 200


async def test_a_key_that_asks_too_often_is_429(tmp_path: Path, keys_file: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0"), keys_file=keys_file) as router:
        assert (await router.chat(headers=bearer("slow"))).status == 200
        answer = await router.chat(headers=bearer("slow"))
        assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await router.get("/v1/models", headers=bearer("slow"))).status == 200


async def test_a_key_sees_and_ends_only_its_own_sessions(tmp_path: Path, keys_file: Path) -> None:
    host = AnswersHost("m0/0")
    async with routed(tmp_path, host, keys_file=keys_file) as router:
        ids = {}
        for name in ("anna", "bert"):
            answer = await router.chat(session="tea", headers=bearer(name))
            ids[name] = answer.headers["x-homeport-session"]
        assert ids["anna"] != ids["bert"]
        seen = {
            name: {
                each["id"]
                for each in (await router.get("/api/sessions", headers=bearer(name))).json()["sessions"]
            }
            for name in ("anna", "bert", "boss")
        }
        assert seen == {"anna": {ids["anna"]}, "bert": {ids["bert"]}, "boss": set(ids.values())}
        path = f"/api/sessions/{ids['anna']}"
        assert (await router.ask("DELETE", path, headers=bearer("bert"))).code == "session_not_found"
        theirs = {**bearer("bert"), "x-homeport-session": ids["anna"]}
        assert (await router.chat(headers=theirs)).code == "session_not_found"
        assert (await router.ask("DELETE", path, headers=bearer("anna"))).status == 200
        path = f"/api/sessions/{ids['bert']}"
        assert (await router.ask("DELETE", path, headers=bearer("boss"))).status == 200


async def test_the_fleet_names_no_session_to_a_key_that_is_no_admins(tmp_path: Path, keys_file: Path) -> None:
    host = AnswersHost("m0/0", residents=[{"session": TEA, "quiet_s": 3.0, "busy": False, "tokens": 12}])
    async with routed(tmp_path, host, keys_file=keys_file) as router:
        assert PUBLIC in (await router.get("/api/fleet", headers=bearer("boss"))).body.decode()
        assert PUBLIC not in (await router.get("/api/fleet", headers=bearer("bert"))).body.decode()


async def test_a_guess_finds_no_session_of_another_key(tmp_path: Path, keys_file: Path) -> None:
    async with routed(tmp_path, AnswersHost("m0/0"), keys_file=keys_file) as router:
        sessions = {
            (await router.chat(headers=bearer(name))).headers["x-homeport-session"]
            for name in ("anna", "bert", "anna")
        }
        assert len(sessions) == 2


async def test_other_names_are_let_in_that_the_config_knows(tmp_path: Path, keys_file: Path) -> None:
    async with running_router(tmp_path, free_port(), keys_file=keys_file, names=("ai.home.lan",)) as router:
        assert (await router.get("/health", headers={"host": "ai.home.lan:8000"})).status == 200
        assert (await router.get("/health", headers={"host": "evil.example"})).status == 403
        origin = {"origin": "http://ai.home.lan:8000"}
        assert (await router.get("/health", headers=origin)).status == 200


async def test_a_stream_of_an_ended_session_is_the_hosts_matter(tmp_path: Path) -> None:
    host = EndlessHost("den/0")
    async with routed(tmp_path, host) as router:
        turn = asyncio.create_task(router.chat(session="tea", stream=True))
        await host.arrived.wait()
        await router.until(lambda: bool(host.pins))
        assert (await router.ask("DELETE", f"/api/sessions/{PUBLIC}")).status == 200
        assert host.ended == [TEA]
        turn.cancel()

"""Guessed sessions are found by what was said, and only where the request and its key may go."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from router.identity import digest, public_id
from tests.standins import MODEL, AnswersHost, Router, routed

ANNA = {"authorization": "Bearer anna"}
TALK = [{"role": "user", "content": "Hi"}]
GOES_ON = [*TALK, {"role": "assistant", "content": "Hello there"}, {"role": "user", "content": "And now?"}]


@pytest.fixture
def keys_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """One key, anna, with the limits of the test's parameter."""
    file = tmp_path / "keys.yaml"
    file.write_text(f"- {{name: anna, sha256: '{sha256(b'anna').hexdigest()}', {request.param}}}\n")
    file.chmod(0o600)
    return file


def hosts() -> list[AnswersHost]:
    return [AnswersHost("m0/0", zone="home"), AnswersHost("m1/0", zone="work")]


async def begun_at_m0(router: Router, path: str, headers: dict[str, str]) -> str:
    first = await router.post(path, messages=TALK, headers=headers)
    assert (first.headers["x-homeport-replica"], first.headers["x-homeport-source"]) == ("m0/0", "guess")
    return first.headers["x-homeport-session"]


def move_all(left: AnswersHost, to: AnswersHost, *, known_by: AnswersHost) -> None:
    """As if the guessed session of `left` had been moved, so that only `known_by` recognises its words."""
    pins = {key: pin | {"replica": to.replica, "generation": 2} for key, pin in left.pins.items()}
    histories = left.histories
    left.pins, left.histories = {}, {}
    known_by.pins, known_by.histories = pins, histories


@pytest.mark.parametrize("keys_file", ["machines: [m0]", "zones: [home]"], indirect=True)
@pytest.mark.parametrize("knows", [0, 1])
async def test_a_guess_at_a_place_that_its_key_may_not_use_begins_anew(
    tmp_path: Path, keys_file: Path, knows: int
) -> None:
    m0, m1 = here = hosts()
    async with routed(tmp_path, m0, m1, keys_file=keys_file) as router:
        before = await begun_at_m0(router, "/v1/chat/completions", ANNA)
        move_all(m0, m1, known_by=here[knows])
        answer = await router.chat(messages=GOES_ON, headers=ANNA)
        assert (answer.status, answer.headers["x-homeport-pin"]) == (200, "new")
        assert answer.headers["x-homeport-replica"] == "m0/0"
        assert answer.headers["x-homeport-session"] != before


@pytest.mark.parametrize("keys_file", ["machines: [m0]"], indirect=True)
async def test_hosts_that_a_key_may_not_use_are_not_asked(
    tmp_path: Path, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m0, m1 = hosts()
    async with routed(tmp_path, m0, m1, keys_file=keys_file) as router:
        peers = router.parts.relay.addressing._finder._peers
        asked, real = [], peers.find

        async def find(base: str, *more: Any) -> Any:
            asked.append(base)
            return await real(base, *more)

        monkeypatch.setattr(peers, "find", find)
        await router.chat(messages=TALK, headers=ANNA)
        assert asked == [router.parts.fleet.base("m0/0")]


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/m/m0/v1/chat/completions", {}), ("/v1/chat/completions", {"x-homeport-zone": "home"})],
)
@pytest.mark.parametrize("knows", [0, 1])
async def test_a_guess_elsewhere_than_the_request_names_does_not_win(
    tmp_path: Path, path: str, headers: dict[str, str], knows: int
) -> None:
    m0, m1 = here = hosts()
    async with routed(tmp_path, m0, m1) as router:
        await begun_at_m0(router, path, headers)
        move_all(m0, m1, known_by=here[knows])
        answer = await router.post(path, messages=GOES_ON, headers=headers)
        assert (answer.status, answer.headers["x-homeport-pin"]) == (200, "new")
        assert answer.headers["x-homeport-replica"] == "m0/0"


async def test_a_named_session_that_was_moved_is_told_the_way_back(tmp_path: Path) -> None:
    m0, m1 = AnswersHost("m0/0"), AnswersHost("m1/0")  # of one zone
    async with routed(tmp_path, m0, m1) as router:
        first = await router.post("/m/m0/v1/chat/completions", session="tea", messages=TALK)
        public = public_id(b"a digest key", digest("local", '["m0", null]', "tea"))
        assert first.headers["x-homeport-session"] == public
        router.controller.index.claims.clear()
        (key,) = m0.pins
        moved = m0.pins[key] | {"replica": "m1/0", "generation": 2}
        async with router.client.post(
            f"http://127.0.0.1:{router.controller.port}/pins", json={"pins": [moved]}
        ) as told:
            assert told.status == 200
        homes = router.parts.relay.homes
        homes.forget(key[0], MODEL)
        answer = await router.post("/m/m0/v1/chat/completions", session="tea", messages=GOES_ON)
        assert (answer.status, answer.code) == (400, "machine_conflict")
        assert "`homeport move ID m0`" in answer.json()["error"]["message"]
        assert answer.headers["x-homeport-session"] == public

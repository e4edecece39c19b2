"""Who may do what: keys are found without telling how near a guess was, roles and limits are kept."""

import hashlib
import hmac
from itertools import count

import pytest

from router import keys
from router.errors import ApiError
from router.identity import ANONYMOUS
from router.keys import ALL, LOCAL, Entry, Key, KeyRing, Role, guard, secret_of, too_many


def digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def entry(name: str, role: Role = "use", per_minute: int | None = None) -> Entry:
    """A key whose secret is its name."""
    return Key(name, role, requests_per_minute=per_minute), digest(name.encode())


RING = KeyRing([entry("den"), entry("boss", "admin"), entry("prom", "metrics")])


@pytest.mark.parametrize("name", ["den", "boss", "prom"])
def test_a_key_is_found_by_its_secret(name: str) -> None:
    found = RING.find(name.encode())
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("secret", [None, b"", b"Den", b"den ", digest(b"den"), b"\xff\x00"])
def test_anything_else_is_nobodys(secret: bytes | None) -> None:
    assert RING.find(secret) is None


@pytest.mark.parametrize("secret", [b"den", b"boss", b"prom", b"nobody"])
def test_every_key_is_compared_in_constant_time_whichever_fits(
    secret: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def seen(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", seen)
    RING.find(secret)
    assert compared == [(digest(name), digest(secret)) for name in (b"den", b"boss", b"prom")]


def test_without_keys_everybody_is_local_and_may_do_all() -> None:
    ring = KeyRing(required=False)
    assert ring.find(None) is ring.find(b"anything") is LOCAL
    assert Key(ANONYMOUS, "admin") == LOCAL
    assert guard(ring, LOCAL, "POST", "/api/machines/den/forget") is None
    assert ring.allow(LOCAL, 0.0) is None


def test_a_keys_file_without_keys_lets_nobody_in() -> None:
    assert KeyRing().find(None) is KeyRing().find(b"x") is None


def test_the_owners_own_programs_need_no_key_of_the_file() -> None:
    ring = KeyRing([entry("den")], own=digest(b"token"))
    assert ring.find(b"token") is LOCAL
    ring.replace([])
    assert ring.find(b"token") is LOCAL
    assert ring.find(b"den") is None


def test_new_keys_replace_the_old_ones() -> None:
    ring = KeyRing([entry("old")])
    ring.replace([entry("new")])
    assert ring.find(b"old") is None
    assert ring.keys == (Key("new"),)


def test_who_came_in_is_held_with_the_same_limits_and_the_same_secret() -> None:
    ring = KeyRing([entry("den"), entry("boss", "admin")], own=digest(b"token"))
    den, boss, own = (ring.entry(secret) for secret in (b"den", b"boss", b"token"))
    assert den is not None
    assert boss is not None
    assert own is not None
    ring.replace([(Key("den"), digest(b"another")), entry("boss", "admin", 5)])
    assert [ring.holds(each) for each in (den, boss, own)] == [False, False, True]
    assert KeyRing(required=False).holds(ALL)


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ([], None),
        ([(b"authorization", b"Bearer hp-a")], b"hp-a"),
        ([(b"authorization", b"bearer   hp-a ")], b"hp-a"),
        ([(b"authorization", b"Basic aGk=")], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"hp-a")], None),
        ([(b"x-api-key", b"hp-a")], b"hp-a"),
        ([(b"x-api-key", b"hp-b"), (b"authorization", b"Bearer hp-a")], b"hp-a"),
        ([(b"authorization", b"Basic aGk="), (b"x-api-key", b"hp-b")], b"hp-b"),
        ([(b"x-api-key", b""), (b"x-session-id", b"hp-a")], None),
    ],
)
def test_a_key_is_shown_as_openai_or_anthropic_clients_do(
    headers: list[tuple[bytes, bytes]], secret: bytes | None
) -> None:
    assert secret_of(headers) == secret


OWN = ["/v1/models", "/v1/chat/completions", "/s/a/v1/chat/completions", "/m/den/v1/models", "/api/fleet"]
OWN += ["/api/sessions", "/nothing", "/desk", "/boards/board.js"]
MATRIX = [
    *(("GET", path, {"nobody", "prom", "den", "boss"}) for path in ("/", "/desk/den", "/board/board.js")),
    ("GET", "/health", {"nobody", "prom", "den", "boss"}),
    ("GET", "/ready", {"nobody", "prom", "den", "boss"}),
    ("GET", "/openapi.json", {"nobody", "prom", "den", "boss"}),
    ("GET", "/metrics", {"prom", "boss"}),
    ("GET", "/sd", {"prom", "boss"}),
    *(("GET", path, {"den", "boss"}) for path in OWN),
    ("DELETE", "/api/sessions/hp_1", {"den", "boss"}),
    ("POST", "/api/sessions/hp_1/move", {"den", "boss"}),
    ("POST", "/api/machines/den/forget", {"boss"}),
    ("DELETE", "/api/machines/den", {"boss"}),
]


@pytest.mark.parametrize(("method", "path", "may"), MATRIX)
def test_a_role_opens_its_paths_and_no_others(method: str, path: str, may: set[str]) -> None:
    for name in ("nobody", "prom", "den", "boss"):
        refusal = guard(RING, RING.find(name.encode()), method, path)
        assert (refusal is None) == (name in may), name
        if refusal is not None:
            expected = (401, "invalid_api_key") if name == "nobody" else (403, "key_not_allowed")
            assert (refusal.status, refusal.code) == expected


def test_a_missing_and_a_wrong_key_are_told_the_same() -> None:
    refusals = [guard(RING, RING.find(secret), "GET", "/v1/models") for secret in (None, b"wrong")]
    assert refusals[0] == refusals[1]
    assert isinstance(refusals[0], ApiError)
    assert "homeport key new" in refusals[0].message


def test_a_key_without_limits_may_use_everything() -> None:
    key = Key("den")
    assert keys.refuse_model(key, "a") is keys.refuse_machine(key, "b") is keys.refuse_zone(key, "c") is None


def test_a_limited_key_is_told_what_it_may_use() -> None:
    key = Key(
        "den", models=frozenset({"small", "big"}), zones=frozenset({"home"}), machines=frozenset({"pc"})
    )
    assert (
        keys.refuse_model(key, "big")
        is keys.refuse_zone(key, "home")
        is keys.refuse_machine(key, "pc")
        is None
    )
    refusals = [keys.refuse_model(key, "x"), keys.refuse_zone(key, "x"), keys.refuse_machine(key, "x")]
    for refusal, known in zip(refusals, ("big, small", "home", "pc"), strict=True):
        assert refusal is not None
        assert (refusal.status, refusal.code) == (403, "key_not_allowed")
        assert f"only for: {known}. " in refusal.message


def test_no_more_requests_than_allowed_come_in_any_minute() -> None:
    key, secret = entry("den", per_minute=3)
    ring = KeyRing([(key, secret)])
    assert [ring.allow(key, at) for at in (0.0, 10.0, 20.0)] == [None] * 3
    assert ring.allow(key, 30.0) == 30.0
    assert ring.allow(key, 59.0) == 1.0
    assert ring.allow(key, 60.0) is None
    assert ring.allow(key, 60.0) == 10.0


def test_who_asks_as_soon_as_it_may_is_never_refused_twice_in_a_row() -> None:
    key, secret = entry("den", per_minute=7)
    ring = KeyRing([(key, secret)])
    now, taken = 0.0, []
    for _ in range(200):
        wait_s = ring.allow(key, now)
        if wait_s is not None:
            now += wait_s
            assert ring.allow(key, now) is None
        taken.append(now)
        now += 1.75
    assert all(later - earlier >= 60.0 for earlier, later in zip(taken, taken[7:], strict=False))


def test_keys_do_not_use_up_each_others_minute() -> None:
    one, other, free = entry("one", per_minute=1), entry("other", per_minute=1), entry("free")
    ring = KeyRing([one, other, free])
    assert ring.allow(one[0], 0.0) is ring.allow(other[0], 0.0) is None
    assert ring.allow(one[0], 0.0) == 60.0
    assert all(ring.allow(free[0], 0.0) is None for _ in range(1000))


def test_reloading_the_file_gives_nobody_a_new_minute() -> None:
    ring = KeyRing([entry("den", per_minute=5)])
    for at in range(5):
        assert ring.allow(Key("den"), float(at)) is None
    ring.replace([entry("den", per_minute=2)])
    assert ring.allow(Key("den"), 10.0) == 53.0
    assert ring.allow(Key("den"), 63.0) is None
    ring.replace([entry("den")])
    assert all(ring.allow(Key("den"), 63.0) is None for _ in range(10))


def test_a_key_named_like_everybody_does_not_slow_the_owners_programs() -> None:
    ring = KeyRing([entry(ANONYMOUS, per_minute=1)], own=digest(b"token"))
    times = count()
    assert all(ring.allow(LOCAL, float(next(times))) is None for _ in range(10))


def test_too_many_requests_are_told_when_to_come_back() -> None:
    refusal = too_many(Key("den", requests_per_minute=3), 12.4)
    assert (refusal.status, refusal.code, refusal.type) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert "3 times a minute" in refusal.message
    assert (b"retry-after", b"13") in refusal.headers()


@pytest.mark.parametrize(
    ("machine", "zone", "allowed"),
    [("den", "home", True), ("den", "work", False), ("lab", "home", False), ("den", None, False)],
)
def test_a_place_is_a_machine_in_its_zone(machine: str, zone: str | None, allowed: bool) -> None:
    key = Key("anna", machines=frozenset({"den"}), zones=frozenset({"home"}))
    assert key.allows_place(machine, zone) == allowed
    assert Key("bert").allows_place(machine, zone)

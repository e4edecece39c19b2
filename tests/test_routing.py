"""A router's headers, read."""

import pytest

from serving.asgi import Problem
from serving.routing import MAX_CONTINUES, Ask, as_transient, check_home, read_ask

TEA, MILK, ROOT = (digit * 64 for digit in "abc")
NAMED = {"x-homeport-session-key": TEA}


def test_nothing_said_is_a_transient() -> None:
    assert read_ask({}, "r1") == Ask(None, 1, "none", False, "r1", rank="transient")


def test_a_named_session_takes_the_defaults() -> None:
    assert read_ask(NAMED, "r1") == Ask(TEA, 1, "new", False, "r1")


def test_all_is_read() -> None:
    headers = {
        **NAMED,
        "x-homeport-generation": "3",
        "x-homeport-pin": "moved",
        "x-homeport-claim": "free",
        "x-homeport-scope": MILK,
        "x-homeport-queue-left-ms": "1500",
        "x-homeport-public": "hp_0123",
        "x-homeport-rank": "guessed",
        "x-homeport-history": MILK,
        "x-homeport-continues": f"{TEA}, {ROOT}",
        "x-homeport-parent-key": ROOT,
        "x-homeport-key-places": "2",
        "x-homeport-weight": "0.5",
        "x-request-id": "r2",
    }
    assert read_ask(headers, "r1") == Ask(
        session=TEA,
        generation=3,
        pin="moved",
        claim_free=True,
        request_id="r2",
        scope=MILK,
        queue_left_s=1.5,
        public="hp_0123",
        rank="guessed",
        history=MILK,
        continues=(TEA, ROOT),
        parent=ROOT,
        places=2,
        weight=0.5,
    )


def test_only_a_guess_has_a_history() -> None:
    ask = read_ask({**NAMED, "x-homeport-history": MILK, "x-homeport-continues": TEA}, "")
    assert (ask.rank, ask.history, ask.continues) == ("named", None, ())


@pytest.mark.parametrize("headers", [{"x-homeport-pin": "none", **NAMED}, {"x-homeport-rank": "guessed"}])
def test_without_a_session_or_a_pin_it_is_a_transient_of_its_key(headers: dict[str, str]) -> None:
    ask = read_ask({**headers, "x-homeport-parent-key": ROOT, "x-homeport-key-places": "2"}, "")
    assert (ask.session, ask.pin, ask.rank, ask.parent, ask.places) == (None, "none", "transient", None, 2)


def test_as_transient_leaves_nothing_of_the_session() -> None:
    ask = read_ask({**NAMED, "x-homeport-public": "hp_0", "x-homeport-scope": MILK}, "r1")
    assert as_transient(ask) == Ask(None, 1, "none", False, "r1", scope=MILK, rank="transient")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-homeport-session-key", "ann"),
        ("x-homeport-session-key", TEA.upper()),
        ("x-homeport-generation", "0"),
        ("x-homeport-generation", "two"),
        ("x-homeport-pin", "lost"),
        ("x-homeport-scope", "ann"),
        ("x-homeport-queue-left-ms", "-1"),
        ("x-homeport-public", "hp_\u00fc"),
        ("x-homeport-public", "h" * 101),
        ("x-homeport-rank", "transient"),
        ("x-homeport-history", "short"),
        ("x-homeport-continues", f"{TEA},short"),
        ("x-homeport-continues", ",".join([TEA] * (MAX_CONTINUES + 1))),
        ("x-homeport-parent-key", ""),
        ("x-homeport-key-places", "0"),
        ("x-homeport-weight", "0"),
        ("x-homeport-weight", "nan"),
        ("x-homeport-weight", "much"),
    ],
)
def test_what_no_router_sends_is_a_400_that_names_the_header(name: str, value: str) -> None:
    with pytest.raises(Problem) as caught:
        read_ask({**NAMED, name: value}, "")
    assert (caught.value.status, caught.value.code) == (400, "invalid_header")
    assert name in caught.value.message


def test_another_replica_or_an_earlier_life_is_a_421() -> None:
    check_home({"x-homeport-replica": "den/0", "x-homeport-incarnation": "2"}, "den/0", 2)
    for headers, reason in (
        ({"x-homeport-replica": "den/1"}, "replica"),
        ({"x-homeport-incarnation": "1"}, "incarnation"),
    ):
        with pytest.raises(Problem) as caught:
            check_home(headers, "den/0", 2)
        assert caught.value.status == 421
        assert caught.value.homeport == {"reason": reason, "pin": None}

"""A proof holds for what was said, to whom it was said, and for nothing else."""

from typing import Any

import pytest

from cluster.proof import is_proven, key_of, proven

KEY = key_of("the token")
TOLD: dict[str, Any] = {"nonce": "n1", "ray": "10.0.0.1:20100", "machine": {"ports": [1, 2], "zone": None}}


def test_who_knows_the_token_can_prove_what_it_says() -> None:
    said = proven(KEY, "joined", TOLD)
    assert is_proven(KEY, "joined", said, "n1")
    assert is_proven(KEY, "joined", dict(reversed(said.items())), "n1")
    assert "the token" not in str(said)
    assert KEY not in str(said)


@pytest.mark.parametrize(
    "said",
    [
        TOLD,
        {**proven(KEY, "joined", TOLD), "ray": "10.9.9.9:1"},
        {**proven(KEY, "joined", TOLD), "more": 1},
        proven(key_of("another"), "joined", TOLD),
        proven(KEY, "join", TOLD),
        proven(KEY, "joined", {**TOLD, "nonce": "of an earlier answer"}),
        {**TOLD, "proof": "ü\ud800"},
        {**TOLD, "proof": 5},
        {**TOLD, "proof": None},
        [],
        "text",
        None,
    ],
)
def test_a_stranger_cannot(said: object) -> None:
    assert not is_proven(KEY, "joined", said, "n1")


def test_what_is_nested_too_deep_is_not_proven() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert not is_proven(KEY, "joined", {"nonce": "n1", "deep": deep, "proof": ""}, "n1")
    while deep:
        deep = deep.pop()

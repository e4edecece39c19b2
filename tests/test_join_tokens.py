"""Tokens to join with: for one machine and ten minutes, or for those of a list."""

import json
from pathlib import Path

import pytest

from cluster.paths import Paths, secret, write_private
from cluster.proof import key_of
from serving.join_tokens import TOKEN_S, WORDS, JoinTokens, make

ME, OTHER = "a" * 32, "b" * 32
NOW = 1000.0


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    paths.make()
    return paths


@pytest.fixture
def tokens(paths: Paths) -> JoinTokens:
    return JoinTokens(paths, "the-clusters")


def test_a_token_is_for_one_machine_and_ten_minutes(paths: Paths, tokens: JoinTokens) -> None:
    token = make(paths, NOW)
    assert tokens.check(key_of(token), ME, NOW) == "right"
    assert tokens.take(key_of(token), ME, NOW + 1) == "right"
    assert tokens.check(key_of(token), ME, NOW + 2) == "right"  # its answer may have been lost
    assert (
        tokens.check(key_of(token), OTHER, NOW + 2)
        == tokens.take(key_of(token), OTHER, NOW + 2)
        == "token_used"
    )
    assert tokens.check(key_of(token), ME, NOW + TOKEN_S) == "token_expired"


def test_asking_alone_does_not_use_a_token(paths: Paths, tokens: JoinTokens) -> None:
    token = make(paths, NOW)
    assert tokens.check(key_of(token), ME, NOW) == "right"
    assert tokens.take(key_of(token), OTHER, NOW) == "right"


def test_a_token_that_nobody_used_expires_too(paths: Paths, tokens: JoinTokens) -> None:
    token = make(paths, NOW)
    assert tokens.take(key_of(token), ME, NOW + TOKEN_S) == "token_expired"


def test_a_token_that_was_never_made_is_unknown(paths: Paths, tokens: JoinTokens) -> None:
    make(paths, NOW)
    for token in ("", "x", "\ud800", "hpj-" + "x" * 32):
        assert tokens.check(key_of(token), ME, NOW) == tokens.take(key_of(token), ME, NOW) == "token_unknown"


def test_the_lists_token_and_the_clusters_are_for_any_number(paths: Paths, tokens: JoinTokens) -> None:
    paths.join_token.parent.mkdir()
    listed = secret(paths.join_token)
    for token in (listed, "the-clusters"):
        assert [tokens.take(key_of(token), machine, NOW + 1e9) for machine in (ME, OTHER)] == [
            "right",
            "right",
        ]
    paths.join_token.unlink()
    assert tokens.check(key_of(listed), ME, NOW) == "token_unknown"


def test_an_empty_file_lets_nobody_in(paths: Paths, tokens: JoinTokens) -> None:
    paths.join_token.parent.mkdir()
    write_private(paths.join_token, "\n")
    assert tokens.check(key_of(""), ME, NOW) == "token_unknown"


def test_only_digests_lie_on_disk_and_only_for_the_owner(paths: Paths, tokens: JoinTokens) -> None:
    token = make(paths, NOW)
    tokens.take(key_of(token), ME, NOW)
    assert token not in paths.join_tokens.read_text()
    assert paths.join_tokens.stat().st_mode & 0o777 == 0o600


def test_old_tokens_are_dropped_when_a_new_one_is_made(paths: Paths, tokens: JoinTokens) -> None:
    old = make(paths, NOW)
    kept = make(paths, NOW + 86400)
    make(paths, NOW + 86400 + TOKEN_S)
    assert len(json.loads(paths.join_tokens.read_text())["tokens"]) == 2
    assert tokens.check(key_of(old), ME, NOW) == "token_unknown"
    assert tokens.check(key_of(kept), ME, NOW + 86400) == "right"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"tokens": 5}', '{"tokens": [{"sha256": 1}]}', '{"tokens": [7]}']
)
def test_a_broken_file_is_an_empty_one(paths: Paths, tokens: JoinTokens, text: str) -> None:
    write_private(paths.join_tokens, text)
    assert tokens.check(key_of("x"), ME, NOW) == "token_unknown"
    assert tokens.take(key_of(make(paths, NOW)), ME, NOW) == "right"


def test_every_refusal_names_the_remedy() -> None:
    assert all("homeport join-token" in words for words in WORDS.values())


def test_a_token_is_found_by_its_key(paths: Paths, tokens: JoinTokens) -> None:
    paths.join_token.parent.mkdir()
    for token in (make(paths, NOW), make(paths, NOW), secret(paths.join_token), "the-clusters"):
        key = key_of(token)
        assert tokens.find(lambda each, key=key: each == key) == key  # type: ignore[misc]
    assert tokens.find(lambda _: False) is None
    assert tokens.check(None, ME, NOW) == tokens.take(None, ME, NOW) == "token_unknown"

"""Tokens to join with: for one machine and ten minutes, or for those of a list."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.paths import Paths, read_json, secret, write_private
from cluster.proof import key_of, machine_token
from serving import join_tokens
from serving.join_tokens import TOKEN_S, WORDS, JoinTokens, Now, OpenTokens, is_any_open, make

ME, OTHER = "a" * 32, "b" * 32


def at(seconds: float, boot: str = "", up: float = 0.0) -> Now:
    return Now(1000.0 + seconds, boot, up)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "home", tmp_path / "locks")
    paths.make()
    return paths


@pytest.fixture
def tokens(paths: Paths) -> JoinTokens:
    return JoinTokens(paths, "the-clusters")


def test_a_token_is_for_one_machine_and_ten_minutes(paths: Paths, tokens: JoinTokens) -> None:
    token = make(paths, at(0))
    assert tokens.check(key_of(token), ME, at(0)) == "right"
    assert tokens.take(key_of(token), ME, at(1)) == "right"
    assert tokens.check(key_of(token), ME, at(2)) == "right"  # its answer may have been lost
    assert (
        tokens.check(key_of(token), OTHER, at(2)) == tokens.take(key_of(token), OTHER, at(2)) == "token_used"
    )
    assert tokens.check(key_of(token), ME, at(TOKEN_S)) == "token_expired"


def test_asking_alone_does_not_use_a_token(paths: Paths, tokens: JoinTokens) -> None:
    token = make(paths, at(0))
    assert tokens.check(key_of(token), ME, at(0)) == "right"
    assert tokens.take(key_of(token), OTHER, at(0)) == "right"


def test_a_token_that_nobody_used_expires_too(paths: Paths, tokens: JoinTokens) -> None:
    token = make(paths, at(0))
    assert tokens.take(key_of(token), ME, at(TOKEN_S)) == "token_expired"


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_makes_no_token_last_shorter_or_longer(
    paths: Paths, tokens: JoinTokens, jump_s: float
) -> None:
    token = make(paths, at(0, "a boot", 50.0))
    assert tokens.check(key_of(token), ME, at(jump_s, "a boot", 50.0 + TOKEN_S - 1)) == "right"
    assert tokens.check(key_of(token), ME, at(jump_s, "a boot", 50.0 + TOKEN_S)) == "token_expired"
    assert tokens.check(key_of(token), ME, at(TOKEN_S - 1, "another boot", 3.0)) == "right"
    assert tokens.check(key_of(token), ME, at(TOKEN_S, "another boot", 3.0)) == "token_expired"


def test_a_token_that_was_never_made_is_unknown(paths: Paths, tokens: JoinTokens) -> None:
    make(paths, at(0))
    for token in ("", "x", "\ud800", "hpj-" + "x" * 32):
        assert (
            tokens.check(key_of(token), ME, at(0)) == tokens.take(key_of(token), ME, at(0)) == "token_unknown"
        )


def test_the_lists_token_and_that_of_a_former_build_are_for_any_number(
    paths: Paths, tokens: JoinTokens
) -> None:
    paths.join_token.parent.mkdir()
    listed = secret(paths.join_token)
    write_private(paths.former_token, "of a former build")
    for token in (listed, "of a former build"):
        assert [tokens.take(key_of(token), machine, at(1e9)) for machine in (ME, OTHER)] == [
            "right",
            "right",
        ]
    paths.join_token.unlink()
    assert tokens.check(key_of(listed), ME, at(0)) == "token_unknown"


def test_a_machines_own_token_is_for_that_machine_alone(tokens: JoinTokens) -> None:
    own = key_of(machine_token("the-clusters", ME))
    assert tokens.take(own, ME, at(1e9)) == "right"
    assert tokens.take(own, OTHER, at(0)) == tokens.check(own, OTHER, at(0)) == "token_unknown"
    assert tokens.find(lambda key: key == own, OTHER) is None
    assert tokens.check(key_of("the-clusters"), ME, at(0)) == "token_unknown"


def test_an_empty_file_lets_nobody_in(paths: Paths, tokens: JoinTokens) -> None:
    paths.join_token.parent.mkdir()
    write_private(paths.join_token, "\n")
    assert tokens.check(key_of(""), ME, at(0)) == "token_unknown"


def test_only_digests_lie_on_disk_and_only_for_the_owner(paths: Paths, tokens: JoinTokens) -> None:
    token = make(paths, at(0))
    tokens.take(key_of(token), ME, at(0))
    assert token not in paths.join_tokens.read_text()
    assert paths.join_tokens.stat().st_mode & 0o777 == 0o600


def test_old_tokens_are_dropped_when_a_new_one_is_made(paths: Paths, tokens: JoinTokens) -> None:
    old = make(paths, at(0))
    kept = make(paths, at(86400))
    make(paths, at(86400 + TOKEN_S))
    assert len(json.loads(paths.join_tokens.read_text())["tokens"]) == 2
    assert tokens.check(key_of(old), ME, at(0)) == "token_unknown"
    assert tokens.check(key_of(kept), ME, at(86400)) == "right"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"tokens": 5}', '{"tokens": [{"sha256": 1}]}', '{"tokens": [7]}']
)
def test_a_broken_file_is_an_empty_one(paths: Paths, tokens: JoinTokens, text: str) -> None:
    write_private(paths.join_tokens, text)
    assert tokens.check(key_of("x"), ME, at(0)) == "token_unknown"
    assert tokens.take(key_of(make(paths, at(0))), ME, at(0)) == "right"


def test_every_refusal_names_the_remedy() -> None:
    assert all("homeport join-token" in words for words in WORDS.values())


def test_a_token_is_found_by_its_key(paths: Paths, tokens: JoinTokens) -> None:
    paths.join_token.parent.mkdir()
    own = machine_token("the-clusters", ME)
    for token in (make(paths, at(0)), make(paths, at(0)), secret(paths.join_token), own):
        key = key_of(token)
        assert tokens.find(lambda each, key=key: each == key, ME) == key  # type: ignore[misc]
    assert tokens.find(lambda _: False, ME) is None
    assert tokens.check(None, ME, at(0)) == tokens.take(None, ME, at(0)) == "token_unknown"


# whether any is open


def kept(
    used_by: str | None = None, until: float = TOKEN_S, boot: str = "", until_up: float = 0.0
) -> dict[str, Any]:
    return {"sha256": "x", "until": 1000.0 + until, "boot": boot, "until_up": until_up, "used_by": used_by}


@pytest.mark.parametrize(
    ("tokens", "now", "expected"),
    [
        ([], at(0), False),
        ([kept()], at(0), True),
        ([kept()], at(TOKEN_S), False),
        ([kept(ME)], at(0), False),
        ([kept(ME), kept(until=0.0), kept()], at(1), True),
        ([kept(boot="b", until_up=50.0)], at(TOKEN_S, "b", 49.0), True),
        ([kept(boot="b", until_up=50.0)], at(0, "b", 50.0), False),
        ([kept(boot="b", until_up=50.0)], at(0, "c", 50.0), True),
    ],
    ids=[
        "none",
        "new",
        "expired",
        "used",
        "one of three",
        "clock set ahead",
        "clock set back",
        "another boot",
    ],
)
def test_a_token_is_open_while_a_machine_could_join_with_it(
    tokens: list[dict[str, Any]], now: Now, expected: bool
) -> None:
    assert is_any_open(tokens, now) is expected


def test_a_token_is_seen_as_soon_as_it_is_made_and_no_longer_once_it_is_used(
    paths: Paths, tokens: JoinTokens
) -> None:
    opened = OpenTokens(paths)
    assert not opened.any(at(0))
    token = make(paths, at(0))
    assert opened.any(at(0))
    assert not opened.any(at(TOKEN_S))
    tokens.take(key_of(token), ME, at(0))
    assert not opened.any(at(0))
    make(paths, at(0))
    assert opened.any(at(0))
    paths.join_tokens.unlink()
    assert not opened.any(at(0))


def test_the_file_of_tokens_is_read_when_it_has_changed_and_not_before(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OpenTokens(paths)
    reads: list[Path] = []

    def read(path: Path) -> Any:
        reads.append(path)
        return read_json(path)

    make(paths, at(0))
    monkeypatch.setattr(join_tokens, "read_json", read)
    assert all(opened.any(at(second)) for second in range(5))
    assert len(reads) == 1

"""keys.yaml: what it may say, and how a running router follows it. No refusal and no log line shows a key."""

import asyncio
import hashlib
import logging
import os
from pathlib import Path

import pytest

from router import key_file
from router.key_file import KeyFile, entry_of, key_ring
from router.keys import LOCAL, Key, KeyRing
from serving.config_keys import KeySection, lets_anybody_in, parse_keys
from serving.config_problems import ConfigError

SECRET = "hp-ThisIsASecretThatNobodyMaySeeAnywhere0123456"
PATH = Path("keys.yaml")


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def line(name: str, more: str = "", secret: str | None = None) -> str:
    """An entry whose secret is its name."""
    return f"- {{name: {name}, sha256: '{sha256(secret or name)}'{more}}}\n"


def complaints(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse_keys(PATH, text)
    assert SECRET not in str(refused.value)
    return str(refused.value).splitlines()


def test_everything_about_a_key_can_be_said() -> None:
    more = (
        ", role: admin, models: [small, org/big:q8], zones: home, machines: [den-pc], places: 2, "
        "requests_per_minute: 60, weight: 0.5"
    )
    (den, plain) = map(entry_of, parse_keys(PATH, line("den", more) + line("plain")))
    names = frozenset({"small", "org/big:q8"})
    key = Key("den", "admin", names, frozenset({"home"}), frozenset({"den-pc"}), 2, 60, 0.5)
    assert den == (key, hashlib.sha256(b"den").digest())
    assert plain == (Key("plain", "use"), hashlib.sha256(b"plain").digest())


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "[]"])
def test_a_file_may_be_without_keys(text: str) -> None:
    assert parse_keys(PATH, text) == ()


def test_whoever_only_reads_metrics_is_nobody_who_may_use_it() -> None:
    assert not lets_anybody_in(parse_keys(PATH, line("prom", ", role: metrics")))
    assert lets_anybody_in(parse_keys(PATH, line("prom", ", role: metrics") + line("den")))
    assert lets_anybody_in(parse_keys(PATH, line("boss", ", role: admin")))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "- {name: den}",
            "1: [0].sha256: is missing. Write the 64 hex digits of the key's SHA-256, in quotes;",
        ),
        (
            f"- {{sha256: '{'0a' * 32}'}}",
            "1: [0].name: is missing. Use letters, digits and . _ @ -, at most 63.",
        ),
        (line("'no way'"), "1: [0].name: this cannot be a name. Use letters,"),
        (line("no"), "1: [0].name: this is not text. Put it in quotes."),
        (line("local"), "1: [0].name: this is the name of who asks from this machine without a key."),
        (line("12"), "1: [0].name: this is not text. Put it in quotes."),
        (
            line(SECRET),
            "1: [0].name: this looks like a key, not like a name. Choose a name that people may see.",
        ),
        (f"- name: den\n  sha256: {SECRET}", "2: [0].sha256: this is not a SHA-256. Write the 64 hex digits"),
        (
            f"- name: den\n  key: {SECRET}\n  sha256: '{sha256(SECRET)}'",
            "2: [0]: it has an unknown field. Known here: name, sha256, role, models,",
        ),
        (line("den", ", modles: [a]"), "1: [0]: it has an unknown field. Did you mean models?"),
        (line("den", f", {SECRET}: use"), "1: [0]: it has an unknown field. Known here: name,"),
        (line("den", ", role: owner"), "1: [0].role: this is not possible here. Use use, admin or metrics."),
        (line("den", ", role: off"), "1: [0].role: this is not possible here."),
        (
            line("den", ", models: []"),
            "1: [0].models: this is not possible here. Name models as clients do, each once,",
        ),
        (line("den", ", models: [a, a]"), "1: [0].models: this is not possible here. Name models"),
        (line("den", ", zones: [1]"), "1: [0].zones: this is not possible here. Name zones"),
        (line("den", ", machines: [on]"), "1: [0].machines: this is not possible here. Name machines"),
        (
            line("den", ", places: 0"),
            "1: [0].places: this is not possible here. Write a whole number from 1 to 10000.",
        ),
        (
            line("den", ", requests_per_minute: many"),
            "1: [0].requests_per_minute: this is not possible here. Write",
        ),
        (
            line("den", ", weight: 0"),
            "1: [0].weight: this is not possible here. Write a number above 0, at most 100.",
        ),
        (line("den", ", weight: .nan"), "1: [0].weight: this is not possible here."),
        (
            line("den") + line("den", secret="x"),
            "2: [1].name: den is also the name in line 1. Rename one of them.",
        ),
        (
            line("den") + line("attic", secret="den"),
            "2: [1].sha256: it is also the key in line 1. Give each name a key of its own: make one with",
        ),
        (
            line("den") + f"- {{name: b, sha256: '{sha256('den').upper()}'}}",
            "2: [1].sha256: it is also the key in line 1.",
        ),
        (
            f"- {SECRET}",
            "1: [0]: this is no entry. Write each entry as `- name: ...`; `homeport key new` does.",
        ),
        (f"keys: {SECRET}", "1: it is not a list. Write each entry as"),
        (SECRET, "1: it is not a list. Write each entry as"),
        (f"- *{SECRET}", "1: not valid YAML. Check indentation, colons and quotes around there."),
        (f"- {{{SECRET}: 1, {SECRET}: 2}}", "1: not valid YAML. Remove one of them."),
        (f"- !{SECRET} x", "1: not valid YAML. Check"),
        ("[" * 5000, " it is nested too deeply. Write a list of keys."),
    ],
)
def test_a_mistake_is_told_with_its_line_and_without_what_stands_there(text: str, complaint: str) -> None:
    (told,) = complaints(text)
    assert told.removeprefix("keys.yaml:").startswith(complaint)


def test_all_mistakes_are_told() -> None:
    told = complaints(line("a", ", places: 0") + line("b", ", role: x, weight: -1"))
    assert [one.split(":")[1] for one in told] == ["1", "2", "2"]


class Watched:
    """A keys file with a ring that follows it; `wall_s` is long after all changes unless told otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ring = KeyRing()
        self.later_s = 60.0
        self.file = KeyFile(path, self.ring, lambda: path.stat().st_mtime + self.later_s)

    def write(self, text: str, mode: int = 0o600) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.chmod(mode)
        new.replace(self.path)

    def names(self) -> list[str]:
        return [key.name for key in self.ring.keys]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    found = Watched(tmp_path / "keys.yaml")
    found.write(line("den"))
    found.file.look()
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert SECRET not in caplog.text
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_changed_file_is_followed(watched: Watched) -> None:
    assert watched.names() == ["den"]
    watched.write(line("den") + line("attic"))
    watched.file.look()
    assert watched.names() == ["den", "attic"]
    watched.write("")
    watched.file.look()
    assert watched.names() == []


def test_a_file_that_did_not_change_is_not_read_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "read_text", lambda _path: pytest.fail("it was read again"))
    watched.file.look()


def test_a_change_of_the_same_size_in_the_same_instant_is_seen(watched: Watched) -> None:
    stat = watched.path.stat()
    watched.later_s = 0.0
    watched.write(line("one"))
    watched.file.look()
    with watched.path.open("r+") as file:  # in place: the same file, size and, set back, time
        file.write(line("two"))
    os.utime(watched.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    watched.file.look()
    assert watched.names() == ["two"]


@pytest.mark.parametrize(
    "broken", [f"- {SECRET}", f"- {{name: den, sha256: {SECRET}}}", f"[*{SECRET}", "\x00"]
)
def test_a_broken_new_file_keeps_the_old_keys_and_is_told_once(
    watched: Watched, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    watched.write(broken)
    for _ in range(5):
        watched.file.look()
    assert watched.names() == ["den"]
    (told,) = warnings(caplog)
    assert told.startswith(f"the keys file cannot be used, the keys of before stay (1): {watched.path}:1: ")
    watched.write(line("attic"))
    watched.file.look()
    assert watched.names() == ["attic"]
    assert len(warnings(caplog)) == 1


def test_a_file_that_is_gone_or_cannot_be_read_keeps_the_old_keys_and_is_told_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.path.unlink()
    watched.file.look()
    watched.file.look()
    assert watched.names() == ["den"]
    (told,) = warnings(caplog)
    assert told.endswith("there is no such file. Make one with `homeport key new NAME`.")
    watched.write(line("den"))
    watched.file.look()
    watched.path.unlink()
    watched.path.mkdir(0o700)
    watched.file.look()
    assert watched.names() == ["den"]
    assert "it cannot be read: Is a directory" in warnings(caplog)[1]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_read_or_write_is_warned_about_once(
    watched: Watched, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings(caplog) == []
    watched.path.chmod(mode)
    for _ in range(3):
        watched.file.look()
    assert watched.names() == ["den"]
    (told,) = warnings(caplog)
    assert told.endswith(f"run chmod 600 {watched.path}")
    watched.path.chmod(0o600)
    watched.file.look()
    watched.path.chmod(mode)
    watched.file.look()
    assert len(warnings(caplog)) == 2


def test_without_a_keys_file_everybody_is_let_in() -> None:
    ring, file = key_ring(None, "token")
    assert file is None
    assert ring.find(None) is LOCAL


def test_a_router_that_starts_with_a_broken_file_lets_nobody_in_until_it_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"- {SECRET}")
    path.chmod(0o600)
    ring, file = key_ring(path, "token")
    assert file is not None
    assert ring.find(None) is ring.find(SECRET.encode()) is None
    assert ring.find(b"token") is LOCAL
    (told,) = warnings(caplog)
    assert told.startswith("the keys file cannot be used, nobody can come in until it is mended: ")
    path.write_text(line("den"))
    file.look()
    assert ring.find(b"den") == Key("den")


def test_a_file_without_keys_is_told(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.write("# all gone\n")
    watched.file.look()
    (told,) = warnings(caplog)
    assert told.endswith("has no keys: nobody can come in; `homeport key new NAME` makes one")


async def test_it_is_looked_at_for_as_long_as_the_router_runs(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "LOOK_S", 0.01)
    complained, followed = asyncio.Event(), asyncio.Event()
    replace = watched.ring.replace

    def replaced(entries: list[tuple[Key, bytes]]) -> None:
        replace(entries)
        followed.set()

    monkeypatch.setattr(watched.ring, "replace", replaced)
    monkeypatch.setattr(key_file.log, "warning", lambda *_args: complained.set())
    running = asyncio.create_task(watched.file.run())
    watched.write("broken: yes")
    await asyncio.wait_for(complained.wait(), 10)
    watched.write(line("attic"))
    await asyncio.wait_for(followed.wait(), 10)
    assert watched.names() == ["attic"]
    running.cancel()


def test_a_key_keeps_what_the_file_says(tmp_path: Path) -> None:
    section = KeySection(name="den", sha256="0" * 64)
    assert entry_of(section) == (Key("den"), bytes(32))

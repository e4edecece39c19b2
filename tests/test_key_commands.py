"""`homeport key new | list | remove`: a key is shown once and stored never; the file keeps what people wrote in it."""

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster import paths
from router import key_commands, key_store
from router.key_commands import app
from serving.config_keys import KeySection, read_keys

SHAPE = re.compile(r"hp-[A-Za-z0-9_-]{43}")
CONFIG = "router: {keys_file: secret/keys.yaml}\nmodels: [{name: a, source: bundled}]\n"
WRITTEN = """\
# Our keys.

- name: den      # the one in the den
  sha256: '%s'
  models: [small]

# For Prometheus; ask Ann.
- {name: prom, sha256: '%s', role: metrics}
# The end.
"""


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(result: Result) -> str:
    """What was said, on one line."""
    return " ".join(result.output.split())


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.fixture
def written(file: Path) -> Path:
    file.write_text(WRITTEN % (sha256("den"), sha256("prom")))
    return file


def names(file: Path) -> list[str]:
    return [key.name for key in read_keys(file)]


def test_a_key_is_printed_exactly_once_and_never_stored(file: Path) -> None:
    result = run("new", "den", "--file", file)
    assert result.exit_code == 0
    (secret,) = SHAPE.findall(result.output)
    assert result.stdout == f"{secret}\n"
    assert read_keys(file) == (KeySection(name="den", sha256=sha256(secret)),)
    for left in file.parent.iterdir():
        assert secret not in left.read_text()
        assert stat.S_IMODE(left.stat().st_mode) == 0o600
    for again in (run("list", "--file", file), run("list", "--json", "--file", file)):
        assert secret not in again.output
        assert sha256(secret) not in again.output


def test_each_key_is_another_one(file: Path) -> None:
    secrets = {run("new", f"k{at}", "--file", file).stdout for at in range(20)}
    assert len(secrets) == 20
    assert names(file) == [f"k{at}" for at in range(20)]


def test_all_limits_can_be_given(file: Path) -> None:
    limits = ["--role", "admin", "--models", "small, org/big:q8", "--zones", "home", "--machines", "pc,den"]
    result = run(
        "new", "den", *limits, "--places", "2", "--per-minute", "60", "--weight", "0.5", "--file", file
    )
    assert result.exit_code == 0
    (key,) = read_keys(file)
    assert (key.name, key.role, key.models) == ("den", "admin", ("small", "org/big:q8"))
    assert (key.zones, key.machines, key.places) == (("home",), ("pc", "den"), 2)
    assert (key.requests_per_minute, key.weight) == (60, 0.5)
    listed = words(run("list", "--file", file))
    for part in ("den", "admin", "small, org/big:q8", "home", "2", "60", "0.5"):
        assert part in listed
    told = json.loads(run("list", "--json", "--file", file).stdout)
    assert told["file"] == str(file)
    assert told["keys"][0]["machines"] == ["pc", "den"]
    assert "sha256" not in told["keys"][0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no way"], "NAME: this cannot be a name. Use letters, digits and . _ @ -, at most 63."),
        (["local"], "NAME: this is the name of who asks from this machine without a key."),
        (["hp-" + "a" * 43], "NAME: this looks like a key, not like a name."),
        (["den", "--role", "owner"], "--role: this is not possible here. Use use, admin or metrics."),
        (
            ["den", "--models", "a,a"],
            "--models: this is not possible here. Name models as clients do, each once",
        ),
        (["den", "--models", ","], "--models: this is not possible here."),
        (
            ["den", "--places", "0"],
            "--places: this is not possible here. Write a whole number from 1 to 10000.",
        ),
        (
            ["den", "--per-minute", "0"],
            "--per-minute: this is not possible here. Write a whole number from 1",
        ),
        (["den", "--weight", "-1"], "--weight: this is not possible here. Write a number above 0"),
    ],
)
def test_a_wrong_option_is_told_and_changes_nothing(file: Path, arguments: list[str], complaint: str) -> None:
    result = run("new", *arguments, "--file", file)
    assert result.exit_code == 2
    assert complaint in words(result)
    assert not SHAPE.fullmatch(result.stdout.strip())
    assert not file.exists()


def test_a_name_is_given_once(written: Path) -> None:
    before = written.read_text()
    result = run("new", "den", "--file", written)
    assert result.exit_code == 2
    assert "There is a key of den already. Choose another name, or run `homeport key remove den`" in words(
        result
    )
    assert written.read_text() == before
    assert result.stdout == ""


def test_what_people_wrote_stays(written: Path) -> None:
    before = written.read_text()
    (secret,) = SHAPE.findall(run("new", "attic", "--places", "2", "--file", written).output)
    entry = f"- name: attic\n  sha256: {sha256(secret)}\n  role: use\n  places: 2\n"
    assert written.read_text().replace("'", "") == before.replace("'", "") + entry
    assert run("remove", "attic", "--file", written).exit_code == 0
    assert written.read_text() == before


def test_a_removed_entry_leaves_the_others_and_their_comments(written: Path) -> None:
    prom = sha256("prom")
    assert run("remove", "den", "--file", written).exit_code == 0
    rest = f"# For Prometheus; ask Ann.\n- {{name: prom, sha256: '{prom}', role: metrics}}\n# The end.\n"
    assert written.read_text() == f"# Our keys.\n\n\n{rest}"
    result = run("remove", "prom", "--file", written)
    assert written.read_text() == "# Our keys.\n\n\n# For Prometheus; ask Ann.\n# The end.\n"
    assert "nobody can come in now" in words(result)
    assert run("new", "den", "--file", written).exit_code == 0
    assert names(written) == ["den"]


@pytest.mark.parametrize(
    "text",
    [
        "  - name: den\n    sha256: '{}'\n",
        "---\n- name: den\n  sha256: '{}'",
        "[{{name: den, sha256: '{}'}}]\n",
        "-\n  name: den\n  sha256: '{}'\n",
        "- name: den\n  sha256: '{}'\n...\n",
        "- sha256: &one '{}'\n  name: den\n",
        "[]",
        "",
    ],
)
def test_however_it_was_written_entries_come_and_go(file: Path, text: str) -> None:
    file.write_text(text.format(sha256("den")))
    before = names(file)
    assert run("new", "attic", "--file", file).exit_code == 0
    assert names(file) == [*before, "attic"]
    for name in before:
        assert run("remove", name, "--file", file).exit_code == 0
    assert names(file) == ["attic"]


def test_a_file_that_was_open_to_others_is_closed_and_a_link_stays_one(written: Path, tmp_path: Path) -> None:
    written.chmod(0o644)
    link = tmp_path / "link.yaml"
    link.symlink_to(written)
    assert run("new", "attic", "--file", link).exit_code == 0
    assert link.is_symlink()
    assert names(written) == ["den", "prom", "attic"]
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_whoever_changes_it_as_root_leaves_it_to_its_owner(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = written.stat()
    given: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "getuid", lambda: owner.st_uid + 1)
    monkeypatch.setattr(os, "chown", lambda *what: given.append(what))
    assert run("remove", "den", "--file", written).exit_code == 0
    assert given == [(written, owner.st_uid, owner.st_gid)]


def test_a_key_that_does_not_exist_cannot_be_removed(written: Path) -> None:
    before = written.read_text()
    result = run("remove", "attic", "--file", written)
    assert result.exit_code == 2
    assert "There is no key of attic. `homeport key list` shows those there are." in words(result)
    assert written.read_text() == before


@pytest.mark.parametrize("arguments", [["new", "den"], ["list"], ["remove", "den"]])
def test_a_broken_file_is_told_and_left_alone(file: Path, arguments: list[str]) -> None:
    file.write_text("- name: den\n  sha256: hp-secret\n")
    result = run(*arguments, "--file", file)
    assert result.exit_code == 2
    assert f"{file.name}:2: [0].sha256: this is not a SHA-256." in words(result)
    assert "hp-secret" not in result.output
    assert file.read_text() == "- name: den\n  sha256: hp-secret\n"


def test_a_missing_file_has_no_keys_to_list(file: Path) -> None:
    result = run("list", "--file", file)
    assert result.exit_code == 2
    assert "there is no such file. Make one with `homeport key new NAME`." in words(result)
    file.write_text("")
    assert "has no keys. `homeport key new NAME` makes one." in words(run("list", "--file", file))


def test_the_config_says_where_the_keys_are(tmp_path: Path) -> None:
    config = tmp_path / "homeport.yaml"
    config.write_text(CONFIG)
    (tmp_path / "secret").mkdir()
    result = run("new", "den", "--config", config)
    assert result.exit_code == 0
    assert "A running router notices within a second." in words(result)
    assert names(tmp_path / "secret" / "keys.yaml") == ["den"]


def test_without_a_word_of_the_config_it_says_what_to_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "homeport.yaml"
    config.write_text("models: [{name: a, source: bundled}]\n")
    monkeypatch.setattr(key_commands, "DEFAULT_CONFIG", config)
    monkeypatch.delenv("HOMEPORT_CONFIG", raising=False)
    result = run("new", "den")
    told = f"Add `keys_file: keys.yaml` below `router:` in {config}, then run `homeport up`."
    assert told in words(result)
    assert names(tmp_path / "keys.yaml") == ["den"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = run("new", "den", "--file", tmp_path / "away" / "keys.yaml")
    assert result.exit_code == 1
    assert "cannot be changed: No such file or directory." in words(result)
    assert result.stdout == ""


def test_a_change_that_fails_half_way_leaves_the_old_file(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written.read_text()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device", str(written))

    with monkeypatch.context() as patch:
        patch.setattr(paths.os, "fsync", full)  # type: ignore[attr-defined]
        result = run("new", "attic", "--file", written)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert written.read_text() == before
    assert {path.name for path in written.parent.iterdir()} == {"keys.yaml", ".keys.yaml.lock"}


def test_many_at_once_lose_nothing(file: Path) -> None:
    code = "import sys; from router.key_commands import app; app()"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, "new", f"k{at}", "--file", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "NO_COLOR": "1"},
        )
        for at in range(4)
    ]
    secrets = [process.communicate(timeout=60)[0].decode().strip() for process in started]
    assert [process.returncode for process in started] == [0] * 4
    found = {key.name: key.sha256 for key in read_keys(file)}
    assert found == {f"k{at}": sha256(secret) for at, secret in enumerate(secrets)}


def test_whoever_changes_the_file_waits_for_whoever_is_at_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path, text: str) -> None:
        other = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from router.key_commands import app; app()",
                "new",
                "two",
                "--file",
                str(file),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        others.append(other)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=2)
        paths.write_private(path, text)

    others: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(key_store, "write_private", slow)
    assert run("new", "one", "--file", file).exit_code == 0
    assert others[0].wait(timeout=60) == 0
    assert names(file) == ["one", "two"]

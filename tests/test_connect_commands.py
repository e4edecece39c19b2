"""`homeport connect`: what it prints, what it writes into a person's files, and what it leaves alone."""

import codecs
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from router import cli, connect_commands
from router.connect import CLIENTS
from router.connect_settings import Reach
from router.connect_text import block
from tests.test_cli import FakeRouter, router

__all__ = ["router"]
MODELS = [{"name": "assistant", "context": 8192}, {"name": "coder", "context": 32768}]


@pytest.fixture(autouse=True)
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, and no variables of the clients'."""
    home = tmp_path / "person"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for variable in ("HOMEPORT_API_KEY", *(name for c in CLIENTS.values() for name, _ in c.elsewhere)):
        monkeypatch.delenv(variable, raising=False)
    return home


@pytest.fixture
def serves(router: FakeRouter) -> FakeRouter:
    router.answers["/api/fleet"] = 200, {"models": MODELS}
    return router


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.app, ["connect", *words])
    return done.exit_code, done.stdout, done.stderr


def reach(at: FakeRouter, **more: Any) -> Reach:
    return Reach(at.url, "assistant", 8192, **more)


def test_alone_it_lists_the_clients_that_are_known() -> None:
    code, told, _ = run()
    assert code == 0
    assert all(name in told for name in CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
def test_it_prints_the_block_alone_and_says_the_rest_beside_it(name: str, serves: FakeRouter) -> None:
    code, told, beside = run(name)
    client = CLIENTS[name]
    assert (code, told) == (0, block(client.form, client.settings(reach(serves))) + "\n")
    assert f"told apart by {client.naming}" in beside


def test_a_client_that_is_not_known_is_named_beside_those_that_are() -> None:
    code, _, why = run("emacs")
    assert code == 2
    assert "known: claude-code, codex" in why


def test_another_model_brings_its_context_and_one_that_is_not_served_is_refused(serves: FakeRouter) -> None:
    assert "model_context_window = 32768" in run("codex", "--model", "coder")[1]
    assert "model_context_window = 32768" in run("codex", "--model", "coder@den-pc")[1]
    code, _, why = run("codex", "--model", "gpt-5")
    assert (code, "known: assistant, coder" in why) == (2, True)


def test_where_homeport_does_not_run_the_config_says_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "nobody"))
    config = tmp_path / "homeport.yaml"
    config.write_text(
        "router: {listen: 127.0.0.1:8765}\nmodels: [{name: small, source: bundled, context: 2048}]\n"
    )
    code, told, beside = run("codex", "--config", str(config))
    assert code == 0
    assert 'base_url = "http://127.0.0.1:8765/v1"' in told
    assert "model_context_window = 2048" in told
    assert "does not run here" in beside


def test_of_another_router_it_asks_that_one(serves: FakeRouter, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "nobody"))
    assert f'base_url = "{serves.url}/v1"' in run("codex", "--url", f"{serves.url}/v1/")[1]
    code, _, why = run("codex", "--url", "http://127.0.0.1:9")
    assert (code, "Is homeport running there" in why) == (1, True)


def test_with_keys_it_asks_for_one_before_it_writes_one(router: FakeRouter, person: Path) -> None:
    router.answers["/api/fleet"] = 401, {"error": {"message": "a key is needed"}}
    code, told, _ = run("aider", "--model", "assistant")
    assert (code, "YOUR-HOMEPORT-KEY" in told) == (0, True)
    code, _, why = run("aider", "--model", "assistant", "--write")
    assert (code, "--key-file FILE" in why) == (2, True)
    key = person / "key"
    key.write_text("hp-secret\n")
    assert run("aider", "--model", "assistant", "--write", "--key-file", str(key))[0] == 0
    written = person / ".aider.conf.yml"
    assert "hp-secret" in written.read_text()
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_a_key_that_is_not_needed_is_given_to_nobody(serves: FakeRouter, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOMEPORT_API_KEY", "hp-secret")
    assert "hp-secret" not in run("aider")[1]


@pytest.mark.parametrize("name", [name for name, client in CLIENTS.items() if client.file])
def test_it_writes_the_file_once_and_says_the_next_time_that_it_is_so(
    name: str, serves: FakeRouter, person: Path
) -> None:
    file = person / CLIENTS[name].file
    code, told, _ = run(name, "--write")
    assert (code, told) == (0, f"{file} is written.\n")
    assert file.read_text() == run(name)[1]
    before = file.stat()
    assert run(name, "--write")[:2] == (0, f"{file}: already so.\n")
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert [each.name for each in file.parent.iterdir() if each.is_file()] == [file.name]


def test_what_was_there_is_kept_once_with_its_mode_and_through_a_link(
    serves: FakeRouter, person: Path
) -> None:
    real = person / "dotfiles" / "settings.json"
    real.parent.mkdir()
    real.write_text('{"theme": "dark"}\n')
    real.chmod(0o640)
    link = person / ".claude" / "settings.json"
    link.parent.mkdir()
    link.symlink_to(real)
    assert run("claude-code", "--write")[0] == 0
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    kept = real.with_name("settings.json.before-homeport")
    assert (kept.read_text(), stat.S_IMODE(kept.stat().st_mode)) == ('{"theme": "dark"}\n', 0o640)
    assert run("claude-code", "--write", "--model", "coder")[0] == 0
    assert kept.read_text() == '{"theme": "dark"}\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("claude-code", b'{"theme": "dark"}'),
        ("codex", b'model = "x"\r\n'),
        ("aider", b"model: x\n"),
        ("llm", b"- model_id: x\n"),
    ],
)
def test_a_mark_at_a_files_beginning_stays_there_and_is_no_part_of_what_it_says(
    name: str, text: bytes, serves: FakeRouter, person: Path
) -> None:
    plain, marked = person / CLIENTS[name].file, codecs.BOM_UTF8
    plain.parent.mkdir(parents=True, exist_ok=True)
    plain.write_bytes(text)
    assert run(name, "--write")[0] == 0
    expected = plain.read_bytes()
    plain.write_bytes(marked + text)
    assert run(name, "--write")[0] == 0
    assert plain.read_bytes() == marked + expected
    assert run(name, "--write")[1].endswith(": already so.\n")


def test_a_file_that_its_person_made_read_only_is_left_as_it_is(serves: FakeRouter, person: Path) -> None:
    file = person / ".aider.conf.yml"
    file.write_text("model: mine\n")
    file.chmod(0o444)
    code, _, why = run("aider", "--write")
    assert (code, "is left as it is: it is read-only" in why) == (2, True)
    assert [each.name for each in person.iterdir()] == [file.name]


def test_a_link_that_leads_nowhere_but_to_itself_is_named(serves: FakeRouter, person: Path) -> None:
    (person / ".aider.conf.yml").symlink_to(person / ".aider.conf.yml")
    code, _, why = run("aider", "--write")
    assert (code, "cannot be written: Too many levels of symbolic links" in why) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
def test_a_file_stays_its_owners(serves: FakeRouter, person: Path) -> None:
    file = person / ".aider.conf.yml"
    file.write_text("dark-mode: true\n")
    os.chown(file, 12345, 12346)
    assert run("aider", "--write")[0] == 0
    for each in person.iterdir():
        assert (each.stat().st_uid, each.stat().st_gid) == (12345, 12346)


def test_a_key_in_a_file_that_others_may_read_is_told(
    router: FakeRouter, person: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.answers["/api/fleet"] = 401, {"error": {"message": "a key is needed"}}
    monkeypatch.setenv("HOMEPORT_API_KEY", "hp-secret")
    file = person / ".aider.conf.yml"
    file.write_text("dark-mode: true\n")
    file.chmod(0o644)
    code, told, beside = run("aider", "--model", "assistant", "--write")
    assert (code, f"`chmod 600 {file}`" in beside) == (0, True)
    assert "hp-secret" not in told + beside
    file.write_text("dark-mode: true\n")
    file.chmod(0o600)
    assert "chmod" not in run("aider", "--model", "assistant", "--write")[2]


def test_a_key_that_a_shell_would_read_otherwise_is_not_written_where_one_reads_it(
    router: FakeRouter, person: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.answers["/api/fleet"] = 401, {"error": {"message": "a key is needed"}}
    monkeypatch.setenv("HOMEPORT_API_KEY", "hp-$HOME")
    code, _, why = run("open-webui", "--model", "assistant", "--write")
    assert (code, "a shell would read the value of OPENAI_API_KEY otherwise" in why) == (2, True)
    assert run("aider", "--model", "assistant", "--write")[0] == 0


@pytest.mark.parametrize(
    "url", ["den-pc:8000", "http://", "http://den-pc:x", "http://[::1", "http://den pc:8000"]
)
@pytest.mark.parametrize("words", [["codex"], ["--check", "--once"]])
def test_an_address_that_is_none_is_told(url: str, words: list[str]) -> None:
    code, told, why = run(*words, "--url", url)
    assert (code, told) == (2, "")
    assert f"--url must be http://HOST:PORT, not {url}" in why


@pytest.mark.parametrize("option", ["--session", "--machine"])
@pytest.mark.parametrize("name", ["", "..", "a\nb", "a" * 513])
def test_a_name_that_would_not_stay_in_a_path_is_refused(option: str, name: str, serves: FakeRouter) -> None:
    code, told, why = run("codex", option, name)
    assert (code, told, "1 to 512 printable characters" in why) == (2, "", True)


def test_on_a_machine_of_another_head_its_router_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_commands, "known_run", lambda _: {"role": "worker", "steps": {}})
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))
    code, told, why = run("codex")
    assert (code, told) == (2, "")
    assert "serves the head at" in why
    assert "--url" in why


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("claude-code", b'{"env": '),
        ("claude-code", b"[1]"),
        ("claude-code", b"\xff\xfe"),
        ("zed", b'{"agent": {"default_model": {"a": 1}'),
        ("opencode", b'{"provider": {"homeport": []}} {}'),
        ("codex", b'model = "a"\nmodel = "b"\n'),
        ("codex", b'model = """\na\n"""\n'),
        ("codex", b'model_providers = { homeport = { name = "x" } }\n'),
        ("aider", b"model: [\n"),
        ("aider", b"- a list\n"),
        ("aider", b"model: >\n  folded\n  text\n"),
        ("continue", b"models: [{name: a, provider: b, model: c}]\n"),
        ("llm", b"{a: 1}\n"),
        ("llm", b"[{model_id: a, model_name: b}]\n"),
    ],
)
def test_a_file_that_cannot_be_changed_without_loss_is_left_and_the_block_is_printed(
    name: str, text: bytes, serves: FakeRouter, person: Path
) -> None:
    file = person / CLIENTS[name].file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text)
    code, told, why = run(name, "--write")
    assert code == 2
    assert told == run(name)[1]
    assert f"{file} is left as it is: " in why
    assert "by hand" in why
    assert file.read_bytes() == text
    assert [each.name for each in file.parent.iterdir() if each.is_file()] == [file.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(serves: FakeRouter, person: Path) -> None:
    person.chmod(0o500)
    code, _, why = run("aider", "--write")
    person.chmod(0o700)
    assert (code, "cannot be written" in why) == (1, True)


def test_a_folder_in_the_files_place_is_no_fault_of_ours(serves: FakeRouter, person: Path) -> None:
    (person / ".aider.conf.yml").mkdir()
    code, _, why = run("aider", "--write")
    assert (code, "cannot be written: Is a directory" in why) == (1, True)


def test_where_a_client_looks_elsewhere_it_is_written_there(
    serves: FakeRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "codex"))
    monkeypatch.setenv("OPENCODE_CONFIG", str(tmp_path / "mine.json"))
    assert run("codex", "--write")[0] == run("opencode", "--write")[0] == 0
    assert (tmp_path / "codex" / "config.toml").exists()
    assert (tmp_path / "mine.json").exists()


def test_opencodes_file_with_comments_is_taken_where_it_is_the_one(serves: FakeRouter, person: Path) -> None:
    folder = person / ".config" / "opencode"
    folder.mkdir(parents=True)
    (folder / "opencode.jsonc").write_text('{\n  // mine\n  "theme": "x"\n}\n')
    assert run("opencode", "--write")[0] == 0
    assert "  // mine\n" in (folder / "opencode.jsonc").read_text()
    assert not (folder / "opencode.json").exists()
    (folder / "opencode.json").write_text("{}\n")
    assert run("opencode", "--write", "--model", "coder")[0] == 0
    assert "homeport/coder" in (folder / "opencode.jsonc").read_text()  # which it reads last
    assert (folder / "opencode.json").read_text() == "{}\n"


def test_such_a_file_of_another_client_is_not_its_own(serves: FakeRouter, person: Path) -> None:
    other = person / ".claude" / "settings.jsonc"
    other.parent.mkdir()
    other.write_text("{}\n")
    assert run("claude-code", "--write")[0] == 0
    assert (other.read_text(), other.with_suffix(".json").exists()) == ("{}\n", True)


def test_what_has_no_file_is_printed_and_said_to_be_for_a_person(serves: FakeRouter) -> None:
    code, told, why = run("cline", "--write")
    assert code == 2
    assert "Base URL" in told
    assert "put this where it belongs" in why

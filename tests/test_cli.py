"""Commands that ask a running homeport: what they send, what they print, how they fail."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.paths import Paths
from router import cli, lifecycle

PUBLIC = "hp_" + "0" * 24


class FakeRouter(ThreadingHTTPServer):
    """Answers each path with what it was given, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, str, str | None, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeRouter

    def answer(self) -> None:
        size = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(size)) if size else None
        self.server.asked.append((self.command, self.path, self.headers["authorization"], body))
        status, answer = self.server.answers[self.path]
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRouter]:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))
    paths = Paths.from_env({"HOMEPORT_HOME": str(tmp_path)})
    paths.make()
    paths.cluster_token.write_text("the-cluster-token\n")
    fake = FakeRouter()
    monkeypatch.setattr(lifecycle, "running", lambda _: {"url": fake.url})
    thread = threading.Thread(target=fake.serve_forever)
    thread.start()
    yield fake
    fake.shutdown()
    thread.join()
    fake.server_close()


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, list(words))
    return done.exit_code, " ".join(done.output.split())


def test_end_asks_with_the_clusters_token(router: FakeRouter) -> None:
    router.answers[f"/api/sessions/{PUBLIC}"] = (200, {"id": PUBLIC, "ended": True, "models": ["tiny"]})
    assert run("end", PUBLIC) == (0, f"{PUBLIC} is ended.")
    assert router.asked == [("DELETE", f"/api/sessions/{PUBLIC}", "Bearer the-cluster-token", None)]


def test_a_name_is_quoted(router: FakeRouter) -> None:
    router.answers["/api/sessions/a%2Fb%20c"] = (200, {"id": PUBLIC})
    assert run("end", "a/b c")[0] == 0


def test_move_names_the_machine_and_tells_the_home(router: FakeRouter) -> None:
    path = f"/api/sessions/{PUBLIC}/move"
    went = {"context": "carried", "tokens": 4012, "bytes": 92 * 2**20, "seconds": 1.23}
    moved = [{"model": "m", "replica": "den/0", **went}]
    router.answers[path] = (200, {"id": PUBLIC, "machine": "den", "replicas": ["den/0"], "moved": moved})
    said = f"{PUBLIC} has its home at den/0 now; its context went along (4012 tokens, 92.0 MiB, 1.2 s)."
    assert run("move", PUBLIC, "den") == (0, said)
    assert router.asked[0][3] == {"machine": "den"}
    moved[0] = {"model": "m", "replica": "den/0", "context": "evaluated anew", "why": "its home is away"}
    said = f"{PUBLIC} has its home at den/0 now; its context is evaluated anew: its home is away."
    assert run("move", PUBLIC, "den") == (0, said)
    moved[0] = {"model": "m", "replica": "den/0", "context": "kept"}
    assert run("move", PUBLIC, "den") == (0, f"{PUBLIC} has its home at den/0 now.")


def test_drain_says_by_when_follows_it_and_refuses_what_is_no_time(router: FakeRouter) -> None:
    router.answers["/api/machines/den/drain"] = (200, {"machine": "den", "draining": True})
    told = {"deadline_s": 0.0, "moved": 1, "left": 0, "anew": {}, "stay": {}, "waits": ""}
    machine = {"name": "den", "state": "draining", "draining": told}
    router.answers["/api/fleet"] = (200, {"machines": [machine]})
    code, said = run("drain", "den", "--deadline", "90s")
    assert (code, said.startswith("den: moved 1 of 1 session; drained;")) == (0, True)
    assert router.asked[0][3] == {"within_s": 90.0}
    code, said = run("drain", "den", "--deadline", "soon")
    assert (code, "is not a duration" in said) == (2, True)


def test_forget_says_what_becomes_of_the_machine(router: FakeRouter) -> None:
    router.answers["/api/machines/den/forget"] = (200, {"machine": "den", "forgotten": True})
    code, said = run("forget", "den")
    assert (code, said.startswith("den is forgotten.")) == (0, True)


def test_cordon_and_uncordon_say_what_becomes_of_the_machine(router: FakeRouter) -> None:
    router.answers["/api/machines/den/cordon"] = (200, {"machine": "den", "cordoned": True})
    router.answers["/api/machines/den/uncordon"] = (200, {"machine": "den", "cordoned": False})
    assert run("cordon", "den") == (0, "den is cordoned: no new session gets its home there.")
    assert run("uncordon", "den") == (0, "den takes new sessions again.")
    assert [asked[:2] for asked in router.asked] == [
        ("POST", "/api/machines/den/cordon"),
        ("POST", "/api/machines/den/uncordon"),
    ]


@pytest.mark.parametrize(
    "words",
    [("end", PUBLIC), ("move", PUBLIC, "den"), ("forget", "den"), ("cordon", "den"), ("sessions",)],
)
def test_a_refusal_is_told_in_the_routers_words(router: FakeRouter, words: tuple[str, ...]) -> None:
    for path in (
        f"/api/sessions/{PUBLIC}",
        f"/api/sessions/{PUBLIC}/move",
        "/api/machines/den/forget",
        "/api/machines/den/cordon",
        "/api/sessions",
    ):
        router.answers[path] = (409, {"error": {"message": "Not now: do this instead."}})
    assert run(*words) == (1, "Not now: do this instead.")


def test_sessions_show_machine_state_context_age_and_turns(router: FakeRouter) -> None:
    session = {
        "id": PUBLIC,
        "model": "tiny",
        "machine": "den",
        "replica": "den/0",
        "state": "waiting",
        "context_tokens": 77,
        "age_s": 120.0,
        "turns": 5,
        "line": {"position": 2, "waited_s": 1.0, "about_s": 40.0},
    }
    router.answers["/api/sessions"] = (200, {"sessions": [session], "unreachable": []})
    code, _ = run("sessions")
    assert code == 0
    code, said = run("sessions", "--json")
    assert json.loads(said)["sessions"] == [session]


def test_keys_have_commands_of_their_own() -> None:
    code, said = run("key", "--help")
    assert code == 0
    assert "new" in said


@pytest.mark.parametrize(
    "words", [("up", "--detach"), ("status",), ("down",), ("key", "new", "x", "-c", "rel.yaml")]
)
def test_a_folder_that_was_deleted_is_told_with_the_remedy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("HOMEPORT_HOME", "state" if words != ("up", "--detach") else str(tmp_path / "state"))
    monkeypatch.setattr("sys.argv", ["homeport", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1), said
    assert "`cd` into one that exists" in said
    assert not (tmp_path / "state").exists()

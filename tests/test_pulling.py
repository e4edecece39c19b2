"""`homeport pull`: what it finds, how it follows a cluster, and that it fetches by itself where none runs."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.paths import Paths, write_private
from cluster.processes import ours
from router import live, pulling
from router.pulling import At, NotPulled
from serving.hf_folder import lacking
from tests.giver import part_of
from tests.hf_folders import make_repository
from tests.hub import Hub, add, add_all, hub
from tests.test_config import cut_to_size, gguf_bytes

SOURCE = "hf:o/r:m.gguf"
MIB = 1024**2
WHOLE = {"commit": "c", "parts": [{"name": "m.gguf", "size": 7, "sha256": "a" * 64}]}
DONE = {"held": {SOURCE: WHOLE}, "bringing": {}}
TROUBLE = {"code": "not_found", "message": "o/r has no file m.gguf", "remedy": "Look there"}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "home", tmp_path / "locks")
    made.make()
    return made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Hub]:
    file = tmp_path / "small.gguf"
    file.write_bytes(cut_to_size(gguf_bytes()) + bytes(3 * MIB))
    with hub({"o/r/m.gguf": add(file)}) as made:
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "homeport.yaml"
    path.write_text(
        "network: {models_disk: 1GiB}\nmodels:\n"
        f"  - {{name: far, source: '{SOURCE}', machines: {{zone: home}}}}\n  - {{name: near, source: bundled}}\n"
    )
    return path


def test_a_model_of_the_config_goes_to_the_machines_that_are_to_serve_it(paths: Paths, config: Path) -> None:
    wanted = pulling.find(paths, "far", config, runs=False)
    assert (wanted.source, wanted.machines, wanted.budget) == (SOURCE, {"zone": "home"}, 2**30)
    assert wanted.named == (SOURCE, "bundled")


def test_without_a_config_the_models_are_those_that_run(paths: Paths) -> None:
    models = [{"spec": {"name": "far", "source": SOURCE, "machines": ["den"]}, "digest": "d"}]
    write_private(paths.revision, json.dumps({"revision": 1, "models": models}))
    assert pulling.find(paths, "far", None, runs=True).machines == ["den"]
    assert pulling.find(paths, "hf:o/r:other.gguf", None, runs=True).machines == "all"


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [
        ("nope", "The config has no model nope; it has: far, near. A source may be given too: hf:", 2),
        (
            "near",
            "near does not come from Hugging Face: its source is bundled. There is nothing to fetch.",
            0,
        ),
        ("hf:o/r:", "hf:o/r: names no file. Write hf:OWNER/REPO:FILE", 2),
        ("hf:o/r:../x.gguf", "../x.gguf is not a file of a repository", 2),
    ],
)
def test_what_cannot_be_pulled_is_told(paths: Paths, config: Path, name: str, words: str, code: int) -> None:
    with pytest.raises(NotPulled) as refused:
        pulling.find(paths, name, config, runs=False)
    assert words in str(refused.value)
    assert refused.value.code == code


def report(models: dict[str, Any] | None, state: str = "ready") -> dict[str, Any]:
    return {"name": "den", "state": state, "models": models}


@pytest.mark.parametrize(
    ("told", "state", "detail"),
    [
        (None, "waiting", "it is away"),
        (report(DONE, "lost"), "away", "it is away, and goes on once it is back"),
        (report(DONE, "asleep"), "away", "it is away, and goes on once it is back"),
        (report(DONE, "unknown"), "waiting", "it is away"),
        (report(None), "waiting", "it is away"),
        (report(DONE), "whole", "has it"),
        (report({"held": {}, "bringing": {}}), "waiting", "waits for its turn"),
        (
            report(
                {
                    "held": {},
                    "bringing": {SOURCE: {"doing": "fetching", "got": 43, "size": 100, "from": "den-pc"}},
                }
            ),
            "fetching",
            "fetching 43 % of 100 bytes from den-pc",
        ),
        (
            report({"held": {}, "bringing": {SOURCE: {"trouble": TROUBLE}}}),
            "failed",
            "o/r has no file m.gguf. Look there",
        ),
        (
            report({"held": {}, "bringing": {SOURCE: {"trouble": {**TROUBLE, "code": "network"}}}}),
            "waiting",
            "o/r has no file m.gguf. Look there",
        ),
    ],
)
def test_how_far_a_machine_is(told: dict[str, Any] | None, state: str, detail: str) -> None:
    at = pulling.at_machine(told, SOURCE)
    assert at.state == state
    assert at.detail.startswith(detail)


@contextmanager
def controller(paths: Paths, fleets: list[list[dict[str, Any]]], names: list[str]) -> Iterator[list[Any]]:
    """A stand-in that tells these machines, one fleet after another; yields what it was asked to pull."""
    asked: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
            """Nothing on stderr."""

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._say({"machines": names})

        def do_GET(self) -> None:
            self._say({"machines": fleets.pop(0) if len(fleets) > 1 else fleets[0]})

        def _say(self, told: Any) -> None:
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    control = {"host": "127.0.0.1", "port": server.server_address[1]}
    write_private(paths.revision, json.dumps({"revision": 1, "models": [], "control": control}))
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_cluster_is_followed_until_every_machine_has_it_or_cannot(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "LOOK_S", 0.01)
    coming = {"held": {}, "bringing": {SOURCE: {"doing": "fetching", "got": 1, "size": 2, "from": "hf"}}}
    failed = {"held": {}, "bringing": {SOURCE: {"trouble": TROUBLE}}}
    fleets: list[list[dict[str, Any]]] = [
        [{"name": "den", "state": "ready", "models": den}, {"name": "desk", "state": "ready", "models": desk}]
        for den, desk in ((coming, coming), (DONE, coming), (DONE, failed))
    ]
    shown: list[dict[str, At]] = []
    with controller(paths, fleets, ["den", "desk"]) as asked:
        found = pulling.through_controller(
            paths, pulling.Wanted(SOURCE, {"zone": "home"}), lambda at: shown.append(dict(at))
        )
    assert asked == [{"source": SOURCE, "machines": {"zone": "home"}}]
    assert [at["den"].state for at in shown] == ["fetching", "whole", "whole"]
    assert {name: at.state for name, at in found.items()} == {"den": "whole", "desk": "failed"}


def test_a_pull_for_machines_none_of_which_is_here_is_told(paths: Paths) -> None:
    with controller(paths, [[]], []), pytest.raises(NotPulled, match="No machine that is to have it is here"):
        pulling.through_controller(paths, pulling.Wanted(SOURCE), lambda _: None)


def test_a_controller_that_is_away_is_told(paths: Paths) -> None:
    with controller(paths, [[]], []):
        pass
    with pytest.raises(NotPulled, match="The controller cannot be asked: "):
        pulling.through_controller(paths, pulling.Wanted(SOURCE), lambda _: None)


# the command, where no homeport runs


def command(paths: Paths, site: Hub, *words: str) -> "subprocess.Popen[str]":
    env = {
        **os.environ,
        "HOMEPORT_HOME": str(paths.home),
        "HOMEPORT_LOCKS": str(paths.locks),
        "HF_ENDPOINT": site.url,
        "HF_HOME": str(paths.home.parent / "hf"),
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "router.cli", "pull", *words],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(paths: Paths, site: Hub, *words: str) -> tuple[int, str, str]:
    with command(paths, site, *words) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def test_without_a_homeport_a_model_is_fetched_to_this_machine(paths: Paths, site: Hub, config: Path) -> None:
    code, out, err = run(paths, site, "far", "--config", str(config))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "this machine: has it"
    assert "this machine: fetching 0 % of 3 MiB from hf" in lines
    file = paths.fetched / "o/r/m.gguf"
    assert part_of(file) == part_of(site.files["o/r/m.gguf"].path)
    code, out, _ = run(paths, site, SOURCE, "--json")
    told = json.loads(out)
    assert (code, told["source"], told["done"]) == (0, SOURCE, True)
    assert told["machines"]["this machine"]["state"] == "whole"
    assert site.total == file.stat().st_size


def test_a_whole_repository_is_pulled(paths: Paths, site: Hub, tmp_path: Path) -> None:
    site.files |= add_all(make_repository(tmp_path / "repository"), "o/whole")
    code, out, err = run(paths, site, "hf:o/whole")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "this machine: has it"
    assert "this machine: fetching 0 % of 4 MiB from hf" in out
    assert lacking(paths.fetched / "o/whole") is None


def test_what_fails_is_told_with_exit_code_1(paths: Paths, site: Hub) -> None:
    code, _, err = run(paths, site, "hf:o/r:nope.gguf")
    assert code == 1
    assert err.startswith("this machine: o/r has no file nope.gguf. Look at ")
    code, out, _ = run(paths, site, "hf:o/r:nope.gguf", "--json")
    assert (code, json.loads(out)["done"]) == (1, False)


def test_ctrl_c_ends_it_and_the_next_one_goes_on_from_there(paths: Paths, site: Hub) -> None:
    go = threading.Event()
    site.files["o/r/m.gguf"].slow = go
    with command(paths, site, SOURCE) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in (paths.fetched / ".partial").glob("*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "It was ended. What is there stays: the same command goes on from there.\n"
    assert ours(paths, "models") == []
    go.set()
    site.files["o/r/m.gguf"].slow = None
    assert run(paths, site, SOURCE)[0] == 0
    assert "bytes=" in site.asked[-1]


def test_a_line_of_a_log_says_tenths() -> None:
    told = [
        "fetching 43 % of 1.2 GiB from hf",
        "fetching 9 % of 4 MiB from den-pc",
        "fetching 100 % of 7 bytes",
    ]
    assert [live.tenths(line).split(" %")[0] for line in told] == [
        "fetching 40",
        "fetching 0",
        "fetching 100",
    ]

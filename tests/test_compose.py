"""configs/compose: what can be seen of it without Docker, and, where there is one, one life in a container."""

import ast
import fnmatch
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cluster.build import sources
from cluster.ending import HOST_GRACE_S
from cluster.paths import Paths
from cluster.ray_cluster import OBJECT_STORE_BYTES
from cluster.router_end import GRACE_S
from cluster.stamp import LOCKS, NODEPS_LOCK, SETUP_SOURCES
from router import cli
from serving.router_limits import USUAL
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "configs" / "compose"
HEAD = yaml.safe_load((FOLDER / "compose.yaml").read_text())
WORKER = yaml.safe_load((FOLDER / "worker.yaml").read_text())
DOCKERFILE = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
SETUP_STAGE, LAST_STAGE = DOCKERFILE.split("\nFROM ")[2:]


def copied(stage: str) -> list[str]:
    """What a stage copies out of the clone."""
    lines = [line.split()[1:-1] for line in stage.splitlines() if line.startswith("COPY ")]
    return [name for names in lines if not names[0].startswith("--from") for name in names]


def mounted(service: dict[str, Any]) -> dict[str, str]:
    """Where in the container each volume or folder lies."""
    return dict(volume.split(":")[:2] for volume in service["volumes"])


@pytest.mark.parametrize("service", [HEAD["services"]["head"], WORKER["services"]["worker"]])
def test_what_a_container_runs_is_a_command_of_homeport(service: dict[str, Any]) -> None:
    program, name, *words = service["command"]
    assert program == "homeport"
    group = typer.main.get_command(cli.app)
    command = group.commands[name]  # type: ignore[attr-defined]
    command.make_context(name, list(words))


def test_a_worker_differs_from_a_head_in_what_it_runs_only() -> None:
    worker = WORKER["services"]["worker"]
    assert worker["extends"] == {"file": "compose.yaml", "service": "head"}
    assert set(worker) == {"extends", "command", "environment", "healthcheck"}
    assert WORKER["volumes"] == HEAD["volumes"]


def test_state_and_config_lie_where_homeport_looks_in_the_image() -> None:
    head = HEAD["services"]["head"]
    [environment] = [line for line in LAST_STAGE.splitlines() if line.startswith("ENV ")]
    home = environment.partition("HOMEPORT_HOME=")[2]
    assert mounted(head)["state"] == home
    assert (FOLDER / "..").resolve() == ROOT / "configs"
    assert "\nWORKDIR /homeport\n" in DOCKERFILE
    assert mounted(head)[".."] == "/homeport/configs"
    paths = Paths(Path(home), Path("/run/lock/homeport"))
    assert paths.ray_folder.parent == paths.home
    assert mounted(head)["/run/lock"] == "/run/lock"


def test_a_head_is_asked_where_it_listens_and_has_time_and_room() -> None:
    head = HEAD["services"]["head"]
    listen = yaml.safe_load((ROOT / "configs" / "homeport.yaml").read_text())["router"]["listen"]
    assert f"http://{listen}/ready" in head["healthcheck"]["test"][-1]
    assert int(head["stop_grace_period"].removesuffix("s")) > USUAL.drain_s + GRACE_S + 2 * HOST_GRACE_S
    assert int(head["shm_size"].removesuffix("m")) << 20 > 2 * OBJECT_STORE_BYTES


def test_the_image_has_all_of_the_build_and_no_key_and_no_root() -> None:
    names = copied(LAST_STAGE)
    assert {name.partition("/")[0] for name in sources()} | {"configs", "pyproject.toml"} <= set(names)
    users = [line for line in LAST_STAGE.splitlines() if line.startswith("USER ")]
    assert users == ["USER homeport"]
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    for name in {*names, *copied(SETUP_STAGE)}:
        assert any(fnmatch.fnmatch(name.partition("/")[0].rstrip("*"), rule[1:]) for rule in rules), name
    assert rules.index("configs/keys.yaml") > rules.index("!configs")


def test_what_is_installed_first_is_all_that_set_up_needs() -> None:
    names = copied(SETUP_STAGE)

    def has(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in names)

    for name in (*SETUP_SOURCES, *LOCKS.values(), NODEPS_LOCK):
        assert has(name), name
    for name in [name for name in names if name.endswith(".py")]:
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cluster"):
                found = [f"{node.module}.{each.name}" for each in node.names] + [str(node.module)]
                modules = [each.replace(".", "/") + ".py" for each in found]
                assert any(has(module) for module in modules if (ROOT / module).exists()), (name, modules)


# with Docker: `make test-compose`

PROJECT = "homeport-test"
BUILD_S, READY_S = 3000.0, 120.0


def compose_command() -> list[str]:
    """`docker compose`, or docker-compose; skips where neither is there or no daemon answers."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and ran([*command, "version"]).returncode == 0:
            break
    else:
        pytest.skip("there is neither `docker compose` nor docker-compose")
    if ran(["docker", "version"]).returncode != 0:
        pytest.skip("no Docker daemon answers")
    return command


def ran(command: list[str], timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


class Containers:
    """The compose file of this clone, under names, ports and locks that disturb no homeport of this machine."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        config = {
            "router": {"listen": f"127.0.0.1:{self.port}"},
            "network": {"control": free_port(), "files": free_port(), "ports": "18100-18109"},
            "models": [{"name": "smollm2", "source": "bundled", "needs": {"cores": 1, "memory": "1GiB"}}],
        }
        (folder / "configs").mkdir()
        (folder / "configs" / "homeport.yaml").write_text(yaml.safe_dump(config))
        (folder / "lock").mkdir()
        (folder / "lock").chmod(0o1777)
        text = (FOLDER / "compose.yaml").read_text()
        for old, new in (
            ("127.0.0.1:8000/ready", f"127.0.0.1:{self.port}/ready"),
            ("container_name: homeport\n", f"container_name: {PROJECT}\n"),
            ("image: homeport\n", f"image: {PROJECT}\n"),
            ("{name: homeport-state}", f"{{name: {PROJECT}-state}}"),
            ("context: ../..\n", f"context: {ROOT}\n      network: host\n"),
            ("- ..:", f"- {folder}/configs:"),
            ("- /run/lock:", f"- {folder}/lock:"),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        self._file = folder / "compose.yaml"
        self._file.write_text(text)
        self._command = [*compose_command(), "-p", PROJECT, "-f", str(self._file)]

    def __call__(self, *words: str, timeout_s: float = READY_S) -> str:
        done = ran([*self._command, *words], timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> float:
        """Until Docker calls it healthy. Returns the seconds that took."""
        began = time.monotonic()
        self("up", "-d")
        while self.inspect("{{.State.Health.Status}}") != "healthy":
            assert time.monotonic() - began < READY_S, self("logs")
            time.sleep(0.5)
        return time.monotonic() - began

    def inspect(self, what: str) -> str:
        return ran(["docker", "inspect", "-f", what, PROJECT]).stdout.strip()

    def ask(self, *words: str) -> dict[str, Any]:
        """One turn of a chat of which `words` were said so far, in turns; what the answer says of its home."""
        messages = [{"role": ("user", "assistant")[at % 2], "content": said} for at, said in enumerate(words)]
        body = {"model": "smollm2", "temperature": 0, "max_tokens": 16, "messages": messages}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json", "x-session-id": "tea"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            told = json.load(answer)
        return {"said": told["choices"][0]["message"]["content"], **told["homeport"]}


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    containers = Containers(tmp_path)
    yield containers
    containers("down", "--volumes")


@pytest.mark.docker
@pytest.mark.timeout(BUILD_S + 6 * READY_S)
def test_a_session_outlives_its_container(containers: Containers) -> None:
    containers("build", timeout_s=BUILD_S)
    print(f"healthy after {containers.up():.1f} s")
    question = "What is the capital of France?"
    first = containers.ask(question)
    assert (first["pin"], first["context"]) == ("new", "evaluated")
    assert "smollm2" in containers("exec", "-T", "head", "homeport", "status")
    assert containers("exec", "-T", "head", "id", "-un").strip() == "homeport"
    began = time.monotonic()
    containers("stop")
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert containers.inspect("{{.State.ExitCode}}") == "0"
    containers("down")
    print(f"healthy again after {containers.up():.1f} s")
    second = containers.ask(question, first["said"], "And of Italy?")
    assert (second["replica"], second["pin"], second["context"]) == (first["replica"], "kept", "resumed")
    containers("down")
    with pytest.raises(urllib.error.URLError):
        containers.ask(question)

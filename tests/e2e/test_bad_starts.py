"""What goes wrong at the start or below it: configs, ports, disks, model files, hosts that die. Nothing stays."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.confine import read_record
from cluster.processes import ours
from serving.source import bundled_model
from tests.e2e.installation import Homeport, eventually
from tests.e2e.talk import Conversation
from tests.e2e.test_bad_requests import chat, post

ARCHITECTURE = b"\x14\0\0\0\0\0\0\0general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama"


def refused(homeport: Homeport, *words: str, code: int = 2, args: tuple[str, ...] = ()) -> None:
    done = homeport.run("up", "--detach", "--config", *(args or (str(homeport.config),)), timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert ours(homeport.paths) == []


def edit(homeport: Homeport, old: str, new: str) -> None:
    text = homeport.config.read_text()
    assert old in text
    homeport.config.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("    hold: 1s", "    hodl: 1s", (":9:", "hodl", "hold")),
        ("    replicas: fill", "    replicas: many", (":6:", "models[0].replicas")),
        ("    hold: 1s", "    hold: 90s", (":9:", "hold", "shorter")),
        ("cores: 1", "cores: 64", ("fits nowhere", "needs 64 cores", "2 free")),
        ("memory: 1GiB", "memory: 900GiB", ("fits nowhere", "900 GiB")),
        ("models:", "models: [", (":4:", "YAML")),
        ("source: bundled", "source: missing.gguf", (":5:", "missing.gguf")),
    ],
)
def test_a_bad_config_is_refused_with_line_and_key(
    fresh: Homeport, old: str, new: str, words: tuple[str, ...]
) -> None:
    edit(fresh, old, new)
    cores = len(os.sched_getaffinity(0))
    refused(fresh, *(word.replace("2 free", f"{cores} free") if cores < 4 else word for word in words))


def test_a_model_that_is_named_twice_is_refused(fresh: Homeport) -> None:
    text = fresh.config.read_text()
    fresh.config.write_text(text + text[text.index("  - name") :])
    refused(fresh, "smollm2", "models[1].name")


def test_a_missing_config_is_refused(fresh: Homeport) -> None:
    refused(fresh, "nowhere.yaml", "--config", args=(str(fresh.folder / "nowhere.yaml"),))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [("text.gguf", b"this is a letter, not a model\n" * 10, "GGUF"), ("empty.gguf", b"", "GGUF")],
)
def test_a_file_that_is_no_model_is_refused(fresh: Homeport, name: str, content: bytes, word: str) -> None:
    (fresh.folder / name).write_bytes(content)
    edit(fresh, "source: bundled", f"source: {fresh.folder / name}")
    refused(fresh, ":5:", word)


def test_a_truncated_model_is_refused(fresh: Homeport) -> None:
    whole = bundled_model().read_bytes()
    (fresh.folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    edit(fresh, "source: bundled", f"source: {fresh.folder / 'cut.gguf'}")
    refused(fresh, ":5:", "cut.gguf")


def test_an_unreadable_model_is_refused(fresh: Homeport) -> None:
    path = fresh.folder / "folder.gguf"
    path.mkdir()
    edit(fresh, "source: bundled", f"source: {path}")
    refused(fresh, ":5:", "folder.gguf")


@pytest.mark.parametrize("which", ["router", "control"])
def test_a_taken_port_names_who_holds_it(fresh: Homeport, which: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", fresh.ports[which]))
        holder.listen()
        refused(fresh, str(fresh.ports[which]), f"pid {os.getpid()}")


def test_a_taken_port_of_hosts_is_passed_over(fresh: Homeport) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", fresh.ports["first"]))
        holder.listen()
        fresh.up()
        assert fresh.ports["first"] not in {r["port"] for r in fresh.replicas()}
        assert Conversation(fresh.url, "past-the-port").say("Hello", 4).error is None


def test_a_model_that_cannot_load_is_failed_with_its_last_words(fresh: Homeport) -> None:
    whole = bundled_model().read_bytes()
    assert whole.count(ARCHITECTURE) == 1
    broken = fresh.folder / "foreign.gguf"
    broken.write_bytes(whole.replace(ARCHITECTURE, ARCHITECTURE[:-5] + b"llamb"))
    edit(fresh, "source: bundled", f"source: {broken}")
    process = fresh.popen("up", "--config", str(fresh.config))
    try:
        failed = eventually(
            lambda: [r for r in fresh.replicas() if r["state"] == "failed" and r["detail"]], 60
        )
        assert any("llamb" in line for r in failed for line in [r["detail"], *r["stderr"]]), failed
        assert "llamb" in fresh.run("status").stdout
        status, error = post(fresh, chat())
        assert status == 503
        assert "homeport status" in error["message"]
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_a_host_that_dies_again_and_again_while_loading_is_given_up(fresh: Homeport) -> None:
    process = fresh.popen("up", "--config", str(fresh.config))
    try:
        killed: set[int] = set()

        def kill_the_next() -> bool:
            record = read_record(fresh.paths.record(0))
            if record is not None and record.pid not in killed:
                killed.add(record.pid)
                os.kill(record.pid, signal.SIGKILL)
            return len(killed) == 5

        eventually(kill_the_next, 90)
        eventually(lambda: [r for r in fresh.replicas() if r["slot"] == 0 and "5 times" in r["detail"]], 20)
        other = eventually(
            lambda: [r for r in fresh.replicas() if r["slot"] == 1 and r["state"] == "ready"], 30
        )
        answer = Conversation(fresh.url, "the-other").say("Hello", 4)
        assert answer.headers["x-homeport-replica"] == other[0]["name"]
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A state folder on a disk of its own, of 100 MiB."""
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        block = bytes(shutil.disk_usage(folder).free // 16 or 1)
        try:
            while True:
                file.write(block)
                if shutil.disk_usage(folder).free == 0:
                    break
        except OSError:
            pass
    return path


def test_a_full_disk_refuses_the_start_and_says_so(small_disk: Path, fresh: Homeport) -> None:
    fresh.paths = type(fresh.paths)(small_disk / "home", fresh.paths.locks)
    fill(small_disk)
    refused(fresh, "No space left", "HOMEPORT_HOME", code=1)


def test_a_disk_that_fills_up_refuses_new_homes_and_keeps_the_old(small_disk: Path, fresh: Homeport) -> None:
    fresh.paths = type(fresh.paths)(small_disk / "home", fresh.paths.locks)
    fresh.up()
    talk = Conversation(fresh.url, "before")
    assert talk.say("Hello", 4).error is None
    filler = fill(small_disk)
    codes = {post(fresh, chat(max_tokens=4), {"x-session-id": f"after-{n}"})[1]["code"] for n in range(3)}
    assert codes == {"state_folder_full"}
    kept = talk.say("Hello again", 4)
    assert kept.error is None, kept
    assert kept.headers["x-homeport-pin"] == "kept"
    filler.unlink()
    assert Conversation(fresh.url, "later").say("Hello", 4).error is None

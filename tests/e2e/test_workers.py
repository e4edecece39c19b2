"""A homeport whose router has two processes: what a person sees of it, from `up` to `down`."""

import os
import signal
from pathlib import Path

import pytest

from cluster.processes import ours
from router.lifecycle import end_everything
from tests.e2e.installation import Homeport, eventually, get_json
from tests.e2e.talk import Conversation


def routers(homeport: Homeport) -> list[int]:
    return sorted(process.pid for process in ours(homeport.paths, "router"))


def without(killed: int, homeport: Homeport) -> list[int]:
    """Both, once the killed one has a successor."""
    found = routers(homeport)
    return found if len(found) == 2 and killed not in found else []


def with_two(homeport: Homeport) -> Homeport:
    text = homeport.config.read_text()
    listen = f"router: {{listen: 127.0.0.1:{homeport.ports['router']}"
    assert listen in text
    homeport.config.write_text(text.replace(listen, f"{listen}, workers: 2"))
    return homeport


def ready_through_all(homeport: Homeport) -> bool:
    """Each question is a connection of its own."""
    return all(get_json(f"{homeport.url}/ready")["status"] == "ready" for _ in range(12))


def test_two_workers_serve_one_address_and_end_as_one(fresh: Homeport, tmp_path: Path) -> None:
    with_two(fresh).up()
    before = routers(fresh)
    assert len(before) == 2
    assert fresh.step("router") == {"state": "ready", "detail": "2 workers", "pids": before}
    eventually(lambda: ready_through_all(fresh))
    talk = Conversation(fresh.url, "through-both")
    homes = {talk.say(words, 4).headers["x-homeport-replica"] for words in ("Hello", "And", "then", "what?")}
    assert len(homes) == 1, "each turn is a connection of its own"
    assert [answer.error for answer in talk.answers] == [None] * 4

    os.kill(before[0], signal.SIGKILL)
    after = eventually(lambda: without(before[0], fresh))
    assert before[1] in after
    eventually(lambda: fresh.step("router")["detail"] == "2 workers")
    eventually(lambda: ready_through_all(fresh))
    assert talk.say("Still there?", 4).headers["x-homeport-pin"] == "kept"
    assert fresh.run("status").returncode == 0
    assert "through-both" not in fresh.logs()

    (tmp_path / "other").mkdir()
    other = Homeport(tmp_path / "other")
    other.ports["router"] = fresh.ports["router"]
    other.configure()
    try:
        refused = with_two(other).run("up", "--detach", "--config", str(other.config), timeout=60)
        assert refused.returncode == 2
        port = fresh.ports["router"]
        assert f"Port {port} is taken by" in refused.stderr
        assert any(f"(pid {pid})" in refused.stderr for pid in after)
    finally:
        end_everything(other.paths)

    assert fresh.run("down", timeout=30).returncode == 0
    assert ours(fresh.paths) == []
    assert not fresh.paths.workers.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_foreground_up_ends_both(fresh: Homeport, number: signal.Signals) -> None:
    process = with_two(fresh).popen("up", "--config", str(fresh.config))
    try:
        assert process.stdout
        for line in process.stdout:
            if "Listening on" in line:
                break
        assert len(routers(fresh)) == 2
        process.send_signal(number)
        told, _ = process.communicate(timeout=20)
        assert "Everything is ended" in told
    finally:
        process.kill()
        process.communicate()
    assert ours(fresh.paths) == []

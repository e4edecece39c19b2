"""What people see of a running homeport."""

import io
import re
import time

import pytest
from rich.console import Console, RenderableType

from router import live

ID = "hp_4c999fe24e7fc3a31c65df9a"
SESSION = {
    "id": ID,
    "model": "a-model-with-a-long-name",
    "machine": "a-machine-with-a-long-name",
    "replica": "a-machine-with-a-long-name/0",
    "state": "resident",
    "context_tokens": 57,
    "turns": 1,
    "age_s": 4.0,
}


def seen(view: RenderableType, width: int = 80) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width).print(view)
    return screen.getvalue()


def replica(state: str, progress: float) -> dict[str, object]:
    return {
        "name": "den/0",
        "model": "smollm2",
        "state": state,
        "progress": progress,
        "detail": "",
        "slice": {"cores": [0], "gpus": [], "memory_bytes": 2**30},
        "stderr": [],
    }


def test_a_public_id_is_never_cut_so_that_it_can_be_copied() -> None:
    assert ID in seen(live.sessions_table([SESSION]), width=60)


def test_the_line_to_try_asks_for_a_key_only_where_one_is_needed() -> None:
    run = {"url": "http://127.0.0.1:8000"}
    assert "authorization" not in live.curl_line(run, "smollm2")
    assert "-H 'authorization: Bearer KEY'" in live.curl_line({**run, "keys": True}, "smollm2")


def test_a_loading_replica_shows_how_far_it_is() -> None:
    def bar(state: str, progress: float) -> int:
        """How much of the screen is filled by the bar."""
        machine = {"name": "den", "state": "ready", "hardware": {"cores": [0, 1], "memory_bytes": 2**30}}
        fleet = {"machines": [{**machine, "replicas": [replica(state, progress)]}]}
        screen = io.StringIO()
        console = Console(file=screen, width=120, force_terminal=True, color_system="truecolor")
        console.print(live.up_view({"steps": {}}, fleet, []))
        parts = re.findall(r"\x1b\[([0-9;]*)m(━+)", screen.getvalue())
        return len(parts[0][1]) if parts else 0

    assert 0 < bar("loading", 0.25) < bar("loading", 0.75)
    assert bar("ready", 1.0) == 0


def test_states_are_whole_on_a_narrow_terminal() -> None:
    short = {"model": "smollm2", "machine": "den-pc", "replica": "den-pc/0"}
    text = seen(live.sessions_table([{**SESSION, **short}, {**SESSION, "state": "waiting"}]), width=80)
    assert "resident" in text
    assert "waiting" in text


def test_a_program_that_reads_it_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert live.console().width == live.PIPE_WIDTH
    monkeypatch.setenv("COLUMNS", "60")
    assert live.console().width == 60


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"state": "ready"}, "ready"),
        ({"state": "cordoned", "cordoned": True}, "cordoned"),
        ({"state": "unknown"}, "not heard yet since the controller began"),
        ({"state": "lost", "away_s": 125.0}, "lost, last heard 2 min ago"),
        ({"state": "lost", "away_s": 40.0, "cordoned": True}, "lost, last heard 40 s ago, cordoned"),
        ({"state": "yielded", "yielded": {"by": "steam", "until": None}}, "yielded to steam"),
        ({"state": "yielded", "yielded": {"by": "person", "until": None}}, "yielded to its person"),
        ({"state": "yielded", "yielded": {"by": None}, "cordoned": True}, "yielded to its person, cordoned"),
        ({"state": "lost", "away_s": None}, "lost, not heard since the controller began"),
    ],
)
def test_how_a_machine_stands_is_told_in_words(machine: dict[str, object], said: str) -> None:
    assert live.standing_text(machine) == said


@pytest.mark.parametrize(
    ("reach", "state", "silent_s", "said"),
    [
        ("up", "ready", 0.4, "● ready"),
        ("suspect", "ready", 4.0, "◌ ready, no answer for 4 s"),
        ("out", "ready", 125.0, "✗ no answer for 2 min"),
        ("out", "draining", 9.0, "✗ no answer for 9 s"),
        ("out", "unknown", None, "✗ no answer"),
        ("out", "loading", 1.0, "◌ loading"),
        ("unknown", "ready", None, "● ready"),
    ],
)
def test_status_shows_how_the_router_reaches_a_host(
    reach: str, state: str, silent_s: float | None, said: str
) -> None:
    host = {**replica(state, 0.5), "reach": reach, "silent_s": silent_s}
    machine = {"name": "den", "zone": "home", "state": "ready", "hardware": None, "replicas": [host]}
    text = seen(live.status_view({"machines": [machine]}, {"url": "http://x"}), width=200)
    assert re.search(rf"{said}  ", text), text


def test_a_machine_that_is_off_the_list_is_told_with_what_to_do() -> None:
    machine: dict[str, object] = {"name": "den", "zone": "home", "state": "ready", "replicas": []}
    told = live.status_view({"machines": [{**machine, "unlisted": True}]}, {"url": "http://x"})
    assert "den is not on the list any more" in seen(told, width=300)
    assert "`homeport down` on it ends its part" in seen(told, width=300)
    assert "not on the list" not in seen(live.status_view({"machines": [machine]}, {}), width=300)


def test_status_shows_a_machine_that_is_away_whatever_is_known_of_it() -> None:
    dead = {**replica("ready", 1.0), "reach": "out"}
    gone = {"name": "attic", "zone": "home", "state": "lost", "away_s": 125.0, "replicas": [dead]}
    sliceless = {**replica("unknown", 0.0), "slice": None}
    fresh = {"name": "loft", "zone": "home", "state": "unknown", "hardware": None, "replicas": [sliceless]}
    text = seen(live.status_view({"machines": [gone, fresh]}, {"url": "http://x"}), width=160)
    assert "attic  lost, last heard 2 min ago  zone home" in text
    assert "✗ no answer" in text
    assert "loft  not heard yet" in text
    assert "ready" not in text
    up = seen(live.up_view({"steps": {}}, {"machines": [gone, fresh]}, []), width=160)
    assert "lost, last heard 2 min ago" in up


def test_until_when_is_told_as_people_say_it() -> None:
    noon = time.mktime((2026, 3, 4, 12, 0, 0, 0, 0, -1))
    assert live.until_text(noon + 7500, noon) == "14:05"
    assert live.until_text(noon + 86400, noon) == "2026-03-05 12:00"


def test_status_shows_who_else_runs_there_and_what_is_only_watched() -> None:
    there = {**replica("ready", 1.0), "foreign": [{"program": "steam", "share": 0.4}]}
    machine = {
        "name": "den",
        "zone": "home",
        "state": "ready",
        "limits": {"enforced": ["cores", "threads"], "watched": ["memory"]},
        "replicas": [there],
    }
    text = seen(live.status_view({"machines": [machine]}, {"url": "http://x"}), width=160)
    assert "enforced: cores, threads; only watched: memory" in text
    assert f"on the cores of {there['name']}: steam 40% of a core" in text
    quiet = {**machine, "replicas": [{**there, "foreign": []}], "limits": {"enforced": [], "watched": []}}
    text = seen(live.status_view({"machines": [quiet]}, {"url": "http://x"}), width=160)
    assert "only watched" not in text
    assert "on the cores of" not in text


def test_status_shows_gpus_who_shares_them_who_else_is_on_them_and_which_do_not_work() -> None:
    hold = {"uuid": "GPU-a", "memory_bytes": 2**33, "parts": [0, 1], "shared": True, "share": 0.1}
    held = {"cores": [0], "gpus": ["GPU-a"], "memory_bytes": 2**30, "gpu_holds": [hold]}
    game = {"gpu": "GPU-a", "pid": 4711, "program": "blender", "memory_bytes": 3 * 2**30}
    unknown = {"gpu": "GPU-a", "pid": 4712, "program": "?", "memory_bytes": None}
    there = {**replica("ready", 1.0), "slice": held, "foreign_gpu": [game, unknown]}
    hardware = {
        "cores": [0],
        "memory_bytes": 2**33,
        "gpu_trouble": "an NVIDIA card without its driver: it is not used",
        "gpus": [
            {"uuid": "GPU-a", "name": "A card", "memory_bytes": 2**34},
            {"uuid": "GPU-b", "name": "A card", "memory_bytes": 0, "state": "lost", "reason": "GPU is lost"},
            {"uuid": "AMD-c", "name": "A card", "memory_bytes": 0, "kind": "inventory only"},
        ],
    }
    machine = {
        "name": "den",
        "zone": "home",
        "state": "ready",
        "hardware": hardware,
        "reserve": {"cores": 0, "memory_bytes": 0},
        "replicas": [there],
        "gpus": {"GPU-a": {"state": "hung", "reason": "no answer for 10 s"}},
    }
    text = seen(live.status_view({"machines": [machine]}, {"url": "http://x"}), width=160)
    assert "2 GPUs" in text
    assert "GPU-a (0.1, shared)" in text
    assert "on the GPUs of den/0: blender (pid 4711) 3 GiB, ? (pid 4712)" in text
    assert "GPUs: an NVIDIA card without its driver: it is not used" in text
    assert "GPU GPU-a is hung: no answer for 10 s" in text
    assert "GPU GPU-b is lost: GPU is lost" in text
    assert "GPU AMD-c (A card): no slice has it (inventory only)" in text


def test_what_a_machine_fetches_and_what_is_wrong_with_it_is_in_the_status() -> None:
    waits = {**replica("starting", 0.43), "detail": "fetching 43 % of 1.2 GiB from den-pc"}
    failed = {**replica("failed", 0.0), "name": "den/1", "detail": "o/r has no file x.gguf. Look there"}
    bringing = {
        "hf:o/r:m.gguf": {"doing": "fetching", "got": 5, "size": 100, "from": "hf", "trouble": None},
        "hf:o/r:n.gguf": {"failures": 1, "trouble": {"message": "no way out", "remedy": "See to it"}},
    }
    machine = {
        "name": "den",
        "zone": "home",
        "state": "ready",
        "replicas": [waits, failed],
        "models": {"bringing": bringing, "problem": "models cannot be copied from here: port 8091"},
    }
    text = seen(live.status_view({"machines": [machine]}, {"url": "http://x"}), width=160)
    for line in (
        "  den/0: fetching 43 % of 1.2 GiB from den-pc",
        "  den/1: o/r has no file x.gguf. Look there",
        "  hf:o/r:m.gguf: fetching 5 % of 100 bytes from hf",
        "  hf:o/r:n.gguf: no way out. See to it",
        "  models cannot be copied from here: port 8091",
    ):
        assert line in text.splitlines() or f"{line} " in text
    lines = live.plain_lines({"steps": {}}, {"machines": [machine]}, ready=False)
    assert "host den/0: fetching 40 % of 1.2 GiB from den-pc" in lines

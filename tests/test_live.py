"""What people see of a running homeport."""

import io
import re

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
        ({"state": "lost", "away_s": None}, "lost, not heard since the controller began"),
    ],
)
def test_how_a_machine_stands_is_told_in_words(machine: dict[str, object], said: str) -> None:
    assert live.standing_text(machine) == said


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

"""What real client programs sent, sent again: each later turn comes home, and only what is new is evaluated.

The router and the host are real; a script answers, as it did when the requests were recorded. `python -m
tests.clients.capture` records them anew.
"""

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from serving.model import ModelSpec
from tests.clients import captures
from tests.clients.captures import Sent
from tests.clients.programs import versions
from tests.clients.recorder import told_in
from tests.clients.scripted import AGENT, SCRIPT
from tests.host_process import HostProcess, model_spec
from tests.moving_world import Machines, World, world

MOVES_ITS_INSTRUCTIONS = "aider"
ASKS_FOR_TITLES = "claude-code-titles"
"""Claude Code 2.1.197 in a terminal: before each turn it asked for a title under the session's name."""
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """One, whose replica is for one session at a time."""
    folder = tmp_path_factory.mktemp("replays")
    script = folder / "agent.yaml"
    script.write_text(yaml.safe_dump(SCRIPT))
    plain = model_spec(context=131072, hold_s=0.1).to_json()
    spec = ModelSpec.from_json({**plain, "name": AGENT, "engine": "script", "source": str(script)})
    host = HostProcess(folder, spec, str(script), None)
    machines = Machines()
    machines.add("den", "home", host)
    try:
        host.start()
        yield machines
    finally:
        host.kill()


@pytest.fixture
async def home(tmp_path: Path, machines: Machines, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world(tmp_path, machines, machines.hosts["den"].model, monkeypatch) as home:
        yield home


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of a request."""

    sent: Sent
    pin: str
    source: str
    told: dict[str, Any]

    @property
    def prompt_tokens(self) -> int:
        return int(self.told["reused_tokens"]) + int(self.told["evaluated_tokens"])


async def replay(home: World, name: str) -> list[Turn]:
    """All requests of a capture, one after the other; those of the conversation, without the calls for a title."""
    turns = []
    async with aiohttp.ClientSession() as client:
        for sent in captures.read(name):
            data = json.dumps({**sent.body, "model": AGENT})
            async with client.post(home.url + sent.path, data=data, headers=sent.headers) as answer:
                said = await answer.read()
                assert answer.status == 200, said
                heads = answer.headers
                turns.append(Turn(sent, heads["x-homeport-pin"], heads["x-homeport-source"], told_in(said)))
    return [turn for turn in turns if is_said(turn.sent)] or turns


def is_said(sent: Sent) -> bool:
    """In a conversation in which tools are offered: what is asked beside it offers none."""
    return bool(sent.body.get("tools"))


@pytest.mark.parametrize("name", [name for name in captures.names() if name != MOVES_ITS_INSTRUCTIONS])
async def test_every_later_turn_evaluates_only_what_is_new(home: World, name: str) -> None:
    turns = await replay(home, name)
    assert len(turns) > 1
    for before, turn in itertools.pairwise(turns):
        assert turn.pin == "kept"
        assert turn.source == turns[0].source
        assert turn.told["cause"] is None, turn.told
        assert turn.told["reused_tokens"] >= before.prompt_tokens, (before.told, turn.told)


def test_only_these_ask_for_titles_and_the_like_beside_their_turns() -> None:
    """Of the others' tests none can be about those."""
    requests = {name: [is_said(sent) for sent in captures.read(name)] for name in captures.names()}
    beside = {name for name, said in requests.items() if any(said) and not all(said)}
    assert beside == {ASKS_FOR_TITLES, "open-webui", "opencode"}


async def test_aider_is_evaluated_anew_from_where_it_edits_its_history(home: World) -> None:
    first, second = await replay(home, MOVES_ITS_INSTRUCTIONS)
    assert (second.pin, second.source) == ("kept", "path")
    assert second.told["cause"].startswith("edited@")
    assert first.prompt_tokens > second.told["reused_tokens"] > second.told["evaluated_tokens"]


def test_captures_are_small_and_name_no_folder_of_who_made_them() -> None:
    assert len(captures.names()) >= 8
    for path in captures.FOLDER.iterdir():
        text = path.read_text()
        assert len(text.encode()) < MOST_BYTES, path.name
        assert not {part for part in ("/root/", "/tmp/tmp", "-fc-v") if part in text}, path.name


def test_captures_are_of_programs_that_are_pinned() -> None:
    recorded = {captures.version(name) for name in captures.names() if name != ASKS_FOR_TITLES}
    assert recorded <= set(versions().values())

"""A homeport whose model plays a script, written so that each agent program finds what it asks for."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.installation import Homeport

AGENT = "agent"
NOTE = "The harbour opens at seven."
READ_IT = "What does the file note.txt say?"
"""Asks for a tool call; the answer after it repeats the result."""
CAT = "cat note.txt"
SLOWLY = "Take your time."
"""The answer then takes some seconds."""
ANSWER = "The Rhine, the Danube and the Loire."
TITLE = "Rivers of Europe"
ASIDES = {"title": TITLE, "tags": ["Rivers"], "follow_ups": []}
"""What Open WebUI asks for beside its chats."""
MODELS = """\
  - {name: agent, engine: script, source: agent.yaml, needs: {cores: 1, memory: 512MiB}, replicas: fill,
     hold: 1s, queue: 60s, context: 131072}
"""


def _runs(tool: str, **arguments: Any) -> dict[str, Any]:
    """Where this shell is offered, the file is read with it."""
    steps = [
        {"say": "I look.", "call": {"name": tool, "arguments": arguments}},
        {"say": "It says: ${last_result}"},
    ]
    return {"when": {"last_user": "note.txt", "tools": [tool]}, "steps": steps}


SCRIPT: dict[str, Any] = {
    "rules": [
        {"when": {"system": "(?i)title", "tools": []}, "say": TITLE},
        {"when": {"last_user": "^### Task:"}, "say": json.dumps(ASIDES)},
        _runs("bash", command=CAT, description="Reads the note"),
        _runs("Bash", command=CAT, description="Reads the note"),
        _runs("run_commands", commands=[CAT]),
        _runs("exec_command", cmd=CAT),
        {"when": {"last_user": SLOWLY}, "say": ANSWER, "tokens_per_s": 2},
        {"when": {"last_user": "long story"}, "say": "on and on ", "repeat": 10_000, "tokens_per_s": 200},
    ],
    "default": {"say": ANSWER},
}


def scripted_homeport(folder: Path) -> Homeport:
    """Not started yet."""
    (folder / "agent.yaml").write_text(yaml.safe_dump(SCRIPT))
    return Homeport(folder, models=MODELS)

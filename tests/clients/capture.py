"""`python -m tests.clients.capture [NAME …]`: has the clients talk to a scripted model, and writes what they send.

An SDK says two things; an agent is asked for what needs a tool, then something else after a restart. Open WebUI's is
written by its test, where HOMEPORT_CAPTURES is set.
"""

import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.clients import captures
from tests.clients.chat import chat
from tests.clients.programs import Programs, programs, versions
from tests.clients.scenarios import ANOTHER, Client, rivers, say
from tests.clients.scripted import AGENT, NOTE, READ_IT, scripted_homeport
from tests.clients.sdk import Sdk
from tests.clients.test_aider import Aider
from tests.clients.test_claude_code import ClaudeCode
from tests.clients.test_cline import Cline
from tests.clients.test_codex import Codex
from tests.clients.test_continue import Continue
from tests.clients.test_llm import Llm
from tests.clients.test_opencode import Opencode
from tests.e2e.installation import Homeport, ended_after

SOME_HOME, SOME_KERNEL = "/home/me", "6.1.0-1-amd64"


@dataclass(frozen=True, slots=True)
class Play:
    """What is said, a run of the program each."""

    client: Client
    package: str
    opening: str = ""
    goes_on: bool = True
    """After a restart."""


def plays(found: Programs) -> Mapping[str, Play]:
    return {
        "aider": Play(Aider(found), "aider-chat"),
        "anthropic-node": Play(Sdk(found, "anthropic", True, model=AGENT), "@anthropic-ai/sdk"),
        "anthropic-python": Play(Sdk(found, "anthropic", model=AGENT), "anthropic"),
        "claude-code": Play(ClaudeCode(found), "@anthropic-ai/claude-code", READ_IT),
        "cline": Play(Cline(found), "cline", READ_IT, goes_on=False),
        "codex": Play(Codex(found), "@openai/codex", READ_IT),
        "continue": Play(Continue(found), "@continuedev/cli", READ_IT),
        "langchain": Play(Sdk(found, "langchain", model=AGENT), "langchain-openai"),
        "litellm": Play(Sdk(found, "litellm", model=AGENT), "litellm"),
        "llm": Play(Llm(found, model=AGENT), "llm"),
        "openai-agents": Play(Sdk(found, "agents", model=AGENT), "openai-agents"),
        "openai-node": Play(Sdk(found, "openai", True, model=AGENT), "openai (npm)"),
        "openai-python": Play(Sdk(found, "openai", model=AGENT), "openai"),
        "opencode": Play(Opencode(found), "opencode-ai", READ_IT),
    }


def capture(homeport: Homeport, name: str, play: Play, folder: Path) -> None:
    with chat(folder, homeport.ports["router"], AGENT) as talk:
        (talk.work / "note.txt").write_text(NOTE)
        say(play.client, talk, play.opening or rivers())
        if play.goes_on:
            say(play.client, talk, ANOTHER)
        hidden = {
            talk.recorder.url: captures.SOME_URL,
            str(folder): SOME_HOME,
            str(folder).replace("/", "-"): SOME_HOME.replace("/", "-"),
            platform.release(): SOME_KERNEL,
        }
        captures.write(name, versions()[play.package], talk.turns, hidden)


def main() -> None:
    found = plays(programs())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "homeport").mkdir()
        with ended_after(scripted_homeport(Path(folder) / "homeport")) as homeport:
            homeport.up("--allow-script")
            for name in sys.argv[1:] or found:
                capture(homeport, name, found[name], Path(folder) / f"home-{name}")
                print(f"{name}: {len(captures.read(name))} requests", flush=True)


if __name__ == "__main__":
    main()

"""The SDKs as clients: a small program in each language, which keeps its history in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.chat import Chat, chat
from tests.clients.connected import printed
from tests.clients.programs import Programs
from tests.clients.scripted import AGENT, ANSWER
from tests.e2e.installation import Homeport
from tests.e2e.talk import MODEL

DRIVERS = Path(__file__).parent / "drivers"
OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
}


@dataclass(frozen=True, slots=True)
class Sdk:
    """One of those that the drivers know. It names no session."""

    programs: Programs
    name: str
    node: bool = False
    source: str = "guess"
    model: str = MODEL

    def command(self, chat: Chat, words: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        if self.node:
            driver = [self.programs.node, DRIVERS / "sdks.mjs"]
        else:
            driver = [self.programs.python("sdks"), DRIVERS / "sdks.py"]
        env = {
            "OPENAI_BASE_URL": chat.url,
            "OPENAI_API_KEY": chat.key or "unused",
            "MODEL": chat.model,
            **OFFLINE,
        }
        env |= {"ANTHROPIC_BASE_URL": chat.recorder.url, "ANTHROPIC_API_KEY": chat.key or "unused"}
        env |= {"MAX_TOKENS": str(chat.max_tokens), "PACKAGES": str(self.programs.modules)}
        return [*driver, self.name, chat.folder / "history.json", *words], env


def runs_as_printed(programs: Programs, world: Homeport, folder: Path, name: str) -> None:
    """What `homeport connect` prints for those who write programs is one. It bounds no answer: a script does."""
    with chat(folder, world.ports["router"], AGENT) as talk:
        (talk.work / "printed.py").write_text(printed(talk, name))
        talk.run([programs.python("sdks"), "printed.py"], OFFLINE)
        (turn,) = talk.turns
        assert turn.status == 200
        assert turn.answer_headers["x-homeport-source"] == "header"
        assert talk.said == f"{ANSWER}\n"

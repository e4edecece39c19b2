"""The table of clients in docs/clients.md, row by row: what such a client sends, and how its session is then known.

Where the client is tested it is what it really sent (tests/clients/captures), else what its row says of it.
"""

from pathlib import Path

import pytest

from router.identity import BodyClues, Clues, IdentityOptions, identify
from router.likeness import Message
from tests.clients import captures

PAGE = (Path(__file__).parent.parent / "docs" / "clients.md").read_text()
CHAT = BodyClues(messages=lambda: [Message("user", "hello")])
PLAIN = IdentityOptions()


def header(name: str) -> Clues:
    return Clues([(name.encode(), b"tea")], body=CHAT)


def sent(name: str) -> Clues:
    """The headers of a captured request, with a chat for a body."""
    headers = captures.read(name)[-1].headers
    return Clues([(each.encode(), value.encode()) for each, value in headers.items()], body=CHAT)


KNOWN = {
    "opencode": (sent("opencode"), PLAIN, "header"),
    "Claude Code": (sent("claude-code"), PLAIN, "header"),
    "Codex": (sent("codex"), PLAIN, "header"),
    "llama.cpp's web page": (header("x-conversation-id"), PLAIN, "header"),
    "Open WebUI": (sent("open-webui"), PLAIN, "header"),
    "LibreChat": (header("x-conversation-id"), PLAIN, "header"),
    "pi": (header("session_id"), PLAIN, "header"),
    "Zed": (Clues(body=BodyClues(prompt_cache_key="tea")), PLAIN, "body"),
    "LiteLLM's proxy, before homeport": (header("x-litellm-session-id"), PLAIN, "header"),
    "Home Assistant": (
        Clues(body=BodyClues(others={"user": "tea"})),
        IdentityOptions(fields=("user",)),
        "body",
    ),
    "aider": (Clues(path_session="aider", body=CHAT), PLAIN, "path"),
    "Cline, Roo Code, Continue, `llm`, AnythingLLM": (sent("cline"), PLAIN, "guess"),
    "pages in a browser that ask by themselves, of another site than the router's": (
        Clues([(b"origin", b"http://notes.example")], body=CHAT),
        PLAIN,
        "guess",
    ),
    "OpenAI's SDKs, LangChain, LlamaIndex, your own code": (sent("openai-python"), PLAIN, "guess"),
    "Cursor": (Clues(body=CHAT), PLAIN, "guess"),
}


def test_every_row_is_played() -> None:
    table = PAGE.partition("\n## Clients\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == list(KNOWN)


@pytest.mark.parametrize("client", KNOWN)
def test_a_row_is_known_as_it_says(client: str) -> None:
    clues, options, source = KNOWN[client]
    assert identify(clues, options=options).source == source


@pytest.mark.parametrize("name", ["cline", "continue", "llm", "langchain", "openai-node", "litellm"])
def test_of_those_who_name_nothing_none_does(name: str) -> None:
    assert identify(sent(name)).source == "guess"

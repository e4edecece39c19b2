"""Open WebUI, driven in a browser: its server is the client, its pages are a person's.

Without the packages of models that it would run itself (locks/webui.without).
"""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import chromium  # noqa: F401  a fixture
from tests.clients import captures
from tests.clients.captures import KEEP, SOME_URL
from tests.clients.chat import Chat, chat
from tests.clients.connected import connected
from tests.clients.programs import Programs, versions
from tests.clients.recorder import Exchange
from tests.clients.scenarios import (
    ANOTHER,
    FREE_S,
    KEY,
    LONG,
    assert_goes_on,
    at_rest,
    home,
    key_of,
    rivers,
    running,
)
from tests.clients.scripted import AGENT, ANSWER, SLOWLY
from tests.e2e.installation import Homeport, eventually
from tests.ports import free_port

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

STARTS_S = 150.0
ANSWER_S = 60.0
ASIDE = "### Task:"
"""How what it asks for titles, tags and questions begins."""


class WebUi:
    """One server, with the folder that it keeps its chats in."""

    source = "header"

    def __init__(self, found: Programs, talk: Chat) -> None:
        self.chat = talk
        self._command = found.command("webui", "open-webui")

    def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        env = {
            "DATA_DIR": str(self.chat.folder / "data"),
            **dict(
                line.split("=", 1) for line in connected(self.chat, "open-webui").read_text().splitlines()
            ),
            "WEBUI_AUTH": "False",
            "WEBUI_SECRET_KEY": "of these tests",
            "OFFLINE_MODE": "True",
            "HF_HUB_OFFLINE": "1",
            "ENABLE_VERSION_UPDATE_CHECK": "False",
            "RAG_EMBEDDING_ENGINE": "openai",
            "ANONYMIZED_TELEMETRY": "False",
        }
        self.process = self.chat.start(
            [self._command, "serve", "--host", "127.0.0.1", "--port", str(port)], env
        )
        eventually(self._is_up, STARTS_S)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.chat.said[-3000:]
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:  # noqa: S310 - our own
                return int(answer.status) == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def turns(self) -> list[Exchange]:
        """Those of conversations."""
        return [turn for turn in self.chat.turns if not _is_aside(turn)]

    def asides(self) -> list[Exchange]:
        return [turn for turn in self.chat.turns if _is_aside(turn)]


def _is_aside(turn: Exchange) -> bool:
    return str(turn.body["messages"][-1]["content"]).startswith(ASIDE)


@pytest.fixture(scope="module")
def webui(
    installed: Programs, scripted: Homeport, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebUi]:
    folder: Path = tmp_path_factory.mktemp("webui") / "home"
    with chat(folder, scripted.ports["router"], AGENT) as talk:
        talk.key = KEY
        made = WebUi(installed, talk)
        made.start()
        yield made


@pytest.fixture
def page(webui: WebUi, chromium: Browser) -> Iterator[Page]:  # noqa: F811
    context = chromium.new_context()
    yield opened(context.new_page(), webui.url)
    context.close()


def opened(page: Page, url: str) -> Page:
    """Ready to be written to."""
    page.goto(url)
    expect(page.locator("#chat-input")).to_be_visible(timeout=60_000)
    news = page.get_by_role("button", name="Okay, Let's Go!")
    page.add_locator_handler(news, lambda shown: shown.click())
    return page


def write(page: Page, words: str) -> None:
    page.locator("#chat-input").click()
    page.keyboard.type(words)
    page.keyboard.press("Enter")


def answered(webui: WebUi, before: int, count: int = 1) -> list[Exchange]:
    """The turns behind the first `before`, once there are so many and homeport has told of each."""

    def whole() -> bool:
        turns = webui.turns()[before:]
        return len(turns) >= count and all(turn.told for turn in turns)

    eventually(whole, ANSWER_S)
    return webui.turns()[before:]


def test_two_conversations_at_once_get_two_homes(
    scripted: Homeport,
    webui: WebUi,
    page: Page,
    chromium: Browser,  # noqa: F811
) -> None:
    at_rest(scripted)
    before = len(webui.turns())
    context = chromium.new_context()
    other = opened(context.new_page(), webui.url)
    write(page, f"{rivers()} {SLOWLY}")
    write(other, f"{rivers()} {SLOWLY}")
    turns = answered(webui, before, 2)
    context.close()
    assert len({home(turn) for turn in turns}) == 2
    assert {key_of(turn) for turn in webui.chat.turns} == {KEY}


def test_turns_stay_and_titles_do_not_disturb(scripted: Homeport, webui: WebUi, page: Page) -> None:
    at_rest(scripted)
    before, asides = len(webui.turns()), len(webui.asides())
    write(page, rivers())
    (first,) = answered(webui, before)
    eventually(lambda: len(webui.asides()) > asides and all(aside.told for aside in webui.asides()), ANSWER_S)
    write(page, ANOTHER)
    _, second = answered(webui, before, 2)
    assert_goes_on(first, second, webui)
    named = first.answer_headers["x-homeport-session"]
    beside = [aside for aside in webui.asides()[asides:] if aside.told]
    assert {aside.answer_headers["x-homeport-session"] for aside in beside} == {named}
    if os.environ.get(KEEP):
        kept = [turn for turn in webui.chat.turns if turn.answer_headers.get("x-homeport-session") == named]
        captures.write("open-webui", versions()["open-webui"], kept, {webui.chat.recorder.url: SOME_URL})


def test_cancel_frees(scripted: Homeport, webui: WebUi, page: Page) -> None:
    at_rest(scripted)
    before = len(webui.turns())
    write(page, LONG)
    eventually(lambda: len(webui.turns()) > before and len(webui.turns()[-1].answer) > 8000, ANSWER_S)
    assert running(scripted) >= 1
    page.get_by_role("button", name="Stop").click()
    eventually(lambda: running(scripted) == 0, FREE_S)
    assert not webui.turns()[-1].told


def test_a_restart_of_the_client_resumes(scripted: Homeport, webui: WebUi, page: Page) -> None:
    at_rest(scripted)
    before = len(webui.turns())
    write(page, rivers())
    (first,) = answered(webui, before)
    page.wait_for_url("**/c/*")
    path = page.url.partition("/c/")[2]
    expect(page.get_by_text(ANSWER)).to_be_visible()
    webui.stop()
    webui.start()
    opened(page, f"{webui.url}/c/{path}")
    expect(page.get_by_text(ANSWER)).to_be_visible(timeout=60_000)
    write(page, ANOTHER)
    _, second = answered(webui, before, 2)
    assert_goes_on(first, second, webui)

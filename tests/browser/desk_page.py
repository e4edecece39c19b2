"""A desk in a tab, as its person uses it."""

import json
import re
from typing import Any

from playwright.sync_api import Locator, expect

from tests.browser.tab import Tab

ANSWER_MS = 60_000
"""The bundled model's, on a core that others use too."""


class DeskPage:
    def __init__(self, tab: Tab, url: str, machine: str) -> None:
        self.tab, self.page = tab, tab.page
        self.page.goto(f"{url}/desk/{machine}")

    @property
    def input(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message")

    @property
    def log(self) -> Locator:
        return self.page.get_by_role("log")

    @property
    def asked(self) -> Locator:
        return self.page.locator(".asked .words")

    @property
    def answers(self) -> Locator:
        return self.page.locator(".answered:not(.growing) .words")

    @property
    def why(self) -> Locator:
        """Why nothing is said yet."""
        return self.page.locator("#why")

    def ready(self) -> "DeskPage":
        """It has heard from the router."""
        expect(self.page.locator("#load")).not_to_be_empty()
        return self

    def send(self, words: str) -> None:
        """Type and press Enter."""
        self.input.fill(words)
        self.input.press("Enter")

    def begins(self) -> None:
        """Something of an answer is there."""
        expect(self.page.locator(".growing .words")).not_to_be_empty(timeout=ANSWER_MS)

    def ended(self) -> None:
        """Nothing is asked any more."""
        expect(self.page.get_by_role("button", name="Send", exact=True)).to_be_visible(timeout=ANSWER_MS)

    def sent(self, words: str) -> dict[str, Any]:
        """Send it; the body of the request."""
        with self.page.expect_request("**/chat/completions") as asked:
            self.send(words)
        body: dict[str, Any] = json.loads(asked.value.post_data or "")
        return body

    def ask(self, words: str) -> dict[str, Any]:
        """Send it, and what is told of the answer once it has ended."""
        self.send(words)
        return self.told()

    def told(self) -> dict[str, Any]:
        self.ended()
        meta = self.page.locator(".answered").last.locator(".meta").inner_text()
        found = re.match(r"(\w+)(?: \((.*?)\))? · (\d+) tokens reused, (\d+) evaluated", meta)
        assert found, meta
        return {"context": found[1], "cause": found[2], "reused": int(found[3]), "evaluated": int(found[4])}

    def act(self, name: str) -> None:
        """Press the button of that name that is there of the last turn."""
        self.page.locator("article").get_by_role("button", name=name, exact=True).last.click()

"""A page in a real Chromium that must ask nobody but this machine and must say no error, and how it is looked at."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request

T = TypeVar("T")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
WAIT_MS = 10_000
BAD = ("serious", "critical")
"""Violations that axe-core must not find."""


class Tab:
    """One page in a context of its own, so that nothing is kept from test to test."""

    def __init__(self, browser: Browser, **context: Any) -> None:
        self.context: BrowserContext = browser.new_context(**context)
        self.context.set_default_timeout(WAIT_MS)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.asked: list[str] = []
        """All that it asked for, in order."""
        self.expects: list[str] = []
        """Parts of the errors that the test provokes: a browser calls every answer of 400 and more one."""
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def _asked(self, request: Request) -> None:
        self.asked.append(request.url)

    def close(self) -> None:
        """Fails where it asked somebody else, or said an error that the test did not expect."""
        self.context.close()
        elsewhere = [url for url in self.asked if not _is_here(url)]
        assert elsewhere == [], "it asks others than this machine"
        assert [e for e in self.errors if not any(part in e for part in self.expects)] == []

    def violations(self) -> list[str]:
        """What axe-core finds that is serious or worse: rule and elements, one a line."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{each['id']}: {node['html']} {node['failureSummary']}"
            for each in found
            if each["impact"] in BAD
            for node in each["nodes"]
        ]


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.netloc.rpartition(":")[0] in LOOPBACK


class Beside:
    """An event loop on a thread of its own, for what a page talks to: the browser has the test's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="beside")
        self._thread.start()
        self._stack = AsyncExitStack()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 30.0) -> T:
        """On that loop, to its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def enter(self, what: AbstractAsyncContextManager[T], timeout_s: float = 30.0) -> T:
        """Until `close`."""
        return self.run(self._stack.enter_async_context(what), timeout_s)

    def close(self) -> None:
        try:
            self.run(self._stack.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def shot(page: Page, path: Path, **more: Any) -> Path:
    """A picture of it, of what is on the screen, without what moves."""
    page.screenshot(path=path, animations="disabled", caret="hide", **more)
    return path

"""One browser for all tests of pages, a context for each; what a page talks to runs beside it.

The browser is the folder's, not the session's: while Playwright runs, its thread has a loop that others' tests trip
over.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.packages import REMEDY, browser
from tests.browser.tab import Beside, Tab


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    path = browser()
    if path is None:
        pytest.skip(f"no Chromium here; {REMEDY}")
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses root.
        found = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        try:
            yield found
        finally:
            found.close()


@pytest.fixture
def beside() -> Iterator[Beside]:
    """For what a test starts itself."""
    made = Beside()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def new_tab(chromium: Browser) -> Iterator[Callable[..., Tab]]:
    """Makes tabs; takes what Playwright's `new_context` takes. Each is looked at when the test ends."""
    made: list[Tab] = []

    def make(**context: Any) -> Tab:
        made.append(Tab(chromium, **context))
        return made[-1]

    yield make
    for tab in made:
        tab.close()


@pytest.fixture
def tab(new_tab: Callable[..., Tab]) -> Tab:
    return new_tab()

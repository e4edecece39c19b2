"""`python -m tests.browser.screenshots [FOLDER]`: pictures of the board and the desk as they are while sessions talk.

The machines' hardware is made up, everything else is real: see scene.py.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from playwright.sync_api import Browser, Page, sync_playwright

from cluster.slices import Need
from tests.browser.packages import REMEDY, browser
from tests.browser.scene import GIB, Scene, hardware, playing
from tests.browser.tab import Beside, Tab, shot
from tests.host_process import model_spec
from tests.moving_world import World

DOCS = Path(__file__).parents[2] / "docs"
MOST_BYTES = 200 * 1024
MODEL = model_spec(context=1024, hold_s=30.0, queue_s=600.0)
SHARED = model_spec(context=4096, hold_s=30.0, queue_s=600.0, sessions=4)
LOST_AFTER_S = 3.0
ASKS = (
    "Write a long story about a harbour, its ships and the people who come home to it.",
    "Explain in many words how a tide table is read, and why it matters.",
    "Tell me everything about knots, one after another, with their uses.",
)
DESK_ASKS = ("Name three colours.", "What is the capital of France?")


def build(folder: Path) -> Scene:
    """Four machines in two zones."""
    scene = Scene(folder)
    two = (Need(4, 8 * GIB, 1), Need(2, 2 * GIB, 0))
    scene.build("attic", "home", hardware(8, 4, 64, (("RTX 4090", 24),)), two, spec=MODEL)
    scene.build("den-pc", "home", hardware(6, 0, 32), (Need(4, 4 * GIB, 0),), spec=SHARED)
    scene.build("laptop", "home", hardware(2, 4, 16), (Need(2, 2 * GIB, 0),), spec=MODEL)
    office = (Need(6, 16 * GIB, 1), Need(6, 16 * GIB, 1))
    scene.build("office-1", "office", hardware(16, 0, 128, (("L40S", 48), ("L40S", 48))), office, spec=MODEL)
    return scene


class Talk:
    """Sessions that go on talking until it ends."""

    def __init__(self, made: World) -> None:
        self._made = made
        self._talking: list[asyncio.Task[None]] = []

    async def said(self, session: str, machine: str, tokens: int = 24) -> None:
        """One turn, to its end."""
        await self._turn(session, machine, tokens)

    async def begin(self, *turns: tuple[str, str]) -> None:
        """Sessions, each at its machine."""
        for turn in turns:
            self._talking.append(asyncio.create_task(self._for_ever(*turn)))

    async def _for_ever(self, session: str, machine: str) -> None:
        while True:
            with suppress(aiohttp.ClientError):
                await self._turn(session, machine, 900)
            await asyncio.sleep(0.2)

    async def _turn(self, session: str, machine: str, tokens: int) -> None:
        ask = ASKS[len(session) % len(ASKS)]
        body = {"model": MODEL.name, "stream": True, "max_tokens": tokens, "temperature": 0.8}
        body["messages"] = [{"role": "user", "content": ask}]
        url = f"{self._made.url}/m/{machine}/v1/chat/completions"
        async with self._made.client.post(url, json=body, headers={"x-session-id": session}) as answer:
            async for _ in answer.content.iter_chunked(4096):
                pass

    async def end(self) -> None:
        for task in self._talking:
            task.cancel()
        await asyncio.gather(*self._talking, return_exceptions=True)


async def fill(made: World, scene: Scene, talk: Talk) -> None:
    """Sessions in every state, and a machine that is lost."""
    for session, machine in (
        ("letters", "laptop"),
        ("taxes", "attic"),
        ("garden", "attic"),
        ("recipes", "attic"),
        ("minutes", "office-1"),
    ):
        await talk.said(session, machine)
    await talk.begin(("tea", "den-pc"), ("novel", "den-pc"), ("review", "office-1"), ("bench", "attic"))
    await asyncio.sleep(2.0)
    await talk.begin(("homework", "attic"), ("travel", "attic"))
    await made.ask("POST", "/api/machines/office-1/cordon")
    scene.away.add("laptop")
    scene.hosts["laptop"].kill()
    await asyncio.sleep(LOST_AFTER_S + 6.0)


WIDE: dict[str, Any] = {"viewport": {"width": 1440, "height": 940}, "reduced_motion": "reduce"}


def boards(chromium: Browser, url: str, docs: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 780}, "device_scale_factor": 2, "reduced_motion": "reduce"}
    for name, context in (
        ("board-light", {**WIDE, "color_scheme": "light"}),
        ("board-dark", {**WIDE, "color_scheme": "dark"}),
        ("board-phone", {**phone, "color_scheme": "light"}),
    ):
        take(chromium, docs / f"{name}.png", f"{url}/", context, board)


def take(
    chromium: Browser, file: Path, url: str, context: dict[str, Any], ready: Callable[[Page], None]
) -> None:
    tab = Tab(chromium, **context)
    tab.page.goto(url)
    ready(tab.page)
    shot(tab.page, file)
    tab.close()
    size = file.stat().st_size
    assert size < MOST_BYTES, f"{file.name} has {size} bytes"
    print(f"{file}: {size // 1000} kB", flush=True)


def board(page: Page) -> None:
    page.locator("[data-live=yes]").first.wait_for()
    page.locator("article[data-machine]").nth(3).wait_for()
    time.sleep(12.0)  # so that the line of speeds has a shape


def desk(page: Page) -> None:
    page.get_by_text("den-pc").first.wait_for()
    for ask in DESK_ASKS:
        field = page.get_by_label("Message", exact=True)
        field.fill(ask)
        field.press("Enter")
        page.get_by_role("button", name="Stop").wait_for()
        page.get_by_role("button", name="Send").wait_for(timeout=120_000)


def main(docs: Path) -> int:
    path = browser()
    if path is None:
        print(f"There is no Chromium here; {REMEDY}.", file=sys.stderr)
        return 1
    beside = Beside()
    with tempfile.TemporaryDirectory(prefix="homeport-pictures-") as folder:
        scene = build(Path(folder))
        try:
            made = beside.enter(playing(Path(folder), scene, MODEL, LOST_AFTER_S), 120.0)
            talk = Talk(made)
            try:
                beside.run(fill(made, scene, talk), 120.0)
                with sync_playwright() as playwright:
                    launched = playwright.chromium.launch(
                        executable_path=path, chromium_sandbox=os.geteuid() != 0
                    )
                    boards(launched, made.url, docs)
                    beside.run(talk.end())
                    take(launched, docs / "desk.png", f"{made.url}/desk/den-pc", WIDE, desk)
                    launched.close()
            finally:
                beside.run(talk.end())
        finally:
            beside.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS))

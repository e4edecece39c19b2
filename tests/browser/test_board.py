"""The board in a real Chromium, before a real router: with real hosts and a real controller behind it, or with
stand-ins for what real ones cannot be made to do in time."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.sync_api import Page, expect

from cluster.slices import Need
from tests.browser.scene import GIB, Scene, hardware, playing
from tests.browser.tab import WAIT_MS, Beside, Tab
from tests.host_process import model_spec
from tests.moving_world import World
from tests.standins import MODEL, AnswersHost, Router, routed

expect.set_options(timeout=WAIT_MS)

LOOKS: dict[str, dict[str, Any]] = {
    "dark": {"color_scheme": "dark"},
    "light": {"color_scheme": "light"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
    "wall": {"viewport": {"width": 3840, "height": 2160}},
}
SMOLLM2 = model_spec(context=1024, hold_s=0.5, queue_s=30.0)
LOST_AFTER_S = 2.0


def card(page: Page, machine: str) -> Any:
    return page.locator(f"article[data-machine={machine}]")


def sessions(page: Page, machine: str) -> Any:
    return card(page, machine).locator(".sessions li")


def open_board(tab: Tab, url: str) -> Page:
    tab.page.goto(url)
    expect(tab.page.locator("#live-text")).to_have_text("Live")
    return tab.page


# Real hosts, a real controller.


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Beside, World, Scene]]:
    """Two machines with the bundled model."""
    folder, beside = tmp_path_factory.mktemp("scene"), Beside()
    scene = Scene(folder)
    gpu = (("RTX 4090", 24),)
    scene.build("attic", "home", hardware(4, 4, 32, gpu), (Need(3, 4 * GIB, 1),), spec=SMOLLM2)
    scene.build("den", "home", hardware(2, 0, 8), (Need(2, 2 * GIB, 0),), spec=SMOLLM2)
    try:
        yield beside, beside.enter(playing(folder, scene, SMOLLM2, LOST_AFTER_S), 90.0), scene
    finally:
        beside.close()


async def say(made: World, session: str, machine: str | None, tokens: int) -> None:
    """One turn, to its end; at this machine, if one is named."""
    messages = [{"role": "user", "content": "Tell me a long story about a harbour."}]
    body = {"model": SMOLLM2.name, "stream": True, "max_tokens": tokens, "messages": messages}
    url = f"{made.url}{f'/m/{machine}' if machine else ''}/v1/chat/completions"
    async with made.client.post(url, json=body, headers={"x-session-id": session}) as answer:
        async for _ in answer.content.iter_chunked(4096):
            pass


def test_machines_and_sessions_are_shown_as_they_work(play: tuple[Beside, World, Scene], tab: Tab) -> None:
    beside, made, _ = play
    page = open_board(tab, made.url)
    attic = card(page, "attic")
    cells = attic.locator(".cores .cell")
    expect(cells).to_have_count(8)
    assert cells.all_inner_texts() == ["0", "0", "0", "", "", "", "", "R"]
    assert "attic/0, smollm2" in (cells.first.get_attribute("title") or "")
    expect(attic.locator(".gpu")).to_contain_text("RTX 4090 · 24 GiB")
    expect(attic.locator(".gpu .cell")).to_have_text("0")
    expect(attic.locator(".replicas li")).to_contain_text("smollm2")
    expect(attic).to_contain_text("No session lives here.")
    turn = asyncio.run_coroutine_threadsafe(say(made, "tea", "attic", 700), beside._loop)
    expect(sessions(page, "attic")).to_have_attribute("data-state", "running")
    expect(sessions(page, "attic")).to_contain_text("answering")
    expect(cells.first).to_have_attribute("data-held", "busy")
    expect(attic.locator(".number")).to_have_text(re.compile(r"^[1-9]\d*(\.\d)?$"))
    expect(page.locator("#sum")).to_contain_text("1 answering")
    turn.cancel()
    expect(sessions(page, "attic")).to_have_attribute("data-state", "resident")
    expect(sessions(page, "attic")).to_contain_text("warm")
    expect(cells.first).to_have_attribute("data-held", "warm")
    beside.run(say(made, "coffee", "attic", 4))
    expect(sessions(page, "attic")).to_have_count(2)
    expect(sessions(page, "attic").filter(has_text="parked")).to_have_count(1)


def test_a_machine_is_lost_and_comes_back(play: tuple[Beside, World, Scene], tab: Tab) -> None:
    beside, made, scene = play
    beside.run(say(made, "garden", "den", 4))
    page = open_board(tab, made.url)
    den = card(page, "den")
    expect(sessions(page, "den")).to_have_count(1)
    scene.hosts["den"].kill()
    scene.away.add("den")
    expect(den).to_have_attribute("data-state", "lost")
    expect(den.locator(".standing")).to_contain_text(re.compile(r"lost, last heard \d+ s ago \(\d\d:\d\d\)"))
    expect(den.locator(".fate")).to_contain_text("Sessions wait: they keep their home here")
    expect(sessions(page, "den")).to_contain_text("its machine is away")
    expect(page.get_by_role("status")).to_contain_text("den: lost")
    scene.hosts["den"].start(until=None)
    scene.away.discard("den")
    expect(den).to_have_attribute("data-state", "ready")
    expect(page.get_by_role("status")).to_contain_text("den is back.")
    expect(sessions(page, "den")).to_have_attribute("data-state", "parked")


def test_a_machine_is_drained_from_the_board(play: tuple[Beside, World, Scene], tab: Tab) -> None:
    beside, made, _ = play
    for act in ("cordon", "uncordon"):
        beside.run(made.ask("POST", f"/api/machines/attic/{act}"))
        if act == "cordon":
            beside.run(say(made, "letters", None, 4))
            beside.run(say(made, "stays", "den", 4))
    page = open_board(tab, made.url)
    expect(sessions(page, "den").filter(has_text="away")).to_have_count(0)
    before = sessions(page, "attic").count()
    card(page, "den").get_by_role("button", name="Drain den").click()
    dialog = page.get_by_role("dialog", name="Drain den?")
    expect(dialog).to_contain_text("move within zone home")
    dialog.get_by_label("Deadline, in minutes").fill("")
    dialog.get_by_role("button", name="Drain").click()
    expect(dialog.get_by_role("alert")).to_contain_text("0 or more")
    dialog.get_by_label("Deadline, in minutes").fill("0")
    dialog.get_by_role("button", name="Try again").click()
    expect(dialog).to_be_hidden()
    expect(card(page, "den")).to_have_attribute("data-state", "draining")
    expect(sessions(page, "attic")).to_have_count(before + 1)
    expect(card(page, "den").locator(".fate")).to_contain_text("Draining: moved 1 of")
    expect(card(page, "den").locator(".fate")).to_contain_text("their key names the machine")
    card(page, "den").get_by_role("button", name="Stop draining den").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop draining").click()
    expect(card(page, "den")).to_have_attribute("data-state", "ready")


# Stand-ins.


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    roles = {"anna": "use", "boss": "admin", "prom": "metrics"}
    keys = [
        {"name": name, "role": role, "sha256": sha256(name.encode()).hexdigest()}
        for name, role in roles.items()
    ]
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps(keys))
    file.chmod(0o600)
    return file


def begin(beside: Beside, router: Router, session: str, key: str | None = None, zone: str = "default") -> str:
    """A session's first turn; its public id."""
    headers = {"x-homeport-zone": zone} | ({} if key is None else {"authorization": f"Bearer {key}"})
    answer = beside.run(router.chat(session=session, headers=headers))
    assert answer.status == 200
    return answer.headers["x-homeport-session"]


def test_a_key_is_asked_for_and_stays_in_its_tab(
    beside: Beside, new_tab: Callable[..., Tab], tmp_path: Path, keys_file: Path
) -> None:
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0"), keys_file=keys_file))
    tab = new_tab()
    tab.expects += ["401", "403"]
    page = tab.page
    page.goto(router.url)
    dialog = page.get_by_role("dialog", name="Which key?")
    expect(dialog).to_contain_text("This router wants a key")
    page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    for wrong, words in (
        ("nobody's", "needs a key that it knows"),
        ("prom", "reads metrics and nothing else"),
    ):
        dialog.get_by_label("Key").fill(wrong)
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text(words)
        expect(card(page, "m0")).to_have_count(0)
    dialog.get_by_label("Key").fill("boss")
    dialog.get_by_role("button", name="Look").click()
    expect(card(page, "m0")).to_be_visible()
    page.reload()
    expect(card(page, "m0")).to_be_visible()
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie").find("boss") == -1
    other = tab.context.new_page()
    other.goto(router.url)
    expect(other.get_by_role("dialog", name="Which key?")).to_be_visible()
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_role("dialog", name="Which key?")).to_be_visible()
    expect(card(page, "m0")).to_have_count(0)
    assert "boss" not in "".join(tab.asked)


def test_a_key_that_may_not_administer_sees_its_own_and_no_buttons(
    beside: Beside, new_tab: Callable[..., Tab], tmp_path: Path, keys_file: Path
) -> None:
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0"), keys_file=keys_file))
    mine, others = begin(beside, router, "tea", "anna"), begin(beside, router, "tea", "boss")
    for key, seen, buttons in (("anna", {mine}, 0), ("boss", {mine, others}, 4)):
        tab = new_tab()
        tab.context.add_init_script(f"sessionStorage.setItem('homeport.key', '{key}')")
        page = open_board(tab, router.url)
        expect(sessions(page, "m0")).to_have_count(len(seen))
        shown = {each.get_attribute("data-session") for each in sessions(page, "m0").all()}
        assert shown == seen
        # Cordon, drain and one for each session.
        expect(card(page, "m0").get_by_role("button")).to_have_count(buttons)


def test_what_the_router_refuses_is_shown_in_its_words(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    host = AnswersHost("m0/0")
    router = beside.enter(routed(tmp_path, host))
    public = begin(beside, router, "tea")
    tab.expects += ["503", "409"]
    page = open_board(tab, router.url)
    expect(sessions(page, "m0")).to_have_count(1)
    router.controller.wakes.add("m0")
    router.controller.away["m0"] = None
    beside.run(host.stop())
    expect(sessions(page, "m0")).to_contain_text("its machine is away")
    opener = page.get_by_role("button", name=f"Act on session {public[3:9]}")
    opener.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(public)
    dialog.get_by_role("button", name="End …").click()
    dialog.get_by_role("button", name="End it").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Its home m0/0 cannot be reached")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()
    router.controller.wakes.clear()
    card(page, "m0").get_by_role("button", name="Wake m0").click()
    page.get_by_role("dialog").get_by_role("button", name="Wake").click()
    expect(page.get_by_role("alert")).to_contain_text("The config does not say how m0 is woken.")


def test_sessions_are_moved_and_ended_from_the_board(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    hosts = [AnswersHost("m0/0"), AnswersHost("m1/0"), AnswersHost("m2/0", zone="work")]
    router = beside.enter(routed(tmp_path, *hosts))
    public = begin(beside, router, "tea")
    (home,) = (host for host in hosts if host.pins)
    (other,) = {"m0", "m1"} - {home.replica[:2]}
    page = open_board(tab, router.url)
    page.get_by_role("button", name=f"Act on session {public[3:9]}").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Move …").click()
    assert dialog.get_by_label("To").locator("option").all_inner_texts() == [f"{other} (ready)"]
    dialog.get_by_role("button", name="Move it").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("status")).to_contain_text(f"The session lives at {other}/0 now")
    expect(sessions(page, other)).to_have_count(1)
    expect(sessions(page, home.replica[:2])).to_have_count(0)
    page.get_by_role("button", name=f"Act on session {public[3:9]}").click()
    dialog.get_by_role("button", name="End …").click()
    dialog.get_by_role("button", name="End it").click()
    expect(sessions(page, other)).to_have_count(0)


def test_a_board_that_is_not_live_says_so_and_comes_back(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0")))
    page = open_board(tab, router.url)
    expect(card(page, "m0").locator(".beat")).to_have_attribute("data-beat", "up")
    watch = router.parts.watch
    beside._loop.call_soon_threadsafe(watch.stop)
    expect(page.locator("#live-text")).to_contain_text("Not live since")
    expect(page.locator("#live-text")).to_contain_text("Next try in")
    expect(page.get_by_role("status")).to_contain_text("The board is not live")
    expect(card(page, "m0").locator(".beat")).to_have_attribute("data-beat", "unknown")
    watch._stopped = False
    expect(page.locator("#live-text")).to_have_text("Live")
    expect(page.get_by_role("status")).to_contain_text("The board is live again.")


class OddHost(AnswersHost):
    """Its engine failed, with words that look like a page's."""

    async def get_state(self, request: web.Request) -> web.Response:
        told = json.loads((await super().get_state(request)).text or "")
        return web.json_response(told | {"detail": ODD})


ODD = "<img src=x onerror=alert(1)> & more"


FOCUSED = """() => {
    const on = document.activeElement;
    if (on === document.body) return ["", "none"];
    return [on.getAttribute("aria-label") || on.textContent, getComputedStyle(on).outlineStyle];
}"""
"""What has the focus, by name, and whether that is seen."""


@pytest.mark.parametrize("look", sorted(LOOKS))
def test_it_is_for_everybody(beside: Beside, new_tab: Callable[..., Tab], tmp_path: Path, look: str) -> None:
    """axe-core finds nothing serious, nothing sticks out, and all of it can be reached with a keyboard."""
    hosts = [AnswersHost("m0/0"), OddHost("m0/1", state="failed"), AnswersHost("m1/0", zone="home")]
    router = beside.enter(routed(tmp_path, *hosts))
    router.controller.away["m1"] = 1234.5
    public = begin(beside, router, "tea")
    tab = new_tab(reduced_motion="reduce", **LOOKS[look])
    page = open_board(tab, router.url)
    expect(card(page, "m1")).to_have_attribute("data-state", "lost")
    expect(card(page, "m0")).to_contain_text(ODD)
    expect(sessions(page, "m0")).to_have_count(1)
    assert tab.violations() == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wanted = {"Cordon m0", "Drain m0", f"Act on session {public[3:9]}", "Cordon m1", "Drain m1"}
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        label, outline = page.evaluate(FOCUSED)
        reached.add(label)
        assert outline != "none" or not label, label
    assert wanted <= reached
    page.get_by_role("button", name="Drain m0").click()
    assert tab.violations() == []


def test_light_and_dark_are_chosen_and_remembered(
    beside: Beside, new_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0")))
    page = open_board(new_tab(color_scheme="light"), router.url)
    light = background(page)
    page.get_by_label("Light or dark").select_option("Dark")
    dark = background(page)
    assert dark != light
    page.reload()
    assert background(page) == dark
    page.get_by_label("Light or dark").select_option("Auto")
    assert background(page) == light
    page.emulate_media(color_scheme="dark")
    assert background(page) == dark


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_a_waiting_session_is_told_with_its_place(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    host = AnswersHost("m0/0")
    router = beside.enter(routed(tmp_path, host))
    begin(beside, router, "tea")
    ((digest, _),) = host.pins
    host.waiting = 2
    host.line = [{"position": 2, "session": digest, "waited_s": 30.0, "about_s": 75.0}]
    page = open_board(tab, router.url)
    expect(sessions(page, "m0")).to_contain_text(re.compile(r"waiting 3\d s, place 2 in line, about 1 min"))
    expect(card(page, "m0").locator(".replicas li")).to_contain_text("2 in line")
    assert MODEL in card(page, "m0").inner_text()

"""Boards that nobody looks at, and a router that does not answer, hold nothing up."""

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.tab import Beside, Tab
from tests.standins import AnswersHost, routed

LOOK = """(hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""
AT_MOST = 6
"""Connections of a browser to one router."""
SHORT = """
const timeout = AbortSignal.timeout.bind(AbortSignal);
AbortSignal.timeout = () => timeout(50);
"""


def live(page: Page) -> None:
    expect(page.locator("#live-text")).to_have_text("Live")


def test_boards_that_nobody_looks_at_leave_the_router_to_others(
    beside: Beside, tab: Tab, tmp_path: Path
) -> None:
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0")))
    first = tab.page
    for page in (first, *(tab.context.new_page() for _ in range(AT_MOST))):
        page.goto(router.url)
        live(page)
        page.evaluate(LOOK, True)
        expect(page.locator("#live")).to_have_attribute("data-live", "no")
    router.controller.cordoned.add("m0")
    first.evaluate(LOOK, False)
    live(first)
    expect(first.get_by_role("button", name="Uncordon m0")).to_be_visible()
    expect(first.get_by_role("status")).not_to_contain_text("not live")


def test_a_key_that_is_being_written_stays_when_its_person_looks_elsewhere(
    beside: Beside, tab: Tab, tmp_path: Path
) -> None:
    tab.expects.append("401")
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{name: anna, sha256: '{'0' * 64}'}}\n")
    keys.chmod(0o600)
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0"), keys_file=keys))
    tab.page.goto(router.url)
    field = tab.page.get_by_role("dialog", name="Which key?").get_by_label("Key")
    field.fill("half")
    for hidden in (True, False):
        tab.page.evaluate(LOOK, hidden)
    tab.page.wait_for_load_state("networkidle")
    expect(field).to_have_value("half")
    assert [url for url in tab.asked if "watch" in url] == [f"{router.url}/api/fleet?watch"]


def test_an_act_that_is_not_answered_is_told(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0")))
    tab.context.add_init_script(SHORT)
    page = tab.page
    page.route("**/api/machines/m0/cordon", lambda _: None)
    page.goto(router.url)
    page.get_by_role("button", name="Cordon m0").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cordon").click()
    expect(dialog.get_by_role("alert")).to_contain_text(
        "has not answered for 45 s. It may be done all the same"
    )
    expect(dialog.get_by_role("button", name="Try again")).to_be_enabled()

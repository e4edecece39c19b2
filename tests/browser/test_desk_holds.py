"""What a model wrote, what is kept, or what the address says does not take the desk away."""

import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.desk_page import DeskPage
from tests.browser.tab import Beside, Tab
from tests.standins import AnswersHost, Router, routed

LISTS = "\n".join(f"{'  ' * level}- a" for level in range(800))
NESTED = {
    "emphasis": "*a **b " * 4000 + "x" + " b** a*" * 4000,
    "quotes": ">" * 4000 + " x",
    "lists": LISTS,
    "lists in a line": "- " * 3000 + "x",
    "lists in quotes": "> 1. " * 500 + "x",
}
KEEP = """(it) => new Promise((resolve, reject) => {
    const request = indexedDB.open("homeport-desk", 1);
    request.onerror = reject;
    request.onsuccess = () => {
        const put = request.result.transaction("conversations", "readwrite").objectStore("conversations").put(it);
        put.onerror = reject;
        put.onsuccess = () => { request.result.close(); resolve(); };
    };
})"""
SHOW = """async (text) => {
    const { Written } = await import("/board/desk/markdown.js");
    const element = document.createElement("div");
    new Written(element).show(text);
    return [element.querySelectorAll("blockquote, li").length, element.textContent];
}"""


def opened(beside: Beside, tab: Tab, folder: Path, *words: str) -> tuple[Router, DeskPage]:
    router = beside.enter(routed(folder, AnswersHost("m0/0", words=words or ("Hello",))))
    return router, DeskPage(tab, router.url, "m0").ready()


@pytest.mark.parametrize("kind", sorted(NESTED))
def test_an_answer_that_nests_too_deep_is_shown_as_it_was_written(
    beside: Beside, tab: Tab, tmp_path: Path, kind: str
) -> None:
    text = "intro\n\n" + NESTED[kind]
    opened(beside, tab, tmp_path)
    assert tab.page.evaluate(SHOW, text) == [0, text]


def test_what_nests_as_people_write_it_and_what_is_indented_is_read(
    beside: Beside, tab: Tab, tmp_path: Path
) -> None:
    opened(beside, tab, tmp_path)
    lists = "\n".join(f"{'  ' * level}- a" for level in range(20))
    assert tab.page.evaluate(SHOW, lists)[0] == 20
    assert tab.page.evaluate(SHOW, ">" * 20 + " x")[0] == 20
    deep = "```\n" + " " * 150 + "x\n```\n\n- a"
    assert tab.page.evaluate(SHOW, deep)[0] == 1
    bold = "- **a** _b_ *c\n" * 500
    assert tab.page.evaluate(SHOW, bold)[0] == 500


def test_a_block_that_cannot_be_made_is_shown_as_it_was_written(
    beside: Beside, tab: Tab, tmp_path: Path
) -> None:
    opened(beside, tab, tmp_path)
    tab.page.evaluate("() => { DOMPurify.sanitize = () => { throw new RangeError('too deep') }; }")
    assert tab.page.evaluate(SHOW, "- *a*\n")[1] == "- *a*\n"


def test_a_conversation_with_such_an_answer_opens_again(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    text = "intro\n\n" + NESTED["quotes"]
    _, desk = opened(beside, tab, tmp_path, text)
    desk.send("Quote deep.")
    expect(desk.answers).to_contain_text(">>>> x")
    tab.page.reload()
    desk.ready()
    expect(desk.answers).to_contain_text(">>>> x")
    desk.send("Again.")
    expect(desk.answers).to_have_count(2)


def kept(**more: Any) -> dict[str, Any]:
    now = time.time() * 1000
    told = {
        "id": "dead",
        "session": "desk-dead",
        "machine": "m0",
        "model": "tiny",
        "system": "",
        "title": "Old",
    }
    return {**told, "created": now, "updated": now, "turns": [], "public": None, **more}


@pytest.mark.parametrize("turns", [None, [{"role": "user", "text": "x"}]], ids=["none", "no files"])
def test_a_damaged_conversation_does_not_keep_the_desk_from_starting(
    beside: Beside, tab: Tab, tmp_path: Path, turns: Any
) -> None:
    router, desk = opened(beside, tab, tmp_path)
    tab.page.evaluate(KEEP, kept(turns=turns))
    tab.page.goto(f"{router.url}/desk/m0?again#dead")
    desk.ready()
    expect(desk.log).to_contain_text("What is kept here cannot be shown")
    desk.send("Hello")
    expect(desk.answers).to_have_text(["Hello"])
    tab.page.get_by_role("button", name="Conversations").click()
    expect(tab.page.get_by_role("button", name="Delete Old")).to_be_visible()


def test_a_key_that_is_refused_is_forgotten_and_hides_what_was_said(
    beside: Beside, tab: Tab, tmp_path: Path
) -> None:
    tab.expects.append("401")
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{name: anna, sha256: '{sha256(b'a-secret').hexdigest()}'}}\n")
    keys.chmod(0o600)
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0"), keys_file=keys))
    desk = DeskPage(tab, router.url, "m0")
    page = tab.page

    def tell(key: str) -> None:
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use it").click()

    tell("a-secret")
    desk.ready().send("Hello")
    expect(desk.answers).to_be_visible()
    page.evaluate("sessionStorage.setItem('homeport.key', 'withdrawn')")
    page.get_by_role("button", name="Conversations").click()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_role("dialog", name="A key, please")).to_be_visible()
    expect(page.locator(".answered .words")).to_be_hidden()
    expect(page.get_by_role("dialog", name="Conversations")).to_be_hidden()
    assert page.evaluate("sessionStorage.getItem('homeport.key')") is None
    tell("a-secret")
    expect(desk.answers).to_be_visible()


def test_an_address_that_is_no_text_names_no_machine(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    tab.expects.append("404")
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0")))
    tab.page.goto(f"{router.url}/desk/%E0%A4")
    expect(tab.page.get_by_role("log")).to_contain_text(
        "There is no machine of that name; known machines: m0."
    )
    expect(tab.page.get_by_role("link", name="m0")).to_be_visible()

"""The desk of a machine in a real browser: a real router, real hosts, and the bundled model on one of them."""

import re
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.sync_api import FilePayload, Page, expect

from tests.browser.desk_page import DeskPage
from tests.browser.desk_world import hosted
from tests.browser.tab import Beside, Tab
from tests.fakes import Behaviour
from tests.moving_world import World
from tests.standins import MODEL, AnswersHost, event, routed

NewTab = Callable[..., Tab]
HOSTILE = """\
Look: <script>window.ran = "script"</script> and <img src="http://192.0.2.1/x" onerror="window.ran = 'image'">.

<div style="position: fixed" onclick="window.ran = 'click'">a block</div>

![a picture](http://192.0.2.1/pixel.png) [bad](javascript:window.ran='link') [good](https://example.org/)

# A head

| left | right |
| :--- | ----: |
| 1 | 2 |

```html
<b onmouseover="window.ran = 'code'">bold</b>
```
"""
ENGINES = {
    "den": None,
    "attic": Behaviour(answer=HOSTILE),
    "barn": Behaviour(answer="and on ", endless=True, step_s=0.01),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with hosted(tmp_path_factory.mktemp("world"), ENGINES) as (_, made):
        yield made


def test_a_chat_is_there_after_a_reload_and_goes_on_where_its_context_waits(world: World, tab: Tab) -> None:
    desk = DeskPage(tab, world.url, "den").ready()
    expect(tab.page.locator(".where")).to_have_text("den home free")
    first = desk.ask("What is the capital of France? Answer in one short sentence.")
    assert (first["context"], first["cause"], first["reused"]) == ("evaluated", "new", 0)
    answer = desk.answers.inner_text()
    assert answer.strip()

    tab.page.reload()
    desk.ready()
    expect(desk.asked).to_have_text(["What is the capital of France? Answer in one short sentence."])
    expect(desk.answers).to_have_text([answer])
    second = desk.ask("And of Italy?")
    assert second["context"] in ("resident", "resumed")
    assert second["reused"] >= first["evaluated"]

    desk.input.press("ArrowUp")
    expect(desk.input).to_have_value("And of Italy?")
    expect(tab.page.locator("#editing")).to_be_visible()
    third = desk.ask("And of Spain?")
    expect(desk.asked).to_have_text(
        ["What is the capital of France? Answer in one short sentence.", "And of Spain?"]
    )
    assert third["cause"].startswith("edited at token ")
    assert third["reused"] > 0

    desk.act("Ask again")
    again = desk.told()
    expect(desk.answers).to_have_count(2)
    assert again["reused"] > third["reused"]
    sessions = [each for each in pins(world, "den") if each["turns"] == 4]
    assert len(sessions) == 1, "all of it was one session"


def pins(world: World, machine: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.host(machine).get("/pins").body["pins"]
    return found


def test_stop_frees_the_host_and_keeps_what_was_said(world: World, tab: Tab) -> None:
    desk = DeskPage(tab, world.url, "den").ready()
    desk.send("Tell me a very long story about a harbour, its ships and all the people who work there.")
    desk.begins()
    tab.page.keyboard.press("Escape")
    world.host("den").wait_state(running=0)
    made = world.host("den").state()["tokens_generated"]
    expect(tab.page.locator(".note")).to_have_text("Stopped.")
    assert desk.answers.inner_text().strip()
    expect(desk.input).to_be_focused()
    assert world.host("den").state()["tokens_generated"] == made
    tab.page.reload()
    expect(tab.page.locator(".note")).to_have_text("Stopped.")


def test_html_and_scripts_of_an_answer_are_shown_as_text(world: World, tab: Tab) -> None:
    desk = DeskPage(tab, world.url, "attic").ready()
    desk.ask("Say something.")
    expect(desk.answers).to_contain_text('<script>window.ran = "script"</script>')
    expect(desk.answers).to_contain_text('<div style="position: fixed"')
    expect(desk.answers.locator("pre")).to_have_text("<b onmouseover=\"window.ran = 'code'\">bold</b>")
    names = desk.answers.evaluate("it => [...it.querySelectorAll('*')].map(each => each.localName)")
    assert not {"script", "img", "style", "b", "iframe"} & set(names)
    attributes = desk.answers.evaluate(
        "it => [...it.querySelectorAll('*')].flatMap(each => each.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "src")]
    links = desk.answers.evaluate(
        "it => [...it.querySelectorAll('a')].map(each => [each.textContent, each.rel])"
    )
    assert links == [["a picture", "noopener noreferrer"], ["good", "noopener noreferrer"]]
    assert tab.page.evaluate("window.ran") is None
    expect(desk.answers.locator("td").last).to_have_css("text-align", "right")
    desk.answers.get_by_role("button", name="Copy").click()
    expect(desk.answers.locator("figcaption button")).to_have_text("Copied")


def test_a_file_goes_along_with_a_question(world: World, tab: Tab) -> None:
    desk = DeskPage(tab, world.url, "attic").ready()
    page = tab.page

    def attach(name: str, data: bytes) -> None:
        page.locator("#pick").set_input_files([FilePayload(name=name, mimeType="", buffer=data)])

    attach("large.txt", b"x" * 8193)
    expect(page.locator("#trouble")).to_have_text(
        "large.txt has 8 KiB; at most 8 KiB can be attached: about what the model's context of 2048 tokens holds. "
        "Attach a part of it."
    )
    attach("picture.png", b"\x89PNG\x0d\xff")
    expect(page.locator("#trouble")).to_contain_text("picture.png is not text in UTF-8")
    attach("notes.txt", b"Tide tables\n```\nhigh: 6:12\n")
    attach("other.txt", b"other")
    expect(page.locator("#trouble")).to_be_hidden()
    page.get_by_role("button", name="Leave out other.txt").click()
    assert desk.sent("When is high tide?")["messages"] == [
        {
            "role": "user",
            "content": "When is high tide?\n\nAttached file notes.txt:\n````\nTide tables\n```\nhigh: 6:12\n````",
        }
    ]
    desk.ended()
    expect(page.locator(".file summary")).to_have_text("notes.txt27 B")
    page.locator(".file summary").click()
    expect(page.locator(".file pre")).to_contain_text("high: 6:12")
    desk.act("Edit")
    expect(page.get_by_role("button", name="Leave out notes.txt")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#files")).to_be_hidden()


def test_a_question_that_cannot_be_answered_is_told_and_can_be_changed(world: World, tab: Tab) -> None:
    tab.expects.append("400")
    desk = DeskPage(tab, world.url, "attic").ready()
    desk.send("x" * 4000)
    desk.ended()
    expect(tab.page.locator(".answered .trouble")).to_contain_text("4000")
    desk.input.press("ArrowUp")
    desk.ask("x")
    expect(tab.page.locator(".trouble")).to_have_count(0)
    expect(desk.asked).to_have_text(["x"])


def test_while_it_waits_it_says_why_and_for_how_long(world: World, tab: Tab) -> None:
    other = world.host("barn").stream("Talk.", who="other")
    other.first_text()
    desk = DeskPage(tab, world.url, "barn").ready()
    expect(tab.page.locator("#load")).to_have_text("busy")
    desk.send("Me too.")
    expect(desk.why).to_have_text("barn is busy. The answer comes here by itself.")
    expect(tab.page.locator("#load")).to_have_text("busy, 1 waits")
    expect(desk.why).to_contain_text("waiting, place 1 in the line")
    expect(tab.page.locator("#clock")).to_have_text(re.compile(r"^\d+ s so far$"))
    other.close()
    desk.begins()
    expect(desk.why).to_be_hidden()
    tab.page.get_by_role("button", name="Stop").click()
    desk.ended()


def test_a_host_that_is_lost_in_an_answer_and_comes_back(world: World, tab: Tab) -> None:
    tab.expects.append("net::ERR")
    barn = world.host("barn")
    desk = DeskPage(tab, world.url, "barn").ready()
    desk.send("Talk.")
    desk.begins()
    barn.kill()
    try:
        expect(tab.page.locator(".answered .trouble")).to_contain_text(
            "The host of barn/0 ended in the middle of this answer. Send the request again"
        )
        assert desk.answers.inner_text().startswith("a"), "what was said stays"
        desk.act("Ask again")
        expect(desk.why).to_have_text("barn is not ready yet. The answer comes here by itself.")
    finally:
        barn.start()
    desk.begins()
    tab.page.keyboard.press("Escape")
    desk.ended()


def test_conversations_are_listed_opened_and_deleted_with_their_context(world: World, tab: Tab) -> None:
    desk = DeskPage(tab, world.url, "attic").ready()
    page = tab.page
    desk.ask("The first one")
    page.get_by_role("button", name="New conversation").click()
    expect(desk.asked).to_have_count(0)
    desk.ask("The second one")
    before = len(pins(world, "attic"))
    page.get_by_role("button", name="Conversations").click()
    titles = page.locator("#conversations .open span")
    expect(titles).to_have_text(["The second one", "The first one"])
    page.get_by_role("button", name="Delete The second one").click()
    page.get_by_role("button", name="Delete The second one for good?").click()
    expect(page.locator("#list-note")).to_have_text("Deleted, with its context on attic.")
    assert len(pins(world, "attic")) == before - 1
    expect(titles).to_have_text(["The first one"])
    titles.click()
    expect(desk.asked).to_have_text(["The first one"])
    page.goto(f"{world.url}/desk/den")
    page.goto(f"{world.url}/desk/attic")
    page.get_by_role("button", name="Go on with “The first one”").click()
    expect(desk.answers).to_have_count(1)


def test_one_that_is_deleted_while_it_is_answered_ends_and_stays_deleted(world: World, tab: Tab) -> None:
    desk = DeskPage(tab, world.url, "barn").ready()
    desk.send("Talk.")
    desk.begins()
    tab.page.get_by_role("button", name="Conversations").click()
    tab.page.get_by_role("button", name="Delete Talk.", exact=True).click()
    tab.page.get_by_role("button", name="Delete Talk. for good?").click()
    expect(tab.page.locator("#list-note")).to_have_text("Deleted, with its context on barn.")
    world.host("barn").wait_state(running=0)
    tab.page.reload()
    desk.ready()
    expect(desk.asked).to_have_count(0)
    tab.page.get_by_role("button", name="Conversations").click()
    expect(tab.page.locator("#conversations")).to_have_text("None yet. What you ask here is listed here.")


def test_what_another_tab_said_is_there_when_this_one_is_looked_at_again(world: World, tab: Tab) -> None:
    desk = DeskPage(tab, world.url, "attic").ready()
    desk.ask("Here")
    other = tab.context.new_page()
    other.goto(tab.page.url)
    expect(other.locator(".asked .words")).to_have_text(["Here"])
    other.get_by_role("textbox", name="Message").fill("There")
    other.keyboard.press("Enter")
    expect(other.locator(".answered:not(.growing)")).to_have_count(2)
    other.close()
    tab.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(desk.asked).to_have_text(["Here", "There"])


def test_a_browser_that_keeps_nothing_is_told_so(world: World, tab: Tab) -> None:
    tab.context.add_init_script("indexedDB.open = () => { throw new DOMException('no'); }")
    desk = DeskPage(tab, world.url, "attic").ready()
    told = "This browser keeps nothing here: conversations are gone with this tab."
    expect(tab.page.locator("#notice")).to_have_text(told)
    desk.ask("Hello")
    expect(tab.page.locator("#notice")).to_have_text(told)


class ThinksHost(AnswersHost):
    """Reasons before it answers."""

    async def write(self, request: web.Request, response: web.StreamResponse) -> None:
        choice = {"index": 0, "delta": {"reasoning_content": "Hm, *hello*."}, "finish_reason": None}
        await response.write(event(choices=[choice]))
        await super().write(request, response)


def test_reasoning_stands_apart_and_is_not_sent_again(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    router = beside.enter(routed(tmp_path, ThinksHost("m0/0")))
    desk = DeskPage(tab, router.url, "m0").ready()
    desk.send("Hello")
    expect(desk.answers).to_have_text(["Hello there"])
    thought = tab.page.locator(".reasoning p")
    expect(thought).to_be_hidden()
    tab.page.get_by_text("Reasoning", exact=True).click()
    expect(thought).to_have_text("Hm, *hello*.")
    assert [each["content"] for each in desk.sent("Again")["messages"]] == ["Hello", "Hello there", "Again"]


@pytest.mark.parametrize("name", ["dark", "light", "phone"])
def test_axe_finds_nothing_serious(world: World, new_tab: NewTab, name: str) -> None:
    how: dict[str, Any] = {"color_scheme": "light" if name == "light" else "dark", "reduced_motion": "reduce"}
    if name == "phone":
        how |= {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
    tab = new_tab(**how)
    desk = DeskPage(tab, world.url, "attic").ready()
    desk.ask("Say something.")
    assert tab.violations() == []
    wide = tab.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, "nothing is cut off at the side"
    dialog = "Conversations" if name == "phone" else "Settings"
    tab.page.get_by_role("button", name=dialog).click()
    expect(tab.page.get_by_role("dialog", name=dialog)).to_be_visible()
    assert tab.violations() == []
    tab.page.keyboard.press("Escape")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)


def test_the_whole_of_it_without_a_mouse(world: World, tab: Tab) -> None:
    desk = DeskPage(tab, world.url, "attic").ready()
    page = tab.page
    expect(desk.input).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    page.keyboard.press("Enter")
    desk.told()
    expect(desk.asked).to_have_text(["One line\nand another"])
    reached = []
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        reached.append(
            page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent")
        )
    for name in ("New conversation", "Conversations", "Settings", "Edit", "Ask again", "Copy"):
        assert name in reached


def test_the_system_prompt_stands_before_everything(world: World, tab: Tab) -> None:
    desk = DeskPage(tab, world.url, "attic").ready()
    page = tab.page
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    page.get_by_label("Dark", exact=True).check()
    page.get_by_role("button", name="Done").click()
    assert desk.sent("Hello")["messages"][0] == {"role": "system", "content": "Be brief."}
    desk.ended()
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_role("textbox", name="System prompt")).to_have_value("Be brief.")


class OtherHost(AnswersHost):
    """Serves another model."""

    def listed(self) -> dict[str, Any]:
        return super().listed() | {"model": "other"}


def test_a_machine_with_several_models_lets_choose(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0"), OtherHost("m0/1")))
    router.controller.models = (MODEL, "other")
    desk = DeskPage(tab, router.url, "m0").ready()
    choice = tab.page.get_by_role("combobox", name="Model")
    expect(choice.locator("option")).to_have_text(["other", MODEL])
    choice.select_option(MODEL)
    assert desk.sent("Hello")["model"] == MODEL
    expect(desk.answers).to_have_text(["Hello there"])
    tab.page.reload()
    expect(choice).to_have_value(MODEL)


def test_a_machine_that_is_its_persons_is_told_and_asked_again_when_it_is_free(
    beside: Beside, tab: Tab, tmp_path: Path
) -> None:
    tab.expects.append("503")
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0")))
    desk = DeskPage(tab, router.url, "m0").ready()
    router.controller.yielded["m0"] = {"by": "person", "until": time.time() + 3600}
    notice = tab.page.locator("#notice")
    expect(notice).to_contain_text("m0 is its person's until ")
    desk.send("Hello")
    expect(desk.why).to_contain_text(
        "Every machine that could serve tiny is its person's: m0 for 60 min more."
    )
    expect(tab.page.locator("#clock")).to_have_text("Asks again in 60 min.")
    tab.page.get_by_role("button", name="Ask now").click()
    expect(desk.why).to_be_visible()
    del router.controller.yielded["m0"]
    expect(desk.answers).to_have_text(["Hello there"])
    expect(notice).to_be_hidden()


def test_a_lost_machine_is_told(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0")))
    desk = DeskPage(tab, router.url, "m0").ready()
    router.controller.away["m0"] = time.time() - 100
    expect(tab.page.locator("#notice")).to_contain_text("m0 is lost, not heard from since ")
    router.controller.away.clear()
    expect(tab.page.locator("#notice")).to_be_hidden()
    desk.ready()


def test_a_router_that_ends_is_waited_for(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    tab.expects += ["net::ERR", "503"]
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0")))
    desk = DeskPage(tab, router.url, "m0").ready()
    router.server.stop()
    expect(tab.page.locator("#notice")).to_have_text(
        "The router does not answer. The desk goes on asking it."
    )
    desk.send("Hello")
    expect(desk.why).to_have_text("The router does not answer.")
    tab.page.keyboard.press("Escape")
    desk.ended()
    expect(tab.page.get_by_role("button", name="Ask again")).to_be_visible()


def test_a_key_is_asked_for_and_stays_in_its_tab(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    tab.expects.append("401")
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{name: anna, sha256: '{sha256(b'a-secret').hexdigest()}'}}\n")
    keys.chmod(0o600)
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0"), keys_file=keys))
    desk = DeskPage(tab, router.url, "m0")

    def tell(page: Page, key: str) -> None:
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use it").click()

    asking = tab.page.get_by_role("dialog", name="A key, please")
    expect(asking).to_contain_text("This router needs a key that it knows")
    assert tab.violations() == []
    tab.page.keyboard.press("Escape")
    expect(asking).to_be_visible()
    tell(tab.page, "wrong")
    expect(asking).to_be_visible()
    tell(tab.page, "a-secret")
    desk.ready()
    expect(asking).to_be_hidden()
    desk.send("Hello")
    expect(desk.answers).to_have_text(["Hello there"])
    tab.page.reload()
    desk.ready()
    kept = tab.page.evaluate("JSON.stringify([{...localStorage}, document.cookie, location.href])")
    assert "a-secret" not in kept
    other = tab.context.new_page()
    other.goto(f"{router.url}/desk/m0")
    expect(other.get_by_role("dialog", name="A key, please")).to_be_visible()


def test_an_unknown_machine_leads_to_the_known_ones(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    tab.expects.append("404")
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0"), AnswersHost("m1/0")))
    tab.page.goto(f"{router.url}/desk/attic%3Cb%3E")
    log = tab.page.get_by_role("log")
    expect(log).to_contain_text("There is no machine of that name; known machines: m0, m1.")
    expect(tab.page.get_by_role("textbox", name="Message")).to_be_disabled()
    assert tab.violations() == []
    log.get_by_role("link", name="m1").click()
    expect(tab.page.locator("#machine")).to_have_text("m1")
    expect(tab.page.get_by_role("textbox", name="Message")).to_be_enabled()

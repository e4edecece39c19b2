"""The pages' parts that decide, each on its own, in the browser that runs them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from playwright.sync_api import Browser

from router.watching import Picture, change, whole
from tests.browser.tab import Beside, Tab
from tests.standins import AnswersHost, routed
from tests.watched import pictures

BOARD = Path(__file__).parent.parent.parent / "router" / "board"
STREAM = (
    ": waiting, place 1 in the line\n\n"
    'data: {"a": "Grüße 🚢"}\n\n'
    "event: change\r\ndata: one\r\ndata:two\r\n\r\n"
    ":\rdata\r\r"
    "id: 7\nretry: 5\ndata:  spaced\n\n"
    "data: [DONE]\n\n"
    "data: half"
)
EVENTS = [
    {"comment": "waiting, place 1 in the line"},
    {"event": "message", "data": '{"a": "Grüße 🚢"}'},
    {"event": "change", "data": "one\ntwo"},
    {"comment": ""},
    {"event": "message", "data": ""},
    {"event": "message", "data": " spaced"},
    {"event": "message", "data": "[DONE]"},
]


@pytest.fixture(scope="module")
def page(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Runs `async ([named modules], told) => …` in a page of the desk."""
    beside, tab = Beside(), Tab(chromium)
    try:
        router = beside.enter(routed(tmp_path_factory.mktemp("router"), AnswersHost("m0/0")))
        tab.page.goto(f"{router.url}/desk/m0")

        def run(module: str, code: str, told: Any = None) -> Any:
            script = f"async told => {{ const it = await import('/board/{module}.js'); {code} }}"
            return tab.page.evaluate(script, told)

        yield run
        tab.close()
    finally:
        beside.close()


def test_a_stream_reads_the_same_however_its_bytes_are_split(page: Any) -> None:
    code = """
    const bytes = new TextEncoder().encode(told);
    const read = (...cuts) => {
      const reader = new it.SseReader(), found = [];
      let from = 0;
      for (const cut of [...cuts, bytes.length]) { found.push(...reader.push(bytes.slice(from, cut))); from = cut; }
      return JSON.stringify(found);
    };
    const all = new Set([read(), read(...bytes.keys())]);
    for (let one = 0; one <= bytes.length; one += 1)
      for (let other = one; other <= bytes.length; other += 1) all.add(read(one, other));
    return [...all];
    """
    (only,) = page("sse", code, STREAM)
    assert json.loads(only) == EVENTS


def test_a_stream_that_broke_is_asked_for_again_later_and_later(page: Any) -> None:
    waits = page("stream", "return told.map((failed) => it.backoff(failed, 0.5))", [1, 2, 3, 4, 5, 50])
    assert waits == [1000, 2000, 4000, 8000, 15000, 15000]


@settings(deadline=None)
@given(old=pictures, new=pictures)
def test_a_change_laid_over_the_old_picture_gives_the_new_one_and_leaves_the_old(
    page: Any, old: Picture, new: Picture
) -> None:
    code = """
    const [all, change] = JSON.parse(told), picture = it.blank();
    it.lay(picture, "fleet", all);
    const old = [...picture.machines.values(), ...picture.sessions.values()], before = JSON.stringify(old);
    it.lay(picture, "change", change);
    const {fleet, machines, sessions} = picture, left = JSON.stringify(old) === before;
    return JSON.stringify([fleet, Object.fromEntries(machines), Object.fromEntries(sessions), left]);
    """
    if (told := change(old, new)) is not None:
        laid = json.loads(page("picture", code, json.dumps([whole(old), told])))
        assert laid == [new.rest, new.machines, new.sessions, True]


def test_a_conversation_is_changed_and_never_in_place(page: Any) -> None:
    code = """
    const empty = it.begun("1", "den", "m", 1);
    const first = it.answered(it.asked(empty, " One\\nmore", [], 2), {text: "1", ended: null}, 3);
    const second = it.answered(it.asked(first, "Two", [], 4), {text: "2", ended: null}, 5);
    const edited = it.edited(second, "Three", [], 6);
    const again = it.reopened(second, 7);
    const anew = it.edited(first, "Zero", [], 8);
    const words = each => each.turns.map(turn => turn.text);
    const titles = [first, anew, empty, edited].map(each => each.title);
    return [[empty, first, second, edited, again, anew].map(words), titles];
    """
    turns, titles = page("desk/conversation", code)
    assert turns == [
        [],
        [" One\nmore", "1"],
        [" One\nmore", "1", "Two", "2"],
        [" One\nmore", "1", "Three"],
        [" One\nmore", "1", "Two"],
        ["Zero"],
    ]
    assert titles == ["One", "Zero", "", "One"]


def test_what_is_sent_alternates_and_has_no_empty_turn(page: Any) -> None:
    code = """
    let chat = it.begun("1", "den", "m", 1);
    chat = it.asked({...chat, system: "  "}, "unanswered", [], 2);
    chat = it.asked(chat, "", [{name: "a.md", bytes: 3, text: "a ```` b\\n"}], 3);
    chat = it.answered(chat, {text: "", reasoning: "hm", ended: "stopped"}, 4);
    chat = it.asked(chat, "last", [], 5);
    return it.messages(chat);
    """
    (message,) = page("desk/conversation", code)
    assert message["role"] == "user"
    assert message["content"] == "unanswered\n\nAttached file a.md:\n`````\na ```` b\n`````\n\nlast"


FAILURES = [
    ({"status": 503, "code": "machine_yielded", "retryS": 40, "final": False}, False, 0, 40),
    ({"status": 429, "code": "rate_limit_exceeded", "retryS": 7, "final": False}, False, 0, 7),
    ({"status": 410, "code": "machine_lost", "retryS": None, "final": True}, False, 0, None),
    ({"status": 400, "code": "invalid_value", "retryS": None, "final": True}, False, 0, None),
    ({"status": 0, "code": "router_away", "retryS": None, "final": False}, False, 0, 1),
    ({"status": 0, "code": "router_away", "retryS": None, "final": False}, False, 9, 15),
    ({"status": 200, "code": "queue_timeout", "retryS": None, "final": False}, False, 0, 5),
    ({"status": 200, "code": "host_lost", "retryS": None, "final": False}, True, 0, None),
    ({"status": 200, "code": "session_ended", "retryS": None, "final": False}, False, 0, None),
]


@pytest.mark.parametrize(("failure", "said", "tries", "again_s"), FAILURES)
def test_when_it_asks_again(page: Any, failure: Any, said: bool, tries: int, again_s: int | None) -> None:
    told = [{"message": "that is so; try again", **failure}, said, tries]
    plan = page("desk/words", "return it.planned(...told)", told)
    assert plan == {"againS": again_s, "words": "That is so; try again."}


def replica(**more: Any) -> dict[str, Any]:
    told = {"model": "m", "places": 2, "running": 1, "waiting": 0, "state": "ready", "reach": "up"}
    return {**told, **more}


@pytest.mark.parametrize(
    ("state", "replicas", "words"),
    [
        ("ready", [replica()], "1 of 2 places busy"),
        ("ready", [replica(running=0)], "free"),
        ("ready", [replica(places=1, waiting=2)], "busy, 2 wait"),
        ("ready", [replica(), replica(state="loading", running=0)], "1 of 2 places busy"),
        ("ready", [replica(reach="out")], "not ready yet"),
        ("ready", [], "serves no model"),
        ("lost", [replica()], ""),
        ("yielded", [replica()], ""),
    ],
)
def test_the_load_in_words(page: Any, state: str, replicas: list[Any], words: str) -> None:
    machine = {"name": "den", "state": state, "replicas": replicas}
    assert page("desk/words", "return it.loadWords(it.load(told))", machine) == words


@pytest.mark.parametrize(
    ("machine", "part"),
    [
        ({"state": "ready"}, ""),
        ({"state": "lost", "heard_s": 1.0}, "den is lost, not heard from since "),
        ({"state": "lost", "heard_s": None}, "den is lost. What was said stays there"),
        ({"state": "asleep", "wakes": True}, "Your next message wakes it"),
        ({"state": "asleep", "wakes": False}, "is asked again until den is awake"),
        ({"state": "yielded", "yielded": None}, "den is its person's at present"),
        ({"state": "draining"}, "waits until it takes sessions again"),
        ({"state": "cordoned"}, "takes no new conversations"),
    ],
)
def test_how_a_machine_stands_in_words(page: Any, machine: dict[str, Any], part: str) -> None:
    told = page("desk/words", "return it.standing(told, 100)", {"name": "den", "heard_s": None, **machine})
    assert part in told
    assert (told == "") == (part == "")


def test_what_is_known_of_an_answer(page: Any) -> None:
    about = {"context": "evaluated", "cause": "edited@412", "reused_tokens": 412, "evaluated_tokens": 9}
    told = page(
        "desk/words",
        "return [it.meta(told, 3100), it.meta({...told, cause: 'restore_failed'}, 0), it.meta(null, 0)]",
        about,
    )
    assert told == [
        "evaluated (edited at token 412) · 412 tokens reused, 9 evaluated · waited 4 s",
        "evaluated (restore failed) · 412 tokens reused, 9 evaluated",
        "",
    ]


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1230, "1.2 KiB"), (9 << 20, "9 MiB")]
)
def test_sizes(page: Any, count: int, words: str) -> None:
    assert page("desk/words", "return it.bytes(told)", count) == words


def test_modules_of_the_pages_are_all_used() -> None:
    modules = sorted(path for path in BOARD.rglob("*.js") if "vendor" not in path.parts)
    text = "".join(path.read_text() for path in (*modules, *BOARD.glob("*.html")))
    assert [path.name for path in modules if f"/{path.name}" not in text] == []

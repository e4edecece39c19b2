"""Which browser opens a desk."""

from typing import Any

import pytest

from router.desk_browser import Nothing, Start, Usual, choose

URL = "http://127.0.0.1:8000/desk/den"
ALL = {name: f"/usr/bin/{name}" for name in ("chromium", "google-chrome", "firefox")}


def chosen(*programs: str, **more: Any) -> Start | Usual | Nothing:
    usual: dict[str, Any] = {
        "env": {"DISPLAY": ":0"},
        "platform": "linux",
        "is_root": False,
        "has_usual": True,
    }
    return choose({name: ALL[name] for name in programs}, url=URL, **{**usual, **more})


@pytest.mark.parametrize("screen", ["DISPLAY", "WAYLAND_DISPLAY"])
def test_chromium_comes_first_and_shows_nothing_else(screen: str) -> None:
    way = chosen(*ALL, env={screen: "0"})
    assert isinstance(way, Start)
    assert (way.command[0], way.command[-1]) == ("/usr/bin/chromium", URL)
    assert "--kiosk" in way.command


def test_then_chrome_then_firefox_then_whatever_the_system_has() -> None:
    way = chosen("firefox", "google-chrome")
    assert isinstance(way, Start)
    assert way.command[0] == "/usr/bin/google-chrome"
    assert chosen("firefox") == Start(("/usr/bin/firefox", "--kiosk", URL))
    assert chosen() == Usual()


def test_without_a_browser_it_says_what_to_install() -> None:
    way = chosen(has_usual=False)
    assert isinstance(way, Nothing)
    assert "apt-get install chromium" in way.why


def test_without_a_screen_nothing_is_started() -> None:
    way = chosen(*ALL, env={"DISPLAY": ""})
    assert isinstance(way, Nothing)
    assert "DISPLAY" in way.why
    assert isinstance(chosen(*ALL, env={}, platform="darwin"), Start), "there the screen has no such name"


def test_root_gets_no_chromium_without_its_sandbox() -> None:
    way = chosen("chromium", is_root=True)
    assert isinstance(way, Nothing)
    assert "sandbox" in way.why
    assert chosen("chromium", "firefox", is_root=True) == Start(("/usr/bin/firefox", "--kiosk", URL))
    assert "--no-sandbox" not in str([chosen(name, is_root=root) for name in ALL for root in (True, False)])

"""With which browser a desk is opened on this machine's screen, and how it fills it. Pure.

Looks for no program and starts none: router/desk_commands.py does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
FIREFOXES = ("firefox", "firefox-esr")
PROGRAMS = (*CHROMIUMS, *FIREFOXES)
SCREENS = ("WAYLAND_DISPLAY", "DISPLAY")


@dataclass(frozen=True, slots=True)
class Start:
    """Start this program, which shows nothing but the page."""

    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usual:
    """Ask the system for its browser: whether that fills the screen is its matter."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """No browser can be started here."""

    why: str
    """With what to do instead."""


def choose(
    found: Mapping[str, str],
    env: Mapping[str, str],
    platform: str,
    url: str,
    *,
    is_root: bool,
    has_usual: bool,
) -> Start | Usual | Nothing:
    """How the page is opened.

    1. Linux, and no screen is known -> Nothing
    2. a Chromium, unless root       -> it, in kiosk mode
    3. a Firefox                     -> it, in kiosk mode
    4. a Chromium, as root           -> Nothing: it would have to run without its sandbox
    5. another browser               -> Usual
    6. otherwise                     -> Nothing

    `found`: paths of those of `PROGRAMS` that are there. `platform`: as `sys.platform` says it. `has_usual`: whether
    the system names a browser.
    """
    if platform == "linux" and not any(env.get(name) for name in SCREENS):
        why = "there is no screen here: neither DISPLAY nor WAYLAND_DISPLAY is set"
        return Nothing(f"{why}. Run this where the screen is, or open the address in any browser there")
    chromium = next((found[name] for name in CHROMIUMS if name in found), None)
    firefox = next((found[name] for name in FIREFOXES if name in found), None)
    if chromium is not None and not is_root:
        return Start((chromium, "--kiosk", "--new-window", "--no-first-run", url))
    if firefox is not None:
        return Start((firefox, "--kiosk", url))
    if chromium is not None:
        why = "Chromium runs as root only without its sandbox, and is not started so"
        return Nothing(f"{why}. Open the address as the person whose screen it is, or install Firefox")
    if has_usual:
        return Usual()
    remedy = "Install one (on Debian: `apt-get install chromium`), or open the address on another machine"
    return Nothing(f"there is no browser here. {remedy}")

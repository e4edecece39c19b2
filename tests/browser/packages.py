"""`python -m tests.browser.packages`: before `make test`, brings the browser that tests of the pages drive, and what
makes a screen for it.

On Debian and its kin, as root: installed. Elsewhere it says what is missing and that those tests are skipped;
never a failure.
"""

import os
import shutil
import sys

from tests.cluster.packages import install, nothing_starts

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = ["chromium", "fonts-dejavu-core"]
SCREEN = {"Xvfb": "xvfb", "evilwm": "evilwm", "xprop": "x11-utils", "xwininfo": "x11-utils"}
"""Programs that make a screen and tell what is on it, and Debian's packages that bring them."""
REMEDY = f"as root on Debian: apt-get install {' '.join([*BROWSER, *sorted(set(SCREEN.values()))])}"


def browser() -> str | None:
    """Where a Chromium is."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def lacking() -> list[str]:
    """What is not there of a browser and a screen."""
    return [
        *(["Chromium"] if browser() is None else []),
        *(name for name in SCREEN if not shutil.which(name)),
    ]


def main() -> int:
    """0 always: what is missing then is told by the skipped tests themselves, too."""
    packages = sorted({SCREEN[name] for name in lacking() if name in SCREEN})
    packages += BROWSER if browser() is None else []
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Installing {', '.join(packages)}: tests look at the pages with it.", flush=True)
        with nothing_starts():
            install(packages)
    if lacks := lacking():
        which = "The tests of the pages are" if browser() is None else "The test of a desk on a screen is"
        print(f"{which} skipped, for want of {', '.join(lacks)}; {REMEDY}.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

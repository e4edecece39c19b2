"""`python -m tests.browser.packages`: before `make test`, brings the browser that tests of the pages drive.

On Debian and its kin, as root: installed. Elsewhere it says what is missing and that those tests are skipped;
never a failure.
"""

import os
import shutil
import sys

from tests.cluster.packages import install, nothing_starts

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DEBIAN = ["chromium", "fonts-dejavu-core"]
REMEDY = f"as root on Debian: apt-get install {' '.join(DEBIAN)}"


def browser() -> str | None:
    """Where a Chromium is."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def main() -> int:
    """0 always: what is missing then is told by the skipped tests themselves, too."""
    if browser() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Installing {', '.join(DEBIAN)}: tests look at the pages with it.", flush=True)
        with nothing_starts():
            install(DEBIAN)
    if browser() is None:
        print(f"The tests of the pages are skipped, for want of Chromium; {REMEDY}.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`homeport top`. Exit codes as in `router.cli`."""

import os
import sys

from cluster.paths import Paths
from router import api_client
from router.command_line import WRONG, refuse
from router.run_here import run_here


def top() -> None:
    """The machines and their sessions in this terminal, as they are now; over SSH too. Keys: q quits, arrows choose,
    Tab goes to the other list; d drains a machine, u lets it take sessions again, e ends a session, m moves it."""
    paths = Paths.from_env(os.environ)
    run = run_here()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        refuse(
            "`homeport top` needs a terminal (`ssh -t` gives one). `homeport status` prints the same once, with --json "
            "for a script.",
            WRONG,
        )
    from router.top import Top, asking

    Top(run["url"], asking(run["url"], api_client.owners_secret(paths))).run()

"""`homeport rotate-secrets`: a new CA and new tokens for the whole cluster.

Exit codes as in `router.cli`: 0 done, 1 it failed, 2 it may not be done (nothing was changed).
"""

import os

from cluster.join import joined
from cluster.paths import Paths
from cluster.processes import ours
from cluster.ray_cluster import forget_state
from cluster.restarting import take_up_lock
from router.command_line import FAILED, WRONG, refuse, say
from router.refused import Refused


class NotRotated(Refused):
    """Everything is as it was."""

    usual_code = WRONG


def rotate_secrets() -> None:
    """Forget the cluster's CA and its tokens, as after one was seen by somebody: the next start makes others."""
    paths = Paths.from_env(os.environ)
    try:
        forget_secrets(paths)
    except NotRotated as refused:
        refuse(str(refused), refused.code)
    except OSError as error:
        refuse(f"{error.filename}: {error.strerror}. See to it, then run this again.", FAILED)
    say(
        "The next start makes a new CA and new tokens; `ray up` brings them to the machines of its list. Each other "
        "machine joins anew with a token of its own (`homeport join-token`). Sessions stay."
    )


def forget_secrets(paths: Paths) -> None:
    """Of a head that is down: nothing that any machine knows opens it any more. Raises NotRotated and OSError."""
    if (known := joined(paths)) is not None:
        raise NotRotated(
            f"This machine serves the head at {known.head}: run `homeport rotate-secrets` there."
        )
    if not paths.authority.exists() and not paths.cluster_token.exists():
        raise NotRotated("There are no secrets of a cluster here. Run this on its head.")
    lock = take_up_lock(paths)
    try:
        if lock is None or ours(paths):
            raise NotRotated(
                "Machines still use these secrets. Run `homeport down --all` first, and once this is done `ray up` or "
                "`homeport up`."
            )
        for each in (paths.certificate, paths.ca, paths.key, paths.join_token, paths.join_tokens):
            each.unlink(missing_ok=True)
        for each in (*paths.spoken, paths.authority):
            each.unlink(missing_ok=True)
        forget_state(paths)  # None of its nodes can come back.
    finally:
        if lock is not None:
            os.close(lock)

"""Whether a request under a session's name goes on with its context or is made aside, on a scratch. Pure.

Clients ask for titles and summaries under the name of the chat that they are about. Such a request would throw the
chat's context out; made aside it leaves it alone. The tokens alone decide: what is held and what is asked for.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

from serving.prefixes import common_prefix

Side = Literal["main", "scratch", "promote"]
Begins = Callable[[Sequence[int], Sequence[int]], int]
"""With how many of the tokens that are held a prompt begins."""

MUCH = 256
"""Losing no more tokens than these is no loss."""
TIMES = 4
"""Nor is losing a title, which a client asked for before its chat: the chat's prompt is so many times as long."""
FEW = 8
"""So many tokens at an answer's end a template may write otherwise in a history."""


def scratch_of(session: str) -> str:
    """The name of a session's scratch: 64 hex digits, nobody else's."""
    return hashlib.sha256(f"{session} scratch".encode()).hexdigest()


def side(
    prompt: Sequence[int],
    main: Sequence[int],
    scratch: Sequence[int],
    asked: int = 0,
    begins: Begins = common_prefix,
) -> Side:
    """Where a prompt runs. `main`, `scratch`: what the session's context and its scratch hold, in the engine or
    parked; `asked`: how many of the scratch's tokens its last request brought (0: nobody knows).

    main: it shares half of what is held there, or it loses little, as such or beside the prompt's length. promote: it
    goes on from the scratch's answer, as a compacted history does, so that the scratch is the session's context from
    now on. scratch: all others, and a title asked for again, whose prompt is longer but does not bring the scratch's
    answer.
    """
    shared = begins(main, prompt)
    lost = len(main) - shared
    if main and (2 * shared >= len(main) or lost <= MUCH or TIMES * lost <= len(prompt)):
        return "main"
    brought = begins(scratch, prompt)
    if _goes_on(len(prompt), len(scratch), brought, asked) and brought > shared:
        return "promote"
    return "scratch" if main else "main"


def _goes_on(prompt: int, scratch: int, brought: int, asked: int) -> bool:
    """All in tokens; `brought`: how many of the scratch's the prompt begins with."""
    return asked < scratch < prompt and brought >= max(scratch - FEW, asked)

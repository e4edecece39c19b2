"""A note from a host that ends to the next one on its slot: the sessions whose newest contexts it had no time to save.

Names sessions by their digests. What is on disk of them all the same, the next host finds by itself.
"""

import json
from collections.abc import Collection
from pathlib import Path

from cluster.paths import read_json, write_private
from serving.remembered import REMEMBERED


def leave(path: Path, sessions: Collection[str]) -> None:
    """Write the note; nothing where there is nothing to say. Raises OSError."""
    if sessions:
        write_private(path, json.dumps(sorted(sessions)[:REMEMBERED]))


def take(path: Path) -> tuple[str, ...]:
    """Read the note and remove it; () where there is none that can be read."""
    told = read_json(path)
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return ()  # it would be found again and again
    return tuple(each for each in told if isinstance(each, str)) if isinstance(told, list) else ()

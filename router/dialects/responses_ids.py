"""What responses and their items are called. Pure.

An id says by itself whose session it belongs to, so that whoever is asked for it knows where its home is.
"""

import re

from router.dialects.dialect import Naming

NO_SESSION = "0" * 24
_RESPONSE = re.compile(r"resp_([0-9a-f]{24})[0-9a-f]{32}")
_ITEM = re.compile(r"[a-z]{2,4}_([0-9a-f]{24}[0-9a-f]{32})i?[0-9a-f]{2,}")


def response_id(naming: Naming, session: str | None) -> str:
    """`session`: a public id."""
    return f"resp_{_root(naming, session)}"


def item_id(prefix: str, naming: Naming, session: str | None, index: int) -> str:
    """Of a response's output."""
    return f"{prefix}_{_root(naming, session)}{index:02x}"


def input_id(prefix: str, naming: Naming, session: str | None, index: int) -> str:
    """Of what a response was asked with."""
    return f"{prefix}_{_root(naming, session)}i{index:02x}"


def session_of(response_id: str) -> str | None:
    """The public id of the session whose response it is; None for an id that is none of ours."""
    found = _RESPONSE.fullmatch(response_id)
    return None if found is None else f"hp_{found.group(1)}"


def response_of(item_id: str) -> str | None:
    """The id of the response that the item belongs to; None for an id that is none of ours."""
    found = _ITEM.fullmatch(item_id)
    return None if found is None else f"resp_{found.group(1)}"


def _root(naming: Naming, session: str | None) -> str:
    return f"{NO_SESSION if session is None else session.removeprefix('hp_')}{naming.unique}"

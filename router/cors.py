"""Which pages of other sites may use this router, and what their browsers are told of it (CORS). Pure.

Pages that this router's own names could have served are router/names.py's matter, and keys another: a browser asks
beforehand without one.
"""

from collections.abc import Sequence, Set

ANY = b"*"
METHODS = b"GET, HEAD, POST, DELETE"
HEADERS = b"authorization, content-type, x-api-key, x-homeport-session, x-homeport-zone, x-session-id"
"""What may be sent, where a browser does not say what will be."""
EXPOSED = (
    b"x-request-id, x-homeport-session, x-homeport-source, x-homeport-machine, x-homeport-replica, x-homeport-pin, "
    b"x-homeport-context, x-homeport-waited-ms, retry-after, x-should-retry"
)
MAX_AGE_S = b"7200"
"""How long a browser may keep what it was told beforehand; none keeps it for longer but Firefox."""


def is_listed(origin: bytes | None, listed: Set[bytes]) -> bool:
    """`listed`: origins in lower case, as browsers write them, or ANY."""
    return origin is not None and (ANY in listed or origin.lower() in listed)


def answered(origin: bytes | None, listed: Set[bytes]) -> dict[bytes, bytes]:
    """What goes with every answer where origins are listed: a page of one of them may read it, and nobody keeps it for
    another."""
    vary = {b"vary": b"origin"}
    if origin is None or not is_listed(origin, listed):
        return vary
    return vary | {b"access-control-allow-origin": origin, b"access-control-expose-headers": EXPOSED}


def preflight(asked: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes] | None:
    """What a browser that asks beforehand is told beside `answered`; None for an OPTIONS that is no such question.
    `asked`: the request's headers, with lower-case names."""
    told = dict(asked)
    if b"access-control-request-method" not in told:
        return None
    headers = {
        b"access-control-allow-methods": METHODS,
        b"access-control-allow-headers": told.get(b"access-control-request-headers") or HEADERS,
        b"access-control-max-age": MAX_AGE_S,
    }
    if told.get(b"access-control-request-private-network") == b"true":
        headers[b"access-control-allow-private-network"] = b"true"
    return headers

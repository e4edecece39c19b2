"""A machine speaks to its head: over TLS, by the CA that a token names or that was kept; in clear where the network is
declared private. What is said and what becomes of it is cluster/join.py's matter.
"""

import http.client
import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from cluster import tls
from cluster.paths import Paths

LOOPBACK = "127.0.0.1"
JOIN_PORT = 8090
"""The controller's port where nothing else is said: the default of `network.control`."""
ANSWER_BYTES_MAX = 65536
REFUSALS = frozenset(
    {
        "token_unknown",
        "token_used",
        "token_expired",
        "other_build",
        "name_taken",
        "name_wrong",
        "id_taken",
        "is_head",
        "other_address",
        "alone",
        "malformed",
        "disk",
        "needs_tls",
    }
)
"""The codes with which a head says no."""
NOT_YET = "not_yet"
"""The code with which it says: ask again."""

ANEW = "Join anew with a new token: `homeport join-token` on the head makes one."


class JoinRefused(Exception):
    """This machine may not join like this. The message says why and what to do; `code` is for programs."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class HeadAway(Exception):
    """The head does not answer, or not yet. The message says what to look at."""


def trusted(head: str, token: str, paths: Paths, timeout_s: float) -> tuple[str, str | None]:
    """The head's URL, and the CA (PEM) by which it must be known; None: it is asked in clear, as its token says.

    Raises JoinRefused, HeadAway.
    """
    wanted = tls.fingerprint_in(token)
    parts = urlsplit(head)
    address, port = parts.hostname or LOOPBACK, parts.port or JOIN_PORT
    if wanted is None and parts.scheme != "https":
        return head, None
    kept = kept_ca(paths)
    if wanted is None:
        if kept is None:
            raise JoinRefused(f"{paths.ca} is gone, by which this machine knew its head. {ANEW}", "needs_tls")
        return head, kept
    head = tls.url(address, port, True)
    if kept is not None and tls.fingerprint(kept) == wanted:
        return head, kept
    try:
        return head, tls.fetch_ca(address, port, wanted, timeout_s)
    except tls.NotTrusted as error:
        raise JoinRefused(str(error), "needs_tls") from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        raise _away(head, error) from None  # It ends, or is only starting.
    except (ssl.SSLError, ConnectionResetError, http.client.HTTPException):
        raise _no_tls(head) from None
    except OSError as error:
        raise _away(head, error) from None


def kept_ca(paths: Paths) -> str | None:
    """The CA that this machine got when it joined; None where it has none that can be used."""
    try:
        ca = paths.ca.read_text()
        tls.context_of(ca)
    except (OSError, ValueError):
        return None
    return ca


def _connection(head: str, ca: str | None, timeout_s: float) -> http.client.HTTPConnection:
    if ca is None and head.startswith("https:"):
        raise JoinRefused(f"This machine does not know the CA of {head} any more. {ANEW}", "needs_tls")
    return tls.connect_to(head, timeout_s, None if ca is None else tls.context_of(ca))


def post(
    head: str, path: str, said: Callable[[str], Mapping[str, Any]], timeout_s: float, ca: str | None = None
) -> tuple[int, Any]:
    """The status and the JSON of the answer. `said` makes what is asked from our own address on that connection.

    Raises JoinRefused, HeadAway.
    """
    connection = _connection(head, ca, timeout_s)
    try:
        connection.connect()
        mine: str = connection.sock.getsockname()[0]
        body = json.dumps(said(mine)).encode()
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read(ANSWER_BYTES_MAX))
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        raise _away(head, error) from error  # It ends, or is only starting.
    except ssl.SSLError as error:
        raise JoinRefused(tls.why(error, f"the head at {head}") or str(error), "needs_tls") from None
    except (ConnectionResetError, http.client.HTTPException) as error:
        if ca is None and _speaks_tls(head, timeout_s):
            raise JoinRefused(
                f"The head at {head.removeprefix('http://')} speaks TLS, and the token of this machine does not say by "
                f"which CA to know it: it is of an older homeport, or of a time when the network was private. {ANEW}",
                "needs_tls",
            ) from None
        is_http = isinstance(error, http.client.HTTPException)
        if isinstance(error, OSError) and (ca is not None or not is_http):
            raise _away(head, error) from error
        raise no_homeport(head, f"it does not speak HTTP ({type(error).__name__})") from None
    except OSError as error:
        raise _away(head, error) from error
    except (ValueError, RecursionError):
        raise no_homeport(head, "its answer is no JSON") from None
    finally:
        connection.close()


def _speaks_tls(head: str, timeout_s: float) -> bool:
    parts = urlsplit(head)
    return tls.speaks_tls(parts.hostname or LOOPBACK, parts.port or JOIN_PORT, timeout_s)


def _away(head: str, error: OSError) -> HeadAway:
    return HeadAway(
        f"Nothing answers at {head} ({error.strerror or error}). See that homeport is up on the head, that this is "
        f"the address which its config gives it, and that no firewall closes port {urlsplit(head).port}."
    )


def _no_tls(head: str) -> JoinRefused:
    message = (
        f"What answers at {head.removeprefix('https://')} speaks no TLS, as the head that this token is of does. See "
        "that the address is right; if its network is declared private since, `homeport join-token` there makes "
        "another token."
    )
    return JoinRefused(message, "needs_tls")


def refusal(head: str, status: int, told: Any) -> Exception:
    try:
        message, code = str(told["error"]["message"]), told["error"]["code"]
    except (KeyError, TypeError):
        return no_homeport(head, f"it answered with status {status}")
    if code == NOT_YET:
        return HeadAway(message)
    if code not in REFUSALS:
        return no_homeport(head, f"it answered with status {status}")
    return JoinRefused(message, code)


def no_homeport(head: str, why: str) -> JoinRefused:
    message = (
        f"What answers at {head} is no head that can be joined: {why}. Give the head's address, with the port that "
        f"network.control of its config says ({JOIN_PORT} by default)."
    )
    return JoinRefused(message, "no_homeport")

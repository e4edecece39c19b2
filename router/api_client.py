"""How the command line asks a running homeport: small blocking calls to the router and to the controller.

Renders nothing. `secret` is the cluster's token, with which this machine's owner needs no key.
"""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from cluster import tls
from cluster.paths import Paths, read_json

ANSWER_S = 3.0


class Away(Exception):
    """The router does not answer."""


class Refused(Exception):
    """The router answered with an error; the message is its own."""


def get(url: str, path: str, timeout_s: float = ANSWER_S, secret: str = "") -> Any:
    """GET JSON. Raises Away or Refused."""
    return ask(url, "GET", path, None, timeout_s, secret)


def ask_control(paths: Paths, method: str, path: str, body: Any = None, timeout_s: float = ANSWER_S) -> Any:
    """As `ask`, of the controller of the head that this machine is."""
    control = (read_json(paths.revision) or {}).get("control", {})
    try:
        url = tls.url(control["host"], control["port"], bool(control.get("tls")))
    except KeyError:
        raise Away("No homeport was started on this state folder.") from None
    return ask(url, method, path, body, timeout_s, owners_secret(paths), trust(paths))


def trust(paths: Paths) -> ssl.SSLContext | None:
    """By which CA the machines of this head are known; None where they speak in clear. Raises Away."""
    if not (read_json(paths.revision) or {}).get("control", {}).get("tls"):
        return None
    try:
        return tls.client_context(paths.ca)
    except OSError as error:
        raise Away(
            f"{paths.ca}: {error.strerror or error}. `homeport down` and `homeport up` make it anew."
        ) from None


def ask(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    timeout_s: float = ANSWER_S,
    secret: str = "",
    context: ssl.SSLContext | None = None,
) -> Any:
    """Send JSON (None: nothing), and return the JSON of the answer. Raises Away or Refused.

    `context`: whom to trust, where the URL is https.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {} if data is None else {"content-type": "application/json"}
    connection, answer = _ask(url, method, path, data, {**headers, **bearer(secret)}, timeout_s, context)
    try:
        return _body(answer)
    finally:
        connection.close()


def owners_secret(paths: Paths) -> str:
    """What lets this machine's owner in without a key; empty where it cannot be read."""
    try:
        return paths.cluster_token.read_text().strip()
    except OSError:
        return ""


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"} if secret else {}


def answered(url: str) -> bool:
    """Whether the router is up and at least one replica can answer."""
    try:
        get(url, "/ready", timeout_s=1.0)
    except (Away, Refused):
        return False
    return True


def events(url: str, path: str, secret: str = "", silent_s: float = 30.0) -> Iterator[Any]:
    """The data of server-sent events as they come, and None for each comment, until the stream ends. Raises Away or
    Refused; Away also where nothing came for `silent_s`."""
    connection, answer = _ask(url, "GET", path, None, bearer(secret), silent_s)
    try:
        if answer.status != 200:
            _body(answer)
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
            elif line.startswith(b":"):
                yield None
    except (OSError, http.client.HTTPException) as error:
        raise Away(f"the stream broke: {error}") from error
    finally:
        connection.close()


def stream_chat(
    url: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout_s: float
) -> Iterator[dict[str, Any]]:
    """POST a streamed chat completion; yields its events. Raises Away or Refused."""
    sent = {"content-type": "application/json", **headers}
    connection, answer = _ask(url, "POST", "/v1/chat/completions", json.dumps(body).encode(), sent, timeout_s)
    try:
        if answer.status != 200:
            _body(answer)
        for line in answer:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise Refused(event["error"]["message"])
            yield event
    except (OSError, http.client.HTTPException) as error:
        raise Away(f"the stream broke: {error}") from error
    finally:
        connection.close()


def _ask(
    url: str,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
    timeout_s: float,
    context: ssl.SSLContext | None = None,
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = tls.connect_to(url, timeout_s, context)
    try:
        sent = {
            name: value.encode() for name, value in headers.items()
        }  # a session's name may be in any script
        connection.request(method, path, body=body, headers=sent)
        return connection, connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise Away(f"{url} does not answer: {error}") from error


def _body(answer: http.client.HTTPResponse) -> Any:
    try:
        data = json.loads(answer.read())
    except (ValueError, OSError, http.client.HTTPException) as error:
        raise Away(f"the router's answer broke off: {error}") from error
    if answer.status >= 400:
        raise Refused(data.get("error", {}).get("message", f"status {answer.status}"))
    return data

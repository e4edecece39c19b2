"""What a request that came says of its client, and what that means in words. Pure.

Holds nothing that somebody wrote or is called: no name, no prompt, no key; a session by its public id only.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import msgspec

from router.connect import CLIENTS, Client

Astray = Literal["", "add_v1", "drop_v1", "unknown"]
"""What is wrong with a path that homeport does not have: `/v1` is missing or there twice, or it is none at all."""

_PRODUCT = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,40}(?:/[A-Za-z0-9!#$%&'*+.^_`|~-]{1,40})?")
SPEAKS = {"/v1/chat/completions": "chat completions", "/v1/messages/count_tokens": "count_tokens"}


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a model, at its end."""

    path: str
    """Without what names a session or a machine; empty: one that homeport does not have."""
    outcome: str
    """`ok`, or the code of the error that ended it."""
    agent: str = ""
    """The product that its user agent begins with."""
    source: str = "none"
    header: str = ""
    """The one that named its session."""
    session: str = ""
    """Its public id."""
    pin: str = ""
    machine: str = ""
    streams: bool = False
    is_aside: bool = False
    """It was made beside the session's context, as a title is, which leaves that alone."""
    is_child: bool = False
    """It was begun by another session, whose home it shares."""
    astray: Astray = ""


class Arrived(msgspec.Struct, frozen=True):
    """What came to one worker."""

    last: int
    """The number of the last one of all; goes up by one with each."""
    arrivals: tuple[Arrival, ...] = ()


def product(user_agent: str) -> str:
    """What a user agent begins with, as `name/version`; empty where it is nothing of that kind."""
    found = _PRODUCT.match(user_agent)
    return found.group() if found else ""


def naming_header(named: Sequence[tuple[bytes, bytes]], ladder: Sequence[bytes]) -> str:
    """Of a request's headers the one that names its session; empty: none does."""
    there = {name for name, value in named if value}
    return next((name.decode() for name in ladder if name in there), "")


def astray(path: str, known: Collection[str]) -> Astray:
    if path in known:
        return ""
    if f"/v1{path}" in known:
        return "add_v1"
    return "drop_v1" if path.startswith("/v1/v1/") and path[3:] in known else "unknown"


def words(seen: Arrival) -> str:
    """What arrived, in one line."""
    if seen.astray:
        return f"{seen.agent or 'a client'}: a path that homeport does not have ({seen.outcome})"
    parts = [f"{seen.agent or 'a client'}: {dialect(seen.path)}", "a stream" if seen.streams else "no stream"]
    parts.append(f"source {seen.source}" + (f" ({seen.header})" if seen.header else ""))
    if seen.session:
        parts.append(f"session {seen.session}" + (", a sub-agent's" if seen.is_child else ""))
    if seen.machine:
        parts.append(f"{seen.pin or 'no pin'} at {seen.machine}")
    if seen.is_aside:
        parts.append("made aside, as a title is")
    if seen.outcome != "ok":
        parts.append(seen.outcome)
    return ", ".join(parts)


def dialect(path: str) -> str:
    if path.startswith("/api/"):
        return "Ollama's API"
    return SPEAKS.get(path, path.removeprefix("/v1/"))


def client_of(agent: str, expected: Client | None = None) -> Client | None:
    """Which of the known clients says that it is this; the expected one, where none does or only what others are built
    upon."""
    found = next((client for client in CLIENTS.values() if client.is_agent(agent)), None)
    return expected or found if found is None or found.is_library else found


def advice(seen: Arrival, client: Client | None) -> Iterator[str]:
    """What is good about it, or missing, one sentence each. `client`: which it is, as far as known."""
    again = "`homeport connect`" if client is None else f"`homeport connect {client.name}`"
    if seen.astray == "add_v1":
        yield f"Its base URL must end in /v1: {again} says how."
    elif seen.astray == "drop_v1":
        yield f"Its base URL must not end in /v1, which it adds itself: {again} says how."
    elif seen.astray:
        yield f"It asks for a path that homeport does not have: {again} says what to set."
    elif seen.outcome not in ("ok", "client_gone"):
        yield from _failed(seen.outcome, again)
    if not seen.astray and seen.outcome not in _NOT_READ:
        yield _named(seen, client, again)


_NOT_READ = frozenset({"invalid_api_key", "key_not_allowed", "rate_limit_exceeded", "wrong_method"})
"""Outcomes of requests in which nothing was looked for that names a session."""


def _failed(outcome: str, again: str) -> Iterator[str]:
    if outcome == "invalid_api_key":
        yield f"It sends no key that homeport knows: `homeport key new NAME` makes one, {again} says where it goes."
    elif outcome == "model_not_found":
        yield f"It asks for a model that is not served: {again} names one."
    else:
        yield f"The answer was an error: {outcome}; the client was told what to do."


def _named(seen: Arrival, client: Client | None, again: str) -> str:
    if seen.source in ("header", "body", "path"):
        what = {"header": "a header", "body": "its body", "path": "its base URL"}[seen.source]
        one = " All that it does is this one session." if seen.source == "path" else ""
        if seen.is_aside:
            one += " This request was none of its turns: its context was left alone."
        return f"Good: {what} names its conversation, which keeps its home.{one}"
    if seen.source == "none":
        return "It belongs to no session: nothing is kept for it."
    if client is not None and client.source != "guess":
        return f"Source: guess. Its conversations are not named, which it can do: {again} says how."
    return (
        "Source: guess. Its conversations are not named but known again by their history, as long as it sends that "
        f"unchanged. {again} --session NAME gives a base URL that names one."
    )

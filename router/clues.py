"""What a body says of its session, taken from the one pass that decodes the body.

Reads no messages before they are asked for. Decides nothing: `identity` does.
"""

import json
from collections.abc import Sequence
from functools import partial

import msgspec

from router.identity import BodyClues
from router.likeness import Message

_NOTHING = msgspec.Raw()


class BodyFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fields that may name a session, unread: a client's own idea of one must not fail its request."""

    prompt_cache_key: msgspec.Raw = _NOTHING
    conversation: msgspec.Raw = _NOTHING
    metadata: msgspec.Raw = _NOTHING
    session_id: msgspec.Raw = _NOTHING
    user: msgspec.Raw = _NOTHING
    safety_identifier: msgspec.Raw = _NOTHING


_MESSAGES = msgspec.json.Decoder(list[Message])


def body_clues(fields: BodyFields, messages: msgspec.Raw | None = None) -> BodyClues:
    """`messages` as they stand in a chat's body; None for what is no chat."""
    return BodyClues(
        _value(fields.prompt_cache_key),
        _value(fields.conversation),
        _value(fields.metadata),
        _value(fields.session_id),
        {"user": _value(fields.user), "safety_identifier": _value(fields.safety_identifier)},
        tuple if messages is None else partial(_read, messages),
    )


def _value(raw: msgspec.Raw) -> object:
    """Read by the standard library, which minds no number out of range; None for what it cannot read either."""
    if raw is _NOTHING:
        return None
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError):
        return None


def _read(messages: msgspec.Raw) -> Sequence[Message]:
    """Empty where they are no messages; the host says what is wrong with them."""
    try:
        return _MESSAGES.decode(messages)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()

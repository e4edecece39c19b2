"""What a client is sent: exactly one ending."""

from typing import Any

import pytest

from router.errors import host_lost
from router.exchange import Exchange
from router.reply import DONE, Reply


class Wire:
    """A connection of a client that keeps what is written."""

    def __init__(self) -> None:
        self.sent = b""
        self.answers: list[Any] = []

    def write(self, data: bytes) -> None:
        self.sent += data

    def answered(self, exchange: Any) -> None:
        self.answers.append(exchange)


@pytest.mark.parametrize(("last", "outcome"), [(DONE, "ok"), (b"data: {}\n\n", "host_lost")])
def test_no_error_follows_a_stream_that_said_done(last: bytes, outcome: str) -> None:
    wire: Any = Wire()
    exchange = Exchange(wire, "POST", b"/", "1.1", [], True, False)
    reply = Reply(exchange, {})
    reply.begin([])
    reply.last = last
    reply.part(last)
    assert reply.fail(host_lost("den/0")) == outcome
    assert wire.sent.count(b"[DONE]") + wire.sent.count(b'"error"') == 1
    assert wire.sent.endswith(b"0\r\n\r\n")
    assert wire.answers == [exchange]

"""What a client is sent: exactly one ending."""

from typing import Any

import pytest

from router.errors import host_lost
from router.reply import DONE, Reply


@pytest.mark.parametrize(("last", "outcome"), [(DONE, "ok"), (b"data: {}\n\n", "host_lost")])
async def test_no_error_follows_a_stream_that_said_done(last: bytes, outcome: str) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    reply = Reply(send, [])
    await reply.begin([])
    await reply.part(last)
    assert await reply.fail(host_lost("den/0")) == outcome
    body = b"".join(message.get("body", b"") for message in sent)
    assert body.count(b"[DONE]") + body.count(b'"error"') == 1
    assert sent[-1]["more_body"] is False

"""What a client gets for one turn: headers, parts, and exactly one ending.

Knows no host and chooses nothing. Bytes pass as they are.
"""

from collections.abc import Iterable

from router.errors import ApiError, RawHeaders
from router.request import Head, Receive, SendMessage, discard_body

DROPPED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade content-length server date "
    b"x-request-id x-homeport-session x-homeport-source".split()
)
"""Of a host's response headers: hop-by-hop ones, and those that the router itself says."""

DONE = b"data: [DONE]\n\n"
EVENT_STREAM: RawHeaders = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply:
    """One response on its way. `own` are the router's headers; they go out with whichever head is sent."""

    __slots__ = ("_done", "_send", "ended", "head_sent", "own")

    def __init__(self, send: SendMessage, own: RawHeaders) -> None:
        self.own = own
        self.head_sent = False
        self.ended = False
        """The last part was handed over: nothing may follow."""
        self._done = False
        """The stream said `[DONE]`."""
        self._send = send

    def say(self, name: bytes, value: bytes) -> None:
        """One of the router's headers, in the stead of what it said before."""
        self.own = [*((each, said) for each, said in self.own if each != name), (name, value)]

    async def whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """The whole response at once."""
        self.ended = True
        await answer(self._send, status, [*self.own, *headers], body)

    async def begin(self, headers: RawHeaders) -> None:
        """The head of a stream; nothing where one is out already."""
        if not self.head_sent:
            self.head_sent = True
            await self._send({"type": "http.response.start", "status": 200, "headers": [*self.own, *headers]})

    async def part(self, data: bytes) -> None:
        self._done = data.endswith(DONE)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """The end of a stream."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def fail(self, error: ApiError) -> str:
        """End with an error: a response of its own, or an event where the head is out. Returns its name; `ok` where
        all was said before."""
        if self._done:
            await self.finish()
            return "ok"
        if self.head_sent:
            await self.finish(error.event())
        else:
            await self.whole(error.status, error.headers(), error.body())
        return error.code

    async def fail_unread(self, error: ApiError, head: Head, receive: Receive) -> str:
        """Refuse a request before its body is read: answer, then read away what the client still sends."""
        body = error.body()
        headers = [*self.own, *error.headers(), (b"content-length", b"%d" % len(body))]
        headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.part(body)
        if not head.expects_continue:
            await discard_body(receive)
        await self.finish()
        return error.code


def passed(raw_headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """A host's response headers as its client gets them."""
    lower = ((name.lower(), value) for name, value in raw_headers)
    return [(name, value) for name, value in lower if name not in DROPPED]


def home_headers(replica: str, pin: str) -> RawHeaders:
    """What is known of the home that a turn waits for, or whose host failed it."""
    machine = replica.rpartition("/")[0]
    return [
        (b"x-homeport-machine", machine.encode()),
        (b"x-homeport-replica", replica.encode()),
        (b"x-homeport-pin", pin.encode()),
    ]


async def answer(send: SendMessage, status: int, headers: RawHeaders, body: bytes) -> None:
    """One whole response."""
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})

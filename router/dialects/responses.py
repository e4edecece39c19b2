"""OpenAI's Responses on top of chat completions. Pure: keeps nothing itself; what is kept comes in, and goes out.

Source: OpenAI's API reference (Responses, streaming events), and its SDKs' types.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from router.dialects.dialect import Naming, renamed
from router.dialects.responses_ids import input_id
from router.dialects.responses_items import OUTPUT, PREFIXES, Item
from router.dialects.responses_request import (
    GoesOn,
    Request,
    known_items,
    previous_not_found,
    read_request,
    said,
)
from router.dialects.responses_stream import Answer, Stream
from router.errors import RawHeaders

NAMES = (
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
)
"""What a chat's field is called here: a host speaks of its own."""


class Responses:
    """`/v1/responses`."""

    stream_type = b"text/event-stream; charset=utf-8"

    def read(self, body: bytes, naming: Naming) -> "Asked":
        asked = Asked(read_request(body), naming)
        if asked.goes_on is None:
            _ = asked.body  # what cannot be asked is refused here
        return asked

    def error(self, status: int, error: Mapping[str, Any], request_id: str) -> tuple[RawHeaders, bytes]:
        return [], json.dumps({"error": renamed(error, NAMES)}).encode()


class Asked:
    """One request to `/v1/responses`.

    One that goes on from what was kept has a body only `after` that is known.
    """

    def __init__(
        self,
        request: Request,
        naming: Naming,
        history: Sequence[Item] = (),
        items: Sequence[Item] | None = None,
    ) -> None:
        """`history`: what was said before; `items`: the input, none of it only named. None: not known yet."""
        self._request, self._naming, self._history = request, naming, history
        self._items = items
        self._session: str | None = None
        self._stream: Stream | None = None
        self._response: Mapping[str, Any] | None = None
        self._body: bytes | None = None

    @property
    def goes_on(self) -> GoesOn | None:
        return self._request.goes_on

    def after(self, records: Sequence[Mapping[str, Any]], named: Sequence[Mapping[str, Any]] = ()) -> "Asked":
        """The same, going on from these records, oldest first. `named`: those of further responses whose items the
        input names. Raises Rejected for an item that is in none of them."""
        after = copy.copy(self)  # its stream may have begun: comments come before a host is asked
        after._history = [item for record in records for item in said(record)]
        after._items = known_items(self._request.items, [*named, *records])
        after._body = None
        return after

    @property
    def opening(self) -> bytes:
        """As much of `body` as tells whose turn it is; all of it where nothing else has to be known first. Raises
        Rejected."""
        return self.body if self.goes_on is None else json.dumps(self._request.opening()).encode()

    @property
    def body(self) -> bytes:
        """What a host is asked. Raises Rejected."""
        if self._body is None:
            self._body = self._chat()
        return self._body

    @property
    def record(self) -> Mapping[str, Any] | None:
        """What is to be kept of this turn: None until its answer is whole, and where nothing may be."""
        response = self._response if self._stream is None else self._stream.response
        if response is None or not self._request.stores:
            return None
        goes_on = self._request.goes_on
        return {
            "id": response["id"],
            "previous": goes_on and goes_on.previous,
            "conversation": goes_on and goes_on.conversation,
            "created_at": response["created_at"],
            "input": [self._identified(item, index) for index, item in enumerate(self._items or ())],
            "response": response,
        }

    def cancelled(self) -> Mapping[str, Any]:
        """The response as it stands if it is made no further."""
        if self._stream is not None:
            return self._stream.cancelled()
        return Answer(self._request, self._naming, self._session, lambda _kind, _data: None).cancelled()

    def whole(self, answer: bytes, session: str | None) -> bytes:
        told = json.loads(answer)
        choice = told["choices"][0]
        self._session = session
        made = Answer(self._request, self._naming, session, lambda _kind, _data: None)
        made.add(told, choice["message"], choice)
        self._response = made.end()
        return json.dumps(self._response).encode()

    def belongs_to(self, session: str | None) -> None:
        """Its session is known now: its stream may have begun before, with nothing but comments."""
        self._session = session
        if self._stream is not None:
            self._stream.belongs_to(session)

    def stream(self, session: str | None) -> Stream:
        self._session = session
        self._stream = Stream(self._request, self._naming, session)
        return self._stream

    def _chat(self) -> bytes:
        goes_on = self._request.goes_on
        if self._items is None and goes_on is not None and goes_on.previous is not None:
            raise previous_not_found(goes_on.previous)
        if self._items is None:
            self._items = known_items(self._request.items, ())
        return json.dumps(self._request.chat(self._history, self._items)).encode()

    def _identified(self, item: Item, index: int) -> Item:
        if isinstance(item.get("id"), str):
            return item
        prefix = PREFIXES.get(item["type"], OUTPUT)
        return {**item, "id": input_id(prefix, self._naming, self._session, index)}

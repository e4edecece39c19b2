"""Answers that are kept, as OpenAI's API has them: read, removed, cancelled, and what they were asked with.

How they are kept is `kept`'s matter. Whoever asks for another key's learns no more than of one that is not there.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request

from router.errors import ApiError, Rejected, bad_request
from router.kept import Kept, Record
from router.keys import Key

LIMIT = 20
LIMIT_MOST = 100
LIMITS = frozenset(map(str, range(1, LIMIT_MOST + 1)))
"""As they are written: a number of thousands of digits is not even read."""

Cancel = Callable[[str, Key], Awaitable[Mapping[str, Any] | None]]


def add_responses(pages: FastAPI, kept: Kept, cancel: Cancel, who: Callable[[Request], Key]) -> None:
    """`/v1/responses/{id}` and below. `cancel`: ends the making of a response; `who`: whose a request is."""

    async def found(response: str, request: Request) -> Record:
        record = await kept.get(response, who(request))
        if record is None:
            raise Rejected(response_not_found(response))
        return record

    @pages.get("/v1/responses/{response}")
    async def get(response: str, request: Request) -> Any:
        if request.query_params.get("stream", "false") not in ("false", "0"):
            message = "`stream` does not work here: an answer that is kept is whole. Leave it out."
            raise Rejected(bad_request(message, "unsupported_parameter", "stream"))
        return (await found(response, request))["response"]

    @pages.delete("/v1/responses/{response}")
    async def delete(response: str, request: Request) -> dict[str, Any]:
        if not await kept.delete(response, who(request)):
            raise Rejected(response_not_found(response))
        return {"id": response, "object": "response", "deleted": True}

    @pages.post("/v1/responses/{response}/cancel")
    async def end(response: str, request: Request) -> Any:
        cancelled = await cancel(response, who(request))
        if cancelled is None:
            await found(response, request)
            message = "This response is complete; only one that is being made can be cancelled."
            raise Rejected(bad_request(message, "response_complete"))
        return cancelled

    @pages.get("/v1/responses/{response}/input_items")
    async def input_items(response: str, request: Request) -> dict[str, Any]:
        query = request.query_params
        items = (await found(response, request))["input"]
        return page_of(items, query.get("order", "desc"), query.get("after"), query.get("limit"))


def page_of(
    items: Sequence[Mapping[str, Any]], order: str, after: str | None, limit: str | None
) -> dict[str, Any]:
    """A part of a list, oldest first, as its client pages through it. Raises Rejected."""
    if order not in ("asc", "desc"):
        raise Rejected(bad_request("`order` must be asc or desc.", "invalid_value", "order"))
    if limit is not None and limit not in LIMITS:
        raise Rejected(bad_request(f"`limit` must be 1 to {LIMIT_MOST}.", "invalid_value", "limit"))
    ordered = list(items) if order == "asc" else list(items)[::-1]
    if after is not None:
        places = {item["id"]: place for place, item in enumerate(ordered)}
        if after not in places:
            raise Rejected(bad_request("`after` is the id of none of them.", "invalid_value", "after"))
        ordered = ordered[places[after] + 1 :]  # behind the last of that id: a client may have sent it twice
    told = ordered[: LIMIT if limit is None else int(limit)]
    return {
        "object": "list",
        "data": told,
        "first_id": told[0]["id"] if told else None,
        "last_id": told[-1]["id"] if told else None,
        "has_more": len(told) < len(ordered),
    }


def response_not_found(response: str) -> ApiError:
    message = f"Response with id '{response[:80]}' not found. It was not kept, or went with its session."
    return ApiError(404, "response_not_found", message, final=True)

"""Conversations as OpenAI's API has them: a name, under which the answers that say it are kept.

A name is made up here and written down nowhere: a conversation begins with its first turn, at that turn's home, and one
that never began is empty. What a client says outside of turns is not taken.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request

from router.dialects.fields import mapping, shown, text
from router.dialects.responses_request import said
from router.errors import Rejected, bad_request
from router.kept import Kept
from router.keys import Key
from router.page_body import read_json
from router.request import new_id
from router.responses_api import page_of

NAME = "conv_{:08x}{}"
NAME_LENGTH = len(NAME.format(0, new_id()))


def add_conversations(
    pages: FastAPI,
    kept: Kept,
    who: Callable[[Request], Key],
    held_in: Callable[[str, Request], str],
    wall: Callable[[], float],
) -> None:
    """`/v1/conversations` and below. `who`: whose a request is; `held_in`: the session that holds a conversation."""

    @pages.post("/v1/conversations")
    async def create(request: Request) -> dict[str, Any]:
        told = await read_json(request, "{}")
        if not isinstance(told, dict):
            raise Rejected(bad_request("The request body must be a JSON object.", "invalid_type"))
        if told.get("items"):
            message = "`items` does not work here: send them as `input` of the conversation's first response."
            raise Rejected(bad_request(message, "unsupported_parameter", "items"))
        name = NAME.format(int(wall()), new_id())
        metadata = mapping(told.get("metadata") or {}, "metadata")
        metadata = {key: text(value, f"metadata.{shown(key)}") for key, value in metadata.items()}
        return _conversation(name) | {"metadata": metadata}

    @pages.get("/v1/conversations/{name}")
    async def get(name: str) -> dict[str, Any]:
        return _conversation(name)

    @pages.delete("/v1/conversations/{name}")
    async def delete(name: str, request: Request) -> dict[str, Any]:
        await kept.forget(name, held_in(name, request), who(request))
        return {"id": name, "object": "conversation.deleted", "deleted": True}

    @pages.get("/v1/conversations/{name}/items")
    async def items(name: str, request: Request) -> dict[str, Any]:
        query = request.query_params
        records = await kept.conversation(name, held_in(name, request), who(request))
        found = [item for record in records for item in said(record)]
        return page_of(found, query.get("order", "desc"), query.get("after"), query.get("limit"))

    @pages.post("/v1/conversations/{name}/items")
    async def add(name: str) -> None:
        message = "Items are not added by themselves here: send them as `input` of the conversation's next response."
        raise Rejected(bad_request(message, "unsupported_operation"))


def _conversation(name: str) -> dict[str, Any]:
    """`created_at` of a name that was made up here."""
    made = len(name) == NAME_LENGTH and name.startswith("conv_")
    try:
        created_s = int(name[5:13], 16) if made else 0
    except ValueError:
        created_s = 0
    return {"id": name, "object": "conversation", "created_at": created_s, "metadata": {}}

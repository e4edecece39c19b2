"""What an action of the API is told in its body."""

from typing import Any

import msgspec
from starlette.requests import Request

from router.errors import ApiError, Rejected, bad_request

MAX_BODY = 64 << 10
"""Of what an action is told in its body."""


async def read_json(request: Request, empty: str = "") -> Any:
    """The body; `empty` instead of one that is empty. Raises Rejected."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            message = (
                f"The request body is larger than {MAX_BODY >> 10} KiB; say no more than the action needs."
            )
            raise Rejected(ApiError(413, "body_too_large", message))
    try:
        return msgspec.json.decode(data or empty)
    except (ValueError, RecursionError) as error:
        raise Rejected(bad_request("The request body is not JSON.", "invalid_json")) from error

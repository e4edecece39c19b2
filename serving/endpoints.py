"""The endpoints that need the model: chat completions, completions, embeddings, and the two that only count tokens.

Each reads its body and says what is to be made of it; answers.py does the rest. All raise Problem as long as no head
is out, and ClientGone while the body is read.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from serving.answers import answer
from serving.asgi import Receive, Send, read_body, send_whole
from serving.chat_request import ChatRequest, read_chat_request
from serving.completion_request import read_completion_request
from serving.desk import Desk, Named
from serving.embedding_request import read_embedding_request
from serving.request_fields import default_sampling
from serving.routing import Ask, as_transient
from serving.take_in import (
    count_tokens,
    prepare_chat,
    prepare_completions,
    prepare_embeddings,
    text_of_tokens,
)
from serving.token_requests import read_detokenize_request, read_tokenize_request

INLINE_BODY_BYTES = 16 * 2**10
"""Larger bodies are read, rendered and tokenized on another thread: the loop answers polls meanwhile."""

T = TypeVar("T")


async def chat(desk: Desk, ask: Ask, receive: Receive, send: Send) -> None:
    """POST /v1/chat/completions"""
    body = await read_body(receive)
    defaults = default_sampling(dict(desk.model.options))
    request = await _read(desk, body, lambda read: read_chat_request(read, defaults), "model and messages")
    prepare = partial(prepare_chat, desk, ask, request)
    aside = len(body) > INLINE_BODY_BYTES or _is_constrained(request)
    await answer(desk, ask, receive, send, prepare, stream=request.stream, aside=aside)


async def completions(desk: Desk, ask: Ask, receive: Receive, send: Send) -> None:
    """POST /v1/completions"""
    body = await read_body(receive)
    defaults = default_sampling(dict(desk.model.options))
    request = await _read(
        desk, body, lambda read: read_completion_request(read, defaults), "model and prompt"
    )
    prepare = partial(prepare_completions, desk, ask, request)
    aside = len(body) > INLINE_BODY_BYTES
    await answer(desk, ask, receive, send, prepare, stream=request.stream, aside=aside)


async def embeddings(desk: Desk, ask: Ask, receive: Receive, send: Send) -> None:
    """POST /v1/embeddings: a transient's, whatever the headers say of a session."""
    body = await read_body(receive)
    request = await _read(desk, body, read_embedding_request, "model and input")
    prepare = partial(prepare_embeddings, desk, request)
    aside = len(body) > INLINE_BODY_BYTES
    await answer(desk, as_transient(ask), receive, send, prepare, stream=False, aside=aside)


async def tokenize(desk: Desk, _ask: Ask, receive: Receive, send: Send) -> None:
    """POST /tokenize: a prompt's or a conversation's token ids."""
    body = await read_body(receive)
    request = await _read(desk, body, read_tokenize_request, "prompt or messages")
    await desk.awake()
    tokens = await _where(body, lambda: count_tokens(desk, request))
    context = desk.engine.facts.context
    await _send_json(desk, send, {"count": len(tokens), "max_model_len": context, "tokens": tokens})


async def detokenize(desk: Desk, _ask: Ask, receive: Receive, send: Send) -> None:
    """POST /detokenize: the text of token ids."""
    body = await read_body(receive)
    request = await _read(desk, body, read_detokenize_request, "tokens")
    await desk.awake()
    await _send_json(desk, send, {"prompt": await _where(body, lambda: text_of_tokens(desk, request.tokens))})


ENDPOINTS = {
    "/v1/chat/completions": chat,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
"""What takes a POST."""


async def _read(desk: Desk, body: bytes, reader: Callable[[object], Named], wanted: str) -> Named:
    return await _where(body, lambda: desk.read(body, reader, wanted))


async def _where(body: bytes, call: Callable[[], T]) -> T:
    """Call it here, or on another thread if the body is large."""
    return call() if len(body) <= INLINE_BODY_BYTES else await asyncio.to_thread(call)


def _is_constrained(request: ChatRequest) -> bool:
    """Whether a grammar must be compiled first, which can take long."""
    return request.json_output is not None or request.tool_use.choice == "required"


async def _send_json(desk: Desk, send: Send, value: Any) -> None:
    await send_whole(send, 200, msgspec.json.encode(value), desk.place_headers())

"""The bytes that load and stand-in hosts exchange: requests, answers, events. Made once, before anything is measured.

What a host is to do stands in the request, in fields that every relay passes on: `max_tokens` events are streamed, a
hundred a second; a prompt that says IDLE gets one event and then nothing for as long as its client stays.
"""

import json
import re

MODEL = "tiny"
PATH = "/v1/chat/completions"
LEFT = "/left"
"""Asked of the stand-in controller: when a host saw last that a client had left in the middle of a stream."""
IDLE = "idle"
HISTORY_BYTES = 48 * 1024
ENDLESS = 1_000_000
"""Tokens of a stream that goes on until its client leaves."""
EVENTS_PER_S = 100
WORDS = ("harbour", "lies", "still", "at", "this", "hour", "and", "the")
MARK = b"data: "
"""An event begins with it, and nothing else has it."""
LAST_CHUNK = b"0\r\n\r\n"

HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"transfer-encoding: *chunked", re.IGNORECASE)
TOKENS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')
STREAMED = re.compile(rb'"stream": *true')


def request(headers: dict[str, str], *, tokens: int | None, say: str = "Hi", history: bool = False) -> bytes:
    """A whole POST. `tokens` None: an answer in one piece. `history`: with 48 KiB of earlier messages."""
    messages = _history() if history else []
    body = json.dumps(
        {
            "model": MODEL,
            "stream": tokens is not None,
            "max_tokens": tokens or 100,
            "messages": [*messages, {"role": "user", "content": say}],
        },
        separators=(",", ":"),
    ).encode()
    sent = {"host": "127.0.0.1", "content-type": "application/json", "accept": "*/*"} | headers
    lines = [f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def _history() -> list[dict[str, str]]:
    """A chat of that many bytes as JSON, in messages as long as those that people and models write."""
    messages: list[dict[str, str]] = []
    size = 0
    while size < HISTORY_BYTES:
        role = ("user", "assistant")[len(messages) % 2]
        words = f'Message {len(messages)}: the ferry came into the harbour at dawn, "late" as ever.\n' * 10
        messages.append({"role": role, "content": words})
        size += len(json.dumps(messages[-1]))
    return messages


def whole(told: str) -> bytes:
    """An answer in one piece of some 500 bytes. `told`: header lines of the host's own."""
    words = "The harbour lies still at this hour, and the ferry is late once more. " * 3
    body = json.dumps(
        {
            "id": "chatcmpl-7f3c2a9be41d4c0f",
            "object": "chat.completion",
            "created": 1790000000,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": words},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 12, "completion_tokens": 48, "total_tokens": 60},
        }
    ).encode()
    return reply(200, body, told)


def reply(status: int, body: bytes, told: str = "") -> bytes:
    """A response of known length."""
    word = {200: "OK", 404: "Not Found"}[status]
    head = f"HTTP/1.1 {status} {word}\r\ncontent-type: application/json\r\n{told}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def stream_head(told: str) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
        f"x-accel-buffering: no\r\n{told}transfer-encoding: chunked\r\n\r\n"
    ).encode()


def events() -> tuple[bytes, ...]:
    """One token's each, as a chunk of the transfer. They differ: LiteLLM ends a stream that repeats one."""
    deltas = (_delta({"content": f" {word}"}, None) for word in WORDS)
    return tuple(_chunk(MARK + json.dumps(delta, separators=(",", ":")).encode()) for delta in deltas)


def ending() -> bytes:
    """The last event, `[DONE]`, and the end of the transfer."""
    last = MARK + json.dumps(_delta({}, "stop"), separators=(",", ":")).encode()
    return _chunk(last) + _chunk(MARK + b"[DONE]") + LAST_CHUNK


def _delta(delta: dict[str, str], finish: str | None) -> dict[str, object]:
    return {
        "id": "chatcmpl-7f3c2a9be41d4c0f",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }


def _chunk(data: bytes) -> bytes:
    data += b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)

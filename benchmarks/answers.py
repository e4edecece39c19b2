"""Streamed answers over HTTP, from our host or from another server: with the time of each piece of text."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.bare_loop import END_TOKENS
from benchmarks.pace import Stream

PATIENCE_S = 300.0
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Server:
    """Where to ask. `headers` go with every request; `session` names the header for the session, if it takes one."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    session: str | None = None
    model: str = "smollm2"
    socket: str | None = None
    """A Unix socket to ask it on; None: what `url` says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `began` is when it was asked for."""

    text: str
    began: float
    stream: Stream
    prompt_tokens: int
    cached_tokens: int
    headers: Mapping[str, str]

    @property
    def first_s(self) -> float:
        return self.stream.times[0] - self.began


class Client:
    """Asks one server. Make it inside a running loop, and close it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        # The C++ server closes a connection after a stream without saying so before.
        connector: aiohttp.BaseConnector = aiohttp.TCPConnector(limit=0, force_close=True)
        if server.socket is not None:
            connector = aiohttp.UnixConnector(server.socket, limit=0, force_close=True)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=connector)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def ask(
        self,
        messages: Messages,
        tokens: int,
        session: str | None = None,
        on_text: Callable[[int], bool] | None = None,
    ) -> Answer:
        """Exactly `tokens` tokens, greedily. Raises RuntimeError when the answer is no whole stream.

        `on_text` is called with the number of pieces of text that came, at each; when it says False the client leaves.
        """
        server = self._server
        headers = dict(server.headers)
        if server.session is not None and session is not None:
            headers[server.session] = session
        times: list[float] = []
        text, done = "", False
        usage: dict[str, Any] = {}
        began = time.perf_counter()
        async with self._http.post(
            f"{server.url}/v1/chat/completions", json=_body(server.model, messages, tokens), headers=headers
        ) as answer:
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")
            async for line in answer.content:
                if not line.startswith(b"data: "):
                    continue
                now = time.perf_counter()
                if line.startswith(b"data: [DONE]"):
                    done = True
                    continue
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                if new := "".join(
                    choice["delta"].get("content") or "" for choice in event.get("choices", ())
                ):
                    text += new
                    times.append(now)
                    if on_text is not None and not on_text(len(times)):
                        usage, done = {"prompt_tokens": 0, "completion_tokens": tokens}, True
                        break
        if not done or not usage or usage["completion_tokens"] != tokens:
            raise RuntimeError(f"no whole answer of {tokens} tokens: {usage}, {len(times)} pieces")
        details = usage.get("prompt_tokens_details") or {}
        return Answer(
            text,
            began,
            Stream(tuple(times) or (time.perf_counter(),), tokens),
            usage["prompt_tokens"],
            details.get("cached_tokens") or 0,
            {name.lower(): value for name, value in answer.headers.items()},
        )


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


async def together(*asks: Any) -> list[Any]:
    return list(await asyncio.gather(*asks))


def _body(model: str, messages: Messages, tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": {str(token): -100 for token in END_TOKENS},
    }

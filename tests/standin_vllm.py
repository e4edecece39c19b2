"""Stands in for vLLM where its faults are wanted: it takes vLLM's command line and serves on its socket.

Its answers are the prompt's tokens again, one chunk each, as vLLM streams them. The last of them ends with the first
stop string, if there is one. A fault is asked for by a file `fault` beside the model: `dies`, `refuses to load`,
`hangs` (its /health says nothing of it), `reads on` (a prompt that takes long), `breaks off`.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

from aiohttp import web

BLOCK = 32
Seen = dict[str, list[list[int]]]
"""By salt, the contexts that it has."""


def idle() -> None:
    """A child, as vLLM's engine is: it lives on when its parent is killed."""
    shared = shared_memory.SharedMemory(create=True, size=4096)
    shared.buf[0] = 1  # type: ignore[index]
    while True:
        time.sleep(60)


def fault(model: Path) -> str:
    file = model / "fault"
    return file.read_text().strip() if file.exists() else ""


async def completions(request: web.Request) -> web.StreamResponse:
    model, seen = request.app["model"], request.app["seen"]
    body = await request.json()
    (model / "last.json").write_text(json.dumps(body))
    if not body.get("stream"):
        return web.json_response({"choices": [{"index": 0, "text": "a"}]})
    if body["temperature"] == 1.5:
        error = {"message": "temperature is too much", "type": "BadRequestError", "code": 400}
        return web.json_response({"error": error}, status=400)
    if fault(model) == "dies":
        os._exit(3)
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    request.app["running"] += 1
    try:
        while fault(model) in ("hangs", "reads on"):  # noqa: ASYNC110  a file tells
            await asyncio.sleep(0.05)
        await answer(response, body, fault(model), seen)
    finally:
        request.app["running"] -= 1
    return response


async def answer(response: web.StreamResponse, body: dict[str, Any], broken: str, seen: Seen) -> None:
    prompt, salt = body["prompt"], body["cache_salt"]
    known = seen.setdefault(salt, [])
    cached = max((common(each, prompt) for each in known), default=0) // BLOCK * BLOCK
    cached = min(cached, (len(prompt) - 1) // BLOCK * BLOCK)
    made = prompt[: body["max_tokens"]]
    stop = next(iter(body["stop"]), None)
    finish = "length" if stop is None else "stop"
    for at, token in enumerate(made):
        last = at == len(made) - 1
        for index in range(body["n"]):
            choice = {
                "index": index,
                "text": f"<{token}>",
                "token_ids": [token],
                "finish_reason": finish if last else None,
                "stop_reason": stop if last else None,
            }
            await event(response, {"choices": [choice]})
        if broken == "breaks off":
            return
        await asyncio.sleep(0.01)
    known.append([*prompt, *made[:-1]])
    used = {"prompt_tokens": len(prompt), "completion_tokens": len(made), "total_tokens": 0}
    await event(
        response, {"choices": [], "usage": {**used, "prompt_tokens_details": {"cached_tokens": cached}}}
    )
    await response.write(b"data: [DONE]\n\n")


def common(one: list[int], other: list[int]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


async def event(response: web.StreamResponse, told: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(told)}\n\n".encode())


async def metrics(request: web.Request) -> web.Response:
    model, told = request.app["model"], f"vllm:num_requests_running {request.app['running']}\n"
    if fault(model) == "reads on":  # as a prompt of many chunks does, which are no tokens yet
        told += f"vllm:kv_cache_usage_perc {time.monotonic()}\n"
    return web.Response(text=told)


def main() -> None:
    given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv if "=" in word)
    model = Path(given["model"])
    if os.environ["VLLM_API_KEY"] in " ".join(sys.argv):
        sys.exit("ValueError: the key stands in the command line")
    print("INFO Starting to load model", flush=True)
    if fault(model) == "refuses to load":
        print("ValueError: No available memory for the cache blocks.", flush=True)
        sys.exit(1)
    child = multiprocessing.get_context("spawn").Process(target=idle)
    child.start()
    (model / "pids").write_text(f"{os.getpid()} {child.pid}")

    @web.middleware
    async def keyed(request: web.Request, handler: Any) -> Any:
        if (
            request.path != "/health"
            and request.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}"
        ):
            return web.Response(status=401)
        return await handler(request)

    app = web.Application(middlewares=[keyed])
    app["model"], app["seen"], app["running"] = model, {}, 0

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": "0"})

    app.add_routes(
        [
            web.get("/health", health),
            web.get("/version", version),
            web.get("/metrics", metrics),
            web.post("/v1/completions", completions),
        ]
    )
    web.run_app(app, path=given["uds"], print=None, shutdown_timeout=0.1)


if __name__ == "__main__":
    main()

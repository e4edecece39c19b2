"""What stands between a peer's tests and a homeport: they name models that it has not, and leave `/v1` out.

Nothing else is changed, and answers go back as they come: `python -m tests.clients.peers.front PORT BASE MODEL`, until
it is ended. BASE is the router's, without a path.
"""

import json
import sys
from contextlib import suppress

import aiohttp
from aiohttp import web

WITHOUT_V1 = frozenset(
    {"/chat/completions", "/completions", "/embeddings", "/models", "/responses", "/messages"}
)
HOPS = frozenset({"host", "content-length", "connection", "transfer-encoding", "content-encoding"})
BASE = web.AppKey("base", str)
MODEL = web.AppKey("model", str)
CLIENT = web.AppKey("client", aiohttp.ClientSession)


def renamed(body: bytes, model: str) -> bytes:
    """A request's body, for this model; one that is no object goes as it is."""
    try:
        told = json.loads(body)
    except ValueError:
        return body
    if not isinstance(told, dict):
        return body
    return json.dumps({**told, "model": model}).encode()


async def passed_on(request: web.Request) -> web.StreamResponse:
    path = request.path if request.path not in WITHOUT_V1 else f"/v1{request.path}"
    body = await request.read()
    if body and request.method == "POST":
        body = renamed(body, request.app[MODEL])
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOPS}
    url = f"{request.app[BASE]}{path}"
    asked = request.app[CLIENT].request(
        request.method, url, params=request.query, data=body or None, headers=headers
    )
    async with asked as answer:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOPS}
        response = web.StreamResponse(status=answer.status, headers=kept)
        with suppress(ConnectionResetError):  # some tests only look at an answer's beginning
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
        return response


def main() -> None:
    port, base, model = sys.argv[1:]
    app = web.Application(client_max_size=2**26)
    app[BASE], app[MODEL] = base, model

    async def with_client(app: web.Application):  # type: ignore[no-untyped-def]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as client:
            app[CLIENT] = client
            yield

    app.cleanup_ctx.append(with_client)
    app.router.add_route("*", "/{path:.*}", passed_on)
    web.run_app(app, host="127.0.0.1", port=int(port), print=lambda *_: print("listening", flush=True))


if __name__ == "__main__":
    main()

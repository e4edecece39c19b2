"""A server over HTTP in a process that serves until it is killed."""

import asyncio
import ssl

import uvicorn
from starlette.applications import Starlette

from cluster.tls import for_uvicorn


class _QuietServer(uvicorn.Server):
    """uvicorn without its ten wakes a second."""

    async def main_loop(self) -> None:
        await asyncio.Event().wait()


def quiet_server(app: Starlette, host: str, port: int, shown: ssl.SSLContext | None = None) -> uvicorn.Server:
    """Its `serve` listens there, and does not return. `shown`: it speaks TLS."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ssl_context_factory=for_uvicorn(shown),
    )
    return _QuietServer(config)

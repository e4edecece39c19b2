"""A server over HTTP in a process that serves until it is killed."""

import asyncio

import uvicorn
from starlette.applications import Starlette


class _QuietServer(uvicorn.Server):
    """uvicorn without its ten wakes a second."""

    async def main_loop(self) -> None:
        await asyncio.Event().wait()


def quiet_server(app: Starlette, host: str, port: int) -> uvicorn.Server:
    """Its `serve` listens there, and does not return."""
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, lifespan="off")
    return _QuietServer(config)

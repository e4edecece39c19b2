"""What may be written down about an error that nobody expected: its type and the way to it, never its words.

An exception's words can be a prompt's. What the client is told is decided elsewhere.
"""

import asyncio
import sys
import traceback
from typing import Any


def trace_of(error: BaseException) -> str:
    """Frames, innermost last, and the type. The source lines in it are the program's own."""
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


def report(error: BaseException) -> None:
    """Write it to stderr, which is the host's own file."""
    print(f"homeport: internal error:\n{trace_of(error)}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Write a sentence of our own there."""
    print(f"homeport: {text}", file=sys.stderr, flush=True)


def report_callback(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For loop.set_exception_handler: asyncio's own handler prints the callback's arguments, which can be text."""
    error = context.get("exception")
    if error is not None:
        report(error)
    else:
        print("homeport: internal error in the event loop", file=sys.stderr, flush=True)

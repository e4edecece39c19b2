"""What llama.cpp logs: warnings and errors go to our log, and whoever loads something may read all of it.

The bindings come as an argument, because llama_engine.py alone imports them.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

logger = logging.getLogger("serving.llama_engine")

INFO, WARN, ERROR = 2, 3, 4  # of enum ggml_log_level; the bindings do not name them


class LlamaLog:
    """Receives llama.cpp's log between `open` and `close`. llama.cpp has one log for the whole process."""

    def __init__(self, lib: Any, muted: Callable[[], bool]) -> None:
        """While `muted` nothing goes on: an abort that was asked for is an error to llama.cpp, in four lines."""
        self._lib = lib
        self._muted = muted
        self._collected: list[list[tuple[int, str]]] = []
        self._quiet = False
        self._receive = lib.llama_log_callback(self._take)  # llama.cpp keeps no reference

    def open(self) -> None:
        self._lib.llama_log_set(self._receive, None)

    def close(self) -> None:
        """What comes later goes to our log all the same."""
        self._lib.llama_log_set(_without_engine(self._lib), None)

    @contextlib.contextmanager
    def collecting(self, quiet: bool = False) -> Iterator[list[tuple[int, str]]]:
        """All lines that come meanwhile, as (level, line). May be nested. `quiet`: nothing goes on meanwhile."""
        lines: list[tuple[int, str]] = []
        self._collected.append(lines)
        self._quiet, before = quiet or self._quiet, self._quiet
        try:
            yield lines
        finally:
            self._quiet = before
            self._collected.pop()

    def _take(self, level: int, text: bytes, user: object) -> None:
        for lines in self._collected:
            lines.append((level, text.decode(errors="replace").strip()))
        if not (self._quiet or self._muted()):
            _relay(level, text, user)


def errors(lines: Sequence[tuple[int, str]]) -> str:
    """The errors among them in one line; "" without."""
    return "; ".join(line for level, line in lines if level == ERROR)


@cache
def _without_engine(lib: Any) -> Any:
    """Kept for ever, as llama.cpp may call it for ever."""
    return lib.llama_log_callback(_relay)


def _relay(level: int, text: bytes, _: object) -> None:
    """Warnings and errors. Continued lines and everything below are dropped."""
    if level in {WARN, ERROR}:
        severity = logging.ERROR if level == ERROR else logging.WARNING
        logger.log(severity, "llama.cpp: %s", text.decode(errors="replace").strip())

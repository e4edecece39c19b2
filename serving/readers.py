"""Many threads that read one thing, and one that frees it when the last of them is out."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Readers:
    """Nobody waits for anybody but `close`, which waits for all who are reading."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._left = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raises RuntimeError once it is closed."""
        with self._left:
            if self._closed:
                raise RuntimeError(f"{self._what} is closed")
            self._inside += 1
        try:
            yield
        finally:
            with self._left:
                self._inside -= 1
                self._left.notify_all()

    def close(self) -> None:
        """Let nobody in any more and wait for those inside. Safe to call twice."""
        with self._left:
            self._closed = True
            self._left.wait_for(lambda: self._inside == 0)

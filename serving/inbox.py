"""Commands on their way to a thread that may not be there."""

import threading
from queue import SimpleQueue
from typing import Generic, TypeVar

Command = TypeVar("Command")


class Inbox(Generic[Command]):
    """Closed at first. What was taken in is got, or handed out by `close`: nothing is lost between the two."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = False
        self._waiting: SimpleQueue[Command] = SimpleQueue()

    def open(self) -> None:
        with self._lock:
            self._open = True

    def put(self, command: Command) -> bool:
        """Any thread. False: closed, the command was not taken in."""
        with self._lock:
            if self._open:
                self._waiting.put(command)
            return self._open

    def get(self) -> Command:
        """The next command; waits for one."""
        return self._waiting.get()

    def empty(self) -> bool:
        return self._waiting.empty()

    def close(self) -> list[Command]:
        """Take in nothing more. Returns what still waited, in order."""
        with self._lock:
            self._open = False
            return [self._waiting.get() for _ in range(self._waiting.qsize())]

"""Sessions that are about to move to another host: their turns wait here until it is known where their home is.

Moves nothing. A departure ends when the host learns of the new home, or when whoever moves the session is not heard of
any more: then the session stays, and its turns go on here.
"""

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Leaves:
    over: asyncio.Event = field(default_factory=asyncio.Event)
    alarm: asyncio.TimerHandle | None = None


class Departures:
    """Of one host. Everything is called on one loop."""

    def __init__(self) -> None:
        self._leaving: dict[str, _Leaves] = {}

    def begin(self, session: str, seconds: float) -> bool:
        """Let its turns wait, for so long at most. False: it is about to move already."""
        if session in self._leaving:
            return False
        self._leaving[session] = _Leaves()
        self.ends_in(session, seconds)
        return True

    def ends_in(self, session: str, seconds: float) -> None:
        """It stays if nothing is heard for so long. Nothing where its turns go on already."""
        leaves = self._leaving.get(session)
        if leaves is not None:
            if leaves.alarm is not None:
                leaves.alarm.cancel()
            leaves.alarm = asyncio.get_running_loop().call_later(seconds, self.end, session)

    def end(self, session: str) -> None:
        """It moved or it stays: its turns go on. Again is nothing."""
        leaves = self._leaving.pop(session, None)
        if leaves is not None:
            if leaves.alarm is not None:
                leaves.alarm.cancel()
            leaves.over.set()

    def close(self) -> None:
        """The host stops: nobody waits any more."""
        for session in list(self._leaving):
            self.end(session)

    def __contains__(self, session: str | None) -> bool:
        return session in self._leaving

    async def over(self, session: str) -> None:
        """Until it is not about to move."""
        while (leaves := self._leaving.get(session)) is not None:
            await leaves.over.wait()

"""Conversations that name no session: they are known by what they say. Some begin with the same words."""

import asyncio
from typing import TYPE_CHECKING

from tests.schedules.clients import Asks, Said

if TYPE_CHECKING:
    from tests.schedules.clients import Clients

OPENINGS = 100
"""Token 100 + n is the n-th opening: no session's number."""
OWN = 200
"""Token 200 + n is in all that the n-th conversation says behind its opening."""
STEP_S = 0.7


class Talk:
    """One client with one conversation, which it goes on with, asks again, and edits."""

    def __init__(self, clients: "Clients", number: int, begins: int, in_step: bool) -> None:
        self.clients = clients
        self.check = clients.check
        self.rng = clients.rng
        self.number = number
        self.in_step = in_step
        """Whether it asks at the same moments as others, and begins again now and then."""
        self.said: Said = (("user", str(OPENINGS + begins)),)
        """The request as it is sent next, or was sent last."""
        self.acknowledged: Said = ()
        """The last that was answered."""
        self.edited = False
        """Whether it was edited since."""

    async def act(self) -> None:
        """Turn after turn, until all is mended."""
        rng, clients = self.rng, self.clients
        pause_s = rng.choice((0.2, 0.7, 2.0))
        await asyncio.sleep(rng.uniform(0.5, 2.0))
        while not clients.all_mended.is_set():
            cancel_s = rng.expovariate(1.0) if rng.random() < 0.25 else None
            asks = Asks(said=self.said, tokens=rng.randint(1, 4), stream=rng.random() < 0.5)
            ending = await clients.turn(asks, cancel_s, self._answered)
            self._next(ending)
            await clients.pause(self._to_step() if self.in_step else rng.expovariate(1.0 / pause_s))

    def _to_step(self) -> float:
        """Until all ask at once who are in step."""
        steps = self.rng.choice((0, 0, 0, 1, 2))
        return (steps + 1) * STEP_S - self.check.loop.now % STEP_S

    def _answered(self) -> None:
        self.acknowledged, self.edited = self.said, False

    def _next(self, ending: str) -> None:
        chance = self.rng.random()
        if self.in_step and ending == "ok" and self.rng.random() < 0.3:
            self.said, self.acknowledged = self.said[:1], ()
            return
        if chance < 0.15 and len(self.said) > 1:
            self.edited = True
            self.said = (*self.said[:-1], self._words("user"))
        elif chance < (0.8 if ending == "ok" else 0.3):
            self.said = self._more()

    def _more(self) -> Said:
        return (*self.said, self._words("assistant"), self._words("user"))

    def _words(self, role: str) -> tuple[str, str]:
        return role, f"{OWN + self.number} {self.rng.randint(1000, 9999)}"

    async def last(self) -> None:
        """After all was mended, through each router: it is known again. Nothing can be said of one that was edited and
        not answered since, or of one that nobody has told from another."""
        told = self.acknowledged
        home = next((key for key, last in self.check.said.items() if last.said == told), None)
        if self.edited or len(told) < 2 or home is None:
            return
        for router in self.clients.world.routers:
            self.said = self._more()
            asked_at = self.check.loop.now
            answer = await self.clients.served(router, Asks(said=self.said))
            if answer is None:
                self.check.fault(f"conversation {self.number} is not served by {router.name}")
                continue
            replica = answer.headers["x-homeport-replica"]
            session = self.clients.world.guessed(answer.headers["x-homeport-session"], replica)
            self.check.known_again(session, home, answer.headers["x-homeport-pin"], router.name)
            self.check.landed(session, self.said, replica, asked_at)

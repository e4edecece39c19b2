"""Who talks to a fleet: sessions by the hundred, each a conversation that goes on wherever its answers come from.

A session keeps what it was told of its homes; what must hold of them, the tests say.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from router.identity import digest, scope_of
from tests.fleet.machines import ZONES, Fleet

PATIENCE_S = 60.0
AGAIN_S = 0.5
LONGEST = 12
"""Messages of one conversation; then the session begins another."""


@dataclass
class Session:
    """`zone`: the one that its key or its header names; None: it may begin anywhere."""

    name: str
    key: str = "anywhere"
    zone: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    homes: list[str] = field(default_factory=list)
    """Replicas, in the order in which it had them."""
    pins: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    """What it was told instead of an answer, and how often."""
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def home(self) -> str:
        return self.homes[-1]

    @property
    def machine(self) -> str:
        return self.home.partition("/")[0]

    @property
    def digest(self) -> str:
        """What journals know it by."""
        return digest(self.key, scope_of(None, self.headers.get("x-homeport-zone")), self.name)


def sessions_of(prefix: str, count: int) -> list[Session]:
    """A third by a key that is for one zone, a third by a header, a third that may begin anywhere."""
    made = []
    for number in range(count):
        name, zone = f"{prefix}-{number}", ZONES[number // 3 % len(ZONES)]
        match number % 3:
            case 0:
                made.append(Session(name, f"only-{zone}", zone))
            case 1:
                made.append(Session(name, zone=zone, headers={"x-homeport-zone": zone}))
            case _:
                made.append(Session(name))
    return made


class People:
    """`at_once`: how many turns may be under way."""

    def __init__(self, fleet: Fleet, client: aiohttp.ClientSession, at_once: int = 16, seed: int = 0) -> None:
        self._fleet = fleet
        self._client = client
        self._room = asyncio.Semaphore(at_once)
        self._rng = random.Random(seed)
        self.turns = 0

    async def all_talk(self, sessions: Sequence[Session], patience_s: float = PATIENCE_S) -> None:
        """One turn of each, all at once."""
        await asyncio.gather(*(self.talk(session, patience_s) for session in sessions))

    async def talk(self, session: Session, patience_s: float = PATIENCE_S) -> None:
        """One turn, asked again until it is answered. Raises AssertionError after `patience_s`."""
        began = time.monotonic()
        while not await self.ask(session):
            assert time.monotonic() - began < patience_s, f"{session.name} at {session.homes}: {session.told}"
            await asyncio.sleep(AGAIN_S)

    async def ask(self, session: Session) -> bool:
        """One turn, through any router. Whether it was answered."""
        port = self._rng.choice(self._fleet.ports)
        said = {"role": "user", "content": f"This is {session.name}, turn {self.turns}."}
        body = {"model": "chat", "max_tokens": 8, "messages": [*session.messages, said]}
        headers = {
            "authorization": f"Bearer {self._fleet.secrets[session.key]}",
            "x-session-id": session.name,
            **session.headers,
        }
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        async with self._room:
            try:
                async with self._client.post(url, json=body, headers=headers) as response:
                    answer: Any = await response.json()
            except (aiohttp.ClientError, OSError) as error:
                session.told[type(error).__name__] += 1
                return False
        if response.status != 200:
            session.told[str(answer["error"]["code"])] += 1
            return False
        self.turns += 1
        home = response.headers["x-homeport-replica"]
        if not session.homes or session.home != home:
            session.homes.append(home)
        session.pins[response.headers["x-homeport-pin"]] += 1
        session.messages += [said, answer["choices"][0]["message"]]
        if len(session.messages) >= LONGEST:
            session.messages.clear()
        return True

    async def keep_talking(self, sessions: Sequence[Session], until: asyncio.Event) -> None:
        """All of them, turn after turn, whatever they are told."""

        async def one(session: Session) -> None:
            while not until.is_set():
                await asyncio.sleep(self._rng.uniform(0.5, 4.0))
                await self.ask(session)

        await asyncio.gather(*map(one, sessions))

"""What admission is told, and what it wants done. Pure; decided in admission.py, carried out by turns.py."""

from dataclasses import dataclass
from typing import Literal

from serving.places import USUAL, Standing

RefusalCode = Literal["queue_timeout", "host_stopping", "session_ended"]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A turn asks for its lease. `turn` was never used before."""

    turn: int
    session: str | None
    queue_s: float | None = None
    """What is left of its time to wait, if it waited elsewhere before; the replica's own limit holds too."""
    standing: Standing = USUAL


@dataclass(frozen=True, slots=True)
class Left:
    """The turn's client is gone. Its place in the line is given up, or its running turn cancelled."""

    turn: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A running turn is over, however it went: its lease is given back.

    `kept`: the sequence holds the session's context, which stays resident. A transient's is erased anyway.
    """

    turn: int
    kept: bool


@dataclass(frozen=True, slots=True)
class Parked:
    """A Park was carried out: the sequence is empty."""

    place: int


@dataclass(frozen=True, slots=True)
class Unloading:
    """The engine is to be freed: the longest quiet resident is parked, hold or not. Fed again for the next."""


@dataclass(frozen=True, slots=True)
class Adjusted:
    """The config has other limits now. Who waits already waits for as long as before."""

    hold_s: float
    queue_s: float


@dataclass(frozen=True, slots=True)
class Drop:
    """The session is over: its turns end or leave the line, and nothing of it stays in its place."""

    session: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """What is quiet under one session's name is another's from now on, which is in no place. Nothing happens if it
    is not quiet."""

    session: str
    name: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at `wake_at`."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The host stops: nobody is served any more."""


Event = Arrived | Left | Ended | Parked | Unloading | Adjusted | Drop | Renamed | Tick | Closed


@dataclass(frozen=True, slots=True)
class Serve:
    """The turn holds its lease on this place. Answered by one Ended.

    `resident`: the place's sequence holds this very session's context; else it is empty.
    """

    turn: int
    place: int
    resident: bool


@dataclass(frozen=True, slots=True)
class Park:
    """Save this resident's context and empty the sequence. Answered by one Parked."""

    place: int
    session: str


@dataclass(frozen=True, slots=True)
class Erase:
    """Empty this place's sequence before anything else runs on it: it may hold what nobody owns. Not answered."""

    place: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this running turn at once. Its Ended is still to come."""

    turn: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The turn gets no lease and is out of the line."""

    turn: int
    code: RefusalCode


Action = Serve | Park | Erase | Cancel | Refuse

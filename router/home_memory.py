"""What a router remembers of sessions' homes: the sessions of late at hand, a great many more packed. Pure.

Knows nothing of whether a home still holds: that is `homes`' matter.
"""

import struct
from collections import OrderedDict
from dataclasses import dataclass

from router.decision import Home
from serving.pins import Pin

AT_HAND = 10_000

_PACKED = struct.Struct("<dIIBB")
"""Created, generation, the replica's number, fresh, unsure: with key and place less than 300 bytes a session."""

Key = tuple[str, str]
"""A session's digest and a model."""


@dataclass(slots=True)
class Remembered:
    """One session's home for one model."""

    home: Home
    asked_at: float
    """When somebody was asked about it last, on the router's clock."""
    unsure: bool = False
    """Its host may have written the pin down, or not."""


class HomeMemory:
    """At most `size` homes; the least recently used go first."""

    def __init__(self, size: int, at_hand: int = AT_HAND) -> None:
        self._size = size
        self._most_at_hand = at_hand
        self._at_hand: OrderedDict[Key, Remembered] = OrderedDict()
        self._packed: OrderedDict[bytes, bytes] = OrderedDict()
        self._numbers: dict[str, int] = {}
        """Of models and of replicas."""
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._at_hand) + len(self._packed)

    def get(self, session: str | None, model: str) -> Remembered | None:
        """What is returned may be changed, at once. None too where there is no session."""
        if session is None:
            return None
        key = session, model
        found = self._at_hand.get(key)
        if found is not None:
            self._at_hand.move_to_end(key)
            return found
        packed = self._take_packed(key)
        if packed is None:
            return None
        created_s, generation, replica, fresh, unsure = _PACKED.unpack(packed)
        pin = Pin(session, model, self._names[replica], generation, created_s)
        found = Remembered(Home(pin, bool(fresh)), float("-inf"), bool(unsure))
        self._put(key, found)
        return found

    def put(self, home: Home, asked_at: float) -> None:
        """In the stead of what was remembered of its session before."""
        key = home.pin.session, home.pin.model
        self._take_packed(key)
        self._at_hand.pop(key, None)
        self._put(key, Remembered(home, asked_at))

    def drop(self, session: str, model: str) -> None:
        """Nothing where there is none."""
        key = session, model
        if self._at_hand.pop(key, None) is None:
            self._take_packed(key)

    def _put(self, key: Key, remembered: Remembered) -> None:
        self._at_hand[key] = remembered
        if len(self._at_hand) > min(self._most_at_hand, self._size):
            self._pack(*self._at_hand.popitem(last=False))
        while len(self) > self._size:
            self._packed.popitem(last=False)

    def _pack(self, key: Key, remembered: Remembered) -> None:
        home = remembered.home
        replica = self._number(home.pin.replica)
        self._packed[_packed_key(key[0], self._number(key[1]))] = _PACKED.pack(
            home.pin.created_s, home.pin.generation, replica, home.fresh, remembered.unsure
        )

    def _take_packed(self, key: Key) -> bytes | None:
        """Gives no number to a model, which any client may name."""
        number = self._numbers.get(key[1])
        return None if number is None else self._packed.pop(_packed_key(key[0], number), None)

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._names)
            self._names.append(name)
        return number


def _packed_key(session: str, model: int) -> bytes:
    return bytes.fromhex(session) + model.to_bytes(4, "little")

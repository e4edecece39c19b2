"""How many there are of each: what is open at a host, of a session, to a place. Pure."""

from typing import TypeVar

K = TypeVar("K")


class Tally(dict[K, int]):
    """By key; one of which there are none is absent."""

    def up(self, key: K) -> None:
        self[key] = self.get(key, 0) + 1

    def down(self, key: K) -> None:
        """Raises KeyError where there is none."""
        left = self[key] - 1
        if left:
            self[key] = left
        else:
            del self[key]

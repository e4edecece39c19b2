"""A set of names that forgets. Pure: knows nothing of what the names are."""

REMEMBERED = 10_000


class Remembered:
    """The names that were added last, at most `limit` of them. Adding one again makes it the youngest."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self._names.pop(name, None)
        self._names[name] = None
        if len(self._names) > self._limit:
            del self._names[next(iter(self._names))]

    def discard(self, name: str) -> None:
        self._names.pop(name, None)

    def __contains__(self, name: str | None) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

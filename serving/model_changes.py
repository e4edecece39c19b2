"""What of a model's settings differs between two revisions, in the config's words. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.slices import bytes_text

RESTARTS = ("engine", "source", "needs", "context", "sessions", "options", "isolate")
"""What `model.digest` covers: a replica restarts for it."""
LIVE = ("hold_s", "queue_s", "when_lost", "parking", "unload_s")
"""What a replica and the routers take while they run. What is in neither list says where replicas are."""


def changes(before: Mapping[str, Any], after: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """`context 2048 -> 4096`, `parking.disk 8 GiB -> 0 bytes`, … by `keys`; both as `ModelSpec.to_json` gives them."""
    return tuple(text for key in keys for text in _differences(key, before.get(key), after.get(key)))


def _differences(key: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for inner in sorted({*before, *after}):
            yield from _differences(f"{key}.{inner}", before.get(inner), after.get(inner))
    elif _plain(before) != _plain(after):
        name = key.removesuffix("_s").removesuffix("_bytes")
        yield f"{name} {_text(key, before)} -> {_text(key, after)}"


def _plain(value: Any) -> Any:
    """JSON has lists where records have tuples."""
    return list(value) if isinstance(value, tuple) else value


def _text(key: str, value: Any) -> str:
    if value is None:
        return "never" if key == "unload_s" else "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if key.endswith("_bytes"):
        return bytes_text(value)
    if key.endswith("_s"):
        return f"{value:g} s"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)

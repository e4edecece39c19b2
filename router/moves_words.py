"""What people are told of sessions that move and of machines that are drained. Pure: asks nobody, prints nothing."""

from collections.abc import Iterator, Mapping
from typing import Any


def moved(done: Mapping[str, Any]) -> Iterator[str]:
    """What a move came to, a line for each model."""
    for each in done["moved"]:
        where = f"{done['id']} has its home at {each['replica']} now"
        match each["context"]:
            case "carried":
                size = f"{each['tokens']} tokens, {each['bytes'] / 2**20:.1f} MiB, {each['seconds']:.1f} s"
                yield f"{where}; its context went along ({size})."
            case "kept":
                yield f"{where}, where it was before."
            case _:
                yield f"{where}; its context is evaluated anew: {each['why']}."

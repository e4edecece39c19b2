"""What people are told of sessions that move and of machines that are drained. Pure: asks nobody, prints nothing."""

from collections.abc import Iterator, Mapping
from typing import Any

NO_MORE = "drained; its hosts can be stopped"


def moved(done: Mapping[str, Any]) -> Iterator[str]:
    """What a move came to, a line for each model."""
    for each in done["moved"]:
        where = f"{done['id']} has its home at {each['replica']} now"
        match each["context"]:
            case "carried":
                size = f"{each['tokens']} tokens, {each['bytes'] / 2**20:.1f} MiB, {each['seconds']:.1f} s"
                yield f"{where}; its context went along ({size})."
            case "kept":
                yield f"{where}."
            case _:
                yield f"{where}; its context is evaluated anew: {each['why']}."


def drained(machine: Mapping[str, Any]) -> str:
    """How far a machine is that is drained: `moved 12 of 40 sessions, 3 evaluated anew: …; 2 stay: …`."""
    told = machine["draining"]
    left = told.get("left")
    if told.get("waits"):
        return f"waits: {told['waits']}"
    if left is None:
        return "looks which sessions it has"
    moved, stay = told["moved"], told["stay"]
    words = f"moved {moved} of {moved + left} {'session' if moved + left == 1 else 'sessions'}"
    if told["anew"]:
        words += f", {sum(told['anew'].values())} evaluated anew: {', '.join(told['anew'])}"
    parts = [words, *(f"{count} {_stays(count)}: {why}" for why, count in stay.items())]
    parts += [f"{count} {_waits(count)}: {why}" for why, count in told.get("silent", {}).items()]
    if left == 0:
        parts.append(NO_MORE)
    return "; ".join(parts)


def is_drained(machine: Mapping[str, Any]) -> bool:
    """Whether none of its sessions is left."""
    told = machine["draining"]
    return told.get("left") == 0 and not told.get("waits")


def only_stay(machine: Mapping[str, Any]) -> bool:
    """Whether the deadline is over and nobody is left but those that nobody takes."""
    told = machine["draining"]
    stay = sum(told.get("stay", {}).values())
    return bool(stay and told.get("left") == stay and not told.get("waits") and told.get("is_over"))


def what_next(name: str) -> str:
    """What a person does with a machine that is empty."""
    return f"{name} is {NO_MORE}: `homeport down` there. It takes no new sessions until `homeport uncordon {name}`."


def _stays(count: int) -> str:
    return "stays" if count == 1 else "stay"


def _waits(count: int) -> str:
    return "waits" if count == 1 else "wait"

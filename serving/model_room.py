"""Which fetched models go from a disk so that another one has room, and what is said of one that comes. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cluster.slices import bytes_text


@dataclass(frozen=True, slots=True)
class Kept:
    """A model that lies there whole. `used_s`: when a host was started on it last, or it came."""

    source: str
    size: int
    used_s: float


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes. `used`: by all that was fetched, half or whole; `free`: of the disk; `budget`: None: no limit."""

    used: int
    free: int
    budget: int | None


class NoRoom(Exception):
    """It does not fit. The message says why."""


def what_goes(held: Sequence[Kept], named: Collection[str], disk: Disk, needed: int) -> tuple[str, ...]:
    """The sources to remove so that `needed` more bytes fit: of those that are not `named`, the ones that were used
    longest ago, and no more of them than it takes. Without a budget nothing is ever removed. Raises NoRoom.
    """
    going: list[str] = []
    freed = 0
    spare = sorted((kept for kept in held if kept.source not in named), key=lambda kept: kept.used_s)
    while _lacks(disk, needed, freed) and spare and disk.budget is not None:
        going.append(spare[0].source)
        freed += spare.pop(0).size
    if lack := _lacks(disk, needed, freed):
        raise NoRoom(lack)
    return tuple(going)


def _lacks(disk: Disk, needed: int, freed: int) -> str | None:
    if disk.budget is not None and disk.used - freed + needed > disk.budget:
        others = max(0, disk.used - freed)
        return (
            f"{bytes_text(needed)} more do not fit into network.models_disk ({bytes_text(disk.budget)}, of which "
            f"{bytes_text(others)} are taken)"
        )
    if needed > disk.free + freed:
        return f"{bytes_text(needed)} are needed and {bytes_text(disk.free + freed)} of the disk are free"
    return None


def percent(got: int, size: int) -> int:
    """Whole per cent, 100 only when it is all."""
    return 100 if got >= size else got * 100 // size


def words(doing: str, got: int, size: int, giver: str) -> str:
    """`fetching 43 % of 1.2 GiB from den-pc`, `checking 1.2 GiB`, `asking hf`."""
    if doing == "fetching":
        return f"fetching {percent(got, size)} % of {bytes_text(size)} from {giver}"
    return f"{doing} {bytes_text(size)}" if size else f"{doing} {giver}"

"""What a keeper does next about its slots: wanted x seen -> Start / Stop / Drain. Pure.

Run again after its actions succeeded, `plan` returns nothing. A host that has not been heard from is left alone:
unknown is never absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DEATHS_MAX = 5
DEATHS_WINDOW_S = 600.0
BACKOFF_S = (0.0, 2.0, 5.0, 10.0)
"""How long after its first, second … death within the window a host is started again."""

Life = Literal["absent", "alive", "unknown", "stopping"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the keeper knows of the host in one slot.

    `absent`: no process of the record lives. `alive`: it lives. `unknown`: not looked at yet. `stopping`: being ended.
    `deaths`: when it died unasked, in seconds of the caller's clock. `permanent`: why starting it again cannot help.
    """

    life: Life
    digest: str | None = None
    deaths: tuple[float, ...] = ()
    permanent: str | None = None
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Start a host in this slot. Carried out by the keeper through cluster/confine.py."""

    slot: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the host in this slot: nobody wants it any more, or it is idle under an old digest."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """The host runs under an old digest and is busy: it finishes its turns, then it is stopped."""

    slot: int


Action = Start | Stop | Drain


def plan(wanted: Mapping[int, str], seen: Mapping[int, Seen], now: float) -> list[Action]:
    """The actions that bring `seen` (by slot) closer to `wanted` (config digest by slot), in order of slot."""
    actions: list[Action] = []
    for slot in sorted({*wanted, *seen}):
        host = seen.get(slot, Seen("absent"))
        action = (
            _unwanted(slot, host)
            if slot not in wanted
            else _outdated(slot, host, wanted[slot]) or _missing(slot, host, wanted[slot], now)
        )
        if action is not None:
            actions.append(action)
    return actions


def restart_at(deaths: tuple[float, ...], now: float) -> float | None:
    """When a host with these deaths is started again; None where it died too often to be tried again."""
    recent = [death for death in deaths if death > now - DEATHS_WINDOW_S]
    if len(recent) >= DEATHS_MAX:
        return None
    return max(deaths) + BACKOFF_S[len(recent) - 1] if recent else now


def given_up(host: Seen, now: float) -> str | None:
    """Why this host is not started again without a person's help; None where it is."""
    if host.permanent is not None:
        return host.permanent
    if restart_at(host.deaths, now) is None:
        return f"it died {DEATHS_MAX} times in {DEATHS_WINDOW_S / 60:.0f} minutes"
    return None


def _unwanted(slot: int, host: Seen) -> Action | None:
    return Stop(slot, "no longer wanted") if host.life == "alive" else None


def _outdated(slot: int, host: Seen, digest: str) -> Action | None:
    if host.life != "alive" or host.digest == digest:
        return None
    return Drain(slot) if host.busy else Stop(slot, "its configuration changed")


def _missing(slot: int, host: Seen, digest: str, now: float) -> Action | None:
    if host.life != "absent" or given_up(host, now) is not None:
        return None
    due = restart_at(host.deaths, now)
    return Start(slot) if due is not None and due <= now else None

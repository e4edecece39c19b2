"""What the controller asks of the machines that joined, and of their keepers; serving/members.py is Ray's side."""

from typing import Any, Protocol

from cluster.ray_cluster import RayFailed
from serving.journal_file import JournalNews, Mark

AWAY = (RayFailed, TimeoutError, OSError)
"""How a keeper that cannot be asked shows itself."""


class Members(Protocol):
    """The machines that joined, and their keepers."""

    def machines(self) -> list[str]:
        """Ids of the machines that are there now. Blocks a little."""
        ...

    async def report(self, machine: str, known: int, wait_s: float) -> dict[str, Any]:
        """The keeper's report, at once or when it is no longer version `known`, at the latest after `wait_s`.

        Makes the keeper where there is none. Raises TimeoutError, OSError or RayFailed.
        """
        ...

    async def pins(self, machine: str, known: dict[int, Mark]) -> dict[int, JournalNews]:
        """By slot, what its journal says beyond what is known of it. Raises as `report`."""
        ...

    async def apply(
        self, machine: str, revision: int, wishes: list[dict[str, Any]], head: str
    ) -> dict[str, Any]:
        """Give a keeper its share of a revision of `head`, a machine's id. Raises as `report`."""
        ...

    async def yield_machine(self, machine: str, for_s: float | None, ends: bool) -> dict[str, Any]:
        """Let a machine be its person's for so long, or until it `ends`: its report. Raises as `report`."""
        ...

    async def bring(self, machine: str, orders: dict[str, Any]) -> dict[str, Any]:
        """Tell a keeper from where it gets which models. Returns its report; raises as `report`."""
        ...

    async def leave(self, machine: str) -> None:
        """Let a machine end its part, as `homeport down` there would. Raises as `report`."""
        ...

    async def wake(self, machine: str, mac: str, networks: list[str]) -> int:
        """Let a machine send a magic packet on those of its networks; on how many it did. Raises as `report`."""
        ...

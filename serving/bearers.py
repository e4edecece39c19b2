"""Where hosts listen, and what opens each: the token of its machine, which is made from the cluster's secret. For the
router and the controller, which alone have that. Knows no host by itself."""

from cluster import tls
from cluster.proof import machine_token


class Bearers:
    """By a host's base, its `http://address:port` or https. `speaks_tls`: whether the machines of this cluster do."""

    def __init__(self, secret: str, speaks_tls: bool = False) -> None:
        self.speaks_tls = speaks_tls
        self._secret = secret
        self._known: dict[str, str] = {}

    def base(self, address: str, port: int) -> str:
        """Of the host there."""
        return tls.url(address, port, self.speaks_tls)

    def belongs(self, base: str, machine: str) -> None:
        """The host there is of the machine of this id."""
        self._known[base] = f"Bearer {machine_token(self._secret, machine)}"

    def of(self, base: str) -> str:
        """The value of `authorization`; empty where nobody said whose host it is: nothing is shown to a stranger."""
        return self._known.get(base, "")

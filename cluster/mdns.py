"""A head is announced in its network segment, and heard of there: multicast DNS (RFC 6762, 6763), IPv4 alone.

The only file that imports zeroconf, and only where something is said or searched for: most processes never do either.
Nothing here says who is trusted; that is cluster/announced.py's and the token's matter.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from cluster.announced import Announced, read

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf

SERVICE = "_homeport._tcp.local."
TTL_S = 120
"""How long others may keep what was said of a head that had no time to take it back."""


class CannotSearch(Exception):
    """This machine has no multicast. The message says why."""


@contextlib.asynccontextmanager
async def announced(head: Announced) -> AsyncIterator[None]:
    """For as long as this is entered, who asks in the network of the head's address is told of it. Raises what the
    library raises: OSError where the address is gone or the port is another's."""
    from zeroconf import IPVersion
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

    # A name that nobody else has: there is no need to ask around for it first.
    instance = f"{head.address.replace('.', '-')}-{head.port}"
    info = AsyncServiceInfo(
        SERVICE,
        f"{instance}.{SERVICE}",
        port=head.port,
        properties=head.told(),
        parsed_addresses=[head.address],
        host_ttl=TTL_S,
        other_ttl=TTL_S,
    )
    async with AsyncZeroconf(interfaces=[head.address], ip_version=IPVersion.V4Only) as zeroconf:
        said = await zeroconf.async_register_service(info, cooperating_responders=True)
        await said
        yield


def search(fingerprint: str | None, seconds: float) -> list[Announced]:
    """The heads that are announced in the networks of this machine. Returns early with the one of this fingerprint.

    Raises CannotSearch.
    """
    try:
        return asyncio.run(_search(fingerprint, seconds))
    except Exception as error:
        raise CannotSearch(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


async def _search(fingerprint: str | None, seconds: float) -> list[Announced]:
    from zeroconf import InterfaceChoice, IPVersion
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

    heard: dict[str, Announced] = {}
    is_found = asyncio.Event()
    asking: set[asyncio.Task[None]] = set()

    async def ask(zeroconf: "Zeroconf", name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        if not await info.async_request(zeroconf, seconds * 1000):
            return
        for address in info.parsed_addresses(IPVersion.V4Only)[:1]:
            if (head := read(address, info.port, info.decoded_properties)) is not None:
                heard[name] = head
                if fingerprint is not None and head.fingerprint == fingerprint:
                    is_found.set()

    def hear(
        zeroconf: "Zeroconf",
        service_type: str,
        name: str,
        state_change: "ServiceStateChange",
    ) -> None:
        if state_change.name == "Removed":
            heard.pop(name, None)
        else:
            asking.add(asyncio.create_task(ask(zeroconf, name)))

    async with AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.V4Only) as all_networks:
        browser = AsyncServiceBrowser(all_networks.zeroconf, SERVICE, handlers=[hear])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_found.wait(), seconds)
        await browser.async_cancel()
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return list(heard.values())

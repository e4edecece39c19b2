"""Magic packets: what wakes a sleeping machine's network card, sent to everybody on its network segment.

Which machine sends is decided in serving/waking.py.
"""

import ipaddress
import socket
from collections.abc import Collection

import psutil

PORT = 9
"""Discard: nobody listens there, and network cards look into every packet."""
TIMES = 3
"""Nobody acknowledges a packet: one may be lost."""
MOST = 16
"""Networks of one machine that are told of."""


def packet(mac: str) -> bytes:
    """The 102 bytes for a card's address, six pairs of hex digits with colons between them. Raises ValueError."""
    address = bytes.fromhex(mac.replace(":", ""))
    if len(address) != 6:
        raise ValueError(f"{mac} is no address of a network card")
    return b"\xff" * 6 + address * 16


def networks() -> tuple[str, ...]:
    """This machine's own IPv4 addresses with their prefix lengths (`192.168.1.10/24`), where others may be on the wire:
    no loopback, no link of two ends."""
    found = []
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family != socket.AF_INET or not each.netmask:
                continue
            interface = ipaddress.IPv4Interface(f"{each.address}/{each.netmask}")
            if not interface.ip.is_loopback and interface.network.prefixlen < 31:
                found.append(interface.with_prefixlen)
    return tuple(sorted(found)[:MOST])


def send(mac: str, among: Collection[str]) -> tuple[str, ...]:
    """Send it to everybody on those of `among` that are networks of this machine, by an interface's address and prefix
    length. Those on which it went out. Raises ValueError for `mac`, OSError where none took it."""
    data, sent, failed = packet(mac), [], OSError("none of these is a network of this machine")
    for own in networks():
        if own not in among:
            continue
        interface = ipaddress.IPv4Interface(own)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            try:
                sender.bind((str(interface.ip), 0))
                for _ in range(TIMES):
                    sender.sendto(data, (str(interface.network.broadcast_address), PORT))
            except OSError as error:
                failed = error
            else:
                sent.append(own)
    if not sent:
        raise failed
    return tuple(sent)

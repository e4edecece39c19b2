"""Whether a host has a way out, from what it tried (serving/egress.py) and what came of it. Pure."""

import ipaddress
from collections.abc import Mapping
from typing import Any

from cluster.doctor import Finding

ON_AGAIN = "set `network: {isolate: true}` in the config, then run `homeport apply`"
LOOK = "`homeport doctor` says what its kernel forbids, and the command; then `homeport down` and `homeport up` there"
ANEW = "on its machine: `homeport down`, then start it again, so that it is started without a network"
NONE_HERE = "let a firewall of that machine refuse what goes out"


def verdict(
    machine: str, replica: str, told: Mapping[str, Any] | None, heard: bool, notes: tuple[str, ...]
) -> Finding:
    """`told`: its answer; None: it gave none. `heard`: whether a datagram of it came. `notes`: why its limits are not
    kept, as its record has them."""

    def say(severity: Any, what: str, remedy: str = "") -> Finding:
        return Finding(severity, machine, "egress", f"{replica}: {what}", remedy)

    if told is None:
        return say(
            "fail", "did not answer, so nothing is proven", "`homeport status` says how it is; then ask again"
        )
    ways, closed = [], set()
    for target in told["targets"]:
        where = f"{target['address']}:{target['port']}"
        if target["tcp"] == "ok":
            ways.append(f"connects to {where}")
        else:
            closed.add(target["tcp"])
        # To its own loopback a datagram always goes off.
        if target["udp"] == "ok" and not ipaddress.ip_address(target["address"]).is_loopback:
            ways.append(f"sends datagrams to {where}")
    if heard:
        ways.append("was heard by datagram")
    if told["name"] == "ok":
        ways.append("looks up names")
    if cards := [name for name in told["interfaces"] if name != "lo"]:
        ways.append(f"has {', '.join(cards)}")
    if ways:
        return say("fail", f"CAN connect: {'; '.join(ways)}", _remedy(notes, told["interfaces"] == ["lo"]))
    words = "network unreachable" if "ENETUNREACH" in closed else ", ".join(sorted(closed))
    return say("ok", f"no way out ({words})")


def _remedy(notes: tuple[str, ...], has_only_loopback: bool) -> str:
    why = next((note.partition(": ")[2] for note in notes if note.startswith("network: ")), None)
    if why is None:
        return "see which socket in the file system it uses" if has_only_loopback else ANEW
    if "isolate" in why:
        return f"{why}: {ON_AGAIN}"
    if "only Linux" in why:
        return f"{why}: {NONE_HERE}"
    return f"{why}: {LOOK}"

"""What is to be said between the machines of a list: who reaches whom, whose clock differs, which versions. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.doctor import Facts, Finding, Seen

SKEW_S = 2.0
RULES_MAX = 65536
RAYS_SAMPLES = (20090, 25090, 30990)
"""Ray takes the first of each hundred; these stay free."""


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports that must be open between all machines, and those of them that are tried."""

    what: str
    first: int
    last: int
    samples: tuple[int, ...]

    @property
    def text(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Reach:
    """One connection that was tried, by addresses. `word`: ok, timeout, or an errno's name."""

    source: str
    target: str
    port: int
    word: str


@dataclass(frozen=True, slots=True)
class Between:
    """What was found between machines. `offsets`: by address, how many seconds a clock is ahead of the asker's.
    `listening`: by address and port, what became of listening there."""

    ranges: Sequence[PortRange]
    reaches: Sequence[Reach]
    listening: Mapping[tuple[str, int], str]
    offsets: Mapping[str, float]


def ranges(control: int, files: int, first: int, last: int) -> tuple[PortRange, ...]:
    """What the config makes of the ports, and Ray's."""
    return (
        PortRange("the controller", control, control, (control,)),
        PortRange("files of models", files, files, (files,)),
        PortRange("replicas", first, last, tuple(sorted({first, (first + last) // 2, last}))),
        PortRange("Ray", 20000, 31100, RAYS_SAMPLES),
    )


def findings_between(machines: Sequence[Seen], between: Between) -> list[Finding]:
    """`machines`: those that were seen; the head is the first."""
    if not machines:
        return []
    return [
        *_ports(machines, between),
        *_firewalls(machines),
        *_clocks(machines, between),
        *_versions(machines),
    ]


def _ports(machines: Sequence[Seen], between: Between) -> list[Finding]:
    """For each machine that somebody does not reach, a finding by range of ports."""
    found: list[Finding] = []
    names = {seen.address: seen.name for seen in machines}
    samples = {port: each for each in between.ranges for port in each.samples}
    for seen in machines:
        bad: dict[tuple[str, str], list[Reach]] = {}
        for reach in between.reaches:
            if reach.target == seen.address and reach.word != "ok":
                bad.setdefault((reach.source, samples[reach.port].text), []).append(reach)
        grouped: dict[tuple[str, str], list[str]] = {}
        for (source, text), reaches in sorted(bad.items()):
            grouped.setdefault((text, _how(reaches, between)), []).append(names[source])
        for (text, how), sources in grouped.items():
            ports = next(each for each in between.ranges if each.text == text)
            is_own = how.startswith("taken")
            what = f"not reached by {', '.join(sources)} on {text} ({ports.what}): {how}"
            remedy = (
                _END_IT if is_own else _open(seen, text, [a for a, name in names.items() if name in sources])
            )
            found.append(Finding("warn" if is_own else "fail", seen.name, "ports", what, remedy))
    return found or [Finding("ok", machines[0].name, "ports", _REACHED.format(len(machines)), "")]


_REACHED = "all {} machines reach the ports of all others"
_END_IT = "if it is a homeport that serves its machine alone: `homeport down` there"


def _how(reaches: Sequence[Reach], between: Between) -> str:
    taken = [r for r in reaches if between.listening.get((r.target, r.port)) == "EADDRINUSE"]
    if len(taken) == len(reaches) and all(r.word == "ECONNREFUSED" for r in reaches):
        return "taken by something that others do not reach"
    words = {
        "timeout": "dropped, as a firewall does",
        "ECONNREFUSED": "refused, as a firewall does",
        "EHOSTUNREACH": "no way there",
        "ENETUNREACH": "no way there",
        "EACCES": "forbidden by its own firewall",
        "EPERM": "forbidden by its own firewall",
    }
    return ", ".join(sorted({words.get(reach.word, reach.word) for reach in reaches}))


def _open(seen: Seen, text: str, sources: Sequence[str]) -> str:
    """The command on the machine that is not reached."""
    wall = _wall(seen.facts or {})
    ports = text.replace("-", ":")
    if wall == "ufw":
        return "; ".join(f"sudo ufw allow proto tcp from {s} to any port {ports}" for s in sources)
    if wall == "firewalld":
        rule = "rule family={} source address={} port port={} protocol=tcp accept"
        rules = (rule.format("ipv6" if ":" in s else "ipv4", s, text) for s in sources)
        adds = "; ".join(f"sudo firewall-cmd --permanent --add-rich-rule='{each}'" for each in rules)
        return (
            f"{adds}; sudo firewall-cmd --reload (with --zone=ZONE where `firewall-cmd --get-active-zones` names "
            "another zone for this network than the default one)"
        )
    if wall == "nftables":
        table, chain = _nft_input(str((seen.facts or {})["firewall"]["nft"])) or ("inet filter", "input")
        whom = ", ".join(sources)
        return f"sudo nft insert rule {table} {chain} ip saddr {{ {whom} }} tcp dport {text} accept"
    if wall == "iptables":
        return "; ".join(f"sudo iptables -I INPUT -p tcp -s {s} --dport {ports} -j ACCEPT" for s in sources)
    return (
        f"open TCP {text} from {', '.join(sources)} in the firewall of {seen.name}, or of what lies between"
    )


def _wall(facts: Mapping[str, Any]) -> str:
    """The firewall that is on, as far as it could be seen; "" for none."""
    told = facts.get("firewall") or {}
    if told.get("ufw"):
        return "ufw"
    if told.get("firewalld"):
        return "firewalld"
    if _nft_input(str(told.get("nft", ""))) is not None:
        return "nftables"
    if re.search(r"^-P INPUT DROP", str(told.get("iptables", "")), re.MULTILINE):
        return "iptables"
    return ""


def _nft_input(rules: str) -> tuple[str, str] | None:
    """Table and chain of the rules through which what comes in must pass, where those drop or reject something."""
    table = chain = ""
    inside: list[str] = []
    for line in rules[:RULES_MAX].splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            chain, inside = words[1], []
        elif words:
            inside.append(line)
            text = " ".join(inside)
            if "hook input" in text and re.search(r"policy drop|\bdrop\b|\breject\b", text):
                return table, chain
    return None


def _firewalls(machines: Sequence[Seen]) -> list[Finding]:
    found = []
    for seen in machines:
        assert seen.facts is not None, "only those that were seen come here"
        wall = _wall(seen.facts)
        if wall:
            found.append(
                Finding("ok", seen.name, "firewall", f"{wall} is on; what it lets through was tried", "")
            )
        elif not seen.facts["firewall"]["readable"]:
            found.append(
                Finding(
                    "ok",
                    seen.name,
                    "firewall",
                    "its rules are not this user's to read; what they let through was tried",
                    "",
                )
            )
        else:
            found.append(Finding("ok", seen.name, "firewall", "no firewall drops what comes in", ""))
    return found


def _clocks(machines: Sequence[Seen], between: Between) -> list[Finding]:
    """Against the head's: journals and logs of several machines are compared by their times."""
    head = between.offsets.get(machines[0].address)
    found = []
    for seen in machines:
        offset = between.offsets.get(seen.address)
        if offset is None or head is None:
            continue
        skew = offset - head
        if abs(skew) > SKEW_S:
            way = "ahead of" if skew > 0 else "behind"
            what = f"its clock is {abs(skew):.1f} s {way} that of {machines[0].name}"
            found.append(Finding("warn", seen.name, "clock", what, "sudo timedatectl set-ntp true"))
        elif seen is not machines[0]:
            found.append(Finding("ok", seen.name, "clock", f"its clock is right to {abs(skew):.1f} s", ""))
    return found


def _versions(machines: Sequence[Seen]) -> list[Finding]:
    """Builds of homeport and versions of Ray against the head's, where they are installed."""
    found = []
    head = _installed(machines[0].facts)
    for seen in machines:
        has = _installed(seen.facts)
        if has is None:
            found.append(
                Finding("ok", seen.name, "versions", "homeport is not installed yet: `ray up` does it", "")
            )
            continue
        python = ".".join(map(str, has["python"]))
        told = f"homeport {has['build'] or '?'}, Ray {has['ray'] or '?'}, Python {python or '?'}"
        if not has["build"] or not has["ray"]:
            remedy = "rm -r ~/homeport/.venv there, then `ray up` again"
            found.append(
                Finding(
                    "fail", seen.name, "versions", f"homeport is installed and does not load ({told})", remedy
                )
            )
        elif head is not None and (has["build"], has["ray"]) != (head["build"], head["ray"]):
            what = f"{told}; {machines[0].name} has homeport {head['build']}, Ray {head['ray']}"
            remedy = "`ray down`, then `ray up`: it brings the head's to all"
            found.append(Finding("fail", seen.name, "versions", what, remedy))
        elif head is not None and has["python"] != head["python"]:
            what = f"{told}; the last number differs from {machines[0].name}'s, which does no harm"
            found.append(Finding("ok", seen.name, "versions", what, ""))
        else:
            found.append(Finding("ok", seen.name, "versions", told, ""))
    return found


def _installed(facts: Facts | None) -> Mapping[str, Any] | None:
    return None if facts is None else facts["homeport"]

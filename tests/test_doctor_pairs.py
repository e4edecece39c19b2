"""What is said between machines, from facts and from connections that were tried."""

from typing import Any

import pytest

from cluster.doctor import Finding, Seen
from cluster.doctor_pairs import Between, PortRange, Reach, findings_between, ranges
from tests.test_doctor import facts

DEN, TOWER, RACK = "10.0.0.1", "10.0.0.2", "10.0.0.3"
NAMES = {DEN: "den", TOWER: "tower", RACK: "rack"}
ALL = ranges(8090, 8091, 8100, 8199)
PORTS = [port for each in ALL for port in each.samples]
NFT = """\
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
"""
FORWARDS = "table ip nat {\n chain f {\n type filter hook forward priority 0; policy drop;\n drop\n }\n}\n"


def seen(address: str, **change: Any) -> Seen:
    return Seen(NAMES[address], address, facts(**change))


def between(
    *bad: tuple[str, str, int, str], listening: Any = None, offsets: dict[str, float] | None = None
) -> Between:
    """Everybody reaches everybody, but for `bad`: (source, target, port, word)."""
    words = {(source, target, port): word for source, target, port, word in bad}
    reaches = [
        Reach(a, b, port, words.get((a, b, port), "ok"))
        for a in NAMES
        for b in NAMES
        if a != b
        for port in PORTS
    ]
    return Between(ALL, reaches, listening or {}, offsets or {})


def found(topic: str, machines: list[Seen], met: Between) -> list[Finding]:
    return [finding for finding in findings_between(machines, met) if finding.topic == topic]


def three(**of_tower: Any) -> list[Seen]:
    return [seen(DEN), seen(TOWER, **of_tower), seen(RACK)]


def test_the_ports_are_those_of_the_config_and_rays() -> None:
    assert [(each.what, each.text) for each in ALL] == [
        ("the controller", "8090"),
        ("files of models", "8091"),
        ("replicas", "8100-8199"),
        ("Ray", "20000-31100"),
    ]
    assert {8090, 8091, 8100, 8199} <= set(PORTS)
    assert ranges(1, 2, 7, 7)[2] == PortRange("replicas", 7, 7, (7,))


def test_where_everybody_reaches_everybody_it_is_said_once() -> None:
    (finding,) = found("ports", three(), between())
    assert (finding.severity, "all 3 machines" in finding.what) == ("ok", True)


def test_a_pair_that_is_cut_is_named_with_range_and_reason() -> None:
    cut = [(RACK, TOWER, port, "timeout") for port in (8100, 8149, 8199)]
    (finding,) = found("ports", three(), between(*cut))
    assert (finding.severity, finding.machine) == ("fail", "tower")
    assert finding.what == "not reached by rack on 8100-8199 (replicas): dropped, as a firewall does"
    assert "open TCP 8100-8199 from rack" in finding.remedy or "10.0.0.3" in finding.remedy


def test_several_that_do_not_reach_one_are_one_finding_a_range() -> None:
    cut = [(source, TOWER, port, "ECONNREFUSED") for source in (DEN, RACK) for port in PORTS]
    met = found("ports", three(), between(*cut))
    assert len(met) == len(ALL)
    assert all("not reached by den, rack on" in finding.what for finding in met)


def test_both_ways_are_two_findings() -> None:
    cut = [(RACK, TOWER, 8090, "timeout"), (TOWER, RACK, 8090, "EHOSTUNREACH")]
    assert {(f.machine, f.what) for f in found("ports", three(), between(*cut))} == {
        ("tower", "not reached by rack on 8090 (the controller): dropped, as a firewall does"),
        ("rack", "not reached by tower on 8090 (the controller): no way there"),
    }


def test_a_port_that_something_has_for_itself_is_a_warning() -> None:
    cut = [(DEN, TOWER, 8090, "ECONNREFUSED"), (RACK, TOWER, 8090, "ECONNREFUSED")]
    (finding,) = found("ports", three(), between(*cut, listening={(TOWER, 8090): "EADDRINUSE"}))
    assert (finding.severity, "taken" in finding.what, "homeport down" in finding.remedy) == (
        "warn",
        True,
        True,
    )


WALLS: list[tuple[dict[str, Any], str]] = [
    ({"ufw": True}, "sudo ufw allow proto tcp from 10.0.0.3 to any port 8100:8199"),
    (
        {"firewalld": True},
        "firewall-cmd --permanent --add-rich-rule='rule family=ipv4 source address=10.0.0.3 port port=",
    ),
    ({"nft": NFT}, "nft insert rule inet filter input ip saddr { 10.0.0.3 } tcp dport 8100-8199 accept"),
    (
        {"iptables": "-P INPUT DROP\n-P FORWARD ACCEPT"},
        "iptables -I INPUT -p tcp -s 10.0.0.3 --dport 8100:8199",
    ),
    ({"nft": FORWARDS}, "or of what lies between"),
    ({"iptables": "-P INPUT ACCEPT\n-P FORWARD DROP"}, "or of what lies between"),
]


@pytest.mark.parametrize(("told", "remedy"), WALLS)
def test_the_remedy_is_that_of_the_firewall_that_is_on(told: dict[str, Any], remedy: str) -> None:
    wall = {"readable": True, "nft": "", "iptables": "", "ufw": False, "firewalld": False, **told}
    machines = three(firewall=wall)
    cut = [(RACK, TOWER, port, "timeout") for port in (8100, 8149, 8199)]
    (finding,) = found("ports", machines, between(*cut))
    assert remedy in finding.remedy
    (of_tower,) = [f for f in found("firewall", machines, between()) if f.machine == "tower"]
    assert of_tower.severity == "ok"
    assert (" is on" in of_tower.what) == ("between" not in remedy)


def test_rules_that_may_not_be_read_are_said() -> None:
    wall = {"readable": False, "nft": "", "iptables": "", "ufw": False, "firewalld": False}
    (of_tower,) = [f for f in found("firewall", three(firewall=wall), between()) if f.machine == "tower"]
    assert "not this user's to read" in of_tower.what


@pytest.mark.parametrize(("offset", "words"), [(5.0, "5.0 s ahead of"), (-3600.0, "3600.0 s behind")])
def test_a_clock_that_differs_from_the_heads_is_a_warning(offset: float, words: str) -> None:
    offsets = {DEN: 100.0, TOWER: 100.0 + offset, RACK: 101.0}
    by_name = {f.machine: f for f in found("clock", three(), between(offsets=offsets))}
    assert by_name["tower"].severity == "warn"
    assert words in by_name["tower"].what
    assert "timedatectl" in by_name["tower"].remedy
    assert by_name["rack"].severity == "ok"
    assert "den" not in by_name


def test_clocks_that_nobody_could_ask_are_not_judged() -> None:
    assert found("clock", three(), between(offsets={TOWER: 1.0})) == []


HEADS = {"build": "0.1.0+aa.py3.12", "ray": "2.60.0", "python": [3, 12, 4]}


@pytest.mark.parametrize(
    ("has", "severity", "words"),
    [
        (HEADS, "ok", "homeport 0.1.0+aa.py3.12, Ray 2.60.0, Python 3.12.4"),
        (None, "ok", "not installed yet"),
        ({**HEADS, "python": [3, 12, 9]}, "ok", "does no harm"),
        ({**HEADS, "build": "0.1.0+bb.py3.12"}, "fail", "den has homeport 0.1.0+aa.py3.12"),
        ({**HEADS, "ray": "2.61.0"}, "fail", "Ray 2.60.0"),
        ({"build": "", "ray": "", "python": []}, "fail", "does not load"),
    ],
)
def test_versions_are_compared_with_the_heads(has: Any, severity: str, words: str) -> None:
    machines = [seen(DEN, homeport=HEADS), seen(TOWER, homeport=has), seen(RACK, homeport=HEADS)]
    (finding,) = [f for f in found("versions", machines, between()) if f.machine == "tower"]
    assert (finding.severity, words in finding.what) == (severity, True), finding
    assert bool(finding.remedy) == (severity == "fail")


def test_of_no_machine_nothing_is_said() -> None:
    assert findings_between([], between()) == []

"""Who wakes a machine, and how: the decision, the packet on a real wire of this machine, the command."""

import asyncio
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import group, magic_packet
from serving import wake_machine
from serving.wake_machine import Cluster, NotWoken, Waker, sleepers
from serving.waking import Awake, Sender, Sleeper, Wake, entries, senders

MAC = "3c:ec:ef:01:23:45"
TOWER = Sleeper("tower", "home", "192.168.1.20")
DEN = Awake("id-den", "den", "home", ("192.168.1.10/24",))
ATTIC = Awake("id-attic", "attic", "home", ("10.0.0.3/16", "192.168.1.11/24"))
RACK = Awake("id-rack", "rack", "office", ("192.168.2.10/24",))


# who sends


def test_who_shares_the_segment_sends_there_and_on_no_other_of_its_networks() -> None:
    assert senders(TOWER, [RACK, DEN, ATTIC]) == (
        Sender("id-den", "den", ("192.168.1.10/24",)),
        Sender("id-attic", "attic", ("192.168.1.11/24",)),
    )


def test_a_machine_of_another_zone_sends_where_it_is_on_the_same_wire() -> None:
    beside = Awake("id-nas", "nas", "office", ("192.168.1.5/24",))
    assert senders(TOWER, [DEN, beside])[1].name == "nas"


def test_where_nobody_shares_the_segment_its_zone_sends() -> None:
    far = Awake("id-far", "far", "home", ("192.168.7.1/24", "10.8.0.2/24"))
    assert senders(TOWER, [RACK, far]) == (Sender("id-far", "far", far.networks),)
    assert senders(Sleeper("tower", "home", ""), [RACK, DEN]) == (Sender("id-den", "den", DEN.networks),)


def test_the_prefix_says_how_far_a_segment_reaches() -> None:
    wide = Awake("id-wide", "wide", "office", ("192.168.0.9/16",))
    narrow = Awake("id-narrow", "narrow", "office", ("192.168.1.19/30",))
    assert [each.name for each in senders(TOWER, [narrow, wide])] == ["wide"]


def test_nobody_sends_to_itself_and_not_more_than_three_do() -> None:
    itself = Awake("id-tower", "tower", "home", ("192.168.1.20/24",))
    many = [Awake(f"id-{n}", f"m{n}", "home", (f"192.168.1.{n}/24",)) for n in range(100, 110)]
    assert senders(TOWER, [itself]) == ()
    assert [each.name for each in senders(TOWER, [itself, *many])] == ["m100", "m101", "m102"]
    assert senders(TOWER, [Awake("id-odd", "odd", "home", ())]) == ()


def test_what_a_revision_says_of_waking() -> None:
    told: list[dict[str, Any]] = [
        {"name": "den", "wake": None},
        {"name": "tower", "wake": {"mac": MAC}},
        {"name": "rack", "wake": {"command": ["wake", "rack"]}},
    ]
    assert entries(told) == {"tower": Wake(MAC), "rack": Wake(None, ("wake", "rack"))}
    for wake in entries(told).values():
        assert Wake.from_json(wake.to_json()) == wake


def test_a_machine_that_only_the_config_names_is_known_and_what_was_seen_last_holds() -> None:
    config = [
        {"name": "tower", "zone": "home", "address": "192.168.1.20"},
        {"name": "rack", "zone": "office"},
    ]
    known = [("tower", "home", ""), ("attic", "home", "192.168.1.11"), ("rack", "office", "192.168.2.7")]
    found = sleepers(known, config)
    assert found["tower"] == TOWER
    assert found["rack"].address == "192.168.2.7"
    assert found["attic"].zone == "home"


# the packet


def test_a_packet_has_102_bytes() -> None:
    made = magic_packet.packet(MAC)
    assert len(made) == 102
    assert made[:6] == b"\xff" * 6
    assert made[6:] == bytes.fromhex("3cecef012345") * 16
    for wrong in ("3c:ec", "not one", ""):
        with pytest.raises(ValueError, match=r"non-hex|no address"):
            magic_packet.packet(wrong)


def test_a_packet_goes_out_on_a_network_of_this_machine_as_a_broadcast() -> None:
    own = magic_packet.networks()
    if not own:
        pytest.skip("this machine has no network but its loopback")
    assert all(re.fullmatch(r"[\d.]+/\d+", each) and not each.startswith("127.") for each in own)
    assert magic_packet.send(MAC, [own[0], "203.0.113.7/24"]) == (own[0],)
    with pytest.raises(OSError, match="none of these"):
        magic_packet.send(MAC, ["203.0.113.7/24"])
    with pytest.raises(ValueError, match="no address"):
        magic_packet.send("aa:bb", [own[0]])


# the command


class Ordered:
    """Keepers that do as they are told; those in `away` cannot be asked."""

    def __init__(self, *away: str) -> None:
        self.away = away
        self.sent: list[tuple[str, str, list[str]]] = []

    async def order(self, machine: str, mac: str, networks: list[str]) -> int:
        if machine in self.away:
            raise TimeoutError
        self.sent.append((machine, mac, networks))
        return len(networks)


def waker(wake: Wake | None, ordered: Ordered, *awake: Awake, heard: tuple[str, ...] = ()) -> Waker:
    told = {} if wake is None else {"tower": wake}
    cluster = Cluster(told, {"tower": TOWER}, frozenset(heard), awake, "id-head")
    return Waker(lambda: cluster, ordered.order, (TimeoutError,))


async def test_keepers_on_its_segment_are_asked_to_send() -> None:
    ordered = Ordered("id-den")
    done = await waker(Wake(MAC), ordered, DEN, ATTIC, RACK).wake("tower")
    assert done == {"machine": "tower", "awake": False, "how": "packet", "by": ["attic"]}
    assert ordered.sent == [("id-attic", MAC, ["192.168.1.11/24"])]


@pytest.mark.parametrize(
    ("wake", "awake", "says", "status"),
    [
        (None, (DEN,), "does not say how tower is woken", 409),
        (Wake(MAC), (RACK,), "No machine in the network of tower (192.168.1.20) is awake", 503),
        (Wake(MAC), (DEN,), "den could not send", 502),
        (Wake(None, ("/no/such/program",)), (), "cannot be started: /no/such/program: No such file", 502),
    ],
)
async def test_why_nobody_is_woken(
    wake: Wake | None, awake: tuple[Awake, ...], says: str, status: int
) -> None:
    with pytest.raises(NotWoken, match=re.escape(says)) as refused:
        await waker(wake, Ordered("id-den"), *awake).wake("tower")
    assert refused.value.status == status


async def test_only_known_machines_are_woken_and_none_that_is_awake() -> None:
    ordered = Ordered()
    with pytest.raises(NotWoken, match="no machine shed; known: tower"):
        await waker(Wake(MAC), ordered, DEN).wake("shed")
    done = await waker(Wake(MAC), ordered, DEN, heard=("tower",)).wake("tower")
    assert done["awake"]
    assert ordered.sent == []


def script(words: str) -> Wake:
    return Wake(None, (sys.executable, "-c", words))


async def test_no_shell_reads_a_command(tmp_path: Path) -> None:
    words = f"import sys; open({str(tmp_path / 'said')!r}, 'w').write(sys.argv[1])"
    wake = Wake(None, (sys.executable, "-c", words, "$(id) ; rm -rf / > x"))
    assert (await waker(wake, Ordered()).wake("tower"))["how"] == "command"
    assert (tmp_path / "said").read_text() == "$(id) ; rm -rf / > x"


async def test_a_command_that_fails_is_told_with_its_last_lines() -> None:
    words = "print('first'); [print('line', n) for n in range(9)]; raise SystemExit('no such plug')"
    with pytest.raises(NotWoken) as refused:
        await waker(script(words), Ordered()).wake("tower")
    assert str(refused.value).endswith("ended with code 1: line 5 / line 6 / line 7 / line 8 / no such plug")
    with pytest.raises(NotWoken, match="ended with code 3 and said nothing"):
        await waker(script("raise SystemExit(3)"), Ordered()).wake("tower")


async def test_a_command_that_does_not_end_is_killed_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wake_machine, "COMMAND_S", 1.0)
    words = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '600']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    began = time.monotonic()
    with pytest.raises(NotWoken, match="had not ended after 1 s and was killed"):
        await waker(script(words), Ordered()).wake("tower")
    assert time.monotonic() - began < 5.0
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5.0
    while (seen := group.look(child)) is not None and not seen.zombie:
        assert time.monotonic() < deadline, "what it started goes on"
        await asyncio.sleep(0.02)


async def test_a_command_runs_once_for_all_who_ask_meanwhile(tmp_path: Path) -> None:
    words = f"import time; open({str(tmp_path / 'runs')!r}, 'a').write('x'); time.sleep(0.3)"
    asked = waker(script(words), Ordered())
    assert [each["how"] for each in await asyncio.gather(*(asked.wake("tower") for _ in range(3)))]
    assert (tmp_path / "runs").read_text() == "x"
    await asked.wake("tower")
    assert (tmp_path / "runs").read_text() == "xx"

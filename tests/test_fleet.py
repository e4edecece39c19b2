"""The router's picture: polling over real sockets, with hosts that stop, hang, change and come back."""

import asyncio
import json
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from router.fleet import Fleet
from router.peers import Peers
from router.snapshot import Model
from tests.ports import free_port
from tests.standins import TOKEN, AnswersHost, Controller, DropsPackets, running


class Polled:
    """A fleet that polls for as long as the block lasts."""

    def __init__(self, saved: Path, control_port: int) -> None:
        self.saved = saved
        self.control_port = control_port
        self.shift_s = 0.0
        self.lost: list[str] = []

    async def __aenter__(self) -> "Polled":
        self.client = aiohttp.ClientSession()
        peers = Peers(self.client, f"http://127.0.0.1:{self.control_port}", TOKEN)
        models = [Model("from-config", 512, "llama.cpp")]
        self.fleet = Fleet(peers, self.saved, models, self.clock, self.lost.append)
        self.task = asyncio.create_task(self.fleet.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.client.close()

    def clock(self) -> float:
        return time.monotonic() + self.shift_s

    def reach(self, name: str) -> str:
        known = self.fleet.snapshot().replicas.get(name)
        return "absent" if known is None else known.reach(self.clock())

    async def until(self, name: str, reach: str) -> None:
        async with asyncio.timeout(15):
            while self.reach(name) != reach:
                await self.fleet.changed(0.5)


async def test_hosts_that_the_controller_lists_are_heard_within_a_moment(tmp_path: Path) -> None:
    host = AnswersHost("den/0", state="loading", incarnation=7)
    controller = Controller([host])
    async with running(host, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        known = polled.fleet.snapshot().replicas["den/0"]
        assert (known.state, known.progress, known.incarnation) == ("loading", 0.5, 7)
        assert list(polled.fleet.snapshot().models) == ["tiny"]
        assert polled.fleet.controller_reachable is True


async def test_the_hosts_word_on_its_state_outdoes_the_controllers(tmp_path: Path) -> None:
    host = AnswersHost("den/0", state="draining")
    controller = Controller([host])
    async with running(host, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        assert polled.fleet.snapshot().replicas["den/0"].state == "draining"


async def test_a_refused_connection_takes_a_host_out_at_once_and_an_answer_brings_it_back(
    tmp_path: Path,
) -> None:
    host = AnswersHost("den/0")
    controller = Controller([host])
    async with running(host, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        await host.stop()
        began = time.monotonic()
        await polled.until("den/0", "out")
        assert time.monotonic() - began < 3, "sooner than silence would tell"
        assert polled.fleet.snapshot().replicas["den/0"].state == "ready", (
            "the keeper's word, the last there is"
        )
        await host.start()
        await polled.until("den/0", "up")


async def test_a_host_whose_packets_are_dropped_grows_suspect_and_slows_nobody(tmp_path: Path) -> None:
    silent, well = AnswersHost("den/0"), AnswersHost("attic/0")
    controller = Controller([silent, well])
    async with running(silent, well, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        await polled.until("attic/0", "up")
        await silent.stop()
        wall = DropsPackets(port=silent.port)
        async with running(wall):
            # Whatever the poll that was under way saw, from now on there is only silence.
            polled.fleet.known["den/0"].refused = False
            await polled.until("den/0", "suspect")
            await polled.until("den/0", "out")
            assert polled.reach("attic/0") == "up"


async def test_a_long_silence_tells_that_its_turns_are_lost_once(tmp_path: Path) -> None:
    silent = AnswersHost("den/0")
    controller = Controller([silent])
    async with running(silent, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        await silent.stop()
        polled.shift_s = 20.0
        async with asyncio.timeout(10):
            while not polled.lost:
                await polled.fleet.changed(0.2)
        await polled.fleet.changed(2.5)
        assert polled.lost == ["den/0"]


async def test_another_host_at_a_replicas_port_is_not_taken_for_it(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    controller = Controller([host])
    async with running(host, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        await host.stop()
        stranger = AnswersHost("den/7", port=host.port)
        async with running(stranger):
            await polled.until("den/0", "out")
            assert polled.fleet.snapshot().replicas["den/0"].serves(polled.clock()) is False


async def test_the_fleet_is_kept_on_disk_and_serves_while_the_head_is_gone(tmp_path: Path) -> None:
    host = AnswersHost("den/0", incarnation=4)
    saved = tmp_path / "router" / "fleet.json"
    async with running(host):
        controller = Controller([host])
        async with running(controller), Polled(saved, controller.port) as polled:
            await polled.until("den/0", "up")
        assert saved.stat().st_mode & 0o777 == 0o600
        async with Polled(saved, controller.port) as polled:
            await polled.until("den/0", "up")
            assert polled.fleet.snapshot().replicas["den/0"].incarnation == 4
            assert list(polled.fleet.snapshot().models) == ["tiny"]
            async with asyncio.timeout(5):
                while polled.fleet.controller_reachable is None:
                    await polled.fleet.changed(0.2)
            assert polled.fleet.controller_reachable is False


async def test_the_file_is_written_when_membership_changes_and_not_else(tmp_path: Path) -> None:
    host, second = AnswersHost("den/0"), AnswersHost("den/1")
    controller = Controller([host])
    saved = tmp_path / "fleet.json"
    async with running(host, second, controller), Polled(saved, controller.port) as polled:
        await polled.until("den/0", "up")
        before = saved.stat()
        host.incarnation += 1
        await polled.fleet.refresh_controller()
        assert saved.stat().st_mtime_ns == before.st_mtime_ns, "an incarnation is the host's to tell"
        controller.hosts.append(second)
        await polled.until("den/1", "up")
        names = [r["name"] for r in json.loads(saved.read_text())["machines"][0]["replicas"]]
        assert names == ["den/0", "den/1"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"machines": 7}', b"\xff"])
async def test_a_broken_file_is_passed_over(tmp_path: Path, content: bytes) -> None:
    saved = tmp_path / "fleet.json"
    saved.write_bytes(content)
    host = AnswersHost("den/0")
    controller = Controller([host])
    async with running(host, controller), Polled(saved, controller.port) as polled:
        await polled.until("den/0", "up")
        assert json.loads(saved.read_text())["machines"]


async def test_without_file_and_head_the_configs_models_are_known(tmp_path: Path) -> None:
    async with Polled(tmp_path / "none.json", free_port()) as polled:
        await polled.fleet.refresh_controller()
        assert list(polled.fleet.snapshot().models) == ["from-config"]
        assert polled.fleet.snapshot().replicas == {}


async def test_a_host_that_a_forgetful_controller_leaves_out_goes_on_serving(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    controller = Controller([host])
    async with running(host, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        controller.hosts, controller.models, controller.revision = [], (), 0
        await polled.fleet.refresh_controller()
        asked = host.state_asked
        async with asyncio.timeout(10):
            while host.state_asked < asked + 2:
                await polled.fleet.changed(1.0)
        assert polled.reach("den/0") == "up"
        assert list(polled.fleet.snapshot().models) == ["tiny"]


async def test_a_host_that_is_neither_listed_nor_there_is_dropped(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    controller = Controller([host])
    async with running(host, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        controller.hosts = [AnswersHost("den/1", port=free_port())]
        await polled.fleet.refresh_controller()
        await host.stop()
        await polled.until("den/0", "absent")
        controller.hosts = [host]
        await host.start()
        await polled.until("den/0", "up")


async def test_a_machine_that_the_list_leaves_out_is_unknown_and_not_absent(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    controller = Controller([host])
    async with running(host, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        controller.hosts = []
        await host.stop()
        await polled.fleet.refresh_controller()
        await polled.until("den/0", "out")
        polled.shift_s = 40.0
        await polled.fleet.changed(2.0)
        gone = polled.fleet.snapshot().replicas["den/0"]
        assert gone.is_lost(polled.clock(), 30.0)
        controller.forgotten = ["den"]
        await polled.fleet.refresh_controller()
        assert polled.fleet.snapshot().forgotten == {"den": "default"}
        await polled.until("den/0", "absent")
        controller.hosts = [AnswersHost("attic/0", port=free_port())]
        await polled.fleet.refresh_controller()
    async with Polled(tmp_path / "fleet.json", free_port()) as polled:
        assert polled.fleet.snapshot().forgotten == {"den": "default"}, "its zone is kept on disk"


async def test_a_machine_that_is_away_keeps_its_replicas_in_the_picture_and_on_disk(tmp_path: Path) -> None:
    host, well = AnswersHost("den/0"), AnswersHost("attic/0")
    controller = Controller([host, well], lost_after_s=12.0)
    saved = tmp_path / "fleet.json"
    async with running(host, well, controller), Polled(saved, controller.port) as polled:
        await polled.until("den/0", "up")
        controller.away["den"] = 5.0
        await polled.fleet.refresh_controller()
        snapshot = polled.fleet.snapshot()
        assert (snapshot.machines["den"].state, snapshot.lost_after_s) == ("lost", 12.0)
        await host.stop()
        await polled.until("den/0", "out")
        await polled.fleet.changed(2.0)
        assert polled.reach("den/0") == "out"
    async with Polled(saved, free_port()) as polled:
        snapshot = polled.fleet.snapshot()
        assert "den/0" in snapshot.replicas
        assert (snapshot.machines["den"].state, snapshot.lost_after_s) == ("unknown", 12.0)
        assert controller.port


async def test_a_router_that_begins_without_a_head_knows_who_is_cordoned(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    controller = Controller([host], cordoned={"den"})
    saved = tmp_path / "fleet.json"
    async with running(host, controller):
        async with Polled(saved, controller.port) as polled:
            await polled.until("den/0", "up")
        async with Polled(saved, free_port()) as polled:
            assert polled.fleet.snapshot().machines["den"].cordoned


async def test_open_turns_are_counted_and_given_back(tmp_path: Path) -> None:
    async with Polled(tmp_path / "none.json", free_port()) as polled:
        polled.fleet.turn_begins("den/0")
        polled.fleet.turn_begins("den/0")
        assert polled.fleet.snapshot().open_turns == {"den/0": 2}
        polled.fleet.turn_ends("den/0")
        polled.fleet.turn_ends("den/0")
        assert polled.fleet.snapshot().open_turns == {}


async def test_polling_asks_each_host_once_a_second(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    controller = Controller([host])
    async with running(host, controller), Polled(tmp_path / "fleet.json", controller.port) as polled:
        await polled.until("den/0", "up")
        asked, began = host.state_asked, time.monotonic()
        async with asyncio.timeout(15):
            while host.state_asked < asked + 3:
                await polled.fleet.changed(1.0)
        assert time.monotonic() - began > 1.9, "three polls are two whole intervals apart, at least"


class BusyController(Controller):
    """Answers 503 to everything."""

    async def get_fleet(self, request: web.Request) -> web.Response:
        return web.json_response({}, status=503)


async def test_a_controller_that_answers_503_counts_as_unreachable_and_is_asked_again(tmp_path: Path) -> None:
    busy = BusyController([])
    async with running(busy), Polled(tmp_path / "fleet.json", busy.port) as polled, asyncio.timeout(15):
        while polled.fleet.controller_reachable is not False:
            await polled.fleet.changed(0.5)
        assert not polled.fleet.snapshot().is_current
        await busy.stop()
        async with running(Controller([], port=busy.port)):
            while not polled.fleet.snapshot().is_current:
                await polled.fleet.changed(0.5)

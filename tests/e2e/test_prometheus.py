"""A real Prometheus before a running homeport: every panel's and every rule's query is answered with data."""

import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cluster.processes import ours
from configs.grafana.generate import BOARDS
from router.lifecycle import end_everything
from tests.cluster.lab import program
from tests.e2e.installation import Homeport, eventually
from tests.prometheus.queries import filled, names, rules
from tests.prometheus.server import Prometheus, Series, running
from tests.prometheus.traffic import installation, talk

pytestmark = pytest.mark.skipif(
    program("prometheus") is None, reason="needs Prometheus (Debian: apt-get install prometheus)"
)
RATE_S = 10
SETTLED_S = 3
"""Until a host's last counts were asked for by the router, scraped, and worked into the rules."""
FOREIGN = "while True: pass"
NEED_A_GPU = {
    "cluster: GPUs promised",
    "cluster: Joules a token",
    "cluster: Power of GPUs",
    "machine: Utilization",
    "machine: Memory of GPUs",
    "machine: Power",
    "machine: Temperature",
    "machine: Foreign processes",
    "machine: Joules a token",
    "isolation: Foreign on GPUs",
    "isolation: Foreign processes on GPUs",
    "homeport:joules_per_token:ratio_rate5m",
}
"""Panels and rules that have no data where there is no GPU that tells its figures."""
FOREIGN_LOAD = "HomeportForeignLoad"
"""Others are on the cores here, but not for the minute that it looks at: it may have data or not."""
NEED_AN_INCIDENT = {
    "HomeportMachineLost": "no machine is lost",
    "HomeportHostFailed": "no host has failed",
    "HomeportLineLong": "nobody may wait for longer than a second here",
    "HomeportParkingDiskNearlyFull": "some sessions do not fill 8 GiB",
    "HomeportRouterDown": "the router answers",
    "HomeportControllerDown": "so does the controller",
}


@dataclass(frozen=True)
class Watched:
    homeport: Homeport
    prometheus: Prometheus
    began: float
    """Since the epoch."""

    @property
    def machine(self) -> str:
        (machine,) = self.homeport.get("/api/fleet")["machines"]
        return str(machine["name"])

    @property
    def has_gpus(self) -> bool:
        return bool(self.prometheus.now("homeport_gpu_power_watts"))

    def recorded(self, expr: str) -> list[Series]:
        """Those with a value, of what the query returns over all that was seen."""
        found = self.prometheus.over(expr, self.began, time.time(), 1)
        return [one for one in found if any(not math.isnan(value) for _, value in one.points)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A homeport that runs, and a Prometheus that has seen what `talk` says, with a foreign program on the cores."""
    homeport = installation(Homeport(tmp_path_factory.mktemp("homeport")))
    try:
        homeport.up()
        router = homeport.url.removeprefix("http://")
        with running(tmp_path_factory.mktemp("prometheus"), router) as prometheus:
            eventually(lambda: prometheus.now("homeport_machine_up"))
            began = time.time()
            with subprocess.Popen([sys.executable, "-c", FOREIGN]) as foreign:
                talk(homeport)
                foreign.kill()
            time.sleep(SETTLED_S)
            yield Watched(homeport, prometheus, began)
    finally:
        end_everything(homeport.paths)
    assert ours(homeport.paths) == []


def test_every_process_is_found_and_answers(watched: Watched) -> None:
    hosts = ["host"] * len(watched.homeport.replicas())
    wanted = sorted(["router", "controller", "keeper", *hosts])

    def all_up() -> bool:
        told = watched.prometheus.targets()
        assert sorted(target["labels"]["role"] for target in told) == wanted
        return all(target["health"] == "up" for target in told)

    eventually(all_up)


def test_nothing_is_told_twice(watched: Watched) -> None:
    (machines,) = watched.prometheus.now("count(homeport_machine_up)")
    (places,) = watched.prometheus.now("count(homeport_places)")
    assert machines.points[0][1] == 1
    assert places.points[0][1] == len(watched.homeport.replicas())


def test_every_panel_shows_data(watched: Watched) -> None:
    empty, unnamed = set(), {}
    for board in BOARDS:
        for panel in board.panels:
            name = f"{board.name}: {panel.title}"
            for query in panel.queries:
                found = watched.recorded(filled(query.expr, board, watched.machine, RATE_S))
                if not found:
                    empty.add(name)
                asked = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
                if any(not asked <= one.labels.keys() for one in found):
                    unnamed[name] = [one.labels for one in found]
    assert empty == {name for name in NEED_A_GPU if ": " in name and not watched.has_gpus}
    assert unnamed == {}, "each series has what its legend names"


def test_every_rule_returns_data(watched: Watched) -> None:
    empty = {rule.name for rule in rules() if not watched.recorded(rule.expr)}
    without = {name for name in NEED_A_GPU if ": " not in name and not watched.has_gpus}
    assert empty - {FOREIGN_LOAD} == without | set(NEED_AN_INCIDENT)
    recorded = {rule.name for rule in rules() if not rule.is_alert}
    assert {name for name in recorded if not watched.recorded(name)} == without, "they are worked out too"


def test_alerts_without_an_incident_look_at_series_that_are_there(watched: Watched) -> None:
    told = {name for rule in rules() if rule.is_alert for name in names(rule.expr)}
    only_without_discovery = {"homeport_controller_up"}
    assert {name for name in told if not watched.recorded(name)} == only_without_discovery

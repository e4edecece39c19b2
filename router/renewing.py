"""How a homeport that runs gets another config: models and machines at once, the rest after `down` and `up`.

One way for `homeport apply` and for `ray up` on a head that runs. Carrying it out is the controller's matter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.join import LOOPBACK, note_programs
from cluster.machine import Hardware, Machine, Reserve
from cluster.paths import Paths, read_json
from router import lifecycle
from router.lifecycle import Prepared
from serving.config import Config, MachineConfig
from serving.config_router import RouterConfig
from serving.router_limits import KEYS


@dataclass(frozen=True, slots=True)
class Renewal:
    """A config beside what runs. Nothing is written yet."""

    config: Config
    """With router and network as they run."""
    machine: Machine
    """This one, as it runs."""
    ports: tuple[int, int]
    before: dict[str, Any]
    """The revision that runs."""
    wanted: dict[str, Any]
    """The one that the config asks for; of the same number where nothing is different."""
    later: tuple[str, ...]
    """What the config says otherwise and what holds only after `homeport down` and `up`, by its keys."""

    @property
    def is_new(self) -> bool:
        return bool(self.wanted["revision"] != self.before.get("revision"))


def compare(paths: Paths, run: Mapping[str, Any], prepared: Prepared) -> Renewal:
    """`run`: what `run.json` says of the homeport that runs."""
    before: dict[str, Any] = read_json(paths.revision) or {}
    settings: dict[str, Any] = read_json(paths.router_settings) or {}
    given = prepared.config
    machine = Machine.from_json(run["machine"]) if "machine" in run else prepared.machine
    router = RouterConfig.from_json(settings) if settings else given.router
    control = before.get("control", {}).get("port", given.network.control)
    first, last = before.get("machine", {}).get("ports", (given.network.first, given.network.last))
    tls = before.get("control", {}).get("tls")
    private = given.network.private if tls is None or machine.address == LOOPBACK else not tls
    network = replace(given.network, control=control, first=first, last=last, private=private)
    config = replace(given, router=router, network=network)
    number, wanted = lifecycle.wanted_revision(paths, config, machine, (first, last))
    later = (*_router(router, given.router), *_network(config, given), *_machine(machine, prepared))
    return Renewal(config, machine, (first, last), before, {"revision": number, **wanted}, later)


def renew(paths: Paths, renewal: Renewal) -> None:
    """Write the revision down; the controller finds it there. Raises OSError.

    To which programs this machine yields its keeper finds beside it.
    """
    note_programs(paths, renewal.config.machine(renewal.machine.name).yield_to)
    lifecycle.write_revision(paths, renewal.config, renewal.machine, renewal.ports)


def machines_renewed(
    machines: tuple[MachineConfig, ...], fleet: Mapping[str, Any], head: str
) -> tuple[str, ...]:
    """Machines that joined of whose zone or reserve the config says otherwise: they take it by themselves."""
    found = []
    for report in fleet.get("machines", ()):
        entry = next(
            (m for m in machines if m.address == report["address"]),
            next((m for m in machines if m.name == report["name"]), None),
        )
        if entry is None or report["name"] == head or "hardware" not in report:
            continue
        hardware, reserve = Hardware.from_json(report["hardware"]), Reserve.from_json(report["reserve"])
        told = report["zone"], reserve, tuple(report.get("yield_to", entry.yield_to))
        if (entry.zone, entry.reserve(hardware), entry.yield_to) != told:
            found.append(str(report["name"]))
    return tuple(found)


def _router(runs: RouterConfig, given: RouterConfig) -> Iterator[str]:
    if (runs.host, runs.port) != (given.host, given.port):
        yield "router.listen"
    if runs.keys_file != given.keys_file:
        yield "router.keys_file"
    if set(runs.names) != set(given.names):
        yield "router.names"
    if runs.identity != given.identity:
        yield "router.identity"
    if set(runs.cors) != set(given.cors):
        yield "router.cors"
    for field, key in KEYS.items():
        if getattr(runs.limits, field) != getattr(given.limits, field):
            yield f"router.{key}"
    if runs.workers != given.workers:
        yield "router.workers"
    if runs.keep_responses != given.keep_responses:
        yield "router.keep_responses"
    if runs.list_machines != given.list_machines:
        yield "router.list_machines"


def _network(runs: Config, given: Config) -> Iterator[str]:
    if runs.network.control != given.network.control:
        yield "network.control"
    if runs.network.private != given.network.private:
        yield "network.private"
    if (runs.network.first, runs.network.last) != (given.network.first, given.network.last):
        yield "network.ports"


def _machine(runs: Machine, prepared: Prepared) -> Iterator[str]:
    given = prepared.machine
    listed = prepared.config.machine(given.name).address or given.address
    for key, has, wants in (
        ("name", runs.name, given.name),
        ("address", runs.address, listed if runs.address != LOOPBACK else given.address),
        ("zone", runs.zone, given.zone),
        ("reserve", runs.reserve, given.reserve),
    ):
        if has != wants:
            yield f"machines: {key} of {runs.name}"

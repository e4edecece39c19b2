"""What `/metrics` and `/sd` answer: the router's own families, those of all that it can ask, and where to ask them.

Hosts are told of from the picture, as they answered last; controller and keepers are asked when somebody asks here.
"""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterator, Mapping, Set
from typing import Any, Literal, assert_never, get_args

import msgspec
from prometheus_client import CollectorRegistry

from router.errors import ApiError, Rejected, bad_request
from router.fleet import Fleet, Known
from router.peers import HostState, Peers, Unreachable
from serving import host_metrics
from serving.exposition import Labels, add, gauge, text

log = logging.getLogger("homeport.router")

Role = Literal["router", "controller", "keeper", "host"]
ROLES: tuple[Role, ...] = get_args(Role)


class Scrape:
    """Raises Rejected: 400 for a role that there is not, 404 for a name that is not known, 503 for a process that does
    not answer, so that Prometheus takes it as down."""

    def __init__(self, fleet: Fleet, peers: Peers, registry: CollectorRegistry) -> None:
        self._fleet = fleet
        self._peers = peers
        self._registry = registry
        self._complained: set[str] = set()
        """Of which replicas it was logged that they tell something else than was expected."""

    async def metrics(self, role: str | None, name: str | None) -> bytes:
        """All there is; with a role, what that process tells itself."""
        if role is None:
            return await self._everything()
        match _read(role):
            case "router":
                return await asyncio.to_thread(self._own, [], self._machines())
            case "controller":
                return await _asked(self._peers.metrics(), "The controller")
            case "keeper":
                machine = _known(name, [each.name for each in self._fleet.listed.machines], "machine")
                return await _asked(self._peers.metrics(keeper=machine), f"The keeper of {machine}")
            case "host":
                replica = _known(name, self._fleet.known, "replica")
                base = self._fleet.known[replica].base
                return await _asked(self._peers.metrics(base), f"The host of {replica}")
            case wrong:
                assert_never(wrong)

    def targets(self, address: str) -> list[dict[str, Any]]:
        """Every process, for Prometheus' HTTP service discovery. `address`: under which the router was asked."""
        return [{"targets": [address], "labels": labels} for labels in self._targets()]

    def _targets(self) -> Iterator[Labels]:
        yield _target("router", "", "", "")
        yield _target("controller", "", "", "")
        for machine in sorted(self._fleet.listed.machines, key=lambda each: each.name):
            yield _target("keeper", machine.name, machine.name, machine.zone)
        for name, known in sorted(self._fleet.known.items()):
            yield _target("host", name, known.machine.name, known.machine.zone)

    async def _everything(self) -> bytes:
        asking = asyncio.create_task(self._peers.metrics(keepers=""))
        hosts = [(_labels(known), _told(known.state)) for known in self._heard()]
        own = await asyncio.to_thread(self._own, hosts, self._machines())
        up = gauge(
            "homeport_controller_up", "1 where the controller answers, whose families are told here too."
        )
        try:
            others = await asking or b""
            add(up, {}, 1.0)
        except Unreachable:
            others = b""
            add(up, {}, 0.0)
        return own + text([up]) + others

    def _own(self, hosts: list[tuple[Labels, Mapping[str, Any]]], machines: Set[str]) -> bytes:
        """What was counted at machines that are gone is kept, for when they return, and not told."""
        counted = list(self._registry.collect())
        for family in counted:
            family.samples = [each for each in family.samples if each.labels.get("machine", "") in machines]
        return text([*counted, *host_metrics.families(hosts, self._complain)])

    def _machines(self) -> Set[str]:
        """Those that there are, also while nothing is heard of them; and "", which stands for none."""
        listed = {machine.name for machine in self._fleet.listed.machines}
        return {"", *listed, *(known.machine.name for known in self._fleet.known.values())}

    def _complain(self, labels: Labels, family: str, error: Exception) -> None:
        replica = labels["replica"]
        if replica not in self._complained:
            self._complained.add(replica)
            log.warning(
                "%s is left out of the metrics of %s, which tells it otherwise (%r); is its host of another version?",
                family,
                replica,
                error,
            )

    def _heard(self) -> list[Known]:
        reachable = set(self._fleet.reachable())
        return [known for name, known in self._fleet.known.items() if name in reachable]


def _labels(known: Known) -> Labels:
    return {
        "model": known.listed.model,
        "machine": known.machine.name,
        "replica": known.listed.name,
    }


def _told(state: HostState | None) -> Mapping[str, Any]:
    return {} if state is None else msgspec.structs.asdict(state)


def _target(role: Role, name: str, machine: str, zone: str) -> Labels:
    labels = {"role": role, "instance": name or role, "__param_role": role}
    if name:
        labels |= {"machine": machine, "zone": zone, "__param_name": name}
    return labels


def _read(role: str) -> Role:
    for known in ROLES:
        if role == known:
            return known
    raise Rejected(bad_request(f"`role` must be one of {', '.join(ROLES)}.", "invalid_value", "role"))


def _known(name: str | None, names: Collection[str], kind: str) -> str:
    if name is None:
        message = f"`name` is missing: of which {kind}? GET /sd lists them."
        raise Rejected(bad_request(message, "missing_required_parameter", "name"))
    if name not in names:
        message = f"There is no {kind} of that name; GET /sd lists them."
        raise Rejected(ApiError(404, f"{kind}_not_found", message, "name"))
    return name


async def _asked(asking: Coroutine[Any, Any, bytes | None], who: str) -> bytes:
    try:
        found = await asking
    except Unreachable as error:
        message = f"{who} cannot be asked: {error}. `homeport status` says how it stands."
        raise Rejected(ApiError(503, "not_reached", message, retry_after_s=5)) from error
    if found is None:
        message = f"{who} tells no metrics; is it of an older version?"
        raise Rejected(ApiError(503, "not_reached", message, retry_after_s=5))
    return found

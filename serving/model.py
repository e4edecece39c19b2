"""What the config says of a model: source, engine, needs, sessions. Pure.

Reads no file and checks no value (see `config`), and knows nothing of running replicas.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from cluster.fit import Replicas, Where, Wish, ZoneOf
from cluster.slices import Need, Take

EngineName = Literal["llama.cpp", "vllm", "script"]
WhenLost = Literal["wait", "move", "fail"]
OptionValue = int | float | str | bool | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParkingSpec:
    """How much room the contexts of parked sessions may take in one replica."""

    memory_bytes: int = 2**30
    """At most; less where the replica's slice has less left."""
    disk_bytes: int = 8 * 2**30
    """0: nothing is written to disk."""
    keep_s: float = 30 * 86400.0
    """A context that nobody used for this long is dropped from disk."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of the config, checked."""

    name: str
    engine: EngineName
    source: str
    """`bundled`, an absolute path, or `hf:OWNER/REPO:FILE`; of the engine `script`, the path of one."""
    machines: Where
    replicas: Replicas
    need: Need
    take: Take
    context: int
    """Tokens that one session may hold, prompt and answer together."""
    sessions: int
    """Places of a replica; 1 makes it exclusive."""
    hold_s: float
    queue_s: float
    when_lost: WhenLost
    parking: ParkingSpec = ParkingSpec()
    unload_s: float | None = None
    """A replica that was quiet for so long frees its model, its sessions parked; None: never."""
    options: tuple[tuple[str, OptionValue], ...] = ()
    """Passed to the engine, sorted by name."""
    isolate: bool = True
    """Whether its hosts have their network taken away, where that is permitted: `network.isolate`."""

    def wish(self) -> Wish:
        """What this model asks of the machines."""
        return Wish(self.name, self.need, self.take, self.machines, self.replicas)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "engine": self.engine,
            "source": self.source,
            "machines": _where_to_json(self.machines),
            "replicas": self.replicas,
            "needs": self.need.to_json(),
            "take": self.take,
            "context": self.context,
            "sessions": self.sessions,
            "hold_s": self.hold_s,
            "queue_s": self.queue_s,
            "when_lost": self.when_lost,
            "parking": self.parking.to_json(),
            "unload_s": self.unload_s,
            "options": dict(self.options),
            "isolate": self.isolate,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; for data that `config` has checked before."""
        return cls(
            name=data["name"],
            engine=data["engine"],
            source=data["source"],
            machines=_where_from_json(data["machines"]),
            replicas=data["replicas"],
            need=Need.from_json(data["needs"]),
            take=data["take"],
            context=data["context"],
            sessions=data["sessions"],
            hold_s=data["hold_s"],
            queue_s=data["queue_s"],
            when_lost=data["when_lost"],
            parking=ParkingSpec(**data.get("parking", {})),
            unload_s=data.get("unload_s"),
            options=tuple(sorted((name, _frozen(value)) for name, value in data["options"].items())),
            isolate=data.get("isolate", True),
        )


def digest(spec: ModelSpec, source_digest: str) -> str:
    """64 hex digits over what needs a restart: engine, source and its content, needs, context, sessions,
    options, and whether it is kept from the network.

    Everything else of a spec applies live. The order of options does not matter.
    """
    parts = [
        spec.engine,
        spec.source,
        source_digest,
        spec.need.to_json(),
        spec.context,
        spec.sessions,
        dict(spec.options),
        *(() if spec.isolate else ("not isolated",)),
    ]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(value) if isinstance(value, list) else value


def _where_to_json(where: Where) -> Any:
    match where:
        case ZoneOf(zone):
            return {"zone": zone}
        case "all":
            return "all"
        case names:
            return list(names)


def _where_from_json(data: Any) -> Where:
    if isinstance(data, Mapping):
        return ZoneOf(data["zone"])
    return "all" if data == "all" else tuple(data)

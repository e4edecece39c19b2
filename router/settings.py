"""What a process of the router is started with, as the parent writes it down."""

import json
from dataclasses import dataclass
from pathlib import Path

from router.identity import DEFAULT, IdentityOptions
from router.workers import Worker
from serving.config_router import RouterConfig
from serving.model import ModelSpec
from serving.router_limits import USUAL, RouterLimits


@dataclass(frozen=True, slots=True)
class Settings:
    """What the router is started with. `fleet_file` is where its last picture of the machines lies."""

    host: str
    port: int
    control_url: str
    token: str
    digest_key: bytes
    fleet_file: Path
    models: tuple[ModelSpec, ...]
    known_file: Path | None = None
    """What the controller knew last of sessions' homes, where its disk is this machine's."""
    keys_file: Path | None = None
    """None: everybody may come in, from this machine only."""
    ca_file: Path | None = None
    """The CA by which machines are known that speak TLS; None: plain HTTP."""
    names: tuple[str, ...] = ()
    """What clients may call this machine beside its own name."""
    identity: IdentityOptions = DEFAULT
    limits: RouterLimits = USUAL
    origins: frozenset[bytes] = frozenset()
    """Of other sites whose pages may use the router, as `cors.is_listed` has them."""
    keep_responses: bool = True
    list_machines: bool = False
    """Whether MODEL@MACHINE stands in lists of models."""
    worker: Worker | None = None
    """Which of those that share the address; None: it is the only one."""


def read_settings(path: Path, number: int | None = None) -> Settings:
    """`number`: which of the router's workers. Raises OSError, KeyError or ValueError for a file that is not the
    parent's."""
    data = json.loads(path.read_text())
    router = RouterConfig.from_json(data)
    return Settings(
        host=router.host,
        port=router.port,
        control_url=data["control_url"],
        token=Path(data["token_file"]).read_text().strip(),
        digest_key=Path(data["digest_key_file"]).read_text().strip().encode(),
        fleet_file=Path(data["fleet_file"]),
        models=tuple(ModelSpec.from_json(model) for model in data["models"]),
        known_file=Path(data["known_file"]) if "known_file" in data else None,
        keys_file=None if router.keys_file is None else Path(router.keys_file),
        ca_file=Path(data["ca_file"]) if data.get("ca_file") else None,
        names=router.names,
        identity=IdentityOptions(router.identity.headers, router.identity.fields),
        limits=router.limits,
        origins=frozenset(origin.encode() for origin in router.cors),
        keep_responses=router.keep_responses,
        list_machines=router.list_machines,
        worker=None if number is None else Worker(number, router.workers, Path(data["workers_folder"])),
    )

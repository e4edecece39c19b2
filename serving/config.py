"""homeport.yaml read and checked into frozen records. A refusal names file, line, key and remedy, and all
there are.

Says what is wished, not whether it fits a machine (see `cluster.fit`), and starts nothing.
"""

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from cluster.fit import Where, ZoneOf
from cluster.machine import Hardware, Reserve, default_reserve
from cluster.slices import Need
from serving import config_schema as schema
from serving.config_keys import MAKE_ONE, lets_anybody_in, read_keys
from serving.config_problems import ConfigError, Problem, translate
from serving.config_router import RouterConfig
from serving.model import ModelSpec, OptionValue, ParkingSpec
from serving.model_checks import contradictions
from serving.model_files import BUNDLED, hub_source
from serving.source import SourceError, file_digest, option_files, source_digest
from serving.standing import LOST_AFTER_S
from serving.waking import Wake
from serving.yaml_lines import Document, Loc, YamlError, key_text, read_yaml

__all__ = [
    "Config",
    "ConfigError",
    "MachineConfig",
    "NetworkConfig",
    "keys_file_of",
    "line_of",
    "load",
]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The controller's port, and the ports of hosts (`last` included)."""

    control: int
    first: int
    last: int
    private: bool = False
    """Whether the person says that nobody else listens on the network of the machines: it carries no TLS yet."""
    lost_after_s: float = LOST_AFTER_S
    """A machine that has not been heard from for so long is lost."""
    files: int = 8091
    """The port at which machines copy models from each other."""
    copy_rate: int | None = None
    """Bytes a second that a machine gives, and takes, at most in such copies; None: no limit."""
    models_disk: int | None = None
    """Bytes that models from Hugging Face may take on a machine's disk; None: no limit."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What the file says of one machine. A machine that is not named has the defaults of this record."""

    name: str
    address: str | None = None
    zone: str = "default"
    reserve_cores: int | None = None
    reserve_memory_bytes: int | None = None
    yield_to: tuple[str, ...] = ()
    """Programs of its person's, by the names of their processes: while one runs, the machine is theirs."""
    wake: Wake | None = None
    """How it is woken; None: nobody can."""

    def reserve(self, hardware: Hardware) -> Reserve:
        """What is left to the machine's person: the file's word, else the default for this hardware."""
        usual = default_reserve(hardware)
        return Reserve(
            usual.cores if self.reserve_cores is None else self.reserve_cores,
            usual.memory_bytes if self.reserve_memory_bytes is None else self.reserve_memory_bytes,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "address": self.address,
            "zone": self.zone,
            "reserve_cores": self.reserve_cores,
            "reserve_memory_bytes": self.reserve_memory_bytes,
            "yield_to": list(self.yield_to),
            "wake": None if self.wake is None else self.wake.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        wake = data.get("wake")
        return cls(
            **{
                **data,
                "yield_to": tuple(data.get("yield_to", ())),
                "wake": None if wake is None else Wake.from_json(wake),
            }
        )


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file, checked."""

    router: RouterConfig
    network: NetworkConfig
    machines: tuple[MachineConfig, ...]
    models: tuple[ModelSpec, ...]

    def machine(self, name: str) -> MachineConfig:
        """What the file says of this machine, or the defaults."""
        return next((machine for machine in self.machines if machine.name == name), MachineConfig(name))

    def to_json(self) -> dict[str, Any]:
        return {
            "router": self.router.to_json(),
            "network": self.network.to_json(),
            "machines": [machine.to_json() for machine in self.machines],
            "models": [model.to_json() for model in self.models],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; checks nothing."""
        return cls(
            RouterConfig.from_json(data["router"]),
            NetworkConfig(**data["network"]),
            tuple(map(MachineConfig.from_json, data["machines"])),
            tuple(ModelSpec.from_json(model) for model in data["models"]),
        )


def load(path: Path, cache: Path | None = None, *, allow_script: bool = False) -> Config:
    """Read and check `path`, the model files that it names included. Raises ConfigError.

    Relative sources are looked for beside the file. `cache` is the folder in which the check of the bundled
    model is remembered. `allow_script`: whether models may have the test engine `script`.
    """
    document = _read(path)
    try:
        file = schema.FileSection.model_validate(document.data)
    except ValidationError as error:
        faults = (translate(document, dict(fault), schema.SECTIONS) for fault in error.errors())
        raise ConfigError(path, list(faults)) from error
    config = _records(file, path.absolute().parent)
    problems = [
        *_contradictions(config, document, allow_script),
        *_ports(config, document),
        *_patience(config, document),
        *_addresses(config, document),
        *_keys(config.router, document),
        *_files(config, document, cache),
    ]
    if problems:
        raise ConfigError(path, problems)
    return config


def line_of(path: Path, *keys: str) -> int:
    """The line on which these keys, one within the other, stand in this config; 0 where they do not."""
    return _read(path).lines.get(keys, 0)


def keys_file_of(path: Path) -> Path | None:
    """What router.keys_file says, whatever else is wrong with this config. Raises ConfigError."""
    router = _read(path).data.get("router")
    named = router.get("keys_file") if isinstance(router, dict) else None
    return Path(_absolute(named, path.absolute().parent)) if isinstance(named, str) else None


def _read(path: Path) -> Document:
    def refuse(message: str, remedy: str, line: int = 0, key: str = "") -> ConfigError:
        return ConfigError(path, [Problem(line, key, message, remedy)])

    try:
        document = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refuse(
            "there is no such file", "Give its path with --config, or copy configs/homeport.yaml"
        ) from None
    except UnicodeDecodeError:
        raise refuse("it is not UTF-8 text", "Save it as UTF-8") from None
    except OSError as error:
        raise refuse(f"it cannot be read: {error.strerror}", "Give the path of a readable file") from error
    except YamlError as error:
        raise refuse(error.message, error.remedy, error.line, key_text(error.loc)) from error
    if document.data is None:
        raise refuse("it is empty", "Copy configs/homeport.yaml and change it")
    if not isinstance(document.data, dict):
        raise refuse("it has no keys at its top", "Begin it with `models:`", 1)
    return document


def _records(file: schema.FileSection, folder: Path) -> Config:
    return Config(
        RouterConfig.of(
            file.router, None if file.router.keys_file is None else _absolute(file.router.keys_file, folder)
        ),
        NetworkConfig(
            file.network.control,
            *file.network.ports,
            file.network.private,
            file.network.lost_after,
            file.network.files,
            file.network.copy_rate,
            file.network.models_disk,
        ),
        tuple(
            MachineConfig(
                machine.name,
                machine.address,
                machine.zone,
                machine.reserve.cores,
                machine.reserve.memory,
                machine.yield_to,
                None if machine.wake is None else Wake(machine.wake.mac, machine.wake.command or ()),
            )
            for machine in file.machines
        ),
        tuple(_spec(model, folder, file.network.isolate) for model in file.models),
    )


def _spec(model: schema.ModelSection, folder: Path, isolate: bool) -> ModelSpec:
    source = model.source
    if source != BUNDLED and hub_source(source) is None:
        source = _absolute(source, folder)
    match model.machines:
        case {"zone": zone}:
            where: Where = ZoneOf(zone)
        case "all":
            where = "all"
        case names:
            where = tuple(names)
    return ModelSpec(
        name=model.name,
        engine=model.engine,
        source=source,
        machines=where,
        replicas="fill" if isinstance(model.replicas, str) else model.replicas,
        need=Need(model.needs.cores, model.needs.memory, model.needs.gpus),
        take=model.take,
        context=model.context,
        sessions=model.sessions,
        hold_s=model.hold,
        queue_s=model.queue,
        when_lost=model.when_lost,
        parking=ParkingSpec(model.parking.memory, model.parking.disk, model.parking.keep),
        unload_s=model.unload,
        options=tuple(sorted(_options(model.options, folder).items())),
        isolate=isolate,
    )


def _options(options: schema.OptionsSection, folder: Path) -> dict[str, OptionValue]:
    """Those that are given, their paths made absolute."""
    found: dict[str, OptionValue] = options.model_dump(exclude_none=True)
    if options.lora is not None:
        found["lora"] = tuple(_absolute(path, folder) for path in options.lora)
    if options.chat_template is not None:
        found["chat_template"] = _absolute(options.chat_template, folder)
    if options.python is not None:
        # As it is written: what a link in an environment leads to is another Python.
        found["python"] = str(folder / Path(options.python).expanduser())
    return found


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _contradictions(config: Config, document: Document, allow_script: bool) -> Iterator[Problem]:
    """What is wrong about values that are each right."""

    def problem(loc: Loc, message: str, remedy: str) -> Problem:
        return Problem(document.line(loc), key_text(loc), message, remedy)

    named = (("machines", [m.name for m in config.machines]), ("models", [m.name for m in config.models]))
    for section, names in named:
        for at, name in enumerate(names):
            if name in names[:at]:
                first = f"{section}[{names.index(name)}]"
                yield problem(
                    (section, at, "name"), f"{name} is also the name of {first}", "Rename one of them"
                )
    for at, model in enumerate(config.models):
        for finding in contradictions(model, allow_script):
            yield problem(("models", at, *finding.key), finding.message, finding.remedy)
        if model.hold_s >= model.queue_s:
            held, queue = _seconds_text(model.hold_s), _seconds_text(model.queue_s)
            loc: Loc = ("models", at, "hold")
            if loc not in document.lines:
                loc = ("models", at, "queue")
                yield problem(
                    loc, f"{queue} is not more than hold ({held})", "Make queue longer, or set a shorter hold"
                )
                continue
            yield problem(loc, f"{held} is not less than queue ({queue})", "Make hold shorter than queue")


def _ports(config: Config, document: Document) -> Iterator[Problem]:
    """One port for two things."""

    def problem(loc: Loc, message: str, remedy: str) -> Problem:
        return Problem(document.line(loc), key_text(loc), message, remedy)

    ports = range(config.network.first, config.network.last + 1)
    listen, control, files = config.router.port, config.network.control, config.network.files
    if listen == control:
        yield problem(("network", "control"), f"{control} is the router's port too", "Choose another port")
    if files in (listen, control):
        whose = "router" if files == listen else "controller"
        yield problem(("network", "files"), f"{files} is the {whose}'s port too", "Choose another port")
    single = (
        (("router", "listen"), listen),
        (("network", "control"), control),
        (("network", "files"), files),
    )
    for loc, port in single:
        if port in ports:
            message = f"port {port} lies among the hosts' ports ({ports[0]}-{ports[-1]})"
            yield problem(loc, message, "Choose a port outside network.ports")


def _patience(config: Config, document: Document) -> Iterator[Problem]:
    """A stream that may wait for longer than it may take."""
    first_s = config.router.limits.first_token_s
    for at, model in enumerate(config.models):
        if model.queue_s >= first_s:
            loc: Loc = ("router", "first_token")
            loc = loc if loc in document.lines else ("models", at, "queue")
            message = f"{model.name} may wait {_seconds_text(model.queue_s)} (queue), and its first token "
            message += f"may take {_seconds_text(first_s)} with that (router.first_token)"
            yield Problem(document.line(loc), key_text(loc), message, "Make first_token longer than queue")


def _addresses(config: Config, document: Document) -> Iterator[Problem]:
    """Two machines at one address."""
    addresses = [machine.address for machine in config.machines]
    for at, address in enumerate(addresses):
        if address is not None and address in addresses[:at]:
            loc: Loc = ("machines", at, "address")
            message = f"{address} is also the address of machines[{addresses.index(address)}]"
            yield Problem(document.line(loc), key_text(loc), message, "Give each machine its own")


def _keys(router: RouterConfig, document: Document) -> Iterator[Problem]:
    """Why nobody may be let in like this: without keys nothing listens off loopback, nor behind another name."""

    def problem(key: str, message: str, remedy: str) -> Problem:
        loc: Loc = ("router", key)
        return Problem(document.line(loc), key_text(loc), message, remedy)

    if router.keys_file is None:
        remedy = f"Set router.keys_file: keys.yaml. {MAKE_ONE}"
        if not ipaddress.ip_address(router.host).is_loopback:
            yield problem("listen", f"{router.host} needs keys", f"{remedy}; or use 127.0.0.1:{router.port}")
        if router.names:
            yield problem("names", "more names need keys", f"{remedy}; or remove it")
        return
    try:
        keys = read_keys(Path(router.keys_file))
    except ConfigError as error:
        for found in error.problems:
            where = f"{router.keys_file}:{found.line}" if found.line else router.keys_file
            at = f"{where}: {found.key}" if found.key else where
            yield problem("keys_file", f"{at}: {found.message}", found.remedy)
        return
    if not lets_anybody_in(keys):
        message = f"{router.keys_file} has no key that may use homeport (role use or admin)"
        yield problem("keys_file", message, MAKE_ONE)


def _files(config: Config, document: Document, cache: Path | None) -> Iterator[Problem]:
    """What is wrong with the files that models name."""
    for at, model in enumerate(config.models):
        checks: list[tuple[Loc, Callable[[], str]]] = [
            (("source",), partial(source_digest, model.source, cache, model.engine)),
            *((("options", key), partial(file_digest, key, path)) for key, path in option_files(model)),
        ]
        for key, check in checks:
            try:
                check()
            except SourceError as error:
                loc = ("models", at, *key)
                yield Problem(document.line(loc), key_text(loc), error.message, error.remedy)


def _seconds_text(seconds: float) -> str:
    return f"{seconds:g}s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:g}ms"

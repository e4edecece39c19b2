"""homeport.yaml read and checked into frozen records. A refusal names file, line, key and remedy, and all
there are.

Says what is wished, not whether it fits a machine (see `cluster.fit`), and starts nothing.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from cluster.fit import Where, ZoneOf
from cluster.machine import Hardware, Reserve, default_reserve
from cluster.slices import Need
from serving import config_schema as schema
from serving.config_schema import shown
from serving.model import ModelSpec, OptionValue, ParkingSpec
from serving.model_checks import contradictions
from serving.source import (
    BUNDLED,
    SourceError,
    bundled_model,
    file_digest,
    model_path,
    option_files,
    source_digest,
)
from serving.yaml_lines import Document, Loc, YamlError, read_yaml

__all__ = [
    "Config",
    "ConfigError",
    "MachineConfig",
    "NetworkConfig",
    "Problem",
    "RouterConfig",
    "SourceError",
    "bundled_model",
    "load",
    "model_path",
    "source_digest",
]

HINTS = {"threads": "The slice decides it: set needs.cores"}
MISSING = {
    "name": "Add it: what clients put in `model`",
    "source": "Add it: bundled, or the path of a GGUF file",
    "models": "Add a model; configs/homeport.yaml shows one",
}

WORDS = {
    "homeport": ("{problem}", "{remedy}"),
    "int_type": ("{value} is not a whole number", "Write it as digits, without quotes or unit"),
    "int_from_float": ("{value} is not a whole number", "Write it without a point"),
    "bool_type": ("{value} is not true or false", "Write true or false, without quotes"),
    "float_type": ("{value} is not a number", "Write it as digits, without quotes or unit"),
    "finite_number": ("{value} is not a number", "Write it as digits"),
    "string_type": ("{value} is not text", "Put it in quotes"),
    "list_type": ("is not a list", "Begin each entry with a dash: `- name: ...`"),
    "model_type": ("{value} has no keys in it", "Write `key: value` pairs below it"),
    "greater_than_equal": ("{value} is too small", "Use {ge} or more"),
    "greater_than": ("{value} is too small", "Use more than {gt}"),
    "less_than_equal": ("{value} is too large", "Use {le} or less"),
    "literal_error": ("{value} is not possible here", "Use {expected}"),
}
"""By pydantic's name of a finding: message and remedy."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the file."""

    line: int
    """From 1; 0 when it is about the whole file."""
    key: str
    """For example `models[0].hold`; "" when it is about the whole file."""
    message: str
    remedy: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{key}{self.message}. {self.remedy}{'' if self.remedy.endswith('?') else '.'}"


class ConfigError(Exception):
    """The file cannot be used. Its text has a line `FILE:LINE: KEY: MESSAGE. REMEDY.` for each problem."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.path = path
        self.problems = sorted(problems, key=lambda problem: problem.line)
        places = (f"{path}:{problem.line}" if problem.line else str(path) for problem in self.problems)
        super().__init__(
            "\n".join(f"{place}: {problem}" for place, problem in zip(places, self.problems, strict=True))
        )


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Where clients reach us: a loopback name or address, for now."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The controller's port, and the ports of hosts (`last` included)."""

    control: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What the file says of one machine. A machine that is not named has the defaults of this record."""

    name: str
    address: str | None = None
    zone: str = "default"
    reserve_cores: int | None = None
    reserve_memory_bytes: int | None = None

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
        }


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
            "router": {"host": self.router.host, "port": self.router.port},
            "network": {
                "control": self.network.control,
                "first": self.network.first,
                "last": self.network.last,
            },
            "machines": [machine.to_json() for machine in self.machines],
            "models": [model.to_json() for model in self.models],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; checks nothing."""
        return cls(
            RouterConfig(**data["router"]),
            NetworkConfig(**data["network"]),
            tuple(MachineConfig(**machine) for machine in data["machines"]),
            tuple(ModelSpec.from_json(model) for model in data["models"]),
        )


def load(path: Path, cache: Path | None = None) -> Config:
    """Read and check `path`, the model files that it names included. Raises ConfigError.

    Relative sources are looked for beside the file. `cache` is the folder in which the check of the bundled
    model is remembered.
    """
    document = _read(path)
    try:
        file = schema.FileSection.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(path, [_translate(document, dict(fault)) for fault in error.errors()]) from error
    config = _records(file, path.absolute().parent)
    problems = [*_contradictions(config, document), *_files(config, document, cache)]
    if problems:
        raise ConfigError(path, problems)
    return config


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
        raise refuse(error.message, error.remedy, error.line, _key(error.loc)) from error
    if document.data is None:
        raise refuse("it is empty", "Copy configs/homeport.yaml and change it")
    if not isinstance(document.data, dict):
        raise refuse("it has no keys at its top", "Begin it with `models:`", 1)
    return document


def _records(file: schema.FileSection, folder: Path) -> Config:
    host, port = file.router.listen
    return Config(
        RouterConfig(host, port),
        NetworkConfig(file.network.control, *file.network.ports),
        tuple(
            MachineConfig(
                machine.name, machine.address, machine.zone, machine.reserve.cores, machine.reserve.memory
            )
            for machine in file.machines
        ),
        tuple(_spec(model, folder) for model in file.models),
    )


def _spec(model: schema.ModelSection, folder: Path) -> ModelSpec:
    source = model.source
    if source != BUNDLED:
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
    )


def _options(options: schema.OptionsSection, folder: Path) -> dict[str, OptionValue]:
    """Those that are given, their paths made absolute."""
    found: dict[str, OptionValue] = options.model_dump(exclude_none=True)
    if options.lora is not None:
        found["lora"] = tuple(_absolute(path, folder) for path in options.lora)
    if options.chat_template is not None:
        found["chat_template"] = _absolute(options.chat_template, folder)
    return found


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _contradictions(config: Config, document: Document) -> Iterator[Problem]:
    """What is wrong about values that are each right."""

    def problem(loc: Loc, message: str, remedy: str) -> Problem:
        return Problem(document.line(loc), _key(loc), message, remedy)

    named = (("machines", [m.name for m in config.machines]), ("models", [m.name for m in config.models]))
    for section, names in named:
        for at, name in enumerate(names):
            if name in names[:at]:
                first = f"{section}[{names.index(name)}]"
                yield problem(
                    (section, at, "name"), f"{name} is also the name of {first}", "Rename one of them"
                )
    for at, model in enumerate(config.models):
        for finding in contradictions(model):
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
    ports = range(config.network.first, config.network.last + 1)
    listen, control = config.router.port, config.network.control
    if listen == control:
        yield problem(("network", "control"), f"{control} is the router's port too", "Choose another port")
    for loc, port in ((("router", "listen"), listen), (("network", "control"), control)):
        if port in ports:
            message = f"port {port} lies among the hosts' ports ({ports[0]}-{ports[-1]})"
            yield problem(loc, message, "Choose a port outside network.ports")


def _files(config: Config, document: Document, cache: Path | None) -> Iterator[Problem]:
    """What is wrong with the files that models name."""
    for at, model in enumerate(config.models):
        checks: list[tuple[Loc, Callable[[], str]]] = [
            (("source",), partial(source_digest, model.source, cache)),
            *((("options", key), partial(file_digest, key, path)) for key, path in option_files(model)),
        ]
        for key, check in checks:
            try:
                check()
            except SourceError as error:
                loc = ("models", at, *key)
                yield Problem(document.line(loc), _key(loc), error.message, error.remedy)


def _translate(document: Document, fault: dict[str, Any]) -> Problem:
    """pydantic's finding in our words."""
    loc: Loc = fault["loc"]
    last = str(loc[-1]) if loc else ""
    words: Mapping[str, Any] = {**fault.get("ctx", {}), "value": shown(fault["input"])}
    kind = fault["type"]
    if kind == "extra_forbidden":
        message, remedy = "unknown key", _suggestion(loc)
    elif kind in ("missing", "too_short"):
        message = "is missing" if kind == "missing" else "is empty"
        remedy = MISSING.get(last, "Add it")
    elif kind != "homeport" and fault["input"] is None:
        message, remedy = "has no value", "Give it one, or remove the key"
    else:
        message, remedy = WORDS.get(kind, ("{value}: " + fault["msg"].replace("{", "{{"), "Correct it"))
    return Problem(document.line(loc), _key(loc), message.format_map(words), remedy.format_map(words))


def _suggestion(loc: Loc) -> str:
    way = tuple(part for part in loc[:-1] if isinstance(part, str))
    unknown = str(loc[-1])
    known = schema.known_keys(schema.SECTIONS[way])
    if close := difflib.get_close_matches(unknown, known, n=1, cutoff=0.6):
        return f"Did you mean {close[0]}?"
    if unknown in HINTS:
        return HINTS[unknown]
    # A section below the one where it stands is more likely meant than one elsewhere.
    for other, section in sorted(schema.SECTIONS.items(), key=lambda entry: entry[0][: len(way)] != way):
        if unknown in schema.known_keys(section):
            return f"It belongs below {'.'.join(other)}" if other else "It belongs at the top of the file"
    return f"Known here: {', '.join(known)}"


def _key(loc: Loc) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _seconds_text(seconds: float) -> str:
    return f"{seconds:g}s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:g}ms"

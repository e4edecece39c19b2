"""The shape of homeport.yaml: every key, its type and its default, for pydantic.

Checks one value at a time; what values mean together is checked by `config`. Values of the design that do nothing yet
are known here and refused, so that nobody relies on them.
"""

import ipaddress
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from cluster.gpu_parts import PARTS
from serving.config_router import IdentitySection, RouterSection
from serving.model import EngineName
from serving.model_files import FORM, NoSource, hub_source
from serving.schema_values import (
    Section,
    bytes_value,
    command_value,
    distinct,
    fault,
    file_value,
    mac_value,
    one_way_to_wake,
    seconds_value,
    shown,
    within,
)
from serving.standing import LOST_AFTER_S

RATE_MIN = 64 * 2**10
NOT_YET = "does not work yet in this version"


def _rate(value: object) -> int:
    """Bytes a second."""
    rate = bytes_value(value)
    if rate < RATE_MIN:
        raise fault(f"{shown(value)} a second is too slow", "Use 64KiB or more, or remove it")
    return rate


def _address(value: object) -> str | None:
    """Of a machine, as others reach it. Hosts' addresses go into URLs as they are, so no IPv6 yet."""
    try:
        address = ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None or address.is_unspecified or address.is_multicast or address.is_loopback:
        raise fault(
            f"{shown(value)} is not a machine's IP address",
            "Write the one under which the others reach it, for example 192.168.1.10",
        )
    if address.version == 6:
        raise fault(f"an IPv6 address {NOT_YET}", "Write the machine's IPv4 address")
    return str(address)


def _programs(value: object) -> tuple[str, ...]:
    names: list[Any] = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^/\x00-\x1f]{1,100}", name):
            raise fault(
                f"{shown(name)} is not the name of a program",
                "Write it as `ps -e` shows it, for example steam",
            )
    return distinct(tuple(names), "a program is there twice")


def _ports(value: object) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5}) ?- ?(\d{1,5})", value) if isinstance(value, str) else None
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= 65535:
        raise fault(f"{shown(value)} is not a range of ports", "Write for example 8100-8199")
    return int(match[1]), int(match[2])


def _where(value: object) -> str | tuple[str, ...] | dict[str, str]:
    remedy = "Write all, a list of machine names, or {zone: NAME}"
    if isinstance(value, str):
        return value if value == "all" else (value,)
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        if len(set(value)) != len(value):
            raise fault("a machine is named twice", "Name each machine once")
        return tuple(value)
    if isinstance(value, dict) and value.keys() == {"zone"} and isinstance(value["zone"], str):
        return value
    raise fault(f"{shown(value)} says no machines", remedy)


def _replicas(value: object) -> int | str:
    if value == "fill" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise fault(f"{shown(value)} is not a number of replicas", "Write 1 or more, or fill for as many as fit")


def _unload(value: object) -> float | None:
    if value == "never":
        return None
    seconds = seconds_value(value)
    if seconds <= 0:
        raise fault(f"{shown(value)} would never let it load", "Write for example 30m, or never")
    return seconds


def _gpus(value: object) -> float:
    """Whole GPUs, or a share of one."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        if float(value).is_integer():
            return int(value)
        if value < 1 and math.isclose(value * PARTS, parts := round(value * PARTS)) and 0 < parts < PARTS:
            return parts / PARTS
    raise fault(
        f"{shown(value)} is neither a number of GPUs nor a share of one",
        f"Write 0, 1, 2, …, or for a part of one GPU's memory a multiple of {1 / PARTS:g} below 1, for example 0.5",
    )


def _shares(value: object) -> tuple[float, ...]:
    shares = value if isinstance(value, list) else []
    right = [
        n for n in shares if isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < math.inf
    ]
    if not shares or len(right) != len(shares):
        raise fault(
            f"{shown(value)} is not a list of shares", "Write a number for each GPU, for example [3, 1]"
        )
    if not sum(right):
        raise fault("no GPU would get a part", "Make one of the shares more than 0")
    return tuple(map(float, right))


def _files(value: object) -> tuple[str, ...]:
    files = tuple(map(file_value, value if isinstance(value, list) and value else [value]))
    if len(set(files)) != len(files):
        raise fault("a file is named twice", "Name each file once")
    return files


def _share_prefix(value: object) -> str:
    if value in ("key", "off") or value is False:  # YAML reads `off` as false
        return "off" if value is False else str(value)
    raise fault(f"{shown(value)} is not possible here", "Use key or off")


def _source(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise fault(f"{shown(value)} is not a source", f"Write bundled, a path, or {FORM}")
    try:
        hub_source(value)
    except NoSource as error:
        raise fault(error.message, error.remedy) from None
    return value


def _name(pattern: str, allowed: str) -> BeforeValidator:
    def check(value: object) -> str:
        if not isinstance(value, str):
            quotes = " Put it in quotes." if isinstance(value, bool | int | float) else ""
            raise fault(f"{shown(value)} is not a name", f"A name is text.{quotes}".rstrip("."))
        if not re.fullmatch(pattern, value):
            raise fault(f"{shown(value)} cannot be a name", f"Use {allowed}")
        return value

    return BeforeValidator(check)


Bytes = Annotated[int, BeforeValidator(bytes_value)]
Seconds = Annotated[float, BeforeValidator(seconds_value)]
ModelName = Annotated[
    str, _name(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,99}", "letters, digits and . _ - : / +, at most 100")
]
MachineName = Annotated[
    str, _name(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "letters, digits and . _ -, at most 63")
]


class NetworkSection(Section):
    control: Annotated[int, Field(ge=1, le=65535)] = 8090
    ports: Annotated[tuple[int, int], BeforeValidator(_ports)] = (8100, 8199)
    private: bool = False
    isolate: bool = True
    lost_after: Annotated[float, within(5.0, 600.0, "Use 5s to 10m; 30s suits most networks")] = LOST_AFTER_S
    files: Annotated[int, Field(ge=1, le=65535)] = 8091
    copy_rate: Annotated[int | None, BeforeValidator(_rate)] = None
    models_disk: Bytes | None = None


class ReserveSection(Section):
    cores: Annotated[int, Field(ge=0)] | None = None
    memory: Bytes | None = None


class WakeSection(Section):
    """How a machine is woken: one of the two."""

    mac: Annotated[str | None, BeforeValidator(mac_value)] = None
    command: Annotated[tuple[str, ...] | None, BeforeValidator(command_value)] = None


class MachineSection(Section):
    name: MachineName
    address: Annotated[str | None, BeforeValidator(_address)] = None
    zone: MachineName = "default"
    reserve: ReserveSection = ReserveSection()
    yield_to: Annotated[tuple[str, ...], BeforeValidator(_programs)] = ()
    wake: Annotated[WakeSection | None, BeforeValidator(one_way_to_wake)] = None


class NeedsSection(Section):
    cores: Annotated[int, Field(ge=1)] = 1
    memory: Bytes = 2**30
    gpus: Annotated[float, PlainValidator(_gpus)] = 0


class ParkingSection(Section):
    """Room for the contexts of sessions that gave way, in each replica."""

    memory: Bytes = 2**30
    disk: Bytes = 8 * 2**30
    keep: Annotated[float, BeforeValidator(seconds_value), Field(gt=0)] = 30 * 86400.0


class OptionsSection(Section):
    """The allow-list of both engines; which key is whose says serving/model_checks.py. Threads are not in it: the slice
    decides them."""

    batch: Annotated[int, Field(ge=1, le=8192)] | None = None
    prompt_chunk: Annotated[int, Field(ge=1, le=8192)] | None = None
    flash_attention: bool | None = None
    kv_type: Literal["f16", "q8_0", "q4_0"] | None = None
    mlock: bool | None = None
    gpu_layers: Annotated[int, Field(ge=0)] | None = None
    main_gpu: Annotated[int, Field(ge=0)] | None = None
    tensor_split: Annotated[tuple[float, ...] | None, BeforeValidator(_shares)] = None
    lora: Annotated[tuple[str, ...] | None, BeforeValidator(_files)] = None
    chat_template: Annotated[str | None, BeforeValidator(file_value)] = None
    exact: bool | None = None
    share_prefix: Annotated[str | None, BeforeValidator(_share_prefix)] = None
    python: Annotated[str | None, BeforeValidator(file_value)] = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    compile: bool | None = None
    kv_memory: Bytes | None = None
    temperature: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=5)] | None = None


class ModelSection(Section):
    name: ModelName
    engine: EngineName = "llama.cpp"
    source: Annotated[str, BeforeValidator(_source)]
    machines: Annotated[str | tuple[str, ...] | dict[str, str], BeforeValidator(_where)] = "all"
    replicas: Annotated[int | str, BeforeValidator(_replicas)] = 1
    needs: NeedsSection = NeedsSection()
    take: Literal["needs", "rest"] = "needs"
    context: Annotated[int, Field(ge=128, le=16_777_216)] = 8192
    sessions: Annotated[int, Field(ge=1, le=256)] = 1
    hold: Seconds = 10.0
    queue: Seconds = 60.0
    unload: Annotated[float | None, BeforeValidator(_unload)] = None
    parking: ParkingSection = ParkingSection()
    when_lost: Literal["wait", "move", "fail"] = "wait"
    options: OptionsSection = OptionsSection()


class FileSection(Section):
    """The whole file."""

    router: RouterSection = RouterSection()
    network: NetworkSection = NetworkSection()
    machines: list[MachineSection] = Field(default_factory=list)
    models: Annotated[list[ModelSection], Field(min_length=1)]


SECTIONS: Mapping[tuple[str, ...], type[Section]] = {
    (): FileSection,
    ("router",): RouterSection,
    ("router", "identity"): IdentitySection,
    ("network",): NetworkSection,
    ("machines",): MachineSection,
    ("machines", "reserve"): ReserveSection,
    ("machines", "wake"): WakeSection,
    ("models",): ModelSection,
    ("models", "needs"): NeedsSection,
    ("models", "parking"): ParkingSection,
    ("models", "options"): OptionsSection,
}
"""By the keys that lead there, list positions left out."""

"""The shape of homeport.yaml: every key, its type and its default, for pydantic.

Checks one value at a time; what values mean together is checked by `config`. Values of the design that do nothing yet
are known here and refused, so that nobody relies on them.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serving.model_files import FORM, NoSource, hub_source
from serving.router_limits import BODY_BYTES_MAX, USUAL
from serving.schema_values import (
    command_value,
    distinct,
    fault,
    mac_value,
    one_way_to_wake,
    origins_value,
    shown,
)
from serving.standing import LOST_AFTER_S

BYTES = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
RATE_MIN = 64 * 2**10
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
NO_SESSIONS = frozenset(
    {
        *(
            "accept",
            "authorization",
            "content-encoding",
            "content-length",
            "content-type",
            "cookie",
            "expect",
        ),
        *("host", "origin", "traceparent", "tracestate", "user-agent", "x-api-key", "x-homeport-when-lost"),
        *("x-homeport-zone", "x-request-id"),
    }
)
SESSION_FIELDS = ("user", "safety_identifier")
"""For most clients these are a person, not a conversation: they name sessions only where the config says so."""
NOT_YET = "does not work yet in this version"


def _bytes(value: object) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", value) if isinstance(value, str) else None
    if not match or match[2] not in BYTES:
        raise fault(
            f"{shown(value)} is not a size", "Write a number and a unit, for example 512MiB or 1.5GiB"
        )
    return int(float(match[1]) * BYTES[match[2]])


def _rate(value: object) -> int:
    """Bytes a second."""
    rate = _bytes(value)
    if rate < RATE_MIN:
        raise fault(f"{shown(value)} a second is too slow", "Use 64KiB or more, or remove it")
    return rate


def _seconds(value: object) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", value) if isinstance(value, str) else None
    if not match or match[2] not in SECONDS:
        raise fault(f"{shown(value)} is not a duration", "Write a number and a unit, for example 10s or 5m")
    return float(match[1]) * SECONDS[match[2]]


def _within(least_s: float, most_s: float, remedy: str) -> BeforeValidator:
    """A duration between these two, in seconds."""

    def check(value: object) -> float:
        seconds = _seconds(value)
        if not least_s <= seconds <= most_s:
            raise fault(f"{shown(value)} is too short or too long", remedy)
        return seconds

    return BeforeValidator(check)


def _max_body(value: object) -> int:
    size = _bytes(value)
    if not 2**10 <= size <= BODY_BYTES_MAX:
        raise fault(f"{shown(value)} is too little or too much", "Use 1KiB to 1GiB; 32MiB suits most clients")
    return size


def _listen(value: object) -> tuple[str, int]:
    match = (
        re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\[\]\s]+):(\d{1,5})", value) if isinstance(value, str) else None
    )
    if not match or not 1 <= int(match[2]) <= 65535:
        raise fault(f"{shown(value)} is not an address and a port", "Write for example 127.0.0.1:8000")
    host = match[1].strip("[]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        remedy = f"Use 127.0.0.1:{match[2]} for this machine alone, or 0.0.0.0:{match[2]} for others too"
        raise fault(f"{host} is not an IP address", remedy) from None
    return str(address), int(match[2])


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


def _host_names(value: object) -> tuple[str, ...]:
    names: list[Any] = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(
            r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", name
        ):
            raise fault(
                f"{shown(name)} is not a host name",
                "Write it without scheme and port, for example ai.home.lan",
            )
    return distinct(tuple(name.lower() for name in names), "a name is there twice")


def _session_headers(value: object) -> tuple[str, ...]:
    names: list[Any] = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
            raise fault(f"{shown(name)} is not a header's name", "Write for example x-my-chat-id")
        if name.lower() in NO_SESSIONS:
            raise fault(
                f"{name} does not name a session",
                "Use a header that differs from conversation to conversation",
            )
    return distinct(tuple(name.lower() for name in names), "a header is there twice")


def _session_fields(value: object) -> tuple[str, ...]:
    names: list[Any] = value if isinstance(value, list) else [value]
    for name in names:
        if name not in SESSION_FIELDS:
            known = " or ".join(SESSION_FIELDS)
            raise fault(f"{shown(name)} is not possible here", f"Use {known}; other fields are known anyway")
    return distinct(tuple(names), "a field is there twice")


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
    seconds = _seconds(value)
    if seconds <= 0:
        raise fault(f"{shown(value)} would never let it load", "Write for example 30m, or never")
    return seconds


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


def _file(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise fault(f"{shown(value)} is not a path", "Write the path of a file")
    return value


def _files(value: object) -> tuple[str, ...]:
    files = tuple(map(_file, value if isinstance(value, list) and value else [value]))
    if len(set(files)) != len(files):
        raise fault("a file is named twice", "Name each file once")
    return files


def _share_prefix(value: object) -> str:
    if value in ("key", "off") or value is False:  # YAML reads `off` as false
        return "off" if value is False else str(value)
    raise fault(f"{shown(value)} is not possible here", "Use key or off")


def _source(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise fault(f"{shown(value)} is not a source", f"Write bundled, the path of a GGUF file, or {FORM}")
    try:
        hub_source(value)
    except NoSource as error:
        raise fault(error.message, error.remedy) from None
    return value


def only(working: object, *others: str) -> Callable[[object], object]:
    """Accepts `working`; refuses `others` as not working yet, and anything else as unknown."""

    def check(value: object) -> object:
        if value == working and type(value) is type(working):
            return value
        if isinstance(value, str) and others and value not in others:
            known = ", ".join((shown(working), *others))
            raise fault(f"{shown(value)} is not one of {known}", f"Use {shown(working)}")
        raise fault(f"{shown(value)} {NOT_YET}", f"Remove it, or use {shown(working)}")

    return check


def _name(pattern: str, allowed: str) -> BeforeValidator:
    def check(value: object) -> str:
        if not isinstance(value, str):
            quotes = " Put it in quotes." if isinstance(value, bool | int | float) else ""
            raise fault(f"{shown(value)} is not a name", f"A name is text.{quotes}".rstrip("."))
        if not re.fullmatch(pattern, value):
            raise fault(f"{shown(value)} cannot be a name", f"Use {allowed}")
        return value

    return BeforeValidator(check)


Bytes = Annotated[int, BeforeValidator(_bytes)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
ModelName = Annotated[
    str, _name(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,99}", "letters, digits and . _ - : / +, at most 100")
]
MachineName = Annotated[
    str, _name(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "letters, digits and . _ -, at most 63")
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class IdentitySection(Section):
    """What names sessions beside what always does."""

    headers: Annotated[tuple[str, ...], BeforeValidator(_session_headers)] = ()
    fields: Annotated[tuple[str, ...], BeforeValidator(_session_fields)] = ()


class RouterSection(Section):
    listen: Annotated[tuple[str, int], BeforeValidator(_listen)] = ("127.0.0.1", 8000)
    keys_file: Annotated[str | None, BeforeValidator(_file)] = None
    names: Annotated[tuple[str, ...], BeforeValidator(_host_names)] = ()
    identity: IdentitySection = IdentitySection()
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    drain: Annotated[float, _within(0.0, 3600.0, "Use 0s to 1h; 30s lets most answers end")] = USUAL.drain_s
    slow_client: Annotated[float, _within(1.0, 86400.0, "Use 1s to 1d")] = USUAL.slow_client_s
    first_token: Annotated[float, _within(1.0, 86400.0, "Use 1s to 1d")] = USUAL.first_token_s
    between_bytes: Annotated[
        float, _within(15.0, 86400.0, "Use 15s to 1d: a host says every 10s that it lives")
    ] = USUAL.between_bytes_s
    max_body: Annotated[int, BeforeValidator(_max_body)] = USUAL.max_body_bytes
    cors: Annotated[tuple[str, ...], BeforeValidator(origins_value)] = ()


class NetworkSection(Section):
    control: Annotated[int, Field(ge=1, le=65535)] = 8090
    ports: Annotated[tuple[int, int], BeforeValidator(_ports)] = (8100, 8199)
    private: bool = False
    isolate: bool = True
    lost_after: Annotated[float, _within(5.0, 600.0, "Use 5s to 10m; 30s suits most networks")] = LOST_AFTER_S
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
    gpus: Annotated[int, Field(ge=0)] = 0


class ParkingSection(Section):
    """Room for the contexts of sessions that gave way, in each replica."""

    memory: Bytes = 2**30
    disk: Bytes = 8 * 2**30
    keep: Annotated[float, BeforeValidator(_seconds), Field(gt=0)] = 30 * 86400.0


class OptionsSection(Section):
    """The allow-list of llama.cpp. Threads are not in it: the slice decides them."""

    batch: Annotated[int, Field(ge=1, le=8192)] | None = None
    prompt_chunk: Annotated[int, Field(ge=1, le=8192)] | None = None
    flash_attention: bool | None = None
    kv_type: Literal["f16", "q8_0", "q4_0"] | None = None
    mlock: bool | None = None
    gpu_layers: Annotated[int, Field(ge=0)] | None = None
    tensor_split: Annotated[tuple[float, ...] | None, BeforeValidator(_shares)] = None
    lora: Annotated[tuple[str, ...] | None, BeforeValidator(_files)] = None
    chat_template: Annotated[str | None, BeforeValidator(_file)] = None
    exact: bool | None = None
    share_prefix: Annotated[str | None, BeforeValidator(_share_prefix)] = None
    temperature: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=5)] | None = None


class ModelSection(Section):
    name: ModelName
    engine: Annotated[Literal["llama.cpp"], BeforeValidator(only("llama.cpp", "vllm"))] = "llama.cpp"
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
    machines: list[MachineSection] = []
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


def known_keys(section: type[Section]) -> list[str]:
    """The keys of a section that may be written, in the order of the design."""
    return list(section.model_fields)

"""The section `router` of homeport.yaml: its keys with types and defaults for pydantic, and the record that it becomes.

What its values mean together with others is checked by `config`, what keys its file has by `config_keys`.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field

from serving.router_limits import BODY_BYTES_MAX, KEYS, USUAL, RouterLimits
from serving.schema_values import (
    Section,
    bytes_value,
    distinct,
    fault,
    file_value,
    origins_value,
    shown,
    within,
)

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


def _max_body(value: object) -> int:
    size = bytes_value(value)
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


class IdentitySection(Section):
    """What names sessions beside what always does."""

    headers: Annotated[tuple[str, ...], BeforeValidator(_session_headers)] = ()
    fields: Annotated[tuple[str, ...], BeforeValidator(_session_fields)] = ()


class RouterSection(Section):
    listen: Annotated[tuple[str, int], BeforeValidator(_listen)] = ("127.0.0.1", 8000)
    keys_file: Annotated[str | None, BeforeValidator(file_value)] = None
    names: Annotated[tuple[str, ...], BeforeValidator(_host_names)] = ()
    identity: IdentitySection = IdentitySection()
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    drain: Annotated[float, within(0.0, 3600.0, "Use 0s to 1h; 30s lets most answers end")] = USUAL.drain_s
    slow_client: Annotated[float, within(1.0, 86400.0, "Use 1s to 1d")] = USUAL.slow_client_s
    first_token: Annotated[float, within(1.0, 86400.0, "Use 1s to 1d")] = USUAL.first_token_s
    between_bytes: Annotated[
        float, within(15.0, 86400.0, "Use 15s to 1d: a host says every 10s that it lives")
    ] = USUAL.between_bytes_s
    max_body: Annotated[int, BeforeValidator(_max_body)] = USUAL.max_body_bytes
    cors: Annotated[tuple[str, ...], BeforeValidator(origins_value)] = ()
    keep_responses: bool = True
    list_machines: bool = False


@dataclass(frozen=True, slots=True)
class IdentityConfig:
    """What else names a session: headers (lower-case) and fields of the body, in order."""

    headers: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Where clients reach us, who may, what names their sessions beside what always does, and for how long and how
    much we are patient with them."""

    host: str
    """An IP address."""
    port: int
    keys_file: str | None = None
    """An absolute path; None: everybody may, and `host` is loopback."""
    names: tuple[str, ...] = ()
    """What clients may call this machine beside its own name, lower-case."""
    identity: IdentityConfig = IdentityConfig()
    limits: RouterLimits = USUAL
    cors: tuple[str, ...] = ()
    """Origins of other sites whose pages may use us, lower-case; `*`: all."""
    workers: int = 1
    """How many processes share its port."""
    keep_responses: bool = True
    """Whether what is said in Responses stays at its home, to be gone on from by id."""
    list_machines: bool = False
    """Whether MODEL@MACHINE stands in lists of models."""

    @property
    def url(self) -> str:
        """What programs on this machine call."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "port": self.port,
            "keys_file": self.keys_file,
            "names": list(self.names),
            "identity": {
                "headers": list(self.identity.headers),
                "fields": list(self.identity.fields),
            },
            "limits": asdict(self.limits),
            "cors": list(self.cors),
            "workers": self.workers,
            "keep_responses": self.keep_responses,
            "list_machines": self.list_machines,
        }

    @classmethod
    def of(cls, section: RouterSection, keys_file: str | None) -> Self:
        """What the section says, with the absolute path of its file of keys."""
        return cls(
            *section.listen,
            keys_file=keys_file,
            names=section.names,
            identity=IdentityConfig(section.identity.headers, section.identity.fields),
            limits=RouterLimits(**{field: getattr(section, key) for field, key in KEYS.items()}),
            cors=section.cors,
            workers=section.workers,
            keep_responses=section.keep_responses,
            list_machines=section.list_machines,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        identity = data.get("identity", {})
        return cls(
            data["host"],
            data["port"],
            data.get("keys_file"),
            tuple(data.get("names", ())),
            IdentityConfig(tuple(identity.get("headers", ())), tuple(identity.get("fields", ()))),
            RouterLimits(**data.get("limits", {})),
            tuple(data.get("cors", ())),
            data.get("workers", 1),
            data.get("keep_responses", True),
            data.get("list_machines", False),
        )

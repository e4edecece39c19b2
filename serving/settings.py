"""What the config may change of a replica while it runs. Pure.

Everything else of a model needs a restart, or is read by the router alone.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from serving.model import ModelSpec, ParkingSpec
from serving.request_fields import BadRequest, missing, wrong_type


@dataclass(frozen=True, slots=True)
class Settings:
    """As ModelSpec has them."""

    hold_s: float
    queue_s: float
    parking: ParkingSpec
    unload_s: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def settings_of(model: ModelSpec) -> Settings:
    return Settings(model.hold_s, model.queue_s, model.parking, model.unload_s)


def read_settings(body: object) -> Settings:
    """The inverse of `to_json`; all of them must be there. Raises BadRequest."""
    told = _object(body, None, {field.name for field in fields(Settings)})
    parking = _object(told["parking"], "parking", {field.name for field in fields(ParkingSpec)})
    spec = ParkingSpec(
        int(_number("parking.memory_bytes", parking["memory_bytes"])),
        int(_number("parking.disk_bytes", parking["disk_bytes"])),
        _number("parking.keep_s", parking["keep_s"]),
    )
    unload_s = None if told["unload_s"] is None else _number("unload_s", told["unload_s"])
    read = Settings(_number("hold_s", told["hold_s"]), _number("queue_s", told["queue_s"]), spec, unload_s)
    if read.hold_s >= read.queue_s:
        raise BadRequest("'hold_s' must be less than 'queue_s'", "hold_s")
    return read


def _object(value: object, name: str | None, names: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong_type(name or "settings", "an object")
    for field in sorted(names ^ set(value)):
        full = f"{name}.{field}" if name else field
        if field in names:
            raise missing(full)
        raise BadRequest(f"unknown setting '{full}'; remove it", full, "unknown_parameter")
    return value


def _number(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise wrong_type(name, "a number of at least 0")
    return float(value)

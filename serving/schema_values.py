"""Of what the config's sections are made: values that several have, origins of pages, how a machine is woken, and
refusals in our words. config_schema.py has the keys, config_router.py those of the router."""

import re
import shlex

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

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
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
USUAL_PORTS = {"http": "80", "https": "443"}
"""Browsers leave them out of an origin."""


def fault(problem: str, remedy: str) -> PydanticCustomError:
    """A refusal in our words; `config` prints both parts."""
    return PydanticCustomError("homeport", "{problem}", {"problem": problem, "remedy": remedy})


def shown(value: object) -> str:
    """A value of the file for a message: as in YAML, shortened."""
    words = {None: "nothing", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def distinct(names: tuple[str, ...], problem: str) -> tuple[str, ...]:
    """`names`, or a refusal that begins with `problem`."""
    if len(set(names)) != len(names):
        raise fault(problem, "Name each once")
    return names


def origins_value(value: object) -> tuple[str, ...]:
    """As browsers write them: in lower case, without the port that is its scheme's anyway."""
    origins = value if isinstance(value, list) else [value]
    return distinct(tuple(map(_origin, origins)), "an origin is there twice")


def _origin(value: object) -> str:
    if value == "*":
        return "*"
    text = value.lower() if isinstance(value, str) else ""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/?#@:\s\[\]*]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?", text)
    if not match or not text.isascii():
        raise fault(
            f"{shown(value)} is not a site's origin",
            'Write scheme, host and port as a browser does, for example https://chat.example.com, or "*" for any site',
        )
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" if port in (None, USUAL_PORTS.get(scheme)) else f"{scheme}://{host}:{port}"


def mac_value(value: object) -> str:
    text = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text) or text == "00:00:00:00:00:00":
        hint = " in quotes" if not isinstance(value, str) else ""
        raise fault(
            f"{shown(value)} is not the address of a network card",
            f'Write it{hint} as `ip link` shows it there, for example "3c:ec:ef:01:23:45"',
        )
    if int(text[:2], 16) & 1:
        raise fault(f"{text} is the address of a group", "Write that of the machine's own network card")
    return text


def command_value(value: object) -> tuple[str, ...]:
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError:
        raise fault(f"{shown(value)} has a quote without its end", "Close it, or write a list") from None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise fault(
            f"{shown(value)} is not a command",
            "Write its program and its arguments: etherwake aa:bb:cc:dd:ee:ff, or a list; no shell reads it",
        )
    if not words[0]:
        raise fault("the command's program is empty", "Write its program first")
    return tuple(words)


def one_way_to_wake(value: object) -> object:
    """Neither a machine that nobody can wake, nor one that could be woken in two ways."""
    if isinstance(value, dict) and value.keys() <= {"mac", "command"} and len(value) != 1:
        what = "both mac and command" if value else "neither mac nor command"
        raise fault(f"it has {what}", "Write one of the two")
    return value


def bytes_value(value: object) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", value) if isinstance(value, str) else None
    if not match or match[2] not in BYTES:
        raise fault(
            f"{shown(value)} is not a size", "Write a number and a unit, for example 512MiB or 1.5GiB"
        )
    return int(float(match[1]) * BYTES[match[2]])


def seconds_value(value: object) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", value) if isinstance(value, str) else None
    if not match or match[2] not in SECONDS:
        raise fault(f"{shown(value)} is not a duration", "Write a number and a unit, for example 10s or 5m")
    return float(match[1]) * SECONDS[match[2]]


def within(least_s: float, most_s: float, remedy: str) -> BeforeValidator:
    """A duration between these two, in seconds."""

    def check(value: object) -> float:
        seconds = seconds_value(value)
        if not least_s <= seconds <= most_s:
            raise fault(f"{shown(value)} is too short or too long", remedy)
        return seconds

    return BeforeValidator(check)


def file_value(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise fault(f"{shown(value)} is not a path", "Write the path of a file")
    return value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def known_keys(section: type[Section]) -> list[str]:
    """The keys of a section that may be written, in the order of the design."""
    return list(section.model_fields)

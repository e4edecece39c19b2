"""What client programs sent, request by request, as files: `captures/NAME.json`. Made by capture.py, played again by
tests/test_replays.py. A field that is as in an earlier request stands there only; `as_in` has that one's number."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.recorder import Exchange

FOLDER = Path(__file__).parent / "captures"
KEEP = "HOMEPORT_CAPTURES"
"""If it is set, the test of Open WebUI writes its capture too."""
SOME_URL = "http://127.0.0.1:8000"
LONG = 160
_WORD = re.compile(r"(?!title\b)[A-Za-z]{3,}", re.IGNORECASE)
_CHANGES = re.compile(r"x-anthropic-billing-header|[Dd]ate|note\.txt|/home/me")
LEFT_OUT = {"accept-encoding", "authorization", "connection", "content-length", "host", "x-api-key"}
"""Headers that a replay makes itself, and secrets."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request of a client."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def write(name: str, version: str, exchanges: Iterable[Exchange], hidden: Mapping[str, str]) -> None:
    """Keep these requests. `hidden`: texts of this machine, and what stands in their place."""
    kept: list[dict[str, Any]] = []
    bodies: list[dict[str, Any]] = []
    for exchange in exchanges:
        headers = {name: value for name, value in exchange.headers.items() if name not in LEFT_OUT}
        body = exchange.body
        same = {
            key: number
            for key, value in body.items()
            for number, before in reversed(list(enumerate(bodies)))
            if key in before and before[key] == value
        }
        new = {key: value for key, value in body.items() if key not in same}
        kept.append({"path": exchange.path, "headers": headers, "body": new, "as_in": same})
        bodies.append(body)
    told = {"version": version, "requests": disguised(kept)}
    text = json.dumps(told, indent=1, ensure_ascii=False)
    for shown, instead in hidden.items():
        text = text.replace(shown, instead)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(text + "\n")


def disguised(told: Any) -> Any:
    """The same with other words in its long texts, which are their authors': as many, as long, and the same one for
    the same. Lines that change from call to call stay as they are, and so does the word that tells of a title."""
    match told:
        case dict():
            return {key: disguised(value) for key, value in told.items()}
        case list():
            return [disguised(value) for value in told]
        case str() if len(told) > LONG:
            return "".join(
                line if _CHANGES.search(line) else _WORD.sub(_another, line) for line in told.splitlines(True)
            )
    return told


def _another(word: re.Match[str]) -> str:
    digits = hashlib.sha256(word[0].lower().encode()).hexdigest() * (len(word[0]) // 64 + 1)
    made = (chr(ord("a") + int(digit, 16)) for digit in digits)
    return "".join(new.upper() if old.isupper() else new for old, new in zip(word[0], made, strict=False))


def read(name: str) -> list[Sent]:
    """In the order in which they were sent."""
    found: list[Sent] = []
    for request in json.loads((FOLDER / f"{name}.json").read_text())["requests"]:
        same = {key: found[number].body[key] for key, number in request["as_in"].items()}
        found.append(Sent(request["path"], request["headers"], request["body"] | same))
    return found


def version(name: str) -> str:
    return str(json.loads((FOLDER / f"{name}.json").read_text())["version"])

"""The names of a model's files: a source on Hugging Face, and the parts of a GGUF in several parts. Pure.

Fetches nothing and knows no folder: where they lie says serving/source.py.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HUB = "hf:"
FORM = "hf:OWNER/REPO:FILE, for example hf:unsloth/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf"
PARTS_MAX = 200
NAME_MAX = 300

_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REVISION = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?"
_SEGMENT = r"[A-Za-z0-9_](?:[A-Za-z0-9._+=,() -]*[A-Za-z0-9_)])?"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class NoSource(ValueError):
    """This names no file that can be served. `message` says what is wrong, `remedy` what to write."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}. {remedy}")
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class HubSource:
    """`hf:OWNER/REPO:FILE`, or `hf:OWNER/REPO@REVISION:FILE`."""

    repo: str
    """OWNER/REPO."""
    file: str
    """The first part, where there are several. A path inside the repository."""
    revision: str | None = None
    """A branch, a tag or a commit; None: what the repository's main branch has when it is fetched first."""

    @property
    def folder(self) -> str:
        """Where its files lie below the folder of fetched models, each under its own name."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def parts(self) -> tuple[str, ...]:
        """All files that the model is made of, in order."""
        return part_names(self.file)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a model, as its digest and size say."""

    name: str
    """As in the repository."""
    size: int
    sha256: str
    """64 hex digits. Of a file that the hub knows by another digest: empty until it was fetched."""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Content:
    """What a source turned out to be. All machines of the cluster take the same."""

    commit: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def is_known(self) -> bool:
        """Whether the digest of every part is."""
        return bool(self.parts) and all(part.sha256 for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        return {"commit": self.commit, "parts": [part.to_json() for part in self.parts]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Content":
        """Raises KeyError, TypeError or ValueError where it is none."""
        parts = [Part(str(p["name"]), int(p["size"]), str(p["sha256"])) for p in data["parts"]]
        return cls(str(data["commit"]), tuple(parts))


def hub_source(source: str) -> HubSource | None:
    """What `source` says where it is on Hugging Face, else None. Raises NoSource where it is written wrongly."""
    if not source.startswith(HUB):
        return None
    where, colon, file = source.removeprefix(HUB).partition(":")
    repo, at, revision = where.partition("@")
    if not colon or not file:
        raise NoSource(f"{_shown(source)} names no file", f"Write {FORM}")
    if not re.fullmatch(f"{_NAME}/{_NAME}", repo):
        raise NoSource(f"{_shown(repo)} is not OWNER/REPO", f"Write {FORM}")
    if at and (not re.fullmatch(_REVISION, revision) or ".." in revision):
        raise NoSource(
            f"{_shown(revision)} is not a revision", "Write a branch, a tag or a commit after the @"
        )
    if len(file) > NAME_MAX or not re.fullmatch(f"{_SEGMENT}(?:/{_SEGMENT})*", file) or ".." in file:
        raise NoSource(f"{_shown(file)} is not a file of a repository", f"Write {FORM}")
    if not file.endswith(".gguf"):
        raise NoSource(f"{_shown(file)} is not a GGUF file", "Name a file that ends in .gguf")
    part_names(file)
    return HubSource(repo, file, revision or None)


def part_names(file: str) -> tuple[str, ...]:
    """All parts of the file whose first part is named so; the file alone where its name is of another form.

    Raises NoSource for the name of another part than the first one.
    """
    found = _PART.fullmatch(file)
    if found is None:
        return (file,)
    number, count, stem = int(found["number"]), int(found["count"]), found["stem"]
    first = f"{stem}-{1:05d}-of-{count:05d}.gguf"
    if not 1 <= number <= count <= PARTS_MAX:
        raise NoSource(
            f"{_shown(file)} is no part of 1 to {PARTS_MAX} parts", "Name the first part of the model"
        )
    if number != 1:
        raise NoSource(f"{_shown(file)} is part {number} of {count}", f"Name the first part: {_shown(first)}")
    return tuple(f"{stem}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1))


def source_key(source: str) -> str:
    """32 hex digits for the source's text: names files about it."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def is_digest(text: str) -> bool:
    """Whether this is a SHA-256 as we write it: 64 lower-case hex digits."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def fetched_names(models: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The sources on Hugging Face among `models` (specs as JSON), each once, in order."""
    return tuple(dict.fromkeys(m["source"] for m in models if str(m["source"]).startswith(HUB)))


def _shown(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:87]}..."

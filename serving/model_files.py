"""The names of a model's files: a source on Hugging Face, the parts of a GGUF in several parts, and which files of a
whole repository make a model. Pure.

Fetches nothing and knows no folder: where they lie says serving/source.py.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BUNDLED = "bundled"
"""The source of the model that homeport brings along."""
HUB = "hf:"
FORM = "hf:OWNER/REPO:FILE, for example hf:unsloth/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf, or for vLLM hf:OWNER/REPO"
PARTS_MAX = 200
FILES_MAX = 300
"""Of a model that is a whole repository."""
NAME_MAX = 300
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = ".safetensors"
NEEDED = (CONFIG, "tokenizer.json")
BESIDE = frozenset(
    {
        *(*NEEDED, INDEX, "generation_config.json", "chat_template.jinja", "chat_template.json"),
        *("tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "vocab.txt", "merges.txt"),
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
    }
)
"""What is taken of a repository beside its weights, where it is there: no program, no other form of the weights."""

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
    """`hf:OWNER/REPO:FILE`, or `hf:OWNER/REPO` for all of it; each with `@REVISION` after REPO."""

    repo: str
    """OWNER/REPO."""
    file: str | None
    """The first part of a GGUF, where there are several: a path inside the repository. None: the whole repository is
    the model, as a folder of safetensors; which of its files, is known once the hub was asked (`folder_names`)."""
    revision: str | None = None
    """A branch, a tag or a commit; None: what the repository's main branch has when it is fetched first."""

    @property
    def folder(self) -> str:
        """Where its files lie below the folder of fetched models, each under its own name."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    def is_made_of(self, names: Sequence[str]) -> bool:
        """Whether these, in order, are all files of the model: as far as their names say."""
        if self.file is not None:
            return tuple(names) == part_names(self.file)
        return (
            len(set(names)) == len(names) <= FILES_MAX
            and all(map(is_of_folder, names))
            and {*NEEDED} <= {*names}
            and any(name.endswith(WEIGHTS) for name in names)
        )


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
    if colon and not file:
        raise NoSource(f"{_shown(source)} names no file", f"Write {FORM}")
    if not re.fullmatch(f"{_NAME}/{_NAME}", repo):
        raise NoSource(f"{_shown(repo)} is not OWNER/REPO", f"Write {FORM}")
    if at and (not re.fullmatch(_REVISION, revision) or ".." in revision):
        raise NoSource(
            f"{_shown(revision)} is not a revision", "Write a branch, a tag or a commit after the @"
        )
    if not colon:
        return HubSource(repo, None, revision or None)
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


def folder_names(listed: Collection[str], weights: Collection[str] | None) -> tuple[str, ...]:
    """The files of a repository that make a model which vLLM reads, the weights last; `listed`: all that it has;
    `weights`: those that its index names, None: it has no index. Raises NoSource where they make none."""
    if wrong := [name for name in listed if ".." in name.split("/")]:
        raise NoSource(f"it says to have {_shown(wrong[0])}, which lies outside of it", "Do not trust it")
    there = frozenset(listed)
    found = {name for name in there if name.endswith(WEIGHTS) and "/" not in name}
    if not found:
        raise NoSource(*_without_weights(listed))
    for name in NEEDED:
        if name not in there:
            raise NoSource(f"it has no {name}", "Name another repository of this model")
    if weights is not None:
        found = {*weights}
    elif "model.safetensors" in found:
        found = {"model.safetensors"}  # what lies beside it is the same in another form, or an adapter
    names = (*sorted(there & BESIDE), *sorted(found))
    if len(names) > FILES_MAX:
        raise NoSource(
            f"its model is made of {len(names)} files, more than {FILES_MAX}", "Name another repository"
        )
    if lacking := [name for name in names if name not in there]:
        raise NoSource(f"it lacks {_shown(lacking[0])}, which its {INDEX} names", "Name another repository")
    if odd := [name for name in names if not is_of_folder(name)]:
        raise NoSource(f"{_shown(odd[0])} is an odd name for a file with weights", "Name another repository")
    return names


def _without_weights(listed: Collection[str]) -> tuple[str, str]:
    if ggufs := sorted(name for name in listed if name.endswith(".gguf")):
        remedy = "Write engine: llama.cpp and name one of its files, for example hf:OWNER/REPO:"
        return "it has GGUF files only, which vLLM does not read", f"{remedy}{ggufs[0]}"
    others = sorted(name for name in listed if name.endswith((".bin", ".pt", ".pth")))
    has = f" (it has {_shown(others[0])}, which may run programs)" if others else ""
    return f"it has no weights as *{WEIGHTS}{has}", "Name another repository of this model"


def is_of_folder(name: str) -> bool:
    """Whether a file of a repository that is called so may be part of a model that is all of it."""
    if name in BESIDE:
        return True
    is_plain = len(name) <= NAME_MAX and ".." not in name and re.fullmatch(_SEGMENT, name) is not None
    return is_plain and name.endswith(WEIGHTS)


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

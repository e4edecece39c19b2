"""Why a model's files could not be brought to a machine, in words for a person."""

import errno
from typing import Literal

Code = Literal[
    "network",
    "gated",
    "unauthorized",
    "not_found",
    "hub",
    "disk",
    "digest",
    "changed",
    "gguf",
    "busy",
    "ended",
]
LASTING: frozenset[Code] = frozenset({"gated", "unauthorized", "not_found", "digest", "changed", "gguf"})
"""Those that do not pass by themselves: a replica that waits for such files is `failed`."""


class Trouble(Exception):
    """`message` says what is wrong, `remedy` what to do."""

    def __init__(self, code: Code, message: str, remedy: str) -> None:
        super().__init__(f"{message}. {remedy}")
        self.code: Code = code
        self.message = message
        self.remedy = remedy


def disk_trouble(error: OSError, folder: object) -> Trouble:
    """What an error of the file system means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Trouble("disk", f"the disk of {folder} is full", FREE)
    return Trouble("disk", f"{error.filename or folder}: {error.strerror or error}", "Make it writable")


FREE = "Free some, or set network.models_disk so that models which no config names are removed"

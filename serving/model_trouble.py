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
    "not_served",
    "no_model",
    "too_large",
    "busy",
    "ended",
    "internal",
]
LASTING: frozenset[Code] = frozenset(
    {
        "gated",
        "unauthorized",
        "not_found",
        "digest",
        "changed",
        "not_served",
        "no_model",
        "too_large",
        "internal",
    }
)
"""Those that do not pass by themselves: a replica that waits for such files is `failed`."""
AGAIN_S = (1.0, 5.0, 15.0, 30.0, 60.0)
LASTING_S = 60.0
WASTED: frozenset[Code] = frozenset({"digest", "no_model"})
"""Those that show once all bytes are there, which are thrown away then."""
WASTED_S = (60.0, 3600.0, 6 * 3600.0, 86400.0)


def pause_s(code: str, count: int) -> float:
    """How long after its first, second, … failure in a row (`count`) a model is tried again, where nobody gives another
    order meanwhile. A try that may cost a whole download for nothing is a rare one."""
    if code in WASTED:
        return WASTED_S[min(count, len(WASTED_S)) - 1]
    return LASTING_S if code in LASTING else AGAIN_S[min(count, len(AGAIN_S)) - 1]


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

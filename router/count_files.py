"""Counts in files, in the shape of prometheus_client's multi-process mode, whose collector reads them: several workers
count into one folder, each into files of its own.

The library's own values take a lock and look where they lie for each step; here counting is one thread's matter, and a
step is one store into the file, which is there whatever becomes of the process.
"""

import os
from pathlib import Path
from typing import Any, cast

from prometheus_client import mmap_dict, values

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
ROOM_BYTES = 1 << 20
"""A file of counts begins with so many. The library makes it of holes, and who fills one on a full disk is killed."""
DOUBLE_BYTES = 8


def count_in_files(folder: Path, worker: int) -> None:
    """Let this process keep its counts in `folder`, where every worker reads them. To be called before there are any.

    The files are the worker's and not the process's: the next process of that worker goes on with them. Raises OSError.
    """
    os.environ[FOLDER] = str(folder)
    for kind in ("counter", "gauge_max", "histogram"):
        file = folder / f"{kind}_{worker}.db"
        if not file.exists():
            whole = file.with_suffix(".new")  # A full disk leaves it short.
            whole.write_bytes(bytes(ROOM_BYTES))
            whole.replace(file)
    cast(Any, values).ValueClass = _values(folder, worker)


def _values(folder: Path, worker: int) -> Any:
    """What the library makes a series of. For one thread."""
    library = cast(Any, mmap_dict)
    files: dict[str, Any] = {}

    class Value:
        _multiprocess = True
        __slots__ = ("_at", "_cells", "_value")

        def __init__(
            self,
            typ: str,
            metric_name: str,
            name: str,
            labelnames: list[str],
            labelvalues: list[str],
            help_text: str,
            multiprocess_mode: str = "",
            **_more: Any,
        ) -> None:
            kind = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
            if kind not in files:
                files[kind] = library.MmapedDict(str(folder / f"{kind}_{worker}.db"))
            file, key = files[kind], library.mmap_key(metric_name, name, labelnames, labelvalues, help_text)
            self._value: float = file.read_value(key)[0]
            # The file may be mapped anew when it grows; what is written through the former map is in it too.
            self._cells = memoryview(file._m).cast("d")
            self._at = file._positions[key] // DOUBLE_BYTES

        def inc(self, amount: float) -> None:
            self._value += amount
            self._cells[self._at] = self._value

        def set(self, value: float, _timestamp: float | None = None) -> None:
            self._value = value
            self._cells[self._at] = value

        def get(self) -> float:
            return self._value

        def set_exemplar(self, _exemplar: object) -> None:
            """There are none."""

        def get_exemplar(self) -> None:
            """There are none."""

    return Value

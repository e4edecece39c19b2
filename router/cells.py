"""Where prometheus_client keeps what it counts here: each number is a cell of an array, in memory or in a file.

Files have the shape of the library's multi-process mode, whose collector reads them: several workers count into one
folder, each into files of its own. The library's own values take a lock for each step and look where they lie; here one
thread counts, and a step is one store into memory, which a file has too whatever becomes of the process. Cells lie
together: when a request ends nothing of them is in the processor's cache, and each piece of memory is waited for.
"""

import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from prometheus_client import mmap_dict, values

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
ROOM_BYTES = 1 << 20
"""A file of counts begins with so many. The library makes it of holes, and who fills one on a full disk is killed."""
DOUBLE_BYTES = 8

Cell = tuple[Any, int]
"""Numbers, and which of them it is."""


def count_in_memory() -> None:
    """From now on what is counted in this process is kept in memory alone."""

    cells = array("d")

    def new_cell(*_named: Any) -> Cell:
        cells.append(0.0)
        return cells, len(cells) - 1

    cast(Any, values).ValueClass = _values(new_cell, in_files=False)


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
    cast(Any, values).ValueClass = values_in(folder, worker)


def values_in(folder: Path, worker: int) -> Any:
    """What the library is to make a series of, in the files of this worker."""
    library = cast(Any, mmap_dict)
    files: dict[str, Any] = {}
    views: dict[str, Any] = {}

    def new_cell(kind: str, *named: Any) -> Cell:
        if kind not in files:
            files[kind] = library.MmapedDict(str(folder / f"{kind}_{worker}.db"))
        file, key = files[kind], library.mmap_key(*named)
        file.read_value(key)  # makes room for it
        # The file may be mapped anew when it grows; what is written through the former map is in it too.
        if kind not in views or views[kind].obj is not file._m:
            views[kind] = memoryview(file._m).cast("d")
        return views[kind], file._positions[key] // DOUBLE_BYTES

    return _values(new_cell, in_files=True)


def cell_of(value: Any) -> Cell:
    """Of a series' value that the library made since one of the above was called: who counts often adds to it there."""
    cell: Cell = value.cell
    return cell


def _values(new_cell: Callable[..., Cell], in_files: bool) -> type:
    class Value:
        _multiprocess = in_files
        __slots__ = ("cell",)

        def __init__(self, typ: str, *named: Any, multiprocess_mode: str = "", **_more: Any) -> None:
            kind = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
            self.cell = new_cell(kind, *named)

        def inc(self, amount: float) -> None:
            cells, at = self.cell
            cells[at] += amount

        def set(self, value: float, _timestamp: float | None = None) -> None:
            cells, at = self.cell
            cells[at] = value

        def get(self) -> float:
            cells, at = self.cell
            return float(cells[at])

        def set_exemplar(self, _exemplar: object) -> None:
            """There are none."""

        def get_exemplar(self) -> None:
            """There are none."""

    return Value

"""Brings one model to this machine: `python -m serving.bring_model`. A process of its own, which a keeper or `homeport
pull` starts for one model and which ends with it, or with whoever started it.

Its first line on stdin is the order (serving/bring_order.py), its lines on stdout say how far it is, the last of them
how it went. What broke off goes on where it was. A file is put in its place only when its digest is right.
"""

import hashlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from cluster import tls
from serving.bring_order import Giver, Order
from serving.brought_check import check_model
from serving.copy_rate import CopyRate
from serving.model_copy import Copying
from serving.model_files import Content, HubSource, Part, hub_source, is_digest
from serving.model_folder import ModelFolder, digest_of
from serving.model_room import percent
from serving.model_trouble import Trouble, disk_trouble

TELL_S = 0.5
ORDER_BYTES_MAX = 65536


class Bringing:
    """One order being carried out."""

    def __init__(self, order: Order, out: BinaryIO) -> None:
        hub = hub_source(order.source)
        if hub is None:
            raise ValueError(order.source)
        self._order = order
        self._hub: HubSource = hub
        self._out = out
        self._folder = ModelFolder(Path(order.folder))
        self._size = 0
        self._before = 0
        """Bytes of the parts that are there already."""
        self._told_at = 0.0
        self._told_part = 0
        self._etags: dict[str, str] = {}
        """By file: by what the hub knows it."""

    def run(self) -> int:
        """Returns the exit code; the last line says why it is not 0."""
        try:
            content = self._bring()
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - else it ends without a word, and is begun anew for ever
            trouble = error if isinstance(error, Trouble) else _internal(error)
            told = {"code": trouble.code, "message": trouble.message, "remedy": trouble.remedy}
            self._say({"trouble": told})
            return 1
        self._say({"whole": content.to_json()})
        return 0

    def _bring(self) -> Content:
        held = self._folder.held().get(self._order.source)
        if held is not None:
            return held.content
        try:
            content = self._look() if self._order.how == "fetch" else self._order.content
            if content is None or (self._order.how == "copy" and not content.is_known):
                raise Trouble("network", "nobody knows yet what the file is", "It is tried again")
            if not self._hub.is_made_of([part.name for part in content.parts]):
                raise Trouble(
                    "changed", f"{self._order.source} is said to be other files", "Name another file"
                )
            self._size = content.size
            self._say({"content": content.to_json()})
            self._make_room(content)
            parts = []
            for part in content.parts:
                parts.append(self._part(part, content.commit))
                self._before += part.size
            content = replace(content, parts=tuple(parts))
            self._tell("checking", "", self._size, now=True)
            self._check_model(content)
            self._folder.stamp(self._order.source, content)
        except OSError as error:
            raise disk_trouble(error, self._order.folder) from error
        return content

    def _look(self) -> Content:
        from serving import hub_look

        self._tell("asking", "hf", 0, now=True)
        content, self._etags = hub_look.look(self._hub, self._order.content)
        return content

    def _make_room(self, content: Content) -> None:
        there = 0
        for part in content.parts:
            path = self._folder.path(self._order.source, part.name)
            if path.is_file() and path.stat().st_size == part.size:
                there += part.size
                continue
            with self._folder.open_partial(self._order.source, part.name, self._digest(part)) as (file, _):
                there += min(file.tell(), part.size)
        named = {*self._order.named, self._order.source}
        self._folder.make_room(max(0, content.size - there), self._order.budget, named)

    def _part(self, part: Part, commit: str) -> Part:
        """The part, in its place and with its digest."""
        path = self._folder.path(self._order.source, part.name)
        if path.is_file() and path.stat().st_size == part.size:
            self._tell("checking", "", part.size, now=True)
            if (digest := self._right(path, part)) is not None:
                return replace(part, sha256=digest)
        digest = self._digest(part)
        givers = list(self._order.givers)
        while True:
            with self._folder.open_partial(self._order.source, part.name, digest) as (file, partial):
                at = file.tell()
                gave = self._take(part, givers, commit, file)
                self._tell("checking", "", part.size, now=True)
                if (found := self._right(partial, part)) is not None:
                    self._folder.place(partial, self._order.source, part.name)
                    return replace(part, sha256=found)
                partial.unlink()
            if at == 0 and len(gave) == 1:
                givers = [giver for giver in givers if giver.name != gave[0]]
            if at == 0 and (self._order.how == "fetch" or not givers):
                raise Trouble(
                    "digest",
                    f"{part.name} came from {', '.join(gave)} with another digest than it should have",
                    "The file there is damaged: remove it there, or see what changes it on its way",
                )
            if at == 0 and len(gave) > 1:
                givers = givers[1:]  # one of them is wrong: each is tried by itself

    def _take(self, part: Part, givers: list[Giver], commit: str, file: BinaryIO) -> list[str]:
        """Append what is missing; returns who gave it."""

        def told(at: int, giver: str) -> None:
            self._tell("fetching", giver, self._before + at)

        if self._order.how == "copy":
            token = Path(self._order.token_file).read_text().strip()
            trust = tls.client_context(Path(self._order.ca_file)) if self._order.ca_file else None
            copying = Copying(token, self._order.zone, CopyRate(self._order.rate), trust)
            return copying.copy(part, givers, file, told)
        from serving import hub_fetch

        at = file.tell()
        if at > part.size:
            at = file.seek(0)
            file.truncate()
        told(at, "hf")
        found = hub_fetch.Found(part.name, part.size, self._digest(part), commit)
        hub_fetch.download(self._hub, found, file, at, lambda size: told(size, "hf"))
        return ["hf"]

    def _right(self, path: Path, part: Part) -> str | None:
        """The SHA-256 of the file, if it is the one that it should be."""
        digest = digest_of(path)
        wanted = self._digest(part)
        if is_digest(wanted):
            return digest if digest == wanted else None
        if len(wanted) == hashlib.sha1(usedforsecurity=False).digest_size * 2:
            git = digest_of(path, "sha1", f"blob {part.size}\0".encode())
            return digest if git == wanted else None
        return digest if path.stat().st_size == part.size else None

    def _check_model(self, content: Content) -> None:
        """Whether an engine could read it at all. What is no model goes at once."""
        names = [part.name for part in content.parts]
        try:
            check_model(self._hub, self._folder.path(self._order.source, self._hub.file or ""), names)
        except Trouble:
            self._folder.remove(self._order.source, names)
            raise

    def _digest(self, part: Part) -> str:
        """By what the hub knows it, where it is not known by its SHA-256."""
        return part.sha256 or self._etags.get(part.name, "")

    def _tell(self, doing: str, giver: str, got: int, *, now: bool = False) -> None:
        at, part = time.monotonic(), percent(got, self._size)
        if now or at - self._told_at >= TELL_S or part != self._told_part:
            self._told_at, self._told_part = at, part
            self._say({"doing": doing, "from": giver, "got": got, "size": self._size})

    def _say(self, told: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(told).encode() + b"\n")
        self._out.flush()


def _internal(error: Exception) -> Trouble:
    """A fault of ours that nothing here foresaw: who looks after it reads where on stderr."""
    traceback.print_exception(error)
    return Trouble(
        "internal", f"homeport failed over it ({type(error).__name__})", "Name another model, and report it"
    )


def _first_line(starter: int) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (more := os.read(starter, ORDER_BYTES_MAX)):
        line += more
    return line


def _end_with(starter: int) -> None:
    """Whoever started this process holds the other end, and is gone when that closes."""
    while os.read(starter, 1):
        pass
    os._exit(1)


def main() -> int:
    starter = sys.stdin.fileno()
    order = Order.from_json(json.loads(_first_line(starter)))
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    os.nice(5)  # a turn of somebody's session goes first
    try:
        return Bringing(order, sys.stdout.buffer).run()
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

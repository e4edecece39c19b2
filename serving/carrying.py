"""Whether a session's context can go along to another host, by what both say of theirs; else why not. Pure.

Moves nothing, and knows no hosts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LAYOUT = re.compile(
    r"(?P<build>.+) (?P<cells>\d+ cells for \d+) (?P<kv>\S+) (?P<attention>flash|plain)(?P<lora>.*)"
)
"""As llama_backend.py makes it."""
_WORDS = {
    "build": "the engine's build differs",
    "kv": "the KV type differs",
    "cells": "the context or the number of sessions differs",
    "attention": "flash attention is on for one of them only",
    "lora": "the adapters differ",
}
"""In the order in which one is told."""


@dataclass(frozen=True, slots=True)
class Fits:
    """What the contexts of a host are bound to."""

    fingerprint: str
    """Of all of it. Empty: the host did not say."""
    layout: str
    """All but the model's file, for people."""
    disk_bytes: int
    """Room for parked contexts on disk."""


def fits_of(state: Mapping[str, Any]) -> Fits:
    """From a host's `GET /state`; of one that says nothing of it, nothing fits."""
    parking = state.get("parking")
    told = parking if isinstance(parking, dict) else {}
    disk = told.get("disk_limit_bytes")
    return Fits(
        str(told.get("fingerprint") or ""),
        str(told.get("layout") or ""),
        disk if isinstance(disk, int) else 0,
    )


def why_not(source: Fits, target: Fits) -> str | None:
    """Why a context of `source` is of no use to `target`; None: it is."""
    if not source.fingerprint or not target.fingerprint:
        return "a host does not say what its contexts are bound to"
    if source.fingerprint != target.fingerprint:
        return _difference(source.layout, target.layout)
    if target.disk_bytes <= 0:
        return "the new home parks nothing on disk"
    return None


def _difference(source: str, target: str) -> str:
    if source == target:
        return "the model's file differs"
    ours, theirs = _LAYOUT.fullmatch(source), _LAYOUT.fullmatch(target)
    if ours is not None and theirs is not None:
        for part, words in _WORDS.items():
            if ours[part] != theirs[part]:
                return words
    return _WORDS["build"]

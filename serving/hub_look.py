"""Asks the hub what a source is made of: which files, how large, by which digests. Fetches no weights."""

import json
from typing import Any

from serving import hub_fetch
from serving.hf_config import NotServed, read_config
from serving.model_files import (
    CONFIG,
    INDEX,
    Content,
    HubSource,
    NoSource,
    Part,
    folder_names,
    is_digest,
    part_names,
)
from serving.model_trouble import Trouble


def look(hub: HubSource, known: Content | None) -> tuple[Content, dict[str, str]]:
    """What the hub has, and by what it knows each file. `known`: what the cluster took.

    Raises Trouble: also where that is no longer there, and where no engine could serve what is.
    """
    commit = known.commit if known else None
    if known is not None and hub.is_made_of(told := [part.name for part in known.parts]):
        names: tuple[str, ...] = tuple(told)
    elif hub.file is not None:
        names = part_names(hub.file)
    else:
        commit, names = _folder(hub)
    etags: dict[str, str] = {}
    parts: list[Part] = []
    for name in names:
        found = hub_fetch.look(hub, name, commit)
        commit = commit or found.commit
        etags[name] = found.etag
        parts.append(Part(name, found.size, found.etag if is_digest(found.etag) else ""))
    for now, before in zip(parts, known.parts if known else (), strict=False):
        if now.size != before.size or (now.sha256 and before.sha256 not in ("", now.sha256)):
            raise Trouble(
                "changed",
                f"{hub.repo} no longer has the {now.name} that other machines took",
                f"Name a revision: hf:OWNER/REPO@COMMIT{':FILE' if hub.file else ''}",
            )
    return Content(commit or "", tuple(parts)), etags


def _folder(hub: HubSource) -> tuple[str, tuple[str, ...]]:
    """The commit of a whole repository, and the files that make its model."""
    commit, listed = hub_fetch.listed(hub)
    try:
        weights = _weights(_json(hub, INDEX, commit)) if INDEX in listed else None
        names = folder_names(listed, weights)
        read_config(_json(hub, CONFIG, commit), {}, 0)
    except NoSource as wrong:
        remedy = wrong.remedy.replace("OWNER/REPO", hub.repo)
        raise Trouble("not_served", f"{hub.repo} cannot be served by vLLM: {wrong.message}", remedy) from None
    except NotServed as wrong:
        raise Trouble(
            "not_served", f"{hub.repo} cannot be served by vLLM: {wrong}", "Name another model"
        ) from None
    return commit, names


def _json(hub: HubSource, name: str, commit: str) -> dict[str, Any]:
    try:
        found = json.loads(hub_fetch.read_small(hub, name, commit))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoSource(f"its {name} is no JSON", "Name another repository of this model")
    return found


def _weights(index: dict[str, Any]) -> set[str]:
    placed = index.get("weight_map")
    if (
        not isinstance(placed, dict)
        or not placed
        or not all(isinstance(name, str) for name in placed.values())
    ):
        raise NoSource(f"its {INDEX} names no files", "Name another repository of this model")
    return set(placed.values())

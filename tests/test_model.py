"""ModelSpec: JSON there and back, and a digest over exactly what needs a restart."""

import json
from dataclasses import replace
from typing import Any

import pytest

from cluster.fit import Where, Wish, ZoneOf
from cluster.machine import GIB
from cluster.slices import Need
from serving.model import ModelSpec, ParkingSpec, digest

SPEC = ModelSpec(
    name="assistant",
    engine="llama.cpp",
    source="/models/a.gguf",
    machines="all",
    replicas=1,
    need=Need(2, GIB, 0),
    take="needs",
    context=8192,
    sessions=1,
    hold_s=10.0,
    queue_s=60.0,
    when_lost="wait",
    options=(("temperature", 0.5), ("top_k", 40)),
)


SHARES = replace(SPEC, need=Need(2, GIB, 0.5))


def test_the_digest_of_a_model_is_what_it_was_before_gpus_could_be_shared() -> None:
    assert digest(SPEC, "content") == "454c0e3ef70671695d18217a69bffcb96df0c59f6d472dc0e2250b03609eba7b"
    assert digest(SHARES, "content") != digest(SPEC, "content")
    assert ModelSpec.from_json(json.loads(json.dumps(SHARES.to_json()))) == SHARES


@pytest.mark.parametrize("where", ["all", ("den", "attic"), ZoneOf("home")])
def test_a_spec_survives_json(where: Where) -> None:
    spec = replace(SPEC, machines=where, replicas="fill")
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_lists_among_the_options_survive_json() -> None:
    options = (("lora", ("/a.gguf", "/b.gguf")), ("mlock", True), ("tensor_split", (3.0, 1.0)))
    spec = replace(SPEC, options=options, parking=ParkingSpec(1, 0, 2.0), unload_s=60.0)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_asks_for_machines() -> None:
    assert SPEC.wish() == Wish("assistant", Need(2, GIB, 0), "needs", "all", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "vllm"},
        {"source": "/models/b.gguf"},
        {"need": Need(1, GIB, 0)},
        {"context": 4096},
        {"sessions": 2},
        {"options": (("temperature", 0.6), ("top_k", 40))},
        {"options": ()},
    ],
)
def test_what_needs_a_restart_changes_the_digest(change: dict[str, Any]) -> None:
    assert digest(replace(SPEC, **change), "content") != digest(SPEC, "content")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"machines": ("den",)},
        {"replicas": 2},
        {"take": "rest"},
        {"hold_s": 1.0},
        {"queue_s": 5.0},
        {"when_lost": "move"},
        {"parking": ParkingSpec(disk_bytes=0)},
        {"unload_s": 60.0},
        {"options": (("top_k", 40), ("temperature", 0.5))},
    ],
)
def test_what_applies_live_leaves_the_digest_alone(change: dict[str, Any]) -> None:
    assert digest(replace(SPEC, **change), "content") == digest(SPEC, "content")


def test_new_content_under_the_same_path_changes_the_digest() -> None:
    assert digest(SPEC, "one") != digest(SPEC, "two")
    assert len(bytes.fromhex(digest(SPEC, "one"))) == 32

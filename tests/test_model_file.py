"""What the router takes of router.json while it runs."""

import json
from dataclasses import replace
from pathlib import Path

from cluster.paths import write_private
from cluster.slices import Need
from router.model_file import ModelFile
from serving.model import ModelSpec

MODEL = ModelSpec("m", "llama.cpp", "bundled", "all", 1, Need(1, 1), "needs", 2048, 1, 1.0, 5.0, "wait")


def write(path: Path, *models: ModelSpec) -> None:
    write_private(path, json.dumps({"models": [model.to_json() for model in models]}))


def test_new_words_of_models_reach_whoever_holds_them(tmp_path: Path) -> None:
    path, specs = tmp_path / "router.json", {"m": MODEL}
    write(path, MODEL)
    file, held = ModelFile(path, specs), specs
    file.look()
    changed, second = replace(MODEL, queue_s=9.0, when_lost="move"), replace(MODEL, name="n")
    write(path, changed, second)
    file.look()
    assert held == {"m": changed, "n": second}
    write(path, second)
    file.look()
    assert held == {"n": second}


def test_a_file_that_is_broken_or_gone_changes_nothing(tmp_path: Path) -> None:
    path, specs = tmp_path / "router.json", {"m": MODEL}
    write(path, MODEL)
    file = ModelFile(path, specs)
    for text in ("{", "{}", '{"models": [{}]}', '{"models": 7}'):
        write_private(path, text)
        file.look()
    path.unlink()
    file.look()
    assert specs == {"m": MODEL}

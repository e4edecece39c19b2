"""What a whole repository turns out to be, over real HTTP: what is refused before its weights are fetched."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from serving import hub_fetch
from serving.hub_look import look
from serving.model_files import INDEX, HubSource
from serving.model_trouble import Trouble
from tests.hf_folders import CONFIG, SHARDS, make_repository
from tests.hub import COMMIT, Hub, add, add_all, be_told, hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub(add_all(folder, "o/r")) as made:
        be_told(monkeypatch, made)
        yield made


def refused() -> str:
    with pytest.raises(Trouble) as trouble:
        look(HubSource("o/r", None), None)
    assert trouble.value.code == "not_served"
    return str(trouble.value)


def test_a_repository_is_its_models_files_at_one_commit(site: Hub, folder: Path) -> None:
    content, etags = look(HubSource("o/r", None), None)
    assert content.commit == COMMIT
    assert [part.name for part in content.parts][-2:] == [*SHARDS]
    assert {part.name for part in content.parts if part.sha256} == {*SHARDS}, (
        "the others are known once they are here"
    )
    assert etags.keys() == {part.name for part in content.parts}


@pytest.mark.parametrize(
    ("without", "added", "words"),
    [
        (
            (INDEX, *SHARDS, "consolidated.safetensors"),
            {},
            "Write engine: llama.cpp and name one of its files, for example hf:o/r:m.gguf",
        ),
        (
            (INDEX, *SHARDS, "consolidated.safetensors", "m.gguf"),
            {},
            "it has no weights as *.safetensors (it has pytorch_model.bin, which may run programs). Name another",
        ),
        (("tokenizer.json",), {}, "it has no tokenizer.json"),
        ((SHARDS[0],), {}, f"it lacks {SHARDS[0]}, which its {INDEX} names"),
        ((), {INDEX: '{"weight_map": {"a": "../../evil.safetensors"}}'}, "it lacks ../../evil.safetensors"),
        ((), {INDEX: "[]"}, f"its {INDEX} is no JSON"),
        ((), {INDEX: '{"weight_map": {"a": 1}}'}, f"its {INDEX} names no files"),
        ((), {"config.json": "{"}, "its config.json is no JSON"),
        (
            (),
            {"config.json": '{"architectures": ["T5ForConditionalGeneration"]}'},
            "does not describe a decoder",
        ),
        (
            (),
            {"config.json": json.dumps({**CONFIG, "architectures": ["BertModel"]})},
            "o/r cannot be served by vLLM: it makes no text: its config.json says BertModel. Name another model",
        ),
        (
            (),
            {"config.json": json.dumps({**CONFIG, "num_attention_heads": 0})},
            "describes a model without attention",
        ),
        ((), {"config.json": "[" * 100_000}, "its config.json is no JSON"),
        ((), {INDEX: '{"a":' * 100_000}, f"its {INDEX} is no JSON"),
    ],
)
def test_what_vllm_could_not_serve_is_told_before_any_weights_are_fetched(
    site: Hub, folder: Path, without: tuple[str, ...], added: Mapping[str, str], words: str
) -> None:
    for name, text in added.items():
        (folder / name).write_text(text)
        site.files[f"o/r/{name}"] = add(folder / name)
    for name in without:
        del site.files[f"o/r/{name}"]
    assert words in refused()
    assert not any(f"GET /o/r/resolve/{COMMIT}/{name}" in asked for name in SHARDS for asked in site.asked)


def test_a_listing_that_leaves_the_repository_is_not_believed(site: Hub) -> None:
    site.files["o/r/../../evil.json"] = site.files["o/r/config.json"]
    assert "it says to have ../../evil.json, which lies outside of it" in refused()


def test_an_index_that_is_no_index_is_not_fetched(
    site: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_fetch, "SMALL_BYTES_MAX", 100)
    size = (folder / INDEX).stat().st_size
    assert f"{INDEX} of o/r has {size} bytes, more than such a file needs" in refused()
    assert site.total == 0

"""A whole repository brought by the real process, as vLLM is given it."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.model_files import INDEX, Content
from tests.giver import giving, part_of
from tests.hf_folders import CONFIG, SHARDS, make_repository
from tests.hub import COMMIT, Hub, add, add_all, hub
from tests.test_bring_model import Machine

SOURCE = "hf:o/r"
MIB = 1024**2
TAKEN = ("config.json", INDEX, "tokenizer.json", "tokenizer_config.json", *SHARDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def site(folder: Path) -> Iterator[Hub]:
    with hub(add_all(folder, "o/r")) as made:
        yield made


@pytest.fixture
def machine(tmp_path: Path, site: Hub) -> Machine:
    (tmp_path / "machine").mkdir()
    return Machine(tmp_path / "machine", site.url)


def content_of(folder: Path, names: tuple[str, ...] = TAKEN) -> Content:
    return Content(COMMIT, tuple(part_of(folder / name, name) for name in names))


def size_of(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in TAKEN)


def place(machine: Machine) -> Path:
    return machine.folder.path(SOURCE, "")


def lying(machine: Machine) -> set[str]:
    return {path.name for path in place(machine).iterdir()}


def given(site: Hub) -> list[str]:
    """The names of files whose bytes were asked for."""
    return [asked.split()[1].rpartition("/")[2] for asked in site.asked if asked.startswith("GET")]


def test_a_repository_is_fetched_once_and_nothing_of_it_but_its_model(
    machine: Machine, site: Hub, folder: Path
) -> None:
    said = machine.fetch(SOURCE)
    assert said[-1] == {"whole": content_of(folder).to_json()}
    assert {line["size"] for line in said if line.get("doing") == "fetching"} == {size_of(folder)}
    assert lying(machine) == set(TAKEN)
    assert all((place(machine) / name).read_bytes() == (folder / name).read_bytes() for name in TAKEN)
    looked_at = (folder / "config.json").stat().st_size + (folder / INDEX).stat().st_size
    assert site.total == size_of(folder) + looked_at
    assert machine.partials() == []
    assert machine.folder.held()[SOURCE].content == content_of(folder)
    assert all(machine.folder.find(part.sha256) for part in content_of(folder).parts)
    asked = len(site.asked)
    assert machine.bring(machine.order(SOURCE), HF_HUB_OFFLINE="1")[-1] == said[-1]
    assert len(site.asked) == asked


def test_a_process_that_was_killed_goes_on_in_the_file_where_it_was(
    machine: Machine, site: Hub, folder: Path
) -> None:
    go = site.files[f"o/r/{SHARDS[1]}"].slow = threading.Event()
    with machine.begin(machine.order(SOURCE)) as process:
        deadline = time.monotonic() + 30
        while max(machine.partials(), default=0) == 0 or not (place(machine) / SHARDS[0]).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    there = max(machine.partials())
    assert machine.folder.held() == {}
    go.set()
    site.files[f"o/r/{SHARDS[1]}"].slow = None
    site.asked.clear()
    assert "whole" in machine.fetch(SOURCE)[-1]
    assert given(site)[1:] == [INDEX, "config.json", SHARDS[1]], "the list of files comes first"
    assert site.asked[-1].endswith(f"bytes={there}-")


def test_a_gated_repository_is_fetched_with_a_token_only(machine: Machine, site: Hub, folder: Path) -> None:
    site.files |= add_all(folder, "o/g", gated=True)
    code, sentence = machine.trouble(machine.order("hf:o/g"))
    assert (code, site.total) == ("gated", 0)
    assert "o/g is gated, and this machine has no leave to read it. Accept its terms at" in sentence
    assert "whole" in machine.bring(machine.order("hf:o/g"), HF_TOKEN="hf_good")[-1]


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("hf:o/nope", "not_found", "has no repository o/nope. Correct the name; if it is private"),
        ("hf:o/r@dev", "not_found", "o/r has no revision dev"),
    ],
)
def test_a_repository_that_is_not_there_is_told(machine: Machine, source: str, code: str, words: str) -> None:
    told, sentence = machine.trouble(machine.order(source))
    assert told == code, sentence
    assert words in sentence


def test_what_vllm_could_not_serve_is_told_before_anything_is_fetched(machine: Machine, site: Hub) -> None:
    for name in (INDEX, *SHARDS, "consolidated.safetensors"):
        del site.files[f"o/r/{name}"]
    code, sentence = machine.trouble(machine.order(SOURCE))
    assert code == "not_served"
    assert "it has GGUF files only" in sentence
    assert (site.total, machine.folder.taken()) == (0, 0)


def test_a_hub_that_lists_nothing_is_told(machine: Machine, site: Hub) -> None:
    site.status = 500
    code, sentence = machine.trouble(machine.order(SOURCE))
    assert code == "hub"
    assert "the hub answered with status 500" in sentence


def test_weights_with_another_digest_are_never_put_in_place(machine: Machine, site: Hub) -> None:
    site.files[f"o/r/{SHARDS[1]}"].sha256 = "ab" * 32
    code, sentence = machine.trouble(machine.order(SOURCE))
    assert code == "digest"
    assert f"{SHARDS[1]} came from hf with another digest" in sentence
    assert not (place(machine) / SHARDS[1]).exists()
    assert machine.folder.held() == {}


def test_weights_that_are_none_are_removed_at_once(machine: Machine, site: Hub, folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes(b"no weights at all" * 1000)
    site.files[f"o/r/{SHARDS[1]}"] = add(folder / SHARDS[1])
    code, sentence = machine.trouble(machine.order(SOURCE))
    assert code == "no_model"
    assert f"{SHARDS[1]}: This is no safetensors file" in sentence
    assert machine.folder.taken() == 0


def test_no_room_is_told_before_any_weights_are_fetched(machine: Machine, site: Hub, folder: Path) -> None:
    code, sentence = machine.trouble(machine.order(SOURCE, budget=2 * MIB))
    assert code == "disk"
    assert "4 MiB more do not fit into network.models_disk (2 MiB" in sentence
    assert not any(name.endswith("tensors") for name in given(site))


def test_room_is_made_by_a_whole_repository(machine: Machine, site: Hub, folder: Path) -> None:
    machine.fetch(SOURCE)
    site.files |= add_all(folder, "o/next")
    machine.fetch("hf:o/next", budget=6 * MIB, named=("hf:o/next",))
    assert machine.folder.held().keys() == {"hf:o/next"}
    assert not place(machine).exists()


def test_a_part_of_a_named_repository_is_no_stray(machine: Machine, site: Hub, folder: Path) -> None:
    early = place(machine) / SHARDS[0]
    early.parent.mkdir(parents=True)
    early.write_bytes(bytes(2 * MIB))
    os.utime(early, (1.0, 1.0))
    site.files |= add_all(folder, "o/next")
    order = machine.order("hf:o/next", budget=6 * MIB, named=(SOURCE,))
    assert machine.trouble(order)[0] == "disk"
    machine.fetch("hf:o/next", budget=6 * MIB)
    assert not early.exists()


def test_what_another_commit_left_there_is_not_given_to_the_engine(machine: Machine, folder: Path) -> None:
    place(machine).mkdir(parents=True)
    shutil.copy(folder / SHARDS[0], place(machine) / "model-00001-of-00003.safetensors")
    (place(machine) / "m.gguf").write_bytes(b"of another source")
    machine.fetch(SOURCE)
    assert lying(machine) == {*TAKEN, "m.gguf"}


def test_a_bad_file_of_another_commit_takes_nothing_of_this_one_with_it(
    machine: Machine, folder: Path
) -> None:
    place(machine).mkdir(parents=True)
    (place(machine) / "model-00001-of-00003.safetensors").write_bytes(b"no weights at all" * 1000)
    assert "whole" in machine.fetch(SOURCE)[-1]
    assert lying(machine) == {*TAKEN}


@pytest.mark.parametrize("name", ["config.json", SHARDS[1]])
def test_json_of_a_copy_that_nests_too_deeply_is_no_model(machine: Machine, folder: Path, name: str) -> None:
    deep = b'{"a":' * 100_000
    (folder / name).write_bytes(deep if name == "config.json" else len(deep).to_bytes(8, "little") + deep)
    content = content_of(folder)
    with giving({part.sha256: folder / part.name for part in content.parts}) as den:
        code, sentence = machine.trouble(
            machine.order(SOURCE, how="copy", content=content, givers=(den.giver,))
        )
    assert code == "no_model"
    assert f"{name}" in sentence
    assert machine.folder.taken() == 0


def test_what_the_cluster_took_before_is_what_is_fetched(machine: Machine, site: Hub, folder: Path) -> None:
    assert "whole" in machine.fetch(SOURCE, content=content_of(folder))[-1]
    assert all(f"/resolve/{COMMIT}/" in asked for asked in site.asked)
    machine.folder.remove(SOURCE, TAKEN)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "more": 1}))
    site.files["o/r/config.json"] = add(folder / "config.json")
    before = json.loads(json.dumps(content_of(folder).to_json()))
    before["parts"][0]["size"] -= 1
    code, sentence = machine.trouble(machine.order(SOURCE, content=Content.from_json(before)))
    assert code == "changed"
    assert "Name a revision: hf:OWNER/REPO@COMMIT." not in sentence
    assert sentence.endswith("Name a revision: hf:OWNER/REPO@COMMIT")


def test_a_revision_is_another_source_in_a_folder_of_its_own(machine: Machine, folder: Path) -> None:
    source = f"hf:o/r@{COMMIT}"
    machine.fetch(source)
    assert machine.folder.held().keys() == {source}
    assert (machine.folder.folder / f"o/r@{COMMIT}" / "config.json").is_file()
    assert not place(machine).exists()


def test_a_repository_is_copied_from_another_machine_and_none_of_it_from_outside(
    machine: Machine, site: Hub, folder: Path
) -> None:
    content = content_of(folder)
    with giving({part.sha256: folder / part.name for part in content.parts}) as den:
        order = machine.order(SOURCE, how="copy", content=content, givers=(den.giver,))
        assert machine.bring(order)[-1] == {"whole": content.to_json()}
        assert den.has_sent(size_of(folder))
    assert site.asked == []
    assert lying(machine) == set(TAKEN)


def test_a_copy_writes_nothing_but_the_files_of_a_model(machine: Machine, folder: Path) -> None:
    for name in ("../../../evil.json", "modeling.py", "sub/x.safetensors"):
        part = part_of(folder / "config.json", name)
        content = Content(COMMIT, (*content_of(folder).parts, part))
        with giving({part.sha256: folder / "config.json"}) as den:
            order = machine.order(SOURCE, how="copy", content=content, givers=(den.giver,))
            code, sentence = machine.trouble(order)
        assert (code, "is said to be other files" in sentence) == ("changed", True)
        assert machine.folder.taken() == 0

"""Models on several machines: real keepers with their file servers, real processes that fetch, a stand-in of Hugging
Face, and the controller's part in it, without Ray. The machines are addresses of loopback."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import confine
from cluster.confine import Launch, Record
from cluster.inventory import measure
from cluster.join import enter
from cluster.machine import Reserve
from cluster.paths import Paths, write_private
from cluster.processes import ours
from router.lifecycle import end_everything
from serving import model_store, model_trouble
from serving.keeper import Keeper
from serving.model_files import Content
from serving.model_giving import ModelGiving
from tests.e2e.installation import _free_ports
from tests.fakes import Behaviour
from tests.giver import TOKEN, part_of
from tests.hf_folders import make_repository
from tests.host_process import model_spec
from tests.hub import COMMIT, Hub, HubFile, add, add_all, hub
from tests.ports import free_port
from tests.test_config import cut_to_size, gguf_bytes

SOURCE = "hf:o/r:m.gguf"
PATIENCE_S = 60.0
MIB = 1024**2


class Cluster:
    """What the controller knows and does, with keepers in this process in the place of Ray's."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, zones: Mapping[str, str]) -> None:
        self.root, self.port = root, free_port()
        self.keepers: dict[str, Keeper] = {}
        self.gone: set[str] = set()
        self.wanted: dict[str, list[str]] = {}
        """By machine: the sources that it is to serve."""
        self.files: dict[str, Any] = {"port": self.port, "rate": None, "budget": None}
        self.given: list[str] = []
        for number, (name, zone) in enumerate(zones.items(), 2):
            paths = Paths(root / name / "home", root / name / "locks")
            paths.make()
            write_private(paths.files_token, TOKEN)
            monkeypatch.setenv("HOMEPORT_HOME", str(paths.home))
            monkeypatch.setenv("HOMEPORT_LOCKS", str(paths.locks))
            _, _, first, last = _free_ports()
            enter(paths, name, zone, measure({}), Reserve(0, 0), (first, last), f"127.0.0.{number}")
            self.keepers[name] = Keeper()
        self.giving = ModelGiving(root / "models.json", self)

    def reports(self) -> dict[str, Any]:
        return {name: keeper.report() for name, keeper in self.keepers.items()}

    def here(self) -> set[str]:
        return self.keepers.keys() - self.gone

    def shares(self) -> dict[str, list[dict[str, Any]]]:
        return {
            name: [{"model": {"source": source}} for source in sources]
            for name, sources in self.wanted.items()
        }

    def revision(self) -> dict[str, Any]:
        sources = sorted({source for each in self.wanted.values() for source in each})
        return {"models": [{"spec": {"source": source}} for source in sources], "files": self.files}

    async def give(self, machine: str, message: dict[str, Any]) -> None:
        self.given.append(machine)
        self.keepers[machine].bring(message)

    def all_want(self, *sources: str) -> None:
        self.wanted = {name: list(sources) for name in self.keepers}

    def models(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.keepers[name].report()["models"]
        return found

    def has(self, *names: str, source: str = SOURCE) -> bool:
        return all(source in self.models(name)["held"] for name in names)

    def sent(self, name: str) -> int:
        """Bytes of files that its server gave."""
        return self.keepers[name].models._server.sent

    def until(self, holds: Callable[[], bool]) -> None:
        """The controller's steps, until it is so."""

        async def steps() -> None:
            deadline = time.monotonic() + PATIENCE_S
            while not holds():
                assert time.monotonic() < deadline, json.dumps(self.reports(), indent=1)
                await self.giving.step()
                await asyncio.sleep(0.02)

        asyncio.run(steps())

    def kill(self, name: str) -> None:
        """It gives nothing any more, and is not heard."""
        self.gone.add(name)
        self.keepers[name].models._server.close()
        self.keepers[name].bring({"key": "gone", "sources": {}})

    def end(self) -> None:
        for keeper in self.keepers.values():
            keeper.close()
            end_everything(keeper.paths)


Make = Callable[[Mapping[str, str]], Cluster]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(cut_to_size(gguf_bytes()) + bytes(range(256)) * (4 * MIB // 256))
    return path


@pytest.fixture
def site(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub({"o/r/m.gguf": add(file)}) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield made


@pytest.fixture
def make(tmp_path: Path, site: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Cluster] = []

    def start(zones: Mapping[str, str]) -> Cluster:
        made.append(Cluster(tmp_path / "cluster", monkeypatch, zones))
        return made[-1]

    yield start
    for cluster in made:
        cluster.end()
        assert all(ours(keeper.paths) == [] for keeper in cluster.keepers.values())


HOME_AND_OFFICE = {"den": "home", "tower": "home", "attic": "home", "desk": "office"}


def test_a_model_leaves_the_hub_once_for_each_zone_and_crosses_none(
    make: Make, site: Hub, file: Path
) -> None:
    cluster, size = make(HOME_AND_OFFICE), file.stat().st_size
    cluster.all_want(SOURCE)
    cluster.until(lambda: cluster.has(*HOME_AND_OFFICE))
    assert site.total == 2 * size
    sent = {name: cluster.sent(name) for name in HOME_AND_OFFICE}
    assert sent["desk"] == 0
    assert sum(sent.values()) == 2 * size
    for keeper in cluster.keepers.values():
        assert (keeper.paths.fetched / "o/r/m.gguf").read_bytes() == file.read_bytes()
    cluster.until(lambda: all(keeper.models._orders["sources"] == {} for keeper in cluster.keepers.values()))
    before = list(cluster.given)
    cluster.until(iter([False, False, True]).__next__)
    assert cluster.given == before


def test_a_whole_repository_leaves_the_hub_once_and_is_copied(make: Make, site: Hub, tmp_path: Path) -> None:
    cluster, made = make({"den": "home", "tower": "home"}), make_repository(tmp_path / "repository")
    site.files |= add_all(made, "o/whole")
    cluster.all_want("hf:o/whole")
    cluster.until(lambda: cluster.has("den", "tower", source="hf:o/whole"))
    content = cluster.giving.known["hf:o/whole"]
    assert content.is_known
    assert sorted(cluster.sent(name) for name in ("den", "tower")) == [0, content.size]
    assert content.size <= site.total < content.size + 1000, "config and index were read once before"
    for keeper in cluster.keepers.values():
        folder = keeper.paths.fetched / "o/whole"
        assert {path.name for path in folder.iterdir()} == {part.name for part in content.parts}
        assert all((folder / p.name).read_bytes() == (made / p.name).read_bytes() for p in content.parts)


def test_a_machine_that_comes_later_copies(make: Make, site: Hub, file: Path) -> None:
    cluster = make({"den": "home", "tower": "home"})
    cluster.wanted = {"tower": [SOURCE]}
    cluster.until(lambda: cluster.has("tower"))
    cluster.all_want(SOURCE)
    cluster.until(lambda: cluster.has("den"))
    assert (site.total, cluster.sent("tower")) == (file.stat().st_size, file.stat().st_size)


def test_a_giver_that_dies_in_the_middle_of_a_copy_is_survived(make: Make, site: Hub, file: Path) -> None:
    cluster, size = make({"den": "home", "tower": "home", "attic": "home"}), file.stat().st_size
    cluster.wanted = {"den": [SOURCE], "tower": [SOURCE]}
    cluster.until(lambda: cluster.has("den", "tower"))
    before = {name: cluster.sent(name) for name in ("den", "tower")}
    cluster.files["rate"] = 2 * MIB
    cluster.all_want(SOURCE)

    def giver() -> str | None:
        told = cluster.models("attic")["bringing"].get(SOURCE, {})
        return told.get("from") if MIB <= told.get("got", 0) < 3 * MIB else None

    cluster.until(lambda: giver() in ("den", "tower"))
    dead = str(giver())
    cluster.kill(dead)
    cluster.until(lambda: cluster.has("attic"))
    assert site.total == size
    other = "tower" if dead == "den" else "den"
    assert 0 < cluster.sent(other) - before[other] < size
    assert (cluster.keepers["attic"].paths.fetched / "o/r/m.gguf").read_bytes() == file.read_bytes()


def test_when_the_only_giver_dies_the_rest_comes_from_outside_and_no_more(
    make: Make, site: Hub, file: Path
) -> None:
    cluster, size = make({"den": "home", "tower": "home"}), file.stat().st_size
    cluster.wanted = {"den": [SOURCE]}
    cluster.until(lambda: cluster.has("den"))
    cluster.files["rate"] = 2 * MIB
    cluster.all_want(SOURCE)
    cluster.until(lambda: cluster.models("tower")["bringing"].get(SOURCE, {}).get("got", 0) >= MIB)
    cluster.kill("den")
    cluster.until(lambda: cluster.has("tower"))
    assert size < site.total <= 2 * size - MIB
    assert (cluster.keepers["tower"].paths.fetched / "o/r/m.gguf").read_bytes() == file.read_bytes()


def test_copies_stay_below_the_rate(make: Make, file: Path) -> None:
    cluster = make({"den": "home", "tower": "home"})
    cluster.wanted = {"den": [SOURCE]}
    cluster.until(lambda: cluster.has("den"))
    cluster.files["rate"] = 4 * MIB
    cluster.all_want(SOURCE)
    cluster.until(lambda: cluster.sent("den") > 0)
    began, sent = time.monotonic(), cluster.sent("den")
    cluster.until(lambda: cluster.has("tower"))
    assert file.stat().st_size - sent <= 4 * MIB * (time.monotonic() - began) + MIB


def test_all_machines_take_what_the_first_one_found_also_after_the_controller_was_replaced(
    make: Make, site: Hub, file: Path
) -> None:
    cluster = make({"den": "home", "desk": "office"})
    cluster.wanted = {"den": [SOURCE]}
    cluster.until(lambda: cluster.has("den"))
    assert cluster.giving.known == {SOURCE: Content(COMMIT, (part_of(file),))}
    cluster.giving = ModelGiving(cluster.root / "models.json", cluster)
    changed = file.with_name("changed.gguf")
    changed.write_bytes(file.read_bytes() + b"more")
    site.files["o/r/m.gguf"] = add(changed)
    cluster.all_want(SOURCE)
    cluster.until(lambda: bool(cluster.models("desk")["bringing"].get(SOURCE, {}).get("trouble")))
    assert cluster.models("desk")["bringing"][SOURCE]["trouble"]["code"] == "changed"
    site.files["o/r/m.gguf"] = add(file)


def test_a_pull_brings_a_model_that_nobody_serves_and_is_remembered_until_all_have_it(
    make: Make, site: Hub, file: Path
) -> None:
    cluster = make(HOME_AND_OFFICE)
    assert cluster.giving.pull(SOURCE, {"zone": "home"}) == ["attic", "den", "tower"]
    cluster.giving = ModelGiving(cluster.root / "models.json", cluster)
    cluster.until(lambda: cluster.has("den", "tower", "attic"))
    assert site.total == file.stat().st_size
    cluster.until(lambda: not cluster.giving.pulls)
    assert not cluster.has("desk")
    assert json.loads((cluster.root / "models.json").read_text())["pulls"] == {}


def test_what_no_config_names_goes_when_the_budget_needs_room(make: Make, site: Hub, file: Path) -> None:
    cluster = make({"den": "home"})
    for name in ("a", "b", "c"):
        site.files[f"o/r/{name}.gguf"] = add(file)
    cluster.files["budget"] = 9 * MIB
    for name in ("a", "b", "c"):
        cluster.all_want(f"hf:o/r:{name}.gguf")
        cluster.until(lambda name=name: cluster.has("den", source=f"hf:o/r:{name}.gguf"))  # type: ignore[misc]
    assert cluster.models("den")["held"].keys() == {"hf:o/r:b.gguf", "hf:o/r:c.gguf"}
    cluster.all_want("hf:o/r:b.gguf", "hf:o/r:c.gguf", SOURCE)
    cluster.until(lambda: bool(cluster.models("den")["bringing"].get(SOURCE, {}).get("trouble")))
    trouble = cluster.models("den")["bringing"][SOURCE]["trouble"]
    assert trouble["code"] == "disk"
    assert "do not fit into network.models_disk (9 MiB, of which 8 MiB are taken)" in trouble["message"]


# hosts


def serve(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, source: str, digest: str, revision: int) -> None:
    """One replica of this model on den, with a FakeEngine in the place of llama.cpp."""
    launch = confine.launch

    def fake(order: Launch) -> Record:
        told = order.folder / "behaviour.json"
        told.write_text(json.dumps(asdict(Behaviour(endless=True))))
        python, _, _, spec = order.command
        return launch(replace(order, command=(python, "-m", "tests.fakes", spec, str(told))))

    if revision == 1:
        monkeypatch.setattr(confine, "launch", fake)
    wish = {"model": replace(model_spec(), source=source).to_json(), "digest": digest * 64, "count": 1}
    cluster.wanted = {"den": [source]}
    cluster.keepers["den"].apply(revision, [wish], "den")


def replica(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.keepers["den"].report()["replicas"][0]
    return found


def test_a_host_starts_once_its_model_is_whole_and_says_meanwhile_how_far_it_is(
    make: Make, site: Hub, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    cluster, go = make({"den": "home"}), threading.Event()
    site.files["o/r/m.gguf"].slow = go
    site.files["o/r/m.gguf"].gated = True
    serve(cluster, monkeypatch, SOURCE, "d", 1)
    assert replica(cluster)["detail"] == "waits until the controller says from where its model comes"
    cluster.until(lambda: "fetching 6 %" in replica(cluster)["detail"])
    told = replica(cluster)
    assert (told["state"], told["pid"]) == ("starting", None)
    assert told["detail"] == "fetching 6 % of 4 MiB from hf"
    assert told["progress"] == pytest.approx(0.06)
    go.set()
    cluster.until(lambda: replica(cluster)["state"] == "ready")
    spec = json.loads((cluster.keepers["den"].paths.replica(0) / "spec.json").read_text())
    assert spec["model_path"] == str(cluster.keepers["den"].paths.fetched / "o/r/m.gguf")
    assert b"HF_TOKEN" not in Path(f"/proc/{replica(cluster)['pid']}/environ").read_bytes()


def test_a_replica_whose_file_does_not_exist_has_failed_with_the_remedy_and_starts_once_it_does(
    make: Make, site: Hub, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_trouble, "LASTING_S", 0.3)
    cluster = make({"den": "home", "tower": "home"})
    serve(cluster, monkeypatch, "hf:o/r:later.gguf", "d", 1)
    cluster.until(lambda: replica(cluster)["state"] == "failed")
    assert replica(cluster)["detail"] == f"o/r has no file later.gguf. Look at {site.url}/o/r/tree/main"
    site.files["o/r/later.gguf"] = add(file)
    cluster.until(lambda: replica(cluster)["state"] == "ready")


def test_a_machine_that_waits_for_another_one_says_what_is_wrong_there(
    make: Make, site: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make({"attic": "home", "den": "home"})
    serve(cluster, monkeypatch, "hf:o/r:nope.gguf", "d", 1)
    cluster.all_want("hf:o/r:nope.gguf")
    cluster.until(lambda: replica(cluster)["state"] == "failed")
    assert replica(cluster)["detail"].startswith("on attic: o/r has no file nope.gguf. Look at ")


def test_what_comes_wrong_each_time_is_not_fetched_over_and_over(
    make: Make, site: Hub, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two machines take turns at it, and neither begins from the start with its patience."""
    monkeypatch.setattr(model_trouble, "WASTED_S", (0.05, 0.05, 3600.0))
    site.files["o/r/m.gguf"] = HubFile(file, "ab" * 32)
    cluster = make({"den": "home", "tower": "home"})
    cluster.all_want(SOURCE)
    den = cluster.keepers["den"].models
    cluster.until(lambda: (den._wasted.get(SOURCE) or 0) >= 3 and SOURCE in den._failures)
    assert den._failures[SOURCE].again_at - time.monotonic() > 3000.0
    assert den.report()["bringing"][SOURCE]["trouble"]["code"] == "digest"


def test_a_process_may_say_much_in_one_line(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model in 200 parts with long names."""
    told = {
        "content": {"commit": COMMIT, "parts": [{"name": "m" * 300, "size": 1, "sha256": "ab" * 32}] * 200}
    }
    trouble = {"trouble": {"code": "not_found", "message": "it is not there", "remedy": "Look"}}
    said = tmp_path / "said"
    said.write_text(f"{json.dumps(told)}\n{json.dumps(trouble)}\n")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nexec cat {said}\n")
    program.chmod(0o700)
    cluster = make({"den": "home"})
    monkeypatch.setattr(model_store, "sys", SimpleNamespace(executable=str(program)))
    cluster.all_want(SOURCE)
    den = cluster.keepers["den"].models
    cluster.until(lambda: SOURCE in den._failures)
    assert den._failures[SOURCE].trouble["code"] == "not_found"


def test_what_runs_goes_on_until_the_model_of_the_next_revision_is_whole(
    make: Make, site: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, go = make({"den": "home"}), threading.Event()
    serve(cluster, monkeypatch, SOURCE, "a", 1)
    cluster.until(lambda: replica(cluster)["state"] == "ready")
    pid = replica(cluster)["pid"]
    site.files["o/r/next.gguf"] = add(site.files["o/r/m.gguf"].path, slow=go)
    serve(cluster, monkeypatch, "hf:o/r:next.gguf", "b", 2)
    cluster.until(lambda: cluster.models("den")["bringing"].get("hf:o/r:next.gguf", {}).get("got", 0) > 0)
    assert (replica(cluster)["state"], replica(cluster)["pid"]) == ("ready", pid)
    go.set()
    cluster.until(lambda: replica(cluster)["state"] == "ready" and replica(cluster)["pid"] not in (None, pid))


def test_a_keeper_that_is_replaced_goes_on_without_a_controller(
    make: Make, site: Hub, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, go = make({"den": "home"}), threading.Event()
    site.files["o/r/m.gguf"].slow = go
    cluster.all_want(SOURCE)
    cluster.until(lambda: cluster.models("den")["bringing"].get(SOURCE, {}).get("got", 0) > 0)
    first = cluster.keepers["den"]
    under = first.models._under
    assert under is not None
    assert under.process is not None
    under.process.kill()
    first.close()
    go.set()
    cluster.keepers["den"] = Keeper()
    deadline = time.monotonic() + PATIENCE_S
    while not cluster.has("den"):
        assert time.monotonic() < deadline
        cluster.keepers["den"].report(cluster.keepers["den"].report()["version"], 1.0)
    assert (cluster.keepers["den"].paths.fetched / "o/r/m.gguf").read_bytes() == file.read_bytes()


def test_nothing_is_brought_to_a_machine_while_it_is_its_persons(make: Make, site: Hub, file: Path) -> None:
    cluster, go = make({"den": "home"}), threading.Event()
    site.files["o/r/m.gguf"].slow = go
    cluster.all_want(SOURCE)
    cluster.until(lambda: cluster.models("den")["bringing"].get(SOURCE, {}).get("got", 0) > 0)
    keeper = cluster.keepers["den"]
    keeper.yield_machine(None, False)
    cluster.until(lambda: not keeper.models.is_busy)
    assert ours(keeper.paths, "models") == []
    go.set()
    keeper.yield_machine(None, True)
    cluster.until(lambda: cluster.has("den"))

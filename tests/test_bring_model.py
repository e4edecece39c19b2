"""Models brought by the real process: from a stand-in of Hugging Face over real HTTP, and from other machines."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serving.bring_model import Bringing
from serving.bring_order import Giver, Order
from serving.model_files import Content, Part
from serving.model_folder import ModelFolder
from serving.model_trouble import LASTING
from serving.source import bundled_model
from tests.giver import TOKEN, answering, giving, head_206, part_of
from tests.hub import COMMIT, Hub, HubFile, add, hub
from tests.test_config import cut_to_size, gguf_bytes, in_parts

SOURCE = "hf:o/r:m.gguf"
MIB = 1024**2
Said = list[dict[str, Any]]


class Machine:
    """One machine's folder, and the process that brings a model there."""

    def __init__(self, root: Path, hub_url: str) -> None:
        self.folder = ModelFolder(root / "models")
        self.token = root / "token"
        self.token.write_text(TOKEN)
        self.env = {**os.environ, "HF_ENDPOINT": hub_url, "HF_HOME": str(root / "hf")}
        self.env.pop("HF_TOKEN", None)

    def order(self, source: str = SOURCE, how: str = "fetch", **told: Any) -> Order:
        return Order(source, str(self.folder.folder), how, zone="home", token_file=str(self.token), **told)  # type: ignore[arg-type]

    def begin(self, order: Order, **env: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.bring_model"],
            env={**self.env, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(order.to_json()).encode() + b"\n")
        process.stdin.flush()
        return process

    def bring(self, order: Order, **env: str) -> Said:
        """All that it said, the last line last."""
        process = self.begin(order, **env)
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            said = [json.loads(line) for line in process.stdout]
            errors = process.stderr.read().decode()
        assert said, errors
        assert process.returncode == (0 if "whole" in said[-1] else 1), errors
        return said

    def fetch(self, source: str = SOURCE, **told: Any) -> Said:
        return self.bring(self.order(source, **told))

    def trouble(self, order: Order, **env: str) -> tuple[str, str]:
        """The code of what went wrong, and the sentence."""
        told = self.bring(order, **env)[-1]["trouble"]
        return told["code"], f"{told['message']}. {told['remedy']}"

    def partials(self) -> list[int]:
        """Sizes of what is half there."""
        return sorted(path.stat().st_size for path in (self.folder.folder / ".partial").glob("*"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A GGUF of some 3 MiB."""
    path = tmp_path / "small.gguf"
    path.write_bytes(cut_to_size(gguf_bytes()) + os.urandom(3 * MIB))
    return path


@pytest.fixture
def site(small: Path) -> Iterator[Hub]:
    with hub({"o/r/m.gguf": add(small)}) as made:
        yield made


@pytest.fixture
def machine(tmp_path: Path, site: Hub) -> Machine:
    (tmp_path / "machine").mkdir()
    return Machine(tmp_path / "machine", site.url)


def content_of(path: Path, commit: str = COMMIT) -> Content:
    return Content(commit, (part_of(path),))


def test_a_model_is_fetched_whole_and_once(machine: Machine, site: Hub, small: Path) -> None:
    said = machine.fetch()
    assert said[-1] == {"whole": content_of(small).to_json()}
    assert {"content": content_of(small).to_json()} in said
    file = machine.folder.path(SOURCE, "m.gguf")
    assert file.read_bytes() == small.read_bytes()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert site.total == small.stat().st_size
    assert machine.partials() == []
    assert machine.folder.held()[SOURCE].content == content_of(small)
    assert machine.folder.find(part_of(small).sha256) == file
    assert machine.fetch()[-1] == said[-1]
    assert site.total == small.stat().st_size


def test_the_bundled_model_is_fetched_with_progress(machine: Machine, site: Hub) -> None:
    site.files["o/r/m.gguf"] = add(bundled_model())
    said = [line for line in machine.fetch() if line.get("doing") == "fetching"]
    size = bundled_model().stat().st_size
    assert said[-1] == {"doing": "fetching", "from": "hf", "got": size, "size": size}
    assert [line["got"] for line in said] == sorted(line["got"] for line in said)
    assert site.total == size


def test_an_answer_that_breaks_off_goes_on_where_it_was(machine: Machine, site: Hub, small: Path) -> None:
    site.files["o/r/m.gguf"].dies_at = 2 * MIB
    assert "whole" in machine.fetch()[-1]
    assert site.asked[-1].endswith(f"bytes={2 * MIB}-")
    assert site.total == small.stat().st_size


def test_a_process_that_was_killed_goes_on_where_it_was(machine: Machine, site: Hub, small: Path) -> None:
    go = threading.Event()
    site.files["o/r/m.gguf"].slow = go
    process = machine.begin(machine.order())
    with process:
        deadline = time.monotonic() + 30
        while not machine.partials() or machine.partials() == [0]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    there = machine.partials()[0]
    assert machine.folder.held() == {}
    go.set()
    site.files["o/r/m.gguf"].slow = None
    assert "whole" in machine.fetch()[-1]
    assert site.asked[-1].endswith(f"bytes={there}-")


def test_it_ends_with_whoever_started_it(machine: Machine, site: Hub) -> None:
    go = threading.Event()
    site.files["o/r/m.gguf"].slow = go
    process = machine.begin(machine.order())
    with process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 1
    go.set()


def test_a_hub_that_knows_no_ranges_gives_it_all_again(machine: Machine, site: Hub, small: Path) -> None:
    site.files["o/r/m.gguf"].dies_at = 2 * MIB
    site.files["o/r/m.gguf"].ignores_ranges = True
    assert "whole" in machine.fetch()[-1]
    assert machine.folder.path(SOURCE, "m.gguf").read_bytes() == small.read_bytes()


def test_a_small_file_is_checked_by_the_digest_of_its_git_blob(
    machine: Machine, site: Hub, small: Path
) -> None:
    site.files["o/r/m.gguf"] = add(small, is_lfs=False)
    assert machine.fetch()[-1] == {"whole": content_of(small).to_json()}
    machine.folder.remove(SOURCE, ["m.gguf"])
    file = HubFile(small, "", is_lfs=False)
    etag = file.etag
    changed = small.with_name("changed.gguf")
    changed.write_bytes(small.read_bytes()[:-1] + b"!")
    site.files["o/r/m.gguf"] = Pretending(changed, etag)
    assert machine.trouble(machine.order())[0] == "digest"


class Pretending(HubFile):
    """Says another digest than its file has."""

    def __init__(self, path: Path, etag: str, is_lfs: bool = False) -> None:
        super().__init__(path, etag, is_lfs=is_lfs)

    @property
    def etag(self) -> str:
        return self.sha256


def test_a_file_whose_digest_is_wrong_is_never_put_in_place(machine: Machine, site: Hub, small: Path) -> None:
    site.files["o/r/m.gguf"].sha256 = "ab" * 32
    code, sentence = machine.trouble(machine.order())
    assert code == "digest"
    assert "m.gguf came from hf with another digest than it should have" in sentence
    assert not machine.folder.path(SOURCE, "m.gguf").exists()
    assert machine.partials() == []
    assert machine.folder.held() == {}


def test_what_rotted_half_there_is_fetched_anew(machine: Machine, site: Hub, small: Path) -> None:
    with machine.folder.open_partial(SOURCE, "m.gguf", part_of(small).sha256) as (file, _):
        file.write(bytes(MIB))
    assert "whole" in machine.fetch()[-1]
    assert machine.folder.path(SOURCE, "m.gguf").read_bytes() == small.read_bytes()


@pytest.mark.parametrize(
    ("source", "env", "code", "words"),
    [
        ("hf:o/r:nope.gguf", {}, "not_found", "o/r has no file nope.gguf. Look at "),
        ("hf:o/nope:m.gguf", {}, "not_found", "has no repository o/nope. Correct the name; if it is private"),
        ("hf:o/r@dev:m.gguf", {}, "not_found", "o/r has no revision dev"),
        (
            "hf:o/g:m.gguf",
            {},
            "gated",
            "o/g is gated, and this machine has no leave to read it. Accept its terms at",
        ),
        (
            "hf:o/g:m.gguf",
            {"HF_TOKEN": "hf_bad"},
            "gated",
            "`.venv/bin/hf auth login` on this machine, or start",
        ),
        (SOURCE, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "network", "http://127.0.0.1:9 cannot be reached ("),
        (SOURCE, {"HF_HUB_OFFLINE": "1"}, "network", "HF_HUB_OFFLINE is not set"),
    ],
)
def test_what_the_hub_refuses_is_told_with_a_remedy(
    machine: Machine, site: Hub, small: Path, source: str, env: Mapping[str, str], code: str, words: str
) -> None:
    site.files["o/g/m.gguf"] = add(small, gated=True)
    told, sentence = machine.trouble(machine.order(source), **env)
    assert told == code, sentence
    assert words in sentence
    assert site.total == 0


def test_what_is_gated_is_fetched_with_a_token(machine: Machine, site: Hub, small: Path) -> None:
    site.files["o/r/m.gguf"].gated = True
    assert machine.bring(machine.order(), HF_TOKEN="hf_good")[-1] == {"whole": content_of(small).to_json()}


def test_a_hub_that_fails_is_told_as_such(machine: Machine, site: Hub) -> None:
    site.status = 500
    code, sentence = machine.trouble(machine.order())
    assert code == "hub"
    assert "the hub answered with status 500" in sentence


def test_what_is_no_model_is_removed_at_once(machine: Machine, site: Hub, small: Path) -> None:
    small.write_bytes(b"no model at all" * 1000)
    site.files["o/r/m.gguf"] = add(small)
    code, sentence = machine.trouble(machine.order())
    assert code == "no_model"
    assert "is not a GGUF file" in sentence
    assert machine.folder.taken() == 0


def test_a_model_in_parts_is_fetched_with_all_of_them(machine: Machine, site: Hub, tmp_path: Path) -> None:
    first = in_parts(tmp_path, 3)
    names = [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    site.files |= {f"o/r/sub/{name}": add(tmp_path / name) for name in names}
    source = f"hf:o/r:sub/{first.name}"
    whole = machine.fetch(source)[-1]["whole"]
    assert [part["name"] for part in whole["parts"]] == [f"sub/{name}" for name in names]
    assert all(
        machine.folder.path(source, f"sub/{n}").read_bytes() == (tmp_path / n).read_bytes() for n in names
    )
    os.truncate(machine.folder.path(source, f"sub/{names[1]}"), 3)
    assert machine.folder.held() == {}
    before = site.total
    machine.fetch(source)
    assert site.total - before == (tmp_path / names[1]).stat().st_size


def test_a_part_that_the_hub_lacks_is_named(machine: Machine, site: Hub, tmp_path: Path) -> None:
    first = in_parts(tmp_path, 2)
    site.files[f"o/r/{first.name}"] = add(first)
    code, sentence = machine.trouble(machine.order(f"hf:o/r:{first.name}"))
    assert code == "not_found"
    assert "o/r has no file m-00002-of-00002.gguf" in sentence
    assert site.total == 0


def test_what_the_cluster_took_before_is_what_is_fetched(machine: Machine, site: Hub, small: Path) -> None:
    assert "whole" in machine.fetch(content=content_of(small))[-1]
    assert all(f"/resolve/{COMMIT}/" in asked for asked in site.asked)
    machine.folder.remove(SOURCE, ["m.gguf"])
    other = Content(COMMIT, (Part("m.gguf", small.stat().st_size, "cd" * 32),))
    code, sentence = machine.trouble(machine.order(content=other))
    assert code == "changed"
    assert "o/r no longer has the m.gguf that other machines took. Name a revision" in sentence


def test_no_room_is_told_before_anything_is_fetched(machine: Machine, site: Hub, small: Path) -> None:
    code, sentence = machine.trouble(machine.order(budget=2 * MIB))
    assert code == "disk"
    assert (
        "3 MiB more do not fit into network.models_disk (2 MiB, of which 0 bytes are taken). Make it larger"
        in sentence
    )
    assert site.total == 0


def test_room_is_made_by_what_no_config_names_and_was_used_longest_ago(
    machine: Machine, site: Hub, small: Path
) -> None:
    for name in ("a", "b", "c"):
        site.files[f"o/r/{name}.gguf"] = add(small)
        machine.fetch(f"hf:o/r:{name}.gguf")
    for name, used_s in (("b", 1.0), ("a", 2.0), ("c", 3.0)):
        stamp = machine.folder._stamp(f"hf:o/r:{name}.gguf")
        os.utime(stamp, (used_s, used_s))
    machine.folder.used("hf:o/r:b.gguf")
    machine.fetch(budget=10 * MIB, named=("hf:o/r:a.gguf",))
    assert machine.folder.held().keys() == {SOURCE, "hf:o/r:a.gguf", "hf:o/r:b.gguf"}
    assert not machine.folder.path("hf:o/r:c.gguf", "c.gguf").exists()


def test_what_is_half_there_and_old_is_gone_on_with_and_not_removed(
    machine: Machine, site: Hub, small: Path
) -> None:
    """Else its bytes would be counted as there, and more than the budget be taken."""
    with machine.folder.open_partial(SOURCE, "m.gguf", part_of(small).sha256) as (file, partial):
        file.write(small.read_bytes()[: 2 * MIB])
    os.utime(partial, (1.0, 1.0))
    machine.fetch(budget=4 * MIB)
    assert site.total == small.stat().st_size - 2 * MIB


def test_parts_of_a_model_that_was_given_up_make_room_unless_a_config_names_it(
    machine: Machine, site: Hub, small: Path
) -> None:
    given_up = "hf:o/x:x-00001-of-00002.gguf"
    stray = machine.folder.path(given_up, "x-00001-of-00002.gguf")
    stray.parent.mkdir(parents=True)
    stray.write_bytes(bytes(2 * MIB))
    assert machine.trouble(machine.order(budget=4 * MIB))[0] == "disk", "its other part may be on its way"
    os.utime(stray, (1.0, 1.0))
    assert machine.trouble(machine.order(budget=4 * MIB, named=(given_up,)))[0] == "disk"
    machine.fetch(budget=4 * MIB)
    assert not stray.exists()
    assert machine.folder.held().keys() == {SOURCE}


def test_a_hub_that_sends_more_than_the_file_has_fills_no_disk(
    machine: Machine, site: Hub, small: Path
) -> None:
    site.files["o/r/m.gguf"].excess = 8 * MIB
    code, sentence = machine.trouble(machine.order())
    assert code == "hub"
    assert "sends more of m.gguf than the" in sentence
    assert machine.folder.taken() <= small.stat().st_size


def test_a_file_that_the_hub_gives_to_nobody_in_one_piece_is_told(
    machine: Machine, site: Hub, small: Path
) -> None:
    os.truncate(small, 51 * 10**9)  # with holes: it takes no room
    site.files["o/r/m.gguf"] = HubFile(small, "ab" * 32)
    code, sentence = machine.trouble(machine.order())
    assert code == "too_large"
    assert "m.gguf is larger than 50 GB" in sentence


def test_a_token_that_cannot_be_sent_is_not_quoted(machine: Machine, site: Hub) -> None:
    code, sentence = machine.trouble(machine.order(), HF_TOKEN="hf_secret\x0bmore")
    assert code == "network"
    assert "hf_secret" not in sentence


def test_a_full_disk_is_told(
    machine: Machine, small: Path, site: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel lets the process write no more than this to any file."""
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20));"
    limited += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limited += "runpy.run_module('serving.bring_model', run_name='__main__')"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **more: popen([sys.executable, "-c", limited], **more)
    )
    code, sentence = machine.trouble(machine.order())
    assert code == "disk"
    assert "File too large" in sentence
    assert machine.partials() == [MIB]
    assert machine.folder.held() == {}


def test_two_at_once_do_not_write_into_one_file(machine: Machine, site: Hub, small: Path) -> None:
    with machine.folder.open_partial(SOURCE, "m.gguf", part_of(small).sha256):
        code, sentence = machine.trouble(machine.order())
    assert code == "busy"
    assert "m.gguf is being fetched here by another process" in sentence
    assert site.total == 0


def copy_order(machine: Machine, path: Path, *givers: Giver, **told: Any) -> Order:
    return machine.order(how="copy", content=content_of(path), givers=givers, **told)


def test_a_model_is_copied_from_another_machine_and_none_of_it_from_outside(
    machine: Machine, site: Hub, small: Path
) -> None:
    with giving({part_of(small).sha256: small}) as den:
        said = machine.bring(copy_order(machine, small, den.giver))
    assert said[-1] == {"whole": content_of(small).to_json()}
    assert {"fetching"} == {line["doing"] for line in said if line.get("from") == "den"}
    assert machine.folder.path(SOURCE, "m.gguf").read_bytes() == small.read_bytes()
    assert (site.asked, den.server.sent) == ([], small.stat().st_size)


def test_a_copy_writes_nothing_but_the_files_of_its_source(machine: Machine, small: Path) -> None:
    part = part_of(small, "../../../evil.gguf")
    with giving({part.sha256: small}) as den:
        order = machine.order(how="copy", content=Content(COMMIT, (part,)), givers=(den.giver,))
        code, sentence = machine.trouble(order)
    assert (code, "is said to be other files" in sentence) == ("changed", True)
    assert den.server.sent == 0
    assert machine.folder.taken() == 0


def test_what_was_half_copied_is_fetched_on_from_outside(machine: Machine, site: Hub, small: Path) -> None:
    """The machine that had it is gone: what is there already does not leave the hub again."""
    data = small.read_bytes()
    with answering(lambda c, _: c.sendall(head_206(0, len(data)) + data[: 2 * MIB])) as dying:
        assert machine.trouble(copy_order(machine, small, dying))[0] == "network"
    assert machine.partials() == [2 * MIB]
    assert "whole" in machine.fetch()[-1]
    assert site.total == len(data) - 2 * MIB


def test_a_machine_that_gives_other_bytes_is_found_out_and_another_one_asked(
    machine: Machine, small: Path
) -> None:
    rotten = small.with_name("rotten.gguf")
    rotten.write_bytes(small.read_bytes()[:-1] + b"!")
    digest = part_of(small).sha256
    with ExitStack() as stack:
        bad = stack.enter_context(giving({digest: rotten}, "bad"))
        assert machine.trouble(copy_order(machine, small, bad.giver))[0] == "digest"
        assert machine.folder.held() == {}
        assert machine.partials() == []
        good = stack.enter_context(giving({digest: small}, "good"))
        assert "whole" in machine.bring(copy_order(machine, small, bad.giver, good.giver))[-1]
    assert machine.folder.path(SOURCE, "m.gguf").read_bytes() == small.read_bytes()


def test_stamps_that_somebody_broke_are_no_models(machine: Machine, small: Path) -> None:
    machine.fetch()
    stamp = machine.folder._stamp(SOURCE)
    kept = json.loads(stamp.read_text())
    for broken in (
        "",
        "[]",
        "{}",
        json.dumps({**kept, "source": "hf:o/r:../../../etc/passwd.gguf"}),
        json.dumps({**kept, "source": "bundled"}),
        json.dumps({**kept, "mtime_ns": []}),
        json.dumps({**kept, "parts": [{**kept["parts"][0], "size": 1}]}),
        json.dumps({**kept, "parts": [{**kept["parts"][0], "name": "../../../../etc/passwd"}]}),
    ):
        stamp.write_text(broken)
        assert machine.folder.held() == {}, broken
    stamp.write_text(json.dumps(kept))
    assert machine.folder.held().keys() == {SOURCE}
    os.utime(machine.folder.path(SOURCE, "m.gguf"), (1, 1))
    assert machine.folder.held() == {}


def test_a_file_that_lost_its_stamp_is_checked_and_not_fetched_again(
    machine: Machine, site: Hub, small: Path
) -> None:
    machine.fetch()
    machine.folder._stamp(SOURCE).unlink()
    before = site.total
    assert "whole" in machine.fetch()[-1]
    assert site.total == before
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    assert machine.folder.find(digest) is not None


def test_a_commit_that_is_gone_is_named(machine: Machine, site: Hub, small: Path) -> None:
    gone = Content("d" * 40, (part_of(small),))
    code, sentence = machine.trouble(machine.order(content=gone))
    assert code == "not_found"
    assert f"o/r has no revision {'d' * 40}. Look at " in sentence


def test_a_fault_that_nobody_foresaw_is_a_trouble_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Bringing) -> Content:
        raise KeyError("unforeseen")

    monkeypatch.setattr(Bringing, "_bring", fails)
    out = io.BytesIO()
    assert Bringing(Order(SOURCE, str(tmp_path), "fetch"), out).run() == 1
    told = json.loads(out.getvalue())["trouble"]
    assert told["code"] == "internal"
    assert told["code"] in LASTING
    assert told["message"] == "homeport failed over it (KeyError)"
    assert "unforeseen" in capsys.readouterr().err

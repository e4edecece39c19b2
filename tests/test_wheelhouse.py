"""A wheelhouse is used where it fits, wholly, and never where it does not."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from cluster import wheelhouse
from cluster.llama_wheel import cached

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in wheelhouse.LOCKS:
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "wheelhouse").mkdir()
    return tmp_path


def write(clone: Path, **other: str) -> None:
    """A manifest for this Python and platform, but for what is given."""
    wanted = wheelhouse.wanted(clone)
    contents = {"locks": wanted.locks, "python": wanted.python, "platform": wanted.platform, **other}
    (clone / "wheelhouse" / "homeport.json").write_text(json.dumps(contents))


def build(folder: Path, key: str) -> None:
    """A built llama.cpp as the cache and a wheelhouse keep it."""
    kept = folder / "llama" / key
    kept.mkdir(parents=True)
    (kept / "llama.whl").write_bytes(b"wheel")
    record = {"wheel": "llama.whl", "sha256": hashlib.sha256(b"wheel").hexdigest()}
    (kept / "build.json").write_text(json.dumps(record))


def test_one_that_fits_is_used_and_one_that_is_not_finished_is_not_seen(clone: Path) -> None:
    assert wheelhouse.usable(clone) is None
    wheelhouse.seal(clone / "wheelhouse", wheelhouse.wanted(clone))
    assert wheelhouse.usable(clone) == clone / "wheelhouse"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"python": "3.10"}, "is for Python 3.10 on"),
        ({"platform": "linux-riscv64"}, "on linux-riscv64 and not used"),
        ({"locks": "old"}, "another version of homeport"),
        ({"more": "keys"}, "damaged"),
    ],
)
def test_one_that_does_not_fit_is_not_used_and_says_why(
    clone: Path, other: dict[str, str], said: str
) -> None:
    write(clone, **other)
    answer = wheelhouse.usable(clone)
    assert isinstance(answer, str)
    assert said in answer


def test_another_lock_makes_it_old(clone: Path) -> None:
    write(clone)
    with (clone / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert "another version" in str(wheelhouse.usable(clone))


def test_pip_asks_no_index_with_a_wheelhouse_and_is_led_nowhere_else(tmp_path: Path) -> None:
    env = {"PIP_TARGET": "/elsewhere", "PYTHONPATH": "/elsewhere", "HTTPS_PROXY": "proxy"}
    plain = wheelhouse.pip_environment(env, tmp_path, None)
    assert "PIP_TARGET" not in plain
    assert "PYTHONPATH" not in plain
    assert (plain["HTTPS_PROXY"], plain["TMPDIR"]) == ("proxy", str(tmp_path))
    assert "PIP_NO_INDEX" not in plain
    closed = wheelhouse.pip_environment(env, tmp_path, Path("/a clone/wheelhouse"))
    assert closed["PIP_NO_INDEX"] == "1"
    assert closed["PIP_FIND_LINKS"] == "file:///a%20clone/wheelhouse"


def test_llama_comes_along_under_this_machines_key_only(tmp_path: Path) -> None:
    wheels, cache = tmp_path / "wheelhouse", tmp_path / "cache"
    build(wheels, "this-cpu")
    assert not wheelhouse.bring_llama(wheels, cache, "other-cpu")
    assert cached(cache, "other-cpu") is None
    assert wheelhouse.bring_llama(wheels, cache, "this-cpu")
    assert cached(cache, "this-cpu") == cache / "llama" / "this-cpu" / "llama.whl"
    assert wheelhouse.bring_llama(wheels, cache, "this-cpu")
    assert [folder.name for folder in (cache / "llama").iterdir()] == ["this-cpu"]


def test_a_damaged_llama_is_not_brought(tmp_path: Path) -> None:
    wheels, cache = tmp_path / "wheelhouse", tmp_path / "cache"
    build(wheels, "this-cpu")
    (wheels / "llama" / "this-cpu" / "llama.whl").write_bytes(b"half")
    assert not wheelhouse.bring_llama(wheels, cache, "this-cpu")
    assert cached(cache, "this-cpu") is None

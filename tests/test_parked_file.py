"""serving/parked_file.py: what was written comes back, and nothing else does."""

import os
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import parked_file
from serving.engine import SavedState
from serving.parked_file import DamagedFile, ForeignFile, ParkedFileError, path_of

ANN, BEN = "a" * 64, "b" * 64
ENGINE, OTHER_ENGINE = "e" * 64, "f" * 64
STATE = SavedState((1, 2, 70_000), b"keys and values", ((1, b"first"), (2, b"")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parked_file.open_folder(tmp_path / "parked")
    return tmp_path / "parked"


@pytest.fixture
def written(folder: Path) -> Path:
    """Ann's file."""
    parked_file.write(folder, ANN, ENGINE, STATE)
    return path_of(folder, ANN)


def test_what_was_written_comes_back(folder: Path, written: Path) -> None:
    assert parked_file.read(folder, ANN, ENGINE) == STATE
    assert written.stat().st_size == parked_file.size_of(STATE)


@given(
    tokens=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    data=st.binary(max_size=50),
    points=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=20)), max_size=20),
)
def test_any_state_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: list[int],
    data: bytes,
    points: list[tuple[int, bytes]],
) -> None:
    folder = tmp_path_factory.getbasetemp()
    state = SavedState(tuple(tokens), data, tuple(points))
    assert parked_file.write(folder, ANN, ENGINE, state) == parked_file.size_of(state)
    assert parked_file.read(folder, ANN, ENGINE) == state


def test_only_its_owner_may_read_it(folder: Path, written: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_a_newer_state_takes_the_older_ones_place(folder: Path, written: Path) -> None:
    newer = SavedState((9,), b"newer")
    parked_file.write(folder, ANN, ENGINE, newer)
    assert parked_file.read(folder, ANN, ENGINE) == newer
    assert [path.name for path in folder.iterdir()] == [ANN + ".kv"]


def test_every_changed_byte_is_found_out(folder: Path, written: Path) -> None:
    whole = written.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        written.write_bytes(changed)
        with pytest.raises(ParkedFileError):
            parked_file.read(folder, ANN, ENGINE)


def test_every_shorter_and_a_longer_file_is_found_out(folder: Path, written: Path) -> None:
    whole = written.read_bytes()
    for length in range(len(whole)):
        written.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            parked_file.read(folder, ANN, ENGINE)
    written.write_bytes(whole + b"\0")
    with pytest.raises(DamagedFile):
        parked_file.read(folder, ANN, ENGINE)


@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail_in_another_way(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for start in (b"", b"hmprtkv\x01"):
        path_of(folder, BEN).write_bytes(start + data)
        with pytest.raises(ParkedFileError):
            parked_file.read(folder, BEN, ENGINE)


def test_another_engines_file_is_foreign(folder: Path, written: Path) -> None:
    with pytest.raises(ForeignFile, match="another engine"):
        parked_file.read(folder, ANN, OTHER_ENGINE)


def test_another_sessions_file_under_its_name_is_foreign(folder: Path, written: Path) -> None:
    written.rename(path_of(folder, BEN))
    with pytest.raises(ForeignFile, match="another session"):
        parked_file.read(folder, BEN, ENGINE)


def test_no_name_leads_out_of_the_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="session"):
        path_of(folder, "../" + "a" * 61)


def test_a_missing_file_is_missing(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parked_file.read(folder, ANN, ENGINE)
    parked_file.remove(folder, ANN)
    parked_file.touch(folder, ANN)


def test_a_failed_write_leaves_the_older_state_and_nothing_else(
    folder: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        parked_file.write(folder, ANN, ENGINE, SavedState((9,), b"newer"))
    assert parked_file.read(folder, ANN, ENGINE) == STATE
    assert list(folder.iterdir()) == [written]


def test_opening_the_folder_tells_what_lies_there_and_removes_what_is_unfinished(
    folder: Path, written: Path
) -> None:
    (folder / ".aaaa.1234.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("somebody else's")
    os.utime(written, (1000.0, 1000.0))
    (kept,) = parked_file.open_folder(folder)
    assert (kept.session, kept.size, kept.used_s) == (ANN, parked_file.size_of(STATE), 1000.0)
    assert {path.name for path in folder.iterdir()} == {ANN + ".kv", "notes.txt"}


def test_its_tokens_are_read_without_the_rest(folder: Path, written: Path) -> None:
    assert parked_file.read_tokens(folder, ANN, ENGINE) == STATE.tokens
    assert [kept.tokens for kept in parked_file.open_folder(folder)] == [3]
    # As good as endless: whoever read it all would not come back.
    size = 2**40
    head = parked_file._SIZES.pack(0, 3, size - parked_file._HEAD_BYTES - 32 - 12, size)
    with written.open("r+b") as file:
        file.seek(8)
        file.write(head)
        file.seek(parked_file._HEAD_BYTES)
        file.write(struct.pack("<3I", *STATE.tokens))
        file.truncate(size)
    assert parked_file.read_tokens(folder, ANN, ENGINE) == STATE.tokens


def test_a_file_of_others_or_none_has_no_tokens(folder: Path, written: Path) -> None:
    assert parked_file.read_tokens(folder, ANN, OTHER_ENGINE) == ()
    path_of(folder, BEN).write_bytes(written.read_bytes())
    assert parked_file.read_tokens(folder, BEN, ENGINE) == ()
    path_of(folder, BEN).write_bytes(b"no state")
    assert parked_file.read_tokens(folder, BEN, ENGINE) == ()
    assert sorted(kept.tokens for kept in parked_file.open_folder(folder)) == [0, 3]
    with pytest.raises(FileNotFoundError):
        parked_file.read_tokens(folder, "c" * 64, ENGINE)

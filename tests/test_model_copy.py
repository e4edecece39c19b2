"""A file copied from other machines over real sockets: resumed, from several of them, from ones that die."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from serving import model_copy
from serving.bring_order import Giver
from serving.copy_rate import CopyRate
from serving.model_copy import Copying
from serving.model_files import Part
from serving.model_trouble import Trouble
from tests.giver import TOKEN, ZONE, Giving, answering, giving, head_206, part_of

SIZE = 2_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def part(file: Path) -> Part:
    return part_of(file)


@pytest.fixture
def den(file: Path, part: Part) -> Iterator[Giving]:
    with giving({part.sha256: file}) as found:
        yield found


def copy(
    part: Part, givers: list[Giver], target: Path, rate: int | None = None, zone: str = ZONE
) -> tuple[list[str], list[tuple[int, str]]]:
    """Who gave it, and what was told meanwhile."""
    told: list[tuple[int, str]] = []
    with target.open("ab") as out:
        gave = Copying(TOKEN, zone, CopyRate(rate)).copy(part, givers, out, lambda *at: told.append(at))
    return gave, told


def breaks_off(data: bytes, after: int) -> AbstractContextManager[Giver]:
    """A machine that dies after so many bytes of the file."""

    def answer(connection: socket.socket, head: bytes) -> None:
        first = int(head.split(b"bytes=")[1].split(b"-")[0])
        connection.sendall(head_206(first, len(data)) + data[first : first + after])

    return answering(answer, "dying")


def test_a_file_is_copied_and_how_far_it_is_is_told(
    den: Giving, file: Path, part: Part, tmp_path: Path
) -> None:
    gave, told = copy(part, [den.giver], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    assert gave == ["den"]
    assert told[0] == (0, "den")
    assert told[-1] == (SIZE, "den")
    assert [at for at, _ in told] == sorted(at for at, _ in told)


def test_what_broke_off_goes_on_where_it_was(den: Giving, file: Path, part: Part, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(file.read_bytes()[: SIZE - 10])
    assert copy(part, [den.giver], tmp_path / "copy")[0] == ["den"]
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    assert den.has_sent(10)


def test_what_is_there_already_is_asked_of_nobody(file: Path, part: Part) -> None:
    assert copy(part, [], file)[0] == []


def test_more_than_there_can_be_is_begun_anew(den: Giving, file: Path, part: Part, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(bytes(SIZE + 1))
    copy(part, [den.giver], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()


def test_a_machine_that_dies_in_the_middle_is_followed_by_the_next_from_the_same_byte_on(
    den: Giving, file: Path, part: Part, tmp_path: Path
) -> None:
    with breaks_off(file.read_bytes(), 700_000) as dying:
        gave, told = copy(part, [dying, den.giver], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    assert gave == ["dying", "den"]
    assert den.has_sent(SIZE - 700_000)
    assert (700_000, "den") in told


def test_two_that_die_again_and_again_still_give_it_all(file: Path, part: Part, tmp_path: Path) -> None:
    with ExitStack() as stack:
        givers = [stack.enter_context(breaks_off(file.read_bytes(), 300_000)) for _ in range(2)]
        copy(part, givers, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()


def test_one_that_falls_silent_is_left(
    den: Giving, file: Path, part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_copy, "ANSWER_S", 0.2)

    def silent(connection: socket.socket, _head: bytes) -> None:
        connection.sendall(head_206(0, SIZE) + file.read_bytes()[:1000])
        connection.settimeout(10)
        connection.recv(1)

    with answering(silent) as giver:
        gave, _ = copy(part, [giver, den.giver], tmp_path / "copy")
    assert gave == ["bad", "den"]
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "it answered with status 404"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwhat", "it answered with status 200"),
        (head_206(0, SIZE + 1), f"its file has {SIZE + 1} bytes instead of {SIZE}"),
        (head_206(5, SIZE), "it answered with status 206"),
        (head_206(0, SIZE, SIZE + 9) + bytes(SIZE + 9), "it sent more than the file has"),
        (head_206(0, SIZE), "it broke off at byte 0"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0"),
        (b"", "Remote end closed connection without response"),
    ],
)
def test_what_is_no_such_file_is_taken_from_the_next(
    den: Giving, file: Path, part: Part, tmp_path: Path, answer: bytes, why: str
) -> None:
    def send(connection: socket.socket, _head: bytes) -> None:
        try:
            connection.sendall(answer)
        except OSError:
            return  # it heard enough

    with answering(send) as giver:
        if "more than" not in why:
            with pytest.raises(Trouble, match=r"m.gguf cannot be copied from other machines") as trouble:
                copy(part, [giver], tmp_path / "alone")
            assert why in trouble.value.message
            assert trouble.value.code == "network"
        copy(part, [giver, den.giver], tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == SIZE


def test_another_zone_and_another_token_get_nothing(
    den: Giving, part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Trouble, match="den: it answered with status 403"):
        copy(part, [den.giver], tmp_path / "copy", zone="office")
    monkeypatch.setattr("tests.test_model_copy.TOKEN", "another")
    with pytest.raises(Trouble, match="den: it answered with status 401"):
        copy(part, [den.giver], tmp_path / "copy")


def test_nobody_there_is_told(part: Part, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(Trouble, match=r"den: .*refused"):
        copy(part, [Giver("den", f"http://127.0.0.1:{port}")], tmp_path / "copy")
    with pytest.raises(Trouble, match="nobody has it"):
        copy(part, [], tmp_path / "copy")


def test_it_takes_no_more_than_the_rate(den: Giving, part: Part, tmp_path: Path) -> None:
    began = time.monotonic()
    copy(part, [den.giver], tmp_path / "copy", rate=1_600_000)
    assert time.monotonic() - began >= (SIZE - 400_000) / 1_600_000


def test_a_full_disk_is_no_matter_of_the_other_machine(den: Giving, part: Part) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("r+b", buffering=0) as out, pytest.raises(OSError, match="No space left"):
        Copying(TOKEN, ZONE, CopyRate(None)).copy(part, [den.giver], out, lambda *_: None)

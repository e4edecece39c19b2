"""Gemma's sliding window on a host: many sessions at once, and what is left of one after a kill and after harm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host_process import HostProcess, Stream, model_spec, session
from tests.models import gemma

TOKENS = 24
COUNTING = ", ".join(str(number) for number in range(1, 150)) + ","
"""Longer than the window of 512 tokens; what follows is clear-cut, so that rounding does not change it."""


def make_host(folder: Path, **spec: Any) -> HostProcess:
    return HostProcess(folder, model_spec(**spec), str(gemma()), None)


@pytest.fixture
def single(tmp_path: Path) -> Iterator[HostProcess]:
    host = make_host(tmp_path, context=1024, hold_s=0.3)
    try:
        host.start()
        yield host
    finally:
        host.kill()


def greedy(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0, "max_tokens": TOKENS}


def begin(host: HostProcess, prompt: str, who: str) -> Stream:
    return host.stream(greedy(prompt), who=who, path="/v1/completions")


def read(stream: Stream) -> tuple[str, dict[str, Any]]:
    """The whole text, and what homeport said of it."""
    events = list(stream.events())
    assert stream.done
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    return text, next(event["homeport"] for event in reversed(events) if "homeport" in event)


def ask(host: HostProcess, prompt: str, who: str = "ann") -> tuple[str, dict[str, Any]]:
    answer = host.post("/v1/completions", greedy(prompt), who=who)
    assert answer.status == 200, answer.body
    return answer.body["choices"][0]["text"], answer.body["homeport"]


def parked(host: HostProcess, who: str) -> Path:
    """The session's file, once it is there."""
    file = host.folder / "parked" / f"{session(who)}.kv"
    host.wait_until(lambda state: file.exists())
    return file


def test_eight_streams_at_once_are_whole_and_their_second_turns_are_warm(tmp_path: Path) -> None:
    host = make_host(tmp_path, context=256, sessions=8)
    try:
        host.start()
        names = [f"session-{number}" for number in range(8)]
        prompts = {
            who: f"{number}, {number + 1}, {number + 2}, {number + 3},"
            for number, who in enumerate(names, 11)
        }
        for turn in (1, 2):
            streams = {who: begin(host, prompts[who], who) for who in names}
            for who, stream in streams.items():
                text, told = read(stream)
                assert len(text) > TOKENS / 2
                assert told["context"] == ("evaluated" if turn == 1 else "resident")
                assert told["evaluated_tokens"] <= 24
                prompts[who] += text + " then"
        assert host.state()["parking"]["sessions"] == 0
    finally:
        host.kill()


def test_killed_in_mid_decode_it_says_what_it_would_have_said(single: HostProcess) -> None:
    first, _ = ask(single, COUNTING)
    further = COUNTING + first + " and"
    without, told = ask(single, further)
    assert told["context"] == "resident"
    assert ask(single, COUNTING, "ben")[0] == first
    parked(single, "ben")
    lost = single.stream(
        {"prompt": further, "max_tokens": 400, "temperature": 1}, who="ben", path="/v1/completions"
    )
    next(lost.events())
    single.kill()
    single.start()
    text, told = ask(single, further, "ben")
    assert (told["context"], told["cause"]) == ("resumed", None)
    assert text == without


def test_a_harmed_file_is_survived(single: HostProcess) -> None:
    prompt = "1, 2, 3, 4, 5, 6, 7,"
    before = {who: ask(single, prompt, who)[0] for who in ("ann", "ben", "cem")}
    files = {who: parked(single, who) for who in before}
    single.kill()
    flipped, cut = (bytearray(files[who].read_bytes()) for who in ("ann", "ben"))
    flipped[len(flipped) // 2] ^= 4
    files["ann"].write_bytes(flipped)
    files["ben"].write_bytes(cut[: len(cut) // 2])
    files["cem"].rename(single.folder / "parked" / f"{session('dan')}.kv")
    single.start()
    for who, as_before, cause in (
        ("ann", "ann", "restore_failed"),
        ("ben", "ben", "restore_failed"),
        ("dan", "cem", "engine_changed"),
    ):
        text, told = ask(single, prompt, who)
        assert (who, text, told["context"], told["cause"]) == (who, before[as_before], "evaluated", cause)
    assert single.errors().count("a parked context is dropped") == 3

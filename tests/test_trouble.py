"""serving/trouble.py: where an error came from, and not a word of it."""

import asyncio

import pytest

from serving.trouble import report_callback, trace_of


def test_a_trace_has_type_and_frames_and_no_words() -> None:
    try:
        raise ValueError("my " + "secret")
    except ValueError as error:
        trace = trace_of(error)
    assert trace.endswith("ValueError")
    assert "test_trouble.py" in trace
    assert "my secret" not in trace


def test_a_callback_that_fails_is_reported_without_its_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    def fails(text: str) -> None:
        raise ValueError(text)

    async def call() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(report_callback)
        loop.call_soon(fails, "my " + "secret")
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(call())
    said = capfd.readouterr()
    assert "ValueError" in said.err
    assert "my secret" not in said.out + said.err

"""How much sooner a parked session of 2,048 tokens has its first token than one that is evaluated anew."""

import asyncio
import signal
import statistics
from dataclasses import dataclass

from benchmarks import one_host
from benchmarks.answers import Answer, Client, assistant, user
from benchmarks.cores import Cores
from benchmarks.report import Figure
from benchmarks.words import words

CONTEXT = 4096
LONG = 1990
"""Words; with the template some 2,048 tokens."""
TARGET, MOONSHOT = 50, 500
NEXT = "And then?"


@dataclass(frozen=True, slots=True)
class Round:
    """What was asked of the parked session, and the first of it also of a session that was new."""

    anew: Answer
    again: Answer
    """The same prompt, from memory."""
    further: Answer
    """The next turn, from memory."""
    restarted: Answer
    """The same prompt, from disk after a restart of the host."""


def measure(cores: Cores, rounds: int) -> list[Figure]:
    """On a host with one place, so that a session is parked by another's turn."""
    with one_host.running(cores, CONTEXT, 1) as host:
        found = [_round(host, number) for number in range(rounds)]
    anew = [each.anew for each in found]
    moonshot = f" (moonshot {MOONSHOT} x)"
    return [
        _figure("from memory", moonshot, [each.again for each in found], anew, "the same prompt again"),
        _figure("from memory, at its next turn", "", [each.further for each in found], anew, "its next turn"),
        _figure(
            "from disk", "", [each.restarted for each in found], anew, "the same prompt, in a new process"
        ),
    ]


def _round(host: one_host.MeasuredHost, number: int) -> Round:
    name, fresh = one_host.name(2 * number), one_host.name(2 * number + 1)
    prompt = [user(words(str(number), LONG))]
    asyncio.run(_ask(host, prompt, name, 8))
    anew = asyncio.run(_ask(host, prompt, fresh, 1))  # parks the first
    again = _resumed(host, prompt, name)
    _park(host)
    further = _resumed(host, [*prompt, assistant(again.text), user(NEXT)], name)
    _park(host)
    host.signal(signal.SIGTERM)
    host.wait_end()
    host.begin()
    _park(host)  # the process's first turn is not what is measured
    return Round(anew, again, further, _resumed(host, prompt, name))


def _resumed(host: one_host.MeasuredHost, messages: list[dict[str, str]], session: str) -> Answer:
    answer = asyncio.run(_ask(host, messages, session, 1))
    if answer.headers["x-homeport-context"] != "resumed":
        raise RuntimeError(f"the session was not resumed: {dict(answer.headers)}")
    return answer


def _park(host: one_host.MeasuredHost) -> None:
    """Let another session take the place."""
    asyncio.run(_ask(host, [user("Hello")], one_host.name(10_000), 1))


async def _ask(
    host: one_host.MeasuredHost, messages: list[dict[str, str]], session: str, tokens: int
) -> Answer:
    async with Client(host.server) as client:
        return await client.ask(messages, tokens, session)


def _figure(where: str, moonshot: str, resumed: list[Answer], anew: list[Answer], how: str) -> Figure:
    ratio = statistics.median(slow.first_s / quick.first_s for quick, slow in zip(resumed, anew, strict=True))
    resumed_ms, anew_ms = (
        statistics.median(answer.first_s for answer in answers) * 1000 for answers in (resumed, anew)
    )
    tokens, new = anew[-1].prompt_tokens, resumed[-1].prompt_tokens - resumed[-1].cached_tokens
    return Figure(
        f"time to the first token of a parked session of {tokens:,} tokens, {where}, against evaluating it anew",
        f">= {TARGET} x sooner{moonshot}",
        f"{ratio:.0f} x ({resumed_ms:.0f} ms against {anew_ms:.0f} ms)",
        ratio >= TARGET,
        f"{how}, {new} token{'s' if new > 1 else ''} of it evaluated; median of {len(anew)} rounds",
    )

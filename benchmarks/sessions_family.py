"""A parent with three children on one exclusive replica: is any of them refused, and what is evaluated again?"""

import threading
import time
from dataclasses import dataclass

from benchmarks.report import Figure
from benchmarks.sessions_ask import Ask, Said, and_then, ask, at_once, user
from benchmarks.sessions_homeport import running
from benchmarks.words import words

CHILDREN = 3
HOLD_S, QUEUE_S = 2.0, 3.0
"""So short that children who waited for a hold, or were refused after their queue, would be seen."""
CHILD_TOKENS = 100
"""More than a second: the third of three waits for longer than a queue allows."""
SEAM = 2
"""Tokens where an answer becomes history: its last one was never evaluated, and the template ends it in its own way."""


@dataclass(frozen=True, slots=True)
class Round:
    """`over`: tokens that the parent's next turn evaluated beyond what is new in it."""

    refused: int
    evaluated: int
    over: int


def measure(rounds: int) -> list[Figure]:
    """In every other round the parent's next turn comes while its children's second turns still run and wait."""
    with running(count="1", hold=f"{HOLD_S:.0f}s", queue=f"{QUEUE_S:.0f}s") as homeport:
        port = homeport.ports["router"]
        found = []
        for number in range(rounds):
            found.append(_round(port, number, hurried=bool(number % 2)))
            time.sleep(
                HOLD_S + 0.5
            )  # the next parent is no member of this family: it would wait for the hold
    refused, over = sum(one.refused for one in found), max(one.over for one in found)
    return [
        Figure(
            f"parent with {CHILDREN} children on one exclusive replica",
            "0 x 429; the parent's next turn evaluates only its new tokens",
            f"{refused} x 429; at most {max(0, over)} tokens beyond the new ones "
            f"({min(one.evaluated for one in found)} to {max(one.evaluated for one in found)} evaluated)",
            refused == 0 and over <= SEAM,
            f"{rounds} families; two turns of {CHILD_TOKENS} tokens for each child, hold {HOLD_S:.0f} s, queue "
            f"{QUEUE_S:.0f} s; in every other one the parent's next turn comes while its children's still run; "
            f"up to {SEAM} tokens at the seam are not counted as old",
        )
    ]


def _round(port: int, number: int, hurried: bool) -> Round:
    name = f"family-{number}"
    messages = user(words(name, 150))
    first = ask(Ask(port, name, messages, 24))
    if first.error is not None:
        raise RuntimeError(f"the parent's first turn failed: {first.error}")
    turns = [
        Ask(
            port,
            f"{name}-child-{each}",
            user(words(f"{name}{each}", 40)),
            CHILD_TOKENS,
            {"x-homeport-parent": name},
        )
        for each in range(CHILDREN)
    ]
    children = at_once(turns)
    seconds: list[Said] = []

    def again() -> None:
        seconds.extend(
            at_once(
                [
                    Ask(
                        port,
                        turn.session,
                        and_then(turn.messages, said, "Go on."),
                        CHILD_TOKENS,
                        turn.headers,
                    )
                    for turn, said in zip(turns, children, strict=True)
                ]
            )
        )

    rest = threading.Thread(target=again)
    rest.start()
    if hurried:
        time.sleep(0.5)
    else:
        rest.join()
    second = ask(Ask(port, name, and_then(messages, first, "And then?"), 8))
    rest.join()
    everybody = [*children, *seconds, second]
    refused = [said for said in everybody if said.status == 429 or "queue_timeout" in (said.error or "")]
    if broken := [said.error for said in everybody if said.error is not None and said not in refused]:
        raise RuntimeError(f"a turn of the family failed: {broken}")
    if second in refused:
        return Round(len(refused), 0, 0)
    new = second.usage["prompt_tokens"] - first.usage["prompt_tokens"] - first.usage["completion_tokens"]
    evaluated = second.homeport["evaluated_tokens"]
    return Round(len(refused), evaluated, evaluated - new)

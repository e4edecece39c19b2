"""Two sessions at once, each on its own core, against one alone: does either notice the other?"""

import statistics
import threading

from benchmarks.report import Figure
from benchmarks.streams import Timed, running, stream

ROUNDS = 5
TOKENS = 200
TARGET = 0.9


def measure() -> list[Figure]:
    """The median over rounds of (speed beside the other) / (speed alone), for each of the two."""
    ratios: dict[str, list[float]] = {"one": [], "two": []}
    with running() as homeport:
        port = homeport.ports["router"]
        homes = {name: stream(port, name, 8).replica for name in ratios}
        if len(set(homes.values())) < 2:
            raise RuntimeError("this needs two free cores")
        for _ in range(ROUNDS):
            alone = {name: stream(port, name, TOKENS).tokens_per_s for name in ratios}
            beside = _at_once(port, list(ratios))
            for name, found in ratios.items():
                found.append(beside[name].tokens_per_s / alone[name])
    medians = [statistics.median(found) for found in ratios.values()]
    return [
        Figure(
            "two sessions at once on their own cores, tokens/s of each against one alone",
            f">= {TARGET} x",
            " and ".join(f"{median:.2f} x" for median in medians),
            min(medians) >= TARGET,
            f"{TOKENS} tokens, median of {ROUNDS} rounds alone / beside each other",
        )
    ]


def _at_once(port: int, names: list[str]) -> dict[str, Timed]:
    found: dict[str, Timed] = {}

    def ask(name: str) -> None:
        found[name] = stream(port, name, TOKENS)

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found

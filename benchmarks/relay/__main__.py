"""`python -m benchmarks.relay`: what homeport's router costs beside other relays, and the table of README.md.

With `--only` it measures what bytes cost in those relays, once, and writes nothing: `--only homeport,floor,nginx
--seconds 5` takes a minute.
"""

import argparse
import resource
import signal
import sys
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from types import FrameType

from benchmarks import report
from benchmarks.relay import debian, lookup, own, peers, rows
from benchmarks.relay.measure import WORKS
from benchmarks.relay.relays import Relay
from benchmarks.relay.runs import Runs

RELAYS: dict[str, Relay] = {
    relay.name: relay
    for relay in (
        own.HOMEPORT,
        own.FLOOR,
        debian.NGINX_RELAY,
        debian.HAPROXY_RELAY,
        peers.VLLM_ROUTER,
        peers.SGLANG_ROUTER,
        peers.LITELLM,
    )
}
COSTS = ("streams", "small", "history")
SECONDS, ROUNDS = 3.0, 3
OPEN_FILES = 20_000


def main() -> int:
    """Exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", type=_names(RELAYS), metavar="RELAYS", help=f"of: {','.join(RELAYS)}")
    parser.add_argument("--work", type=_names(WORKS), metavar="WORKS", help=f"of: {','.join(WORKS)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each measure takes")
    parser.add_argument("--rounds", type=int, help="how often each relay is started and measured")
    chosen = parser.parse_args()
    works = chosen.work or (COSTS if chosen.only else tuple(WORKS))
    relays = [RELAYS[name] for name in chosen.only or RELAYS]
    rounds = chosen.rounds or (1 if chosen.only else ROUNDS)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
    runs = Runs(relays, works, chosen.seconds, rounds, lambda line: print(line, flush=True))
    runs.run()
    table = rows.every_relay(relays, runs.outcomes)
    print(f"\n{table}\n")
    if chosen.only or chosen.work:
        return 0
    figures = rows.figures(runs.outcomes, lookup.measure(), rounds)
    for figure in figures:
        print(f"{'met   ' if figure.met else 'MISSED'}  {figure.question}: {figure.measured}", flush=True)
    date = datetime.now(UTC).date().isoformat()
    report.write("relay", f"{report.table(figures, date)}\n\n{table}")
    return 0 if all(figure.met for figure in figures) else 1


def _names(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads some of these, with commas between."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}")
        return names

    return read


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """As Ctrl-C, which asyncio knows: what runs is ended on the way out."""
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

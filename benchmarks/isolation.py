"""What a session notices of its neighbours: `homeport bench isolation`, its table written into README.md.

`python -m benchmarks.isolation [--quick]`: sessions as neighbours, then builds. The pictures lie in docs/ afterwards
(`isolation*.svg` and `.png`; with builds `isolation-build*`). `--quick` only tries whether all of it runs, and writes
nothing.
"""

import os
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from cluster.paths import Paths
from router import following
from router.bench_isolation import CannotMeasure, Order, keep, show, take
from serving.isolation import Report, markdown
from serving.machine_bench import BenchFailed

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main(quick: bool) -> int:
    """Exit code 1 when a target was missed, or nothing could be measured; 130 after Ctrl-C."""
    following.start_signals()
    try:
        reports = [
            take(Paths.from_env(os.environ), Order(agent=agent, quick=quick), _say) for agent in (False, True)
        ]
    except (CannotMeasure, BenchFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except following.Ended:
        return 130
    for each in reports:
        show(each)
    if not quick:
        report.write("isolation", "\n\n".join(markdown(each) for each in reports))
        for each, name in zip(reports, ("isolation", "isolation-build"), strict=True):
            _draw(each, name)
    return 0 if all(verdict.met for each in reports for verdict in each.verdicts) else 1


def _draw(measured: Report, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for file in keep(measured, Path(folder)):
            (DOCS / file.name.replace("isolation", name, 1)).write_bytes(file.read_bytes())


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main("--quick" in sys.argv[1:]))

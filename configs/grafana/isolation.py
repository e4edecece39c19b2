"""The dashboard Isolation: whether replicas are left alone in their slices, and what it does to their answers."""

from configs.grafana.panels import Board, Panel, Query, Row, Variable, lines, share, stack, stat

HERE = 'machine=~"$machine"'
GAPS = "homeport_time_between_tokens_seconds"


def _gap(quantile: float) -> str:
    return f"histogram_quantile({quantile}, sum by (replica, le) (rate({GAPS}_bucket{{{HERE}}}[$__rate_interval])))"


def _cores(whose: str) -> str:
    return f"sum by (replica) (homeport:{whose}_cores:rate1m{{{HERE}}})"


NOW = Row(
    "Now",
    (
        stat(
            "Slowest token gap",
            f"max(homeport:time_between_tokens_seconds:p99_5m{{{HERE}}})",
            "The 99th hundredth of the replica where it is longest, over five minutes.",
            "s",
            6,
        ),
        stat(
            "Foreign load",
            f"sum(homeport:foreign_cores:rate1m{{{HERE}}})",
            "Cores inside slices that others take.",
            width=6,
            bad_from=0.25,
        ),
        stat(
            "Slices with foreign load",
            f"count(homeport:foreign_cores:rate1m{{{HERE}}} > 0.25) or vector(0)",
            "Of which others take more than a quarter of a core: after five minutes it is an alert.",
            width=6,
            bad_from=1,
        ),
        stat(
            "Foreign on GPUs",
            f"sum(max by (gpu) (homeport_gpu_foreign_processes{{{HERE}}}))",
            "Processes that no host started.",
            width=6,
            bad_from=1,
        ),
    ),
)
ANSWERS = Row(
    "What answers feel",
    (
        lines(
            "Token gap, 99th hundredth",
            _gap(0.99),
            "{{replica}}",
            "Between two tokens of one answer. A neighbour that disturbs shows here first.",
            "s",
            12,
        ),
        lines(
            "Token gap, median",
            _gap(0.5),
            "{{replica}}",
            "How fast the replica is when nothing is in its way.",
            "s",
            12,
        ),
        lines(
            "99th hundredth over median",
            share(_gap(0.99), _gap(0.5)),
            "{{replica}}",
            "Flat while a replica has its slice to itself. As fine as the buckets of the histogram.",
            width=12,
        ),
        Panel(
            "Token gaps",
            "heatmap",
            (Query(f"sum by (le) (increase({GAPS}_bucket{{{HERE}}}[$__rate_interval]))", "{{le}}"),),
            "How many there were of each length, of all replicas chosen.",
            "s",
            12,
        ),
    ),
)
SLICES = Row(
    "What happens in slices",
    (
        lines(
            "Own",
            _cores("slice"),
            "{{replica}}",
            "Cores that the replica's own processes take of its slice.",
        ),
        stack(
            "Foreign",
            _cores("foreign"),
            "{{replica}}",
            "Cores of the slice that others take, Ray and the router too. `homeport status` names them.",
        ),
        lines(
            "Foreign share",
            share(_cores("foreign"), f"{_cores('foreign')} + {_cores('slice')}"),
            "{{replica}}",
            "Of all that ran in the slice.",
            "percentunit",
        ),
        lines(
            "Turns at once",
            f'sum by (replica) (homeport_sessions{{{HERE}, state="running"}})',
            "{{replica}}",
            "More than one only where sessions share a replica on purpose.",
            width=12,
        ),
        lines(
            "Foreign processes on GPUs",
            f"max by (machine, gpu) (homeport_gpu_foreign_processes{{{HERE}}})",
            "{{machine}} {{gpu}}",
            "That no host started.",
            width=12,
        ),
    ),
)
BOARD = Board(
    "isolation",
    "homeport: Isolation",
    "Whether replicas are left alone in their slices, and what it does to answers where they are not.",
    (Variable("machine", "homeport_machine_up"),),
    (NOW, ANSWERS, SLICES),
)

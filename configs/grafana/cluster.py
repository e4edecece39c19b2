"""The dashboard Cluster: whether all is well, how much is asked, how quickly it is answered."""

from configs.grafana.panels import Board, Row, bars, lines, quantiles, rate, share, stack, stat, states

UP = "max by (machine) (homeport_machine_up)"

HAS = {
    "Cores": "homeport_machine_cores",
    "Memory": "homeport_machine_memory_bytes",
    "GPUs": "homeport_machine_gpus",
}


def _promised(family: str) -> str:
    kinds = (f'max by (machine) ({family}{{kind="{kind}"}})' for kind in ("promised", "total"))
    return share(*kinds)


NOW = Row(
    "Now",
    (
        stat(
            "Alerts",
            'count(ALERTS{alertname=~"Homeport.+", alertstate="firing"}) or vector(0)',
            "Of configs/rules/alerts.yml, that fire. Prometheus' page /alerts says which, and what to do.",
            bad_from=1,
        ),
        stat("Machines up", f"sum({UP})", "That are heard from."),
        stat(
            "Machines away",
            f"count({UP}) - sum({UP})",
            "Lost, asleep, or not heard from yet. Their sessions wait, move or fail, as when_lost says.",
            bad_from=1,
        ),
        stat(
            "Replicas ready",
            'sum(max by (replica) (homeport_replica_state{state="ready"}))',
            "That take turns now.",
        ),
        stat("Running", 'sum(homeport_sessions{state="running"})', "Turns that are answered now."),
        stat(
            "Waiting",
            'sum(homeport_sessions{state="waiting"})',
            "Turns in the lines of all replicas.",
            bad_from=10,
        ),
    ),
)
ASKED = Row(
    "What is asked",
    (
        stack(
            "Requests by outcome",
            rate("homeport_requests_total", "status"),
            "{{status}}",
            "A second. ok, client_gone, or the code of the error that the client was told.",
            "reqps",
        ),
        lines(
            "Errors",
            "homeport:errors:ratio_rate5m",
            "{{model}}",
            "Of all requests of five minutes. A client that left is none.",
            "percentunit",
        ),
        stack(
            "Tokens by machine",
            "sum by (machine) (homeport:generated_tokens:rate1m)",
            "{{machine}}",
            "Generated a second.",
        ),
        quantiles(
            "First token",
            "homeport_time_to_first_token_seconds",
            "model",
            "From the request's arrival to the engine's first event; the line is part of it.",
        ),
        quantiles(
            "Whole requests",
            "homeport_request_duration_seconds",
            "model",
            "From its arrival to the answer's last byte.",
        ),
        quantiles(
            "In the line",
            "homeport_line_wait_seconds",
            "model",
            "What turns waited for their home. Where it grows, a model has too few replicas.",
        ),
    ),
)
MACHINES = Row(
    "Machines",
    (
        states(
            "Up",
            "max by (machine, zone) (homeport_machine_up)",
            "{{machine}} ({{zone}})",
            "Red: away, that is lost, asleep, or not heard from yet.",
        ),
        lines(
            "Last heard",
            "max by (machine) (homeport_heartbeat_age_seconds)",
            "{{machine}}",
            "Ago. A machine is lost after network.lost_after (30 s); its hosts are asked by the router itself.",
            "s",
            12,
        ),
        *(
            bars(
                f"{what} promised",
                _promised(family),
                "{{machine}}",
                "To replicas, of all that the machine has.",
                "percentunit",
                5,
            )
            for what, family in HAS.items()
        ),
        lines(
            "Host restarts",
            "sum by (machine) (increase(homeport_host_restarts_total[1h]))",
            "{{machine}}",
            "Within an hour. Why a host starts again and again is in its host.err.",
            width=5,
        ),
        bars(
            "Versions",
            "count by (version) (homeport_build_info)",
            "{{version}}",
            "Processes of each. Replicas keep theirs until they start anew.",
            width=4,
        ),
    ),
)
ENERGY = Row(
    "Energy",
    (
        lines(
            "Joules a token",
            "homeport:joules_per_token:ratio_rate5m",
            "{{machine}}",
            "What a machine's GPUs took, over the tokens that it generated. Of GPUs that tell it.",
            "joule",
            12,
        ),
        stack(
            "Power of GPUs",
            "sum by (machine) (homeport_gpu_power_watts)",
            "{{machine}}",
            "All that runs on them, homeport's or not.",
            "watt",
            12,
        ),
    ),
)
BOARD = Board(
    "cluster",
    "homeport: Cluster",
    "Whether all is well, how much is asked, and how quickly it is answered.",
    (),
    (NOW, ASKED, MACHINES, ENERGY),
)

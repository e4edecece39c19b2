"""Panels and rules ask for nothing that homeport does not tell."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric

from router.metrics import Metrics
from serving.exposition import build_info
from serving.host_metrics import families as host_families
from serving.machine_metrics import keeper_families, machine_families
from tests.prometheus.queries import names, panel_queries, rules

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
ONLY_TOGETHER = {"homeport_controller_up"}
"""Told where the router answers for all: Prometheus' own `up` says it otherwise."""


def series(families: Iterable[Metric]) -> set[str]:
    """Their names; when they were created is not told."""
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def told() -> set[str]:
    """By the router, hosts, keepers and the controller, whatever is counted."""
    own = CollectorRegistry()
    Metrics(own, "1")
    families = [*own.collect(), *host_families([]), *machine_families([], {}), *keeper_families({})]
    return series([*families, build_info("1")]) | ONLY_TOGETHER


def test_what_rules_ask_for_is_told() -> None:
    recorded = {rule.name for rule in rules() if not rule.is_alert}
    assert {name for rule in rules() for name in names(rule.expr)} - recorded <= told()


def test_what_panels_ask_for_is_told() -> None:
    recorded = {rule.name for rule in rules() if not rule.is_alert}
    asked = {name for _, expr in panel_queries() for name in names(expr)}
    assert asked - recorded <= told()

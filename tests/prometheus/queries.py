"""What rules and dashboards ask Prometheus for: their PromQL, and the names in it. Asks nobody."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.grafana.generate import BOARDS
from configs.grafana.panels import Board

CONFIGS = Path(__file__).parents[2] / "configs"
NAME = re.compile(r"(?<![\w:.$])(homeport(?:_[a-z0-9]+)+|homeport(?::[a-z0-9_]+)+)(?![\w:])")
QUOTED = re.compile(r'"[^"]*"')


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    expr: str
    is_alert: bool


def rules() -> list[Rule]:
    """Of configs/rules, in the order of files and within them."""
    found = []
    for file in sorted((CONFIGS / "rules").glob("*.yml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            found += [_rule(rule) for rule in group["rules"]]
    return found


def _rule(told: dict[str, Any]) -> Rule:
    return Rule(told.get("alert") or told["record"], told["expr"], "alert" in told)


def panel_queries() -> Iterator[tuple[str, str]]:
    """`board: panel`, and one of its queries as it is written."""
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                yield f"{board.name}: {panel.title}", query.expr


def filled(expr: str, board: Board, machine: str, interval_s: int) -> str:
    """The query as Grafana sends it: all chosen where that can be, else this machine."""
    chosen = {variable.name: ".*" if variable.all else machine for variable in board.variables}
    for name, value in chosen.items():
        expr = expr.replace(f"${name}", value)
    return expr.replace("$__rate_interval", f"{interval_s}s")


def names(expr: str) -> set[str]:
    """Of series: homeport's metrics and recording rules."""
    return set(NAME.findall(QUOTED.sub('""', expr)))

"""`python -m configs.grafana.generate`: writes the dashboards of this folder as the JSON that Grafana imports.

`--check` writes nothing and says which file is not what it would write.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmaps
from grafana_foundation_sdk.models import prometheus as queries

from configs.grafana import cluster, isolation, machine, sessions
from configs.grafana.panels import Board, Kind, Panel, Query, Row, Variable

BOARDS = (cluster.BOARD, machine.BOARD, sessions.BOARD, isolation.BOARD)
FOLDER = Path(__file__).parent / "dashboards"
TAG = "homeport"
SOURCE = models.DataSourceRef("prometheus", "${datasource}")
NOT_WELL = "/lost|failed/"
"""States that are red while they last."""


def file_of(board: Board) -> Path:
    return FOLDER / f"{board.name}.json"


def as_json(board: Board) -> str:
    """What Grafana imports, ending with a newline."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(f"homeport-{board.name}")
        .description(board.says)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("15s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink(TAG)
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            dashboard.DatasourceVariable("datasource")
            .label("Prometheus")
            .type("prometheus")  # nothing chosen
        )
    )
    for variable in board.variables:
        built.with_variable(_variable(variable))
    ids = iter(range(1, 1000))
    for row in board.rows:
        _row(built, row, ids.__next__)
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main(argv: Sequence[str]) -> int:
    """Exit status: 1 if `--check` finds a difference."""
    differ = 0
    for board in BOARDS:
        file, text = file_of(board), as_json(board)
        if "--check" not in argv:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            print(f"{file} is not what is written now: python -m configs.grafana.generate", file=sys.stderr)
            differ = 1
    return differ


def _variable(variable: Variable) -> dashboard.QueryVariable:
    made = (
        dashboard.QueryVariable(variable.name)
        .label(variable.name.capitalize())
        .query(f"label_values({variable.source}, {variable.name})")
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(variable.all)
        .include_all(variable.all)
    )
    if variable.all:
        made.all_value(".*").current(models.VariableOption(True, "All", "$__all"))
    return made


def _row(built: dashboard.Dashboard, row: Row, new_id: Callable[[], int]) -> None:
    built.with_row(dashboard.Row(row.title).id(new_id()))
    for panel in row.panels:
        made = BUILD[panel.kind](panel)
        made.title(panel.title).description(panel.says).datasource(SOURCE).unit(panel.unit)
        made.id(new_id()).span(panel.width).height(panel.height)
        for letter, query in zip("ABC", panel.queries, strict=False):
            made.with_target(_target(query, letter, panel.kind))
        built.with_panel(made)


def _target(query: Query, letter: str, kind: Kind) -> prometheus.Dataquery:
    made = (
        prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter).datasource(SOURCE)
    )
    return made.format(queries.PromQueryFormat.HEATMAP).range() if kind == "heatmap" else made.range()


def _limits(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(None, "green")]
    if panel.bad_from is not None:
        steps.append(models.Threshold(panel.bad_from, "red"))
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _stat(panel: Panel) -> stat.Panel:
    return stat.Panel().reduce_options(_last()).thresholds(_limits(panel)).no_value("-")


def _lines(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(commons.LegendDisplayMode.LIST)
    made = timeseries.Panel().fill_opacity(10).axis_soft_min(0).show_points(commons.VisibilityMode.NEVER)
    made.legend(legend.placement(commons.LegendPlacement.BOTTOM).show_legend(True))
    made.tooltip(common.VizTooltipOptions().mode(commons.TooltipDisplayMode.MULTI))
    if panel.kind == "stack":
        made.fill_opacity(40).stacking(common.StackingConfig().mode(commons.StackingMode.NORMAL).group("A"))
    return made


def _bars(panel: Panel) -> bargauge.Panel:
    made = bargauge.Panel().reduce_options(_last()).thresholds(_limits(panel)).min(0)
    made.orientation(commons.VizOrientation.HORIZONTAL).display_mode(commons.BarGaugeDisplayMode.BASIC)
    return made.max(1) if panel.unit == "percentunit" else made


def _states(_: Panel) -> statetimeline.Panel:
    no, yes = (models.ValueMappingResult(text=text) for text in ("no", "yes"))
    mapping = models.ValueMap(options={"0": no, "1": yes})
    steps = [models.Threshold(None, "red"), models.Threshold(1, "green")]
    red = models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "red"})
    made = statetimeline.Panel().mappings([mapping]).show_value(commons.VisibilityMode.NEVER).row_height(0.8)
    made.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    made.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    return made.override_by_regexp(NOT_WELL, [red])


def _heatmap(panel: Panel) -> heatmap.Panel:
    color = heatmap.HeatmapColorOptions().mode(heatmaps.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    made = heatmap.Panel().calculate(False).color(color).y_axis(heatmap.YAxisConfig().unit(panel.unit))
    return made.show_tooltip()


BUILD: dict[Kind, Callable[[Panel], Any]] = {
    "stat": _stat,
    "lines": _lines,
    "stack": _lines,
    "bars": _bars,
    "states": _states,
    "heatmap": _heatmap,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

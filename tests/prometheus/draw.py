"""Dashboards as pictures, where there is no Grafana: the committed JSON, with what a Prometheus recorded.

Draws what it needs of Grafana's panels and no more: places, titles, units, series and their names.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs.grafana import generate
from configs.grafana.panels import COLUMNS, Board
from tests.prometheus.queries import filled
from tests.prometheus.server import Prometheus, Series

WIDTH_IN, CELL_IN, DPI = 16.0, 0.34, 80
PAPER, PANEL, INK, FAINT = "#f4f5f5", "#ffffff", "#24292e", "#8e8e8e"
COLOURS = (
    "#3274d9",
    "#e0752d",
    "#56a64b",
    "#8f3bb8",
    "#e02f44",
    "#f2cc0c",
    "#37872d",
    "#fa6400",
    "#1f60c4",
    "#b877d9",
)
GREEN, RED = "#56a64b", "#e02f44"


def draw(
    board: Board, prometheus: Prometheus, machine: str, start: float, end: float, step_s: int, file: Path
) -> None:
    """One dashboard over this time (seconds since the epoch) as a PNG. A row without any data is its title only."""
    found: dict[int, list[tuple[str, Series]]] = {}
    rows: list[list[dict[str, Any]]] = []
    for panel in json.loads(generate.file_of(board).read_text())["panels"]:
        if panel["type"] == "row":
            rows.append([])
        rows[-1].append(panel)
        found[panel["id"]] = []
        for target in panel.get("targets", []):
            expr = filled(target["expr"], board, machine, 10 * step_s)
            series = prometheus.over(expr, start, end, step_s)
            found[panel["id"]] += [(_named(target["legendFormat"], one), one) for one in series]
    heights = [_height(row) if any(found[panel["id"]] for panel in row) else 1 for row in rows]
    cells = sum(heights) + 2
    figure = Figure((WIDTH_IN, cells * CELL_IN), dpi=DPI, facecolor=PAPER)
    figure.text(0.008, 1 - 1 / cells, board.title, size=15, weight="bold", va="center", color=INK)
    top = 2
    for (title, *panels), height in zip(rows, heights, strict=True):
        name = title["title"] if height > 1 else f"{title['title']}: no data of this machine"
        figure.text(0.008, 1 - (top + 0.5) / cells, name, size=11, va="center", color=INK)
        for panel in panels if height > 1 else []:
            at = panel["gridPos"]
            y = at["y"] - title["gridPos"]["y"] + top
            box = (at["x"] / COLUMNS, 1 - (y + at["h"]) / cells, at["w"] / COLUMNS, at["h"] / cells)
            _panel(figure, panel, box, sorted(found[panel["id"]], key=lambda each: each[0]), (start, end))
        top += height
    figure.savefig(file)


def _height(row: list[dict[str, Any]]) -> int:
    bottom: int = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in row)
    return bottom - int(row[0]["gridPos"]["y"])


def _named(legend: str, series: Series) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: series.labels.get(found[1], ""), legend)


def _panel(
    figure: Figure,
    panel: dict[str, Any],
    box: tuple[float, float, float, float],
    series: list[tuple[str, Series]],
    between: tuple[float, float],
) -> None:
    x, y, w, h = box
    inch_w, inch_h = figure.get_size_inches()
    edge_w, edge_h = 0.05 / inch_w, 0.05 / inch_h
    frame = figure.add_axes((x + edge_w, y + edge_h, w - 2 * edge_w, h - 2 * edge_h), facecolor=PANEL)
    frame.set(xticks=[], yticks=[])
    frame.spines[:].set_color("#d8d9da")
    figure.text(
        x + 0.12 / inch_w, y + h - 0.2 / inch_h, panel["title"], size=9, weight="bold", va="center", color=INK
    )
    if not series:
        figure.text(x + w / 2, y + h / 2, "No data", size=11, ha="center", va="center", color=FAINT)
        return
    kind, unit = panel["type"], panel["fieldConfig"]["defaults"].get("unit", "short")
    if kind == "stat":
        value = series[0][1].points[-1][1]
        colour = _limit_colour(panel, value)
        figure.text(
            x + w / 2, y + h * 0.42, spelled(value, unit), size=22, ha="center", va="center", color=colour
        )
        return
    room = 0.7 if kind in ("timeseries", "heatmap") else 1.5
    plot = figure.add_axes(
        (x + room / inch_w, y + 0.62 / inch_h, w - (room + 0.2) / inch_w, h - 1.02 / inch_h), facecolor=PANEL
    )
    plot.spines[["top", "right"]].set_visible(False)
    plot.tick_params(labelsize=7, colors=FAINT)
    {"timeseries": _lines, "bargauge": _bars, "state-timeline": _states, "heatmap": _heatmap}[kind](
        plot, panel, series, unit, between
    )


def _limit_colour(panel: dict[str, Any], value: float) -> str:
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return {"green": GREEN, "red": RED}[reached[-1]]


def _lines(
    plot: Axes,
    panel: dict[str, Any],
    series: list[tuple[str, Series]],
    unit: str,
    between: tuple[float, float],
) -> None:
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    is_stack = custom.get("stacking", {}).get("mode") == "normal"
    times = np.array(sorted({at for _, one in series for at, _ in one.points}))
    below = np.zeros(len(times))
    for number, (name, one) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        values = dict(one.points)
        ys = np.array([values.get(at, np.nan) for at in times])
        if is_stack:
            top = below + np.nan_to_num(ys)
            plot.fill_between(times - between[0], below, top, color=colour, alpha=0.45, lw=0)
            ys, below = top, top
        plot.plot(times - between[0], ys, color=colour, lw=1.2, label=name or None)
    plot.set_xlim(0, between[1] - between[0])
    top = max(plot.get_ylim()[1], 1e-9)
    plot.set_ylim(0, top)
    if unit == "bytes":
        step = 2.0 ** np.ceil(np.log2(top / 5))
        plot.set_yticks(np.arange(0, top, step))
    plot.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")
    plot.yaxis.set_major_formatter(lambda value, _: spelled(value, unit))
    plot.grid(color="#ececec", lw=0.6)
    if any(name for name, _ in series):
        plot.legend(
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.12),
            ncols=4,
            fontsize=7,
            frameon=False,
            handlelength=1,
        )


def _bars(
    plot: Axes, panel: dict[str, Any], series: list[tuple[str, Series]], unit: str, _: tuple[float, float]
) -> None:
    names, values = [name for name, _ in series], [one.points[-1][1] for _, one in series]
    drawn = plot.barh(names, values, color=[_limit_colour(panel, value) for value in values], height=0.5)
    plot.bar_label(drawn, [spelled(value, unit) for value in values], size=8, padding=3)
    plot.set_xlim(0, 1.3 * panel["fieldConfig"]["defaults"].get("max", max(1e-9, *values)))
    plot.invert_yaxis()
    plot.set_xticks([])


def _states(
    plot: Axes, _: dict[str, Any], series: list[tuple[str, Series]], __: str, between: tuple[float, float]
) -> None:
    for number, (name, one) in enumerate(series):
        step = min(np.diff([at for at, _ in one.points]), default=1.0)
        for at, value in one.points:
            well = value == 1 and not re.search(generate.NOT_WELL.strip("/"), name)
            plot.barh(number, step, left=at - between[0], color=GREEN if well else RED, height=0.7, lw=0)
    plot.set_yticks(range(len(series)), [name for name, _ in series])
    plot.set_xlim(0, between[1] - between[0])
    plot.invert_yaxis()
    plot.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")


def _heatmap(
    plot: Axes, _: dict[str, Any], series: list[tuple[str, Series]], unit: str, between: tuple[float, float]
) -> None:
    """Buckets are cumulative: each less the one below it."""
    ordered = sorted(series, key=lambda each: float(each[0]))
    times = np.array(sorted({at for _, one in ordered for at, _ in one.points}))
    counts = np.array([[dict(one.points).get(at, 0.0) for at in times] for _, one in ordered])
    each = np.diff(counts, axis=0, prepend=0.0).clip(min=0)
    shown = np.ma.masked_less_equal(each, 0)
    plot.pcolormesh(times - between[0], np.arange(len(ordered)), shown, cmap="Oranges", shading="nearest")
    plot.set_yticks(range(len(ordered)), [spelled(float(name), unit) for name, _ in ordered])
    plot.set_xlim(0, between[1] - between[0])
    plot.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")


def spelled(value: float, unit: str) -> str:
    """A value in a unit of Grafana's, in a few characters."""
    if not np.isfinite(value):
        return "∞" if value > 0 else "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or name == "GiB":
                return f"{value:.3g} {name}"
            value /= 1024
    if unit == "s" and 0 < abs(value) < 1:
        return f"{1000 * value:.3g} ms"
    signs = {"s": " s", "reqps": " /s", "ops": " /s", "watt": " W", "joule": " J", "celsius": " °C"}
    return f"{value:.3g}{signs.get(unit, '')}"

"""The picture of `homeport bench isolation`. Only this module imports matplotlib; it shows no window.

Its own background, in a light and a dark version, so that it can be read on any page. Colours by Okabe and Ito ("Color
Universal Design", 2008), which people who see colours otherwise tell apart; each regime has a marker of its own too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, NullFormatter

from serving.isolation import REGIMES, TITLES, Figures, Regime, Report

WIDTH, HEIGHT = 10.0, 5.6
"""In inches of 72 points."""
DOTS = 160
TOGETHER = 0.88
"""Regimes beside the same number of neighbours share so much of the width; 1 is from one number to the next."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one version, and what its files are called."""

    name: str
    paper: str
    ink: str
    faint: str
    regimes: dict[Regime, str]


LIGHT = Theme(
    "isolation",
    "#ffffff",
    "#1f2328",
    "#d0d7de",
    {"shared": "#D55E00", "dedicated": "#0072B2", "quota": "#7A7A7A", "vm": "#009E73"},
)
DARK = Theme(
    "isolation-dark",
    "#0d1117",
    "#e6edf3",
    "#30363d",
    {"shared": "#E69F00", "dedicated": "#56B4E9", "quota": "#A5A5A5", "vm": "#009E73"},
)
MARKERS: dict[Regime, str] = {"shared": "s", "dedicated": "o", "quota": "^", "vm": "D"}


def draw(report: Report, folder: Path) -> list[Path]:
    """SVG and PNG, for light pages and for dark ones. Raises OSError."""
    files = []
    for theme in (LIGHT, DARK):
        settings: Any = {
            "svg.hashsalt": "homeport",
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "axes.edgecolor": theme.faint,
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink),
        }
        with mpl.rc_context(settings):
            picture = _picture(report, theme)
            for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                files.append(folder / f"{theme.name}.{kind}")
                picture.savefig(files[-1], format=kind, dpi=DOTS, facecolor=theme.paper, metadata=metadata)
    return files


def _picture(report: Report, theme: Theme) -> Picture:
    picture = Picture(figsize=(WIDTH, HEIGHT), facecolor=theme.paper)
    FigureCanvasAgg(picture)
    grid = picture.add_gridspec(
        1, 3, width_ratios=(2.1, 1, 1), left=0.07, right=0.985, top=0.79, bottom=0.235, wspace=0.3
    )
    gaps, speed, first = (picture.add_subplot(grid[0, column]) for column in range(3))
    _gaps(gaps, report, theme)
    _values(speed, report, theme, "tokens a second", lambda each: each.tokens_per_s)
    _values(first, report, theme, "first token, s", lambda each: each.first_s)
    what = "sessions" if report.beside == "sessions" else report.beside
    picture.text(
        0.02, 0.94, f"What a session notices of its neighbours: {what}", fontsize=14, fontweight="bold"
    )
    handles, labels = speed.get_legend_handles_labels()
    picture.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.012, 0.925),
        ncols=len(REGIMES),
        frameon=False,
        fontsize=10,
    )
    said = [
        f"{each.what}: {each.measured:g} (target {each.target}, {'met' if each.met else 'missed'})"
        for each in report.verdicts
    ]
    where = f"{report.machine}; {report.date}; homeport {report.version}; medians over {report.rounds} rounds"
    picture.text(0.02, 0.02, "\n".join([*said, where]), fontsize=8.5, va="bottom", linespacing=1.45)
    return picture


def _gaps(axes: Any, report: Report, theme: Theme) -> None:
    """From the median to the longest gap, the p99 marked and told in words."""
    for regime, offset in _offsets(report):
        colour, marker = theme.regimes[regime], MARKERS[regime]
        for each in report.of(regime):
            at = _at(report, each.neighbours) + offset
            low, high, longest = (seconds * 1000 for seconds in (each.p50_s, each.p99_s, each.max_s))
            axes.plot([at, at], [low, longest], color=colour, linewidth=1.6, alpha=0.75, zorder=2)
            axes.plot([at], [low], marker="_", markersize=9, color=colour, zorder=3)
            axes.plot([at], [longest], marker="_", markersize=9, color=colour, zorder=3)
            axes.plot([at], [high], marker=marker, markersize=8, color=colour, zorder=4)
            axes.annotate(
                f"{high:,.0f}",
                (at, high),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _frame(axes, report, theme, "gap between tokens, ms (log): p50 to longest, p99 marked")


def _values(axes: Any, report: Report, theme: Theme, title: str, of: Callable[[Figures], float]) -> None:
    for regime, _ in _offsets(report):
        found = report.of(regime)
        axes.plot(
            [_at(report, each.neighbours) for each in found],
            [of(each) for each in found],
            color=theme.regimes[regime],
            marker=MARKERS[regime],
            markersize=7,
            linewidth=1.6,
            label=TITLES[regime],
        )
    axes.set_ylim(bottom=0)
    _frame(axes, report, theme, title)


def _frame(axes: Any, report: Report, theme: Theme, title: str) -> None:
    axes.set_facecolor(theme.paper)
    axes.set_title(title, fontsize=10, loc="left", color=theme.ink)
    axes.set_xticks(range(len(_counts(report))), [str(count) for count in _counts(report)])
    axes.set_xlim(-0.5, len(_counts(report)) - 0.5)
    axes.set_xlabel("neighbours")
    axes.grid(axis="y", color=theme.faint, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=theme.faint)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _offsets(report: Report) -> list[tuple[Regime, float]]:
    """How far beside its number of neighbours each measured regime stands."""
    measured = [regime for regime in REGIMES if report.of(regime)]
    middle = (len(measured) - 1) / 2
    return [(regime, (number - middle) * TOGETHER / len(measured)) for number, regime in enumerate(measured)]


def _at(report: Report, neighbours: int) -> int:
    return _counts(report).index(neighbours)


def _counts(report: Report) -> Sequence[int]:
    return sorted({each.neighbours for each in report.figures})

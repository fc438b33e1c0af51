"""A bar chart of the ratios of times to mlxopt's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.contest import verdicts
from benchmarks.report import Results, amount, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {
    "mlxopt": "#c2410c",
    "mlx": "#f0a868",
    "numpy": "#4c78a8",
    "scipy": "#4c78a8",
    "scikit-learn": "#72a0c9",
    "statsmodels": "#8fb8a8",
    "glum": "#5f9e7f",
    "optax": "#8a79b8",
    "jaxopt": "#8a79b8",
    "torch": "#b0708f",
}
_OTHER = "#888888"
_COLUMNS = (1.19, 1.38, 1.53)  # right edges of the numbers, in widths of the axes
_HEAD, _GAP = 1.1, 0.45  # heights of a heading and of the space before it, in bars


def draw(results: Results, machine: dict[str, Any], judged: bool) -> Figure:
    """Return a figure of bars from mlxopt's time, on a logarithmic axis.

    Args:
        results: of all workloads; measurements of memory are left out.
        machine: shown above the chart.
        judged: whether to mark the goals.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    places, bars, headings = _layout(results, judged)
    ratios = [1.0, *(bar.ratio for bar in bars), *(bar.goal for bar in bars if bar.goal)]
    inches = 0.2 * places + 1.0
    figure = Figure(figsize=(8.6, inches))
    ax = figure.add_axes((0.285, 0.55 / inches, 0.46, 1 - 0.85 / inches))
    ax.set_xscale("log")
    ax.set_xlim(min(ratios) / 1.3, max(ratios) * 1.3)
    ax.set_ylim(places, -0.8)
    for place, text in headings:
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        _write(ax, -0.6, place, text, fontsize=9, fontweight="bold", bbox=white)
    for at, text in zip(_COLUMNS, ("in mlxopt's", "time", "error"), strict=True):
        _write(ax, at, 0.0, text, fontsize=8, color="0.4", ha="right")
    for bar in bars:
        place = bar.place
        ax.barh(place, bar.ratio - 1.0, left=1.0, height=0.72, color=bar.color)
        if bar.ratio == 1.0:
            ax.plot(1.0, place, "D", color=bar.color, markersize=5, clip_on=False)
        if bar.goal is not None:
            ax.plot([bar.goal] * 2, [place - 0.44, place + 0.44], color="black", linewidth=2)
        for at, text in zip(_COLUMNS, (bar.times, bar.time, bar.error), strict=True):
            _write(ax, at, place, text, fontsize=8, ha="right")
    ax.axvline(1.0, color=_COLORS["mlxopt"], linewidth=0.8, zorder=0)
    ax.set_yticks([bar.place for bar in bars], [bar.name for bar in bars], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(LogLocator(10))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    ax.tick_params(axis="x", labelsize=8)
    below = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8}
    ax.annotate("← quicker than mlxopt", (1.0, 0.0), (-10, -28), ha="right", **below)
    ax.annotate("slower than mlxopt →", (1.0, 0.0), (10, -28), ha="left", **below)
    if judged:
        _write(ax, 1.53, places + 0.4, "black mark: the goal", fontsize=8, ha="right")
    ax.spines[["top", "right", "left"]].set_visible(False)
    title = (
        f"Time of each, in mlxopt's: {machine['CPU']}, {machine['cores']} cores, "
        f"MLX on {machine['MLX BLAS']}, NumPy on {machine['NumPy BLAS']}"
    )
    figure.suptitle(title, x=0.01, y=1 - 0.1 / inches, ha="left", va="top", fontsize=9)
    return figure


class _Bar(NamedTuple):
    place: float  # from the top, in bars
    name: str
    color: str
    ratio: float  # of its time to mlxopt's
    goal: float | None  # smallest `ratio` that meets the goal
    times: str
    time: str
    error: str


def _layout(results: Results, judged: bool) -> tuple[float, list[_Bar], list[tuple[float, str]]]:
    """Return the total height, the bars, and the headings with their places."""
    bars: list[_Bar] = []
    headings: list[tuple[float, str]] = []
    place = 0.0
    for _, task, outcomes in results:
        ours = outcomes[0]
        if task.unit != "seconds" or not math.isfinite(ours.figure):
            continue
        headings.append((place, task.title))
        place += _HEAD
        for outcome in outcomes:
            if not math.isfinite(outcome.figure):
                continue
            claim = next((c for c in verdicts(task, ours, outcome) if c.quantity == "time"), None)
            goal = None
            if judged and claim is not None:
                goal = claim.goal if claim.inverse else 1 / claim.goal
            quotient = outcome.figure / ours.figure
            name = outcome.contestant.name
            color = _COLORS.get(outcome.contestant.package, _OTHER)
            times = "" if outcome is ours else f"{significant(quotient)}×"
            error = "" if outcome.error is None else f"{outcome.error:.0e}"
            time = amount(outcome.figure, task.unit)
            bars.append(_Bar(place, name, color, quotient, goal, times, time, error))
            place += 1.0
        place += _GAP
    return place, bars, headings


def _write(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write beside the axes: x in widths of the axes, y in bars."""
    style = {"ha": "left", "va": "center_baseline", **style}
    ax.text(x, y, text, transform=ax.get_yaxis_transform(), **style)

"""Pictures of plain arrays, each returned as matplotlib axes; `ax.figure.savefig(...)` keeps it.

matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "calibration",
    "descent",
    "fitted_values",
    "history",
    "loss_curves",
    "performance_profile",
    "residuals",
    "separation",
    "trajectories",
]


def __dir__() -> list[str]:
    return __all__


# Of Okabe and Ito: distinct for every kind of color vision, and against gray.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def history(history: Any, ax: Axes | None = None) -> Axes:
    """Draw loss and gradient norm of a run against its steps; return the axes.

    Args:
        history: with arrays `step`, `value` and `optimality`, such as `Result.history`.
        ax: axes to draw on; None: a new figure.
    """
    ax = _axes(ax)
    marker = "o" if len(history.step) < 30 else None
    lines = ax.plot(history.step, history.value, marker=marker, markersize=3, label="loss")
    _finish(ax, "step", "loss")
    below = ax.twinx()
    style = {"color": "tab:orange", "linestyle": "--", "linewidth": 1}
    name = "largest gradient entry"
    lines += below.plot(history.step, history.optimality, label=name, **style)
    below.set_ylabel(name)
    for axis, values in (ax, history.value), (below, history.optimality):
        finite = values[np.isfinite(values)]
        if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
            axis.set_yscale("log")
    ax.legend(handles=lines, loc="upper right")
    return ax


def loss_curves(
    histories: Mapping[str, Any], lowest: float = 0.0, floor: float = 0.0, ax: Axes | None = None
) -> Axes:
    """Draw how far losses are above the lowest, against steps, both logarithmic; return the axes.

    Args:
        histories: a history of each run, such as `Result.history`, by name.
        lowest: the loss at the minimum, more exact than those of the runs.
        floor: rounding error of the difference of two losses; smaller ones are drawn there.
        ax: axes to draw on; None: a new figure, with a legend.
    """
    legend = "best" if ax is None else None
    ax = _axes(ax)
    for index, (name, run) in enumerate(histories.items()):
        gap = np.maximum(run.value - lowest, floor)
        seen = gap > 0
        marker = "osD^"[index % 4] if len(run.step) < 60 else None
        ax.plot(run.step[seen], gap[seen], label=name, marker=marker, markersize=4, **_style(index))
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(left=0)
    if floor > 0:
        ax.axhspan(floor / 10, floor, color="0.9", label="rounding")
    ax.set(yscale="log", ylim=(floor / 10 or None, None))
    return _finish(ax, "step", _loss_label(lowest), legend)


def fitted_values(observed: np.ndarray, fitted: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw observed against fitted values, a perfect fit on the diagonal; return the axes.

    Args:
        observed: shape (rows,).
        fitted: shape (rows,).
        ax: axes to draw on; None: a new figure.
    """
    ax = _cloud(fitted, observed, ax)
    ends = [min(fitted.min(), observed.min()), max(fitted.max(), observed.max())]
    ax.plot(ends, ends, color="black", linewidth=1, label="observed = fitted")
    return _finish(ax, "fitted", "observed", "upper left")


def residuals(observed: np.ndarray, fitted: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw residuals (observed - fitted) against fitted values; return the axes.

    From 200 rows on, a line joins the means of twenty groups of equal size in the order of the
    fitted values.

    Args:
        observed: shape (rows,).
        fitted: shape (rows,).
        ax: axes to draw on; None: a new figure.
    """
    residual = observed - fitted
    ax = _cloud(fitted, residual, ax)
    ax.axhline(0, color="black", linewidth=1)
    enough = len(fitted) >= 200
    if enough:
        groups = np.array_split(np.argsort(fitted, kind="stable"), 20)
        x, y = ([values[group].mean() for group in groups] for values in (fitted, residual))
        ax.plot(x, y, color="C1", marker="o", markersize=4, label="means of 5 % of the rows")
    return _finish(ax, "fitted", "residual (observed - fitted)", "upper left" if enough else None)


def calibration(labels: np.ndarray, probabilities: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw observed shares of label 1 against fitted probabilities; return the axes.

    Rows are sorted by probability and cut into at most ten groups of equal size, with Wilson's
    95 % intervals (1927, "Probable inference, the law of succession, and statistical inference").

    Args:
        labels: shape (rows,), 0 or 1.
        probabilities: shape (rows,), of label 1.
        ax: axes to draw on; None: a new figure.
    """
    ax = _axes(ax)
    count = int(np.clip(len(labels) // 20, 2, 10))
    groups = np.array_split(np.argsort(probabilities, kind="stable"), count)
    groups = [group for group in groups if len(group)]
    expected = np.array([probabilities[group].mean() for group in groups])
    share = np.array([labels[group].mean() for group in groups])
    size = np.array([len(group) for group in groups])
    z = 1.959964  # the normal distribution's 97.5 % point
    center = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    spread = z * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    bars = np.maximum([share - (center - spread), center + spread - share], 0)
    ax.plot([0, 1], [0, 1], color="black", linewidth=1, label="perfectly calibrated")
    rows = " or ".join(f"{count:,}" for count in np.unique(size))
    label = f"{len(groups)} groups of {rows} rows, with 95 % intervals"
    ax.errorbar(expected, share, yerr=bars, fmt="o", markersize=5, capsize=3, label=label)
    # Room for the legend above all points.
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.18), yticks=np.linspace(0, 1, 6))
    return _finish(ax, "fitted probability", "observed share", "upper left")


def separation(
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str] = ("0", "1"),
    ax: Axes | None = None,
) -> Axes:
    """Draw the distribution of fitted probabilities for each of two labels; return the axes.

    Args:
        labels: shape (rows,), 0 or 1.
        probabilities: shape (rows,), of label 1.
        names: of the labels.
        ax: axes to draw on; None: a new figure.
    """
    from matplotlib.ticker import MaxNLocator

    ax = _axes(ax)
    edges = np.linspace(0, 1, 21)
    for index, name in enumerate(names):
        group = probabilities[labels == index]
        counts, color = np.histogram(group, edges)[0], f"C{index}"
        ax.stairs(counts, edges, fill=True, alpha=0.3, color=color)
        label = f"{name} ({len(group):,} rows)"
        ax.stairs(counts, edges, linewidth=1.5, color=color, label=label)
    ax.set(xlim=(0, 1), ylim=(0, 1.15 * ax.get_ylim()[1]))  # room for the legend
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(ax, "fitted probability", "rows", "upper right", grid=False, ncols=2)


def performance_profile(
    costs: Mapping[str, np.ndarray], measure: str = "evaluations", ax: Axes | None = None
) -> Axes:
    """Draw the share of problems solved within a factor of the best cost; return the axes.

    A curve begins with the share on which the solver was the best and ends with the share it solved
    (Dolan and Moré 2002, "Benchmarking optimization software with performance profiles").

    Args:
        costs: of each problem, shape (problems,), by solver; infinite if not solved.
        measure: unit of the costs.
        ax: axes to draw on; None: a new figure.
    """
    ax = _axes(ax)
    best = np.min(list(costs.values()), axis=0)
    solved = {name: np.isfinite(cost) for name, cost in costs.items()}
    ratios = {name: costs[name][rows] / best[rows] for name, rows in solved.items()}
    end = 1.3 * max([1.5, *(ratio.max() for ratio in ratios.values() if len(ratio))])
    for index, (name, ratio) in enumerate(ratios.items()):
        share = np.arange(len(ratio) + 1) / len(best)
        edges = np.concatenate([[1], np.sort(ratio), [end]])
        label = f"{name} ({len(ratio)} of {len(best)})"
        ax.stairs(share, edges, baseline=None, linewidth=1.8, label=label, **_style(index))
    ax.set(xlim=(1, end), ylim=(0, 1.04))
    if end > 4:
        ax.set_xscale("log")
    if 4 < end < 1000:
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= end]
        ax.set_xticks(ticks, list(map(str, ticks)))
        ax.minorticks_off()
    x = f"{measure}, as a multiple of the best solver's"
    return _finish(ax, x, "share of problems solved", "lower right")


def descent(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    lowest: float = 0.0,
    unit: str = "evaluations",
    ax: Axes | None = None,
) -> Axes:
    """Draw how far losses are above the lowest, against their cost; return the axes.

    A loss no higher than the lowest is drawn at the lower edge.

    Args:
        curves: costs and losses of each run, two arrays of one length, by name.
        lowest: the loss at the minimum.
        unit: of the cost, such as "evaluations" or "seconds".
        ax: axes to draw on; None: a new figure.
    """
    ax = _axes(ax)
    costs = np.concatenate([cost for cost, _ in curves.values()])
    gaps = {name: np.asarray(value) - lowest for name, (_, value) in curves.items()}
    visible = np.concatenate([gap[gap > 0] for gap in gaps.values()])
    floor = max(visible.min() / 10, 1e-18 * visible.max()) if len(visible) else 1.0
    for index, (name, (cost, _)) in enumerate(curves.items()):
        gap, style = np.maximum(gaps[name], floor), _style(index)
        ax.plot(cost, gap, label=name, linewidth=1.8, **style)
        ax.plot(cost[-1:], gap[-1:], "o", color=style["color"], markersize=5)
    positive = costs[costs > 0]
    if len(positive) and positive.max() > 100 * positive.min():
        ax.set_xscale("log")
    ax.set_yscale("log")
    return _finish(ax, unit, _loss_label(lowest), "best")


def trajectories(
    across: np.ndarray,
    up: np.ndarray,
    values: np.ndarray,
    paths: Mapping[str, np.ndarray],
    minima: np.ndarray | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the paths of runs on a map of a loss of two parameters; return the axes.

    Shades are evenly spaced in the logarithm of the loss above its lowest value on the map.

    Args:
        across: shape (columns,), values of the first parameter.
        up: shape (rows,), values of the second.
        values: shape (rows, columns), the loss there.
        paths: points of each run, shape (points, 2), by name.
        minima: shape (n, 2), drawn as stars.
        ax: axes to draw on; None: a new figure.
    """
    ax = _axes(ax)
    above = values - np.nanmin(values)
    typical = np.nanmedian(above) or 1.0
    shade = np.log10(np.maximum(above, 1e-4 * typical))
    ax.contourf(across, up, shade, levels=18, cmap="Greys_r", alpha=0.55)
    ax.contour(across, up, shade, levels=18, colors="0.45", linewidths=0.4, linestyles="solid")
    for index, (name, path) in enumerate(paths.items()):
        marker = "o" if len(path) <= 60 else None
        width = max(1.2, 3.0 - 0.4 * index)  # the first is not hidden by those above it
        ax.plot(*path.T, label=name, linewidth=width, marker=marker, markersize=3, **_style(index))
    first = next(iter(paths.values()))[0]
    ax.plot(*first, "s", color="black", markersize=7, label="start")
    if minima is not None and len(minima):
        label = "minimum" if len(minima) == 1 else "minima"
        ax.plot(*minima.T, "*", color="white", mec="black", markersize=15, label=label)
    ax.set(xlim=(across[0], across[-1]), ylim=(up[0], up[-1]))
    return _finish(ax, "first parameter", "second parameter", "best", grid=False, framealpha=0.9)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(6.4, 4.4), layout="constrained")[1]


def _finish(ax: Axes, x: str, y: str, legend: Any = None, grid=True, **options: Any) -> Axes:
    """Add labels, a grid, and a legend at a place."""
    ax.set(xlabel=x, ylabel=y)
    if grid:
        ax.grid(alpha=0.3)
    if legend:
        ax.legend(loc=legend, **options)
    return ax


def _cloud(x: np.ndarray, y: np.ndarray, ax: Axes | None) -> Axes:
    """Draw points, or counts where points would cover one another."""
    ax = _axes(ax)
    if len(x) > 5000:
        hexagons = ax.hexbin(x, y, gridsize=60, bins="log", mincnt=1, cmap="Blues")
        ax.figure.colorbar(hexagons, ax=ax, label="rows")
    else:
        size = float(np.clip(4000 / max(len(x), 1), 6, 30))
        ax.scatter(x, y, s=size, alpha=0.5, linewidths=0)
    return ax


def _loss_label(lowest: float) -> str:
    return "loss above its minimum" if lowest else "loss"


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLORS[index % 7], "linestyle": ("-", "--", "-.", ":")[index % 4]}

"""Pictures of plain arrays; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def history(history: Any, ax: Axes | None = None, label: str = "loss") -> Axes:
    """Draw the loss and the gradient norm of a run against its steps.

    Args:
        history: with arrays `step`, `value` and `optimality`, as `Result.history` has.
        ax: where to draw; None makes a new figure.
        label: what to call the loss.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
    """
    from matplotlib import pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    marker = "o" if len(history.step) < 30 else None
    lines = ax.plot(history.step, history.value, marker=marker, markersize=3, label=label)
    _log_if_wide(ax, history.value)
    ax.set_xlabel("step")
    ax.set_ylabel(label)
    ax.grid(alpha=0.3)
    norm_axis = ax.twinx()
    lines += norm_axis.plot(
        history.step, history.optimality, color="tab:orange", linestyle="--", linewidth=1,
        label="largest gradient entry",
    )  # fmt: skip
    _log_if_wide(norm_axis, history.optimality)
    norm_axis.set_ylabel("largest gradient entry")
    ax.legend(handles=lines, loc="upper right")
    return ax


def _log_if_wide(ax: Axes, values: np.ndarray) -> None:
    """Use a logarithmic axis where positive values span more than a factor of 30."""
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
        ax.set_yscale("log")


def loss_curves(
    histories: Mapping[str, Any], lowest: float = 0.0, floor: float = 0.0, ax: Axes | None = None
) -> Axes:
    """Draw how far the losses of several runs are above the lowest one, against their steps.

    Both axes are logarithmic; step 0 stands at the left edge.

    Args:
        histories: what to call each run, and its history, as `Result.history` has.
        lowest: the loss at the minimum, better known than any of the runs knows it.
        floor: what rounding leaves of a difference of two losses; a smaller one is drawn there.
        ax: where to draw; None makes a new figure, with a legend.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
    """
    alone = ax is None
    ax = _axes(ax)
    for index, (name, run) in enumerate(histories.items()):
        gap = np.maximum(run.value - lowest, floor)
        seen = gap > 0
        ax.plot(
            run.step[seen], gap[seen], label=name, color=f"C{index}", markersize=4,
            marker="osD^"[index % 4] if len(run.step) < 60 else None,
            linestyle=("-", "--", "-.", ":")[index % 4],
        )  # fmt: skip
    ax.set_xscale("symlog", linthresh=1)
    ax.set_yscale("log")
    ax.set_xlim(left=0)
    if floor > 0:
        ax.set_ylim(bottom=floor / 10)
        ax.axhspan(floor / 10, floor, color="0.9", label="rounding")
    ax.set_xlabel("step")
    ax.set_ylabel("loss above its minimum" if lowest else "loss")
    ax.grid(alpha=0.3)
    if alone:
        ax.legend(loc="best")
    return ax


def fitted_values(observed: np.ndarray, fitted: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw what was observed against what a model fitted; a perfect fit lies on the diagonal.

    Args:
        observed: shape (rows,).
        fitted: shape (rows,).
        ax: where to draw; None makes a new figure.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
    """
    ax = _cloud(fitted, observed, ax)
    ends = [min(fitted.min(), observed.min()), max(fitted.max(), observed.max())]
    ax.plot(ends, ends, color="black", linewidth=1, label="observed = fitted")
    ax.set_xlabel("fitted")
    ax.set_ylabel("observed")
    ax.legend(loc="upper left")
    return ax


def residuals(observed: np.ndarray, fitted: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw residuals (observed - fitted) against fitted values.

    A bend means that a term is missing, a funnel that the noise is not of one size. Where there are
    enough rows, a line joins the means of twenty groups of equal size, in the order of the fitted
    values.

    Args:
        observed: shape (rows,).
        fitted: shape (rows,).
        ax: where to draw; None makes a new figure.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
    """
    residual = observed - fitted
    ax = _cloud(fitted, residual, ax)
    ax.axhline(0, color="black", linewidth=1)
    if len(fitted) >= 200:
        groups = np.array_split(np.argsort(fitted, kind="stable"), 20)
        centers = [fitted[group].mean() for group in groups]
        means = [residual[group].mean() for group in groups]
        ax.plot(
            centers, means, color="C1", marker="o", markersize=4, label="means of 5 % of the rows"
        )
        ax.legend(loc="upper left")
    ax.set_xlabel("fitted")
    ax.set_ylabel("residual (observed - fitted)")
    return ax


def calibration(labels: np.ndarray, probabilities: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw how often the event happened against how probable the model thought it.

    The rows are sorted by probability and cut into groups of equal size, up to ten. Bars are 95 %
    intervals for a share (Wilson 1927, "Probable inference, the law of succession, and statistical
    inference").

    Args:
        labels: shape (rows,), 0 or 1.
        probabilities: shape (rows,), those of label 1.
        ax: where to draw; None makes a new figure.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
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
    bars = np.stack([share - (center - spread), center + spread - share])
    ax.plot([0, 1], [0, 1], color="black", linewidth=1, label="perfectly calibrated")
    rows = f"{size.min():,}" if size.min() == size.max() else f"{size.min():,} or {size.max():,}"
    ax.errorbar(
        expected, share, yerr=np.maximum(bars, 0), fmt="o", markersize=5, capsize=3,
        label=f"{len(groups)} groups of {rows} rows, with 95 % intervals",
    )  # fmt: skip
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.18)  # room for the legend above all points
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.set_xlabel("fitted probability")
    ax.set_ylabel("observed share")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left")
    return ax


def separation(
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str] = ("0", "1"),
    ax: Axes | None = None,
) -> Axes:
    """Draw, for each of two labels, how a model's probabilities are spread.

    Args:
        labels: shape (rows,), 0 or 1.
        probabilities: shape (rows,), those of label 1.
        names: what to call the labels.
        ax: where to draw; None makes a new figure.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
    """
    from matplotlib.ticker import MaxNLocator

    ax = _axes(ax)
    edges = np.linspace(0, 1, 21)
    for index, name in enumerate(names):
        group = probabilities[labels == index]
        label = f"{name} ({len(group):,} rows)"
        counts = np.histogram(group, edges)[0]
        ax.stairs(counts, edges, fill=True, alpha=0.3, color=f"C{index}")
        ax.stairs(counts, edges, linewidth=1.5, color=f"C{index}", label=label)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])  # room for the legend
    ax.set_xlabel("fitted probability")
    ax.set_ylabel("rows")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="upper right", ncols=2)
    return ax


def _axes(ax: Axes | None) -> Axes:
    """Return `ax`, or the axes of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(6.4, 4.4), layout="constrained")[1]


def _cloud(x: np.ndarray, y: np.ndarray, ax: Axes | None) -> Axes:
    """Draw points, or how many there are where they would cover one another."""
    ax = _axes(ax)
    if len(x) > 5000:
        hexagons = ax.hexbin(x, y, gridsize=60, bins="log", mincnt=1, cmap="Blues")
        ax.figure.colorbar(hexagons, ax=ax, label="rows")
    else:
        size = float(np.clip(4000 / max(len(x), 1), 6, 30))
        ax.scatter(x, y, s=size, alpha=0.5, linewidths=0)
    ax.grid(alpha=0.3)
    return ax


def performance_profile(
    costs: Mapping[str, np.ndarray], measure: str = "evaluations", ax: Axes | None = None
) -> Axes:
    """Draw the share of problems that each solver solved within a factor of the best one.

    At 1 a curve is the share of problems on which the solver was the best; at the right end, the
    share it solved at all (Dolan and Moré 2002, "Benchmarking optimization software with
    performance profiles").

    Args:
        costs: for each solver what each problem took, shape (problems,); infinite if not solved.
        measure: what the costs count.
        ax: where to draw; None makes a new figure.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
    """
    ax = _axes(ax)
    best = np.min(list(costs.values()), axis=0)
    solved = {name: np.isfinite(cost) for name, cost in costs.items()}
    ratios = {name: costs[name][rows] / best[rows] for name, rows in solved.items()}
    end = 1.3 * max([1.5, *(ratio.max() for ratio in ratios.values() if len(ratio))])
    for index, (name, ratio) in enumerate(ratios.items()):
        share = np.arange(len(ratio) + 1) / len(best)
        ax.stairs(
            share, np.concatenate([[1], np.sort(ratio), [end]]), baseline=None, linewidth=1.8,
            label=f"{name} ({len(ratio)} of {len(best)})", **_look(index),
        )  # fmt: skip
    _factors(ax, end)
    ax.set_ylim(0, 1.04)
    ax.set_xlabel(f"{measure}, as a multiple of the best solver's")
    ax.set_ylabel("share of problems solved")
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right")
    return ax


def descent(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    lowest: float = 0.0,
    unit: str = "evaluations",
    ax: Axes | None = None,
) -> Axes:
    """Draw how far the losses of several runs are above the lowest one, against their cost.

    A loss no higher than the lowest is drawn at the lower edge.

    Args:
        curves: what to call each run, and its costs and losses, two arrays of one length.
        lowest: the loss at the minimum.
        unit: what the cost counts, such as "evaluations" or "seconds".
        ax: where to draw; None makes a new figure.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
    """
    ax = _axes(ax)
    costs = np.concatenate([cost for cost, _ in curves.values()])
    gaps = {name: np.asarray(value) - lowest for name, (_, value) in curves.items()}
    visible = np.concatenate([gap[gap > 0] for gap in gaps.values()])
    floor = max(visible.min() / 10, 1e-18 * visible.max()) if len(visible) else 1.0
    for index, (name, (cost, _)) in enumerate(curves.items()):
        gap = np.maximum(gaps[name], floor)
        ax.plot(cost, gap, label=name, linewidth=1.8, **_look(index))
        ax.plot(cost[-1:], gap[-1:], "o", color=_look(index)["color"], markersize=5)
    positive = costs[costs > 0]
    if len(positive) and positive.max() > 100 * positive.min():
        ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(unit)
    ax.set_ylabel("loss above its minimum" if lowest else "loss")
    ax.grid(alpha=0.3)
    ax.legend(loc="best")
    return ax


def trajectories(
    across: np.ndarray,
    up: np.ndarray,
    values: np.ndarray,
    paths: Mapping[str, np.ndarray],
    minima: np.ndarray | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw where several runs went, on a map of a loss of two parameters.

    Shades are evenly spaced in the logarithm of the loss above its lowest value on the map.

    Args:
        across: shape (columns,), values of the first parameter.
        up: shape (rows,), values of the second.
        values: shape (rows, columns), the loss there.
        paths: what to call each run, and its points, shape (points, 2).
        minima: shape (n, 2), to mark with stars.
        ax: where to draw; None makes a new figure.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
    """
    ax = _axes(ax)
    above = values - np.nanmin(values)
    typical = np.nanmedian(above) or 1.0
    shade = np.log10(np.maximum(above, 1e-4 * typical))
    ax.contourf(across, up, shade, levels=18, cmap="Greys_r", alpha=0.55)
    ax.contour(across, up, shade, levels=18, colors="0.45", linewidths=0.4, linestyles="solid")
    for index, (name, path) in enumerate(paths.items()):
        marks = {"marker": "o", "markersize": 3} if len(path) <= 60 else {}
        # The first is the widest, so that those above it do not hide it.
        width = max(1.2, 3.0 - 0.4 * index)
        ax.plot(path[:, 0], path[:, 1], label=name, linewidth=width, **_look(index), **marks)
    first = next(iter(paths.values()))[0]
    ax.plot(*first, "s", color="black", markersize=7, label="start")
    if minima is not None and len(minima):
        ax.plot(
            minima[:, 0], minima[:, 1], "*", color="white", markeredgecolor="black",
            markersize=15, linestyle="", label="minimum" if len(minima) == 1 else "minima",
        )  # fmt: skip
    ax.set_xlim(across[0], across[-1])
    ax.set_ylim(up[0], up[-1])
    ax.set_xlabel("first parameter")
    ax.set_ylabel("second parameter")
    ax.legend(loc="best", framealpha=0.9)
    return ax


# Okabe and Ito's, which people with any color vision can tell apart, and which stand out of gray.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def _look(index: int) -> dict[str, Any]:
    """Return the color and the dashes of one of several lines."""
    return {"color": _COLORS[index % 7], "linestyle": ("-", "--", "-.", ":")[index % 4]}


def _factors(ax: Axes, end: float) -> None:
    """Make the horizontal axis one of factors, from 1 to `end`."""
    ax.set_xlim(1, end)
    if end <= 4:
        return
    ax.set_xscale("log")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= end]
    if len(ticks) < 10:
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()

"""Pictures of plain arrays; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def history(history: Any, ax: Axes | None = None, label: str = "loss") -> Axes:
    """Draw the loss and the gradient norm of a run against its steps.

    Args:
        history: with arrays `step`, `value` and `grad_norm`, as `Result.history` has.
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
        history.step, history.grad_norm, color="tab:orange", linestyle="--", linewidth=1,
        label="largest gradient entry",
    )  # fmt: skip
    _log_if_wide(norm_axis, history.grad_norm)
    norm_axis.set_ylabel("largest gradient entry")
    ax.legend(handles=lines, loc="upper right")
    return ax


def _log_if_wide(ax: Axes, values: np.ndarray) -> None:
    """Use a logarithmic axis where positive values span more than a factor of 30."""
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
        ax.set_yscale("log")


def loss_curves(
    histories: Mapping[str, Any], lowest: float = 0.0, ax: Axes | None = None
) -> Axes:
    """Draw how far several runs' losses are above the lowest one, against their steps.

    Both axes are logarithmic; step 0 stands at the left edge. A loss that rounding has put at or
    below `lowest` is left out.

    Args:
        histories: what to call each run, and its history, as `Result.history` has.
        lowest: the loss at the minimum, better known than any of the runs knows it.
        ax: where to draw; None makes a new figure.

    Returns:
        the axes; `ax.figure.savefig(...)` keeps the picture.
    """
    from matplotlib import pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for index, (name, run) in enumerate(histories.items()):
        gap = run.value - lowest
        above = gap > 0
        marker = "o" if len(run.step) < 60 else None
        ax.plot(
            run.step[above], gap[above], label=name, marker=marker, markersize=4,
            color=f"C{index}", linestyle=("-", "--", "-.", ":")[index % 4],
        )  # fmt: skip
    ax.set_xscale("symlog", linthresh=1)
    ax.set_yscale("log")
    ax.set_xlim(left=0)
    ax.set_xlabel("step")
    ax.set_ylabel("loss above its minimum" if lowest else "loss")
    ax.grid(alpha=0.3)
    ax.legend(loc="best")
    return ax

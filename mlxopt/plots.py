"""Pictures of plain arrays; matplotlib is imported when one is drawn."""

from __future__ import annotations

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

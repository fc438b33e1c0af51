"""Why a run stopped, each reason with a sentence of advice; and the warning that carries it."""

from __future__ import annotations

import sys
import warnings
from enum import Enum
from pathlib import Path

_PACKAGE = str(Path(__file__).parent / "_")[:-1]  # with the separator at its end


class Status(Enum):
    """Why a run stopped; the value is what it means and what to try."""

    is_failure: bool
    """Whether the caller is warned: the run neither converged nor did what was asked for."""

    CONVERGED = "what a further step could lower the loss by is within tol, or within its rounding."
    COMPLETED = "every step that was asked for has been taken."
    STOPPED = "the callback or a stop rule asked to stop."
    INTERRUPTED = (
        "interrupted from the keyboard, or by an exception; this is the last point reached."
    )
    MAX_STEPS = (
        "max_steps was reached before the run converged. Raise it; where the loss falls slowly, "
        "scale the parameters, or use a method that needs fewer steps: LBFGS in place of a "
        "first-order rule, Newton for few parameters."
    )
    MAX_SECONDS = (
        "the time was up before the run converged. Allow more seconds, or resume from the state of "
        "the result: init=result.state."
    )
    NO_PROGRESS = (
        "no step lowers the loss any more, though it is not at a minimum to the precision of its "
        "dtype: the loss is not smooth, its derivative is not the right one (see "
        "mo.autodiff.check_grads), or its parameters have too different scales."
    )
    SADDLE = (
        "the gradient is zero, but the loss curves down in some direction: a saddle or a maximum. "
        "Start elsewhere (equal or zero weights are saddles of a network), or use TrustRegion."
    )
    FLAT = (
        "the gradient is exactly zero on a plateau: round, a threshold, an argmax or stop_gradient "
        "in the loss, exp or a product that underflows, units that are all off, or a start too far "
        "away. Start closer, or make the loss smooth."
    )
    NONFINITE = (
        "the loss or its gradient became NaN or infinite; this is the last finite point. Lower the "
        "learning rate, or keep the loss inside its domain (log, sqrt, division)."
    )
    DIVERGED = (
        "the loss grew instead of falling; this is the best point seen. Lower the learning rate "
        "(try a tenth), scale the data, or use LBFGS, which chooses its own steps."
    )
    UNBOUNDED = (
        "the loss keeps falling without limit, so there is no minimum to find. Check its sign, or "
        "add a penalty."
    )

    def __repr__(self) -> str:
        return f"Status.{self.name}"


# What ends a stage of a run without a reason to give up on the next one.
SETTLED = {Status.CONVERGED, Status.COMPLETED, Status.NO_PROGRESS}
_EXPECTED = {Status.CONVERGED, Status.COMPLETED, Status.STOPPED, Status.INTERRUPTED}
for _status in Status:
    _status.is_failure = _status not in _EXPECTED


class ConvergenceWarning(UserWarning):
    """A run ended before its answer could be trusted; the message says what to try."""


def warn(message: str, category: type[Warning] = ConvergenceWarning) -> None:
    """Warn at the line outside this package that led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)

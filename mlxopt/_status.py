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

    CONVERGED = "the largest entry of the gradient is within tol."
    COMPLETED = "every step that was asked for has been taken."
    STOPPED = "the callback or a stop rule asked to stop."
    INTERRUPTED = "interrupted from the keyboard; this is the last point reached."
    MAX_STEPS = (
        "max_steps was reached before the gradient came within tol. Raise max_steps, or use a "
        "method that needs fewer steps (LBFGS, Newton)."
    )
    MAX_SECONDS = (
        "the time was up before the run converged. Allow more seconds, or resume from the state of "
        "the result: init=result.state."
    )
    NO_PROGRESS = (
        "no step lowers the loss any more, though the gradient is above tol: the rounding of the "
        "dtype, or a loss that is not smooth, is in the way. Use float64 parameters, a mean in "
        "place of a sum, or a larger tol; check the derivative if the gradient is far from zero."
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

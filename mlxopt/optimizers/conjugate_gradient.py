"""Nonlinear conjugate gradients.

Notation, as in Hager and Zhang (2005): g = gradient, d = direction, y = change of the gradient in
the last step, β = how much of the old direction the new one keeps: d ← -g + β d.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import mlx.core as mx

from mlxopt._objective import Objective
from mlxopt._tree import Params, Vector
from mlxopt.optimizers._descent import (
    Descent,
    DescentState,
    Direction,
    Trial,
    first_trial,
    steepest,
)

_ETA = 0.4  # Hager and Zhang (2013)


class ConjugateMemory(NamedTuple):
    """The memory of conjugate gradients: the next line to search."""

    line: Direction | None  # along d; None at a start, where d is -g
    squared: float  # gᵀD²g


@dataclasses.dataclass(frozen=True)
class ConjugateGradient(Descent):
    """Nonlinear conjugate gradients: descent that remembers one direction, in little space.

        d ← -gradient + β · d
        β = max(β', 0.4 g₀ᵀd / dᵀd)   with β' = (y - 2 d yᵀy / dᵀy)ᵀg / dᵀy   ("hager-zhang")
        β = max(0, gᵀy / g₀ᵀg₀)                                               ("polak-ribiere")

    Hager and Zhang (2005), "A new conjugate gradient method with guaranteed descent and an
    efficient line search", equation 1.3, with the lower bound of their "The limited memory
    conjugate gradient method" (2013), which has no units; Polak and Ribière with the restart of
    Powell, Nocedal and Wright (2006), equations 5.44 and 5.45. It keeps three vectors, where LBFGS
    keeps twenty and takes fewer steps. One step of `minimize` is one evaluation of the loss and its
    gradient.

    Args:
        method: which β, "hager-zhang" or "polak-ribiere".

    >>> import mlx.core as mx, mlxopt as mo
    >>> rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    >>> start = mx.array([-1.2, 1.0])
    >>> result = mo.minimize(rosenbrock, start, mo.ConjugateGradient())
    >>> result.converged, [round(entry, 3) for entry in result.params.tolist()]
    (True, [1.0, 1.0])
    """

    # Conjugacy rests on good minima along the lines: Nocedal and Wright (2006), section 5.2.
    flatness: ClassVar[float] = 0.1

    method: Literal["hager-zhang", "polak-ribiere"] = "hager-zhang"

    def __post_init__(self) -> None:
        if self.method not in ("hager-zhang", "polak-ribiere"):
            expected = "'hager-zhang' or 'polak-ribiere'"
            raise ValueError(f"ConjugateGradient(method={self.method!r}): expected {expected}.")

    def init_memory(self, params: Params, grad: Vector, squared: float) -> ConjugateMemory:
        return ConjugateMemory(None, squared)

    def direction(self, objective: Objective, state: DescentState) -> Direction:
        line, squared = state.memory
        if line is not None:
            return line
        return Direction(steepest(state.grad, state), -squared, first_trial(objective, state))

    def update(self, state: DescentState, trial: Trial) -> ConjugateMemory:
        """Return the next line, conjugate to the last where the loss is quadratic."""
        line, old_squared = state.memory
        old, old_slope = state.direction, -old_squared if line is None else line.slope
        beta = self._beta(old_slope, old_squared, trial)
        slope = -trial.gg + beta * trial.slope
        if not slope < 0:  # Polak and Ribière's may lead up: restart
            beta, slope = 0.0, -trial.gg
        direction = mx.array(beta, dtype=old.dtype) * old + steepest(trial.grad, state)
        # As great a change to first order as in the last step, Nocedal and Wright, section 3.5; but
        # at most to the minimum of the quadratic that curves as the loss did along the last line.
        step_size = state.search.step_size * old_slope / slope if slope else 1.0
        length = beta * (beta * trial.dd - 2 * trial.slope) + trial.gg  # dᵀD⁻²d
        curved = (trial.slope - old_slope) * length
        if curved > 0 and trial.dd > 0:  # zero where squares underflow
            step_size = min(step_size, -slope * state.search.step_size * trial.dd / curved)
        return ConjugateMemory(Direction(direction, slope, step_size), trial.gg)

    def restart(self, state: DescentState) -> ConjugateMemory | None:
        line, squared = state.memory
        return None if line is None else ConjugateMemory(None, squared)

    def _beta(self, old_slope: float, old_squared: float, trial: Trial) -> float:
        if self.method == "polak-ribiere":
            return max(0.0, trial.gy / old_squared) if old_squared else 0.0  # equation 5.45
        dy = trial.slope - old_slope  # positive by the Wolfe conditions
        if not (dy > 0 and trial.dd > 0):  # or squares underflow
            return 0.0
        beta = (trial.gy - 2 * trial.yy * trial.slope / dy) / dy  # equation 1.3
        return max(beta, _ETA * old_slope / trial.dd)

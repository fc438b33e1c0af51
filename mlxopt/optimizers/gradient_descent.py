"""Gradient descent with a line search."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

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


class StepMemory(NamedTuple):
    """The memory of gradient descent."""

    squared: float  # gᵀD²g
    step_size: float | None  # of the next first trial; None at a start


@dataclasses.dataclass(frozen=True)
class GradientDescent(Descent):
    """Steepest descent: along -gradient, with a line search.

        params ← params - t · gradient,   t by the strong Wolfe conditions

    The first trial is t = sᵀy / yᵀy, from the last changes of the parameters (s) and of the
    gradient (y): the shorter of the two of Barzilai and Borwein (1988), "Two-point step size
    gradient methods". It is the slowest of the methods with a line search, for comparisons; LBFGS
    costs the same per step. One step of `minimize` is one evaluation of the loss and its gradient.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum(mx.array([1.0, 10.0]) * (w - 3.0) ** 2)
    >>> result = mo.minimize(loss, mx.zeros(2), mo.GradientDescent())
    >>> result.converged, [round(entry, 4) for entry in result.params.tolist()]
    (True, [3.0, 3.0])
    """

    def init_memory(self, params: Params, grad: Vector, squared: float) -> StepMemory:
        return StepMemory(squared, None)

    def direction(self, objective: Objective, state: DescentState) -> Direction:
        squared, step_size = state.memory
        if step_size is None:
            step_size = first_trial(objective, state)
        return Direction(steepest(state.grad, state), -squared, step_size)

    def update(self, state: DescentState, trial: Trial) -> StepMemory:
        """Return sᵀy / yᵀy; with s = t·d and d = -gradient, sᵀy follows from the two slopes."""
        t = state.search.step_size
        sy = t * (trial.slope + state.memory.squared)
        return StepMemory(trial.gg, sy / trial.yy if sy > 0 and trial.yy > 0 else t)

    def restart(self, state: DescentState) -> StepMemory | None:
        squared, step_size = state.memory
        return None if step_size is None else StepMemory(squared, None)

"""BFGS with a dense inverse Hessian.

Notation, as in Nocedal and Wright (2006), section 6.1: s = change of the parameters in one accepted
step, y = change of the gradient in it, ρ = 1 / (sᵀy), H = the approximate inverse Hessian; all in
the units D of the parameters (see `_descent.py`).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mlxopt._objective import Objective
from mlxopt._tree import Params, Vector, numpy_dtype, to_host, working_dtype
from mlxopt.optimizers import _descent
from mlxopt.optimizers._descent import Descent, DescentState, Direction, Trial

_MOST_PARAMETERS = 20_000  # H then takes 3.2 GB


class BFGSMemory(NamedTuple):
    """The memory of BFGS; p is the number of parameters."""

    inverse: np.ndarray  # (p, p) float64: H
    scaled: bool  # whether a pair has given H its scale


@dataclasses.dataclass(frozen=True)
class BFGS(Descent):
    """BFGS (Broyden, Fletcher, Goldfarb, Shanno): an inverse Hessian updated in every step.

        d = -H · gradient
        H ← (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ

    Nocedal and Wright (2006), algorithm 6.1. H starts as a multiple of the identity that the first
    pair sets: ‖s‖ / ‖y‖, the geometric mean of the two scales that fit it, sᵀy / yᵀy (equation
    6.20) and sᵀs / sᵀy (Oren and Luenberger 1974, "Self-scaling variable metric algorithms"). It is
    kept on the host, p² float64 numbers: for up to a few thousand parameters. One step of
    `minimize` is one evaluation of the loss and its gradient.

    Raises:
        ValueError: more than 20,000 parameters.

    >>> import mlx.core as mx, mlxopt as mo
    >>> rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    >>> result = mo.minimize(rosenbrock, mx.array([-1.2, 1.0]), mo.BFGS())
    >>> result.converged, [round(entry, 3) for entry in result.params.tolist()]
    (True, [1.0, 1.0])
    """

    def init_memory(self, params: Params, grad: Vector, squared: float) -> BFGSMemory:
        if grad.size > _MOST_PARAMETERS:
            raise ValueError(
                f"BFGS keeps a matrix of {grad.size} × {grad.size} numbers; expected at most "
                f"{_MOST_PARAMETERS} parameters. Use LBFGS()."
            )
        return BFGSMemory(np.eye(grad.size), False)

    def direction(self, objective: Objective, state: DescentState) -> Direction:
        H, scaled = state.memory
        gradient, D = to_host(state.grad), _host_scale(state)
        direction = -D * (H @ (D * gradient))
        # Once scaled, H sets the length too.
        step_size = 1.0 if scaled else _descent.first_trial(objective, state)
        return _descent.along(direction, gradient, state.params, step_size)

    def update(self, state: DescentState, trial: Trial) -> BFGSMemory:
        D = _host_scale(state)
        s = (to_host(trial.params) - to_host(state.params)) / D  # as rounded, not as intended
        y = D * (to_host(trial.grad) - to_host(state.grad))
        H, scaled = state.memory
        sy, ss, yy = float(s @ y), float(s @ s), float(y @ y)
        eps = np.finfo(numpy_dtype(working_dtype(state.params))).eps
        # Without positive curvature along s the pair would cost H its positive definiteness.
        if not sy > eps * np.sqrt(ss * yy):
            return BFGSMemory(H, scaled)
        if not scaled:
            H = H * np.sqrt(ss / yy)
        return BFGSMemory(updated(H, s, y), True)

    def restart(self, state: DescentState) -> BFGSMemory | None:
        inverse, scaled = state.memory
        return BFGSMemory(np.eye(len(inverse)), False) if scaled else None


def _host_scale(state: DescentState) -> np.ndarray:
    return np.ones(1) if state.scale is None else to_host(state.scale)


def updated(H: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ, Nocedal and Wright (2006), equation 6.17.

    Multiplied out: one product with H in place of two of matrices. H must be symmetric, sᵀy > 0.
    """
    rho = 1 / (s @ y)
    Hy = H @ y
    cross = np.outer(rho * Hy, s)
    return H - cross - cross.T + (rho * (1 + rho * (y @ Hy))) * np.outer(s, s)

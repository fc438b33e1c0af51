"""BFGS with a dense inverse Hessian.

Notation, as in Nocedal and Wright (2006), section 6.1: s = change of the parameters in one accepted
step, y = change of the gradient in it, ρ = 1 / (sᵀy), H = the approximate inverse Hessian.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._objective import Objective
from mlxopt._tree import Tree, count, numpy_dtype, ravel, working_dtype
from mlxopt.optimizers._descent import Aim, Descent, DescentState, Trial, first_step_size

_MOST_PARAMETERS = 20_000  # H then takes 3.2 GB


class BFGSMemory(NamedTuple):
    """What BFGS has learnt; p is the number of parameters."""

    inverse: np.ndarray  # (p, p) float64: H
    scaled: bool  # whether H has a scale yet, which the first pair gives it


@dataclasses.dataclass(frozen=True)
class BFGS(Descent):
    """BFGS (Broyden, Fletcher, Goldfarb, Shanno): an inverse Hessian learnt from every step.

        d = -H · gradient
        H ← (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ

    Nocedal and Wright (2006), algorithm 6.1. H starts as a multiple of the identity that the first
    pair sets: ‖s‖ / ‖y‖, the geometric mean of the two scales that fit it, sᵀy / yᵀy (equation
    6.20) and sᵀs / sᵀy (Oren and Luenberger 1974, "Self-scaling variable metric algorithms"). It is
    kept on the host in float64 and costs p² numbers, so: for up to a few thousand parameters, and
    fewer steps than LBFGS where they are more than LBFGS's memory. One step of `minimize` is one
    evaluation of the loss and its gradient.

    Raises:
        ValueError: more than 20,000 parameters.

    >>> import mlx.core as mx, mlxopt as mo
    >>> rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    >>> result = mo.minimize(rosenbrock, mx.array([-1.2, 1.0]), mo.BFGS())
    >>> result.converged, [round(entry, 3) for entry in result.params.tolist()]
    (True, [1.0, 1.0])
    """

    def start(self, state: DescentState) -> BFGSMemory:
        """Return the identity."""
        size = count(state.params)
        if size > _MOST_PARAMETERS:
            raise ValueError(
                f"BFGS keeps a matrix of {size} × {size} numbers for {size} parameters; expected "
                f"at most {_MOST_PARAMETERS} parameters. Use LBFGS()."
            )
        return BFGSMemory(np.eye(size), False)

    def learn(self, state: DescentState, trial: Trial) -> BFGSMemory:
        """Return the memory with the last step's pair taken in."""
        s = _difference(trial.params, state.params)  # as rounded, not as intended
        y = _difference(trial.grad, state.grad)
        H, scaled = state.memory
        sy, ss, yy = float(s @ y), float(s @ s), float(y @ y)
        eps = np.finfo(numpy_dtype(working_dtype(state.params))).eps
        # Without positive curvature along s the pair would cost H its positive definiteness.
        if not sy > eps * np.sqrt(ss * yy):
            return state.memory
        if not scaled:
            H = H * np.sqrt(ss / yy)
        return BFGSMemory(update(H, s, y), True)

    def aim(self, objective: Objective, state: DescentState) -> Aim:
        """Return -H · gradient."""
        H, scaled = state.memory
        dtype = working_dtype(state.params)
        gradient = _host(ravel(state.grad, dtype))
        direction = -(H @ gradient)
        # With its scale known, H sets the length too, and 1 is the step to try first.
        step_size = 1.0 if scaled else first_step_size(state.squared)
        vector = mx.array(direction.astype(numpy_dtype(dtype)), dtype=dtype)
        return Aim(vector, float(direction @ gradient), step_size)


def update(H: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ, Nocedal and Wright (2006), equation 6.17.

    Multiplied out, it takes one product with H instead of two of matrices.

    Args:
        H: (p, p), symmetric.
        s: (p,).
        y: (p,), with sᵀy > 0.
    """
    rho = 1 / (s @ y)
    Hy = H @ y
    cross = np.outer(rho * Hy, s)
    return H - cross - cross.T + (rho * (1 + rho * (y @ Hy))) * np.outer(s, s)


def _difference(after: Tree, before: Tree) -> np.ndarray:
    """Return after - before as one vector, subtracted in float64."""
    dtype = working_dtype(after)
    return _host(ravel(after, dtype)) - _host(ravel(before, dtype))


def _host(vector: mx.array) -> np.ndarray:
    return np.array(vector, dtype=np.float64)

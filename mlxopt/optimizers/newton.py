"""Newton's method, damped, with a guard for indefinite Hessians."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from mlxopt._dense import finite, newton_direction
from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import Tree, Vector, count, epsilon, largest_entry, ravel, to_host, to_numpy
from mlxopt.optimizers._descent import Descent, DescentState, Direction, along, first_step_size


@dataclasses.dataclass(frozen=True)
class Newton(Descent):
    """Newton's method: a step to the minimum of the local quadratic, shortened where it overshoots.

    The direction d solves H d = -gradient, on the host in float64. Where the Hessian H is not
    safely positive definite, its eigenvalues λ are replaced by max(|λ|, δ), so that d still leads
    down (Nocedal and Wright 2006, section 3.4). A line search for the strong Wolfe conditions takes
    the full step if it can. One step of `minimize` is one evaluation of the loss and its gradient.

    The dense Hessian costs about p gradients and p² numbers: for up to a few thousand parameters.

    Args:
        hessian: a function `hessian(params, *data) -> (p, p)`, rows and columns in the order of
            `tree_flatten`, if it can be had for less: for a linear model XᵀWX is ten times cheaper.
            None differentiates the loss twice.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda x: mx.sum(mx.exp(x) - 2.0 * x)
    >>> result = mo.minimize(loss, mx.zeros(2), mo.Newton())
    >>> result.steps, [round(entry, 4) for entry in result.params.tolist()]  # log 2
    (4, [0.6931, 0.6931])
    """

    uses_scale: ClassVar[bool] = False

    hessian: Callable[..., mx.array] | None = None

    def __post_init__(self) -> None:
        if self.hessian is not None and not callable(self.hessian):
            found = type(self.hessian).__qualname__
            expected = "a function hessian(params, *data), or None"
            raise TypeError(f"Newton(hessian=...) is {found}; expected {expected}.")

    def direction(self, objective: Objective, state: DescentState) -> Direction | Status:
        found = objective.hessian(state.params, self.hessian)
        matrix = finite(to_numpy(check_hessian(found, count(state.params))))
        gradient = to_host(state.grad)
        with np.errstate(over="ignore", invalid="ignore"):
            direction = newton_direction(matrix, gradient, epsilon(state.params))
            is_step = math.isfinite(direction @ direction)
        if is_step:
            return along(direction, gradient, state.params, 1.0)
        # Where the curvature has all but underflowed, down the slope.
        first = first_step_size(objective, state.params, gradient)
        return along(-gradient, gradient, state.params, first)

    @staticmethod
    def measure(
        value: mx.array, grad: Tree, old_grad: Tree, direction: Vector, scale: Vector | None
    ) -> mx.array:
        dtype = direction.dtype
        slope = mx.sum(ravel(grad, dtype) * direction)
        return mx.stack([value.astype(dtype), largest_entry(grad), slope])


def check_hessian(found: Any, size: int) -> Any:
    """Return a user's Hessian; raise ValueError unless it has the right shape."""
    shape = getattr(found, "shape", type(found).__qualname__)
    if shape != (size, size):
        raise ValueError(
            f"Newton's hessian returned an array of shape {shape}; expected ({size}, {size}), "
            f"the parameters in tree_flatten order."
        )
    return found

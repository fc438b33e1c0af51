"""Newton's method, damped, with a guard for indefinite Hessians."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import (
    Tree,
    count,
    epsilon,
    is_finite,
    largest_entry,
    move,
    numpy_dtype,
    ravel,
    read,
    working_dtype,
)
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._line_search import NO_SEARCH, LineSearch, begin, proceed


class NewtonState(NamedTuple):
    """The state of Newton's method; p is the number of parameters."""

    params: Tree  # the parameters
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the gradient's largest absolute entry
    status: Status | None  # why no further step can be taken
    direction: mx.array | None  # (p,): where the line search looks; None until it is needed
    search: LineSearch  # where it stands


@dataclasses.dataclass(frozen=True)
class Newton(Optimizer[NewtonState]):
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

    hessian: Callable[..., mx.array] | None = None

    def __post_init__(self) -> None:
        if self.hessian is not None and not callable(self.hessian):
            raise TypeError(
                f"Newton(hessian=...) is {type(self.hessian).__qualname__}; expected a function "
                f"hessian(params, *data), or None."
            )

    def init(self, objective: Objective, params: Tree) -> NewtonState:
        """Return the state at `params`; one evaluation."""
        value, grad = objective.value_and_grad(params)
        number, largest = read(value, largest_entry(grad))
        return NewtonState(params, number, grad, largest, None, None, NO_SEARCH)

    def step(self, objective: Objective, state: NewtonState) -> NewtonState:
        """Evaluate one trial along the Newton direction; keep it if the line search accepts it."""
        if state.direction is None:
            state = self._aim(objective, state)
        if state.status is not None or state.direction is None:
            return state
        shift = objective.compiled(move, lambda: move)
        step_size = mx.array(state.search.step_size, dtype=state.direction.dtype)
        trial = shift(state.params, state.direction, step_size)
        value, grad = objective.value_and_grad(trial)
        numbers = objective.compiled(_look, lambda: _look)(value, grad, state.direction)
        trial_value, slope, largest = np.array(numbers).tolist()  # the only read of the step

        search = proceed(state.search, trial_value, slope)
        if search.verdict == "":
            return state._replace(search=search)
        if search.verdict == "failed":
            return state._replace(status=Status.NO_PROGRESS)
        unbounded = search.verdict == "unbounded"
        status = Status.UNBOUNDED if unbounded else None
        if unbounded and not is_finite(trial_value, slope):
            return state._replace(status=status)
        return NewtonState(trial, trial_value, grad, largest, status, None, search)

    def _aim(self, objective: Objective, state: NewtonState) -> NewtonState:
        """Solve for the direction at `params` and begin a line search along it."""
        dtype = working_dtype(state.params)
        size = count(state.params)
        curvature = objective.hessian(state.params, self.hessian)
        shape = getattr(curvature, "shape", type(curvature).__qualname__)
        if shape != (size, size):
            raise ValueError(
                f"Newton's hessian returned an array of shape {shape}; expected ({size}, {size}), "
                f"the parameters in tree_flatten order."
            )
        if isinstance(curvature, mx.array) and curvature.dtype == mx.bfloat16:
            curvature = curvature.astype(mx.float32)  # NumPy has no such type
        matrix = np.array(curvature, dtype=np.float64)
        gradient = np.array(ravel(state.grad, dtype), dtype=np.float64)
        if not np.isfinite(matrix).all():
            return state._replace(status=Status.NONFINITE)
        direction = newton_direction(matrix, gradient, epsilon(state.params))
        slope = float(direction @ gradient)
        if not slope < 0 or not np.isfinite(direction).all():
            return state._replace(status=Status.NO_PROGRESS)
        search = begin(state.value, slope, 1.0, epsilon(state.params))
        vector = mx.array(direction.astype(numpy_dtype(dtype)), dtype=dtype)
        return state._replace(direction=vector, search=search)


def newton_direction(matrix: np.ndarray, gradient: np.ndarray, eps: float) -> np.ndarray:
    """Return the solution d of H d = -gradient, with H made positive definite where it is not.

    Args:
        matrix: H, shape (p, p), float64.
        gradient: shape (p,), float64.
        eps: the relative rounding error of the entries of H.
    """
    matrix = 0.5 * (matrix + matrix.T)
    # Unit diagonal first: the size of a parameter's unit should not decide what is singular.
    diagonal = np.abs(np.diag(matrix))
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    matrix = matrix * np.outer(scale, scale)
    try:
        pivots = np.diag(np.linalg.cholesky(matrix))
        if pivots.min() ** 2 > len(matrix) * eps:
            return -scale * np.linalg.solve(matrix, scale * gradient)
    except np.linalg.LinAlgError:
        pass
    eigenvalues, vectors = np.linalg.eigh(matrix)
    # The floor: a direction without curvature takes a step of bounded length, not one of noise.
    floor = np.sqrt(eps) * np.abs(eigenvalues).max() or 1.0
    eigenvalues = np.maximum(np.abs(eigenvalues), floor)
    return -scale * (vectors @ ((vectors.T @ (scale * gradient)) / eigenvalues))


def _look(value: mx.array, grad: Tree, direction: mx.array) -> mx.array:
    """Return the trial's value, slope and largest gradient entry as one array to read."""
    dtype = direction.dtype
    slope = mx.sum(ravel(grad, dtype) * direction)
    return mx.stack([value.astype(dtype), slope, largest_entry(grad)])

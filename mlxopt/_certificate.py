"""What kind of point this is: a minimum, a saddle, a plateau, or somewhere on the way.

All is computed in float64, whatever the run's dtype. A small gradient alone shows none of these:
curvature tells a minimum from a saddle and from a plateau, and values along the Newton step tell it
from a loss whose minimum is at infinity (as that of separated classes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt import _curvature
from mlxopt._around import NEAR
from mlxopt._curvature import Curvature
from mlxopt._objective import Objective
from mlxopt._result import Certificate
from mlxopt._tree import (
    Tree,
    check_params,
    default_tol,
    dtype_name,
    epsilon,
    from_host,
    read,
    to_host,
    to_numpy,
    widened,
    working_dtype,
)
from mlxopt.autodiff._arguments import as_data
from mlxopt.autodiff._guards import check_is_callable

_NOISE = 10  # roundings in a value of the loss
_NUDGES = 4.0  # roundings of the parameters by which they are moved to see what that changes


def certify(
    loss: Callable[..., mx.array],
    params: Tree,
    *data: Any,
    tol: float | None = None,
    drop: float | None = None,
) -> Certificate:
    """Return what kind of point `params` is for `loss(params, *data)`.

    A minimum is a point that a Newton step could lower by no more than tol² times the drop of the
    loss on the way there, or by no more than the rounding of the dtype of `params` explains; the
    loss must not curve or fall down in any direction that was looked at. None of this depends on
    the units of the loss or of the parameters.

    Args:
        loss: as in `minimize`.
        params: the point, a tree of float arrays.
        *data: the other arguments of the loss.
        tol: None: as `minimize`.
        drop: of the loss since the start; None: ½ |xᵀHx|, that of its quadratic model from zero.

    Returns:
        a `Certificate`. Up to 300 parameters it costs two Hessians in float64, about 2p gradients;
        with more about two hundred gradients, curvature and condition number are estimates by
        Lanczos's method, and `is_minimum` is None where they speak for a minimum.

    Raises:
        TypeError, ValueError: `loss` or `params` is not as described.

    >>> import mlx.core as mx, mlxopt as mo
    >>> saddle = lambda w: w[0] ** 2 - w[1] ** 2
    >>> mo.certify(saddle, mx.zeros(2))
    Certificate
      verdict    A saddle or a maximum: the gradient is zero but the loss curves
                 down in some direction. Start elsewhere.
      grad_norm  0
      floor      0
      decrement  unknown
      curvature  -2
      condition  unknown
      distance   unknown
    """
    check_is_callable(loss)
    params = check_params(params, mx.float64)
    tol = default_tol(params) if tol is None else tol
    with mx.stream(mx.cpu):
        return _Point(loss, params, data).certificate(tol, drop)


class _Point:
    """A point, with the loss around it as a function of a float64 vector on the host."""

    def __init__(self, loss: Callable[..., mx.array], params: Tree, data: tuple[Any, ...]) -> None:
        _, grad = Objective(loss, as_data(data, params, loss), compile=False).value_and_grad(params)
        self.epsilon, self.dtype = epsilon(params), dtype_name(working_dtype(params))
        self.params = widened(params)
        # Few evaluations: compiling would take longer.
        self.objective = Objective(loss, widened(as_data(data, self.params, loss)), compile=False)
        self.x = to_host(self.params)
        self.value, self.grad = self.at(self.x)
        self.noise = _NOISE * 2.0**-52 * abs(self.value)
        # The effect of rounding on the gradient: in its computation, and in the parameters.
        self.nudge = np.where(np.random.default_rng(0).random(self.x.size) < 0.5, -0.5, 0.5)
        _, nudged = self.at(self.x * (1 + self.epsilon * self.nudge))
        self.errors = [to_host(grad) - self.grad, nudged - self.grad]

    def at(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient, shape (p,), at `x`."""
        value, grad = self.objective.value_and_grad(from_host(x, self.params))
        return read(value)[0], to_host(grad)

    def hvp(self, vector: np.ndarray) -> np.ndarray:
        """Return the Hessian times a vector, both (p,)."""
        return to_host(self.objective.product(self.params, from_host(vector, self.params)))

    def certificate(self, tol: float, drop: float | None) -> Certificate:
        """Return the verdict and its numbers."""
        largest, floor = float(np.abs(self.grad).max()), float(np.abs(self.errors).max())
        if not np.isfinite([self.value, largest]).all():
            verdict = "Not a minimum: the loss or its gradient is not finite here."
            return Certificate(verdict, False, largest, floor, *[None] * 4)
        found, ends, doubt = self._curvature()
        smallest, greatest = ends
        positive = found.values[0] > found.rounding * abs(found.values[-1])
        decrement = distance = condition = None
        if positive:
            decrement, distance = float(np.sqrt(2 * found.gain)), float(np.abs(found.step).max())
            condition = greatest / smallest if smallest > 0 else None
        if drop is None:
            drop = 0.5 * abs(float(self.x @ self.hvp(self.x)))
        verdict = self._verdict(found, tol**2 * drop, doubt)
        return Certificate(*verdict, largest, floor, decrement, smallest, condition, distance)

    def _verdict(self, found: Curvature, little: float, doubt: str) -> tuple[str, bool | None]:
        rounding = max(
            _NOISE * self.epsilon * abs(self.value), *(4 * found.gain_of(e) for e in self.errors)
        )
        zero = "small" if self.grad.any() else "zero"
        if found.is_concave and found.gain <= max(little, rounding):
            return (
                f"A saddle or a maximum: the gradient is {zero} but the loss curves down in some "
                f"direction. Start elsewhere."
            ), False
        if found.gain > max(little, rounding):
            return (
                f"Not a minimum: the loss could still fall by {found.gain:.2g}, which is above tol "
                f"and above what rounding explains ({rounding:.1g}). Take more steps."
            ), False
        ways = [(self._along(direction), direction) for direction in found.flat[:5]]
        for way, direction in ways:
            if way != "down":
                continue
            if self.grad.any() and any(
                self._falls_along(sign * self._scaled(direction)) for sign in (-1, 1)
            ):
                return _AT_INFINITY, False
            return (
                f"No minimum: the gradient is {zero}, but the loss falls along a direction without "
                f"curvature. Start elsewhere."
            ), False
        kinds = [way for way, _ in ways]
        if "far" in kinds:
            return (
                f"A plateau: the gradient is {zero}, and along some direction the loss does not "
                f"change around here, but falls farther away. Start elsewhere, or scale the "
                f"parameters."
            ), False
        if ways and found.is_zero and "up" not in kinds:
            return (
                f"A plateau: the gradient is {zero} and the loss does not change around here. "
                f"Start elsewhere, or scale the parameters."
            ), False
        if self.grad.any() and self._falls_along(found.step):
            return _AT_INFINITY, False
        if level := kinds.count("level"):
            many = f"in {level} direction{'s' * (level > 1)} at least the loss does not change"
            return f"A minimum, one of many: {many}, so the data do not decide there.", True
        if not found.whole:
            return f"As far as {_curvature.SEARCHED} products show, a minimum{doubt}.", None
        text = f"A minimum: the loss rises in every direction{doubt}."
        if ways:
            many = f"{len(ways)} direction{'s' * (len(ways) > 1)}"
            text = f"A minimum, hardly determined: in {many} the curvature is that of rounding."
        if found.gain > little:
            text += f" The gradient is at the rounding floor of {self.dtype}."
        distance = float(np.abs(found.step).max())
        if (np.abs(found.step) > 8 * self.epsilon * np.abs(self.x)).any():
            text += f" The parameters are about {distance:.1g} away from it."
        if self.epsilon > 2.0**-52:
            text += ' finish="float64" gives more digits.'
        return text, True

    def _scaled(self, direction: np.ndarray) -> np.ndarray:
        """Return a direction whose largest entry is the size of its parameter."""
        size = np.where(self.x == 0, np.abs(self.x).max() or 1.0, np.abs(self.x))
        return direction / np.max(np.abs(direction) / size)

    def _along(self, direction: np.ndarray) -> str:
        """Return whether the loss goes "up", "down" or stays "level" along ± a direction.

        "far" where it stays level nearby, and goes down farther away.
        """
        open_ways = {-1.0, 1.0}  # along which it has not gone up
        for length in (1e-3, 1e-2, 1e-1, 0.25, 0.5, 1.0, 2.0, 4.0):
            for sign in sorted(open_ways):
                step = sign * length * self._scaled(direction)
                change = self.at(self.x + step)[0] - self.value
                if change < -self.noise:
                    return "down" if length <= NEAR else "far"
                if change > self.noise:
                    open_ways.discard(sign)
            if length <= NEAR and len(open_ways) < 2:
                return "up"
        return "level"

    def _falls_along(self, step: np.ndarray) -> bool:
        """Whether the loss falls, by more than rounding, as far as 64 steps."""
        last = self.value
        for length in (1, 4, 16, 64):
            value = self.at(self.x + length * step)[0]
            if not value < last - self.noise * (length == 1):
                return False
            last = value
        return True

    def _curvature(self) -> tuple[Curvature, tuple[float, float], str]:
        """Return the curvature, the Hessian's extreme eigenvalues, and a restriction in words."""
        eps = 2.0**-52
        if self.x.size > _curvature.DENSE:
            found = _curvature.of_products(self.hvp, self.grad, eps, _curvature.SEARCHED)
            return found, (float(found.values[0]), float(found.values[-1])), ""
        matrix, doubt = self._hessian(self.x), ""
        known = np.isfinite(np.diag(matrix))
        if not known.all() or not np.isfinite(matrix).all():
            doubt = ", as far as its finite second derivatives show"
            matrix = np.where(np.isfinite(matrix) & known & known[:, None], matrix, 0.0)
        # What a rounding of the parameters changes is rounding.
        other = self._hessian(self.x * (1 + _NUDGES * eps * self.nudge))
        error = np.where(np.isfinite(other), np.abs(matrix - other), 0.0)
        found = _curvature.of_matrix(matrix, self.grad, eps, error)
        ends = np.linalg.eigvalsh(0.5 * (matrix + matrix.T))[[0, -1]].tolist()
        return found, (ends[0], ends[1]), doubt

    def _hessian(self, x: np.ndarray) -> np.ndarray:
        """Return the Hessian at x, shape (p, p)."""
        params = from_host(x, self.params)
        try:
            return to_numpy(self.objective.hessian(params))
        except (ValueError, RuntimeError):  # a loss that branches on values cannot be batched
            units = (from_host(unit, params) for unit in np.eye(x.size))
            return np.stack([to_host(self.objective.product(params, unit)) for unit in units])


_AT_INFINITY = (
    "No minimum in sight: the gradient is small, but the loss falls on and on along the Newton "
    "step, as if its minimum were at infinity. Add a penalty."
)

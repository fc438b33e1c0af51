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

from mlxopt._dense import eigen
from mlxopt._krylov import NotPositiveError, conjugate_gradients, lanczos
from mlxopt._objective import Objective
from mlxopt._result import Certificate
from mlxopt._tree import (
    Tree,
    as_data,
    check_params,
    default_tol,
    dtype_name,
    epsilon,
    from_host,
    read,
    to_host,
    widened,
    working_dtype,
)
from mlxopt.autodiff._guards import check_is_callable

_DENSE = 200  # parameters up to which the whole Hessian is computed
_PRODUCTS = 30  # Hessian-vector products beyond that
# The share of the largest curvature that counts as none: MLX's exp in float64 is good to 5e-7.
_FLAT = 1e-6


def certify(
    loss: Callable[..., mx.array], params: Tree, *data: Any, tol: float | None = None
) -> Certificate:
    """Return what kind of point `params` is for `loss(params, *data)`.

    Args:
        loss: as in `minimize`.
        params: the point, a tree of float arrays.
        *data: the other arguments of the loss.
        tol: the largest gradient entry that is small; None: as `minimize`.

    Returns:
        a `Certificate`. Up to 200 parameters it costs a Hessian in float64, about p gradients; with
        more about sixty gradients, and curvature and condition number are estimates by Lanczos's
        method.

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
    check_params(params)
    tol = default_tol(params) if tol is None else tol
    with mx.stream(mx.cpu):
        return _Point(loss, params, data).certificate(tol)


class _Point:
    """A point, with the loss around it as a function of a float64 vector on the host."""

    def __init__(self, loss: Callable[..., mx.array], params: Tree, data: tuple[Any, ...]) -> None:
        _, grad = Objective(loss, as_data(data, params), compile=False).value_and_grad(params)
        rounded = to_host(grad)
        self.epsilon, self.dtype = epsilon(params), dtype_name(working_dtype(params))
        self.params = widened(params)
        # Few evaluations: compiling would take longer.
        self.objective = Objective(loss, widened(as_data(data, self.params)), compile=False)
        self.x = to_host(self.params)
        self.value, self.grad = self.at(self.x)
        self.noise = 10 * 2.0**-52 * abs(self.value)
        self.largest = float(np.abs(self.grad).max())
        # The effect of rounding on the gradient: in its computation, and in the parameters.
        nudge = np.where(np.random.default_rng(0).random(self.x.size) < 0.5, -0.5, 0.5)
        _, nudged = self.at(self.x * (1 + self.epsilon * nudge))
        self.floor = float(np.abs([rounded - self.grad, nudged - self.grad]).max())

    def at(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient, shape (p,), at `x`."""
        value, grad = self.objective.value_and_grad(from_host(x, self.params))
        return read(value)[0], to_host(grad)

    def hvp(self, vector: np.ndarray) -> np.ndarray:
        """Return the Hessian times a vector, both (p,)."""
        return to_host(self.objective.hvp(self.params, from_host(vector, self.params)))

    def certificate(self, tol: float) -> Certificate:
        """Return the verdict and its numbers."""
        if not np.isfinite([self.value, self.largest]).all():
            verdict = "Not a minimum: the loss or its gradient is not finite here."
            return Certificate(verdict, False, self.largest, self.floor, *[None] * 4)
        hessian, step = _dense(self) if self.x.size <= _DENSE else _by_products(self)
        decrement = distance = None
        if step is not None:
            decrement = float(np.sqrt(max(-self.grad @ step, 0.0)))
            distance = float(np.abs(step).max())
        numbers = self.largest, self.floor, decrement, hessian.smallest, hessian.condition, distance
        return Certificate(*self._verdict(tol, hessian, step), *numbers)

    def _verdict(
        self, tol: float, hessian: _Curvature, step: np.ndarray | None
    ) -> tuple[str, bool]:
        largest = self.largest
        if largest > max(tol, 2 * self.floor):
            return (
                f"Not a minimum: the gradient's largest entry, {largest:.2g}, is above tol "
                f"({tol:.2g}) and above what rounding explains ({self.floor:.2g}). Take more steps."
            ), False
        zero = "zero" if largest == 0 else "small"
        if hessian.is_indefinite:
            return (
                f"A saddle or a maximum: the gradient is {zero} but the loss curves down in some "
                f"direction. Start elsewhere."
            ), False
        ways = [self._along(direction) for direction in hessian.flat_directions]
        if "down" in ways:
            return (
                f"No minimum: the gradient is {zero}, but the loss falls along a direction without "
                f"curvature. Start elsewhere."
            ), False
        if ways and hessian.is_zero and "up" not in ways:
            return (
                f"A plateau: the gradient is {zero} and the loss does not change around here. "
                f"Start elsewhere, or scale the parameters."
            ), False
        if step is not None and self._falls_along(step):
            return (
                "No minimum in sight: the gradient is small, but the loss falls on and on along "
                "the Newton step, as if its minimum were at infinity. Add a penalty."
            ), False
        if level := ways.count("level"):
            many = f"in {level} direction{'s' * (level > 1)} at least the loss does not change"
            return f"A minimum, one of many: {many}, so the data do not decide there.", True
        text = f"A minimum: the loss rises in every direction{hessian.doubt}."
        if largest > tol:
            text += f" The gradient is at the rounding floor of {self.dtype}."
        distance = 0.0 if step is None else np.abs(step).max()
        if distance > 8 * self.epsilon * (1 + np.abs(self.x).max()):
            text += f" The parameters are about {distance:.1g} away from it."
        if self.epsilon > 2.0**-52:
            text += ' finish="float64" gives more digits.'
        return text, True

    def _along(self, direction: np.ndarray) -> str:
        """Return whether the loss goes "up", "down" or stays "level" along ± a direction."""
        size = 1 + float(np.abs(self.x).max())
        for length in (1e-3 * size, 1e-2 * size, 1e-1 * size):
            ends = (self.x + sign * length * direction for sign in (-1, 1))
            changes = [self.at(end)[0] - self.value for end in ends]
            if min(changes) < -self.noise:
                return "down"
            if max(changes) > self.noise:
                return "up"
        return "level"

    def _falls_along(self, step: np.ndarray) -> bool:
        """Whether the loss falls, by more than rounding, as far as 64 Newton steps."""
        last = self.value
        for length in (1, 4, 16, 64):
            value = self.at(self.x + length * step)[0]
            if not value < last - self.noise * (length == 1):
                return False
            last = value
        return True


class _Curvature:
    """The curvature at a point.

    Args:
        values: (k,), eigenvalues of the scaled Hessian or of its projection, ascending.
        vectors: (p, k), their directions.
        ends: the smallest and the largest eigenvalue in the units of the parameters.
        doubt: the restriction of a verdict, in words.
    """

    def __init__(
        self, values: np.ndarray, vectors: np.ndarray, ends: np.ndarray, doubt: str = ""
    ) -> None:
        self.doubt, self.smallest = doubt, float(ends[0])
        size = np.abs(values).max()
        self.is_zero = not size > 0
        self.is_indefinite = bool(values[0] < -_FLAT * size)
        self.is_positive = bool(values[0] > _FLAT * size)
        known = self.is_positive and self.smallest > 0
        self.condition = float(ends[1] / ends[0]) if known else None
        flat = vectors[:, np.abs(values) <= _FLAT * size][:, :5]
        self.flat_directions = (flat / np.linalg.norm(flat, axis=0)).T  # unit vectors, at most five


def _dense(point: _Point) -> tuple[_Curvature, np.ndarray | None]:
    """Return the curvature, and -H⁻¹ gradient if H is safely positive definite, by all of H."""
    matrix, doubt = _hessian(point), ""
    if not np.isfinite(matrix).all():  # values along some axes must do
        doubt = ", as far as some axes show: its second derivative is not finite"
        matrix = np.zeros_like(matrix)
    found = eigen(matrix)
    own = np.linalg.eigvalsh(0.5 * (matrix + matrix.T))[[0, -1]]
    curvature = _Curvature(found.values, found.scale[:, None] * found.vectors, own, doubt)
    return curvature, -found.solve(point.grad) if curvature.is_positive else None


def _by_products(point: _Point) -> tuple[_Curvature, np.ndarray | None]:
    """Return the same from a few Hessian-vector products."""
    start = np.random.default_rng(0).normal(size=point.x.size)
    values, vectors = lanczos(point.hvp, start, _PRODUCTS)
    doubt = ", as far as Lanczos's method sees"
    curvature, step = _Curvature(values, vectors, values[[0, -1]], doubt), None
    if curvature.is_indefinite or curvature.is_zero:
        return curvature, None
    try:
        for found, _ in conjugate_gradients(point.hvp, -point.grad, 1e-12, _PRODUCTS):
            step = found
    except NotPositiveError:
        step = None
    return curvature, step


def _hessian(point: _Point) -> np.ndarray:
    """Return the Hessian, shape (p, p)."""
    try:
        return np.array(point.objective.hessian(point.params))
    except (ValueError, RuntimeError):  # a loss that branches on values cannot be batched
        return np.stack([point.hvp(unit) for unit in np.eye(point.x.size)])

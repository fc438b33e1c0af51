"""A sum of squares over its data: an objective with its residual, their Jacobian, and bounds.

A robust loss has c² ρ(r²/c²) in place of r². ρ(z) is z for small z and grows more slowly for large
z, so that outliers count for less; ψ(r) = r ρ'(r²/c²) is the derivative of half of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._bounds import Bounds
from mlxopt._objective import Objective
from mlxopt._tree import FLOATS, Tree, count, dtype_name, ravel, working_dtype
from mlxopt.autodiff._guards import call, differentiating, with_fixed_draw
from mlxopt.autodiff._rows import can_batch, over_rows, sample_rows, unit_rows


def _squares(z: Any, xp: Any) -> tuple[Any, Any, Any]:
    return z, xp.ones_like(z), xp.zeros_like(z)


def _huber(z: Any, xp: Any) -> tuple[Any, Any, Any]:
    large = xp.maximum(z, 1)  # for small z the root is not used, and must not be 0
    root = xp.sqrt(large)
    inside = z <= 1
    return (
        xp.where(inside, z, 2 * root - 1),
        xp.where(inside, 1.0, 1 / root),
        xp.where(inside, 0.0, -0.5 / (large * root)),
    )


def _soft_l1(z: Any, xp: Any) -> tuple[Any, Any, Any]:
    root = xp.sqrt(1 + z)
    return 2 * z / (1 + root), 1 / root, -0.5 / root**3  # 2(√(1 + z) - 1), without cancellation


def _cauchy(z: Any, xp: Any) -> tuple[Any, Any, Any]:
    return xp.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2


def _arctan(z: Any, xp: Any) -> tuple[Any, Any, Any]:
    slope = 1 / (1 + z * z)
    return xp.arctan(z), slope, -2 * z * slope * slope


ROBUST = {"huber": _huber, "soft_l1": _soft_l1, "cauchy": _cauchy, "arctan": _arctan}


class Robust(NamedTuple):
    """ρ, and the scale c beyond which a residual counts as large."""

    function: Callable[[Any, Any], tuple[Any, Any, Any]] = _squares  # (z, mx or np) -> ρ, ρ', ρ''
    scale: float = 1.0  # c

    def loss(self, residual: mx.array) -> mx.array:
        """Return ½ Σ c² ρ(r²/c²), a scalar array."""
        rho = self.function(mx.square(residual / self.scale), mx)[0]
        return 0.5 * self.scale**2 * mx.sum(rho)

    def value(self, residual: np.ndarray) -> float:
        """Return the loss of a residual on the host."""
        rho = self.function(np.square(residual / self.scale), np)[0]
        return 0.5 * self.scale**2 * float(np.sum(rho))

    def slopes(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ψ(r)/r and ψ'(r) for each entry."""
        z = np.square(residual / self.scale)
        _, first, second = self.function(z, np)
        return first, first + 2 * z * second


SQUARES = Robust()


class ResidualObjective(Objective):
    """The loss ½ Σ rᵢ², or ½ Σ c² ρ(rᵢ²/c²), of a residual `residual(params, *data)`.

    Args:
        residual: a function `residual(params, *data)` that returns an array of m entries.
        data: its other arguments.
        robust: ρ and c.
        bounds: of the parameters, each (p,).
        compile: False evaluates op by op, for a residual that branches on values.
    """

    def __init__(
        self,
        residual: Callable[..., mx.array],
        data: tuple[Any, ...] = (),
        *,
        robust: Robust = SQUARES,
        bounds: Bounds | None = None,
        compile: bool = True,
    ) -> None:
        self.robust, self.bounds = robust, bounds
        self._flat = with_fixed_draw(_checked_residual(residual))
        self._m: int | None = None

        @functools.wraps(residual)
        def loss(params: Tree, *data: Any) -> mx.array:
            return robust.loss(self.vector(params, *data))

        super().__init__(loss, data, compile=compile, fixed_draw=False)

    def compiled(self, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """Return `make()`, compiled unless MLX fails at that."""
        function = super().compiled(key, make)
        if key not in ("jacobian", "hessian"):
            return function

        def guarded(*args: Any) -> Any:
            try:
                return function(*args)
            except IndexError:
                # MLX 0.32.4 loses an input of some second derivatives that are both mapped and
                # compiled (of exp((x - b)**2 / c**2), say) and says only "_Map_base::at".
                self._compiled[key] = make()
                return self._compiled[key](*args)

        return guarded

    def residual(self, params: Tree) -> mx.array:
        """Return r, shape (m,), in the working dtype of `params`; one evaluation."""
        self.evaluations += 1
        residual = self.compiled("residual", lambda: self.vector)(params, *self.data)
        self._held(params, residual)
        return residual

    def jacobian(self, params: Tree) -> mx.array:
        """Return ∂rᵢ/∂xⱼ, shape (m, p), the parameters in `tree_flatten` order.

        By reverse mode alone, which every operation with a gradient has: row by row if these are
        few, else column by column, as the derivative of cotangent ↦ Jᵀ · cotangent.
        """
        p, m, dtype = count(params), self.rows(params), working_dtype(params)
        by_rows = m <= 2 * p
        function, size = (self.pullback, m) if by_rows else (self.pushforward, p)

        def make() -> Callable[..., mx.array]:
            batch = can_batch(function, sample_rows(size, dtype), params, self.data)
            return over_rows(function, batch)

        batched = self.compiled("jacobian", make)
        with differentiating(self._flat):
            matrix = unit_rows(lambda units: batched(units, params, self.data), size, dtype)
        return matrix if by_rows else matrix.T

    def rows(self, params: Tree) -> int:
        """Return m; nothing is evaluated for it."""
        if self._m is None:
            self._m = self.vector(params, *self.data).size
        return self._m

    def _output(self, params: Tree, *data: Any) -> mx.array:
        return self.vector(params, *data)

    def vector(self, params: Tree, *data: Any) -> mx.array:
        """Return r, shape (m,), for any data; not counted as an evaluation."""
        return self._flat(params, *data).astype(working_dtype(params))

    def pullback(self, cotangent: mx.array, params: Tree, data: tuple[Any, ...]) -> mx.array:
        """Return Jᵀ · cotangent, shape (p,)."""
        product = mx.grad(lambda at: mx.sum(self.vector(at, *data) * cotangent))
        return ravel(product(params), cotangent.dtype)

    def pushforward(self, tangent: mx.array, params: Tree, data: tuple[Any, ...]) -> mx.array:
        """Return J · tangent, shape (m,)."""
        product = mx.grad(lambda c: mx.sum(self.pullback(c, params, data) * tangent))
        # At ones, since the rule of logcumsumexp takes logarithms of the cotangent.
        return product(mx.ones(self.rows(params), dtype=tangent.dtype))


def _checked_residual(residual: Callable[..., Any]) -> Callable[..., mx.array]:
    """Return `residual` as one vector, with a check of what it returns."""
    name = getattr(residual, "__name__", type(residual).__name__)

    @functools.wraps(residual)
    def checked(*args: Any) -> mx.array:
        result = call(residual, *args)
        if not isinstance(result, mx.array):
            raise TypeError(
                f"{name} returned {type(result).__qualname__}; expected an mx.array of residuals, "
                f"such as predictions - y, made of MLX operations."
            )
        if result.dtype not in FLOATS:
            raise TypeError(
                f"{name} returned dtype {dtype_name(result.dtype)}; expected real floating-point "
                f"residuals."
                + (" Stack its real and imaginary parts." if result.dtype == mx.complex64 else "")
            )
        return result.reshape(-1)

    return checked

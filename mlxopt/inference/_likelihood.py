"""A negative log-likelihood in float64, with a check that it is a sum over examples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._report import entry_names
from mlxopt._result import Result
from mlxopt._status import Status
from mlxopt._tree import check_params, dtype_name, from_host, leaves, to_host, widened
from mlxopt.autodiff import hessian, hvp, jacobian, value_and_grad
from mlxopt.autodiff._arguments import as_data
from mlxopt.autodiff._guards import call, check_is_callable
from mlxopt.autodiff._pairs import warn_of_pairs
from mlxopt.inference._estimates import Vector

Function = Callable[..., mx.array]
Data = tuple[Any, ...]

# How well parts of a loss must add up: MLX's own exp is good to 5e-7 in float64.
_AGREEMENT = 1e-5
# Of a function tried on fewer examples than it is written for.
_FAILURES = (TypeError, ValueError, IndexError, RuntimeError)


class Likelihood:
    """The negative log-likelihood of fixed data, summed over examples, in float64 on the CPU.

    The arguments are those of `covariance`. Vectors are NumPy's, (p,), in `tree_flatten` order.
    """

    def __init__(
        self, function: Function, result: Any, data: Data, total: bool, compile: bool
    ) -> None:
        check_is_callable(function)
        params = result.params if isinstance(result, Result) else result
        self.status: Status | None = result.status if isinstance(result, Result) else None
        params = check_params(params, mx.float64)
        self._values, self._compile = _checked(function), compile
        self._sum = functools.wraps(function)(lambda *args: mx.sum(self._values(*args)))
        with mx.stream(mx.cpu):
            self.params = widened(params)
            self.data = widened(as_data(data, self.params, function))
            self.names, self.theta = entry_names("params", self.params), to_host(self.params)
            values = self._values(self.params, *self.data)
            if compile:
                warn_of_pairs(function, self.params, self.data)
            _check_finite(values)
            self.examples: int | None = values.shape[0] if values.ndim else None
            self._value_and_grad = value_and_grad(self._sum, compile=compile)
            self._hessian = hessian(self._sum, flat=True, compile=compile)
            if not values.ndim and not total:
                self._check_is_sum()
            elif values.ndim:
                self._check_is_by_example(total, np.array(values))

    def value_and_grad(self, theta: Vector) -> tuple[float, Vector]:
        """Return the negative log-likelihood at theta, and its gradient, (p,)."""
        with mx.stream(mx.cpu):
            value, grad = self._value_and_grad(from_host(theta, self.params), *self.data)
            return value.item(), to_host(grad)

    def hessian(self, theta: Vector) -> np.ndarray:
        """Return the second derivatives at theta, (p, p), symmetric."""
        with mx.stream(mx.cpu):
            matrix = np.array(self._hessian(from_host(theta, self.params), *self.data))
        return 0.5 * (matrix + matrix.T)

    def scores(self) -> np.ndarray:
        """Return the gradient of each example's value at the estimate, (n, p)."""
        with mx.stream(mx.cpu):
            rows = jacobian(self._values, flat=True, compile=self._compile)
            return np.array(rows(self.params, *self.data))

    def _halves(self) -> tuple[int, list[Data]] | None:
        """Return the number of examples, and two halves of the data; None if lengths differ."""
        lengths = {leaf.shape[0] for leaf in leaves(self.data) if _has_axis(leaf)}
        if len(lengths) != 1 or min(lengths) < 2:
            return None
        (n,) = lengths

        def part(rows: slice) -> Data:
            return tree_map(lambda leaf: leaf[rows] if _has_axis(leaf) else leaf, self.data)

        return n, [part(slice(n // 2)), part(slice(n // 2, n))]

    def _check_is_by_example(self, total: bool, values: Vector) -> None:
        """Raise if the first half of the data does not give the first half of the values."""
        if total:
            came = f"negative_log_likelihood returned {len(values)} values"
            raise ValueError(f"total=True means one number, and {came}. Leave it out.")
        if (found := self._halves()) is None:
            return
        try:
            half = np.array(self._values(self.params, *found[1][0]))
        except _FAILURES:  # it refers to arrays of all n examples
            return
        if half.shape == values.shape:  # it does not depend on the data
            return
        expected = values[: len(half)]
        excess = np.abs(half - expected) - _AGREEMENT * np.abs(values).max()
        if half.shape != expected.shape or not (excess <= 0).all():
            worst = int(np.argmax(excess))
            raise ValueError(
                f"negative_log_likelihood gives another value for the same example among fewer "
                f"others: {half[worst]:.6g} in place of {expected[worst]:.6g} for example {worst}. "
                f"For dependent examples return one number for all of them and pass total=True."
            )

    def _check_is_sum(self) -> None:
        """Raise unless the curvature of the whole is the sum of those of two halves."""
        n, parts = self._halves() or (0, [])
        curved = self._curvatures([self.data, *parts])
        if len(curved) == 3:
            whole, first, last = curved
            room = _AGREEMENT * np.abs(whole).max()
            if (np.abs(whole - (first + last)) <= room).all():
                return
            mean = (n // 2 * first + (n - n // 2) * last) / n
            if (np.abs(whole - mean) <= room).all():
                raise ValueError(
                    f"negative_log_likelihood returns a mean, so the covariance would be {n} times "
                    f"too large. Return one value for each example, shape (n,)."
                )
        raise ValueError(
            "negative_log_likelihood returns one number, and its curvatures over parts of the data "
            "do not show whether that is a sum over examples. Return one value for each, shape "
            "(n,), and pass the data as arguments; or pass total=True."
        )

    def _curvatures(self, parts: list[Data]) -> list[Vector]:
        """Return the Hessian times a vector, (p,), for each of several data; [] if one fails."""
        product = hvp(self._sum, compile=self._compile)
        weights = np.random.default_rng(0).uniform(0.5, 1.5, len(self.theta))
        vector = from_host(weights, self.params)
        try:
            return [to_host(product(self.params, vector, *part)) for part in parts]
        except _FAILURES:
            return []


def _checked(function: Function) -> Function:
    """Return `function` with a check of its values."""
    name = "negative_log_likelihood"

    @functools.wraps(function)
    def checked(*args: Any) -> mx.array:
        values = call(function, *args)
        if not isinstance(values, mx.array):
            kind = f"{type(values).__module__}.{type(values).__qualname__}"
            raise TypeError(f"{name} returned {kind}; expected an mx.array, shape (n,).")
        if values.ndim > 1:
            hint = "(n,) and (n, 1) in one operation make (n, n)"
            raise ValueError(f"{name} returned shape {values.shape}; expected (n,). ({hint}.)")
        if values.size == 0:
            raise ValueError(f"{name} returned no values: are the data empty?")
        if values.dtype != mx.float64:
            hint = "Does it cast (astype), or is it independent of the parameters?"
            raise TypeError(f"{name} returned {dtype_name(values.dtype)}, not float64. {hint}")
        return values

    return checked


def _check_finite(values: mx.array) -> None:
    wrong = np.flatnonzero(~np.isfinite(np.array(values).reshape(-1)))
    if wrong.size:
        where = f" for example {wrong[0]}" if values.ndim else ""
        more = f" (and {wrong.size - 1} more)" if wrong.size > 1 else ""
        came = f"the negative log-likelihood is NaN or infinite{where}{more} at the estimate"
        raise ValueError(f"{came}. Check the data for NaN, and that they are those of the fit.")


def _has_axis(leaf: Any) -> bool:
    return isinstance(leaf, mx.array) and leaf.ndim > 0

"""A negative log-likelihood around an estimate, in float64, its normalization made sure of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._result import Result
from mlxopt._status import Status
from mlxopt._tree import (
    Tree,
    check_params,
    dtype_name,
    from_host,
    leaves,
    to_data,
    to_host,
    widened,
)
from mlxopt.autodiff import check_is_callable, hessian, hvp, jacobian, value_and_grad
from mlxopt.inference._estimates import entry_names

# How well parts of a loss must add up: MLX's own exp is good to 5e-7 in float64.
_AGREEMENT = 1e-5


class Likelihood:
    """The negative log-likelihood of fixed data, summed over examples, in float64 on the CPU.

    Args:
        function: `negative_log_likelihood(params, *data)`, one value for each example, (n,), or one
            number, which must be the sum over all examples and not their mean.
        result: a `Result`, or a tree of parameters.
        data: what the function takes after its parameters.
        total: believe, without a test, that one number is that of all the data together.
        compile: False for a function that branches on values.

    Vectors are NumPy's, (p,), in `tree_flatten` order.
    """

    def __init__(
        self, function: Callable[..., mx.array], result: Any, data: tuple[Any, ...], total: bool,
        compile: bool,
    ) -> None:  # fmt: skip
        check_is_callable(function)
        params = result.params if isinstance(result, Result) else result
        self.status: Status | None = result.status if isinstance(result, Result) else None
        check_params(params)
        self.function, self._compile = function, compile
        with mx.stream(mx.cpu):
            self.params: Tree = widened(params)
            self.data = tuple(widened(to_data(item, mx.float64)) for item in data)
            self.names = entry_names("params", self.params)
            self.theta = to_host(self.params)
            values = self._values(self.params, *self.data)
            self._check_finite(values)
            self.examples: int | None = values.shape[0] if values.ndim else None
            self._value_and_grad = value_and_grad(self._sum(), compile=compile)
            self._hessian = hessian(self._sum(), flat=True, compile=compile)
            if self.examples is None:
                self._check_is_sum(total)
            else:
                self._check_is_by_example(total, np.array(values))

    def value_and_grad(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the negative log-likelihood at theta, and its gradient, (p,)."""
        with mx.stream(mx.cpu):
            value, grad = self._value_and_grad(self._tree(theta), *self.data)
            return float(value.item()), to_host(grad)

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        """Return the second derivatives at theta, (p, p), symmetric."""
        with mx.stream(mx.cpu):
            matrix = np.array(self._hessian(self._tree(theta), *self.data))
        return 0.5 * (matrix + matrix.T)

    def scores(self) -> np.ndarray:
        """Return the gradient of each example's value at the estimate, (n, p)."""
        with mx.stream(mx.cpu):
            rows = jacobian(self._values, flat=True, compile=self._compile)
            return np.array(rows(self.params, *self.data))

    def _tree(self, theta: np.ndarray) -> Tree:
        return from_host(theta, self.params)

    @property
    def _values(self) -> Callable[..., mx.array]:
        """The function, with a check of what it returns."""
        function = self.function

        @functools.wraps(function)
        def checked(*args: Any) -> mx.array:
            values = function(*args)
            if not isinstance(values, mx.array):
                raise TypeError(
                    f"negative_log_likelihood returned {type(values).__module__}."
                    f"{type(values).__qualname__}; expected an mx.array, one value for each "
                    f"example, shape (n,)."
                )
            if values.ndim > 1:
                raise ValueError(
                    f"negative_log_likelihood returned shape {values.shape}; expected one value "
                    f"for each example, shape (n,). (Shapes (n,) and (n, 1) in one operation make "
                    f"(n, n).)"
                )
            if values.size == 0:
                raise ValueError("negative_log_likelihood returned no values: are the data empty?")
            if values.dtype != mx.float64:
                raise TypeError(
                    f"negative_log_likelihood returned {dtype_name(values.dtype)} for float64 "
                    f"parameters and data; expected float64. Does it cast (astype), or is it "
                    f"independent of the parameters?"
                )
            return values

        return checked

    def _sum(self) -> Callable[..., mx.array]:
        values = self._values

        @functools.wraps(self.function)
        def summed(*args: Any) -> mx.array:
            found = values(*args)
            return mx.sum(found) if found.ndim else found

        return summed

    def _check_finite(self, values: mx.array) -> None:
        wrong = np.flatnonzero(~np.isfinite(np.array(values).reshape(-1)))
        if wrong.size:
            where = f" for example {wrong[0]}" if values.ndim else ""
            more = f" (and {wrong.size - 1} more)" if wrong.size > 1 else ""
            raise ValueError(
                f"the negative log-likelihood is NaN or infinite{where}{more} at the estimate; "
                f"expected finite numbers. Check the data for NaN, and that they are the data of "
                f"the fit."
            )

    def _parts(self) -> list[tuple[Any, ...]] | None:
        """Return the data in two parts, the first and the last examples; None if nothing tells what
        the examples are.
        """
        arrays = [leaf for leaf in leaves(self.data) if _has_axis(leaf)]
        lengths = {leaf.shape[0] for leaf in arrays}
        if len(lengths) != 1 or min(lengths) < 2:
            return None
        (n,) = lengths
        return [
            tree_map(lambda leaf, part=part: leaf[part] if _has_axis(leaf) else leaf, self.data)
            for part in (slice(0, n // 2), slice(n // 2, n))
        ]

    def _check_is_by_example(self, total: bool, values: np.ndarray) -> None:
        """Raise if the first half of the values is not what the first half of the data gives."""
        if total:
            raise ValueError(
                f"total=True speaks of one number for all the data, but negative_log_likelihood "
                f"returned {len(values)} values. Leave it out: they are summed here."
            )
        parts = self._parts()
        if parts is None:
            return
        try:
            half = np.array(self._values(self.params, *parts[0]))
        except (TypeError, ValueError, IndexError, RuntimeError):
            return  # it refers to arrays of all n examples, so it cannot be tried on fewer
        if half.shape == values.shape:  # it does not look at the data
            return
        expected = values[: len(half)]
        excess = np.abs(half - expected) - _AGREEMENT * np.abs(values).max()
        if half.shape != expected.shape or not (excess <= 0).all():
            worst = int(np.argmax(excess))
            raise ValueError(
                f"negative_log_likelihood gives another value for the same example among fewer "
                f"others: example {worst} has {expected[worst]:.6g} among {len(values)} and "
                f"{half[worst]:.6g} among the first {len(half)}. Expected values that depend on "
                f"their own example alone, not divided by the number of examples or standardized "
                f"by the batch. If the examples do depend on each other, return one number for all "
                f"of them and pass total=True."
            )

    def _check_is_sum(self, total: bool) -> None:
        """Raise if the curvature of the whole is a mean of those of its parts, or cannot be told
        from one.
        """
        if total:
            return
        parts, grown = self._parts(), ""
        if parts is not None:
            n = [next(x.shape[0] for x in leaves(part) if _has_axis(x)) for part in parts]
            curved = self._curvatures([self.data, *parts])
            if curved is not None:
                whole, first, last = curved
                room = _AGREEMENT * np.abs(whole).max()
                if (np.abs(whole - (first + last)) <= room).all():
                    return
                mean = (n[0] * first + n[1] * last) / sum(n)
                if (np.abs(whole - mean) <= room).all():
                    raise ValueError(
                        f"negative_log_likelihood returns a mean over examples: its curvature over "
                        f"all {sum(n)} is the mean of those over two parts of them, and not their "
                        f"sum. The covariance would be {sum(n)} times too large. Return one value "
                        f"for each example, shape (n,): leave out the mean. (They are summed here; "
                        f"mx.sum in place of mx.mean does as well, but for a sandwich.)"
                    )
                grown = " (its curvatures over two parts of the data do not add up to the whole)"
        raise ValueError(
            f"negative_log_likelihood returns one number, and nothing shows whether that is the "
            f"sum over all examples or their mean{grown}. The covariance would be wrong by the "
            f"number of examples. Return one value for each example, shape (n,), and pass the "
            f"data as arguments; or, if the number is the negative log-likelihood of all the data "
            f"together, pass total=True."
        )

    def _curvatures(self, parts: list[tuple[Any, ...]]) -> list[np.ndarray] | None:
        """Return the Hessian times a vector, (p,), for each of several data; None if one fails."""
        product = hvp(self._sum(), compile=self._compile)
        weights = np.random.default_rng(0).uniform(0.5, 1.5, len(self.theta))
        vector = self._tree(weights)
        try:
            return [to_host(product(self.params, vector, *part)) for part in parts]
        except (TypeError, ValueError, IndexError, RuntimeError):
            return None


def _has_axis(leaf: Any) -> bool:
    return isinstance(leaf, mx.array) and leaf.ndim > 0

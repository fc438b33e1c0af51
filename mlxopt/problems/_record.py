"""The record of a test problem: it carries its answers, and checks itself against them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._platform.device import device_for

Function = Callable[[mx.array], mx.array]


class Minimum(NamedTuple):
    """A local minimum that a good method may end in."""

    value: float
    """The loss there, or its infimum where the minimum lies at infinity."""
    point: tuple[float, ...] | None = None
    """Where, to float64's last digits but one or two; None at infinity."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """A loss of one vector, a start, and what is known of both.

    One of `function` and `residual` is given. Both are made of MLX operations and compute in the
    dtype of what they are given; float64 keeps its digits.
    """

    name: str
    """What the literature calls it, with its dimension where that can be chosen."""
    start: tuple[float, ...]
    """The standard start, p numbers."""
    start_value: float
    """The loss there."""
    minima: tuple[Minimum, ...]
    """The known local minima, the lowest first; where the points of a minimum form a set, one."""
    origin: str
    """Who posed it, and where."""
    residual: Function | None = None
    """From shape (p,) to (m,): the loss is its sum of squares. None: not a least-squares problem.

    `mlxopt.least_squares` minimizes half of that.
    """
    function: Function | None = None
    """From shape (p,) to (): the loss, where it is no sum of squares."""
    bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Lower and upper bounds, p numbers each, infinite where there are none. None: no bounds."""
    view: tuple[float, float, float, float] | None = None
    """Left, right, bottom and top of a good picture of a function of two variables."""

    @property
    def size(self) -> int:
        """The number of parameters p."""
        return len(self.start)

    @property
    def value(self) -> float:
        """The lowest value known."""
        return self.minima[0].value

    def loss(self, params: mx.array) -> mx.array:
        """Return the loss at `params`, shape (p,), as a scalar array."""
        if self.residual is not None:
            return mx.sum(mx.square(self.residual(params)))
        assert self.function is not None
        return self.function(params)

    def params(self, dtype: mx.Dtype = mx.float64, factor: float = 1.0) -> mx.array:
        """Return the start times `factor`, shape (p,): 10 and 100 are the usual harder starts.

        A start at the origin is moved to `factor` in every entry, as Moré, Garbow and Hillstrom do.
        """
        start = np.array(self.start)
        if factor != 1.0:
            start = factor * start if start.any() else np.full_like(start, factor)
        return mx.array(start, dtype=dtype)

    def solved_by(self, value: float, relative: float = 1e-6) -> bool:
        """Return whether `value` is that of a known minimum.

        Args:
            value: of the loss.
            relative: to the minimum's value, or, where that is zero, to the value at the start.
        """
        scale = min(1.0, abs(self.start_value))
        return any(
            abs(value - known.value) <= relative * (abs(known.value) or scale)
            for known in self.minima
        )

    def check(self) -> None:
        """Raise AssertionError unless the record is right about itself, in float64.

        That is: the value at the start; the derivative at the start and beside it against central
        differences; the values at the minima, that they lie within the bounds, and that the
        gradient, projected on the bounds, vanishes there.
        """
        start = np.array(self.start)
        value, gradient = self._evaluate(start)
        _expect(value, self.start_value, 1e-12, f"{self.name}: value at the start")
        rng = np.random.default_rng(len(self.name))
        for point in (start, start + 0.01 * (1 + np.abs(start)) * rng.uniform(0.1, 1, len(start))):
            self._check_gradient(point)
        largest = np.abs(gradient).max()
        for minimum in self.minima:
            if minimum.point is None:
                continue
            point = np.array(minimum.point)
            found, slope = self._evaluate(point)
            _expect(found, minimum.value, 1e-9, f"{self.name}: value at {minimum.point}")
            if self.bounds is not None:
                lower, upper = (np.array(bound) for bound in self.bounds)
                if not ((lower <= point) & (point <= upper)).all():
                    raise AssertionError(f"{self.name}: {minimum.point} is out of bounds")
                slope = point - np.clip(point - slope, lower, upper)
            # A point is known to some 15 digits: a steep valley leaves a gradient of that size.
            if np.abs(slope).max() > 1e-7 * max(1.0, float(largest)):
                raise AssertionError(f"{self.name}: gradient {slope} at {minimum.point}")

    def _check_gradient(self, point: np.ndarray) -> None:
        """Compare the gradient at `point` with central differences, entry by entry."""
        gradient = self._evaluate(point)[1]
        for index, entry in enumerate(gradient):
            step = 6e-6 * max(1e-2, abs(point[index]))  # the cube root of float64's epsilon
            ahead, behind = point.copy(), point.copy()
            ahead[index] += step
            behind[index] -= step
            high, low = self._evaluate(ahead)[0], self._evaluate(behind)[0]
            slope = (high - low) / (ahead[index] - behind[index])
            noise = 1e-14 * (abs(high) + abs(low)) / step
            _expect(float(entry), slope, 1e-6, f"{self.name}: derivative {index}", noise)

    def _evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        x = mx.array(point, dtype=mx.float64)
        with device_for(x):
            value, gradient = mx.value_and_grad(self.loss)(x)
            return float(np.array(value)), np.array(gradient)

    def __repr__(self) -> str:
        kind = "least squares" if self.residual is not None else "loss"
        bounded = ", bounded" if self.bounds is not None else ""
        return f"Problem({self.name!r}: {kind} of {self.size} parameters{bounded})"


def _expect(found: float, expected: float, relative: float, what: str, noise: float = 0.0) -> None:
    """Raise AssertionError unless `found` is as expected, relative to one where that is small."""
    if not abs(found - expected) <= relative * max(1e-3, abs(expected)) + noise:
        raise AssertionError(f"{what} is {found!r}; expected {expected!r}")


def constants(like: mx.array, values: object) -> mx.array:
    """Return numbers as an array of the dtype of `like`."""
    return mx.array(np.asarray(values, dtype=np.float64), dtype=like.dtype)


def integers(like: mx.array, first: int, last: int) -> mx.array:
    """Return first, ..., last as an array of the dtype of `like`."""
    return constants(like, np.arange(first, last + 1))

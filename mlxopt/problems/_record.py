"""The record of a test problem, with its answers and a check of them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx
import numpy as np

from mlxopt._tree import to_device
from mlxopt.autodiff import GradientError, check_grads

Function: TypeAlias = Callable[[mx.array], mx.array]


class Minimum(NamedTuple):
    """A local minimum in which a good method can end."""

    value: float  # the loss there, or its infimum where the minimum lies at infinity
    point: tuple[float, ...] | None = None  # to 14 digits; None at infinity and at a kink


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """A loss of one vector, its start and its minima.

    Either `function` or `residual` is given, in MLX operations; float64 keeps its digits.
    """

    name: str  # in the literature, with the dimension where that can be chosen
    start: tuple[float, ...]  # the standard start, p numbers
    start_value: float  # the loss there
    minima: tuple[Minimum, ...]  # the lowest first; of a connected set of points, one
    origin: str  # the source
    residual: Function | None = None  # from (p,) to (m,); the loss is its sum of squares
    function: Function | None = None  # from (p,) to (): the loss, where that is no such sum
    bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # infinite where none
    view: tuple[float, float, float, float] | None = None  # left, right, bottom, top of a picture

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
        """Return the start times `factor`, shape (p,); 10 and 100 give the usual harder starts.

        A start at the origin becomes `factor` in every entry, as in Moré, Garbow and Hillstrom.
        """
        start = np.array(self.start)
        if factor != 1.0:
            start = factor * start if start.any() else np.full_like(start, factor)
        return mx.array(start, dtype=dtype)

    def solved_by(self, value: float, relative: float = 1e-6) -> bool:
        """Return whether a loss is that of a known minimum.

        The error is `relative` to the minimum or, where that is zero, to the value at the start.
        """
        scale = min(1.0, abs(self.start_value))
        return any(abs(value - best) <= relative * (abs(best) or scale) for best, _ in self.minima)

    def check(self) -> None:
        """Raise AssertionError unless values, derivatives and minima are right in float64."""
        start = np.array(self.start)
        value, gradient = self._evaluate(start)
        self._expect(value, self.start_value, 1e-12, "the start")
        rng = np.random.default_rng(len(self.name))
        for point in (start, start + 0.01 * (1 + np.abs(start)) * rng.uniform(0.1, 1, len(start))):
            try:
                check_grads(self.loss, to_device(point, mx.float64), order=1, compile=False)
            except GradientError as error:
                raise AssertionError(f"{self.name}: wrong derivative. {error}") from error
        lower, upper = self.bounds or (-np.inf, np.inf)
        for known, place in self.minima:
            if place is None:
                continue
            point = np.array(place)
            value, slope = self._evaluate(point)
            self._expect(value, known, 1e-9, str(place))
            if not np.array_equal(point, np.clip(point, lower, upper)):
                raise AssertionError(f"{self.name}: {place} is out of bounds")
            slope = point - np.clip(point - slope, lower, upper)
            # A point is known to some 15 digits: a steep valley leaves a gradient of that size.
            if np.abs(slope).max() > 1e-7 * max(1.0, float(np.abs(gradient).max())):
                raise AssertionError(f"{self.name}: gradient {slope} at {place}")

    def _evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        with mx.stream(mx.cpu):
            value, gradient = mx.value_and_grad(self.loss)(to_device(point, mx.float64))
            return float(np.array(value)), np.array(gradient)

    def _expect(self, value: float, known: float, relative: float, where: str) -> None:
        if not abs(value - known) <= relative * max(1e-3, abs(known)):
            raise AssertionError(f"{self.name}: value at {where} is {value!r}; expected {known!r}")

    def __repr__(self) -> str:
        kind = "least squares" if self.residual is not None else "loss"
        bounded = ", bounded" if self.bounds is not None else ""
        return f"Problem({self.name!r}: {kind} of {self.size} parameters{bounded})"


def problems(table: str, functions: dict[str, Any], source: str = "") -> tuple[Problem, ...]:
    """Return the problems of a table, one from each line without indentation.

    Fields stand between bars: name, origin (after `source`), `residual` or `function` with its
    name, value and point of the start and of each minimum, and perhaps `bounds` and `view`.
    """
    found = []
    for record in re.split(r"\n(?=\S)", table.strip()):
        name, origin, role, *fields = (field.strip() for field in record.split("|"))
        kind, function = role.split()
        options: dict[str, Any] = {kind: functions[function]}
        points = []
        for field in fields:
            key, _, text = field.partition(" ")
            if key == "view":
                options[key] = numbers(text)
            elif key == "bounds":
                options[key] = tuple(map(numbers, text.split(",")))
            else:
                value, _, point = field.partition("at")
                points.append(Minimum(numbers(value)[0], numbers(point) or None))
        (value, start), *minima = points
        found.append(Problem(name, start, value, tuple(minima), source + origin, **options))
    return tuple(found)


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a text; `1/3` is a ratio, and `4*0` stands for four zeros."""
    found = []
    for word in text.split():
        times, _, ratio = word.rpartition("*")
        top, _, bottom = ratio.partition("/")
        found += int(times or 1) * [float(top) / float(bottom or 1)]
    return tuple(found)


def constants(like: mx.array, values: object) -> mx.array:
    """Return numbers as an array of the dtype of `like`."""
    return mx.array(np.asarray(values, dtype=np.float64), dtype=like.dtype)


def product(x: mx.array) -> mx.array:
    """Return the product of the entries; the derivative of mx.prod would divide by them."""
    return functools.reduce(mx.multiply, x)


def integers(like: mx.array, first: int, last: int) -> mx.array:
    """Return first, ..., last as an array of the dtype of `like`."""
    return constants(like, np.arange(first, last + 1))

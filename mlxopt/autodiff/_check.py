"""check_grads: the derivatives of a loss against finite differences with an error estimate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._platform.device import device_for
from mlxopt._tree import (
    FLOATS,
    Tree,
    check_params,
    dtype_name,
    from_host,
    leaves_with_paths,
    pieces,
    to_host,
    widened,
)
from mlxopt.autodiff._arguments import as_data
from mlxopt.autodiff._differences import Difference, differentiate
from mlxopt.autodiff._gradient import value_and_grad
from mlxopt.autodiff._guards import TapeError, check_is_callable, name_of, with_fixed_draw
from mlxopt.autodiff._second import hvp

Loss: TypeAlias = Callable[..., mx.array]

_DIRECTIONS = 2  # in each leaf, since one could by accident be orthogonal to a mistake
_SLACK = 10  # times the estimated error of a finite difference


class GradientError(ArithmeticError):
    """The derivatives of a loss disagree with finite differences; `report` says where."""

    def __init__(self, report: GradientCheck) -> None:
        super().__init__(str(report))
        self.report = report


class Comparison(NamedTuple):
    """One derivative, by autodiff and by finite differences."""

    order: int  # 1 or 2
    path: str  # of the leaf
    entry: tuple[int, ...] | None  # its entry; None: along a random direction in the leaf
    autodiff: float
    difference: float  # by finite differences; NaN where the loss is not finite around params
    allowed: float  # the largest error of either
    telling: bool  # whether `allowed` is small enough for a verdict

    @property
    def ratio(self) -> float:
        """The error as a multiple of the allowed one; infinite where a number is NaN."""
        error = np.array(abs(self.autodiff - self.difference))
        return float(_ratio(error, np.array(self.allowed)))

    @property
    def passed(self) -> bool:
        """Whether the two agree, in a comparison that is telling."""
        return self.telling and abs(self.autodiff - self.difference) <= self.allowed

    def __str__(self) -> str:
        entry = f", entry {list(self.entry)}" if self.entry else ""
        where = ", along a random direction" if self.entry is None else entry
        verdict = "ok" if self.passed else "FAILED" if self.telling else "UNCLEAR"
        return (
            f"{verdict:<7} order {self.order}, params{self.path}{where}: autodiff "
            f"{self.autodiff:.9g}, finite difference {self.difference:.9g}, error "
            f"{abs(self.autodiff - self.difference):.2g} (allowed {self.allowed:.2g})"
        )


@dataclasses.dataclass(frozen=True, repr=False)
class GradientCheck:
    """The result of `check_grads`."""

    name: str
    """Of the loss."""
    dtype: str
    """Of the differences."""
    comparisons: tuple[Comparison, ...]
    """For each order and leaf, that with the largest error."""

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return all(one.passed for one in self.comparisons)

    def __repr__(self) -> str:
        failed = sum(not one.passed for one in self.comparisons)
        verdict = f"{failed} failed" if failed else "all passed"
        head = f"{self.name} in {self.dtype}: {len(self.comparisons)} comparisons, {verdict}"
        lines = [head, *(f"  {one}" for one in self.comparisons)]
        if any(not one.telling for one in self.comparisons):
            lines.append("  UNCLEAR: the loss near params is too noisy for them, or not finite.")
        return "\n".join(lines)


def check_grads(
    loss: Loss, params: Tree, *data: Any, order: int = 2, compile: bool = True
) -> GradientCheck:
    """Compare the derivatives of `loss` at `params` with finite differences; raise if they differ.

    The gradient is compared along random directions in each leaf, and then in the wrong entry;
    second derivatives are compared with differences of the gradient, entry by entry. A difference
    is extrapolated from steps between 0.1 and 6e-9 of the size of the entries. Its error is that of
    the extrapolation (Ridders 1982) and of the noise of the loss, which is measured (Moré and Wild
    2011).

    Args:
        loss: a function `loss(params, *data)` that returns a scalar array. Its random operations
            use one draw throughout, and the generator is left as it was.
        params: a tree of float arrays, away from kinks of the loss (relu at 0).
        *data: arguments of the loss after its parameters.
        order: 1 checks the gradient, 2 its derivative as well.
        compile: False for a loss that branches on values, as in `value_and_grad`.

    Returns:
        a `GradientCheck`, computed in float64 on the CPU if the loss can be, else in float32. The
        allowed error is 10 √ε of the size of the derivative (1.5e-7 and 3.5e-3), and ten times the
        error of the difference.

    Raises:
        GradientError: a derivative is wrong, or the loss too noisy for its differences. The
            message, and `report` of the error, name leaf and entry.
        TapeError, TypeError, ValueError: as `value_and_grad`.

    >>> import mlx.core as mx, mlxopt as mo
    >>> mo.check_grads(lambda w: mx.sum(w**3), mx.array([1.0, 2.0])).passed
    True
    """
    check_is_callable(loss)
    params = check_params(params)
    if order not in (1, 2):
        raise ValueError(f"order is {order!r}; expected 1 (gradient) or 2 (its derivative too).")
    loss = with_fixed_draw(loss)
    data = as_data(data, params, loss)
    point = _in_float64(loss, params, data, order, compile)
    if point is None:
        params, data = tree_map(_in_float32, (params, data))
        point = _Point(loss, params, data, compile)
    with device_for(point.params, point.data):
        found = [point.compare_gradient(i) for i in range(len(point.paths))]
        found += point.compare_curvature() if order == 2 else []
    report = GradientCheck(name_of(loss), dtype_name(point.dtype), tuple(found))
    if not report.passed:
        raise GradientError(report)
    return report


def _in_float64(loss: Loss, params: Tree, data: Any, order: int, compile: bool) -> _Point | None:
    """Return the loss around `params` in float64 on the CPU; None if it cannot be computed so."""
    with mx.stream(mx.cpu):
        try:
            point = _Point(loss, widened(params), widened(data), compile)
            # A gradient in float64 need not have one itself: that of a convolution has none.
            if order == 2:
                mx.eval(point.hvp(point.params, point.params, *point.data))
        except TapeError:
            raise
        except (ValueError, RuntimeError):
            # A mistake in the loss raises again in float32.
            return None
    return point if point.dtype == mx.float64 else None


def _in_float32(leaf: Any) -> Any:
    is_float = isinstance(leaf, mx.array) and leaf.dtype in FLOATS
    return leaf.astype(mx.float32) if is_float else leaf


class _Point:
    """A loss around one point; all vectors are on the host, (p,), float64."""

    def __init__(self, loss: Loss, params: Tree, data: tuple[Any, ...], compile: bool) -> None:
        self.params, self.data = params, data
        self.value_and_grad = value_and_grad(loss, compile=compile)
        self.hvp = hvp(loss, compile=compile)
        value, grad = self.value_and_grad(params, *data)
        self.dtype = value.dtype
        self.epsilon = 2.0**-52 if value.dtype == mx.float64 else 2.0**-23
        self.center, self.gradient = to_host(params), to_host(grad)
        self.paths, arrays = zip(*leaves_with_paths(params), strict=True)
        self.shapes = [array.shape for array in arrays]
        numbers = pieces(np.arange(len(self.center)), params)
        self.places = [part.reshape(-1) for part in numbers]  # of the entries of each leaf
        # The scale of a step: the entry, or near zero the usual entry of its leaf. The root
        # balances rounding in a step that is too short with terms in one too long.
        self.sizes = np.abs(self.center)
        for place in self.places:
            usual = max(1.0, np.sqrt(np.mean(self.center[place] ** 2)))
            self.sizes[place] = np.maximum(self.sizes[place], self.epsilon**0.2 * usual)
        self.random = np.random.default_rng(0)

    def compare_gradient(self, leaf: int) -> Comparison:
        """Return the worst comparison in one leaf; where it fails, that of an entry to blame."""
        place = self.places[leaf]
        found = [self._slope(leaf, place, self._weights(len(place))) for _ in range(_DIRECTIONS)]
        worst = max(found, key=lambda one: one.ratio)
        if worst.passed:
            return worst
        # Bisection: the half with the larger error.
        while len(place) > 1:
            halves = np.array_split(place, 2)
            ratios = [self._slope(leaf, half, np.ones(len(half))).ratio for half in halves]
            place = halves[int(np.argmax(ratios))]
        culprit = self._slope(leaf, place, np.ones(1), single=True)
        return worst if culprit.passed else culprit

    def _weights(self, count: int) -> np.ndarray:
        """Return random numbers, none near 0: a step must exceed the rounding of an entry."""
        return self.random.choice([-1.0, 1.0], count) * self.random.uniform(0.5, 1.5, count)

    def _slope(
        self, leaf: int, place: np.ndarray, weights: np.ndarray, single: bool = False
    ) -> Comparison:
        """Compare slopes along `weights` of the entries at `place`, or in a single entry."""
        direction = np.zeros(len(self.center))
        direction[place] = self.sizes[place] * weights
        unit = direction[place[0]] if single else 1.0

        def value(step: float) -> np.ndarray:
            at = from_host(self.center + step * direction, self.params)
            return np.array([self.value_and_grad(at, *self.data)[0].item()])

        found = Difference(*(part / unit for part in differentiate(value, self.epsilon)))
        terms = self.gradient * direction
        slope, usual = np.array([terms.sum() / unit]), np.sqrt(np.sum(terms**2)) / unit
        return self._worst(1, leaf, place if single else None, slope, found, usual)

    def compare_curvature(self) -> list[Comparison]:
        """Return, for each leaf, the worst of its entries of the Hessian times a random vector."""
        rounds = []
        for _ in range(_DIRECTIONS):
            direction = self._weights(len(self.center)) * self.sizes
            vector = from_host(direction, self.params)
            product = to_host(self.hvp(self.params, vector, *self.data))

            def gradient(step: float, direction: np.ndarray = direction) -> np.ndarray:
                at = from_host(self.center + step * direction, self.params)
                return to_host(self.value_and_grad(at, *self.data)[1])

            found = differentiate(gradient, self.epsilon)
            rounds.append([])
            for leaf, place in enumerate(self.places):
                here = Difference(found.value[place], found.error[place], found.level)
                usual = np.sqrt(np.mean(product[place] ** 2))
                rounds[-1].append(self._worst(2, leaf, place, product[place], here, usual))
        return [max(found, key=lambda one: one.ratio) for found in zip(*rounds, strict=True)]

    def _worst(
        self,
        order: int,
        leaf: int,
        place: np.ndarray | None,
        autodiff: np.ndarray,
        found: Difference,
        usual: float,
    ) -> Comparison:
        """Return the comparison of k derivatives with the largest ratio.

        They are those in the entries numbered `place`, or along a direction where it is None;
        `usual` is their usual size, for one that is small by accident.
        """
        size = np.maximum(np.maximum(np.abs(autodiff), np.abs(found.value)), usual)
        # Half of the digits, and the known error.
        allowed = 10 * np.sqrt(self.epsilon) * size + _SLACK * found.error
        i = int(np.argmax(_ratio(np.abs(autodiff - found.value), allowed)))
        entry = None
        if place is not None:
            index = np.unravel_index(place[i] - self.places[leaf][0], self.shapes[leaf])
            entry = tuple(int(k) for k in index)
        telling = bool(allowed[i] <= max(0.1 * size[i], 1e-3 * found.level.max()))
        ours, theirs, most = (float(part[i]) for part in (autodiff, found.value, allowed))
        return Comparison(order, self.paths[leaf], entry, ours, theirs, most, telling)


def _ratio(seen: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return seen / allowed: 0 where nothing was seen, infinite where a number is NaN."""
    seen = np.where(np.isfinite(seen), seen, np.inf)
    return np.divide(seen, allowed, out=np.where(seen > 0, np.inf, 0.0), where=allowed > 0)

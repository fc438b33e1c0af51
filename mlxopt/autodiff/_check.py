"""check_grads: a loss's derivatives against finite differences that know their own error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._platform.device import device_for
from mlxopt._tree import (
    FLOATS,
    Tree,
    check_params,
    dtype_name,
    leaves,
    leaves_with_paths,
    numpy_dtype,
    ravel,
    to_data,
    unravel,
    working_dtype,
)
from mlxopt.autodiff._differences import differentiate
from mlxopt.autodiff._gradient import value_and_grad
from mlxopt.autodiff._guards import TapeError, check_is_callable, name_of, with_fixed_draw
from mlxopt.autodiff._second import hvp

_DIRECTIONS = 2  # in each leaf: one may by accident be orthogonal to a mistake
_SLACK = 10  # how many times its own estimated error a finite difference is given


class GradientError(ArithmeticError):
    """The derivatives of a loss disagree with finite differences; `report` says where."""

    def __init__(self, report: GradientCheck) -> None:
        super().__init__(str(report))
        self.report = report


class Comparison(NamedTuple):
    """One derivative, by autodiff and by finite differences."""

    order: int  # 1 or 2
    path: str  # the leaf
    entry: tuple[int, ...] | None  # the entry of it; None: along a random direction in the leaf
    autodiff: float
    difference: float  # by finite differences; NaN where the loss is not finite around params
    allowed: float  # how far apart the two may be
    telling: bool  # whether that is little enough for the comparison to mean something

    @property
    def passed(self) -> bool:
        """Whether the two agree, and that says something."""
        return self.telling and abs(self.autodiff - self.difference) <= self.allowed

    def __str__(self) -> str:
        entry = (
            ", along a random direction" if self.entry is None
            else f", entry [{', '.join(map(str, self.entry))}]" if self.entry else ""
        )  # fmt: skip
        error = abs(self.autodiff - self.difference)
        verdict = "ok" if self.passed else "FAILED" if self.telling else "UNCLEAR"
        return (
            f"{verdict:<7} order {self.order}, params{self.path}{entry}: autodiff "
            f"{self.autodiff:.9g}, finite difference {self.difference:.9g}, error {error:.2g} "
            f"(allowed {self.allowed:.2g})"
        )


@dataclasses.dataclass(frozen=True, repr=False)
class GradientCheck:
    """What `check_grads` found: for each order and leaf, the comparison that came out worst."""

    name: str
    """The loss."""
    dtype: str
    """In what the differences were computed."""
    comparisons: tuple[Comparison, ...]
    """One for each order and leaf."""

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
            lines.append(
                "  UNCLEAR: near params the loss is too noisy, or not finite, for a finite "
                "difference to tell."
            )
        return "\n".join(lines)


def check_grads(
    loss: Callable[..., mx.array],
    params: Tree,
    *data: Any,
    order: int = 2,
    compile: bool = True,
) -> GradientCheck:
    """Compare the derivatives of `loss` at `params` with finite differences; raise if they differ.

    The gradient is compared along random directions in each leaf, and an entry that is wrong is
    then searched for; second derivatives are compared with differences of the gradient, entry by
    entry. A difference is extrapolated from steps between 0.1 and 6e-9 of the size of the entries,
    and knows its own error: what the extrapolation is uncertain of (Ridders 1982) and the noise of
    the loss, which is measured (Moré and Wild 2011).

    Args:
        loss: a function `loss(params, *data)` that returns a scalar array. Its random operations
            see one draw throughout, and the generator is left as it was.
        params: where: a tree of float arrays. Stay away from kinks (relu at 0).
        *data: what the loss takes after its parameters.
        order: 1 checks the gradient, 2 its derivative as well.
        compile: False for a loss that branches on values, as in `value_and_grad`.

    Returns:
        a `GradientCheck`, with the comparison that came out worst for each order and leaf. All is
        computed in float64 on the CPU if the loss can be, else in float32. Autodiff and difference
        may be apart by 10 √ε of the derivative's size (1.5e-7 and 3.5e-3), and by ten times the
        error of the difference.

    Raises:
        GradientError: a derivative is wrong, or the loss too noisy for its differences to tell. The
            message, and `report` of the error, name leaf and entry.
        TapeError, TypeError, ValueError: as `value_and_grad`.

    >>> import mlx.core as mx, mlxopt as mo
    >>> mo.check_grads(lambda w: mx.sum(w**3), mx.array([1.0, 2.0])).passed
    True
    """
    check_is_callable(loss)
    check_params(params)
    if order not in (1, 2):
        raise ValueError(
            f"order is {order!r}; expected 1 (the gradient) or 2 (its derivative too)."
        )
    loss = with_fixed_draw(loss)
    data = tuple(to_data(item, working_dtype(params)) for item in data)
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


def _in_float64(
    loss: Callable[..., mx.array], params: Tree, data: tuple[Any, ...], order: int, compile: bool
) -> _Point | None:
    """Return the loss around `params` in float64 on the CPU; None if it cannot be computed so."""

    def widen(leaf: Any) -> Any:
        is_float = isinstance(leaf, mx.array) and leaf.dtype in FLOATS
        return leaf.astype(mx.float64) if is_float else leaf

    with mx.stream(mx.cpu):
        try:
            point = _Point(loss, tree_map(widen, params), tree_map(widen, data), compile)
            if order == 2:  # convolution, for one, has a gradient in float64 that has none
                mx.eval(point.hvp(point.params, point.params, *point.data))
        except TapeError:
            raise
        except (ValueError, RuntimeError):  # a mistake of the user's comes up again in float32
            return None
    return point if point.dtype == mx.float64 else None


class _Point:
    """A loss around one point, on the host: all vectors are NumPy's, (p,), float64."""

    def __init__(
        self, loss: Callable[..., mx.array], params: Tree, data: tuple[Any, ...], compile: bool
    ) -> None:
        self.params, self.data = params, data
        self.value_and_grad = value_and_grad(loss, compile=compile)
        self.hvp = hvp(loss, compile=compile)
        value, grad = self.value_and_grad(params, *data)
        self.dtype = value.dtype
        self.epsilon = 2.0**-52 if value.dtype == mx.float64 else 2.0**-23
        self.center, self.gradient = self._vector(params), self._vector(grad)
        self.paths = [path for path, _ in leaves_with_paths(params)]
        self.shapes = [leaf.shape for leaf in leaves(params)]
        ends = np.cumsum([leaf.size for leaf in leaves(params)])
        self.places = np.split(np.arange(ends[-1]), ends[:-1])  # of the entries of each leaf
        # Of a step that matters: of the size of the entry, or of those in its leaf where it is near
        # zero. The root balances rounding in a step that is too short with terms in one too long.
        self.sizes = np.abs(self.center)
        for place in self.places:
            usual = max(1.0, np.sqrt(np.mean(self.center[place] ** 2)))
            self.sizes[place] = np.maximum(self.sizes[place], self.epsilon**0.2 * usual)
        self.random = np.random.default_rng(0)

    def _vector(self, tree: Tree) -> np.ndarray:
        return np.array(ravel(tree, working_dtype(self.params)), dtype=np.float64)

    def _tree(self, vector: np.ndarray) -> Tree:
        dtype = working_dtype(self.params)
        return unravel(mx.array(vector.astype(numpy_dtype(dtype)), dtype=dtype), self.params)

    def compare_gradient(self, leaf: int) -> Comparison:
        """Return the worst comparison in one leaf; where it fails, that of an entry to blame."""
        place = self.places[leaf]
        found = [self._slope(leaf, place, self._weights(len(place))) for _ in range(_DIRECTIONS)]
        worst = max(found, key=_badness)
        if worst.passed:
            return worst
        while len(place) > 1:  # go on in the half that is further off
            halves = np.array_split(place, 2)
            place = max(
                halves, key=lambda half: _badness(self._slope(leaf, half, np.ones(len(half))))
            )
        culprit = self._slope(leaf, place, np.ones(1), self._entry(leaf, place[0]))
        return worst if culprit.passed else culprit

    def _weights(self, count: int) -> np.ndarray:
        """Return random numbers, none near 0: a step must reach beyond the rounding of an entry."""
        return self.random.choice([-1.0, 1.0], count) * self.random.uniform(0.5, 1.5, count)

    def _entry(self, leaf: int, number: int) -> tuple[int, ...]:
        """Return the index, in its leaf, of an entry with this number among all."""
        index = np.unravel_index(number - self.places[leaf][0], self.shapes[leaf])
        return tuple(int(i) for i in index)

    def _slope(
        self,
        leaf: int,
        place: np.ndarray,
        weights: np.ndarray,
        entry: tuple[int, ...] | None = None,
    ) -> Comparison:
        """Compare the slope of the loss along `weights` of the entries at `place`."""
        direction = np.zeros(len(self.center))
        direction[place] = self.sizes[place] * weights
        # A single entry is shown as the derivative in that entry.
        unit = 1.0 if entry is None else direction[place[0]]

        def value(step: float) -> np.ndarray:
            at = self._tree(self.center + step * direction)
            return np.array([self.value_and_grad(at, *self.data)[0].item()])

        found = differentiate(value, self.epsilon)
        terms = self.gradient * direction
        return self._judge(
            1, leaf, entry,
            autodiff=terms.sum() / unit,
            difference=found.value[0] / unit,
            error=found.error[0] / unit,
            usual=np.sqrt(np.sum(terms**2)) / unit,
            level=found.level[0] / unit,
        )  # fmt: skip

    def compare_curvature(self) -> list[Comparison]:
        """Return, for each leaf, the worst of its entries of the Hessian times a random vector."""
        worst: dict[int, Comparison] = {}
        for _ in range(_DIRECTIONS):
            direction = self._weights(len(self.center)) * self.sizes
            product = self._vector(self.hvp(self.params, self._tree(direction), *self.data))

            def gradient(step: float, direction: np.ndarray = direction) -> np.ndarray:
                at = self._tree(self.center + step * direction)
                return self._vector(self.value_and_grad(at, *self.data)[1])

            found = differentiate(gradient, self.epsilon)
            for leaf, place in enumerate(self.places):
                usual = float(np.sqrt(np.mean(product[place] ** 2)))
                excess = np.abs(product - found.value)[place]
                allowed = self._allowed(
                    product[place], found.value[place], found.error[place], usual
                )
                number = place[np.argmax(_ratio(excess, allowed))]
                one = self._judge(
                    2, leaf, self._entry(leaf, number),
                    autodiff=float(product[number]),
                    difference=float(found.value[number]),
                    error=float(found.error[number]),
                    usual=usual,
                    level=found.level.max(),
                )  # fmt: skip
                if leaf not in worst or _badness(one) > _badness(worst[leaf]):
                    worst[leaf] = one
        return [worst[leaf] for leaf in range(len(self.places))]

    def _allowed(self, autodiff: Any, difference: Any, error: Any, usual: float) -> Any:
        """Return how far apart two derivatives may be: half of the digits, and the known error."""
        size = np.maximum(np.maximum(np.abs(autodiff), np.abs(difference)), usual)
        return 10 * np.sqrt(self.epsilon) * size + _SLACK * error

    def _judge(
        self, order: int, leaf: int, entry: tuple[int, ...] | None, *, autodiff: float,
        difference: float, error: float, usual: float, level: float,
    ) -> Comparison:  # fmt: skip
        """Return the comparison of two numbers.

        Args:
            order: of the derivative.
            leaf: where, by number.
            entry: where in the leaf.
            autodiff: the one number.
            difference: the other.
            error: what is known of the error of `difference`.
            usual: how large such a derivative is here, if this one is small by accident.
            level: how large the function is that was differentiated.
        """
        allowed = self._allowed(autodiff, difference, error, usual)
        size = max(abs(autodiff), abs(difference), usual)
        telling = bool(allowed <= max(0.1 * size, 1e-3 * level))
        return Comparison(
            order, self.paths[leaf], entry, float(autodiff), float(difference), float(allowed),
            telling,
        )  # fmt: skip


def _ratio(seen: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return seen / allowed: 0 where nothing was seen, infinite where a number is NaN."""
    seen = np.where(np.isfinite(seen), seen, np.inf)
    return np.divide(seen, allowed, out=np.where(seen > 0, np.inf, 0.0), where=allowed > 0)


def _badness(one: Comparison) -> float:
    """Return how many times the allowed difference was seen."""
    return float(_ratio(np.array(abs(one.autodiff - one.difference)), np.array(one.allowed)))


def _in_float32(leaf: Any) -> Any:
    is_float = isinstance(leaf, mx.array) and leaf.dtype in FLOATS
    return leaf.astype(mx.float32) if is_float else leaf

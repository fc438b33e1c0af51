"""Limited-memory BFGS within bounds.

Notation, as in Byrd, Lu, Nocedal and Zhu (1995), "A limited memory algorithm for bound constrained
optimization", section 3:
    S, Y = the changes of the parameters and of the gradient in the last steps, one a row
    B = θI - W M Wᵀ, the approximate Hessian, with W = [Yᵀ θSᵀ]
    F = the free parameters: all but those held at a bound by the gradient
    P = the projection onto the bounds: each entry moved to the nearest allowed value
    D = the units of the parameters (see `_descent.py`)

As in `lbfgs.py`, the pairs and the gradient are rows of one matrix on the device; the host holds
the inner products of the rows, and of their free parts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._bounds import bound_vectors, check_bounds, check_inside, project
from mlxopt._checks import check_fields
from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import (
    Tree,
    Vector,
    is_finite,
    largest_entry,
    numpy_dtype,
    ravel,
    read,
    to_host,
    to_numpy,
    unravel,
    working_dtype,
)
from mlxopt.optimizers import lbfgs
from mlxopt.optimizers._descent import (
    Descent,
    DescentState,
    Direction,
    Trial,
    first_step_size,
    scaled,
    units,
)
from mlxopt.optimizers._line_search import C1, NO_SEARCH, LineSearch, proceed

_NEAR = 1e-6  # relative distance from a bound at which an outward gradient holds a parameter there


class BoundedPairs(NamedTuple):
    """The memory of L-BFGS-B: that of L-BFGS, and the bounds; p is the number of parameters."""

    rows: mx.array  # (2m + 1, p), as in `Pairs`
    products: np.ndarray  # (2m + 1, 2m + 1), likewise
    order: tuple[int, ...]  # likewise
    lower: Vector  # (p,): the bounds, -inf where there is none
    upper: Vector  # (p,), +inf likewise
    theta: float  # θ


@dataclasses.dataclass(frozen=True)
class LBFGSB(Descent):
    """L-BFGS within bounds: lower ≤ params ≤ upper, at every trial too.

    Parameters that the gradient presses against a bound are held there; the others take the
    quasi-Newton step of L-BFGS-B (Byrd, Lu, Nocedal and Zhu 1995, equation 5.11), searched along
    its projection, P(params + t·d): one step can meet or leave any number of bounds. The choice of
    held parameters, in place of the generalized Cauchy point, and its convergence: Bertsekas
    (1982), "Projected Newton methods for optimization problems with simple constraints", section 3.
    One step of `minimize` is one evaluation of the loss and its gradient; `tol` and
    `result.optimality` refer to the largest entry of the projected gradient θ (x - P(x - g / θ)).

    Args:
        lower: a number, or a tree like `params` of numbers, arrays (of a shape that broadcasts to
            the leaf's) or None. None is no bound.
        upper: likewise. An entry with lower = upper is held fixed.
        memory: pairs of changes kept; 5 to 20 is usual. Costs 2 · memory vectors.

    Raises:
        TypeError, ValueError: a bound is not a number or NaN, lower is above upper, a bound does
            not fit `params`, or the start is outside the bounds.

    In float16 to float32, bounds are rounded to the dtype of the leaf, inwards.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda x: mx.sum((x - mx.array([-1.0, 0.5, 2.0])) ** 2)
    >>> mo.minimize(loss, mx.full((3,), 0.2), mo.LBFGSB(lower=0, upper=1)).params
    array([0, 0.5, 1], dtype=float32)
    """

    loss_alone: ClassVar[bool] = False

    lower: Any = None
    upper: Any = None
    memory: int = 10

    def __post_init__(self) -> None:
        check_fields(self, "memory", whole=True)
        check_bounds("LBFGSB", self.lower, self.upper)

    def nearest(self, params: Tree) -> Tree:
        lower, upper = bound_vectors("LBFGSB", self.lower, self.upper, params)
        return unravel(project(ravel(params, working_dtype(params)), lower, upper), params)

    def reduced(self, state: DescentState) -> tuple[np.ndarray, np.ndarray]:
        memory = state.memory
        return _reduced(state.params, state.grad, memory.lower, memory.upper)

    def init(self, objective: Objective, params: Tree) -> DescentState:
        bounds = bound_vectors("LBFGSB", self.lower, self.upper, params)
        check_inside("LBFGSB", params, *bounds)
        params = self.nearest(params)  # moves by a rounding error at most
        value, grad = objective.value_and_grad(params)
        number, largest = read(value, largest_entry(grad))
        return self.start(objective, params, number, largest, grad)

    def start(
        self, objective: Objective, params: Tree, value: float, largest: float, grad: Tree
    ) -> DescentState:
        dtype, scale, theta = working_dtype(params), None, 1.0
        bounds = bound_vectors("LBFGSB", self.lower, self.upper, params)
        if is_finite(value, largest):
            scale, inwards = units(objective, params, grad), _reduced(params, grad, *bounds)[0]
            theta = 1 / first_step_size(objective, params, inwards, scale)
        g = scaled(grad, dtype, scale)
        pull = _pull(
            ravel(params, dtype), ravel(grad, dtype), _weight(theta, scale, dtype), *bounds
        )
        largest, squared = read(mx.max(mx.abs(pull)), mx.inner(g, g))
        memory = BoundedPairs(*lbfgs.no_pairs(self.memory, g, squared), *bounds, theta)
        point = params, value, grad, largest, None, False
        return DescentState(*point, None, NO_SEARCH, memory, scale)

    def direction(self, objective: Objective, state: DescentState) -> Direction | Status:
        if state.optimality == 0:
            return Status.NO_PROGRESS  # nothing can move
        rows, products, order, lower, upper, theta = state.memory
        dtype, D = rows.dtype, state.scale
        theta_array = mx.array(theta, dtype=dtype)
        split = objective.compiled(_split, lambda: _split)
        x = ravel(state.params, dtype)
        free, free_products, numbers = split(x, rows, theta_array, D, lower, upper)
        mx.eval(free, free_products, numbers)
        inner = np.array(free_products, dtype=np.float64)
        held, held_slope = np.array(numbers).tolist()
        # With all parameters free the two agree; the recursion rounds less.
        if held or not order:
            combination = free_step(products, inner, order, theta)
        else:
            combination = lbfgs.two_loop(inner, order)
        slope = float(combination @ inner[-1]) + held_slope
        mix = mx.array(combination.astype(numpy_dtype(dtype)), dtype=dtype)
        vector = objective.compiled(_mix, lambda: _mix)(mix, free, rows, theta_array, D)
        step_size = 1.0
        if not order and state.search.verdict == "accepted":  # the loss curves down: go farther
            step_size = max(step_size, 2 * state.search.step_size)
        finite = np.isfinite(combination).all()
        return Direction(vector, slope if finite else math.nan, step_size)

    def evaluate(self, objective: Objective, state: DescentState) -> Trial:
        direction, (rows, _, order, *bounds, theta) = state.direction, state.memory
        step_size = mx.array(state.search.step_size, dtype=rows.dtype)
        walk = objective.compiled(_walk, lambda: _walk)
        params = walk(state.params, direction, step_size, *bounds)
        value, grad = objective.value_and_grad(params)
        slot = lbfgs.free_slot(order, self.memory)
        slots = mx.array([slot, self.memory + slot, 2 * self.memory])
        points = params, grad, state.params, state.grad
        measure = objective.compiled(_measure, lambda: _measure)
        weight = _weight(theta, state.scale, rows.dtype)
        rows, columns, numbers = measure(
            value, points, direction, rows, slots, state.scale, weight, *bounds
        )
        mx.eval(rows, columns, numbers)  # the only wait of the step
        number, largest, slope, fall, clipped = np.array(numbers).tolist()
        model = slot, rows, columns, fall, clipped > 0
        return Trial(params, number, grad, largest, slope, model=model)

    def judge(self, search: LineSearch, trial: Trial) -> LineSearch:
        """Return the search after the trial, whose slope is that along the projected path.

        Where bounds bend the path, the decrease is measured by gradient · (trial - params), `fall`
        (Bertsekas 1982, equation 31), and is the only condition: at a bend the slope jumps.
        """
        *_, fall, clipped = trial.model
        if not clipped or trial.value == -math.inf:
            return proceed(search, trial.value, trial.slope)
        if fall < 0 and trial.value <= search.value + C1 * fall:
            return search._replace(trials=search.trials + 1, verdict="accepted")
        chord = fall / search.step_size if fall < 0 else search.slope
        after = proceed(search._replace(slope=chord), trial.value, trial.slope)
        return after._replace(slope=search.slope)

    def update(self, state: DescentState, trial: Trial) -> BoundedPairs:
        slot, m = trial.model[0], self.memory
        memory = lbfgs.with_newest(state.memory, *trial.model[:3])
        if memory.order[-1:] != (slot,):
            return memory
        yy, sy = memory.products[m + slot, m + slot], memory.products[slot, m + slot]
        return memory._replace(theta=float(yy / sy) or memory.theta)  # or it underflows

    def restart(self, state: DescentState) -> BoundedPairs | None:
        return state.memory._replace(order=()) if state.memory.order else None


def free_step(
    products: np.ndarray, inner: np.ndarray, order: tuple[int, ...], theta: float
) -> np.ndarray:
    """Return the coefficients, in the rows (s..., y..., gradient), of the step -B_FF⁻¹ · g_F.

    Byrd, Lu, Nocedal and Zhu (1995), equation 5.11, with the inverse of M (equation 3.4) in place
    of M, which joins the two systems into one; only the free part of the combination counts.
    `products` and `order` are as in `lbfgs.two_loop`, `inner` the products of the free parts.
    """
    m = (len(products) - 1) // 2
    combination = np.zeros(2 * m + 1)
    combination[-1] = -1 / theta
    if not order:
        return combination
    s, y = list(order), [m + i for i in order]
    # Rows of unit length in the metric of B: pairs of very different size stay comparable.
    unit = np.sqrt(1 / products[s, y])
    sy = products[np.ix_(s, y)] * np.outer(unit, unit)
    ss = products[np.ix_(s, s)] * np.outer(unit, unit)
    lower = np.tril(sy, -1)
    inverse = np.block([[-np.diag(np.diag(sy)), lower.T], [lower, theta * ss]])  # equation 3.4
    rows, weights = [*y, *s], np.concatenate([unit, theta * unit])  # W, in coefficients
    W = inner[np.ix_(rows, rows)] * np.outer(weights, weights)
    try:
        v = np.linalg.solve(inverse - W / theta, weights * inner[rows, -1])
    except np.linalg.LinAlgError:
        return np.full_like(combination, math.nan)
    combination[rows] = -weights * v / theta**2
    return combination


def _reduced(
    params: Tree, grad: Tree, lower: Vector, upper: Vector
) -> tuple[np.ndarray, np.ndarray]:
    x, g = to_host(params), to_host(grad)
    free = ~(((x <= to_numpy(lower)) & (g > 0)) | ((x >= to_numpy(upper)) & (g < 0)))
    return np.where(free, g, 0.0), free


def _weight(theta: float, scale: Vector | None, dtype: mx.Dtype) -> mx.array:
    """Return θ D⁻², which turns a step into a gradient."""
    weight = mx.array(theta, dtype=dtype)
    return weight if scale is None else weight / scale / scale


def _pull(x: mx.array, g: mx.array, weight: mx.array, lower: mx.array, upper: mx.array) -> mx.array:
    """Return weight · (P(x - g / weight) - x), the projected gradient with its sign changed.

    The bounds count where they are nearer than a step of length g / weight.
    """
    return mx.minimum(mx.maximum(-g, weight * (lower - x)), weight * (upper - x))


def _walk(params: Tree, direction: Vector, step_size: mx.array, *bounds: Vector) -> Tree:
    x = ravel(params, direction.dtype) + step_size * direction
    return unravel(project(x, *bounds), params)


def _measure(
    value: mx.array,
    points: Tree,
    direction: Vector,
    rows: mx.array,
    slots: mx.array,
    scale: Vector | None,
    weight: mx.array,
    *bounds: Vector,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return new rows, their products, and the numbers that judge the trial."""
    (lower, upper), dtype = bounds, rows.dtype
    rows, new, s, g = lbfgs.with_rows(points, rows, slots, scale)
    x = ravel(points[0], dtype)
    # Where the path has met a bound it continues without that parameter.
    clipped = ((x <= lower) & (direction < 0)) | ((x >= upper) & (direction > 0))
    slope = mx.inner(g, mx.where(clipped, 0, direction))
    largest = mx.max(mx.abs(_pull(x, g, weight, lower, upper)))
    fall = mx.inner(ravel(points[3], dtype), s)
    numbers = [x.astype(dtype) for x in (value, largest, slope, fall, mx.sum(clipped))]
    return rows, lbfgs.inner_products(rows, new), mx.stack(numbers)


def _split(
    x: Vector, rows: mx.array, theta: mx.array, scale: Vector | None, *bounds: Vector
) -> tuple[mx.array, ...]:
    """Return which parameters are free, the rows' products there, the number held, their slope.

    Held are those at a bound, or near it, that the gradient presses against it (Bertsekas 1982,
    equation 32); "near" shrinks with the projected gradient.
    """
    g = rows[-1]
    x, lower, upper = (v if scale is None else v / scale for v in (x, *bounds))
    step = _pull(x, g, theta, lower, upper) / theta
    near = mx.minimum(mx.max(mx.abs(step)), _NEAR * mx.abs(x))
    held = ((x <= lower + near) & (g > 0)) | ((x >= upper - near) & (g < 0))
    free = ~held
    kept = mx.where(free, rows, 0)
    slope = mx.inner(g, mx.where(held, step, 0))
    return free, kept @ kept.T, mx.stack([mx.sum(held).astype(g.dtype), slope])


def _mix(
    combination: mx.array, free: mx.array, rows: mx.array, theta: mx.array, scale: Vector | None
) -> mx.array:
    vector = mx.where(free, combination @ rows, -rows[-1] / theta)
    return vector if scale is None else scale * vector

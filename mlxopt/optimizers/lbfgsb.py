"""Limited-memory BFGS within bounds.

Notation, as in Byrd, Lu, Nocedal and Zhu (1995), "A limited memory algorithm for bound constrained
optimization", section 3:
    S, Y = the changes of the parameters and of the gradient in the last steps, one a row
    B = θI - W M Wᵀ, the approximate Hessian, with W = [Yᵀ θSᵀ]
    F = the free parameters: all but those held at a bound by the gradient
    P = the projection onto the bounds: each entry moved to the nearest allowed value

As in `lbfgs.py`, the pairs and the gradient are rows of one matrix on the device, and what decides
needs only products of rows, on the host; here of their free parts too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import Tree, count, epsilon, is_finite, numpy_dtype, ravel, unravel, working_dtype
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._bounds import bound_vectors, check_bounds, check_inside
from mlxopt.optimizers._line_search import C1, NO_SEARCH, LineSearch, begin, proceed
from mlxopt.optimizers.lbfgs import free_slot, inner_products, remember, two_loop

_NEAR = 1e-6  # relative distance from a bound at which an outward gradient holds a parameter there


class LBFGSBState(NamedTuple):
    """The state of L-BFGS-B; p is the number of parameters, m the number of pairs kept."""

    params: Tree  # the parameters, always within the bounds
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the largest entry of the projected gradient, P(params - grad) - params
    status: Status | None  # why no further step can be taken
    lower: mx.array  # (p,): the bounds, -inf where there is none
    upper: mx.array  # (p,), +inf likewise
    rows: mx.array  # (2m + 1, p): row i is s, row m + i is y, for i < m; the last is the gradient
    products: np.ndarray  # (2m + 1, 2m + 1) float64: rows · rowsᵀ
    order: tuple[int, ...]  # which i are in use, oldest pair first
    direction: mx.array  # (p,): where the search looks, before projection
    search: LineSearch  # where it stands


@dataclasses.dataclass(frozen=True)
class LBFGSB(Optimizer[LBFGSBState]):
    """L-BFGS within bounds: lower ≤ params ≤ upper, never left, not even by a trial.

    Parameters that the gradient presses against a bound are held there; on the others it takes the
    quasi-Newton step of L-BFGS-B (Byrd, Lu, Nocedal and Zhu 1995, equation 5.11), and it searches
    along the projection of that step, P(params + t·d), so that any number of bounds may be met or
    left in one step. Which to hold, and why this converges: Bertsekas (1982), "Projected Newton
    methods for optimization problems with simple constraints", section 3; it stands in for the
    generalized Cauchy point, whose walk from bound to bound is sequential. One step of `minimize`
    is one evaluation of the loss and its gradient; `optimality`, which `tol` is compared with and
    `result.grad_norm` reports, is the largest entry of the projected gradient.

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
        if isinstance(self.memory, bool) or not isinstance(self.memory, int):
            raise TypeError(f"LBFGSB(memory={self.memory!r}): expected a whole number.")
        if self.memory < 1:
            raise ValueError(f"LBFGSB(memory={self.memory}): expected 1 or more.")
        check_bounds("LBFGSB", self.lower, self.upper)

    def nearest(self, params: Tree) -> Tree:
        """Return `params` clipped to the bounds."""
        lower, upper = bound_vectors("LBFGSB", self.lower, self.upper, params)
        return unravel(_project(ravel(params, working_dtype(params)), lower, upper), params)

    def init(self, objective: Objective, params: Tree) -> LBFGSBState:
        """Return the state at `params`, ready to look down the gradient; one evaluation."""
        lower, upper = bound_vectors("LBFGSB", self.lower, self.upper, params)
        check_inside("LBFGSB", params, lower, upper)
        params = self.nearest(params)  # moves by a rounding error at most
        dtype, size = working_dtype(params), 2 * self.memory + 1
        value, grad = objective.value_and_grad(params)
        g = ravel(grad, dtype)
        rows = mx.concatenate([mx.zeros((size - 1, count(params)), dtype=dtype), g[None]])
        x = ravel(params, dtype)
        numbers = [value.astype(dtype), mx.max(mx.abs(_reach(x, g, lower, upper))), mx.inner(g, g)]
        number, largest, squared = np.array(mx.stack(numbers)).tolist()
        products = np.zeros((size, size))
        products[-1, -1] = squared
        state = LBFGSBState(
            params, number, grad, largest, None, lower, upper, rows, products, (), g, NO_SEARCH
        )
        return self._aim(objective, state) if is_finite(number, squared) else state

    def step(self, objective: Objective, state: LBFGSBState) -> LBFGSBState:
        """Evaluate one trial on the projected path; keep it if the loss falls enough."""
        if state.status is not None:
            return state
        dtype, t = state.rows.dtype, state.search.step_size
        trial = objective.compiled(_walk, lambda: _walk)(
            state.params, state.direction, mx.array(t, dtype=dtype), state.lower, state.upper
        )
        value, grad = objective.value_and_grad(trial)
        slot = free_slot(state.order, self.memory)
        rows, columns, numbers = objective.compiled(_look, lambda: _look)(
            value, trial, grad, state.params, state.grad, state.direction, state.rows,
            mx.array([slot, self.memory + slot, 2 * self.memory]), state.lower, state.upper,
        )  # fmt: skip
        mx.eval(rows, columns, numbers)  # the only wait of a trial
        trial_value, largest, slope, fall, clipped = np.array(numbers).tolist()

        search = _judge(state.search, trial_value, slope, fall, clipped > 0)
        if search.verdict == "":
            return state._replace(search=search)
        if search.verdict == "failed":
            return self._restart(objective, state)
        unbounded = search.verdict == "unbounded"
        status = Status.UNBOUNDED if unbounded else None
        if unbounded and not is_finite(trial_value, slope):
            return state._replace(status=status)
        state = state._replace(
            params=trial, value=trial_value, grad=grad, optimality=largest, status=status
        )
        eps = float(np.finfo(numpy_dtype(dtype)).eps)
        columns = np.array(columns, dtype=np.float64)
        products, order = remember(state.products, state.order, slot, columns, eps)
        state = state._replace(rows=rows, products=products, order=order)
        return state if unbounded else self._aim(objective, state)

    def _aim(self, objective: Objective, state: LBFGSBState) -> LBFGSBState:
        """Choose the direction at `params` and begin a search along its projection."""
        if state.optimality == 0:
            return state._replace(status=Status.NO_PROGRESS)  # nothing can move
        m, dtype = self.memory, state.rows.dtype
        theta = 1.0
        if state.order:
            i = state.order[-1]
            theta = state.products[m + i, m + i] / state.products[i, m + i]  # yᵀy / sᵀy
        scale = mx.array(theta, dtype=dtype)
        bounds = (state.lower, state.upper)
        x = ravel(state.params, dtype)
        split = objective.compiled(_split, lambda: _split)
        free, products, numbers = split(x, state.rows, scale, *bounds)
        mx.eval(free, products, numbers)
        inner = np.array(products, dtype=np.float64)
        held, held_slope = np.array(numbers).tolist()
        if held:
            combination = free_step(state.products, inner, state.order, theta)
        else:  # as in LBFGS, which is the same and rounds less
            combination = two_loop(inner, state.order)
        slope = float(combination @ inner[-1]) + held_slope
        if not slope < 0 or not is_finite(slope, *combination):
            return self._restart(objective, state)  # rounding has spoilt the memory
        mix = mx.array(combination.astype(numpy_dtype(dtype)), dtype=dtype)
        direction = objective.compiled(_mix, lambda: _mix)(mix, free, state.rows, scale)
        # The first step knows no scale: move by at most 1. Later, B sets it.
        norm = math.sqrt(inner[-1, -1])
        step_size = 1.0 if state.order else min(1.0, 1.0 / norm if norm > 0 else 1.0)
        search = begin(state.value, slope, step_size, epsilon(state.params))
        return state._replace(direction=direction, search=search)

    def _restart(self, objective: Objective, state: LBFGSBState) -> LBFGSBState:
        """Forget all pairs and look down the gradient; if that was just done, give up."""
        if not state.order:
            return state._replace(status=Status.NO_PROGRESS)
        return self._aim(objective, state._replace(order=()))


def free_step(
    products: np.ndarray, inner: np.ndarray, order: tuple[int, ...], theta: float
) -> np.ndarray:
    """Return the coefficients, in the rows (s..., y..., gradient), of the step -B_FF⁻¹ · g_F.

    Byrd, Lu, Nocedal and Zhu (1995), equation 5.11, with the inverse of M (equation 3.4) in place
    of M, which joins the two systems into one; only the free part of the combination counts.

    Args:
        products: (2m + 1, 2m + 1), inner products of the rows.
        inner: the same of the rows' free parts alone.
        order: the pairs to use, oldest first: i stands for rows i (s) and m + i (y).
        theta: θ, above 0.
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


def _judge(
    search: LineSearch, value: float, slope: float, fall: float, clipped: bool
) -> LineSearch:
    """Return the search after its trial gave `value`, and `slope` along the projected path.

    Where bounds bend the path, the decrease is measured by gradient · (trial - params) = `fall`
    (Bertsekas 1982, equation 31), and it is all that is asked for: at a bend the slope jumps.
    """
    if not clipped:
        return proceed(search, value, slope)
    if fall < 0 and value <= search.value + C1 * fall:
        return search._replace(trials=search.trials + 1, verdict="accepted")
    chord = fall / search.step_size if fall < 0 else search.slope
    return proceed(search._replace(slope=chord), value, slope)._replace(slope=search.slope)


def _project(x: mx.array, lower: mx.array, upper: mx.array) -> mx.array:
    return mx.minimum(mx.maximum(x, lower), upper)


def _reach(x: mx.array, g: mx.array, lower: mx.array, upper: mx.array) -> mx.array:
    """Return P(x - g) - x, the projected gradient downhill."""
    return mx.minimum(mx.maximum(-g, lower - x), upper - x)


def _walk(
    params: Tree, direction: mx.array, step_size: mx.array, lower: mx.array, upper: mx.array
) -> Tree:
    """Return P(params + step_size · direction)."""
    x = ravel(params, direction.dtype) + step_size * direction
    return unravel(_project(x, lower, upper), params)


def _look(
    value: mx.array, trial: Tree, grad: Tree, params: Tree, old_grad: Tree, direction: mx.array,
    rows: mx.array, slots: mx.array, lower: mx.array, upper: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """Return new rows, their products, and the numbers that decide about the trial."""
    dtype = rows.dtype
    g, old_g, x = ravel(grad, dtype), ravel(old_grad, dtype), ravel(trial, dtype)
    s = x - ravel(params, dtype)  # as rounded, not as intended
    new = mx.stack([s, g - old_g, g])
    rows = mx.array(rows)  # a name of its own: assignment would change the old state
    rows[slots] = new
    # Where the path has met a bound it goes on without that parameter.
    clipped = ((x <= lower) & (direction < 0)) | ((x >= upper) & (direction > 0))
    slope = mx.inner(g, mx.where(clipped, 0, direction))
    largest = mx.max(mx.abs(_reach(x, g, lower, upper)))
    numbers = [value.astype(dtype), largest, slope, mx.inner(old_g, s), mx.sum(clipped)]
    return rows, inner_products(rows, new), mx.stack([number.astype(dtype) for number in numbers])


def _split(
    x: mx.array, rows: mx.array, theta: mx.array, lower: mx.array, upper: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Return which parameters are free, the products of the rows there, what is held and its slope.

    Held are those at a bound, or near it, that the gradient presses against it (Bertsekas 1982,
    equation 32); "near" shrinks with the projected gradient.
    """
    g = rows[-1]
    reach = _reach(x, g, lower, upper)
    near = mx.minimum(mx.max(mx.abs(reach)), _NEAR * (1 + mx.abs(x)))
    held = ((x <= lower + near) & (g > 0)) | ((x >= upper - near) & (g < 0))
    free = ~held
    kept = mx.where(free, rows, 0)
    slope = mx.inner(g, mx.where(held, _reach(x, g / theta, lower, upper), 0))
    return free, kept @ kept.T, mx.stack([mx.sum(held).astype(g.dtype), slope])


def _mix(combination: mx.array, free: mx.array, rows: mx.array, theta: mx.array) -> mx.array:
    """Return the direction: the combination of rows where free, down the gradient elsewhere."""
    return mx.where(free, combination @ rows, -rows[-1] / theta)

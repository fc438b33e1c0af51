"""Limited-memory BFGS.

Notation, as in Nocedal and Wright (2006), "Numerical Optimization", section 7.2:
    s = change of the parameters in one accepted step      y = change of the gradient in it
    ρ = 1 / (sᵀy)                                          γ = sᵀy / (yᵀy)
    H = the approximate inverse Hessian                    d = -H · gradient

The m pairs (s, y) and the gradient are kept as the rows of one matrix B, on the device. Everything
that decides lives on the host: the two-loop recursion needs only the inner products B·Bᵀ, and its
result is a combination of the rows of B (the "vector-free" form of Chen, Wang and Zhou 2014,
"Large-scale L-BFGS using MapReduce"). So a step is two matrix products and one read, however many
pairs are kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import (
    Tree,
    count,
    epsilon,
    is_finite,
    largest_entry,
    move,
    numpy_dtype,
    ravel,
    read,
    working_dtype,
)
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._line_search import NO_SEARCH, LineSearch, begin, proceed

_LONG = 20_000  # parameters: from here on reading the rows three times costs more than threads do


class LBFGSState(NamedTuple):
    """The state of L-BFGS; p is the number of parameters, m the number of pairs kept."""

    params: Tree  # the parameters
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the gradient's largest absolute entry
    status: Status | None  # why no further step can be taken
    rows: mx.array  # (2m + 1, p): row i is s, row m + i is y, for i < m; the last is the gradient
    products: np.ndarray  # (2m + 1, 2m + 1) float64: rows · rowsᵀ
    order: tuple[int, ...]  # which i are in use, oldest pair first
    direction: mx.array  # (p,): where the line search looks
    search: LineSearch  # where it stands


@dataclasses.dataclass(frozen=True)
class LBFGS(Optimizer[LBFGSState]):
    """Limited-memory BFGS with a line search: the method to try first on all the data.

    It learns curvature from the last `memory` steps (Liu and Nocedal 1989, "On the limited memory
    BFGS method for large scale optimization"; Nocedal and Wright 2006, algorithms 7.4 and 7.5), and
    looks along each direction for a step that satisfies the strong Wolfe conditions, or the
    approximate ones of Hager and Zhang (2005) where rounding hides the decrease. One step of
    `minimize` is one evaluation of the loss and its gradient.

    Args:
        memory: pairs of changes kept; 5 to 20 is usual. Costs 2 · memory vectors.

    >>> import mlx.core as mx, mlxopt as mo
    >>> rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    >>> result = mo.minimize(rosenbrock, mx.array([-1.2, 1.0]), mo.LBFGS())
    >>> result.converged, result.params
    (True, array([1, 1], dtype=float32))
    """

    memory: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.memory, bool) or not isinstance(self.memory, int):
            raise TypeError(f"LBFGS(memory={self.memory!r}): expected a whole number.")
        if self.memory < 1:
            raise ValueError(f"LBFGS(memory={self.memory}): expected 1 or more.")

    def init(self, objective: Objective, params: Tree) -> LBFGSState:
        """Return the state at `params`, ready to look down the gradient; one evaluation."""
        value, grad = objective.value_and_grad(params)
        dtype, size = working_dtype(params), 2 * self.memory + 1
        g = ravel(grad, dtype)
        rows = mx.concatenate([mx.zeros((size - 1, count(params)), dtype=dtype), g[None]])
        number, largest, squared = read(value, largest_entry(grad), mx.inner(g, g))
        products = np.zeros((size, size))
        products[-1, -1] = squared
        state = LBFGSState(params, number, grad, largest, None, rows, products, (), g, NO_SEARCH)
        return self._aim(state) if squared > 0 else state._replace(status=Status.NO_PROGRESS)

    def step(self, objective: Objective, state: LBFGSState) -> LBFGSState:
        """Evaluate one trial along the direction; keep it if the line search accepts it."""
        shift = objective.compiled(move, lambda: move)
        step_size = mx.array(state.search.step_size, dtype=state.rows.dtype)
        trial = shift(state.params, state.direction, step_size)
        value, grad = objective.value_and_grad(trial)
        slot = free_slot(state.order, self.memory)
        look = objective.compiled(_look, lambda: _look)
        rows, columns, slope, largest = look(
            trial, grad, state.params, state.grad, state.rows, state.direction,
            mx.array([slot, self.memory + slot, 2 * self.memory]),
        )  # fmt: skip
        mx.eval(value, rows, columns, slope, largest)  # the only wait of the step
        trial_value, slope, largest = read(value, slope, largest)

        search = proceed(state.search, trial_value, slope)
        if search.verdict == "":
            return state._replace(search=search)
        if search.verdict == "unbounded" and not is_finite(trial_value, slope):
            return state._replace(status=Status.UNBOUNDED)
        if search.verdict == "failed":
            return self._restart(state)
        state = state._replace(params=trial, value=trial_value, grad=grad, optimality=largest)
        if search.verdict == "unbounded":
            return state._replace(status=Status.UNBOUNDED)
        eps = 2.0**-52 if rows.dtype == mx.float64 else 2.0**-23
        products, order = remember(state.products, state.order, slot, np.array(columns), eps)
        return self._aim(state._replace(rows=rows, products=products, order=order))

    def _aim(self, state: LBFGSState) -> LBFGSState:
        """Choose the direction at `params` and begin a line search along it."""
        combination = two_loop(state.products, state.order)
        slope = float(combination @ state.products[-1])
        if not -math.inf < slope < 0:
            return self._restart(state)  # rounding has spoilt the memory
        dtype = state.rows.dtype
        direction = mx.array(combination.astype(numpy_dtype(dtype)), dtype=dtype) @ state.rows
        # The first step knows no scale: move by at most 1 (as L-BFGS-B does). Later, H sets it.
        step_size = 1.0 if state.order else min(1.0, 1.0 / math.sqrt(state.products[-1, -1]))
        search = begin(state.value, slope, step_size, epsilon(state.params))
        return state._replace(direction=direction, search=search)

    def _restart(self, state: LBFGSState) -> LBFGSState:
        """Forget all pairs and look down the gradient; if that was just done, give up."""
        if not state.order:
            return state._replace(status=Status.NO_PROGRESS)
        return self._aim(state._replace(order=()))


def free_slot(order: Sequence[int], memory: int) -> int:
    """Return where the next pair goes: to a free place, or over the oldest pair."""
    if len(order) == memory:
        return order[0]
    return next(i for i in range(memory) if i not in order)


def remember(
    products: np.ndarray, order: tuple[int, ...], slot: int, columns: np.ndarray, eps: float
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the products and the order with the pair at `slot` and the gradient taken in.

    Args:
        products: (2m + 1, 2m + 1), inner products of the rows (s..., y..., gradient).
        order: the pairs in use, oldest first.
        slot: where the new pair stands.
        columns: (2m + 1, 3), the products of all rows with the new s, y and gradient.
        eps: the least cosine of the angle between s and y.
    """
    m = (len(products) - 1) // 2
    s, y, _ = new = [slot, m + slot, 2 * m]
    products = products.copy()
    for i, column in zip(new, columns.T, strict=True):
        products[:, i] = products[i] = column
    order = tuple(i for i in order if i != slot)
    # Without positive curvature along s the pair would cost H its positive definiteness.
    size = math.sqrt(products[s, s] * products[y, y])
    if products[s, y] > eps * size:
        order = (*order, slot)
    return products, order


def two_loop(products: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return the coefficients of -H · gradient in the rows (s..., y..., gradient).

    Algorithm 7.4 of Nocedal and Wright (2006), with vectors replaced by their coefficients.

    Args:
        products: (2m + 1, 2m + 1), inner products of the rows.
        order: the pairs to use, oldest first: i stands for rows i (s) and m + i (y).
    """
    m = (len(products) - 1) // 2
    curvatures = products.diagonal(m).tolist()  # sᵀy = 1 / ρ
    combination = np.zeros(2 * m + 1)
    combination[-1] = 1.0  # q = gradient
    dot = combination.dot  # half the time of @ on vectors this short
    weights = {}
    for i in reversed(order):
        weights[i] = float(dot(products[i])) / curvatures[i]  # α = ρ sᵀq
        combination[m + i] -= weights[i]  # q ← q - α y
    if order:
        i = order[-1]
        combination *= curvatures[i] / products[m + i, m + i]  # r = γ q
    for i in order:
        correction = float(dot(products[m + i])) / curvatures[i]  # β = ρ yᵀr
        combination[i] += weights[i] - correction  # r ← r + (α - β) s
    return -combination


def _look(
    trial: Tree, grad: Tree, params: Tree, old_grad: Tree, rows: mx.array, direction: mx.array,
    slots: mx.array,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:  # fmt: skip
    """Return all that a step may need of its trial: new rows, their products, slope, optimality."""
    dtype = rows.dtype
    g = ravel(grad, dtype)
    s = ravel(trial, dtype) - ravel(params, dtype)  # as rounded, not as intended
    y = g - ravel(old_grad, dtype)
    new = mx.stack([s, y, g])
    rows = mx.array(rows)  # a name of its own: assignment would change the old state
    rows[slots] = new
    return rows, inner_products(rows, new), mx.inner(g, direction), largest_entry(grad)


def inner_products(rows: mx.array, new: mx.array) -> mx.array:
    """Return rows · newᵀ, (2m + 1, 3).

    MKL shares a product of matrices among threads however small it is, and on two cores those then
    spin in the way of MLX's own; a product with a vector stays on one.
    """
    if rows.shape[1] > _LONG:
        return rows @ new.T
    return mx.stack([rows @ row for row in new], axis=1)

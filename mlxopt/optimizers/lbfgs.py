"""Limited-memory BFGS.

Notation, as in Nocedal and Wright (2006), "Numerical Optimization", section 7.2:
    s = change of the parameters in one accepted step      y = change of the gradient in it
    ρ = 1 / (sᵀy)                                          γ = sᵀy / (yᵀy)
    H = the approximate inverse Hessian                    d = -H · gradient
    D = the units of the parameters (see `_descent.py`), in which s, y and the gradient are kept

The m pairs (s, y) and the gradient are the rows of one matrix B on the device. The two-loop
recursion needs only their inner products B·Bᵀ, kept on the host, and gives a combination of the
rows (Chen, Wang and Zhou 2014, "Large-scale L-BFGS using MapReduce"): two matrix products and one
read a step, for any number of pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._checks import check_fields
from mlxopt._objective import Objective
from mlxopt._tree import Tree, Vector, largest_entry, move, numpy_dtype, ravel, read
from mlxopt.optimizers._descent import Descent, DescentState, Direction, Trial, first_trial

# From this number of parameters on, three reads of the rows cost more than MKL's threads do.
_LONG = 20_000


class Pairs(NamedTuple):
    """The memory of L-BFGS; p is the number of parameters, m the number of pairs kept."""

    rows: mx.array  # (2m + 1, p): row i is s, row m + i is y, for i < m; the last is the gradient
    products: np.ndarray  # (2m + 1, 2m + 1) float64: rows · rowsᵀ
    order: tuple[int, ...]  # the i in use, oldest pair first


@dataclasses.dataclass(frozen=True)
class LBFGS(Descent):
    """Limited-memory BFGS with a line search: the first method to try on a full batch.

    The inverse Hessian is approximated from the last `memory` steps (Liu and Nocedal 1989, "On the
    limited memory BFGS method for large scale optimization"; Nocedal and Wright 2006, algorithms
    7.4 and 7.5). The line search accepts steps by the strong Wolfe conditions, or by the
    approximate ones of Hager and Zhang (2005) where rounding hides the decrease. One step of
    `minimize` is one evaluation of the loss and its gradient.

    The first trial comes from a Hessian-vector product. Where that shows parameters with units that
    differ by more than a factor of 100, some more products give their units, in which the method
    then works; so do all methods with a line search, and `TrustRegion`.

    Args:
        memory: pairs of changes kept; 5 to 20 is usual. Costs 2 · memory vectors.

    >>> import mlx.core as mx, mlxopt as mo
    >>> rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    >>> result = mo.minimize(rosenbrock, mx.array([-1.2, 1.0]), mo.LBFGS())
    >>> result.converged, [round(entry, 4) for entry in result.params.tolist()]
    (True, [1.0, 1.0])
    """

    memory: int = 10

    def __post_init__(self) -> None:
        check_fields(self, "memory", whole=True)

    def init_memory(self, params: Tree, grad: Vector, squared: float) -> Pairs:
        return no_pairs(self.memory, grad, squared)

    def direction(self, objective: Objective, state: DescentState) -> Direction:
        rows, products, order = state.memory
        combination = two_loop(products, order)
        slope = float(combination @ products[-1])
        vector = mx.array(combination.astype(numpy_dtype(rows.dtype)), dtype=rows.dtype) @ rows
        vector = vector if state.scale is None else state.scale * vector
        # Without pairs there is no scale; with them H sets it.
        return Direction(vector, slope, 1.0 if order else first_trial(objective, state))

    def evaluate(self, objective: Objective, state: DescentState) -> Trial:
        direction, (rows, _, order) = state.direction, state.memory
        shift = objective.compiled(move, lambda: move)
        step_size = mx.array(state.search.step_size, dtype=rows.dtype)
        params = shift(state.params, direction, step_size)
        value, grad = objective.value_and_grad(params)
        slot = free_slot(order, self.memory)
        slots = mx.array([slot, self.memory + slot, 2 * self.memory])
        points = params, grad, state.params, state.grad
        with_pair = objective.compiled(_with_pair, lambda: _with_pair)
        rows, columns, slope, largest = with_pair(points, rows, direction, slots, state.scale)
        mx.eval(value, rows, columns, slope, largest)  # the only wait of the step
        number, slope, largest = read(value, slope, largest)
        return Trial(params, number, grad, largest, slope, model=(slot, rows, columns))

    def update(self, state: DescentState, trial: Trial) -> Pairs:
        return with_newest(state.memory, *trial.model)

    def restart(self, state: DescentState) -> Pairs | None:
        return state.memory._replace(order=()) if state.memory.order else None


def no_pairs(memory: int, grad: Vector, squared: float) -> Pairs:
    """Return the memory of a start: room for `memory` pairs, `squared` = gᵀg."""
    size = 2 * memory + 1
    rows = mx.concatenate([mx.zeros((size - 1, grad.size), dtype=grad.dtype), grad[None]])
    products = np.zeros((size, size))
    products[-1, -1] = squared
    return Pairs(rows, products, ())


def free_slot(order: Sequence[int], memory: int) -> int:
    """Return the place of the next pair: a free one, or that of the oldest pair."""
    if len(order) == memory:
        return order[0]
    return next(i for i in range(memory) if i not in order)


def with_newest(pairs: Any, slot: int, rows: mx.array, columns: Any) -> Any:
    """Return `pairs` with the pair at `slot` and the gradient of an accepted trial, in `rows`.

    `columns`, shape (2m + 1, 3), are the products of all rows with the new s, y and gradient.
    """
    m = (len(pairs.products) - 1) // 2
    s, y, _ = new = [slot, m + slot, 2 * m]
    products = pairs.products.copy()
    for i, column in zip(new, np.array(columns, dtype=np.float64).T, strict=True):
        products[:, i] = products[i] = column
    order = tuple(i for i in pairs.order if i != slot)
    # Without positive curvature along s the pair would cost H its positive definiteness.
    size = math.sqrt(products[s, s] * products[y, y])
    eps = 2.0**-52 if rows.dtype == mx.float64 else 2.0**-23
    if products[s, y] > eps * size:
        order = (*order, slot)
    return pairs._replace(rows=rows, products=products, order=order)


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


def _with_pair(
    points: Tree, rows: mx.array, direction: Vector, slots: mx.array, scale: Vector | None
) -> Any:
    """Return the rows with the trial's pair, their products with it, slope and optimality."""
    rows, new, _, g = with_rows(points, rows, slots, scale)
    return rows, inner_products(rows, new), mx.inner(g, direction), largest_entry(points[1])


def with_rows(
    points: Tree, rows: mx.array, slots: mx.array, scale: Vector | None
) -> tuple[mx.array, ...]:
    """Return the rows with D⁻¹s, D y and D g of a trial at `slots`, these three, s and g.

    `points` holds the trial, its gradient, the last params and their gradient.
    """
    (trial, grad, params, old_grad), dtype = points, rows.dtype
    g = ravel(grad, dtype)
    s = ravel(trial, dtype) - ravel(params, dtype)  # as rounded, not as intended
    y = g - ravel(old_grad, dtype)
    new = mx.stack([s, y, g] if scale is None else [s / scale, scale * y, scale * g])
    rows = mx.array(rows)  # a name of its own: assignment would change the old state
    rows[slots] = new
    return rows, new, s, g


def inner_products(rows: mx.array, new: mx.array) -> mx.array:
    """Return rows · newᵀ, (2m + 1, 3).

    MKL runs even a small product of matrices in several threads, which compete with MLX's own; a
    product with a vector takes a single thread.
    """
    if rows.shape[1] > _LONG:
        return rows @ new.T
    return mx.stack([rows @ row for row in new], axis=1)

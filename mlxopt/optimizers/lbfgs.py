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


class LBFGSState(NamedTuple):
    """The state of L-BFGS; p is the number of parameters, m the number of pairs kept."""

    params: Tree  # the parameters
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the gradient's largest absolute entry
    status: Status | None  # why no further step can be taken
    rows: mx.array  # (2m + 1, p): s, oldest first; then y, likewise; then the gradient
    products: np.ndarray  # (2m + 1, 2m + 1) float64: rows · rowsᵀ
    pairs: int  # how many of the m pairs are filled; they are the last ones
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
        number, largest, squared = read(value, largest_entry(grad), mx.sum(g * g))
        products = np.zeros((size, size))
        products[-1, -1] = squared
        state = LBFGSState(params, number, grad, largest, None, rows, products, 0, g, NO_SEARCH)
        return self._aim(state)

    def step(self, objective: Objective, state: LBFGSState) -> LBFGSState:
        """Evaluate one trial along the direction; keep it if the line search accepts it."""
        dtype = state.rows.dtype
        shift = objective.compiled("move", lambda: move)
        trial = shift(state.params, state.direction, mx.array(state.search.step_size, dtype=dtype))
        value, grad = objective.value_and_grad(trial)
        look = objective.compiled("look", lambda: _look)
        rows, numbers, column = look(
            value, trial, grad, state.params, state.grad, state.rows, state.direction
        )
        mx.eval(numbers, column)  # the only read of the step
        trial_value, slope, largest = numbers.tolist()

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
        return self._aim(self._remember(state, rows, np.array(column, dtype=np.float64)))

    def _remember(self, state: LBFGSState, rows: mx.array, column: np.ndarray) -> LBFGSState:
        """Take the new pair and gradient into the rows and their products.

        `column` (2m + 3, 3) holds the products of the old s and y rows and the new s, y, g with the
        new s, y and g.
        """
        m = self.memory
        s, y, g = 2 * m, 2 * m + 1, 2 * m + 2
        wide = np.zeros((2 * m + 3, 2 * m + 3))
        wide[: 2 * m, : 2 * m] = state.products[:-1, :-1]
        wide[:, [s, y, g]] = column
        wide[[s, y, g], :] = column.T
        sy = wide[s, y]
        # Without positive curvature along s the update would lose its positive definiteness.
        good = sy > np.finfo(np.float32).eps * math.sqrt(wide[s, s] * wide[y, y])
        if good:
            kept = [*range(1, m), s, *range(m + 1, 2 * m), y, g]
            pairs = min(state.pairs + 1, m)
        else:
            kept = [*range(2 * m), g]
            pairs = state.pairs
            rows = mx.concatenate([state.rows[:-1], rows[-1:]])
        return state._replace(rows=rows, products=wide[np.ix_(kept, kept)], pairs=pairs)

    def _aim(self, state: LBFGSState) -> LBFGSState:
        """Choose the direction at `params` and begin a line search along it."""
        combination = two_loop(state.products, state.pairs)
        slope = float(combination @ state.products[-1])
        squared = state.products[-1, -1]
        if not slope < 0 or not is_finite(*combination):
            if state.pairs:  # rounding has spoilt the memory: drop it and take the gradient
                return self._restart(state)
            return state._replace(status=Status.NO_PROGRESS)
        dtype = state.rows.dtype
        direction = mx.array(combination.astype(numpy_dtype(dtype)), dtype=dtype) @ state.rows
        # The first step knows no scale: move by at most 1 (as L-BFGS-B does). Later, H sets it.
        step_size = 1.0 if state.pairs else min(1.0, 1.0 / math.sqrt(squared))
        search = begin(state.value, slope, step_size, epsilon(state.params))
        return state._replace(direction=direction, search=search)

    def _restart(self, state: LBFGSState) -> LBFGSState:
        """Forget all pairs and look down the gradient; if that was just done, give up."""
        if state.pairs == 0:
            return state._replace(status=Status.NO_PROGRESS)
        return self._aim(state._replace(pairs=0))


def two_loop(products: np.ndarray, pairs: int) -> np.ndarray:
    """Return the coefficients of -H · gradient in the rows (s..., y..., gradient).

    Algorithm 7.4 of Nocedal and Wright (2006), with vectors replaced by their coefficients.

    Args:
        products: (2m + 1, 2m + 1), inner products of the rows.
        pairs: how many pairs, the last ones, are filled.
    """
    m = (len(products) - 1) // 2
    combination = np.zeros(2 * m + 1)
    combination[-1] = 1.0  # q = gradient
    newest_first = range(m - 1, m - 1 - pairs, -1)
    weights = {}
    for i in newest_first:
        rho = 1.0 / products[i, m + i]
        weights[i] = rho * (combination @ products[i])  # α = ρ sᵀq
        combination[m + i] -= weights[i]  # q ← q - α y
    if pairs:
        newest = m - 1
        combination *= products[newest, m + newest] / products[m + newest, m + newest]  # r = γ q
    for i in reversed(newest_first):
        rho = 1.0 / products[i, m + i]
        correction = rho * (combination @ products[m + i])  # β = ρ yᵀr
        combination[i] += weights[i] - correction  # r ← r + (α - β) s
    return -combination


def _look(
    value: mx.array, trial: Tree, grad: Tree, params: Tree, old_grad: Tree, rows: mx.array,
    direction: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """Return all that a step may need of its trial: the new rows, three numbers, new products."""
    dtype = rows.dtype
    g = ravel(grad, dtype)
    s = ravel(trial, dtype) - ravel(params, dtype)  # as rounded, not as intended
    y = g - ravel(old_grad, dtype)
    numbers = mx.stack([value.astype(dtype), mx.sum(g * direction), largest_entry(grad)])
    new = mx.stack([s, y, g])
    column = mx.concatenate([rows[:-1], new]) @ new.T
    m = (rows.shape[0] - 1) // 2
    rows = mx.concatenate([rows[1:m], s[None], rows[m + 1 : 2 * m], y[None], g[None]])
    return rows, numbers, column

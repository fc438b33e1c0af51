"""The residuals of many problems, their Jacobians, and their linear models.

The linear model of a residual r (m,) with Jacobian J (m, p) is kept as the triangular factor of
[J, r]: R (p, p), Qᵀr (p,), of which all else follows. See `mlxopt.optimizers._residual`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._residual_objective import ResidualObjective
from mlxopt._tree import Tree, count, epsilon, to_device, working_dtype
from mlxopt.many._agreement import general_vector
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Points
from mlxopt.optimizers._residual import Measures, measure


class Model(NamedTuple):
    """The linear models at A points."""

    r: np.ndarray  # (A, p, p): R
    qtr: np.ndarray  # (A, p): Qᵀr
    measures: Measures  # of the residuals


@np.errstate(all="ignore")  # a far trial may overflow, and is then rejected
def linearize(objective: BatchedObjective, x: np.ndarray) -> tuple[Points, Model]:
    """Return points x, shape (A, p), and the linear models there; one evaluation."""
    like, single = objective.problems.like, objective.single
    assert isinstance(single, ResidualObjective)
    m, p = single.rows(like), count(like)
    by_rows = m <= 2 * p  # as in `ResidualObjective.jacobian`
    function, size = (single.pullback, m) if by_rows else (single.pushforward, p)

    def at(params: Tree, data: tuple[Any, ...]) -> mx.array:
        # In this order: with the Jacobian first, MLX 0.32 cannot batch a compiled part of some.
        residual = single.vector(params, *data)
        units = mx.eye(size, dtype=working_dtype(params))
        matrix = mx.vmap(lambda unit: function(unit, params, data))(units)
        return mx.concatenate([residual[:, None], matrix if by_rows else matrix.T], axis=1)

    def product(params: Tree, data: tuple[Any, ...]) -> mx.array:
        vector = to_device(general_vector(1 + p), working_dtype(params))
        residual = single.vector(params, *data)
        return vector[0] * residual + single.pushforward(vector[1:], params, data)

    both = objective.evaluate("jacobian", at, x, product)
    finite: Any = np.isfinite(both).all(axis=(1, 2))
    both = np.where(finite[:, None, None], both, 0.0)
    residual, jacobian = both[:, :, 0].copy(), both[:, :, 1:].copy()
    value = 0.5 * np.vecdot(residual, residual)
    measures = measure(x, value, residual, jacobian, epsilon(like))
    # Qᵀr without Q: the last column of the factor of [J, r].
    factor: Any = np.linalg.qr(np.concatenate([jacobian, residual[:, :, None]], axis=2), mode="r")
    known = np.where(finite, 1.0, np.nan)
    gradient, optimality = measures.gradient * known[:, None], measures.optimality * known
    points = Points(x, value * known, gradient, optimality)
    return points, Model(factor[:, :p, :p], factor[:, :p, p], measures)

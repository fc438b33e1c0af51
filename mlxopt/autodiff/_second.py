"""Second derivatives: the Hessian times a vector, and the whole of it.

Reverse over reverse throughout. Forward over reverse lacks rules for indexing, scatter, prod,
convolution and more; it passes by the derivative that a custom function brings (MLX differentiates
its body instead, without a word); and it was nowhere more than a tenth faster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxopt._tree import Tree, check_params, count, leaves, ravel, unravel, working_dtype
from mlxopt.autodiff._guards import (
    Proof,
    check_is_callable,
    check_vector,
    checked_loss,
    signature,
    with_fixed_draw,
)
from mlxopt.autodiff._rows import can_batch, over_rows, sample_rows, split, unit_rows


def hvp(loss: Callable[..., mx.array], compile: bool = True) -> Callable[..., Tree]:
    """Return a function that multiplies the Hessian of `loss` by a vector, without forming it.

    Args:
        loss: a function `loss(params, *data, **kwargs)` that returns a scalar array.
        compile: trace the loss first to prove that it stays on the tape, as `value_and_grad` does.

    Returns:
        a function `(params, vector, *data, **kwargs)`. `vector` and the product are trees like
        `params`; the product costs about two gradients.

    MLX's own second derivative of `mx.abs` of complex numbers is wrong: write the square root of
    the sum of squares. `check_grads` tells such things.

    Raises:
        TapeError, TypeError, ValueError: as `value_and_grad`; or `vector` is not like `params`.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: w[0] ** 2 * w[1]
    >>> mo.hvp(loss)(mx.array([3.0, 5.0]), mx.array([1.0, 0.0]))
    array([10, 6], dtype=float32)
    """
    check_is_callable(loss)
    checked = checked_loss(loss)
    product = hessian_product(checked)
    prove = Proof(checked, compile)

    @functools.wraps(loss)
    def wrapped(params: Tree, vector: Tree, *data: Any, **kwargs: Any) -> Tree:
        check_params(params)
        vector = check_vector(params, vector)
        prove((0,), (params, *data), kwargs)
        return product(params, vector, *data, **kwargs)

    return wrapped


def hessian(
    loss: Callable[..., mx.array], flat: bool = False, compile: bool = True
) -> Callable[..., Any]:
    """Return a function that computes the Hessian of `loss`, for about as much as 2p gradients.

    Args:
        loss: a function `loss(params, *data, **kwargs)` that returns a scalar array. Its random
            operations see one draw in all rows, and the generator is left as it was.
        flat: return one matrix, shape (p, p), rows and columns in the order of `tree_flatten`,
            float64 if any parameter is and else float32.
        compile: trace the loss first to prove that it stays on the tape, as `value_and_grad` does.

    Returns:
        a function `(params, *data, **kwargs)`. What it returns is a tree like `params` whose leaves
        are trees like `params`: the leaf for `i` in the leaf for `j` has the shape of `i` followed
        by that of `j`. For a single array of shape (n,), the matrix (n, n).

    Raises:
        TapeError, TypeError, ValueError: as `value_and_grad`.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda params: params["a"] * mx.sum(params["b"] ** 2)
    >>> params = {"a": mx.array(2.0), "b": mx.array([3.0, 5.0])}
    >>> mo.hessian(loss)(params)["a"]["b"]
    array([6, 10], dtype=float32)
    >>> mo.hessian(loss, flat=True)(params)
    array([[0, 6, 10],
           [6, 4, 0],
           [10, 0, 4]], dtype=float32)
    """
    check_is_callable(loss)
    checked = checked_loss(loss)
    prove = Proof(checked, compile)
    batches: dict[Any, bool] = {}

    @functools.wraps(loss)
    def wrapped(params: Tree, *data: Any, **kwargs: Any) -> Any:
        check_params(params)
        prove((0,), (params, *data), kwargs)
        size, dtype = count(params), working_dtype(params)
        row, fixed = hessian_row(with_fixed_draw(checked)), (params, data, kwargs)
        if (kind := signature(fixed)) not in batches:
            batches[kind] = can_batch(row, sample_rows(size, dtype), *fixed)
        rows = over_rows(row, batches[kind])
        matrix = unit_rows(lambda units: rows(units, *fixed), size, dtype)
        return matrix if flat else split(matrix, params, params)

    return wrapped


def hessian_product(loss: Callable[..., mx.array]) -> Callable[..., Tree]:
    """Return `product(params, vector, *data)`: `hvp` without the checks."""

    def product(params: Tree, vector: Tree, *data: Any, **kwargs: Any) -> Tree:
        def slope(at: Tree) -> mx.array:
            gradient = mx.grad(loss)(at, *data, **kwargs)
            terms = [mx.sum(g * v) for g, v in zip(leaves(gradient), leaves(vector), strict=True)]
            return sum(terms[1:], terms[0])

        return mx.grad(slope)(params)

    return product


def hessian_row(loss: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Return `row(unit, params, data, kwargs)`: the Hessian times one vector, both shape (p,)."""
    product = hessian_product(loss)

    def row(
        unit: mx.array, params: Tree, data: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> mx.array:
        vector = unravel(unit, params)
        return ravel(product(params, vector, *data, **(kwargs or {})), unit.dtype)

    return row

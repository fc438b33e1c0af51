"""Second derivatives: the Hessian times a vector, and the whole of it.

Reverse over reverse throughout. Forward over reverse lacks rules for indexing, scatter, prod,
convolution and more; it ignores the vjp of a custom function (MLX differentiates its body instead,
without an error); and it was nowhere more than a tenth faster.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._operation import Function
from mlxopt._tree import (
    Tree,
    count,
    describe_structure,
    leaves_with_paths,
    structure,
    working_dtype,
)
from mlxopt.autodiff._arguments import Cast, to_data
from mlxopt.autodiff._guards import checked_loss, differentiating, with_fixed_draw
from mlxopt.autodiff._proof import Proof
from mlxopt.autodiff._rows import RowMap, hessian_product, hessian_row, split


def hvp(loss: Function, compile: bool = True) -> Function:
    """Return a function that multiplies the Hessian of `loss` by a vector, without forming it.

    Args:
        loss: a function `loss(params, *data, **kwargs)` that returns a scalar array.
        compile: trace the loss first to prove that it reads no values, as `value_and_grad` does.

    Returns:
        a function `(params, vector, *data, **kwargs)`. `vector` and the product are trees like
        `params`; the product costs about two gradients.

    MLX's own second derivative of `mx.abs` of complex numbers is wrong, as `check_grads` shows:
    write the square root of the sum of squares.

    Raises:
        TapeError, TypeError, ValueError: as `value_and_grad`; or `vector` is not like `params`.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: w[0] ** 2 * w[1]
    >>> mo.hvp(loss)(mx.array([3.0, 5.0]), mx.array([1.0, 0.0]))
    array([10, 6], dtype=float32)
    """
    checked = checked_loss(loss)
    product = hessian_product(checked)
    prove = Proof(checked, compile)

    @functools.wraps(loss)
    def wrapped(params: Tree, vector: Tree, *data: Any, **kwargs: Any) -> Tree:
        arguments, kwargs = prove(params, *data, **kwargs)
        params, data = arguments[0], arguments[1:]
        vector = to_data(vector, Cast(working_dtype(params)), "vector", strict=False)
        with differentiating(loss):
            return product(params, _check_vector(params, vector), *data, **kwargs)

    return wrapped


def hessian(loss: Function, flat: bool = False, compile: bool = True) -> Function:
    """Return a function that computes the Hessian of `loss`, at the cost of about 2p gradients.

    Args:
        loss: a function `loss(params, *data, **kwargs)` that returns a scalar array. Its random
            operations use one draw in all rows, and the generator is left as it was.
        flat: return one matrix, shape (p, p), rows and columns in the order of `tree_flatten`,
            float64 if any parameter is and else float32.
        compile: trace the loss first to prove that it reads no values, as `value_and_grad` does.

    Returns:
        a function `(params, *data, **kwargs)` that returns a tree like `params` whose leaves are
        trees like `params`: the leaf for `i` in the leaf for `j` has the shape of `i` followed by
        that of `j`. For a single array of shape (n,), the matrix (n, n).

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
    checked = checked_loss(loss)
    prove, rows = Proof(checked, compile), RowMap()

    @functools.wraps(loss)
    def wrapped(params: Tree, *data: Any, **kwargs: Any) -> Any:
        arguments, kwargs = prove(params, *data, **kwargs)
        params, data = arguments[0], arguments[1:]
        row = hessian_row(with_fixed_draw(checked))
        with differentiating(loss):
            matrix = rows.matrix(row, count(params), working_dtype(params), params, data, kwargs)
        return matrix if flat else split(matrix, params, params)

    return wrapped


def _check_vector(params: Tree, vector: Tree) -> Tree:
    """Return `vector` with its leaves in the order and dtypes of `params`, if it is like it."""
    if structure(vector) != structure(params):
        raise ValueError(
            f"vector is {describe_structure(vector)}; expected a tree like params, "
            f"{describe_structure(params)}. Build it with mlx.utils.tree_map over params."
        )
    given = dict(leaves_with_paths(vector))
    for path, leaf in leaves_with_paths(params):
        one = given[path]
        is_real = isinstance(one, mx.array) and one.dtype != mx.complex64
        if not is_real or one.shape != leaf.shape:
            error = ValueError if is_real else TypeError
            raise error(
                f"vector{path} is {describe_structure(one)}; expected an mx.array of real numbers "
                f"of shape {leaf.shape}, the shape of params{path}."
            )
    # By name: two equal dictionaries can hold their keys in different orders.
    return tree_map(lambda leaf, one: one.astype(leaf.dtype), params, vector)

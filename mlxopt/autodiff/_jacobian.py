"""First derivatives of many values at once: Jacobians, and one gradient for each example."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._operation import Function
from mlxopt._tree import Tree, count, leaves, leaves_with_paths, ravel
from mlxopt.autodiff._guards import (
    call,
    check_is_callable,
    check_output,
    checked_loss,
    differentiating,
    name_of,
    with_fixed_draw,
)
from mlxopt.autodiff._proof import Proof
from mlxopt.autodiff._rows import RowMap, split


def jacobian(function: Function, flat: bool = False, compile: bool = True) -> Function:
    """Return a function that computes all first derivatives of what `function` returns.

    For p inputs and m outputs it costs about 2 min(m, p) gradients: a row for each output by
    reverse mode, or a column for each input by the derivative of the reverse mode in the vector
    that it multiplies. Both use reverse rules alone, so they agree for every operation that has a
    gradient; MLX's own forward mode lacks many rules, and ignores the vjp of a custom function.

    Args:
        function: a function `function(params, *data, **kwargs)` that returns an array of real
            floats, or a tree of them. Its random operations use one draw throughout, and the
            generator is left as it was.
        flat: return one matrix, shape (m, p), rows and columns in the order of `tree_flatten`,
            float64 if any array is and else float32.
        compile: trace the function first to prove that it reads no values (`value_and_grad`).

    Returns:
        a function `(params, *data, **kwargs)` that returns a tree like the output whose leaves are
        trees like `params`, each with the shape of the output followed by that of the parameter:
        (m, p) for vectors.

    Raises:
        TapeError, TypeError, ValueError: as `value_and_grad`, but for the shape of the output.

    >>> import mlx.core as mx, mlxopt as mo
    >>> circle = lambda t: mx.stack([t**2, t**3])
    >>> mo.jacobian(circle)(mx.array(2.0))
    array([4, 12], dtype=float32)
    """
    checked = _checked_function(function)
    prove, rows = Proof(checked, compile), RowMap()

    @functools.wraps(function)
    def wrapped(params: Tree, *data: Any, **kwargs: Any) -> Any:
        arguments, kwargs = prove(params, *data, **kwargs)
        params, data = arguments[0], arguments[1:]
        drawn = with_fixed_draw(checked)
        outputs = drawn(params, *data, **kwargs)
        p, m = count(params), count(outputs)
        dtype = mx.result_type(*leaves(params), *leaves(outputs), mx.array(0.0))
        row = _push(drawn, m) if p < m else _pull(drawn)
        with differentiating(function):
            matrix = rows.matrix(row, min(p, m), dtype, params, data, kwargs, kind=outputs)
        matrix = matrix.T if p < m else matrix
        return matrix if flat else split(matrix, outputs, params)

    return wrapped


def _checked_function(function: Function) -> Function:
    """Return `function` with a check that it returns a tree of real floating-point arrays."""
    check_is_callable(function)
    name = name_of(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = call(function, *args, **kwargs)
        named = leaves_with_paths(result)
        if not named:
            raise TypeError(f"{name} returned {result!r}; expected an mx.array or a tree of them.")
        for path, leaf in named:
            where = f"{name} returned" + (f", at {path}," if path else "")
            check_output(where, leaf, "an mx.array, or a tree of them")
        return result

    return checked


def _pull(function: Function) -> Function:
    """Return `row(vector, params, data, kwargs)`: vector (m,) times the Jacobian, (p,)."""

    def row(vector: mx.array, params: Tree, data: Any, kwargs: Any) -> mx.array:
        def weighed(at: Tree) -> mx.array:
            return mx.inner(ravel(function(at, *data, **kwargs), vector.dtype), vector)

        return ravel(mx.grad(weighed)(params), vector.dtype)

    return row


def _push(function: Function, m: int) -> Function:
    """Return `column(vector, params, data, kwargs)`: the Jacobian times vector (p,), shape (m,)."""
    # A pullback is linear in its vector, so its derivative in that vector is the Jacobian.
    pull = _pull(function)

    def column(vector: mx.array, params: Tree, data: Any, kwargs: Any) -> mx.array:
        def slope(weights: mx.array) -> mx.array:
            return mx.inner(pull(weights, params, data, kwargs), vector)

        # At ones, since the rule of logcumsumexp takes logarithms of these weights.
        return mx.grad(slope)(mx.ones((m,), dtype=vector.dtype))

    return column


def per_example_grad(loss: Function, compile: bool = True) -> Function:
    """Return a function that computes the gradient of `loss` for each example by itself.

    The loss is written for a batch, and is given batches of a single example (all at once, by
    `mx.vmap`). Where it is a mean over examples, the mean of these gradients is that of the batch.

    Args:
        loss: a function `loss(params, *data, **kwargs)` that returns a scalar array. Its random
            operations draw the same numbers for every example, and the generator is left as it was.
        compile: trace the loss first to prove that it reads no values, as `value_and_grad` does.

    Returns:
        a function `(params, *data, **kwargs)` that returns a tree like `params`, each leaf with a
        first axis of length n. Every array in `data` with an axis holds n examples along its first;
        numbers and arrays of shape () are the same for all, and so is anything in `kwargs`.

    Raises:
        TapeError, TypeError, ValueError: as `value_and_grad`; or the arrays in `data` differ in the
            number of examples, or there are none.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w, X, y: 0.5 * mx.mean((X @ w - y) ** 2)
    >>> X, y = mx.array([[1.0, 2.0], [3.0, 4.0]]), mx.array([1.0, 0.0])
    >>> mo.per_example_grad(loss)(mx.array([1.0, 1.0]), X, y)
    array([[2, 4],
           [21, 28]], dtype=float32)
    """
    checked = checked_loss(loss)
    prove, rows = Proof(checked, compile), RowMap()

    @functools.wraps(loss)
    def wrapped(params: Tree, *data: Any, **kwargs: Any) -> Tree:
        arguments, kwargs = prove.convert(params, *data, **kwargs)
        params, data = arguments[0], arguments[1:]
        examples = _examples(name_of(loss), data)
        shared = [leaf for leaf in leaves(data) if not _has_axis(leaf)]
        drawn = with_fixed_draw(checked)

        def one(example: list[mx.array], params: Tree, shared: list[Any], kwargs: Any) -> Tree:
            its, common = iter(example), iter(shared)
            batch = tree_map(
                lambda leaf: next(its)[None] if _has_axis(leaf) else next(common), data
            )
            return mx.grad(drawn)(params, *batch, **kwargs)

        first = tree_map(lambda leaf: leaf[:1] if _has_axis(leaf) else leaf, data)
        prove.trace(params, *first, **kwargs)
        with differentiating(loss):
            return rows(one, lambda: examples, params, shared, kwargs, kind=data)(examples)

    return wrapped


def _has_axis(leaf: Any) -> bool:
    return isinstance(leaf, mx.array) and leaf.ndim > 0


def _examples(name: str, data: Sequence[Any]) -> list[mx.array]:
    """Return the arrays of `data` that hold examples, equally many."""
    examples = [leaf for leaf in leaves(data) if _has_axis(leaf)]
    lengths = sorted({leaf.shape[0] for leaf in examples})
    if len(lengths) != 1 or lengths == [0]:
        found = f"arrays of {' and '.join(map(str, lengths))} rows" if lengths else "no array"
        raise ValueError(
            f"the data of {name} hold {found}; expected arrays with equally many examples along "
            f"their first axes, one at least. Pass arguments common to all examples by keyword."
        )
    return examples

"""Losses per example, to be reduced by `mean` or otherwise.

Predictions and targets have one shape, or one of them is a number; the result has a loss for each
entry, in their promoted dtype. Shapes (n,) and (n, 1), which would give n² losses of all pairs,
raise ValueError; `squared_error(*mx.broadcast_arrays(a[:, None], b))` states that pairs are meant.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxopt._operation import lowering, replaced
from mlxopt.special import sigmoid
from mlxopt.special._elementwise import pairwise, waist
from mlxopt.special._logistic import softplus_below

__all__ = ["huber", "linear", "logistic", "mean", "squared_error", "total"]


def __dir__() -> list[str]:
    return __all__


def squared_error(predictions: mx.array, targets: mx.array) -> mx.array:
    """Return ½ (predictions - targets)² for each entry; its derivative is the residual.

    >>> import mlx.core as mx
    >>> squared_error(mx.array([1.0, 4.0]), mx.array([1.0, 2.0]))
    array([0, 2], dtype=float32)
    """
    _check_shapes("squared_error", predictions, targets)
    return 0.5 * mx.square(predictions - targets)


def huber(predictions: mx.array, targets: mx.array, delta: float = 1.0) -> mx.array:
    """Return ½r² where |r| ≤ delta, else delta · (|r| - ½ delta), r = predictions - targets.

    The gradient of an outlier is no larger than that of a residual of `delta` (Huber 1964, "Robust
    estimation of a location parameter").

    >>> import mlx.core as mx
    >>> huber(mx.array([0.5, 3.0]), mx.array([0.0, 0.0]))
    array([0.125, 2.5], dtype=float32)
    """
    _check_shapes("huber", predictions, targets)
    size = mx.abs(predictions - targets)
    inside = mx.minimum(size, delta)
    return inside * (size - 0.5 * inside)


def _logistic_slopes(logits: mx.array, labels: mx.array) -> tuple[mx.array, mx.array]:
    return sigmoid(logits) - labels, -logits


@pairwise(_logistic_slopes)
def _logistic(logits: mx.array, labels: mx.array) -> mx.array:
    logits = waist(logits)
    above = waist(mx.maximum(logits, 0))
    wrong = (1 - labels) * above + labels * (above - logits)
    return wrong + waist(softplus_below(logits))


def logistic(logits: mx.array, labels: mx.array) -> mx.array:
    """Return log(1 + exp(logits)) - labels · logits for labels in [0, 1] and finite logits.

    Minus the log-likelihood, as a sum of terms that are never negative: nothing cancels or
    overflows. The derivative in the logits is σ(logits) - labels to the last digits, even at 0,
    where that of the textbook expression is wrong.

    >>> import mlx.core as mx
    >>> logistic(mx.array([0.0, 100.0, 100.0]), mx.array([1.0, 1.0, 0.0]))
    array([0.693147, 3.78351e-44, 100], dtype=float32)
    """
    _check_shapes("logistic", logits, labels)
    return _logistic(logits, labels)


def _check_shapes(name: str, predictions: Any, targets: Any) -> None:
    """Raise ValueError unless the two have one shape, or one of them is a number."""
    shapes = [tuple(getattr(array, "shape", ())) for array in (predictions, targets)]
    if shapes[0] == shapes[1] or () in shapes:
        return
    columns = sorted(shapes, key=len)
    hint = ""
    if columns[1] == (*columns[0], 1):
        column = "predictions" if shapes[0] == columns[1] else "targets"
        hint = f" For one loss a row write {column}.squeeze(-1)."
    raise ValueError(
        f"{name} got shapes {shapes[0]} and {shapes[1]}; expected equal ones, since these would be "
        f"broadcast or fail.{hint} If all pairs are meant: {name}(*mx.broadcast_arrays(a, b))."
    )


def mean(values: mx.array) -> mx.array:
    """Return the mean of all entries, shape (), in their dtype, with a small rounding error.

    On the CPU MLX adds float32 numbers one after the other: the mean of a million is off by up to
    1e-4, of ten million by 1 %. Here rows of 64 are summed by a product with ones, and the sums
    in float64, which is also faster. On a GPU this is `mx.mean`.

    >>> import mlx.core as mx, numpy as np
    >>> tenths = mx.full((10_000_000,), 0.1)
    >>> exact = float(np.float32(0.1))
    >>> abs(mean(tenths).item() / exact - 1) < 1e-6
    True
    """
    return total(values) / values.size


def total(values: mx.array) -> mx.array:
    """Return the sum of all entries, shape (), in their dtype, computed as in `mean`.

    >>> import mlx.core as mx
    >>> total(mx.ones((3000, 1000))).item()
    3000000.0
    """
    result: Any = _total(values) if _in_blocks(values) else mx.sum(values)
    return result


def linear(X: mx.array, coef: mx.array) -> mx.array:
    """Return X @ coef, with a gradient in `coef` that is summed in float64 over blocks of rows.

    A product over a million rows in float32 was off by 1e-5, and by 1e-3 where all terms are alike;
    blocks of 128 rows are right to 1e-6 or better.

    Args:
        X: the examples, shape (n, p).
        coef: shape (p,), or (p, k) for k outputs.

    >>> import mlx.core as mx
    >>> X, y = mx.ones((100_000, 2)), mx.zeros(100_000)
    >>> mx.grad(lambda w: mean(squared_error(linear(X, w), y)))(mx.array([1.0, 2.0]))
    array([3, 3], dtype=float32)
    """
    product: Any = _product(X, coef[:, None] if coef.ndim == 1 else coef)
    return product[:, 0] if coef.ndim == 1 else product


_ROW = 64  # numbers summed in float32, one after the other by some BLAS
_BLOCK = 128  # rows of a product summed in float32; 256 were off by 4e-6 where terms are alike


def _in_blocks(values: mx.array) -> bool:
    """Whether sums over `values` are split: only the CPU has float64 for the sum of the parts."""
    narrow = values.dtype in (mx.float32, mx.float16, mx.bfloat16)
    is_long = narrow and values.size >= 8192
    return is_long and not lowering.get() and mx.default_device() == mx.cpu


@mx.custom_function
def _total(values: mx.array) -> mx.array:
    flat = values.reshape(-1).astype(mx.float32)
    whole = flat.size // _ROW * _ROW
    rows = flat[:whole].reshape(-1, _ROW) @ mx.ones(_ROW)
    result = mx.sum(rows.astype(mx.float64)) + mx.sum(flat[whole:])
    return result.astype(values.dtype)


@_total.vjp
def _total_vjp(values: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return mx.broadcast_to(cotangent, values.shape)


@mx.custom_function
def _linear(X: mx.array, coef: mx.array) -> mx.array:
    return X @ coef


@_linear.vjp
def _linear_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, mx.array]:
    X, coef = primals
    return cotangent @ coef.T, transposed_product(X, cotangent)


_product = replaced(_linear, mx.matmul)


def transposed_product(X: mx.array, Y: mx.array) -> mx.array:
    """Return Xᵀ Y, shape (p, k), the products of blocks of rows summed in float64."""
    if not _in_blocks(X):
        return X.T @ Y
    whole = X.shape[0] // _BLOCK * _BLOCK
    blocks = X[:whole].reshape(-1, _BLOCK, X.shape[1])
    weights = mx.swapaxes(Y[:whole].reshape(-1, _BLOCK, Y.shape[1]), 1, 2)
    parts = (weights @ blocks).astype(mx.float64)  # (blocks, k, p)
    return (mx.sum(parts, axis=0) + Y[whole:].T @ X[whole:]).T.astype(Y.dtype)

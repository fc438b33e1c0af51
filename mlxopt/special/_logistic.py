"""sigmoid, softplus and the log-sum-exp family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import mlx.core as mx

from mlxopt._operation import operation, replaced
from mlxopt.special._elementwise import (
    Pair,
    Unary,
    elementwise,
    fused,
    in_working_precision,
    on_gpu,
    pairwise,
    polynomial,
    waist,
)
from mlxopt.special._exp import exp_values

Axis: TypeAlias = int | Sequence[int] | None

# (artanh(s) / s - 1) / s² in s², on |s| ≤ 1/3, at the Chebyshev nodes: relative error 1e-8.
LOG1P = (0.333333337, 0.199998532, 0.14296179, 0.108532879, 0.116121646)


def _sigmoid_slope(x: mx.array, y: mx.array) -> mx.array:
    return y * sigmoid(-x)


@elementwise(_sigmoid_slope)
def sigmoid(x: mx.array) -> mx.array:
    """Return 1 / (1 + exp(-x)), to all its digits in both tails.

    Its derivative is sigmoid(x) · sigmoid(-x), accurate there too; y (1 - y) would be 0 from x = 17
    on in float32.

    >>> import mlx.core as mx
    >>> sigmoid(mx.array([-100.0, 0.0, 2.0]))
    array([3.78351e-44, 0.5, 0.880797], dtype=float32)
    """
    decay = exp_values(-mx.abs(x))
    return mx.where(x < 0, decay, mx.ones_like(x)) / (1 + decay)


@elementwise(lambda x, y: sigmoid(x))
def softplus(x: mx.array) -> mx.array:
    """Return log(1 + exp(x)) without overflow; the derivative is sigmoid(x), ½ at 0.

    >>> import mlx.core as mx
    >>> softplus(mx.array([-20.0, 0.0, 100.0]))
    array([2.06115e-09, 0.693147, 100], dtype=float32)
    >>> mx.grad(softplus)(mx.array(0.0))
    array(0.5, dtype=float32)
    """
    return _softplus_values(x)


@elementwise(lambda x, y: sigmoid(-x))
def log_sigmoid(x: mx.array) -> mx.array:
    """Return log(1 / (1 + exp(-x))) = -softplus(-x), to all its digits in both tails.

    >>> import mlx.core as mx
    >>> log_sigmoid(mx.array([-100.0, 0.0, 20.0]))
    array([-100, -0.693147, -2.06115e-09], dtype=float32)
    """
    return -_softplus_values(-x)


def _softplus_values(x: mx.array) -> mx.array:
    # Alone, between waists, a maximum is quick; in a kernel it branches for each number.
    x = waist(x)
    return waist(mx.maximum(x, 0)) + softplus_below(x)


def softplus_below(x: mx.array) -> mx.array:
    """Return softplus(-|x|), without a derivative."""
    e = exp_values(-waist(mx.abs(x)))
    if x.dtype == mx.float64 or on_gpu():
        return mx.log1p(e)
    # mx.log1p is scalar and slow: log(1 + e) = 2 artanh(s) where s = e / (2 + e) ≤ 1/3.
    twice = e / (1 + 0.5 * e)
    u = 0.25 * twice * twice
    return twice + twice * (u * polynomial(LOG1P, u))


def _gap(a: mx.array, b: mx.array) -> mx.array:
    """Return a - b, and 0 for two infinities of one sign."""
    gap = a - b
    return mx.where(gap == gap, gap, mx.zeros_like(gap))


def _logaddexp_slopes(a: mx.array, b: mx.array) -> Pair:
    gap = _gap(a, b)
    return sigmoid(gap), sigmoid(-gap)


@pairwise(_logaddexp_slopes)
def logaddexp(a: mx.array, b: mx.array) -> mx.array:
    """Return log(exp(a) + exp(b)), the larger argument plus log1p(exp(-|a - b|)).

    Accurate to a few units in the last place of max(|a|, |b|). The derivatives are sigmoid(a - b)
    and sigmoid(b - a), ½ for equal infinities.

    >>> import mlx.core as mx
    >>> logaddexp(mx.array([0.0, 1000.0]), mx.array([-20.0, 1000.0]))
    array([2.06115e-09, 1000.69], dtype=float32)
    """
    return waist(mx.maximum(a, b)) + softplus_below(_gap(a, b))


def logcumsumexp(
    x: mx.array, axis: int | None = None, *, reverse: bool = False, inclusive: bool = True
) -> mx.array:
    """Return log Σ exp(x) over the entries up to each, along `axis` (None: of x flattened).

    Pairs, then fours, eights and so on are added (Hillis and Steele 1986).

    Args:
        x: an array.
        axis: the axis to sum along.
        reverse: sum from the last entry to the first.
        inclusive: whether each entry is in its own sum; if not, the first sum is log 0 = -inf.

    >>> import mlx.core as mx
    >>> logcumsumexp(mx.array([0.0, 0.0, 1000.0]))
    array([0, 0.693147, 1000], dtype=float32)
    """
    y = x.reshape(-1) if axis is None else mx.moveaxis(x, axis, -1)
    y = in_working_precision(lambda y: _running(y, reverse, inclusive), y)
    return y if axis is None else mx.moveaxis(y, -1, axis)


def _running(y: mx.array, reverse: bool, inclusive: bool) -> mx.array:
    """Return `logcumsumexp` along the last axis."""

    def earlier(y: mx.array, by: int) -> mx.array:
        empty = mx.full((*y.shape[:-1], by), -mx.inf, y.dtype)
        return mx.concatenate([empty, y[..., : y.shape[-1] - by]], axis=-1)

    y = y[..., ::-1] if reverse else y
    by = 1
    while by < y.shape[-1]:
        y = logaddexp(y, earlier(y, by))
        by *= 2
    y = y if inclusive or not y.size else earlier(y, 1)
    return y[..., ::-1] if reverse else y


def logsumexp(x: mx.array, axis: Axis = None, keepdims: bool = False) -> mx.array:
    """Return log Σ exp(x) over `axis` (None: over all), max x + log1p(Σ of the others).

    The largest entry stays out of the sum, so that the contribution of the others is not rounded
    away; the derivative is softmax(x). Accurate to a few units in the last place of
    max(|result|, |max x|): where the two terms cancel, the rounding of x shows.

    Raises:
        ValueError: there is nothing to sum: the axis has length 0.

    >>> import mlx.core as mx
    >>> logsumexp(mx.array([[0.0, -20.0], [1000.0, 1000.0]]), axis=1)
    array([2.06115e-09, 1000.69], dtype=float32)
    """
    y = _along(_logsumexp, x, axis)
    axes = _axes(x, axis)
    # mx.squeeze crashes where there is no axis to remove.
    return y if keepdims or not axes else mx.squeeze(y, axes)


def softmax(x: mx.array, axis: Axis = None) -> mx.array:
    """Return exp(x) / Σ exp(x) over `axis` (None: over all), small entries to all digits too.

    The rounding of x - max x, which moves a small entry by up to 64 units in the last place in
    float32, is recovered (Knuth's two-sum) and multiplied back in.

    Raises:
        ValueError: there is nothing to sum: the axis has length 0.

    >>> import mlx.core as mx
    >>> softmax(mx.array([0.0, 1.0, -90.0]))
    array([0.268941, 0.731059, 2.20371e-40], dtype=float32)
    """
    return _along(_softmax, x, axis)


def log_softmax(x: mx.array, axis: Axis = None) -> mx.array:
    """Return x - logsumexp(x) over `axis` (None: over all), also where that is nearly 0.

    Raises:
        ValueError: there is nothing to sum: the axis has length 0.

    >>> import mlx.core as mx
    >>> log_softmax(mx.array([20.0, 0.0]))
    array([-2.06115e-09, -20], dtype=float32)
    """
    return _along(_log_softmax, x, axis)


def _along(function: Unary, x: mx.array, axis: Axis) -> mx.array:
    """Return `function`, which works along the last axis and keeps it, along `axis` of x."""
    axes = _axes(x, axis)
    others = [i for i in range(x.ndim) if i not in axes]
    order = others + axes
    outer = [x.shape[i] for i in others]
    inner = [x.shape[i] for i in axes]
    if 0 in inner:
        raise ValueError(f"nothing to sum: the array has shape {x.shape} and axis={axis}.")
    rows = mx.transpose(x, order).reshape([*outer, math.prod(inner)])
    y = in_working_precision(function, rows)
    # The last axis of y has length 1 where `function` reduces.
    inner = inner if y.shape == rows.shape else [1] * len(inner)
    back = [order.index(i) for i in range(x.ndim)]
    return mx.transpose(y.reshape([*outer, *inner]), back)


def _axes(x: mx.array, axis: Axis) -> list[int]:
    """Return the axes that `axis` stands for, from 0, in order."""
    if not isinstance(x, mx.array):
        raise TypeError(f"expected an mx.array; got {type(x).__qualname__}.")
    chosen = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    if any(not -x.ndim <= i < x.ndim for i in chosen):
        raise ValueError(f"axis={axis}, but the array has shape {x.shape}.")
    return sorted({i % x.ndim for i in chosen})


@fused
def _shifted(x: mx.array, largest: mx.array) -> list[mx.array]:
    """Return t and d, where t + d = x - largest to twice the digits; e = exp(t + d); and e again
    with 0 where x is the largest.

    `largest` is finite, and no less than each finite x.
    """
    x, largest = waist(x), waist(largest)
    t = waist(x - largest)
    # Knuth (1969), 4.2.2, theorem B: the sum's rounding error, exactly.
    back = t - x
    d = (x - (t - back)) - (largest + back)
    d = mx.where(mx.abs(t) < mx.inf, d, mx.zeros_like(t))
    e = exp_values(t)
    e = e + mx.where(e > 0, e * d, mx.zeros_like(e))
    return [t, d, e, mx.where(t == 0, mx.zeros_like(e), e)]


def _parts(x: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array]:
    """Return (max x, t, d, exp(t + d), the sum of exp(t + d) over all but one largest entry)."""
    x = mx.stop_gradient(x)
    top = mx.max(x, axis=-1, keepdims=True)
    t, d, e, small = _shifted(x, mx.where(mx.abs(top) < mx.inf, top, mx.zeros_like(top)))
    ties = mx.sum(t == 0, axis=-1, keepdims=True).astype(x.dtype)
    return top, t, d, e, (ties - 1) + _sum(small)


def _sum(x: mx.array) -> mx.array:
    """Return the sum along the last axis, kept, in pairs.

    MLX's own sum on the CPU adds the terms in order: a million float32 terms lose two digits.
    """
    while x.shape[-1] > 8:
        half = x.shape[-1] // 2
        last = x[..., 2 * half :]
        x = x[..., :half] + x[..., half : 2 * half]
        x = mx.concatenate([x, last], axis=-1) if last.shape[-1] else x
    return mx.sum(x, axis=-1, keepdims=True)


def _logsumexp_values(x: mx.array) -> mx.array:
    top, _, _, _, others = _parts(x)
    return mx.where(mx.abs(top) < mx.inf, top + mx.log1p(others), top)


def _softmax_values(x: mx.array) -> mx.array:
    _, _, _, e, others = _parts(x)
    return e / (1 + others)


def _log_softmax_values(x: mx.array) -> mx.array:
    _, t, d, _, others = _parts(x)
    return t + (d - mx.log1p(others))


def _total(x: mx.array) -> mx.array:
    return mx.sum(x, axis=-1, keepdims=True)


def _through_softmax(_: Any, changes: Any, outputs: Any) -> mx.array:
    """The Jacobian diag(y) - y yᵀ of softmax is symmetric, so it serves both modes."""
    (change,), (y,) = changes, outputs
    return y * (change - _total(y * change))


# Of arrays along their last axis, which is kept.
_softmax = replaced(
    operation(_softmax_values, _through_softmax, _through_softmax),
    lambda x: mx.softmax(x, axis=-1),
)
_logsumexp = replaced(
    operation(_logsumexp_values, lambda x, changes, _: changes[0] * _softmax(*x)),
    lambda x: mx.logsumexp(x, axis=-1, keepdims=True),
)
_log_softmax = replaced(
    operation(
        _log_softmax_values,
        lambda x, changes, _: changes[0] - _softmax(*x) * _total(changes[0]),
        lambda x, changes, _: changes[0] - _total(_softmax(*x) * changes[0]),
    ),
    lambda x: x - mx.logsumexp(x, axis=-1, keepdims=True),
)

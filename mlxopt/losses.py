"""Losses per example: take the mean of what they return, or any other reduction.

Each takes arrays that broadcast together and returns one loss for each entry, of the dtype that
MLX promotes them to.
"""

from __future__ import annotations

from typing import cast

import mlx.core as mx


def squared_error(predictions: mx.array, targets: mx.array) -> mx.array:
    """Return ½ (predictions - targets)² for each entry; its derivative is the residual.

    >>> import mlx.core as mx
    >>> squared_error(mx.array([1.0, 4.0]), mx.array([1.0, 2.0]))
    array([0, 2], dtype=float32)
    """
    return 0.5 * mx.square(predictions - targets)


def huber(predictions: mx.array, targets: mx.array, delta: float = 1.0) -> mx.array:
    """Return ½r² where |r| ≤ delta, else delta · (|r| - ½ delta), r = predictions - targets.

    Squared error for small residuals and a straight line for large ones, so that an outlier pulls
    no harder than a residual of `delta` (Huber 1964, "Robust estimation of a location parameter").

    >>> import mlx.core as mx
    >>> huber(mx.array([0.5, 3.0]), mx.array([0.0, 0.0]))
    array([0.125, 2.5], dtype=float32)
    """
    size = mx.abs(predictions - targets)
    inside = mx.minimum(size, delta)
    return inside * (size - 0.5 * inside)


def logistic(logits: mx.array, labels: mx.array) -> mx.array:
    """Return log(1 + exp(logits)) - labels · logits: minus the log-likelihood of labels in [0, 1].

    Computed without overflow; the derivative in the logits is σ(logits) - labels to the last
    digits, at 0 too, where the derivative of the textbook expression is wrong.

    >>> import mlx.core as mx
    >>> logistic(mx.array([0.0, 100.0, 100.0]), mx.array([1.0, 1.0, 0.0]))
    array([0.693147, 0, 100], dtype=float32)
    """
    return cast(mx.array, _logistic(logits, labels))


@mx.custom_function
def _logistic(logits: mx.array, labels: mx.array) -> mx.array:
    size = mx.abs(logits)
    # exp(-size); mx.exp in float64 is good to 7 digits only, sinh and cosh to 16.
    decay = 1 / (mx.sinh(size) + mx.cosh(size)) if size.dtype == mx.float64 else mx.exp(-size)
    return mx.maximum(logits, 0) - labels * logits + mx.log1p(decay)


@_logistic.vjp
def _logistic_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, mx.array]:
    logits, labels = primals
    return (
        _unbroadcast(cotangent * (sigmoid(logits) - labels), logits),
        _unbroadcast(-cotangent * logits, labels),
    )


def sigmoid(x: mx.array) -> mx.array:
    """Return 1 / (1 + exp(-x)), computed as ½(1 + tanh(x/2)), which is accurate in float64 too.

    >>> import mlx.core as mx
    >>> sigmoid(mx.array([0.0, 2.0]))
    array([0.5, 0.880797], dtype=float32)
    """
    return 0.5 * (1 + mx.tanh(0.5 * x))


def _unbroadcast(gradient: mx.array, like: mx.array) -> mx.array:
    """Return `gradient` summed over the axes along which `like` was broadcast."""
    extra = gradient.ndim - like.ndim
    axes = [i for i in range(gradient.ndim) if i < extra or like.shape[i - extra] == 1]
    axes = [i for i in axes if i < extra or gradient.shape[i] != 1]
    return mx.sum(gradient, axis=axes).reshape(like.shape) if axes else gradient.reshape(like.shape)

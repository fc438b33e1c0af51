"""sin, cos and tan, to the last digits near their zeros and for every argument."""

from __future__ import annotations

import mlx.core as mx

from mlxopt.special._elementwise import elementwise, on_gpu

# MLX's own by another name: while a loss is called, `mx.tan` can be `tan` below.
_tan = mx.tan


@elementwise(lambda x, y: cos(x))
def sin(x: mx.array) -> mx.array:
    """Return sin x, within 3 units in the last place for every finite x.

    On the CPU MLX's own loses digits where sin is near 0 (in float32) and everywhere beyond the
    seventh (in float64), but its tangent is the C library's, reduction and all. With t = tan(x/2)
    this is 2t / (1 + t²) (Abramowitz and Stegun 4.3.24), and no step of it cancels.

    >>> import mlx.core as mx, math
    >>> sin(mx.array([0.0, math.pi / 2, 355.0]))
    array([0, 1, -3.01444e-05], dtype=float32)
    """
    if x.dtype == mx.float32 and on_gpu():
        return mx.sin(x)
    t = _tan(0.5 * x)
    return 2 * t / (1 + t * t)


def _cos_slope(x: mx.array, y: mx.array) -> mx.array:
    return -sin(x)


@elementwise(_cos_slope)
def cos(x: mx.array) -> mx.array:
    """Return cos x, within 3 units in the last place for every finite x.

    With t = tan(x/2) it is (1 - t²) / (1 + t²) (Abramowitz and Stegun 4.3.25) where |tan x| ≤ 1;
    beyond, where 1 - t² would cancel, sin x / tan x.

    >>> import mlx.core as mx, math
    >>> cos(mx.array([0.0, math.pi / 3, 11.0]))
    array([1, 0.5, 0.0044257], dtype=float32)
    """
    if x.dtype == mx.float32 and on_gpu():
        return mx.cos(x)
    t = _tan(0.5 * x)
    whole = _tan(x)
    square = t * t
    near = (1 - square) / (1 + square)
    return mx.where(mx.abs(whole) > 1, 2 * t / ((1 + square) * whole), near)


@elementwise(lambda x, y: 1 + y * y)
def tan(x: mx.array) -> mx.array:
    """Return tan x, with a derivative that is right in float64.

    >>> import mlx.core as mx, math
    >>> tan(mx.array([0.0, math.pi / 4]))
    array([0, 1], dtype=float32)
    """
    return _tan(x)

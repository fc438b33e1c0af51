"""Box bounds: numbers or trees of them, checked, and laid out as vectors like the parameters."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._tree import Tree, leaves_with_paths, numpy_dtype, ravel, working_dtype

# Of each dtype, the exponents of epsilon and of the smallest number above zero.
_EXPONENTS = {
    mx.float16: (-10, -24),
    mx.bfloat16: (-7, -133),
    mx.float32: (-23, -149),
    mx.float64: (-52, -1074),
}


def check_bounds(owner: str, lower: Any, upper: Any) -> None:
    """Raise TypeError or ValueError for what is wrong with bounds whatever the parameters."""
    for name, bound in (("lower", lower), ("upper", upper)):
        if isinstance(bound, (bool, str, bytes)):
            raise TypeError(f"{owner}({name}={bound!r}): expected a number, a tree or None.")
        if isinstance(bound, Real) and math.isnan(bound):
            raise ValueError(f"{owner}({name}={bound!r}): expected a number; None is no bound.")
    if isinstance(lower, Real) and isinstance(upper, Real) and lower > upper:
        raise ValueError(
            f"{owner}(lower={lower}, upper={upper}): lower is above upper. Swap the two?"
        )


def bound_vectors(owner: str, lower: Any, upper: Any, params: Tree) -> tuple[mx.array, mx.array]:
    """Return the bounds as two vectors (p,) in the order of `ravel(params)`.

    Each is rounded to the dtype of its leaf, towards the inside, so that what is within them is
    within the bounds as given; only where nothing would be left between is it the nearest.

    Args:
        owner: who asks, for messages.
        lower: None, a number, or a tree like `params` of None, numbers, arrays and lists.
        upper: likewise.
        params: the parameters.

    Raises:
        TypeError, ValueError: a bound does not fit `params`, is NaN, or lower is above upper.
    """
    lows = _spread(f"{owner}'s lower", lower, params, -math.inf)
    highs = _spread(f"{owner}'s upper", upper, params, math.inf)
    pieces = []
    for (path, leaf), low, high in zip(leaves_with_paths(params), lows, highs, strict=True):
        if (low > high).any():
            at = int(np.argmax(low > high))
            raise ValueError(
                f"{owner}: lower is above upper for params{path}: {low[at]} > {high[at]} at entry "
                f"{at} of {leaf.size}."
            )
        nearest = [_rounded(bound, leaf.dtype) for bound in (low, high)]
        gaps = [_spacing(bound, leaf.dtype) for bound in nearest]
        inside = [
            np.where(nearest[0] < low, nearest[0] + gaps[0], nearest[0]),
            np.where(nearest[1] > high, nearest[1] - gaps[1], nearest[1]),
        ]
        pieces.append(np.where(inside[0] <= inside[1], inside, nearest))
    dtype = working_dtype(params)
    both = np.concatenate(pieces, axis=1).astype(numpy_dtype(dtype))
    return mx.array(both[0], dtype=dtype), mx.array(both[1], dtype=dtype)


def check_inside(owner: str, params: Tree, lower: mx.array, upper: mx.array) -> None:
    """Raise ValueError unless `params` lies within the bounds, give or take a rounding."""
    x, low, high = (
        np.array(vector, dtype=np.float64)
        for vector in (ravel(params, working_dtype(params)), lower, upper)
    )
    start = 0
    for path, leaf in leaves_with_paths(params):
        part = slice(start, start + leaf.size)
        start += leaf.size
        a, b, c = low[part], x[part], high[part]
        slack = _spacing(b, leaf.dtype)
        outside = (b < a - slack) | (b > c + slack)
        if outside.any():
            at = int(np.argmax(outside))
            where = "" if leaf.ndim == 0 else f" (entry {at} of {leaf.size})"
            raise ValueError(
                f"{owner}: params{path}{where} starts at {b[at]:g}, outside its bounds "
                f"[{a[at]:g}, {c[at]:g}]. Start inside, for instance at mx.clip(params, lower, "
                f"upper)."
            )


def _spread(name: str, bound: Any, params: Tree, missing: float) -> list[np.ndarray]:
    """Return a bound as one float64 vector for each leaf of `params`."""
    if bound is None or (isinstance(bound, Real) and not isinstance(bound, bool)):
        number = missing if bound is None else float(bound)
        if math.isnan(number):
            raise ValueError(f"{name} is NaN; expected a number; None is no bound.")
        return [np.full(leaf.size, number) for _, leaf in leaves_with_paths(params)]
    if isinstance(params, mx.array):
        return [_leaf_bound(name, bound, params, missing)]
    if isinstance(params, dict):
        if not isinstance(bound, dict) or set(bound) != set(params):
            have = sorted(map(str, bound)) if isinstance(bound, dict) else type(bound).__qualname__
            raise ValueError(
                f"{name} is not a tree like params: expected a dict with the keys "
                f"{sorted(map(str, params))}, got {have}. None is no bound."
            )
        pairs = [(f"{name}[{key!r}]", bound[key], params[key]) for key in params]
    else:
        if not isinstance(bound, (list, tuple)) or len(bound) != len(params):
            have = type(bound).__qualname__
            if isinstance(bound, (list, tuple)):
                have += f" of {len(bound)}"
            raise ValueError(
                f"{name} is not a tree like params: expected a {type(params).__qualname__} of "
                f"{len(params)}, got a {have}. None is no bound."
            )
        pairs = [(f"{name}[{i}]", bound[i], child) for i, child in enumerate(params)]
    return [part for label, one, child in pairs for part in _spread(label, one, child, missing)]


def _leaf_bound(name: str, bound: Any, leaf: mx.array, missing: float) -> np.ndarray:
    """Return the bound of one leaf, flat, float64."""
    if isinstance(bound, (list, tuple)):
        bound = [missing if entry is None else entry for entry in bound]
    if isinstance(bound, mx.array) and bound.dtype == mx.bfloat16:
        bound = bound.astype(mx.float32)
    try:
        array = np.asarray(bound)
        if array.dtype.kind not in "fiu":
            raise TypeError
        array = np.broadcast_to(array.astype(np.float64), leaf.shape).reshape(-1)
    except (TypeError, ValueError):
        shape = getattr(bound, "shape", None) or type(bound).__qualname__
        raise ValueError(
            f"{name} does not fit its leaf: expected numbers of a shape that broadcasts to "
            f"{leaf.shape}, got {shape}."
        ) from None
    if np.isnan(array).any():
        raise ValueError(f"{name} has NaN in it; expected numbers; -inf or inf is no bound.")
    return array


def _rounded(numbers: np.ndarray, dtype: mx.Dtype) -> np.ndarray:
    """Return the nearest numbers of the dtype, as float64."""
    with mx.stream(mx.cpu):  # the only device with float64
        nearest = mx.array(numbers, dtype=mx.float64).astype(dtype).astype(mx.float64)
        return np.array(nearest)


def _spacing(numbers: np.ndarray, dtype: mx.Dtype) -> np.ndarray:
    """Return the distance from each number to the dtype's next one away from zero."""
    epsilon, smallest = _EXPONENTS[dtype]
    finite = np.where(np.isfinite(numbers), numbers, 0.0)
    _, exponent = np.frexp(finite)
    exponent = np.where(finite == 0, smallest, exponent - 1 + epsilon)
    return np.ldexp(1.0, np.maximum(exponent, smallest))

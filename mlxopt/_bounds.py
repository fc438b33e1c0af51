"""Box bounds: numbers, arrays or trees of them; checks, rounding and projection.

A bound is rounded to the dtype of its leaf towards the inside, so that a point within the rounded
bounds is within those given; to the nearest if the dtype has no number between the two.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._tree import (
    EPSILON,
    Tree,
    leaves_with_paths,
    pieces,
    spread,
    to_device,
    to_host,
    to_numpy,
    working_dtype,
)

# Of each dtype the exponent of the smallest number above zero.
_SMALLEST = {mx.float16: -24, mx.bfloat16: -133, mx.float32: -149, mx.float64: -1074}


class Bounds(NamedTuple):
    """Lower and upper bounds, float64, infinite where there are none."""

    lower: np.ndarray
    upper: np.ndarray


def project(x: mx.array, lower: mx.array, upper: mx.array) -> mx.array:
    """Return the point within the bounds that is nearest to x."""
    return mx.minimum(mx.maximum(x, lower), upper)


def inwards(lower: np.ndarray, upper: np.ndarray, dtype: mx.Dtype) -> Bounds:
    """Return float64 bounds rounded to a dtype, still float64."""
    if dtype == mx.float64:
        return Bounds(lower, upper)
    units = _spacing(lower, dtype), _spacing(upper, dtype)  # powers of two: exact factors
    low, high = lower / units[0], upper / units[1]
    between = np.ceil(low) * units[0] <= np.floor(high) * units[1]
    low = np.where(between, np.ceil(low), np.rint(low))
    high = np.where(between, np.floor(high), np.rint(high))
    return Bounds(low * units[0], high * units[1])


def bound_arrays(owner: str, lower: Any, upper: Any) -> Bounds:
    """Return bounds that are None, numbers or arrays in float64, infinite for None.

    Raises:
        TypeError, ValueError: a bound is none of these, or NaN, or lower is above upper.
    """
    arrays = []
    for name, bound, missing in (("lower", lower, -math.inf), ("upper", upper, math.inf)):
        label = f"{owner}({name}={bound!r})"
        try:
            arrays.append(_without_nan(label, _array(bound, missing)))
        except TypeError:
            raise TypeError(f"{label}: expected a number, an array or None.") from None
    if (arrays[0] > arrays[1]).any():
        raise ValueError(
            f"{owner}(lower={lower}, upper={upper}): lower is above upper. Swap the two?"
        )
    return Bounds(*arrays)


def check_bounds(owner: str, lower: Any, upper: Any) -> None:
    """Raise TypeError or ValueError for bounds that fit no parameters."""
    for name, bound in (("lower", lower), ("upper", upper)):
        if isinstance(bound, (bool, str, bytes)):
            raise TypeError(f"{owner}({name}={bound!r}): expected a number, a tree or None.")
    if all(_is_number(bound) for bound in (lower, upper)):
        bound_arrays(owner, lower, upper)


def bound_vectors(owner: str, lower: Any, upper: Any, params: Tree) -> tuple[mx.array, mx.array]:
    """Return the rounded bounds as two vectors (p,) in the order of `ravel(params)`.

    Args:
        owner: the optimizer or function, for messages.
        lower: None, a number, or a tree like `params` of None, numbers, arrays and lists.
        upper: likewise.
        params: the parameters.

    Raises:
        TypeError, ValueError: a bound does not fit `params`, is NaN, or lower is above upper.
    """
    lows = _spread(f"{owner}'s lower", lower, params, -math.inf)
    highs = _spread(f"{owner}'s upper", upper, params, math.inf)
    rounded = []
    for (path, leaf), low, high in zip(leaves_with_paths(params), lows, highs, strict=True):
        if (low > high).any():
            at = int(np.argmax(low > high))
            raise ValueError(
                f"{owner}: lower is above upper for params{path}: {low[at]} > {high[at]} at entry "
                f"{at} of {leaf.size}."
            )
        rounded.append(inwards(low, high, leaf.dtype))
    low, high = np.concatenate(rounded, axis=1)
    dtype = working_dtype(params)
    return to_device(low, dtype), to_device(high, dtype)


def check_inside(owner: str, params: Tree, lower: mx.array, upper: mx.array) -> None:
    """Raise ValueError unless `params` lies within the bounds, give or take a rounding."""
    vectors = np.stack([to_numpy(lower), to_host(params), to_numpy(upper)])
    for (path, leaf), part in zip(leaves_with_paths(params), pieces(vectors, params), strict=True):
        low, x, high = part.reshape(3, -1)
        slack = _spacing(x, leaf.dtype)
        outside = (x < low - slack) | (x > high + slack)
        if outside.any():
            at = int(np.argmax(outside))
            where = "" if leaf.ndim == 0 else f" (entry {at} of {leaf.size})"
            raise ValueError(
                f"{owner}: params{path}{where} starts at {x[at]:g}, outside its bounds "
                f"[{low[at]:g}, {high[at]:g}]. Start inside, for instance at mx.clip(params, "
                f"lower, upper)."
            )


def _spread(name: str, bound: Any, params: Tree, missing: float) -> list[np.ndarray]:
    """Return a bound as one float64 vector for each leaf of `params`."""

    def is_entry(bound: Any, tree: Tree) -> bool:
        return _is_number(bound) or isinstance(tree, mx.array)

    entries = spread(bound, params, is_entry, name, "bound")
    vectors = []
    for (path, leaf), entry in zip(leaves_with_paths(params), entries, strict=True):
        try:
            array = np.broadcast_to(_array(entry, missing), leaf.shape).reshape(-1)
        except (TypeError, ValueError):
            shape = getattr(entry, "shape", None) or type(entry).__qualname__
            raise ValueError(
                f"{name}{path} does not fit its leaf: expected numbers of a shape that broadcasts "
                f"to {leaf.shape}, got {shape}."
            ) from None
        vectors.append(_without_nan(name + path, array))
    return vectors


def _is_number(bound: Any) -> bool:
    return bound is None or (isinstance(bound, Real) and not isinstance(bound, bool))


def _array(bound: Any, missing: float) -> np.ndarray:
    """Return the bound of one leaf as float64, `missing` in place of None."""
    if isinstance(bound, (list, tuple)):
        bound = [missing if entry is None else entry for entry in bound]
    if isinstance(bound, mx.array):
        bound = to_numpy(bound)
    array = np.asarray(missing if bound is None else bound)
    if array.dtype.kind not in "fiu":
        raise TypeError
    return array.astype(np.float64)


def _without_nan(name: str, array: np.ndarray) -> np.ndarray:
    if np.isnan(array).any():
        raise ValueError(f"{name} has NaN in it; expected numbers. None is no bound.")
    return array


def _spacing(numbers: np.ndarray, dtype: mx.Dtype) -> np.ndarray:
    """Return the distance from each number to the dtype's next one away from zero."""
    mantissa, exponent = np.frexp(np.where(np.isfinite(numbers), numbers, 0.0))
    spacing = np.where(mantissa == 0, 0.0, np.ldexp(0.5 * EPSILON[dtype], exponent))
    return np.maximum(spacing, 2.0 ** _SMALLEST[dtype])

"""Each operation in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mlxopt.engine._graph import Node, Unsupported


def _special(name: str, *args: Any, **options: Any) -> Any:
    from scipy import special  # 50 ms

    return getattr(special, name)(*args, **options)


def _sign(x: np.ndarray, **options: Any) -> np.ndarray:
    """Return the sign as MLX has it: 0 of NaN."""
    return np.subtract(x > 0, x < 0, dtype=np.int8, **options)


# Entry by entry; operands broadcast.
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "ArcCos": np.arccos,
    "ArcCosh": np.arccosh,
    "ArcSin": np.arcsin,
    "ArcSinh": np.arcsinh,
    "ArcTan": np.arctan,
    "ArcTan2": np.arctan2,
    "ArcTanh": np.arctanh,
    "BitwiseInvert": np.invert,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Cosh": np.cosh,
    "Divide": np.divide,
    "Equal": np.equal,
    "Erf": partial(_special, "erf"),
    "ErfInv": partial(_special, "erfinv"),
    "Exp": np.exp,
    "Expm1": np.expm1,
    "Floor": np.floor,
    "FloorDivide": np.floor_divide,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "Less": np.less,
    "LessEqual": np.less_equal,
    "Log": np.log,
    "Log10": np.log10,
    "Log1p": np.log1p,
    "Log2": np.log2,
    "LogAddExp": np.logaddexp,
    "LogicalAnd": np.logical_and,
    "LogicalNot": np.logical_not,
    "LogicalOr": np.logical_or,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Multiply": np.multiply,
    "Negative": np.negative,
    "NotEqual": np.not_equal,
    "Power": np.power,
    "Remainder": np.remainder,
    "Round": np.rint,
    "Sigmoid": partial(_special, "expit"),
    "Sign": _sign,
    "Sin": np.sin,
    "Sinh": np.sinh,
    "Sqrt": np.sqrt,
    "Square": np.square,
    "Subtract": np.subtract,
    "Tan": np.tan,
    "Tanh": np.tanh,
}
OTHER = {"Select", "Cast"}  # entry by entry too
_REDUCE = (np.logical_and, np.logical_or, np.add, np.multiply, np.minimum, np.maximum)


def is_elementwise(node: Node) -> bool:
    return node.op in ELEMENTWISE or node.op in OTHER


def apply(node: Node, *arrays: np.ndarray) -> np.ndarray:
    """Return the result of an operation, an array of its shape and dtype; a view where it can be.

    Raises:
        Unsupported: the engine does not know it.
    """
    with np.errstate(all="ignore"):
        found = _apply(node, *arrays)
    return np.asarray(found).astype(node.dtype, copy=False).reshape(node.shape)


def _apply(node: Node, *arrays: np.ndarray) -> Any:
    if not arrays:
        raise Unsupported(node.op)
    state, x = node.state, arrays[0]
    match node.op:
        case "Select":
            return np.where(*arrays)
        case "Cast":
            return x.astype(node.dtype)
        case "Broadcast":
            return np.broadcast_to(x, node.shape)
        case "Reshape":
            return x.reshape(node.shape)
        case "Transpose":
            return x.transpose(state[0])
        case "Slice":
            return x[slices(*state)]
        case "Matmul":
            return _oriented(x, state[0]) @ _oriented(arrays[1], state[1])
        case "Reduce":
            found = np.empty(node.shape, node.dtype)
            reduction(node, x.dtype)(x, found)
            return found
        case "ArgReduce":
            return (np.argmin, np.argmax)[state[0]](x, axis=state[1], keepdims=True)
        case "Concatenate":
            return np.concatenate(arrays, axis=state[0])
        case "Pad":
            return _padded(node, *arrays)
        case "Gather":
            return _gathered(node, *arrays)
        case "GatherAxis":
            return np.take_along_axis(x, _wrapped(arrays[1], x.shape[state[0]]), axis=state[0])
        case "Scatter":
            return _scattered(node, *arrays)
        case "ScatterAxis":
            return _scattered_along(node, *arrays)
        case "SliceUpdate":
            found = x.copy()
            part = found[slices(*state[1:])]
            _update(part, ..., arrays[1], state[0])
            return found
        case "Scan":
            return _scanned(x, *state)
    if node.op not in ELEMENTWISE:
        raise Unsupported(node.op)
    return ELEMENTWISE[node.op](*arrays)


def reduction(node: Node, dtype: np.dtype) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return a function that writes a reduction of an array of this dtype into another."""
    kind, axes = node.state
    function = _REDUCE[kind]
    wide = np.float64 if dtype == np.float32 and kind in (2, 3) else node.dtype
    if dtype == wide == node.dtype:
        return lambda x, out: function.reduce(x, axis=axes, keepdims=True, out=out)

    def reduce(x: np.ndarray, out: np.ndarray) -> None:
        out[...] = function.reduce(x, axis=axes, keepdims=True, dtype=wide)

    return reduce


def _oriented(x: np.ndarray, transposed: bool) -> np.ndarray:
    return x.swapaxes(-1, -2) if transposed else x


def slices(start: Any, stop: Any, strides: Any) -> tuple[slice, ...]:
    # A stop below -1 is MLX's end of a slice that runs down to the first entry.
    ends = [None if by < 0 and end < 0 else end for end, by in zip(stop, strides, strict=True)]
    return tuple(map(slice, start, ends, strides))


def _wrapped(index: np.ndarray, size: int) -> np.ndarray:
    index = index.astype(np.int64)
    return np.where(index < 0, index + size, index)


def _places(x: np.ndarray, axes: Any, indices: Any) -> tuple[np.ndarray, ...]:
    """Return indices along axes of x as one array each, none of them negative."""
    wrapped = (_wrapped(i, x.shape[a]) for a, i in zip(axes, indices, strict=True))
    return np.broadcast_arrays(*wrapped)


def refuse_blocks(node: Node, axes: Any, sizes: Any, shape: Any) -> None:
    """Raise Unsupported unless a gather or scatter takes one entry along `axes`, or else all."""
    if any(size != (1 if a in axes else shape[a]) for a, size in enumerate(sizes)):
        raise Unsupported(f"{node.op} of blocks")


def _padded(node: Node, x: np.ndarray, value: np.ndarray) -> np.ndarray:
    axes, low, _ = node.state
    found = np.full(node.shape, value, dtype=node.dtype)
    where = [slice(None)] * x.ndim
    for axis, begin in zip(axes, low, strict=True):
        where[axis] = slice(begin, begin + x.shape[axis])
    found[tuple(where)] = x
    return found


def _gathered(node: Node, x: np.ndarray, *indices: np.ndarray) -> np.ndarray:
    """Return the blocks of `sizes` that begin at the indices along `axes`; sizes are 1 there."""
    axes, sizes = node.state
    refuse_blocks(node, axes, sizes, x.shape)
    return np.moveaxis(x, axes, range(len(axes)))[_places(x, axes, indices)]


def _update(target: np.ndarray, where: Any, values: np.ndarray, kind: int) -> None:
    if kind == 4:
        target[where] = values
    elif kind == 2:
        np.add.at(target, where, values)
    else:
        raise Unsupported("Scatter of a product or an extremum")


def _scattered(node: Node, x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    *indices, updates = rest
    kind, axes = node.state
    refuse_blocks(node, axes, updates.shape[updates.ndim - x.ndim :], x.shape)
    found = x.copy()
    moved = np.moveaxis(found, axes, range(len(axes)))
    places = _places(x, axes, indices)
    values = updates.reshape((*places[0].shape, *moved.shape[len(axes) :]))
    _update(moved, places, values, kind)
    return found


def _scattered_along(node: Node, x: np.ndarray, index: np.ndarray, updates: Any) -> np.ndarray:
    kind, axis = node.state
    found = x.copy()
    where = list(np.indices(index.shape, sparse=True))
    where[axis] = _wrapped(index, x.shape[axis])
    _update(found, tuple(where), np.broadcast_to(updates, index.shape), (2, 4)[kind])
    return found


def _scanned(x: np.ndarray, kind: int, axis: int, reverse: bool, inclusive: bool) -> np.ndarray:
    if kind not in (2, 3):
        raise Unsupported("Scan of an extremum")
    x = np.flip(x, axis) if reverse else x
    found = (np.cumsum if kind == 2 else np.cumprod)(x, axis=axis, dtype=x.dtype)
    if not inclusive:
        found = np.roll(found, 1, axis)
        first = [slice(None)] * x.ndim
        first[axis] = slice(0, 1)
        found[tuple(first)] = kind - 2
    return np.flip(found, axis) if reverse else found

"""Trees of parameters: their leaves by path, one flat vector, a move along a direction.

A tree is an array, or a list, tuple, dict or NamedTuple of trees. Leaves come in the order of
`mlx.utils.tree_flatten`: dictionaries in insertion order, sequences by index.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

Tree = Any  # an mx.array, or a list, tuple, dict or NamedTuple of trees
Params = Tree  # a tree of floating-point arrays
Vector = mx.array  # the entries of a tree as one array of shape (p,)

HALF = (mx.float16, mx.bfloat16)
FLOATS = (*HALF, mx.float32, mx.float64)


def leaves_with_paths(tree: Tree) -> list[tuple[str, Any]]:
    """Return leaves as (path, leaf), the path as a person would write it: `params['w'][0]`."""
    if isinstance(tree, dict):
        steps = [(f"[{key!r}]", child) for key, child in tree.items()]
    elif hasattr(tree, "_fields"):
        steps = [(f".{name}", child) for name, child in zip(tree._fields, tree, strict=True)]
    elif isinstance(tree, (list, tuple)):
        steps = [(f"[{index}]", child) for index, child in enumerate(tree)]
    else:
        return [("", tree)]
    return [(step + path, leaf) for step, child in steps for path, leaf in leaves_with_paths(child)]


def leaves(tree: Tree) -> list[Any]:
    """Return the arrays of a tree, in `tree_flatten` order."""
    return [leaf for _, leaf in tree_flatten(tree)]


def read(*scalars: mx.array) -> tuple[float, ...]:
    """Return the numbers that these arrays of shape () hold: one wait for the device."""
    mx.eval(*scalars)
    return tuple(float(scalar) for scalar in scalars)


def check_params(params: Tree) -> None:
    """Raise TypeError or ValueError unless `params` is a tree of real floating-point arrays."""
    found = leaves_with_paths(params)
    if not found:
        raise ValueError(
            f"params holds no arrays: got {params!r}. Pass an mx.array or a tree of them."
        )
    for path, leaf in found:
        name = f"params{path}"
        if not isinstance(leaf, mx.array):
            raise TypeError(
                f"{name} is {type(leaf).__module__}.{type(leaf).__qualname__}; expected an "
                f"mx.array. Write mx.array({'...' if path else 'params'}, dtype=mx.float32)."
            )
        if leaf.dtype not in FLOATS:
            raise TypeError(
                f"{name} has dtype {dtype_name(leaf.dtype)}, which has no useful derivative; "
                f"expected float16, bfloat16, float32 or float64. "
                + (
                    "Split it into a real and an imaginary part."
                    if leaf.dtype == mx.complex64
                    else "Write params.astype(mx.float32), or pass it among the data."
                )
            )
        if leaf.size == 0:
            raise ValueError(f"{name} is empty: its shape is {leaf.shape}.")


def dtype_name(dtype: mx.Dtype) -> str:
    """Return the bare name of a dtype: `float32`, not `mlx.core.float32`."""
    return str(dtype).rpartition(".")[2]


def working_dtype(params: Tree) -> mx.Dtype:
    """Return the dtype for vectors made of these leaves: float64 if any is, else float32."""
    return mx.float64 if any(leaf.dtype == mx.float64 for leaf in leaves(params)) else mx.float32


def ravel(tree: Tree, dtype: mx.Dtype) -> mx.array:
    """Return all entries as one vector, shape (p,), in `tree_flatten` order."""
    flat = [leaf.reshape(-1).astype(dtype) for leaf in leaves(tree)]
    return flat[0] if len(flat) == 1 else mx.concatenate(flat)


def unravel(vector: mx.array, like: Tree) -> Tree:
    """Return the tree shaped and typed as `like` whose `ravel` is `vector`."""
    start = 0

    def take(leaf: mx.array) -> mx.array:
        nonlocal start
        piece = vector[start : start + leaf.size]
        start += leaf.size
        return piece.reshape(leaf.shape).astype(leaf.dtype)

    return tree_map(take, like)


def to_host(tree: Tree) -> np.ndarray:
    """Return all entries as one float64 vector of NumPy, shape (p,), in `tree_flatten` order."""
    return np.array(ravel(tree, working_dtype(tree))).astype(np.float64, copy=False)


def to_device(vector: np.ndarray, like: Tree) -> Vector:
    """Return a vector of NumPy as one of MLX, in the working dtype of `like`."""
    dtype = working_dtype(like)
    return mx.array(vector.astype(numpy_dtype(dtype)), dtype=dtype)


def move(params: Tree, direction: mx.array, step_size: mx.array) -> Tree:
    """Return params + step_size · direction, the direction one vector, each leaf in its dtype."""
    start = 0

    def shift(leaf: mx.array) -> mx.array:
        nonlocal start
        piece = direction[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
        return (leaf + step_size * piece).astype(leaf.dtype)

    return tree_map(shift, params)


def numpy_dtype(dtype: mx.Dtype) -> Any:
    """Return NumPy's dtype for float64 and float32."""
    return np.float64 if dtype == mx.float64 else np.float32


def epsilon(params: Tree) -> float:
    """Return the machine epsilon of the coarsest leaf: the relative rounding error of a loss."""
    sizes = {mx.float64: 2.0**-52, mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
    return max(sizes[leaf.dtype] for leaf in leaves(params))


def default_tol(params: Tree) -> float:
    """Return the default tolerance for the largest entry of the gradient."""
    dtypes = {leaf.dtype for leaf in leaves(params)}
    if dtypes & set(HALF):
        return 1e-3
    return 1e-5 if mx.float32 in dtypes else 1e-8


def structure(tree: Tree) -> Any:
    """Return a tree with its arrays taken out: equal for trees of the same make."""
    if isinstance(tree, dict):
        return {key: structure(child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [type(tree).__name__, *(structure(child) for child in tree)]
    return None


def count(tree: Tree) -> int:
    """Return p, the number of entries in all leaves together."""
    return sum(leaf.size for leaf in leaves(tree))


def largest_entry(tree: Tree) -> mx.array:
    """Return the largest absolute entry of all leaves, a scalar array (NaN if any entry is)."""
    # mx.max passes NaN on, and so does maximum: a NaN anywhere shows.
    largest = [mx.max(mx.abs(leaf)) for leaf in leaves(tree)]
    dtype = working_dtype(tree)
    result = largest[0].astype(dtype)
    for value in largest[1:]:
        result = mx.maximum(result, value.astype(dtype))
    return result


def is_finite(*values: float) -> bool:
    """Return whether every one of these numbers is finite."""
    return all(math.isfinite(value) for value in values)


def to_data(item: Any, dtype: mx.Dtype) -> Any:
    """Return one data argument as MLX takes it.

    NumPy arrays, lists and data frames become arrays: floating ones of `dtype`, the dtype of the
    parameters; integers and booleans stay what they are, since they may be labels or indices (an
    operation that mixes them with parameters promotes them). Arrays of MLX pass through, and so do
    strings, None and Python numbers, which `mx.compile` holds constant.
    """
    # np.float64 is a float, but in front of an array NumPy would do the arithmetic: an array then.
    number = isinstance(item, (bool, int, float)) and not isinstance(item, np.generic)
    if item is None or number or isinstance(item, (mx.array, str)):
        return item
    if isinstance(item, dict):
        return {key: to_data(child, dtype) for key, child in item.items()}
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(to_data(child, dtype) for child in item))
    if isinstance(item, (list, tuple)) and _holds_data(item):
        return type(item)(to_data(child, dtype) for child in item)
    array = np.asarray(item)
    if array.dtype == object or array.dtype.kind not in "fiub":
        raise TypeError(
            f"a data argument of type {type(item).__qualname__} gives a NumPy array of dtype "
            f"{array.dtype}, which MLX cannot hold; expected numbers. Encode text as numbers first."
        )
    if array.dtype.kind == "f":
        # By way of NumPy: mx.array(float64 array) would round to float32 whatever is asked later.
        wide = np.float64 if dtype == mx.float64 else np.float32
        array = array.astype(wide, copy=False)
        return mx.array(array, dtype=dtype)
    return mx.array(array)


def as_data(items: tuple[Any, ...], params: Tree) -> tuple[Any, ...]:
    """Return data arguments as MLX takes them beside `params`."""
    dtype = working_dtype(params)
    return tuple(to_data(item, dtype) for item in items)


def widened(tree: Tree) -> Tree:
    """Return a tree with its floating-point arrays in float64; integers stay what they are."""

    def widen(leaf: Any) -> Any:
        narrow = isinstance(leaf, mx.array) and leaf.dtype in FLOATS
        return leaf.astype(mx.float64, stream=mx.cpu) if narrow else leaf

    return tree_map(widen, tree)


def _holds_data(items: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a sequence is a tree of data rather than rows of numbers."""
    # A list of NumPy arrays is rows of a table; a tuple of them is several things.
    kinds = (mx.array, dict) if isinstance(items, list) else (mx.array, dict, np.ndarray)
    frames = isinstance(items, tuple)
    return any(isinstance(one, kinds) or (frames and hasattr(one, "columns")) for one in items)

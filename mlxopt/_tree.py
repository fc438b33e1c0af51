"""Trees of parameters: leaves by path, one vector on the device or the host, structure in words.

A tree is an array, or a list, tuple, dict or NamedTuple of trees. Leaves come in the order of
`mlx.utils.tree_flatten`: dictionaries in insertion order, sequences by index.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlxopt._numbers import to_numbers

Tree = Any  # an mx.array, or a list, tuple, dict or NamedTuple of trees
Params = Tree  # a tree of floating-point arrays
Vector = mx.array  # the entries of a tree as one array of shape (p,)

HALF = (mx.float16, mx.bfloat16)
FLOATS = (*HALF, mx.float32, mx.float64)
EPSILON = {mx.float64: 2.0**-52, mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}


# --- Leaves --------------------------------------------------------------------------------------


def children(tree: Tree) -> list[tuple[str, Any]] | None:
    """Return the subtrees as (step, subtree), the step as in `params['w'][0]`; None for a leaf."""
    if isinstance(tree, dict):
        return [(f"[{key!r}]", child) for key, child in tree.items()]
    if hasattr(tree, "_fields"):
        return [(f".{name}", child) for name, child in zip(tree._fields, tree, strict=True)]
    if isinstance(tree, (list, tuple)):
        return [(f"[{index}]", child) for index, child in enumerate(tree)]
    return None


def leaves_with_paths(tree: Tree) -> list[tuple[str, Any]]:
    """Return leaves as (path, leaf), the path as in `params['w'][0]`."""
    below = children(tree)
    if below is None:
        return [("", tree)]
    return [(step + path, leaf) for step, child in below for path, leaf in leaves_with_paths(child)]


def leaves(tree: Tree) -> list[Any]:
    """Return the arrays of a tree, in `tree_flatten` order."""
    return [leaf for _, leaf in tree_flatten(tree)]


def from_leaves(arrays: Iterable[Any], like: Tree) -> Tree:
    """Return these leaves, in `tree_flatten` order, as a tree of the structure of `like`."""
    remaining = iter(arrays)
    return tree_map(lambda _: next(remaining), like)


def copies(tree: Tree) -> Tree:
    """Return a tree with copies of its arrays, other leaves unchanged."""
    return tree_map(lambda leaf: mx.array(leaf) if isinstance(leaf, mx.array) else leaf, tree)


def read(*scalars: mx.array) -> tuple[float, ...]:
    """Return the numbers in these arrays of shape (), after one wait for the device."""
    evaluate(*scalars)
    return tuple(float(scalar) for scalar in scalars)


def evaluate(*trees: Tree) -> None:
    """Evaluate all leaves; raise RuntimeError for an unevaluated array of another thread."""
    try:
        mx.eval(*trees)
    except RuntimeError as error:
        if "There is no Stream" not in str(error):
            raise
        raise RuntimeError(
            "an argument of this computation was made in another thread and is not evaluated yet: "
            "MLX evaluates an array only in the thread that made it. Write mx.eval(params, data) "
            f"there, before another thread takes them. (MLX said: {error})"
        ) from error


def is_finite(*values: float) -> bool:
    """Return whether every one of these numbers is finite."""
    return all(math.isfinite(value) for value in values)


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


# --- Dtypes --------------------------------------------------------------------------------------


def dtype_name(dtype: mx.Dtype) -> str:
    """Return the bare name of a dtype: `float32`, not `mlx.core.float32`."""
    return str(dtype).rpartition(".")[2]


def numpy_dtype(dtype: mx.Dtype) -> Any:
    """Return NumPy's dtype for float64 and float32."""
    return np.float64 if dtype == mx.float64 else np.float32


def working_dtype(params: Tree) -> mx.Dtype:
    """Return the dtype for vectors made of these leaves: float64 if any is, else float32."""
    return mx.float64 if any(leaf.dtype == mx.float64 for leaf in leaves(params)) else mx.float32


def epsilon(params: Tree) -> float:
    """Return the machine epsilon of the coarsest leaf: the relative rounding error of a loss."""
    return max(EPSILON[leaf.dtype] for leaf in leaves(params))


def default_tol(params: Tree) -> float:
    """Return the default tolerance, a share of the largest gradient on the way."""
    dtypes = {leaf.dtype for leaf in leaves(params)}
    if dtypes & set(HALF):
        return 1e-3
    return 3e-6 if mx.float32 in dtypes else 1e-9


def first_tol(params: Params, tol: float | None, finishes: bool = False) -> float:
    """Return the tolerance of a run from `params`, which a finish in float64 may follow."""
    least = default_tol(params)
    if tol is None:
        return least
    # What follows in float64 reaches a tol that float32 would only struggle for.
    return max(tol, least) if finishes and tol > 0 else tol


def widened(tree: Tree) -> Tree:
    """Return a tree with its floating-point arrays in float64, other leaves unchanged."""

    def widen(leaf: Any) -> Any:
        return leaf.astype(mx.float64, stream=mx.cpu) if is_float(leaf) else leaf

    return tree_map(widen, tree)


def is_float(leaf: Any) -> bool:
    """Whether this is a floating-point array."""
    return isinstance(leaf, mx.array) and leaf.dtype in FLOATS


def holds_float64(tree: Tree) -> bool:
    """Whether a leaf is a float64 array; leaves can be anything."""
    return any(isinstance(leaf, mx.array) and leaf.dtype == mx.float64 for leaf in leaves(tree))


# --- Vectors of all entries, shape (p,) ----------------------------------------------------------


def ravel(tree: Tree, dtype: mx.Dtype) -> mx.array:
    """Return all entries as one vector, shape (p,), in `tree_flatten` order."""
    flat = [leaf.reshape(-1).astype(dtype) for leaf in leaves(tree)]
    return flat[0] if len(flat) == 1 else mx.concatenate(flat)


def unravel(vector: mx.array, like: Tree) -> Tree:
    """Return the tree shaped and typed as `like` whose `ravel` is `vector`."""
    parts = pieces(vector, like)
    return tree_map(lambda leaf: next(parts).astype(leaf.dtype), like)


def move(params: Tree, direction: mx.array, step_size: mx.array) -> Tree:
    """Return params + step_size · direction, the direction one vector, each leaf in its dtype."""
    parts = pieces(direction, params)
    return tree_map(lambda leaf: (leaf + step_size * next(parts)).astype(leaf.dtype), params)


def pieces(vectors: Any, like: Tree) -> Iterator[Any]:
    """Yield the part of each leaf of `like` in vectors (..., p) of MLX or NumPy, in its shape."""
    start = 0
    for leaf in leaves(like):
        part = vectors[..., start : start + leaf.size]
        start += leaf.size
        yield part.reshape((*vectors.shape[:-1], *leaf.shape))


def to_host(tree: Tree, lead: int = 0) -> np.ndarray:
    """Return all entries as one float64 vector of the host, shape (p,), in `tree_flatten` order.

    The first `lead` axes of the leaves, which they share, are kept: (..., p).
    """
    evaluate(tree)
    flat = [to_numpy(leaf) for leaf in leaves(tree)]
    flat = [leaf.reshape((*leaf.shape[:lead], -1)) for leaf in flat]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=-1)


def from_host(vectors: np.ndarray, like: Tree) -> Tree:
    """Return vectors of the host, shape (..., p), as a tree like `like` with their leading axes."""
    parts = pieces(vectors, like)
    return tree_map(lambda leaf: to_device(next(parts), leaf.dtype), like)


def rounded(vectors: np.ndarray, like: Tree) -> np.ndarray:
    """Return vectors of the host, shape (..., p), rounded to the dtypes of the leaves of `like`."""
    dtypes = {leaf.dtype for leaf in leaves(like)}
    if len(dtypes) == 1 and not dtypes & set(HALF):
        with np.errstate(over="ignore"):
            return vectors.astype(numpy_dtype(dtypes.pop())).astype(np.float64)
    return to_host(from_host(vectors, like), lead=vectors.ndim - 1)


def to_numpy(array: mx.array) -> np.ndarray:
    """Return an array as float64 on the host."""
    evaluate(array)
    narrow = array.dtype == mx.bfloat16  # NumPy has no such dtype
    return np.array(array.astype(mx.float32) if narrow else array, dtype=np.float64)


def to_device(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """Return an array of the host as an MLX array of a floating dtype."""
    with np.errstate(over="ignore"):
        return mx.array(array.astype(numpy_dtype(dtype)), dtype=dtype)


# --- Structure, shapes and dtypes ----------------------------------------------------------------


def check_params(params: Tree, dtype: mx.Dtype = mx.float32) -> Tree:
    """Return `params` as a tree of real floating-point arrays of MLX.

    Numbers and arrays of NumPy become arrays of `dtype`, by default float32 as in `mx.array`;
    float16 and float32 are kept.

    Raises:
        TypeError, ValueError: it holds none, or something else.
    """
    _check_is_plain(params)
    found = leaves_with_paths(params)
    if not found:
        raise ValueError(
            f"params holds no arrays: got {params!r}. Pass an mx.array or a tree of them."
        )
    if not all(isinstance(leaf, mx.array) for _, leaf in found):
        found = [(path, _to_param(leaf, f"params{path}", dtype)) for path, leaf in found]
        params = from_leaves([leaf for _, leaf in found], params)
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
    return params


def _to_param(leaf: Any, name: str, dtype: mx.Dtype) -> Any:
    """Return a number, or an array of NumPy, as an array of MLX; others unchanged."""
    is_bool = isinstance(leaf, (bool, np.bool_))
    if is_bool or not isinstance(leaf, (int, float, np.ndarray, np.generic)):
        return leaf
    array = to_numbers(leaf, name)
    if array.dtype.kind == "b":
        return mx.array(array)
    narrow: dict[Any, mx.Dtype] = {np.float16: mx.float16, np.float32: mx.float32}
    return to_device(array, narrow.get(array.dtype.type, dtype))


def has_module(tree: Tree) -> bool:
    """Whether this is a module of `mlx.nn`, a dict to Python."""
    library = sys.modules.get("mlx.nn")  # a module has imported it
    return library is not None and isinstance(tree, library.Module)


def _check_is_plain(params: Tree, path: str = "") -> None:
    """Raise TypeError for a module, and for [1.0, 2.0], which could be a vector or a tree."""
    if has_module(params):
        raise TypeError(
            f"params{path} is an mlx.nn.Module ({type(params).__name__}); expected arrays, and a "
            f"loss that is a function of them. Write params, apply = mo.functional(module), and "
            f"apply(params, X) in the loss in place of module(X)."
        )
    below = children(params) or []
    numbers = below and all(isinstance(child, (int, float)) for _, child in below)
    if numbers and type(params) in (list, tuple):
        raise TypeError(
            f"params{path} is a {type(params).__name__} of numbers; expected an mx.array, or a "
            f"tree of them. For a vector write mx.array({list(params)}, dtype=mx.float32)."
        )
    for step, child in below:
        _check_is_plain(child, path + step)


def structure(tree: Tree) -> Any:
    """Return a tree without its arrays, to be compared with that of another."""
    if isinstance(tree, dict):
        return {key: structure(child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [type(tree).__name__, *(structure(child) for child in tree)]
    return None


def describe_structure(tree: Any) -> str:
    """Return the top of a tree in words: `float32 of shape (2,)`, `a dict with the keys ['w']`."""
    if isinstance(tree, mx.array):
        return f"{dtype_name(tree.dtype)} of shape {tree.shape}"
    if isinstance(tree, np.ndarray):
        return f"NumPy {tree.dtype} of shape {tree.shape}"
    if isinstance(tree, dict):
        return f"a dict with the keys {list(tree)}"
    if isinstance(tree, (list, tuple)) and not hasattr(tree, "_fields"):
        return f"a {type(tree).__name__} of {len(tree)}"
    return f"a {type(tree).__name__}"


def spread(
    branch: Any,
    tree: Tree,
    is_entry: Callable[[Any, Tree], bool],
    name: str,
    kind: str,
    of: str = "params",
) -> list[Any]:
    """Return the entry of each leaf of `tree`; an entry in `branch` serves a whole subtree.

    Args:
        branch: an entry, or a tree of entries in the structure of `tree`.
        tree: a tree of arrays.
        is_entry: `is_entry(branch, subtree)`, whether a branch is an entry; None must be.
        name: of `branch` in messages, such as `LBFGSB's lower`.
        kind: of an entry in messages, such as `bound`.
        of: the name of `tree` in messages.

    Raises:
        ValueError: `branch` is neither an entry nor a tree like `tree`.
    """
    if is_entry(branch, tree):
        return [branch] * len(leaves(tree))
    ours, theirs = dict(children(branch) or ()), dict(children(tree) or ())
    if isinstance(branch, (list, tuple)) and isinstance(tree, (list, tuple)):
        ours = dict(zip(theirs, branch, strict=False)) if len(branch) == len(tree) else {}
    if not theirs or ours.keys() != theirs.keys():
        expected = describe_structure(tree) if theirs else f"one {kind}"
        raise ValueError(
            f"{name} is not a tree like {of}: expected {expected}, got "
            f"{describe_structure(branch)}. None is no {kind}."
        )
    return [
        entry
        for step, child in theirs.items()
        for entry in spread(ours[step], child, is_entry, name + step, kind, of + step)
    ]

"""The arguments of a loss after its parameters, as MLX takes them: numbers are floats."""

from __future__ import annotations

import functools
import inspect
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._numbers import merged_by_cast, to_numbers
from mlxopt._operation import Function, known
from mlxopt._status import warn
from mlxopt._tree import (
    Tree,
    children,
    has_module,
    is_float,
    leaves,
    leaves_with_paths,
    numpy_dtype,
    to_numpy,
    working_dtype,
)
from mlxopt.autodiff._guards import kept_random_state


def as_data(
    data: tuple[Any, ...],
    params: Tree,
    loss: Function,
    single: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None,
    warns: bool = False,
) -> tuple[Any, ...]:
    """Return the data of `loss(params, *data)` as it takes them, in the dtype of `params`.

    NumPy arrays, lists and data frames become arrays of the working dtype of `params`, booleans
    stay booleans. Integers become floats too, whose powers neither wrap nor round to 0, except
    where the loss uses them as integers: as indices, in operations on bits, as keys of random
    numbers. Those of 8 and 16 bits are then widened to 32, unsigned ones to signed. Floating-point
    arrays of MLX, strings, None and Python numbers, which `mx.compile` holds constant, are returned
    unchanged.

    Args:
        data: the arguments of `loss` after its first.
        params: the first.
        loss: the function, which is called where integers are among the data.
        single: the arguments `(params, *data)` of one problem from data of many.
        warns: warn of a cast that merges numbers.
    """
    dtype = working_dtype(params)
    names = argument_names(loss, len(data))
    cast = Cast(dtype, warns, columns=single is None)
    items = tuple(to_data(item, cast, name) for item, name in zip(data, names, strict=True))

    def run(items: tuple[Any, ...]) -> Any:
        return loss(*(single(items) if single else (params, *items)))

    return as_floats(items, integer_leaves(run, items, dtype), cast, names)


def integers_of_batches(
    loss: Function, params: Tree, batch: tuple[Any, ...], rows: tuple[Any, ...] | None
) -> Integers:
    """Return the leaves of batches that are no numbers; warn of casts that merge the others.

    Args:
        loss: takes `(params, *batch)`.
        params: a tree of arrays.
        batch: the first.
        rows: the arrays of which batches are parts, if known: a batch has less spread.
    """
    names, cast = argument_names(loss, len(batch)), Cast(working_dtype(params), warns=True)
    here = cast._replace(warns=rows is None)
    items = tuple(to_data(item, here, name) for item, name in zip(batch, names, strict=True))
    integers = integer_leaves(lambda items: loss(params, *items), items, cast.dtype)
    as_floats(items, integers, here, names)
    for index, array in enumerate(rows or ()):
        if index not in integers and (isinstance(array, np.ndarray) or is_integer(array)):
            cast.check(np.asarray(array), names[index])
    return integers


class Cast(NamedTuple):
    """The dtype of numbers, and what is said of a cast to it."""

    dtype: mx.Dtype
    warns: bool = False  # of a cast that merges numbers
    columns: bool = True  # whether it is judged by the columns of a matrix, or by the whole

    def check(self, array: np.ndarray, name: str) -> None:
        """Warn if the cast of this array merges numbers."""
        if not self.warns:
            return
        if words := merged_by_cast(array, numpy_dtype(self.dtype), name, self.columns):
            warn(words, UserWarning)


def argument_names(function: Function, count: int) -> list[str]:
    """Return the names of the `count` arguments of a function after its first, for messages."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError):  # of C, without a signature
        parameters = []
    names = [one.name for one in parameters if one.kind <= one.POSITIONAL_OR_KEYWORD][:count]
    return names + [f"data[{index}]" for index in range(len(names), count)]


def named_leaves(function: Function, data: tuple[Any, ...]) -> list[tuple[str, Any]]:
    """Return the leaves of the data of `function(params, *data)` with their names."""
    names = argument_names(function, len(data))
    return [
        (name + path, leaf)
        for name, item in zip(names, data, strict=True)
        for path, leaf in leaves_with_paths(item)
    ]


def to_data(item: Any, cast: Cast, name: str = "data", strict: bool = True) -> Any:
    """Return a data argument with arrays of MLX in place of those of NumPy, lists and frames.

    Args:
        item: an array, a number, or a tree of them.
        cast: for floating-point numbers; integers and booleans keep their dtypes.
        name: of the argument, for messages.
        strict: False leaves everything else than NumPy's arrays and numbers as it is.

    Raises:
        TypeError: it holds something else than real numbers, or masked numbers.
    """
    # np.float64 is a float, but NumPy would do the arithmetic of np.float64 · mx.array.
    number = isinstance(item, (bool, int, float)) and not isinstance(item, np.generic)
    if item is None or number or isinstance(item, (mx.array, str)):
        return item
    convert = functools.partial(to_data, cast=cast, strict=strict)
    if isinstance(item, dict):
        if has_module(item) and not strict:
            return item
        if has_module(item):
            raise TypeError(
                f"{name} is an mlx.nn.Module ({type(item).__name__}), no array. Use it in the loss "
                f"by its name; or params, apply = mo.functional(module), and minimize over params."
            )
        return {key: convert(child, name=f"{name}[{key!r}]") for key, child in item.items()}
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        fields: Any = item
        parts = zip(fields._fields, fields, strict=True)
        return type(item)(*(convert(child, name=f"{name}.{field}") for field, child in parts))
    if isinstance(item, (list, tuple)) and (_holds_data(item) if strict else _holds_arrays(item)):
        return type(item)(convert(one, name=f"{name}[{i}]") for i, one in enumerate(item))
    if not strict and not (hasattr(item, "__array__") or hasattr(item, "toarray")):
        return item
    array = to_numbers(item, name)
    if array.dtype.kind == "f":
        cast.check(array, name)
        # By NumPy first: mx.array(float64 array) would round to float32 in any case.
        with np.errstate(over="ignore"):
            return mx.array(array.astype(numpy_dtype(cast.dtype), copy=False), dtype=cast.dtype)
    return mx.array(array)


def not_finite(items: tuple[Any, ...], names: list[str]) -> str | None:
    """Return where the first NaN or infinity in the data is, such as "X[3, 0] is nan"; else None.

    Args:
        items: the arguments of a loss after its first, as MLX takes them.
        names: of each.
    """
    for item, name in zip(items, names, strict=True):
        for path, leaf in leaves_with_paths(item):
            if not is_float(leaf):
                continue
            values = to_numpy(leaf)
            if len(places := np.argwhere(~np.isfinite(values))):
                place = tuple(places[0].tolist())
                at = f"[{', '.join(map(str, place))}]" if place else ""
                rows = len(set(places[:, 0].tolist())) if place else 1
                more = f", the first of {rows:,} such {'rows' if values.ndim > 1 else 'entries'}"
                return f"{name}{path}{at} is {values[place]}{more if rows > 1 else ''}"
    return None


def _holds_data(items: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a sequence is a tree of data, not rows of numbers."""
    # A list of NumPy arrays is rows of a table; a tuple of them is several things.
    kinds = (mx.array, dict) if isinstance(items, list) else (mx.array, dict, np.ndarray)
    frames = isinstance(items, tuple)
    return any(isinstance(one, kinds) or (frames and hasattr(one, "columns")) for one in items)


def _holds_arrays(items: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a sequence is more than numbers and strings."""
    return any(hasattr(one, "__array__") or isinstance(one, (dict, list, tuple)) for one in items)


# --- Integers ------------------------------------------------------------------------------------


Integers = dict[int, mx.Dtype]  # leaves that are no numbers, by position, and their dtypes

_WIDER: dict[mx.Dtype, mx.Dtype] = {
    **dict.fromkeys((mx.int8, mx.uint8, mx.int16, mx.uint16), mx.int32),
    **dict.fromkeys((mx.uint32, mx.uint64), mx.int64),
}


def is_integer(leaf: Any) -> bool:
    """Whether this is an array of integers."""
    return _is_array(leaf) and mx.issubdtype(leaf.dtype, mx.integer)


def _leaves(data: Tree) -> list[Any]:
    """Return the leaves of data; a module, which a tree of MLX would turn into a dict, is one."""
    below = None if has_module(data) else children(data)
    return [data] if below is None else [leaf for _, child in below for leaf in _leaves(child)]


def rebuilt(data: Tree, arrays: Iterable[Any]) -> Tree:
    """Return a tree like `data` with these leaves."""
    remaining = iter(arrays)

    def build(tree: Tree) -> Tree:
        if has_module(tree) or (below := children(tree)) is None:
            return next(remaining)
        parts = [build(child) for _, child in below]
        if isinstance(tree, dict):
            return dict(zip(tree, parts, strict=True))
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)

    return build(data)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, mx.array)


def as_floats(data: Tree, integers: Integers, cast: Cast, names: Sequence[str] = ()) -> Tree:
    """Return data with integer leaves as floats, except those of `integers`.

    Args:
        data: a tree, or a tuple of trees with these names.
        integers: the dtypes of the leaves that are no numbers.
        cast: for the others.
        names: of the parts of data, for messages.
    """
    arrays = _leaves(data)
    if not any(map(is_integer, arrays)):
        return data
    named = zip(names, data, strict=True) if names else [("data", data)]
    paths = [name + path for name, item in named for path, _ in leaves_with_paths(item)]

    def convert(index: int, leaf: Any) -> Any:
        to = integers.get(index, cast.dtype)
        if cast.warns and index not in integers and known(leaf):
            cast.check(np.asarray(leaf), paths[index])
        return leaf.astype(to, stream=mx.cpu if to == mx.float64 else None)

    return rebuilt(
        data, [convert(i, one) if is_integer(one) else one for i, one in enumerate(arrays)]
    )


def integer_leaves(run: Callable[[Tree], Any], data: Tree, dtype: mx.Dtype) -> Integers:
    """Return the leaves of `data` that `run(data)` uses as integers, and the dtypes for them.

    They are found in the graph of the result, which is not evaluated. A leaf is one of them where
    it, or integers computed from it, are indices, are taken apart into bits, or are a key of random
    numbers; and where `dtype` does not hold its numbers exactly and the result depends on their
    differences, remainders or equality.
    """
    arrays = _leaves(data)
    found: Integers = {index: leaf.dtype for index, leaf in enumerate(arrays) if is_integer(leaf)}
    if not found:
        return {}
    # uint8 cannot be multiplied by -1, say; but a key of random numbers must be uint32.
    for keys in ((), (mx.uint32,)):
        integers: Integers = {
            i: kind if kind in keys else _WIDER.get(kind, kind) for i, kind in found.items()
        }
        try:
            with kept_random_state():
                # Each leaf gets a node of its own: one array can be passed twice.
                nodes = _leaves(as_floats(data, integers, Cast(dtype)))
                named = {f"data{index}": mx.stop_gradient(nodes[index]) for index in found}
                nodes = [named.get(f"data{index}", node) for index, node in enumerate(nodes)]
                outputs = leaves(run(rebuilt(data, nodes)))
                text = io.StringIO()
                mx.export_to_dot(text, *filter(_is_array, outputs), **named)
                uses = _Uses(text.getvalue())
                kept = uses.integers | {i for i in uses.exact if not _is_exact(arrays[i], dtype)}
                integers = {index: integers[index] for index in kept}
                run(as_floats(data, integers, Cast(dtype)))
            return integers
        except Exception:  # a mistake in the loss raises again in the run
            continue
    return found


class _Uses:
    """How a graph uses the integer leaves that are its nodes data0, data1, ...

    Args:
        dot: the graph as `mx.export_to_dot` writes it, the operations in the order of evaluation.
    """

    def __init__(self, dot: str) -> None:
        self.integers: set[int] = set()
        """The leaves used as indices or bits."""
        self.exact: set[int] = set()
        """The leaves that are subtracted, compared or divided with remainder, as integers."""
        # The leaves on which the values of each node depend; and those without a change of dtype.
        self._origins: dict[str, set[int]] = {}
        self._unchanged: dict[str, set[int]] = {}
        inputs: list[str] = []
        name = ""
        for line in dot.splitlines():
            if "[label" in line:  # { 94649 [label ="Gather", shape=rectangle]; }
                name, inputs = line.split('"')[1], []
            elif line.startswith('"'):  # "x" -> 94649
                inputs.append(line.split('"')[1])
            elif '"' in line:  # 94649 -> "y", or { "y"; }, or { rank=source; "x"; }
                node = line.split('"')[1]
                if "->" in line:
                    self._follow(name, inputs, node)
                if node.startswith("data"):
                    self._origins[node] = self._unchanged[node] = {int(node[4:])}

    def _follow(self, name: str, inputs: list[str], output: str) -> None:
        """Take account of one operation."""
        if not any(node in self._origins for node in inputs):
            return
        indices = _indices(name, inputs)
        self.integers |= _union(self._origins, indices)
        unchanged = _union(self._unchanged, inputs)
        if re.search("Bit|Shift|View|Quantized", name):
            self.integers |= unchanged
        if re.search("Subtract|Equal|Remainder|FloorDivide|DivMod", name):
            self.exact |= unchanged
        if re.match("Arg|SearchSorted", name):  # indices of their own
            return
        self._origins[output] = _union(self._origins, [i for i in inputs if i not in indices])
        if not re.search("AsType|CustomTransforms", name):
            self._unchanged[output] = unchanged - _union(self._unchanged, indices)


def _indices(name: str, inputs: list[str]) -> list[str]:
    """Return the inputs of an operation that are indices."""
    if name in ("GatherMM", "GatherQMM"):
        return inputs[2:]
    if name.startswith("Gather"):
        return inputs[1:]
    if name.startswith("Scatter"):  # into the first, from the last
        return inputs[1:-1]
    return inputs[-1:] if name.startswith("DynamicSlice") else []


def _union(sets: dict[str, set[int]], nodes: list[str]) -> set[int]:
    return set().union(*(sets.get(node, ()) for node in nodes))


def _is_exact(leaf: mx.array, dtype: mx.Dtype) -> bool:
    """Whether every integer in an array is one of `dtype`."""
    digits = 53 if dtype == mx.float64 else 24
    numbers = np.asarray(leaf)
    return numbers.size == 0 or max(-int(numbers.min()), int(numbers.max())) <= 2**digits

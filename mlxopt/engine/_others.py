"""Products of matrices, gathers, scatters, joins and scans in C."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlxopt.engine import _expressions as expressions
from mlxopt.engine._graph import Node, Unsupported
from mlxopt.engine._layout import along, contiguous
from mlxopt.engine._numpy import refuse_blocks

if TYPE_CHECKING:
    from mlxopt.engine._c import Emitter


def emit(c: Emitter, i: int, node: Node) -> None:
    """Write one of these operations.

    Raises:
        Unsupported: it is none of them, or of a kind that has no C.
    """
    rule = _RULES.get(node.op)
    if rule is None:
        raise Unsupported(node.op)
    rule(c, i, node)


def _matmul(c: Emitter, i: int, node: Node) -> None:
    flags, (a, b) = node.state, node.inputs
    kind = c.order.kind[i]
    letter = "f" if node.dtype == np.float32 else "d"
    if node.dtype.kind != "f":
        raise Unsupported("Matmul of integers")
    # Strides and sizes of the operands as they are multiplied.
    (ra, ca), (rb, cb) = (
        _turned(c.place[a].strides, flags[0]),
        _turned(c.place[b].strides, flags[1]),
    )
    rows, inner = _turned(c.nodes[a].shape, flags[0])
    columns = node.shape[-1]
    if kind == "sum":
        # Rows of both are summed over: Aᵀ B.
        c.lines.append(
            f"mo_product_t_{letter}({c.base(a)}, {ca}, {ra}, {c.base(b)}, {rb}, {cb}, "
            f"rows, {node.shape[0]}, {columns}, a{i});"
        )
        return
    c.store(i)
    count = "rows" if kind == "row" else str(rows)
    shift = ["", "", ""]
    if len(node.shape) > 2:
        sizes = node.shape[:-2]
        places = [
            along(p[:-2], c.nodes[j].shape[:-2], sizes)
            for p, j in ((c.place[a].strides, a), (c.place[b].strides, b))
        ] + [contiguous(node.shape)[:-2]]
        for d, size in enumerate(sizes):
            c.lines.append(f"for (long b{d} = 0; b{d} < {size}; b{d}++)")
        shift = ["".join(f" + b{d} * {s}" for d, s in enumerate(p)) for p in places]
    c.lines.append(
        f"mo_product_{letter}({c.base(a)}{shift[0]}, {ra}, {ca}, {c.base(b, False)}{shift[1]}, "
        f"{rb}, {cb}, {count}, {inner}, {columns}, {c.base(i)}{shift[2]});"
    )


def _turned(axes: Sequence[int], transposed: bool) -> tuple[int, int]:
    """Return what belongs to the last two axes of a matrix, or of its transpose."""
    *_, rows, columns = axes
    return (columns, rows) if transposed else (rows, columns)


def _concatenate(c: Emitter, i: int, node: Node) -> None:
    own, at = c.store(i).strides, 0
    (axis,) = node.state
    for x in node.inputs:
        part = c.nodes[x]
        c.copy(c.base(i) + f" + {at * own[axis]}", own, c.base(x), c.place[x].strides, part.shape)
        at += part.shape[axis]


def _pad(c: Emitter, i: int, node: Node) -> None:
    axes, low, _ = node.state
    x, value = node.inputs
    own, size = c.store(i).strides, math.prod(node.shape)
    c.lines.append(f"for (long i = 0; i < {size}; i++) ({c.base(i)})[i] = ({c.base(value)})[0];")
    start = sum(begin * own[a] for a, begin in zip(axes, low, strict=True))
    c.copy(c.base(i) + f" + {start}", own, c.base(x), c.place[x].strides, c.nodes[x].shape)


def _slice_update(c: Emitter, i: int, node: Node) -> None:
    kind, start, _, step = node.state
    x, part = node.inputs
    own = c.store(i).strides
    c.copy(c.base(i), own, c.base(x), c.place[x].strides, node.shape)
    offset = sum(a * s for a, s in zip(start, own, strict=True))
    strides = tuple(a * s for a, s in zip(step, own, strict=True))
    target = c.base(i) + f" + {offset}"
    sign = _sign(kind, node.dtype)
    c.copy(target, strides, c.base(part), c.place[part].strides, c.nodes[part].shape, sign)


def _sign(kind: int, dtype: np.dtype) -> str:
    """Return the assignment of MLX's kind of update."""
    if kind not in (2, 4):
        raise Unsupported("an update by a product or an extremum")
    add = "|=" if dtype.kind == "b" else "+="
    return add if kind == 2 else "="


def _gather(c: Emitter, i: int, node: Node) -> None:
    axes, sizes = node.state
    x, *indices = node.inputs
    refuse_blocks(node, axes, sizes, c.nodes[x].shape)
    _indexed(c, node, i, indices, axes, (x, c.store(i).strides), "=")


def _scatter(c: Emitter, i: int, node: Node) -> None:
    kind, axes = node.state
    x, *indices, updates = node.inputs
    rank = len(node.shape)
    sizes = c.nodes[updates].shape[-rank:] if rank else ()
    refuse_blocks(node, axes, sizes, node.shape)
    if c.order.kind[i] != "sum":
        own = c.store(i).strides
        c.copy(c.base(i), own, c.base(x), c.place[x].strides, node.shape)
    sign = _sign(kind, node.dtype)
    _indexed(c, node, i, indices, axes, (updates, c.place[updates].strides), sign)


def _indexed(c: Emitter, node: Node, i: int, indices: list[int], axes: tuple, other, sign) -> None:
    """Write the loop of a gather (from the source into node i) or of a scatter (into node i).

    It runs over the indices, and for each over the axes that they do not choose.
    """
    is_gather = node.op == "Gather"
    table = other[0] if is_gather else i  # what the indices point into
    shape = c.nodes[table].shape
    strides = c.place[table].strides if is_gather else contiguous(node.shape)
    around = c.nodes[i if is_gather else other[0]].shape[: -len(shape)]
    rest = [1 if a in axes else size for a, size in enumerate(shape)]
    long = other[1]  # strides of the array of the indices' shape and then `rest`
    depth = len(around)
    c.lines.append("{")
    for d, extent in enumerate(c.extents(around)):
        c.lines.append(f"for (long j{d} = 0; j{d} < {extent}; j{d}++) {{")
    at = []
    for k, (index, axis) in enumerate(zip(indices, axes, strict=True)):
        own = along(c.place[index].strides, c.nodes[index].shape, around)
        place = " + ".join(f"j{d} * {s}" for d, s in enumerate(own) if s) or "0"
        moves = len(c.nodes[index].shape) == depth
        c.lines.append(f"long k{k} = ({c.base(index, moves)})[{place}];")
        c.lines.append(f"k{k} += k{k} < 0 ? {shape[axis]} : 0;")
        at.append(f"k{k} * {strides[axis]}")
    for a, size in enumerate(rest):
        if size > 1:
            c.lines.append(f"for (long m{a} = 0; m{a} < {size}; m{a}++)")
    inner = [f"m{a} * {strides[a]}" for a, size in enumerate(rest) if size > 1]
    outer = [f"j{d} * {long[d]}" for d in range(depth)]
    outer += [f"m{a} * {long[depth + a]}" for a, size in enumerate(rest) if size > 1]
    inside, flat = " + ".join([*at, *inner]) or "0", " + ".join(outer) or "0"
    if is_gather:
        c.lines.append(f"({c.base(i)})[{flat}] = ({c.base(table, False)})[{inside}];")
    else:
        name = f"a{i}" if c.order.kind[i] == "sum" else f"({c.base(i)})"
        c.lines.append(f"{name}[{inside}] {sign} ({c.base(other[0])})[{flat}];")
    c.lines += ["}"] * (depth + 1)


def _gather_axis(c: Emitter, i: int, node: Node) -> None:
    (axis,) = node.state
    x, index = node.inputs
    own = c.store(i).strides
    read = list(along(c.place[x].strides, c.nodes[x].shape, node.shape))
    step, read[axis] = c.place[x].strides[axis], 0
    chosen = along(c.place[index].strides, c.nodes[index].shape, node.shape)
    (to, at, of), depth = c.nest(c.extents(node.shape), [own, read, chosen])
    c.lines.append(f"long k = ({c.base(index)})[{of}];")
    c.lines.append(f"k += k < 0 ? {c.nodes[x].shape[axis]} : 0;")
    c.lines.append(f"({c.base(i)})[{to}] = ({c.base(x)})[{at} + k * {step}];")
    c.lines += ["}"] * depth


def _scatter_axis(c: Emitter, i: int, node: Node) -> None:
    kind, axis = node.state
    x, index, updates = node.inputs
    own, shape = c.store(i).strides, c.nodes[index].shape
    c.copy(c.base(i), own, c.base(x), c.place[x].strides, node.shape)
    to = [0 if a == axis else s for a, s in enumerate(own)]
    value = along(c.place[updates].strides, c.nodes[updates].shape, shape)
    (at, of, put), depth = c.nest(c.extents(shape), [value, c.place[index].strides, to])
    c.lines.append(f"long k = ({c.base(index)})[{of}];")
    c.lines.append(f"k += k < 0 ? {node.shape[axis]} : 0;")
    sign = _sign((2, 4)[kind], node.dtype)
    c.lines.append(f"({c.base(i)})[{put} + k * {own[axis]}] {sign} ({c.base(updates)})[{at}];")
    c.lines += ["}"] * depth


def _scan(c: Emitter, i: int, node: Node) -> None:
    kind, axis, reverse, inclusive = node.state
    if kind not in (2, 3):
        raise Unsupported("Scan of an extremum")
    (x,), own = node.inputs, c.store(i).strides
    shape, source = list(node.shape), c.place[x].strides
    length, shape[axis] = shape[axis], 1
    (to, at), depth = c.nest(c.extents(shape), [own, source])
    ctype = "double" if node.dtype.kind == "f" else expressions.ctype(node.dtype)
    c.lines.append(f"{ctype} s = {kind - 2};")
    c.lines.append(f"for (long n = 0; n < {length}; n++) {{")
    c.lines.append(f"const long k = {f'{length - 1} - n' if reverse else 'n'};")
    add = f"s {'+' if kind == 2 else '*'}= ({c.base(x)})[{at} + k * {source[axis]}];"
    put = f"({c.base(i)})[{to} + k * {own[axis]}] = s;"
    c.lines += [add, put] if inclusive else [put, add]
    c.lines += ["}"] * (depth + 1)


def _arg_reduce(c: Emitter, i: int, node: Node) -> None:
    kind, axis = node.state
    (x,), own = node.inputs, c.store(i).strides
    source, length = c.place[x].strides, c.nodes[x].shape[axis]
    (to, at), depth = c.nest(c.extents(node.shape), [own, source])
    entry = f"({c.base(x)})[{at} + k * {source[axis]}]"
    c.lines.append(f"long best = 0, k = 0; {expressions.ctype(c.nodes[x].dtype)} s = {entry};")
    c.lines.append(f"for (k = 1; k < {length}; k++)")
    is_first_nan = f"({entry} != {entry} & s == s)"
    c.lines.append(f"if ({entry} {'<>'[kind]} s | {is_first_nan}) s = {entry}, best = k;")
    c.lines.append(f"({c.base(i)})[{to}] = best;")
    c.lines += ["}"] * depth


_RULES = {
    "ArgReduce": _arg_reduce,
    "Concatenate": _concatenate,
    "Gather": _gather,
    "GatherAxis": _gather_axis,
    "Matmul": _matmul,
    "Pad": _pad,
    "Scan": _scan,
    "Scatter": _scatter,
    "ScatterAxis": _scatter_axis,
    "SliceUpdate": _slice_update,
}

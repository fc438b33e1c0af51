"""MLX's operations in simpler terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mlxopt.engine._graph import Node

if TYPE_CHECKING:
    from mlxopt.engine._simplify import Builder


def _astype(b: Builder, node: Node) -> int:
    return b.each("Cast", node.inputs, node.shape, node.dtype)


def _transpose(b: Builder, node: Node) -> int:
    return b.transpose(node.inputs[0], node.state[0])


def _log(b: Builder, node: Node) -> int:
    return b.each(("Log2", "Log10", "Log")[node.state[0]], node.inputs, node.shape, node.dtype)


def _sqrt(b: Builder, node: Node) -> int:
    root = b.each("Sqrt", node.inputs, node.shape, node.dtype)
    if not node.state[0]:
        return root
    return b.each("Divide", [b.constant(1, node.dtype), root], node.shape, node.dtype)


def _arange(b: Builder, node: Node) -> int:
    start, _, step = node.state
    return b.constant(start + step * np.arange(node.size), node.dtype)


def _change(b: Builder, node: Node) -> int:
    _, _, (x, held), shape, dtype = node
    return b.zero(shape, dtype) if x == held else b.each("Subtract", (x, held), shape, dtype)


def _divmod(b: Builder, node: Node) -> int:
    if node.state[-1] == 0:
        return _floor_divide(b, node)
    return b.each("Remainder", node.inputs, node.shape, node.dtype)


def _floor_divide(b: Builder, node: Node) -> int:
    _, _, inputs, shape, dtype = node
    if dtype.kind != "f":
        return b.each("FloorDivide", inputs, shape, dtype)
    # NumPy's floor_divide is another: 1.0 // 0.1 is 9.
    return b.each("Floor", [b.each("Divide", inputs, shape, dtype)], shape, dtype)


def _split(b: Builder, node: Node) -> int:
    ends, axis, index = node.state
    x = b.nodes[node.inputs[0]]
    edges = [0, *ends, x.shape[axis]]
    start, stop = [0] * len(x.shape), list(x.shape)
    start[axis], stop[axis] = edges[index], edges[index + 1]
    state = tuple(start), tuple(stop), (1,) * len(x.shape)
    return b.make("Slice", node.inputs, node.shape, node.dtype, *state)


def _slice(b: Builder, node: Node) -> int:
    x = b.nodes[node.inputs[0]]
    if x.shape == node.shape and all(by == 1 for by in node.state[2]):
        return node.inputs[0]
    if x.op == "Broadcast" and not b.nodes[x.inputs[0]].shape:
        return b.broadcast(x.inputs[0], node.shape)
    return b.make("Slice", node.inputs, node.shape, node.dtype, *node.state)


def _matmul(b: Builder, node: Node) -> int:
    flags, inputs = [], []
    for side, index in enumerate(node.inputs):
        x = b.nodes[index]
        last = len(x.shape) - 1
        swapped = (*range(last - 1), last, last - 1)
        flag = x.op == "Transpose" and x.state[0] == swapped
        index = x.inputs[0] if flag else index
        shape = b.nodes[index].shape
        # A vector is a column: the left one transposed, the right one not.
        if last == 1 and shape[0] == 1 and flag != (side == 0):
            index, flag = b.reshape(index, shape[::-1]), side == 0
        flags.append(flag)
        inputs.append(index)
    if node.shape == (1, 1):
        size = b.nodes[inputs[0]].size
        one, two = (b.reshape(i, (size,)) for i in inputs)
        terms = b.each("Multiply", [one, two], (size,), node.dtype)
        total = _reduce(b, Node("Reduce", (2, (0,)), (terms,), (1,), node.dtype))
        return b.reshape(total, (1, 1))
    return b.make("Matmul", inputs, node.shape, node.dtype, *flags)


def _addmm(b: Builder, node: Node) -> int:
    left, right, c = node.inputs
    alpha, beta = node.state
    _, _, _, shape, dtype = node
    product = _matmul(b, Node("Matmul", (), (left, right), shape, dtype))
    scaled = b.each("Multiply", [product, b.constant(alpha, dtype)], shape, dtype)
    rest = b.each("Multiply", [c, b.constant(beta, dtype)], shape, dtype)
    return b.each("Add", [scaled, rest], shape, dtype)


def _reduce(b: Builder, node: Node) -> int:
    (x,), (kind, axes) = node.inputs, node.state
    whole = b.nodes[x]
    if not axes or all(whole.shape[a] == 1 for a in axes):
        return b.each("Cast", [x], node.shape, node.dtype) if whole.dtype != node.dtype else x
    source = b.nodes[b.source(x)]
    if whole.op == "Broadcast" and not source.shape and node.dtype == whole.dtype:
        count = whole.size // max(node.size, 1)
        if kind in (4, 5):
            return b.broadcast(whole.inputs[0], node.shape)
        if kind == 2:
            number = b.constant(count, node.dtype)
            return b.each("Multiply", [whole.inputs[0], number], node.shape, node.dtype)
    return b.make("Reduce", [x], node.shape, node.dtype, kind, axes)


def _over_last(b: Builder, op: str, x: int, dtype: np.dtype) -> int:
    shape = b.nodes[x].shape
    kind = {"Max": 5, "Sum": 2}[op]
    node = Node("Reduce", (kind, (len(shape) - 1,)), (x,), (*shape[:-1], 1), dtype)
    return _reduce(b, node)


def _softmax(b: Builder, node: Node) -> int:
    (x,), shape, dtype = node.inputs, node.shape, node.dtype
    shifted = b.each("Subtract", [x, _over_last(b, "Max", x, dtype)], shape, dtype)
    terms = b.each("Exp", [shifted], shape, dtype)
    return b.each("Divide", [terms, _over_last(b, "Sum", terms, dtype)], shape, dtype)


def _logsumexp(b: Builder, node: Node) -> int:
    (x,), dtype = node.inputs, node.dtype
    shape, short = b.nodes[x].shape, node.shape
    top = _over_last(b, "Max", x, dtype)
    # A row of -inf alone has no difference to itself.
    size, infinity = b.each("Abs", [top], short, dtype), b.constant(np.inf, dtype)
    finite = b.each("Less", [size, infinity], short, np.dtype(bool))
    shift = b.each("Select", [finite, top, b.constant(0, dtype)], short, dtype)
    terms = b.each("Exp", [b.each("Subtract", [x, shift], shape, dtype)], shape, dtype)
    total = b.each("Log", [_over_last(b, "Sum", terms, dtype)], short, dtype)
    return b.each("Add", [total, shift], short, dtype)


def _gather(b: Builder, node: Node) -> int:
    axes, sizes = node.state
    x, *indices = node.inputs
    numbers = [b.number(i) for i in indices]
    if any(number is None for number in numbers):
        return b.make("Gather", node.inputs, node.shape, node.dtype, *node.state)
    shape = b.nodes[x].shape
    start, stop = [0] * len(shape), list(sizes)
    for axis, number in zip(axes, numbers, strict=True):
        first = int(number or 0)
        start[axis] = first + shape[axis] * (first < 0)
        stop[axis] = start[axis] + sizes[axis]
    state = tuple(start), tuple(stop), (1,) * len(shape)
    return _slice(b, Node("Slice", state, (x,), node.shape, node.dtype))


RULES: dict[str, Callable[[Builder, Node], int]] = {
    "AddMM": _addmm,
    "Arange": _arange,
    "AsType": _astype,
    "Change": _change,
    "DivMod": _divmod,
    "FloorDivide": _floor_divide,
    "Gather": _gather,
    "Log": _log,
    "LogSumExp": _logsumexp,
    "Matmul": _matmul,
    "Reduce": _reduce,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _sqrt,
    "Transpose": _transpose,
}

"""Which operations run in one pass over the rows, and in which order.

Most losses work on the rows of data: `X @ w`, functions of each row, then sums over all of them.
All that has the rows as its first axis is computed for a strip of some hundred rows at a time, so
that X is read once and what lies between stays in the cache. A sum over rows is known when its
pass is over; what depends on it belongs to the next.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from mlxopt.engine._graph import Graph, Node
from mlxopt.engine._numpy import is_elementwise

VIEWS = ("Reshape", "Slice", "Transpose")
_LEAST = 2  # rows


class Schedule(NamedTuple):
    """The order of a graph. Pass i: first the operations `whole[i]`, then those of `rows[i]`."""

    n: int  # rows; 0 where there is no pass over them
    whole: list[list[int]]
    rows: list[list[int]]
    kind: list[str]  # of each node: "whole", "row", or "sum" over rows
    kept: set[int]  # nodes of kind "row" that are needed as a whole


def schedule(graph: Graph) -> Schedule:
    """Return the order in which a graph is computed."""
    nodes = graph.nodes
    count = _rows(graph)
    kind: list[str] = []
    level: list[int] = []
    kept: set[int] = set()
    for node in nodes:
        found = _kind(nodes, kind, node, count)
        at = 0
        for i in node.inputs:
            # A sum is known after its pass, and so is a whole array of rows.
            late = kind[i] == "sum" or (kind[i] == "row" and found == "whole")
            at = max(at, level[i] + late)
        for i in node.inputs:
            if kind[i] == "row" and (found == "whole" or level[i] < at):
                _keep(nodes, kind, kept, i)
        kind.append(found)
        level.append(at)
    for i in graph.outputs:
        if kind[i] == "row":
            _keep(nodes, kind, kept, i)
    passes = max(level, default=0) + 1
    whole: list[list[int]] = [[] for _ in range(passes + 1)]
    rows: list[list[int]] = [[] for _ in range(passes + 1)]
    for i, node in enumerate(nodes):
        if node.op not in ("Input", "Constant"):
            (whole if kind[i] == "whole" else rows)[level[i]].append(i)
    return Schedule(count, whole, rows, kind, kept)


def _keep(nodes: list[Node], kind: list[str], kept: set[int], i: int) -> None:
    """Note that a node is needed as a whole; for a view, what it looks at."""
    kept.add(i)
    if nodes[i].op in VIEWS and kind[nodes[i].inputs[0]] == "row":
        _keep(nodes, kind, kept, nodes[i].inputs[0])


def _rows(graph: Graph) -> int:
    """Return the length of the first axis of most of the work."""
    work: Counter[int] = Counter()
    for node in graph.nodes:
        if node.op == "Matmul":
            left, right = (graph.nodes[i] for i in node.inputs)
            if len(left.shape) == len(right.shape) == 2:
                work[left.shape[0]] += left.size * node.shape[1]
        elif node.shape and (is_elementwise(node) or node.op == "Reduce"):
            operand = graph.nodes[node.inputs[0]] if node.op == "Reduce" else node
            if operand.shape:
                work[operand.shape[0]] += operand.size
    if not work:
        return 0
    count, _ = work.most_common(1)[0]
    return count if count >= _LEAST else 0


def _kind(nodes: list[Node], kind: list[str], node: Node, n: int) -> str:
    """Return "row", "sum" or "whole" for a node whose operands are classified."""
    op, state, inputs, shape, _ = node
    x = [nodes[i] for i in inputs]
    if not n or op in ("Input", "Constant"):
        return "whole"
    has_rows = bool(shape) and shape[0] == n
    if op in VIEWS:
        if kind[inputs[0]] != "row":
            return "whole"
        return "row" if _keeps_rows(node, x[0], n) else "whole"
    if is_elementwise(node) or op == "Broadcast":
        fits = all(kind[i] != "row" or len(nodes[i].shape) == len(shape) for i in inputs)
        return "row" if has_rows and fits else "whole"
    if op == "Matmul" and len(shape) == 2:
        (transposed, other), (a, b) = state, x
        if not transposed and a.shape[0] == n and kind[inputs[1]] != "row":
            return "row"
        both = transposed and not other and a.shape[0] == b.shape[0] == n
        return "sum" if both else "whole"
    if op in ("Reduce", "ArgReduce"):
        axes = state[1] if op == "Reduce" else (state[1],)
        if not x[0].shape or x[0].shape[0] != n:
            return "whole"
        if 0 not in axes:
            return "row"
        return "sum" if op == "Reduce" else "whole"
    if not has_rows and op != "Scatter":
        return "whole"
    if op == "Gather":
        one = len(inputs) == 2 and len(x[1].shape) == 1 and x[1].shape[0] == n
        return "row" if one and state[0] == (0,) and kind[inputs[0]] != "row" else "whole"
    if op == "GatherAxis":
        return "row" if state[0] > 0 else "whole"
    if op == "Concatenate":
        return "row" if state[0] > 0 else "whole"
    if op == "Scatter" and state == (2, (0,)) and len(inputs) == 3:
        one = len(x[1].shape) == 1 and x[1].shape[0] == n == x[2].shape[0]
        return "sum" if one and kind[inputs[0]] != "row" else "whole"
    return "whole"


def _keeps_rows(node: Node, x: Node, n: int) -> bool:
    if not node.shape or node.shape[0] != n or x.shape[0] != n:
        return False
    if node.op == "Transpose":
        return node.state[0][0] == 0
    if node.op == "Slice":
        start, stop, strides = node.state
        return (start[0], stop[0], strides[0]) == (0, n, 1)
    return True


def strip(graph: Graph, found: Schedule) -> int:
    """Return the number of rows of a strip: what is read and written of them fits in the cache."""
    width = 1
    for node in graph.nodes:
        if node.shape and node.shape[0] == found.n and node.op in ("Input", "Matmul"):
            width = max(width, node.size // found.n * node.dtype.itemsize)
    size = int(np.clip(2**16 // width, 32, 256))
    return min(found.n, size)

"""A graph rewritten with fewer and simpler operations.

A `Graph` is rebuilt an operation at a time; each is put in simpler terms, folded if its operands
are constants, and not repeated if it is there already. After it:

- An operation entry by entry takes operands that broadcast, and works at the smallest shape.
- `Broadcast` is left only where another operation needs the whole array.
- Reshape stands for every change of shape alone; aliases are gone.
- Matmul has two flags that transpose its operands, which then are no Transpose.
- `x - -(-x)` is zero, whatever x is: derivatives of functions from `mlxopt.special` are written so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxopt.engine._graph import Graph, Node, Unsupported
from mlxopt.engine._numpy import ELEMENTWISE, apply
from mlxopt.engine._rules import RULES
from mlxopt.engine._schedule import VIEWS

_FOLDED = 2**16  # entries of a constant, up to which it is computed beforehand
_RESHAPES = ("ExpandDims", "Squeeze", "Flatten", "Unflatten", "Reshape")
_OF_BOOLEANS = {"Add": "LogicalOr", "Multiply": "LogicalAnd", "Subtract": "NotEqual"}
_OF_ZERO = (*VIEWS, "Matmul", "Reduce")  # zero where an operand is Zero
_ALIASES = ("Contiguous", "Copy", "StopGradient", "Depends")


def simplified(graph: Graph) -> Graph:
    """Return a graph with the same results, without operations that none of them needs."""
    builder = Builder()
    places: list[int] = []
    for node in graph.nodes:
        if node.op == "Subtract" and _is_held(graph, node.inputs[1]):
            node = node._replace(op="Change")
        places.append(builder.take(node._replace(inputs=tuple(places[i] for i in node.inputs))))
    return _pruned(Graph(builder.nodes, [builder.plain(places[i]) for i in graph.outputs]))


def _is_held(graph: Graph, i: int) -> bool:
    """Whether a node is written -(-x)."""
    node = graph.nodes[i]
    return node.op == "Negative" and graph.nodes[node.inputs[0]].op == "Negative"


def _pruned(graph: Graph) -> Graph:
    """Return the graph without nodes that no output needs; inputs stay."""
    needed, ahead = set(), list(graph.outputs)
    while ahead:
        index = ahead.pop()
        if index not in needed:
            needed.add(index)
            ahead += graph.nodes[index].inputs
    kept = [i for i, node in enumerate(graph.nodes) if i in needed or node.op == "Input"]
    place = {old: new for new, old in enumerate(kept)}
    nodes = [
        graph.nodes[i]._replace(inputs=tuple(place[j] for j in graph.nodes[i].inputs)) for i in kept
    ]
    return Graph(nodes, [place[i] for i in graph.outputs])


class Builder:
    """The graph so far; the methods return the index of the node with the wanted result."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[Any, int] = {}

    # --- the parts ---------------------------------------------------------------------------

    def _add(self, node: Node) -> int:
        key: Any = node
        if node.op == "Constant":
            values = node.state[0]
            key = ("Constant", values.dtype, values.shape, values.tobytes())
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(node)
        return self._known[key]

    def constant(self, values: Any, dtype: np.dtype) -> int:
        array = np.asarray(values, dtype=dtype)
        if array.size > 1 and (array == array.flat[0]).all():
            return self.broadcast(self.constant(array.flat[0], dtype), array.shape)
        return self._add(Node("Constant", (array,), (), array.shape, dtype))

    def make(self, op: str, inputs: Sequence[int], shape: Any, dtype: np.dtype, *state: Any) -> int:
        """Return a node; it is computed now if its operands are constants."""
        if op in _OF_ZERO and any(map(self.is_zero, inputs)):
            return self.zero(shape, dtype)
        node = Node(op, state, tuple(map(self.plain, inputs)), tuple(shape), dtype)
        operands = [self.nodes[i] for i in node.inputs]
        if node.size <= _FOLDED and all(each.op == "Constant" for each in operands):
            return self.constant(apply(node, *(each.state[0] for each in operands)), dtype)
        return self._add(node)

    def broadcast(self, index: int, shape: tuple[int, ...]) -> int:
        index = self.source(index)
        node = self.nodes[index]
        if node.size == 1 and node.shape:
            index = self.reshape(index, ())
            node = self.nodes[index]
        if node.shape == shape:
            return index
        if node.op == "Zero":
            return self.zero(shape, node.dtype)
        return self._add(Node("Broadcast", (), (index,), shape, node.dtype))

    def zero(self, shape: Any, dtype: np.dtype) -> int:
        """Return the node that is zero whatever it is multiplied by."""
        return self._add(Node("Zero", (), (), tuple(shape), dtype))

    def source(self, index: int) -> int:
        """Return what a Broadcast repeats, and any other node itself."""
        node = self.nodes[index]
        return node.inputs[0] if node.op == "Broadcast" else index

    def reshape(self, index: int, shape: tuple[int, ...]) -> int:
        node = self.nodes[index]
        if node.shape == shape:
            return index
        if node.op == "Reshape":
            return self.reshape(node.inputs[0], shape)
        if node.op == "Broadcast" and not self.nodes[node.inputs[0]].shape:
            return self.broadcast(node.inputs[0], shape)
        return self.make("Reshape", (index,), shape, node.dtype)

    def transpose(self, index: int, axes: tuple[int, ...]) -> int:
        node = self.nodes[index]
        shape = tuple(node.shape[a] for a in axes)
        if axes == tuple(sorted(axes)):
            return index
        if node.op == "Transpose":
            return self.transpose(node.inputs[0], tuple(node.state[0][a] for a in axes))
        if node.op == "Broadcast" and not self.nodes[node.inputs[0]].shape:
            return self.broadcast(node.inputs[0], shape)
        if [a for a in axes if node.shape[a] > 1] == [
            a for a in range(len(axes)) if node.shape[a] > 1
        ]:
            return self.reshape(index, shape)  # only axes of length one have moved
        return self.make("Transpose", (index,), shape, node.dtype, axes)

    def each(self, op: str, inputs: Sequence[int], shape: Any, dtype: np.dtype) -> int:
        """Return an operation entry by entry, of the smallest shape, broadcast to `shape`."""
        operands = [self.source(i) for i in inputs]
        small = np.broadcast_shapes(*(self.nodes[i].shape for i in operands))
        found = self._each(op, operands, small, dtype)
        return self.broadcast(found, tuple(shape))

    def _each(self, op: str, x: list[int], shape: tuple[int, ...], dtype: np.dtype) -> int:
        same = [self.nodes[i].shape == shape for i in x]
        number = [self.number(i) for i in x]
        if op == "Multiply":
            for this, other in ((0, 1), (1, 0)):
                if number[this] == 1 and same[other]:
                    return x[other]
                if self.is_zero(x[this]):
                    return self.zero(shape, dtype)
            x = sorted(x)
        elif op == "Add":
            for this, other in ((0, 1), (1, 0)):
                if number[this] == 0 or self.is_zero(x[this]):
                    return self.broadcast(x[other], shape)
            x = sorted(x)
            joined = self._joined(*x)
            if joined is not None:
                return joined
        elif op == "Subtract":
            if number[1] == 0 or self.is_zero(x[1]):
                return self.broadcast(x[0], shape)
        elif op == "Divide":
            if self.is_zero(x[0]):
                return self.zero(shape, dtype)
            if number[1] == 1 and same[0]:
                return x[0]
            if number[1] and math.frexp(number[1])[0] == 0.5:
                return self._each(
                    "Multiply", [x[0], self.constant(1 / number[1], dtype)], shape, dtype
                )
        elif op == "Power":
            simple = self._power(x[0], number[1], shape, dtype) if same[0] else None
            if simple is not None:
                return simple
            if dtype.kind != "f" and (number[1] is None or number[1] < 0):
                raise Unsupported("Power of integers")  # NumPy has no negative ones
        elif op in ("Negative", "Cast") and self.is_zero(x[0]):
            return self.zero(shape, dtype)
        elif op == "Negative" and self.nodes[x[0]].op == "Negative":
            return self.nodes[x[0]].inputs[0]
        operands = [self.source(self.plain(i)) for i in x]
        small = np.broadcast_shapes(*(self.nodes[i].shape for i in operands))
        return self.broadcast(self.make(op, operands, small, dtype), shape)

    def plain(self, index: int) -> int:
        """Return a node that can be computed: zeros for Zero."""
        node = self.nodes[index]
        if node.op != "Zero":
            return index
        return self.broadcast(self.constant(0, node.dtype), node.shape)

    def _power(self, x: int, power: float | None, shape: Any, dtype: np.dtype) -> int | None:
        match power:
            case 0.0:
                return self.broadcast(self.constant(1, dtype), shape)
            case 1.0:
                return x
            case 2.0:
                return self._each("Square", [x], shape, dtype)
            case 3.0:
                return self._each(
                    "Multiply", [x, self._each("Square", [x], shape, dtype)], shape, dtype
                )
            case 0.5 if dtype.kind == "f":
                root = self._each("Sqrt", [x], shape, dtype)
                ends = [self.constant(sign * np.inf, dtype) for sign in (-1, 1)]
                at_end = self._each("Equal", [x, ends[0]], shape, np.dtype(bool))
                return self._each("Select", [at_end, ends[1], root], shape, dtype)
            case -1.0 if dtype.kind == "f":
                return self._each("Divide", [self.constant(1, dtype), x], shape, dtype)
        return None

    def number(self, index: int) -> float | None:
        node = self.nodes[index]
        return float(node.state[0]) if node.op == "Constant" and not node.shape else None

    def is_zero(self, index: int) -> bool:
        return self.nodes[index].op == "Zero"

    def _joined(self, a: int, b: int) -> int | None:
        """Return A (b + c) for A b + A c, which reads A once, where both are matrix products."""
        outer = self.nodes[a]
        bare = [self.nodes[i].inputs[0] if self.nodes[i].op == "Reshape" else i for i in (a, b)]
        one, two = (self.nodes[i] for i in bare)
        if not (one.op == two.op == "Matmul" and one.state == two.state and one.shape == two.shape):
            return None
        first = next((k for k in (0, 1) if one.inputs[k] == two.inputs[k]), None)
        if first is None or bare[0] == bare[1]:
            return None
        others = [one.inputs[1 - first], two.inputs[1 - first]]
        like = self.nodes[others[0]]
        if like.shape != self.nodes[others[1]].shape:
            return None
        total = self.each("Add", others, like.shape, like.dtype)
        pair = [0, 0]
        pair[first], pair[1 - first] = one.inputs[first], total
        return self.reshape(
            self.make("Matmul", pair, one.shape, one.dtype, *one.state), outer.shape
        )

    # --- MLX's operations --------------------------------------------------------------------

    def take(self, node: Node) -> int:
        """Return MLX's operation `node`, whose inputs are nodes of this graph."""
        op, state, x, shape, dtype = node
        if op in ("Input", "Constant"):
            return self.constant(state[0], dtype) if op == "Constant" else self._add(node)
        if op in _ALIASES or (op == "AsType" and self.nodes[x[0]].dtype == dtype):
            return x[0]
        if op in _RESHAPES:
            return self.reshape(x[0], shape)
        if op in ("Broadcast", "Full"):
            return self.broadcast(x[0], shape)
        if rule := RULES.get(op):
            return rule(self, node)
        if op in ELEMENTWISE or op == "Select":
            op = _OF_BOOLEANS.get(op, op) if dtype.kind == "b" else op
            if state not in ((), (False,)):
                raise Unsupported(f"{op}{state}")
            return self.each(op, x, shape, dtype)
        return self.make(op, x, shape, dtype, *state)

"""A graph as straight-line NumPy calls that write into arrays made beforehand.

It needs no compiler, is as fast as NumPy by hand, and exact in float64. Sums of float32 numbers are
added up in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlxopt.engine._graph import Graph, Node
from mlxopt.engine._numpy import ELEMENTWISE, apply, reduction, slices
from mlxopt.engine._schedule import VIEWS

Plan = Callable[..., None]

# In ns: an operation, and an entry of it; functions of an entry cost more than arithmetic.
_CALL, _ENTRY, _FUNCTION = 700.0, 0.5, 10.0
_ARITHMETIC = {"Abs", "Add", "Broadcast", "Cast", "Divide", "Maximum", "Minimum", "Multiply"}
_ARITHMETIC |= {"Negative", "Reduce", "Reshape", "Select", "Slice", "Square", "Subtract"}
_ARITHMETIC |= {"Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual", "Transpose"}


def plan(graph: Graph) -> tuple[Plan, list[np.ndarray]]:
    """Return a function `run(*inputs)` of NumPy arrays, and the arrays that it writes results to.

    Raises:
        Unsupported: an operation is not known.
    """
    names: dict[str, Any] = {}
    arrays: dict[int, np.ndarray] = {}  # those that are there before a call
    lines: list[str] = []

    def use(i: int) -> str:
        if i in arrays:
            names[f"t{i}"] = arrays[i]
        return f"t{i}"

    def own(i: int) -> None:
        arrays[i] = np.zeros(graph.nodes[i].shape, graph.nodes[i].dtype)

    inputs = []
    for i, node in enumerate(graph.nodes):
        x = node.inputs
        if node.op == "Input":
            inputs.append(f"t{i}")
        elif node.op == "Constant":
            arrays[i] = node.state[0]
        elif node.op in VIEWS and all(j in arrays for j in x):
            found = apply(node, arrays[x[0]])
            copied = node.op == "Reshape" and not np.shares_memory(found, arrays[x[0]])
            if copied and graph.nodes[x[0]].op != "Constant":
                own(i)
                lines.append(f"{use(i)}[...] = {use(x[0])}.reshape({node.shape})")
            else:
                arrays[i] = found
        elif node.op in ELEMENTWISE:
            own(i)
            names[node.op] = ELEMENTWISE[node.op]
            operands = ", ".join(use(j) for j in x)
            lines.append(f"{node.op}({operands}, out={use(i)}, casting='unsafe')")
        elif node.op in ("Cast", "Broadcast"):
            own(i)
            names["copyto"] = np.copyto
            lines.append(f"copyto({use(i)}, {use(x[0])}, casting='unsafe')")
        elif node.op == "Reduce":
            own(i)
            names[f"reduce{i}"] = reduction(node, graph.nodes[x[0]].dtype)
            lines.append(f"reduce{i}({use(x[0])}, {use(i)})")
        elif node.op == "Matmul":
            own(i)
            names["matmul"] = np.matmul
            left, right = (use(j) + ".mT" * flag for j, flag in zip(x, node.state, strict=True))
            lines.append(f"matmul({left}, {right}, out={use(i)})")
        elif node.op in VIEWS:
            lines.append(f"t{i} = {_view(node, use(x[0]), names, i)}")
        else:
            names[f"node{i}"], names["apply"] = node, apply
            lines.append(f"t{i} = apply(node{i}, {', '.join(use(j) for j in x)})")
    results = []
    for i in graph.outputs:
        node = graph.nodes[i]
        # MLX takes no arrays with negative strides, those of one entry included.
        if i in arrays and node.op != "Constant" and min(arrays[i].strides, default=0) >= 0:
            results.append(arrays[i])
            continue
        results.append(np.zeros(node.shape, node.dtype))
        names[f"out{len(results)}"] = results[-1]
        lines.append(f"out{len(results)}[...] = {use(i)}")
    body = "\n".join(f"    {line}" for line in lines or ["pass"])
    text = f"def run({', '.join(inputs)}):\n{body}\n"
    exec(compile(text, "<plan of a loss>", "exec"), names)
    return np.errstate(all="ignore")(names["run"]), results


def _view(node: Node, x: str, names: dict[str, Any], i: int) -> str:
    if node.op == "Reshape":
        return f"{x}.reshape({node.shape})"
    if node.op == "Transpose":
        return f"{x}.transpose({node.state[0]})"
    names[f"slices{i}"] = slices(*node.state)
    return f"{x}[slices{i}]"


def cost(graph: Graph) -> float:
    """Return a rough time of a plan in ns, the same on every machine."""
    total = 0.0
    for node in graph.nodes:
        if node.op in ("Input", "Constant"):
            continue
        size = max([node.size, *(graph.nodes[i].size for i in node.inputs)])
        if node.op == "Matmul":
            left = graph.nodes[node.inputs[0]]
            size = left.size * node.shape[-1] // 4
        entry = _ENTRY if node.op in _ARITHMETIC or node.op == "Matmul" else _FUNCTION
        total += _CALL + entry * size
    return total

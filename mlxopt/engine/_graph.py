"""The graph that MLX traces of a function, as a list of operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._operation import Function

DTYPES = {
    mx.bool_: np.dtype(np.bool_),
    mx.uint8: np.dtype(np.uint8),
    mx.uint16: np.dtype(np.uint16),
    mx.uint32: np.dtype(np.uint32),
    mx.uint64: np.dtype(np.uint64),
    mx.int8: np.dtype(np.int8),
    mx.int16: np.dtype(np.int16),
    mx.int32: np.dtype(np.int32),
    mx.int64: np.dtype(np.int64),
    mx.float32: np.dtype(np.float32),
    mx.float64: np.dtype(np.float64),
}


class Unsupported(Exception):
    """The function has an operation that the engine leaves to MLX; the message names it."""


class Node(NamedTuple):
    """An operation with one result."""

    op: str  # MLX's name of the primitive; "Input" and "Constant" beside those
    state: tuple[Any, ...]  # its own arguments; the index of an input, the array of a constant
    inputs: tuple[int, ...]  # indices of nodes
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class Graph(NamedTuple):
    """Operations in an order in which each follows its inputs."""

    nodes: list[Node]
    outputs: list[int]  # indices of nodes


def trace(function: Function, arguments: Sequence[mx.array]) -> Graph:
    """Return the graph of `function(*arguments)`, which returns a list of arrays.

    Raises:
        Unsupported: MLX cannot export an operation, or an array has another dtype.
    """
    events: list[dict[str, Any]] = []
    try:
        mx.export_function(events.append, function, *arguments)
    except MemoryError as error:  # of a group of processes, as which MLX reads another number
        raise Unsupported("an operation over processes") from error
    except (ValueError, RuntimeError) as error:
        if "Unable to get state for primitive" not in str(error):
            raise
        raise Unsupported(str(error).rsplit(" ", 1)[-1]) from error
    nodes: list[Node] = []
    place: dict[str, int] = {}
    outputs: list[str] = []

    def add(name: str, node: Node) -> None:
        place[name] = len(nodes)
        nodes.append(node)

    for event in events:
        kind = event["type"]
        if kind == "inputs":
            for index, (name, shape, dtype) in enumerate(event["inputs"]):
                add(name, Node("Input", (index,), (), tuple(shape), _dtype(dtype)))
        elif kind == "outputs":
            outputs = [name for name, *_ in event["outputs"]]
        elif kind == "constants":
            for name, array in event["constants"]:
                dtype = _dtype(array.dtype)
                values = np.array(array)
                add(name, Node("Constant", (values,), (), values.shape, dtype))
        elif kind == "primitive":
            missing = [name for name, *_ in event["inputs"] if name not in place]
            if missing:  # MLX 0.32 loses inputs of some second derivatives that are mapped
                raise Unsupported("an operation whose input MLX has lost")
            inputs = tuple(place[name] for name, *_ in event["inputs"])
            found = event["outputs"]
            for index, (name, shape, dtype) in enumerate(found):
                state = (*event["arguments"], index) if len(found) > 1 else event["arguments"]
                add(name, Node(event["name"], _frozen(state), inputs, tuple(shape), _dtype(dtype)))
    return Graph(nodes, [place[name] for name in outputs])


def _dtype(dtype: mx.Dtype) -> np.dtype:
    if dtype not in DTYPES:
        raise Unsupported(str(dtype).rsplit(".", 1)[-1])
    return DTYPES[dtype]


def _frozen(state: Any) -> tuple[Any, ...]:
    """Return a state whose lists are tuples, so that it can be a key."""
    return tuple(_frozen(item) if isinstance(item, (list, tuple)) else item for item in state)

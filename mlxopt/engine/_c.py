"""C source from a graph: one function, a loop for each run of operations entry by entry.

The function reads and writes through tables of pointers, and keeps what lies between in a work
space. Sums are added up in double. The rows are taken a strip at a time, see `_schedule.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mlxopt.engine import _expressions as expressions
from mlxopt.engine import _others
from mlxopt.engine._graph import Graph, Node, Unsupported
from mlxopt.engine._layout import along, collapsed, contiguous, reshaped
from mlxopt.engine._numpy import is_elementwise
from mlxopt.engine._schedule import VIEWS, Schedule, schedule, strip

_ALIGNED = 64  # bytes


class Source(NamedTuple):
    """A function in C: `void run(void **in, void **out, char *work)`."""

    text: str
    work: int  # bytes of the work space
    constants: list[np.ndarray]  # passed after the inputs, so that other values compile nothing


class _Place(NamedTuple):
    """Where the entries of an array lie: `name[offset + Σ index · stride]`."""

    name: str
    offset: int
    strides: tuple[int, ...]
    is_strip: bool = False  # holds the rows of the strip alone


def generate(graph: Graph) -> Source:
    """Return the source of a simplified graph.

    Raises:
        Unsupported: an operation has no C.
    """
    return Emitter(graph, schedule(graph)).source()


class Emitter:
    def __init__(self, graph: Graph, order: Schedule) -> None:
        self.graph, self.order = graph, order
        self.nodes = graph.nodes
        self.strip = strip(graph, order) if order.n else 0
        self.head: list[str] = []
        self.lines: list[str] = []
        self.work = 0
        self.constants: list[np.ndarray] = []
        self.place: dict[int, _Place] = {}
        self.in_rows = False  # whether a pass over rows is being written
        self.inputs = sum(node.op == "Input" for node in self.nodes)
        self.readers: list[set[int]] = [set() for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in node.inputs:
                self.readers[j].add(i)
        self.direct = self._direct_outputs()

    def source(self) -> Source:
        for i, node in enumerate(self.nodes):
            if node.op in ("Input", "Constant"):
                self._operand(i, node)
        for whole, rows in zip(self.order.whole, self.order.rows, strict=True):
            self._block(whole)
            if rows:
                self._pass(rows)
        self._copy_outputs()
        body = "\n".join(f"  {line}" for line in [*self.head, *self.lines])
        text = f"void run(void **in, void **out, char *work)\n{{\n{body}\n}}\n"
        return Source(text, self.work, self.constants)

    # --- storage -----------------------------------------------------------------------------

    def _direct_outputs(self) -> dict[int, int]:
        """Return the nodes computed in the place of an output, with its number."""
        found: dict[int, int] = {}
        for number, i in enumerate(self.graph.outputs):
            if i not in found and self.nodes[i].op not in ("Input", "Constant", *VIEWS):
                found[i] = number
        return found

    def _operand(self, i: int, node: Node) -> None:
        """Name an input or a constant."""
        ctype, name = expressions.ctype(node.dtype), f"t{i}"
        strides = contiguous(node.shape)
        if node.op == "Input":
            self.head.append(f"const {ctype} *{name} = in[{node.state[0]}];")
        else:
            self.head.append(f"const {ctype} *{name} = in[{self.inputs + len(self.constants)}];")
            self.constants.append(np.ascontiguousarray(node.state[0]))
        if not node.shape:
            self.head.append(f"const {ctype} k{i} = *{name};")
        self.place[i] = _Place(name, 0, strides)

    def store(self, i: int) -> _Place:
        """Give a node a place for its entries."""
        if i not in self.place:
            node = self.nodes[i]
            is_strip = self.order.kind[i] == "row" and i not in self.order.kept
            shape = (self.strip, *node.shape[1:]) if is_strip else node.shape
            ctype, name = expressions.ctype(node.dtype), f"t{i}"
            if i in self.direct:
                self.head.append(f"{ctype} *{name} = out[{self.direct[i]}];")
                is_strip = False
            else:
                self._allocate(name, ctype, math.prod(shape), node.dtype.itemsize)
            self.place[i] = _Place(name, 0, contiguous(node.shape), is_strip)
        return self.place[i]

    def _allocate(self, name: str, ctype: str, size: int, itemsize: int) -> None:
        self.head.append(f"{ctype} *restrict {name} = ({ctype} *)(work + {self.work});")
        self.work += -(-size * itemsize // _ALIGNED) * _ALIGNED

    def base(self, i: int, moves: bool = True) -> str:
        """Return the first entry of a node as C; that of the strip, if it `moves` with the rows."""
        place, node = self.place[i], self.nodes[i]
        terms = [place.name] + ([str(place.offset)] if place.offset else [])
        n = self.order.n
        if self.in_rows and moves and not place.is_strip and node.shape and node.shape[0] == n:
            terms.append(f"r0 * {place.strides[0]}")
        return " + ".join(terms)

    def extents(self, shape: Sequence[int]) -> list[str]:
        """Return the lengths of the axes as C: `rows` for the first in a pass over rows."""
        sizes = [str(size) for size in shape]
        if self.in_rows:
            sizes[0] = "rows"
        return sizes

    # --- order -------------------------------------------------------------------------------

    def _pass(self, members: list[int]) -> None:
        n = self.order.n
        sums = [i for i in members if self.order.kind[i] == "sum"]
        for i in sums:
            self._begin_sum(i)
        self.lines.append(f"for (long r0 = 0; r0 < {n}; r0 += {self.strip}) {{")
        self.lines.append(f"const long rows = r0 + {self.strip} < {n} ? {self.strip} : {n} - r0;")
        self.in_rows = True
        self._block(members)
        self.in_rows = False
        self.lines.append("}")
        for i in sums:
            self._end_sum(i)

    def _block(self, members: list[int]) -> None:
        """Write these operations, those entry by entry and of one shape in one loop."""
        waiting = list(members)
        done: set[int] = set()
        inside = set(members)

        def ready(i: int) -> bool:
            return all(j not in inside or j in done for j in self.nodes[i].inputs)

        while waiting:
            # First what is not a loop of this kind, so that loops grow as long as they can.
            single = next((i for i in waiting if ready(i) and not self._is_loop(i)), None)
            if single is not None:
                self._single(single)
                done.add(single)
                waiting.remove(single)
                continue
            shape, group = None, []
            for i in waiting:
                fits = shape in (None, self._around(i))
                if fits and ready(i) and self._is_loop(i):
                    shape = self._around(i)
                    group.append(i)
                    if self.nodes[i].op != "Reduce":  # known after the loop only
                        done.add(i)
            self._loop(group, shape or ())
            done.update(group)
            waiting = [i for i in waiting if i not in done]

    def _is_loop(self, i: int) -> bool:
        node = self.nodes[i]
        return is_elementwise(node) or node.op in ("Broadcast", "Reduce")

    def _around(self, i: int) -> tuple[int, ...]:
        """Return the shape that the loop of an operation runs over."""
        node = self.nodes[i]
        return self.nodes[node.inputs[0]].shape if node.op == "Reduce" else node.shape

    # --- loops -------------------------------------------------------------------------------

    def _loop(self, group: list[int], shape: tuple[int, ...]) -> None:
        members = set(group)
        stored = [
            i
            for i in group
            if self.nodes[i].op != "Reduce"
            and (i in self.graph.outputs or not self.readers[i] <= members)
        ]
        reductions = [i for i in group if self.nodes[i].op == "Reduce"]
        for i in stored:
            self.store(i)
        for i in reductions:
            if self.order.kind[i] != "sum":
                self._begin_sum(i)
        operands = {j for i in group for j in self.nodes[i].inputs if j not in members}
        strides = {j: along(self.place[j].strides, self.nodes[j].shape, shape) for j in operands}
        strides |= {i: self.place[i].strides for i in stored}
        sums = {i: self._sum_strides(i) for i in reductions}
        axes = collapsed(self.extents(shape), [*strides.values(), *sums.values()])
        depth, inner = len(axes), []
        for d, (extent, axis) in enumerate(axes):
            if d == depth - 1:
                inner = [i for i in reductions if sums[i][axis] == 0]
                self._open_inner(inner, extent, d)
            else:
                self.lines.append(f"for (long i{d} = 0; i{d} < {extent}; i{d}++) {{")
        if not axes:
            self.lines.append("{")

        def index(of: Sequence[int], upto: int = depth) -> str:
            terms = [
                f"i{d}" if of[axis] == 1 else f"i{d} * {of[axis]}"
                for d, (_, axis) in enumerate(axes[:upto])
                if of[axis]
            ]
            return " + ".join(terms) or "0"

        value: dict[int, str] = {}
        for j in sorted(operands):
            other = self.nodes[j]
            if other.op in ("Input", "Constant") and not other.shape:
                value[j] = f"k{j}"
                continue
            moves = len(other.shape) == len(shape)
            value[j] = f"({self.base(j, moves)})[{index(strides[j])}]"
        for i in group:
            node = self.nodes[i]
            if node.op == "Reduce":
                self._accumulate(i, value[node.inputs[0]], i in inner, index(sums[i]))
                continue
            text = expressions.expression(
                node, [value[j] for j in node.inputs], [self.nodes[j].dtype for j in node.inputs]
            )
            self.lines.append(f"const {expressions.ctype(node.dtype)} v{i} = {text};")
            value[i] = f"v{i}"
            if i in stored:
                self.lines.append(f"({self.base(i)})[{index(strides[i])}] = v{i};")
        self.lines.append("}")
        for i in inner:
            self._accumulate(i, f"s{i}", False, index(sums[i], depth - 1))
        self.lines += ["}"] * max(depth - 1, 0)
        for i in reductions:
            if self.order.kind[i] != "sum":
                self._end_sum(i)

    # --- sums --------------------------------------------------------------------------------

    def _sum_strides(self, i: int) -> tuple[int, ...]:
        node = self.nodes[i]
        own = contiguous(node.shape)
        return tuple(0 if a in node.state[1] else step for a, step in enumerate(own))

    def _sum_type(self, i: int) -> str:
        node = self.nodes[i]
        if node.dtype.kind == "f" and self._kind_of(i) in (2, 3):
            return "double"
        return expressions.ctype(node.dtype)

    def _kind_of(self, i: int) -> int:
        node = self.nodes[i]
        return node.state[0] if node.op == "Reduce" else 2

    def _begin_sum(self, i: int) -> None:
        node = self.nodes[i]
        self.store(i)
        ctype = self._sum_type(i)
        size = math.prod(node.shape)
        if self.order.kind[i] == "row":
            size = size // self.order.n * self.strip
        self._allocate(f"a{i}", ctype, size, 8)
        limit = f"rows * {size // self.strip}" if self.order.kind[i] == "row" else str(size)
        if node.op == "Scatter":
            x = node.inputs[0]
            if self.place[x].strides != contiguous(node.shape):
                raise Unsupported("Scatter into a view")
            self.lines.append(f"for (long i = 0; i < {limit}; i++) a{i}[i] = ({self.base(x)})[i];")
            return
        start = expressions.neutral(self._kind_of(i), node.dtype)
        self.lines.append(f"for (long i = 0; i < {limit}; i++) a{i}[i] = {start};")

    def _accumulate(self, i: int, value: str, local: bool, index: str) -> None:
        target = f"s{i}" if local else f"a{i}[{index}]"
        self.lines.append(expressions.accumulation(self._kind_of(i), target, value))

    def _open_inner(self, inner: list[int], extent: str, d: int) -> None:
        """Open the innermost loop, with a number for each sum along it."""
        summed = []
        for i in inner:
            start = expressions.neutral(self._kind_of(i), self.nodes[i].dtype)
            self.lines.append(f"{self._sum_type(i)} s{i} = {start};")
            if self._kind_of(i) == 2:
                summed.append(f"s{i}")
        clause = f" reduction(+:{', '.join(summed)})" if summed else ""
        if len(summed) == len(inner):
            self.lines.append(f"#pragma omp simd{clause}")
        self.lines.append(f"for (long i{d} = 0; i{d} < {extent}; i{d}++) {{")

    def _end_sum(self, i: int) -> None:
        node = self.nodes[i]
        size = str(math.prod(node.shape))
        if self.order.kind[i] == "row":
            size = f"rows * {math.prod(node.shape) // self.order.n}"
        self.lines.append(f"for (long i = 0; i < {size}; i++) ({self.base(i)})[i] = a{i}[i];")

    # --- other operations --------------------------------------------------------------------

    def _single(self, i: int) -> None:
        node = self.nodes[i]
        if node.op in VIEWS:
            self._view(i, node)
        else:
            _others.emit(self, i, node)

    def _view(self, i: int, node: Node) -> None:
        source, x = self.place[node.inputs[0]], self.nodes[node.inputs[0]]
        if node.op == "Transpose":
            strides = tuple(source.strides[a] for a in node.state[0])
            self.place[i] = source._replace(strides=strides)
        elif node.op == "Slice":
            start, _, step = node.state
            offset = sum(a * s for a, s in zip(start, source.strides, strict=True))
            strides = tuple(a * s for a, s in zip(step, source.strides, strict=True))
            self.place[i] = source._replace(offset=source.offset + offset, strides=strides)
        elif (strides := reshaped(x.shape, source.strides, node.shape)) is not None:
            self.place[i] = source._replace(strides=strides)
        else:
            self._copied(i)

    def _copied(self, i: int) -> None:
        """Write the entries of the operand of a Reshape in order."""
        (x,) = self.nodes[i].inputs
        self.store(i)
        shape = self.nodes[x].shape
        self.copy(self.base(i), contiguous(shape), self.base(x), self.place[x].strides, shape)

    def copy(
        self, to: str, to_strides: Any, at: str, at_strides: Any, shape: Any, sign: str = "="
    ) -> None:
        """Write the loops that copy entries, of the strip in a pass over rows."""
        (put, read), depth = self.nest(self.extents(shape), [to_strides, at_strides])
        self.lines.append(f"({to})[{put}] {sign} ({at})[{read}];")
        self.lines += ["}"] * depth

    def nest(self, extents: list[str], strides: list[Any]) -> tuple[list[str], int]:
        """Open loops; return the index of an entry by each of the strides, and their number."""
        axes = collapsed(extents, strides)
        for d, (extent, _) in enumerate(axes):
            self.lines.append(f"for (long i{d} = 0; i{d} < {extent}; i{d}++) {{")
        if not axes:
            self.lines.append("{")
        index = [
            " + ".join(f"i{d} * {own[a]}" for d, (_, a) in enumerate(axes) if own[a]) or "0"
            for own in strides
        ]
        return index, max(len(axes), 1)

    def _copy_outputs(self) -> None:
        for number, i in enumerate(self.graph.outputs):
            if self.direct.get(i) == number:
                continue
            node, strides = self.nodes[i], self.place[i].strides
            to = f"({expressions.ctype(node.dtype)} *)out[{number}]"
            self.copy(to, contiguous(node.shape), self.base(i), strides, node.shape)

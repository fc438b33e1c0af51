"""Functions of trees of arrays, run by the engine on the CPU where their graphs allow it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._operation import Function, is_refusal, lowering
from mlxopt._status import warn
from mlxopt._tree import copies, widened
from mlxopt.engine._build import build, compiler
from mlxopt.engine._c import generate
from mlxopt.engine._graph import DTYPES, Graph, Unsupported, trace
from mlxopt.engine._plan import cost, plan
from mlxopt.engine._simplify import simplified

_PAYS = 1e6  # ns of a plan from which on C is compiled: by the graph alone, so that runs repeat
_WIDE = 2**16  # entries of a matrix from which on OpenBLAS uses several threads
_CHECKS = 2  # calls that are compared with MLX: the start, and a point that has moved
_ARRAY = "array"  # stands for an array in the structure of a tree


def tier() -> str:
    """Return what MLXOPT_ENGINE asks for: auto, plan or mlx.

    Raises:
        ValueError: it is something else.
    """
    found = os.environ.get("MLXOPT_ENGINE", "auto")
    if found not in ("auto", "plan", "mlx"):
        raise ValueError(f"MLXOPT_ENGINE={found!r}; expected auto, plan or mlx.")
    return found


def describe() -> str:
    """Return what runs the functions of a run, for `mlxopt.show_config`."""
    if mx.default_device() != mx.cpu:
        return "none: MLX computes on the GPU"
    if (found := tier()) == "mlx":
        return "none: MLXOPT_ENGINE=mlx"
    program = compiler() if found == "auto" else None
    return f"NumPy, and C by {program} where a call is long" if program else "NumPy"


def lowered(function: Function, instead: Function) -> Function:
    """Return `function` as run by the engine, or by `instead` where the engine cannot.

    Args:
        function: takes and returns trees of arrays; what else is in them is held constant. It is
            traced once for each set of shapes and dtypes.
        instead: the same function, compiled by MLX.
    """
    if tier() == "mlx" or mx.default_device() != mx.cpu:
        return instead
    return _Lowered(function, instead)


class _Lowered:
    def __init__(self, function: Function, instead: Function) -> None:
        self.function, self.instead = function, instead
        self.kernels: dict[Any, _Kernel | None] = {}
        self.why: str | None = None  # the last graph was left to MLX

    def __call__(self, *args: Any) -> Any:
        arrays: list[mx.array] = []
        structure = _structure(args, arrays)
        key = structure, tuple([(x.shape, x.dtype) for x in arrays])
        if key not in self.kernels:
            self.kernels[key] = self._kernel(structure, arrays)
        kernel = self.kernels[key]
        if kernel is None:
            return self.instead(*args)
        try:
            inputs = [np.asarray(x) for x in arrays]
        except ValueError as error:
            if not is_refusal(error):
                raise
            return self.instead(*args)  # within a derivative of the whole
        try:
            found = kernel(inputs)
        except Unsupported as error:  # of a kind that shows at the first call only
            self.kernels[key], self.why = None, str(error)
            return self.instead(*args)
        if kernel.calls <= _CHECKS and not self._agrees(args, inputs, found, kernel):
            self.kernels[key] = None
            return self.instead(*args)
        return _tree(kernel.structure, map(_array, found))

    def _kernel(self, structure: Any, arrays: list[mx.array]) -> _Kernel | None:
        out: list[Any] = []

        def flat(*arrays: mx.array) -> list[mx.array]:
            found: list[mx.array] = []
            out[:] = [_structure(self.function(*_tree(structure, iter(arrays))), found)]
            return found

        if any(x.dtype not in DTYPES for x in arrays):
            return None
        token = lowering.set(True)
        try:
            graph = simplified(_traced(flat, arrays))
            return _Kernel(graph, out[0])
        except Unsupported as error:
            self.why = str(error)
            return None
        finally:
            lowering.reset(token)

    def _agrees(self, args: Any, inputs: list[np.ndarray], found: Any, kernel: _Kernel) -> bool:
        """Whether MLX finds the same, up to its rounding; at a point that is not finite, yes."""
        expected = self._by_mlx(args)
        if not all(np.isfinite(x).all() for x in expected) or all(map(_is_close, found, expected)):
            return True
        # MLX's sums over many float32 numbers may be wrong in the second digit.
        with contextlib.suppress(ValueError, RuntimeError), mx.stream(mx.cpu):
            if all(map(_is_close, found, self._by_mlx(widened(args)))):
                return True
        # How much do inputs that differ by a rounding change the result?
        rng = np.random.default_rng(0)
        nudged = [_nudged(x, rng) for x in inputs]
        found = [np.array(x) for x in found]
        kernel.run(*nudged)  # no call: the next one is compared too
        allowed = [_largest_change(a, b) for a, b in zip(kernel.results, found, strict=True)]
        kernel.run(*inputs)
        if all(map(_is_close, found, expected, allowed)):
            return True
        warn(
            "the engine and MLX disagree on a function, which MLX computes from here on: the run "
            "is slower, and not wrong. Please report it, with the loss, to mlxopt's issues.",
            RuntimeWarning,
        )
        return False

    def _by_mlx(self, args: Any) -> list[np.ndarray]:
        arrays: list[mx.array] = []
        _structure(self.function(*args), arrays)
        return [np.array(x) for x in arrays]


class _Kernel:
    """A graph with the arrays that it is computed in; for one call at a time."""

    def __init__(self, graph: Graph, structure: Any) -> None:
        self.structure, self.calls = structure, 0
        worth = tier() == "auto" and (cost(graph) >= _PAYS or _has_wide_product(graph))
        self.run, self.results = (worth and _compiled(graph)) or plan(graph)

    def __call__(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self.calls += 1
        self.run(*inputs)
        return self.results


def _has_wide_product(graph: Graph) -> bool:
    """Whether NumPy's BLAS would run several threads, which are slow on busy cores."""
    products = (node for node in graph.nodes if node.op == "Matmul")
    return any(graph.nodes[i].size >= _WIDE for node in products for i in node.inputs)


def _compiled(graph: Graph) -> tuple[Function, list[np.ndarray]] | None:
    """Return what `plan` does, in C; None if an operation has no C, or there is no compiler."""
    import ctypes

    try:
        source = generate(graph)
        call = build(source.text)
    except Unsupported:
        return None
    shapes = [(graph.nodes[i].shape, graph.nodes[i].dtype) for i in graph.outputs]
    results = [np.zeros(shape, dtype) for shape, dtype in shapes]
    space = np.zeros(source.work + 64, np.uint8)
    work = -(-space.ctypes.data // 64) * 64
    out = (ctypes.c_void_p * len(results))(*(x.ctypes.data for x in results))
    kept = space, source.constants  # as long as the function lives

    def run(*inputs: np.ndarray) -> None:
        ordered = [np.ascontiguousarray(x) for x in inputs]
        places = [x.ctypes.data for x in (*ordered, *kept[1])]
        call((ctypes.c_void_p * len(places))(*places), out, work)

    return run, results


def _traced(function: Function, arrays: list[mx.array]) -> Graph:
    try:
        return trace(function, arrays)
    except ValueError as error:
        if "uncaptured inputs" not in str(error):
            raise
    # MLX refuses an array that is both captured and passed; it compares identities.
    return trace(function, copies(arrays))


def _structure(tree: Any, arrays: list[mx.array]) -> Any:
    """Return a tree with its arrays, which are appended to `arrays`, replaced by a mark."""
    kind = type(tree)
    if kind is mx.array:
        arrays.append(tree)
        return _ARRAY
    if isinstance(tree, dict):
        return kind, tuple(tree), tuple([_structure(child, arrays) for child in tree.values()])
    if isinstance(tree, (tuple, list)):
        return kind, None, tuple([_structure(child, arrays) for child in tree])
    return None, None, tree


def _tree(structure: Any, arrays: Iterator[mx.array]) -> Any:
    """Return the tree of a structure with these arrays."""
    if structure is _ARRAY:
        return next(arrays)
    kind, keys, below = structure
    if kind is None:
        return below
    children = [_tree(child, arrays) for child in below]
    if keys is not None:
        return kind(zip(keys, children, strict=True))
    return kind(*children) if hasattr(kind, "_fields") else kind(children)


def _array(x: np.ndarray) -> mx.array:
    # By default MLX takes float64 as float32.
    return mx.array(x, mx.float64) if x.dtype == np.float64 else mx.array(x)


def _largest_change(one: np.ndarray, other: np.ndarray) -> float:
    if one.dtype.kind != "f":
        return 0.0
    with np.errstate(all="ignore"):
        change = np.abs(one - other)
    return float(change.max(where=np.isfinite(change), initial=0.0))


def _is_close(found: np.ndarray, expected: np.ndarray, change: float = 0.0) -> bool:
    if found.dtype.kind != "f":
        return np.array_equal(found, expected)
    # MLX's functions have seven digits at most, and overflow in float64 where those of float32 do.
    known = np.isfinite(expected)
    if not np.isfinite(found[known]).all():
        return False
    size = np.abs(expected[known]).max(initial=0.0)
    with np.errstate(all="ignore"):
        gap = np.abs(found[known] - expected[known])
    return bool((gap <= 1e-4 * size + 1e3 * change + 1e-30).all())


def _nudged(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return floating-point numbers with random errors of 1e-6."""
    if x.dtype.kind != "f":
        return x
    signs = rng.normal(size=x.shape)
    return np.asarray(x * (1 + 2.0**-20 * signs), dtype=x.dtype)

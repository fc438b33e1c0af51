"""Random graphs by NumPy and by C, against an evaluation in extended precision and MLX.

`random_graphs.py` makes the functions; `graph_oracle.py` evaluates them, and measures how far
roundings move the results. The oracle is compared with MLX too, in the digits that MLX has.
"""

import ctypes
import re
import subprocess
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from graph_oracle import WIDE, Oracle, spread
from random_graphs import RandomFunction

from mlxopt.engine import _build, _lowered
from mlxopt.engine._c import generate
from mlxopt.engine._graph import Graph, Unsupported, trace
from mlxopt.engine._simplify import simplified

needs_compiler = pytest.mark.skipif(_build.compiler() is None, reason="there is no C compiler")
_RUNS = 3  # with random errors, and many more before a result is called wrong
_MORE = 40
_FACTOR = 8  # a result may be off by so many of the largest deviations of these runs
_NO_DERIVATIVE = re.compile("VJP|cotangents does not match")  # MLX, in indices and casts
_REFUSED = re.compile("Power of integers")
_LEFT_TO_NUMPY = re.compile("(Abs|Ceil|Floor|FloorDivide|Remainder|Round) of (bool|u?int)")


class Case(NamedTuple):
    """A random function, every fifth without its gradient, and its graph."""

    seed: int
    function: Any
    inputs: list[mx.array]
    graph: Graph
    expected: list[np.ndarray]  # by MLX


def cases(seeds):
    for seed in seeds:
        random = RandomFunction(seed, (mx.float32, mx.float64)[seed % 2], 1 + seed % 17)
        function = random if seed % 5 == 0 else random.with_gradient
        inputs = random.inputs()
        try:
            graph = trace(function, inputs)
            if any(node.size == 0 for node in graph.nodes):
                continue  # MLX may never return from an array without entries
            expected = [np.array(x) for x in function(*inputs)]
        except ValueError as error:
            if _NO_DERIVATIVE.search(str(error)):
                continue
            raise
        yield Case(seed, function, inputs, graph, expected)


def check(cases, monkeypatch):
    """Compare the results of the engine with the oracle's; most of them are known."""
    monkeypatch.setattr(_lowered, "_CHECKS", 0)
    known = entries = 0
    for case in cases:
        made: Any = _lowered.lowered(case.function, lambda *_: None)
        found = made(*case.inputs)
        if found is None:
            assert _REFUSED.match(made.why), f"seed {case.seed}: {made.why}"
            continue
        for x, deviation in compare([np.array(x) for x in found], case):
            known += np.count_nonzero(deviation <= 1e-3 * np.abs(x) + 1e-6)
            entries += x.size
    assert known >= 0.7 * entries


def compare(found, case):
    """Assert that results are those of the oracle, and these MLX's; return the oracle's."""
    inputs = [np.array(x) for x in case.inputs]
    results: Any = ()
    for runs in (_RUNS, _MORE):
        results = spread(case.graph, inputs, runs, case.seed)
        wrong = [differs(y, x, d) for y, (x, d) in zip(found, results, strict=True)]
        if not any(map(np.any, wrong)):
            break
    else:
        k = next(k for k, each in enumerate(wrong) if each.any())
        at, (x, d) = tuple(np.argwhere(wrong[k])[0]), results[k]
        pytest.fail(f"seed {case.seed}, output {k}, at {at}: {found[k][at]}, not {x[at]} ± {d[at]}")
    oracle = Oracle()
    oracle(case.graph, inputs)
    for y, z, (x, d) in zip(case.expected, found, results, strict=True):
        assert (y.shape, y.dtype) == (z.shape, z.dtype)
        if oracle.is_extreme or any(node.dtype == np.float64 for node in case.graph.nodes):
            continue  # MLX's functions have the digits of float32 in float64, and less range
        size = np.abs(x[np.isfinite(x)]).max(initial=0)  # its sums lose digits
        wrong = differs(y, x, 1e4 * d + 1e-5 * size * (y.dtype.kind == "f"))
        assert not wrong.any(), f"seed {case.seed}: MLX finds {y}, not {x}"
    return results


def differs(found, exact, deviation):
    """Where a result is not a number of the oracle up to its deviation, which may be infinite."""
    if found.dtype.kind != "f":
        return (found != exact) & (deviation == 0)
    limits = np.finfo(found.dtype)
    with np.errstate(all="ignore"):
        allowed = _FACTOR * (deviation + limits.eps * np.abs(exact) + limits.smallest_subnormal)
        same = (found == exact.astype(found.dtype)) | ((found != found) & (exact != exact))
        same |= np.abs(found.astype(WIDE) - exact) <= allowed
        # A quotient by what may be zero, and what is near the largest number, may be infinite.
        same |= ~np.isfinite(found) & (deviation >= np.abs(exact)) & (deviation > 1e3)
        same |= (np.abs(exact) + allowed >= limits.max) & (np.abs(found) >= limits.max / 2)
    return ~same & np.isfinite(deviation)


def compiled(cases, folder):
    """Return the cases that have C, and a function in place of `build`: one compilation of all."""
    names: dict[str, str] = {}
    kept = []
    for case in cases:
        try:
            text = generate(simplified(case.graph)).text
        except Unsupported as error:
            if not _LEFT_TO_NUMPY.match(str(error)) and not _REFUSED.match(str(error)):
                raise
            continue
        kept.append(case)
        names.setdefault(text, f"run{case.seed}")
    source, library = folder / "all.c", folder / "all.so"
    parts = [text.replace("void run(", f"void {name}(") for text, name in names.items()]
    source.write_text("\n".join(['#include "runtime.h"', *parts]))
    command = [_build.compiler(), *_build._FLAGS, f"-I{_build._HERE}", source, "-o", library, "-lm"]
    subprocess.run(command, check=True)
    functions = ctypes.CDLL(str(library))

    def build(text):
        function = getattr(functions, names[text])
        function.restype, function.argtypes = None, [ctypes.c_void_p] * 3
        return function

    return kept, build


def check_c(seeds, monkeypatch, folder):
    kept, build = compiled(cases(seeds), folder)
    assert len(kept) >= 0.7 * len(seeds)
    monkeypatch.setattr(_lowered, "_PAYS", 0.0)
    monkeypatch.setattr(_lowered, "build", build)
    monkeypatch.setattr(_lowered, "plan", lambda _: pytest.fail("no C, but NumPy"))
    check(kept, monkeypatch)


def test_random_graphs_by_numpy(monkeypatch):
    monkeypatch.setenv("MLXOPT_ENGINE", "plan")
    check(cases(range(150)), monkeypatch)


@needs_compiler
def test_random_graphs_by_c(monkeypatch, tmp_path):
    check_c(range(150, 200), monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(5))
def test_five_thousand_random_graphs_by_numpy(monkeypatch, block):
    monkeypatch.setenv("MLXOPT_ENGINE", "plan")
    check(cases(range(1000 * block, 1000 * (block + 1))), monkeypatch)

"""The engine against MLX: every operation that it lowers and its gradient, by NumPy and by C."""

import os
import stat
import subprocess
import sys
import textwrap
import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt.engine import _lowered
from mlxopt.engine._build import compiler
from mlxopt.engine._graph import Unsupported, trace
from mlxopt.engine._simplify import simplified

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
W = mx.array(np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32))
V = mx.array(np.random.default_rng(2).normal(size=4).astype(np.float32))
T = mx.array(np.random.default_rng(3).normal(size=(2, 6, 4)).astype(np.float32))
I = mx.array([0, 2, 1])
DEEP = mx.array(np.random.default_rng(4).integers(0, 4, size=(7, 1)))
LONG = 300  # rows: more than a strip


def updated(x):
    x = x + 0
    x[1:3] = 5.0
    x[I] = x[I] * 2
    return x


def of_rows(x):
    """Sums over rows that rows depend on: several passes over them."""
    centered = x - mx.mean(x, axis=0)
    scaled = centered / mx.sqrt(mx.mean(mx.square(centered), axis=0) + 1)
    return scaled @ W - mx.max(x)


FUNCTIONS: dict[str, Any] = {
    "arithmetic": lambda x: (x + 1) * (x - 2) / (mx.abs(x) + 3) - -x,
    "powers": lambda x: x**2 + x**3 + mx.abs(x) ** 0.5 + mx.abs(x) ** 1.7 + (x + 9) ** -1,
    "roots": lambda x: mx.sqrt(x * x + 1) + mx.rsqrt(x * x + 1),
    "exponentials": lambda x: mx.exp(x) + mx.expm1(x / 9) + mx.sigmoid(x) + mx.tanh(x),
    "logarithms": lambda x: (
        mx.log(mx.abs(x) + 1) + mx.log1p(x * x) + mx.log2(x * x + 1) + mx.log10(x * x + 1)
    ),
    "circular": lambda x: mx.sin(x) + mx.cos(x) + mx.tan(x / 9) + mx.arctan(x),
    "inverses": lambda x: mx.arcsin(x / 9) + mx.arccos(x / 9) + mx.arctanh(x / 9) + mx.arcsinh(x),
    "hyperbolic": lambda x: mx.sinh(x / 3) + mx.cosh(x / 3) + mx.arccosh(x * x + 2),
    "erf": lambda x: mx.erf(x) + mx.erfinv(x / 9),
    "arctan2": lambda x: mx.arctan2(x, x * x + 1),
    "logaddexp": lambda x: mx.logaddexp(x, 0.5) + mx.logaddexp(x, x),
    "choices": lambda x: mx.where(x > 0, x, 0.1 * x) + mx.maximum(x, 0.2) + mx.clip(x, -1, 1),
    "steps": lambda x: mx.floor(x) + mx.ceil(x) + mx.round(x) + mx.sign(x),
    "division": lambda x: x // 0.7 + x % 0.7 + mx.divmod(x, 0.3)[1],
    "logic": lambda x: mx.logical_and(x > 0, x < 1) * x + mx.logical_not(x > 0) + (x == x),
    "casts": lambda x: x.astype(mx.int32).astype(mx.float32) * x,
    "sums": lambda x: x.sum() + mx.sum(x, axis=0) + mx.mean(x, axis=1, keepdims=True),
    "extrema": lambda x: x.max() + mx.min(x, axis=0) + mx.max(x, axis=1, keepdims=True),
    "products": lambda x: mx.prod(x[:3], axis=0) + mx.prod(x[:2]),
    "any and all": lambda x: x * mx.any(x > 1, axis=0) + mx.all(x < 9),
    "variance": lambda x: mx.var(x, axis=0) + mx.std(x),
    "softmax": lambda x: mx.softmax(x, axis=-1) + mx.softmax(x, axis=0),
    "logsumexp": lambda x: mx.logsumexp(x, axis=1) * 2 + mx.logsumexp(x),
    "matrix vector": lambda x: x @ V,
    "vector matrix": lambda x: V @ x.T,
    "matrix matrix": lambda x: x @ W + mx.addmm(x, x, W),
    "gram": lambda x: x.T @ x / len(x),
    "outer": lambda x: mx.outer(x[0], x[1]) + mx.inner(V, V) + mx.kron(W, W)[:4, :4],
    "einsum": lambda x: mx.einsum("ij,kj->ik", x, x),
    "batched": lambda x: T @ (x[:4, :4] + 0) + x[:6],
    "same product": lambda x: (x @ W) * mx.exp(-mx.abs(x @ W)),
    "slices": lambda x: x[1:5:2, ::-1] * 2 + x[2] + x[:2, 1:2],
    "gathers": lambda x: x[I] + mx.take(x, I, axis=1)[:3, :1] + x[I, mx.array([0, 1, 2])][:, None],
    "along": lambda x: mx.take_along_axis(x[:7], DEEP[: x[:7].shape[0]], axis=1),
    "updates": updated,
    "scatter": lambda x: x.at[I].add(1.0) * x,
    "put": lambda x: (
        mx.put_along_axis(x[:7], DEEP[: x[:7].shape[0]], mx.array(1.0), axis=1) * x[:7]
    ),
    "joins": lambda x: mx.concatenate([x, x * 2], axis=1) @ mx.concatenate([W, W], axis=0),
    "stacks": lambda x: mx.stack([x, x * x], axis=1) + mx.stack([x, x * x], axis=1)[:, ::-1],
    "split": lambda x: mx.split(x, 2, axis=1)[0] * mx.split(x, 2, axis=1)[1],
    "pad": lambda x: mx.pad(x, [(1, 2), (0, 1)]),
    "scans": lambda x: mx.cumsum(x, axis=0) + mx.cumsum(x, axis=1, reverse=True, inclusive=False),
    "cumprod": lambda x: mx.cumprod(x[:3], axis=1),
    "shapes": lambda x: x.reshape(-1)[:8].reshape(2, 4) + mx.swapaxes(T, 0, 1)[:, 0].sum(),
    "transposes": lambda x: mx.transpose(x.reshape(-1, 2, 2), (2, 0, 1)).reshape(2, -1),
    "repeats": lambda x: mx.repeat(x, 2, axis=0) + mx.tile(x, (2, 1)) + mx.roll(x, 1).mean(),
    "made": lambda x: mx.arange(4) * x + mx.eye(4).sum(axis=0) + mx.tril(W).sum() + mx.diag(W),
    "missing": lambda x: mx.nan_to_num(mx.where(x > 1, mx.nan, x)) + mx.isnan(x),
    "compiled": mx.compile(lambda x: mx.exp(x) * 2),
    "special": lambda x: (
        mo.special.softplus(x) + mo.special.log_sigmoid(x) + mo.special.erfc(x) * x
    ),
    "losses": lambda x: mo.losses.logistic(mo.losses.linear(x, V), (V.sum() > 0) * x[:, 0]),
    "norms": lambda x: mx.fast.layer_norm(x, None, None, 1e-5) + mx.linalg.norm(x),
    "several passes": of_rows,
    "argmax": lambda x: mx.take_along_axis(
        x, mx.stop_gradient(mx.argmax(x, axis=1, keepdims=True)), axis=1
    ),
}


def both(function):
    """Return the function as one of lists, with the gradient of a sum that weighs all entries."""

    def weighed(x):
        found = function(x).astype(mx.float32)
        weights = mx.cos(mx.arange(found.size)).reshape(found.shape)
        return mx.sum(mx.sin(found) * weights)

    return lambda x: [function(x), *mx.value_and_grad(weighed)(x)]


@pytest.fixture(params=["plan", "C"])
def engine(request, monkeypatch):
    if request.param == "C":
        if compiler() is None:
            pytest.skip("there is no C compiler")
        monkeypatch.setattr(_lowered, "_PAYS", 0.0)
        monkeypatch.setattr(_lowered, "plan", lambda _: pytest.fail("no C, but NumPy"))
    else:
        monkeypatch.setenv("MLXOPT_ENGINE", "plan")
    monkeypatch.setattr(_lowered, "_CHECKS", 0)
    return request.param


def run(function, *arrays):
    def refused(*_):
        raise AssertionError(f"left to MLX: {made.why}")

    made: Any = _lowered.lowered(function, refused)
    return made(*arrays)


@pytest.mark.parametrize("rows", [7, LONG])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_and_their_gradients(engine, name, rows):
    function = both(FUNCTIONS[name])
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    found, expected = run(function, mx.array(x)), function(mx.array(x))
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        # MLX's functions have seven digits at most, and its sums of float32 lose some.
        size = np.nanmax(np.abs(np.array(other)), initial=1e-3)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5 * size)


EDGES = mx.array([0.0, 1.0, -1.5, 0.7, np.inf, -np.inf, np.nan, 2.5])
EXACT: dict[str, Any] = {
    "extrema of NaN": lambda x: mx.stack(
        [
            mx.maximum(x, 1),
            mx.maximum(1, x),
            mx.minimum(x, 1),
            mx.minimum(1, x),
            0 * x + mx.max(x),
            0 * x + mx.min(x),
        ]
    ),
    "true and true": lambda x: (x > 0).at[mx.array([0, 0, 1, 1])].add(x[1:5] > 0).astype(mx.int32),
    "powers": lambda x: mx.stack([x**0.5, x**-1.0, x**0.0, x**2.0, x**1.0]),
    "booleans": lambda x: mx.stack(
        [(x > 0) + (x < 1), (x > 0) * (x < 1), (x > 0) - (x < 1)], axis=1
    ),
    "what is no zero": lambda x: mx.stack([x - x, x - x * 1, x - mx.mean(x[:, None], axis=1)]),
    "where NaN is": lambda x: mx.stack([mx.argmax(x), mx.argmin(x), mx.argmax(x[:6])]),
    "backwards": lambda x: (2 * x)[::-1],
    "one backwards": lambda x: (2 * x)[3:1:-2],
    "signs": lambda x: mx.sign(x) + mx.sign(x > 0),
    "whole quotients": lambda x: mx.concatenate([x // 0.1, x // 0.0, x // mx.array(np.inf)]),
    "a roll by nothing": lambda x: mx.roll(2 * x, 0),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_same_numbers_as_mlx(engine, name):
    function = EXACT[name]
    found, expected = run(function, EDGES), function(EDGES)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: mo.special.exp(x / 3) + mo.special.softplus(x) + mo.special.log1p(x * x),
        lambda x: mo.special.sigmoid(x) * mo.special.tan(x / 9) + mo.special.erf(x),
        lambda x: mo.special.logaddexp(x, x * x) + mo.special.lgamma(x * x + 1),
        lambda x: mo.losses.logistic(x, 0.3 + 0 * x) + mo.special.log_softmax(x),
    ],
    ids=["exp", "sigmoid", "logaddexp", "logistic"],
)
def test_second_derivatives_of_special_functions(engine, function):
    def hessian(x):
        gradient = mx.grad(lambda x: mx.sum(mx.sin(function(x))))
        return mx.grad(lambda x: mx.sum(gradient(x) * mx.cos(mx.arange(x.size))))(x)

    x = np.random.default_rng(0).normal(size=9).astype(np.float32)
    np.testing.assert_allclose(
        run(hessian, mx.array(x)), hessian(mx.array(x)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["exponentials", "logaddexp", "softmax", "logsumexp", "erf"])
def test_float64_has_all_digits(engine, name):
    x = np.random.default_rng(0).normal(size=(LONG, 4))
    with mx.stream(mx.cpu):
        found = run(lambda x: FUNCTIONS[name](x), mx.array(x, mx.float64))
        exact = mo.value_and_grad(lambda x: mx.sum(FUNCTIONS[name](x)))(mx.array(x, mx.float64))[0]
        total = mx.sum(found).item()
    assert total == pytest.approx(exact.item(), rel=1e-13)


def test_a_million_terms_are_added_up_in_float64(engine):
    # One after the other in float32 they are off by 1e-4.
    x = np.full(1_000_000, 0.1, dtype=np.float32)
    mean, gradient = run(mx.value_and_grad(lambda p, x: mx.mean(p * x)), mx.array(1.0), mx.array(x))
    assert mean.item() == pytest.approx(float(np.float32(0.1)), rel=1e-7)
    assert gradient.item() == pytest.approx(float(np.float32(0.1)), rel=1e-7)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("Sort", lambda x: mx.sort(x, axis=0)),
        ("Power", lambda x: (x > 0).astype(mx.int32) ** (x.astype(mx.int32))),
        ("Convolution", lambda x: mx.conv1d(x[None], mx.ones((1, 3, 4)))),
        ("CustomTransforms", mx.custom_function(lambda x: 2 * x)),
        ("RandomBits", lambda x: x * mx.random.normal(x.shape, key=mx.random.key(0))),
    ],
)
def test_what_it_does_not_know_is_left_to_mlx(name, function):
    made: Any = _lowered.lowered(function, mx.compile(function))
    x = mx.array(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    np.testing.assert_allclose(made(x), function(x), rtol=1e-6)
    assert name in (made.why or name)


def test_an_array_that_is_captured_and_passed():
    start = mx.array([1.0, 2.0])
    found = run(lambda p: mx.sum((p - start) ** 2), start)
    assert found.item() == 0


def test_trees_and_constants_keep_their_structure(engine):
    def function(tree, factor):
        return {"sum": tree["a"] + tree["b"][0] * factor, "none": None, "pair": (tree["a"], 3)}

    found = run(function, {"a": mx.ones(2), "b": [mx.arange(2.0)]}, 2.0)
    assert found["sum"].tolist() == [1, 3]
    assert (found["none"], found["pair"][1]) == (None, 3)


def test_a_wrong_kernel_is_found_and_said(monkeypatch):
    def wrong(graph):
        for i, node in enumerate(graph.nodes):
            if node.op == "Subtract":
                graph.nodes[i] = node._replace(op="Add")
        return graph

    monkeypatch.setattr(_lowered, "simplified", lambda graph: wrong(simplified(graph)))
    with pytest.warns(RuntimeWarning, match="the engine and MLX disagree"):
        result = mo.minimize(lambda p: mx.sum((p - 3) ** 2), mx.ones(2), mo.LBFGS())
    np.testing.assert_allclose(result.params, [3, 3], rtol=1e-6)


def test_numbers_without_axes_are_nudged_too(monkeypatch, engine):
    monkeypatch.setattr(_lowered, "_CHECKS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(5):  # a difference of numbers that agree in three digits
            a, b = np.random.default_rng(seed).normal(size=2)
            found = run(
                lambda a, b: a * b - 1.001 * b * mx.exp(mx.log(a)), mx.array(a**2), mx.array(b)
            )
            assert found.item() == pytest.approx(-0.001 * a**2 * b, rel=1e-3)


def test_the_second_call_is_compared_where_the_first_was_nudged(monkeypatch):
    compared = []
    agrees = _lowered._Lowered._agrees
    monkeypatch.setattr(
        _lowered._Lowered, "_agrees", lambda *args: compared.append(1) or agrees(*args)
    )
    monkeypatch.setattr(_lowered, "_is_close", lambda found, expected, change=0.0: change > 0)
    made = _lowered.lowered(mx.exp, lambda *_: pytest.fail("left to MLX"))
    for _ in range(3):
        made(mx.array(0.3))
    assert len(compared) == 2


def test_where_float64_overflows_in_mlx_alone_nothing_is_said():
    with warnings.catch_warnings(), mx.stream(mx.cpu):
        warnings.simplefilter("error")
        x = mx.array([90.0, 200.0], dtype=mx.float64)
        made = _lowered.lowered(lambda x: mx.log(mx.exp(x)), lambda _: pytest.fail("left to MLX"))
        np.testing.assert_allclose(made(x), [90.0, 200.0], rtol=1e-15)


@needs_compiler
def test_a_second_process_compiles_nothing(tmp_path):
    folder = tmp_path / "cache"
    code = """
        import mlx.core as mx, numpy as np, mlxopt as mo
        X = mx.array(np.random.default_rng(0).normal(size=(100_000, 5)))
        loss = lambda w, X: mx.mean(mx.logaddexp(mx.array(0.0), X @ w)) + mx.sum(w * w)
        print(mo.minimize(loss, mx.zeros(5), mo.LBFGS(), X).params.tolist())
    """

    def run_it(**environment):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "XDG_CACHE_HOME": str(folder), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    first = run_it()
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.so")}
    assert made
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in made)
    assert stat.S_IMODE((folder / "mlxopt").stat().st_mode) & 0o022 == 0
    assert run_it() == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.so")} == made
    # A folder that others can write to is not used.
    (folder / "mlxopt" / "engine").chmod(0o777)
    for path in made:
        path.write_bytes(b"planted")
    assert run_it() == first
    assert all(path.read_bytes() == b"planted" for path in made)


def test_an_unknown_engine_is_refused(monkeypatch):
    monkeypatch.setenv("MLXOPT_ENGINE", "fast")
    with pytest.raises(ValueError, match="expected auto, plan or mlx"):
        mo.minimize(lambda p: mx.sum(p**2), mx.ones(2), mo.LBFGS())


def test_identical_operations_are_computed_once():
    x = mx.ones((6, 4))
    graph = simplified(trace(lambda x: [x @ V + mx.exp(x @ V)], [x]))
    assert sum(node.op == "Matmul" for node in graph.nodes) == 1


def test_parts_of_what_is_zero_are_zero(engine):
    def function(x):
        zero = (x - mx.negative(-x)) * mx.exp(x)  # as derivatives of special functions have it
        parts = [zero[1:3], mx.split(zero, 4)[1], zero[::-1][:2], zero[mx.array([0, 3])]]
        return mx.concatenate([part + 1 for part in parts])

    assert run(function, mx.array(np.full(8, np.nan, dtype=np.float32))).tolist() == [1] * 8


def test_dtypes_without_a_place_are_unsupported():
    with pytest.raises(Unsupported, match="float16"):
        trace(lambda x: [x * 2], [mx.ones(2, dtype=mx.float16)])

"""Each function of MLX that has seven digits in float64 has all of them where the toolkit calls."""

import threading
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from mpmath import mp, mpf

import mlxopt as mo
from mlxopt.autodiff._suspects import float64_suspects
from mlxopt.special import _precise

OWN = {name: getattr(mx, name) for name in _precise._NAMES}
METHODS = {name: getattr(mx.array, name) for name in OWN if hasattr(mx.array, name)}
EXP = mx.exp  # as `from mlx.core import exp` would bind it


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def normal_cdf(x):
    return mpmath.ncdf(x)


# A function of MLX, the same in mpmath, and points.
LINE = [-20.3, -1.7, -0.4, 0.0, 0.3, 2.2, 30.1]
FUNCTIONS: dict[str, Any] = {
    "exp": (lambda x: mx.exp(x), mpmath.exp, [*LINE, 90.0, 700.0]),
    "x.exp": (lambda x: x.exp(), mpmath.exp, [*LINE, 90.0]),
    "expm1": (lambda x: mx.expm1(x), mpmath.expm1, LINE),
    "log2": (lambda x: mx.log2(x), lambda x: mpmath.log(x, 2), [0.1, 1.5, 40.0]),
    "x.log10": (lambda x: x.log10(), mpmath.log10, [0.1, 1.5, 40.0]),
    "sin": (lambda x: mx.sin(x), mpmath.sin, LINE),
    "x.cos": (lambda x: x.cos(), mpmath.cos, LINE),
    "tan": (lambda x: mx.tan(x), mpmath.tan, LINE),
    "erf": (lambda x: mx.erf(x), mpmath.erf, [-1.7, 0.0, 0.3, 2.2]),
    "erfinv": (lambda x: mx.erfinv(x), mpmath.erfinv, [-0.9, 0.0, 0.3, 0.99999]),
    "sigmoid": (lambda x: mx.sigmoid(x), sigmoid, LINE),
    "logaddexp": (lambda x: mx.logaddexp(x, 1), lambda x: mpmath.log(mpmath.exp(x) + mp.e), LINE),
    "logsumexp": (
        lambda x: mx.logsumexp(mx.stack([x, 2 * x, -x]), 0),
        lambda x: mpmath.log(mpmath.exp(x) + mpmath.exp(2 * x) + mpmath.exp(-x)),
        LINE,
    ),
    "softmax": (lambda x: mx.softmax(mx.stack([x, -x]), 0)[0], lambda x: sigmoid(2 * x), LINE),
    "nn.softplus": (nn.softplus, lambda x: mpmath.log1p(mpmath.exp(x)), LINE),
    "nn.silu": (nn.silu, lambda x: x * sigmoid(x), LINE),
    "nn.GELU": (nn.GELU(), lambda x: x * normal_cdf(x), [-1.7, 0.0, 0.3, 2.2]),
    "nn.elu": (nn.elu, lambda x: x if x > 0 else mpmath.expm1(x), [-3.0, -0.4, 0.3]),
    "nn.log_softmax": (
        lambda x: nn.log_softmax(mx.stack([x, -x]), 0)[0],
        lambda x: -mpmath.log1p(mpmath.exp(-2 * x)),
        [-2.0, 0.0, 0.3],
    ),
    "tanh": (lambda x: mx.tanh(x), mpmath.tanh, LINE),
    "a power": (lambda x: 1.3**x, lambda x: mpf(1.3) ** x, LINE),
}


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives_have_all_digits(name, called_before):
    function, reference, points = FUNCTIONS[name]
    with mx.stream(mx.cpu):
        x = mx.array(points, dtype=mx.float64)
        if called_before:  # a function compiled by MLX is then traced with MLX's own
            mx.eval(function(x))

        def loss(x):
            return mx.sum(function(x))

        value, slope = mo.value_and_grad(loss)(x)
        values = mo.jacobian(function)(x)
        bend = mo.hvp(loss)(x, mx.ones_like(x))
    with mp.workdps(60):
        exact = [mpf(point) for point in points]
        right: list[list[Any]] = [
            [mpmath.diff(reference, at, order) for at in exact] for order in (0, 1, 2)
        ]
    total = float(mpmath.re(mpmath.fsum(right[0])))
    size = float(mpmath.re(mpmath.fsum(map(abs, right[0]))))
    assert abs(value.item() - total) <= 1e-14 * size
    for got, order, tolerance in ((slope, 1, 1e-13), (bend, 2, 1e-12)):
        wanted = np.array([float(one) for one in right[order]])
        np.testing.assert_allclose(np.array(got), wanted, rtol=tolerance, atol=1e-14)
    np.testing.assert_array_equal(np.diag(np.array(values)), np.array(slope))


def test_arguments_are_those_of_mlx():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4))
    total = scipy.special.logsumexp
    narrow = b.astype(np.float32)
    cases = [
        (lambda x, y: mx.logsumexp(x, axis=(0, 1)), total(a)),
        (lambda x, y: mx.logsumexp(x, -1, True), total(a, axis=1, keepdims=True)),
        (lambda x, y: x.logsumexp(axis=[1], keepdims=True), total(a, axis=1, keepdims=True)),
        (lambda x, y: mx.softmax(x, axis=0, precise=True), scipy.special.softmax(a, axis=0)),
        (lambda x, y: mx.softmax(x, -1), scipy.special.softmax(a, axis=1)),
        (lambda x, y: mx.logcumsumexp(x, 1), np.logaddexp.accumulate(a, axis=1)),
        (
            lambda x, y: x.logcumsumexp(axis=0, reverse=True),
            np.logaddexp.accumulate(a[::-1], axis=0)[::-1],
        ),
        (lambda x, y: mx.logaddexp(2, x), np.logaddexp(2, a)),
        (lambda x, y: mx.logaddexp(y, x), np.logaddexp(narrow, a)),
        (lambda x, y: mx.logaddexp(x, b), np.logaddexp(a, b)),
        (lambda x, y: mx.logaddexp(x, x[:, :1]), np.logaddexp(a, a[:, :1])),
        (lambda x, y: mx.exp(x, stream=mx.cpu), np.exp(a)),
        (lambda x, y: mx.where(x > 0, mx.exp(100 * x), x), np.where(a > 0, np.exp(100 * a), a)),
    ]
    with mx.stream(mx.cpu):
        x, y = mx.array(a, dtype=mx.float64), mx.array(narrow)
        for i, (function, expected) in enumerate(cases):
            got = _precise.precise(function)(x, y)
            assert got.dtype == mx.float64
            np.testing.assert_allclose(got, expected, rtol=4e-15, err_msg=str(i))
        slope = mo.grad(lambda x: mx.sum(mx.where(x < 0, mx.exp(x), x)))(1e4 * x)
        np.testing.assert_allclose(slope, np.where(a < 0, np.exp(1e4 * np.minimum(a, 0)), 1))


def test_layer_norms():
    rng = np.random.default_rng(1)
    a, weight, bias = rng.normal(size=(5, 8)), rng.normal(size=8), rng.normal(size=8)
    centered = a - a.mean(axis=1, keepdims=True)
    with mx.stream(mx.cpu):
        x, w, b = (mx.array(one, dtype=mx.float64) for one in (a, weight, bias))
        got = _precise.precise(lambda: mx.fast.layer_norm(x, w, b, 1e-5))()
        scale = np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(got, centered / scale * weight + bias, rtol=1e-13)
        got = _precise.precise(lambda: mx.fast.rms_norm(x, None, eps=1e-5))()
        scale = np.sqrt((a**2).mean(axis=1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(got, a / scale, rtol=1e-13)
        layer = nn.LayerNorm(8)
        layer.set_dtype(mx.float64, predicate=lambda _: True)
        got = _precise.precise(layer)(x)
        scale = np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(got, centered / scale, rtol=1e-13)


def test_other_dtypes_get_what_mlx_gives():
    floats = mx.random.normal((50,), key=mx.random.key(0))
    half, complexes = floats.astype(mx.bfloat16), floats + 1j * floats
    empty = mx.zeros((0,), dtype=mx.float64)

    def check():
        for name in ("exp", "sin", "sigmoid"):
            now, own = getattr(mx, name), OWN[name]
            assert now is not own
            for x in (floats, half, mx.array([1, 2]), 2.0, 3, empty):
                assert mx.array_equal(now(x), own(x))
        assert mx.array_equal(mx.exp(complexes), OWN["exp"](complexes))
        assert mx.array_equal(mx.softmax(floats, precise=True), OWN["softmax"](floats))
        assert mx.array_equal(floats.logsumexp(), OWN["logsumexp"](floats))
        with pytest.raises(IndexError, match="Invalid axis 3"):
            mx.logsumexp(floats, axis=3)

    _precise.precise(check)()


def test_a_float32_loss_is_mlx_s_own_to_the_last_bit():
    x = mx.random.normal((200,), key=mx.random.key(1))

    def loss(x):
        assert mx.exp is OWN["exp"]
        inner = mx.sum(mx.exp(mx.sin(x)) * mx.sigmoid(x) + mx.erf(x) + nn.softplus(x))
        return inner + mx.logsumexp(x) + mx.softmax(x)[0] + mx.log2(x[:1] ** 2)[0]

    value, slope = mo.value_and_grad(loss)(x)
    own_value, own_slope = mx.value_and_grad(loss)(x)
    assert value.item() == own_value.item()
    assert mx.array_equal(slope, own_slope)


def names_are_mlx_s_own():
    methods = all(getattr(mx.array, name) is METHODS[name] for name in METHODS)
    return methods and all(getattr(mx, name) is OWN[name] for name in OWN)


def test_the_names_are_given_back():
    with mx.stream(mx.cpu):
        x = mx.array([0.5], dtype=mx.float64)

        def inner(x):
            assert mx.exp is not OWN["exp"]
            return mx.sum(mx.exp(x))

        def outer(x):
            value = mo.value_and_grad(inner, compile=False)(x)[0]
            assert mx.exp is not OWN["exp"]  # still, after the inner call
            return value

        mo.value_and_grad(outer, compile=False)(x)
        assert names_are_mlx_s_own()

        def broken(x):
            raise KeyError("broken")

        with pytest.raises(KeyError):
            mo.grad(broken)(x)
        assert names_are_mlx_s_own()


def test_a_function_that_someone_put_in_place_of_mlx_s_stays():
    with mx.stream(mx.cpu):
        x = mx.array([0.5], dtype=mx.float64)
        mx.exp = lambda x: x + 1  # pyright: ignore[reportAttributeAccessIssue]
        try:
            assert mo.grad(lambda x: mx.sum(mx.exp(x)))(x).item() == 1
            assert mx.exp(x).item() == 1.5
        finally:
            mx.exp = OWN["exp"]
    assert names_are_mlx_s_own()


def test_threads():
    failures, barrier = [], threading.Barrier(6)

    def work(seed):
        try:
            at = np.random.default_rng(seed).normal(size=4)
            barrier.wait()
            with mx.stream(mx.cpu):
                for _ in range(40):
                    x = mx.array(at, dtype=mx.float64)
                    slope = mo.grad(lambda x: mx.sum(mx.exp(mx.sin(x))), compile=False)(x)
                    expected = np.cos(at) * np.exp(np.sin(at))
                    np.testing.assert_allclose(slope, expected, rtol=1e-14)
        except BaseException as error:
            failures.append(error)
        finally:
            mx.clear_streams()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert names_are_mlx_s_own()


def test_another_thread_keeps_mlx_s_own_numbers():
    found = []

    def elsewhere():
        try:
            with mx.stream(mx.cpu):
                x = mx.array([0.3, 0.7], dtype=mx.float64)
                # In a trace for any shape mlxopt's functions would be an error.
                silu = mx.compile(lambda x: x * mx.sigmoid(x), shapeless=True)
                found.append((mx.exp(x).tolist(), OWN["exp"](x).tolist(), silu(x).tolist()))
        finally:
            mx.clear_streams()

    def loss(x):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return mx.sum(mx.exp(x))

    mo.grad(loss, compile=False)(float64([0.5]))
    assert found
    assert found[0][0] == found[0][1]


# --- Wherever the toolkit calls a loss -----------------------------------------------------------

COUNTS = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])


def poisson(p, y):
    return mx.exp(p) - p * y


def mean_poisson(p, y):
    return mx.mean(poisson(p, y))


def float64(values):
    with mx.stream(mx.cpu):
        return mx.array(values, dtype=mx.float64)


@pytest.mark.parametrize("compile", [True, False])
def test_minimize_and_its_certificate(compile):
    start = float64(0.0)
    result = mo.minimize(mean_poisson, start, mo.Newton(), COUNTS, compile=compile, tol=1e-12)
    assert result.params.item() == pytest.approx(np.log(COUNTS.mean()), rel=1e-14)
    assert result.certificate.is_minimum
    assert result.certificate.curvature == pytest.approx(COUNTS.mean(), rel=1e-12)


def test_a_finish_in_float64():
    start = mx.array(0.0)
    result = mo.minimize(mean_poisson, start, mo.LBFGS(), COUNTS, finish="float64")
    assert result.params.item() == pytest.approx(np.log(COUNTS.mean()), rel=1e-14)


def test_train():
    rows = mo.batches(COUNTS, batch_size=len(COUNTS))
    result = mo.train(mean_poisson, float64(1.0), mo.SGD(0.2), rows, epochs=200)
    assert result.params.item() == pytest.approx(np.log(COUNTS.mean()), rel=1e-13)


def test_minimize_many():
    starts = float64(np.linspace(0.5, 2.0, 5))
    data = np.stack([np.roll(COUNTS, i) * (i + 1) for i in range(5)])
    result = mo.minimize_many(mean_poisson, starts, mo.Newton(), data, tol=1e-11)
    np.testing.assert_allclose(result.params, np.log(data.mean(axis=1)), rtol=1e-13)


def test_argmin():
    def loss(p, y):
        return mean_poisson(p, y)

    # The minimizer log(mean(y)) has the derivative 1 / (n mean(y)) in each y.
    solve = mo.argmin(loss, mo.Newton())
    with mx.stream(mx.cpu):
        slope = mx.grad(lambda y: solve(float64(1.0), y))(float64(COUNTS))
    np.testing.assert_allclose(slope, np.full(8, 1 / COUNTS.sum()), rtol=1e-8)


def test_inference():
    fit = mo.minimize(mean_poisson, mx.array(0.0), mo.Newton(), COUNTS, finish="float64")
    found = mo.inference.covariance(poisson, fit, COUNTS)
    assert found.standard_errors[0] == pytest.approx(COUNTS.sum() ** -0.5, rel=1e-12)


def test_hessian_per_example_and_structured():
    with mx.stream(mx.cpu):
        p, y = float64(1.3), float64(COUNTS)
        assert mo.hessian(mean_poisson)(p, y).item() == pytest.approx(np.exp(1.3), rel=1e-15)
        each = mo.per_example_grad(mean_poisson)(p, y)
        np.testing.assert_allclose(each, np.exp(1.3) - COUNTS, rtol=1e-14)
        newton = mo.Newton(hessian=lambda p, y: mx.exp(p).reshape(1, 1))
        result = mo.minimize(mean_poisson, p, newton, COUNTS, tol=1e-12)
    assert result.params.item() == pytest.approx(np.log(COUNTS.mean()), rel=1e-14)


def test_softmax_regression():
    rng = np.random.default_rng(3)
    rows, label = rng.normal(size=(60, 2)), rng.integers(0, 3, 60)

    def loss(w, rows, label):
        return mx.mean(nn.losses.cross_entropy(rows @ w, label)) + 0.05 * mx.sum(w**2)

    def gradient(flat):
        w = flat.reshape(2, 3)
        shares = scipy.special.softmax(rows @ w, axis=1) - np.eye(3)[label]
        return (rows.T @ shares / 60 + 0.1 * w).ravel()

    right = scipy.optimize.root(gradient, np.zeros(6), tol=1e-15).x
    result = mo.minimize(loss, float64(np.zeros((2, 3))), mo.Newton(), rows, label, tol=1e-12)
    np.testing.assert_allclose(np.array(result.params).ravel(), right, rtol=1e-10, atol=1e-12)


def test_von_mises():
    angles = np.random.default_rng(4).vonmises(0.8, 2.5, 80)
    nodes, weights = np.polynomial.legendre.leggauss(60)

    def loss(p, angles):
        t, w = mx.array(np.pi * nodes, mx.float64), mx.array(np.pi * weights, mx.float64)
        bessel = mx.log(mx.sum(w * mx.exp(p[1] * mx.cos(t))))
        return bessel - p[1] * mx.mean(mx.cos(angles - p[0]))

    center = np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())
    length = np.hypot(np.sin(angles).mean(), np.cos(angles).mean())

    def excess(kappa):
        return scipy.special.ive(1, kappa) / scipy.special.ive(0, kappa) - length

    kappa: Any = scipy.optimize.brentq(excess, 0.1, 20, xtol=1e-14)
    result = mo.minimize(loss, float64([0.5, 2.0]), mo.Newton(), angles, tol=1e-12)
    np.testing.assert_allclose(np.array(result.params), [center, kappa], rtol=1e-10)


def test_activations_of_data_and_of_constants():
    features = np.random.default_rng(5).normal(size=6)
    shares = scipy.special.expit(features)
    with mx.stream(mx.cpu):
        p, x, constant = float64(0.7), float64(features), float64([0.3, 0.4, 0.5])

        def loss(p, x):
            return mx.sum(mx.exp(p) * nn.sigmoid(x))

        for slope in (mo.grad(loss), mo.grad(loss, compile=False)):
            assert slope(p, x).item() == pytest.approx(np.exp(0.7) * shares.sum(), rel=1e-14)
        assert mo.hessian(loss)(p, x).item() == pytest.approx(np.exp(0.7) * shares.sum(), rel=1e-14)
        with pytest.raises(ValueError, match="compiled with shapeless=True"):
            mo.grad(lambda p: mx.sum(p * nn.mish(constant)), compile=False)(p)


# --- What stays out of reach ---------------------------------------------------------------------


def test_a_captured_function_is_named():
    own = {name: getattr(mx, name) for name in ("logaddexp", "softmax", "sin")}
    compiled = mx.compile(lambda p: EXP(p))
    cases = [
        (lambda p: mx.sum(mx.exp(p)), []),
        (lambda p: mx.sum(EXP(p)), ["mx.exp"]),
        (lambda p: EXP(p) + own["sin"](p), ["mx.exp", "mx.sin"]),
        (lambda p: mx.sum(compiled(p)), ["mx.exp"]),
        (lambda p: own["logaddexp"](p, 0), ["mx.logaddexp"]),
        (lambda p: own["softmax"](p), ["mx.softmax"]),
        (lambda p: mo.special.exp(p) + mo.special.erf(p) + mo.special.softmax(p), []),
        (lambda p: mx.sum(p * EXP(mx.array([1.0, 2.0]))), []),  # a constant
        (lambda p: mx.sum(p * mx.random.normal((2,))), []),
        (lambda p: mx.grad(lambda p: mx.sum(EXP(p)))(p), ["mx.exp"]),
        (lambda p: mx.linalg.cholesky(mx.diag(EXP(p)), stream=mx.cpu), ["mx.exp"]),
    ]
    with mx.stream(mx.cpu):
        mx.eval(compiled(float64([0.1, 0.2])))
        for i, (loss, expected) in enumerate(cases):
            assert float64_suspects(loss, float64([0.3, 0.5])) == expected, i
            assert float64_suspects(loss, mx.array([0.3, 0.5])) == []
        tree = {"a": float64([0.3, 0.5]), "b": [mx.zeros(2)]}
        loss = lambda t, y: mx.sum(EXP(t["a"] * y) + t["b"][0])  # noqa: E731
        assert float64_suspects(loss, tree, (float64([1.0, 2.0]),)) == ["mx.exp"]

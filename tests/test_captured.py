"""Losses that refer to the very arrays that are their start or their data."""

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo

rng = np.random.default_rng(0)
DESIGN, TARGET = rng.normal(size=(12, 2)), rng.normal(size=12)
CENTER = np.array([1.0, 2.0])
# The minimum of mean (X p - y)² + ‖p - center‖², by the normal equations.
RIDGE = np.linalg.solve(DESIGN.T @ DESIGN / 12 + np.eye(2), DESIGN.T @ TARGET / 12 + CENTER)
DTYPES = [mx.float32, mx.float64]


def arrays(dtype=mx.float32):
    return tuple(mx.array(item, dtype=dtype) for item in (DESIGN, TARGET, CENTER))


def close(params, expected, dtype=mx.float32):
    tolerance = 1e-6 if dtype == mx.float64 else 2e-4
    np.testing.assert_allclose(np.array(params), expected, rtol=tolerance)


OPTIMIZERS = [
    mo.LBFGS(),
    mo.BFGS(),
    mo.Newton(),
    mo.NewtonCG(),
    mo.TrustRegion(),
    mo.ConjugateGradient(),
    mo.LBFGSB(lower=-10.0),
    mo.Adam(0.05),
    mo.SGD(0.1),
    mo.ProximalGradient(mo.prox.L1(0.0)),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_penalty_towards_the_start(optimizer, dtype):
    X, y, start = arrays(dtype)

    def loss(p, X, y):
        return mx.mean(mx.square(X @ p - y)) + mx.sum(mx.square(p - start))

    result = mo.minimize(loss, start, optimizer, X, y, tol=1e-5 if dtype == mx.float32 else 1e-8)
    assert result.converged
    close(result.params, RIDGE, dtype)
    close(start, CENTER)


def captured_data(X, y, start):
    return lambda p, *_: mx.mean(mx.square(X @ p - y)) + mx.sum(mx.square(p - start))


def derived_and_unevaluated(X, y, start):
    center, gram = start * 1, X.T @ X / 12  # these are computed with the loss
    return lambda p, *_: p @ gram @ p - 2 * mx.mean(X @ p * y) + mx.sum(mx.square(p - center))


def in_an_object(X, y, start):
    class Penalized:
        def __init__(self):
            self.inputs = {"X": X, "y": y, "center": start}

        def __call__(self, p, *_):
            residual = self.inputs["X"] @ p - self.inputs["y"]
            return mx.mean(mx.square(residual)) + mx.sum(mx.square(p - self.inputs["center"]))

    return Penalized()


LOSSES = pytest.mark.parametrize("make", [captured_data, derived_and_unevaluated, in_an_object])


@LOSSES
@pytest.mark.parametrize("finish", [None, "float64"])
def test_minimize_and_its_certificate(make, finish):
    X, y, start = arrays()
    result = mo.minimize(make(X, y, start), start, mo.LBFGS(), X, y, finish=finish)
    assert result.converged
    assert result.certificate.is_minimum
    close(result.params, RIDGE)


@LOSSES
def test_train(make):
    X, y, start = arrays()
    result = mo.train(make(X, y, start), start, mo.SGD(0.2), [(X, y)], epochs=200)
    close(result.params, RIDGE)


@LOSSES
def test_many_problems(make):
    X, y, start = arrays()
    both, axes = mx.stack([y, y]), (None, None, 0)
    many = mo.minimize_many(make(X, y, start), start, mo.LBFGS(), X, both, in_axes=axes)
    close(many.params, [RIDGE, RIDGE])


@LOSSES
def test_certify(make):
    X, y, start = arrays()
    loss, best = make(X, y, start), mx.array(RIDGE)
    assert mo.certify(loss, best, X, y).is_minimum
    assert not mo.certify(loss, start, X, y).is_minimum


def test_a_resumed_run_whose_loss_refers_to_the_state():
    X, y, start = arrays()
    loss = captured_data(X, y, start)
    first = mo.minimize(loss, start, mo.Newton(), X, y, max_steps=1, tol=0)

    def same(p, *data):
        return loss(p, *data) + 0 * mx.sum(p - first.params)

    result = mo.minimize(same, start, mo.Newton(), X, y, init=first.state)
    assert result.params is not first.params
    close(result.params, RIDGE)


@pytest.mark.parametrize(
    ("optimizer", "bounds"),
    [
        (mo.LevenbergMarquardt(), None),
        (mo.LevenbergMarquardt(), (-10.0, None)),
        (mo.GaussNewton(), None),
    ],
)
def test_least_squares(optimizer, bounds):
    X, y, start = arrays()

    def residual(p, X_, _):
        return mx.concatenate([(X @ p - y) / 12**0.5, p - start])

    fit = mo.least_squares(residual, start, X, y, optimizer=optimizer, bounds=bounds)
    close(fit.params, RIDGE)


def test_least_squares_of_many_problems():
    X, y, start = arrays()
    residual = lambda p, X_, y: mx.concatenate([(X @ p - y) / 12**0.5, p - start])  # noqa: E731
    many = mo.minimize_many(
        residual, start, mo.LevenbergMarquardt(), X, mx.stack([y, y]), in_axes=(None, None, 0)
    )
    close(many.params[1], RIDGE)


def test_argmin():
    _, _, start = arrays()
    weight = mx.array(0.5)
    # The minimum of ‖w - start‖² + l ‖w‖² is start / (1 + l).
    solve = mo.argmin(lambda w, l: mx.sum(mx.square(w - start)) + l * mx.sum(w * w), mo.Newton())
    close(solve(start, weight), CENTER / 1.5)
    slope = mo.grad(lambda l: mx.sum(solve(start, l)), compile=False)(weight)
    close(slope, -CENTER.sum() / 1.5**2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives(dtype):
    X, y, p = arrays(dtype)

    def loss(q, *_):
        return mx.sum(mx.square(X @ q - y)) + mx.sum(mx.square(q - p)) + mx.sum(q * p)

    hessian = 2 * DESIGN.T @ DESIGN + 2 * np.eye(2)
    gradient = 2 * DESIGN.T @ (DESIGN @ CENTER - TARGET) + CENTER
    with mx.stream(mx.cpu):
        close(mo.value_and_grad(loss)(p, X, y)[1], gradient, dtype)
        close(mo.grad(loss)(p), gradient, dtype)
        close(mo.hvp(loss)(p, p, X, y), hessian @ CENTER, dtype)
        close(mo.hessian(loss)(p, X, y), hessian, dtype)
        close(mo.jacobian(lambda q: X @ q - y + 0 * p[0])(p), DESIGN, dtype)
        rows = mo.per_example_grad(lambda q, x: mx.sum(x @ q) + mx.sum(q * p))(p, X)
        close(rows, DESIGN + CENTER, dtype)
        assert mo.check_grads(loss, p, X, y).passed
        both = mo.grad(lambda a, b: mx.sum(a * a * b) + mx.sum(a * p), argnums=(0, 1))(p, p)
        close(both[0], 2 * CENTER**2 + CENTER, dtype)


def test_inference():
    _, y, _ = arrays(mx.float64)
    center = mx.mean(y)
    nll = lambda p, y: 0.5 * mx.square(y - p) + 0 * center  # noqa: E731
    estimates = mo.inference.covariance(nll, center, y)
    np.testing.assert_allclose(estimates.standard_errors.item(), 12**-0.5, rtol=1e-9)
    moved = mo.inference.delta(lambda p: 3 * p + estimates.values, estimates)
    np.testing.assert_allclose(moved.standard_errors.item(), 3 * 12**-0.5, rtol=1e-9)


@pytest.mark.parametrize("compile", [True, False])
def test_the_result_does_not_share_the_arrays_of_the_start(compile):
    start = {"w": mx.array([0.0, 0.0]), "b": mx.array([5.0])}

    def loss(p, *_):
        return mx.sum(mx.square(p["w"])) + mx.sum(mx.square(p["b"] - 5))

    results = [
        mo.minimize(loss, start, mo.LBFGS(), compile=compile),
        mo.minimize(loss, start, mo.SGD(0.1), max_steps=3, tol=0, compile=compile),
        mo.train(loss, start, mo.SGD(0.1), [mx.zeros(1)], compile=compile),
    ]
    for result in results:
        for name in start:
            np.asarray(result.params[name])[0] = 7.0
            result.params[name][0] = 8.0
    assert start["w"].tolist() == [0.0, 0.0]
    assert start["b"].tolist() == [5.0]
    first = mo.minimize(loss, start, mo.LBFGS(), compile=compile)
    again = mo.minimize(loss, start, mo.LBFGS(), init=first.state, compile=compile)
    again.params["w"][0] = 9.0
    assert first.params["w"].tolist() == [0.0, 0.0]


def test_a_fit_does_not_share_the_arrays_of_its_start():
    x, start = mx.array([1.0, 2.0, 3.0]), mx.array([2.0])
    fit = mo.least_squares(lambda p, x: p * x - 2 * x, start, x)
    np.asarray(fit.params)[0] = 7.0
    assert start.tolist() == [2.0]

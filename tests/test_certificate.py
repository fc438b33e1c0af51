"""What kind of point it is: known minima, saddles, plateaus and losses without a minimum."""

import warnings

import mlx.core as mx
import numpy as np
import pytest
from problems import array64, regression, rosenbrock, squared_loss

import mlxopt as mo

MINIMA = {
    "bowl": (lambda w: mx.sum(mx.square(w - 1)), mx.zeros(2)),
    "warm start at the optimum": (lambda w: mx.sum(mx.square(w - 1)), mx.ones(2)),
    "Rosenbrock": (rosenbrock, mx.zeros(4)),
    "degenerate": (lambda w: 1 + mx.sum(w**4), mx.ones(2)),
    "degenerate, warm": (lambda w: mx.sum(w**4), mx.zeros(2)),
    "badly scaled": (lambda w: 1e6 * mx.square(w[0] - 1) + 1e-4 * mx.square(w[1]), mx.zeros(2)),
    "a valley": (lambda w: mx.square(w[0] + w[1] - 1), mx.zeros(2)),
    "many parameters": (lambda w: mx.sum(mx.square(w - 0.5)), mx.zeros(300)),
}
OTHERS = {
    "a start on a saddle": (lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4, mx.zeros(2), "saddle"),
    "a maximum": (lambda w: mx.sum(mx.cos(w)), mx.zeros(2), "maximum"),
    "an inflection": (lambda w: mx.sum(w**3), mx.zeros(2), "falls along"),
    "a constant": (lambda w: 1 + mx.sum(0 * w), mx.zeros(2), "plateau"),
    "a dead unit": (lambda w: mx.sum(mx.maximum(w - 5, 0)), mx.zeros(2), "plateau"),
    "a saturated unit": (lambda w: mx.sum(mx.tanh(1000 * w)), mx.ones(2), "plateau"),
    "an infimum at infinity": (lambda w: mx.sum(mx.exp(-w)), mx.zeros(2), "at infinity"),
    "the same above one": (lambda w: 1 + mx.sum(1 / w), mx.ones(2), "at infinity"),
    "no lower bound": (lambda w: mx.sum(w), mx.zeros(2), "Not a minimum"),
    "many and a saddle": (lambda w: mx.sum(mx.square(w[1:])) - w[0] ** 2, mx.zeros(300), "saddle"),
    "many, at infinity": (lambda w: mx.sum(mx.exp(-w)), mx.zeros(300), "at infinity"),
    "many, constant": (lambda w: 1 + mx.sum(0 * w), mx.zeros(300), "plateau"),
}


@pytest.mark.parametrize("name", MINIMA)
@pytest.mark.parametrize("wide", [False, True])
def test_a_minimum_is_called_one(name, wide):
    loss, start = MINIMA[name]
    start = start.astype(mx.float64, stream=mx.cpu) if wide else start
    result = mo.minimize(loss, start, mo.LBFGS())
    assert result.converged
    certificate = result.certificate
    assert certificate.is_minimum, certificate.verdict
    assert certificate is result.certificate  # computed once


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_nothing_else_is(name):
    loss, start, words = OTHERS[name]
    certificate = mo.minimize(loss, start, mo.LBFGS()).certificate
    assert not certificate.is_minimum
    assert words in certificate.verdict


def test_separated_classes_have_no_minimum():
    X = np.random.default_rng(0).normal(size=(100, 3))
    y = (X[:, 0] > 0).astype(float)

    def loss(w, X, y):
        return mx.mean(mo.losses.logistic(X @ w, y))

    result = mo.minimize(loss, mx.zeros(3), mo.LBFGS(), X, y)
    assert result.converged  # the gradient is small
    assert not result.certificate.is_minimum
    assert "penalty" in result.certificate.verdict
    start = mx.zeros(3)
    ridge = mo.minimize(
        lambda w, X, y: loss(w, X, y) + 0.1 * mx.sum(w * w), start, mo.LBFGS(), X, y
    )
    assert ridge.certificate.is_minimum


def test_the_numbers_are_those_of_a_quadratic():
    H, b = np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([1.0, -1.0])
    A, c = array64(H), array64(b)
    point = np.array([0.1, -0.2])
    certificate = mo.certify(lambda w: 0.5 * w @ A @ w - c @ w, array64(point))
    gradient = H @ point - b
    step = np.linalg.solve(H, gradient)
    # Some roundings of numbers of size one.
    assert certificate.grad_norm == pytest.approx(np.abs(gradient).max(), rel=1e-14)
    assert certificate.decrement == pytest.approx(np.sqrt(gradient @ step), rel=1e-14)
    assert certificate.distance == pytest.approx(np.abs(step).max(), rel=1e-14)
    assert certificate.curvature == pytest.approx(np.linalg.eigvalsh(H)[0], rel=1e-14)
    assert certificate.condition == pytest.approx(np.linalg.cond(H), rel=1e-13)
    assert not certificate.is_minimum


def test_lanczos_finds_the_ends_of_the_spectrum():
    scale = mx.array(np.linspace(1, 9, 400), dtype=mx.float64)
    certificate = mo.certify(lambda w: 0.5 * mx.sum(scale * w * w), array64(np.zeros(400)))
    # Thirty products find the ends of an even spectrum to about a percent, from inside.
    assert certificate.curvature is not None
    assert certificate.condition is not None
    assert 1 < certificate.curvature < 1.1
    assert 8.5 < certificate.condition * certificate.curvature < 9


def test_the_floor_is_that_of_the_dtype():
    X, y, _ = regression(rows=1000)
    params = {"w": mx.zeros(5), "b": mx.array(0.0)}
    narrow = mo.minimize(squared_loss, params, mo.LBFGS(), X, y).certificate
    wide = mo.minimize(squared_loss, params, mo.LBFGS(), X, y, finish="float64").certificate
    assert 1e-9 < narrow.floor < 1e-5
    assert 1e-18 < wide.floor < 1e-14
    assert "float64" in narrow.verdict
    assert "float64" not in wide.verdict


def test_a_random_loss_is_certified_with_the_draw_it_was_minimized_with():
    def loss(w):
        return mx.mean(mx.square(w - mx.random.normal((20,))))

    result = mo.minimize(loss, mx.zeros(1), mo.LBFGS())
    mx.random.normal((5,))  # the global generator moves on
    assert result.certificate.is_minimum


def test_a_loss_that_branches_on_values():
    def loss(w):
        return mx.sum(mx.square(w)) if bool(mx.sum(w) > 0) else mx.sum(2 * mx.square(w))

    result = mo.minimize(loss, mx.ones(2), mo.LBFGS(), compile=False)
    assert result.certificate.is_minimum


def test_train_has_none_and_says_what_to_do():
    X, y, _ = regression()
    params = {"w": mx.zeros(5), "b": mx.array(0.0)}
    result = mo.train(squared_loss, params, mo.SGD(0.1), mo.batches(X, y, batch_size=20), epochs=2)
    with pytest.raises(ValueError, match=r"mo\.certify"):
        _ = result.certificate
    assert not mo.certify(squared_loss, result.params, X, y).is_minimum


def test_it_prints_within_eighty_columns():
    certificate = mo.minimize(rosenbrock, mx.zeros(4), mo.LBFGS()).certificate
    text = repr(certificate)
    assert text.startswith("Certificate\n  verdict    A minimum")
    assert max(map(len, text.splitlines())) <= 80
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "unknown" in repr(mo.certify(lambda w: mx.sum(0 * w), mx.zeros(2)))


@pytest.mark.parametrize(
    "loss",
    [
        lambda p: mx.square(mx.round(2 * p[0])) + mx.square(p[1] - 1),
        lambda p: 1 - mx.exp(-mx.square(p[0] * 200)) + mx.square(p[1] - 1),
        lambda p: mx.where(p[0] < 1, 2.0, 0.0) + mx.square(p[1] - 1),
        lambda p: p[0] ** 3 * 0 - mx.floor(p[0]) + mx.square(p[1] - 1),
    ],
    ids=["round", "a peak far away", "a threshold", "floor"],
)
def test_a_plateau_in_one_parameter_is_no_minimum(loss):
    found = mo.certify(loss, mx.array([0.6, 1.0]))
    assert found.is_minimum is False
    assert "falls farther away" in found.verdict

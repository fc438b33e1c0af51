"""argmin: derivatives of a minimizer against closed forms and finite differences, in float64."""

import functools
import math

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt import _argmin
from mlxopt._argmin import argmin, inverse_of_hessian, solve_by_products
from mlxopt.autodiff import check_grads, hessian, jacobian
from mlxopt.losses import logistic
from mlxopt.optimizers import LBFGS, Newton

RANDOM = np.random.default_rng(0)
H = 1e-4  # of a central difference: its error is h² f''' / 6, about 1e-9 here


def array64(values):
    return mx.array(np.asarray(values, dtype=np.float64), dtype=mx.float64)


COEF = RANDOM.normal(size=6)
X, X_NEW = RANDOM.normal(size=(40, 6)), RANDOM.normal(size=(30, 6))
Y, Y_NEW = X @ COEF + 3 * RANDOM.normal(size=40), X_NEW @ COEF + 3 * RANDOM.normal(size=30)
DATA = (array64(X), array64(Y))
START = mx.zeros(6, dtype=mx.float64)


@pytest.fixture(autouse=True)
def on_the_cpu():
    with mx.stream(mx.cpu):  # float64
        yield


def ridge(w, l2, X, y):
    return 0.5 * mx.mean(mx.square(X @ w - y)) + 0.5 * l2 * mx.sum(mx.square(w))


def validation_error(w):
    return 0.5 * mx.mean(mx.square(array64(X_NEW) @ w - array64(Y_NEW)))


def ridge_by_hand(l2):
    """The ridge solution and its derivative in l2: (XᵀX/n + l2 I) w = Xᵀy/n."""
    A = X.T @ X / 40 + l2 * np.eye(6)
    w = np.linalg.solve(A, X.T @ Y / 40)
    return w, -np.linalg.solve(A, w)


def difference(function, at, step=H):
    return (function(at + step).item() - function(at - step).item()) / (2 * step)


@pytest.mark.parametrize("optimizer", [LBFGS(), Newton()])
def test_validation_error_by_ridge_strength(optimizer):
    solve = argmin(ridge, optimizer)

    def validation(l2):
        return validation_error(solve(START, l2, *DATA))

    l2 = array64(0.3)
    w, slope = ridge_by_hand(0.3)
    np.testing.assert_allclose(np.array(solve(START, l2, *DATA)), w, atol=1e-7)  # tol 1e-8
    by_hand = (X_NEW @ slope) @ (X_NEW @ w - Y_NEW) / 30
    found = mx.grad(validation)(l2).item()
    assert found == pytest.approx(by_hand, rel=1e-7)
    assert found == pytest.approx(difference(validation, l2), rel=1e-5)
    assert mo.grad(validation, compile=False)(l2).item() == found


def kernel(a, b, log_length):
    # mx.power in place of mx.exp, which is good to seven digits only on the CPU.
    distance = mx.square(a[:, None] - b[None, :])
    return mx.power(
        mx.array(math.e, mx.float64), -0.5 * distance * mx.power(math.e, -2 * log_length)
    )


def test_validation_error_of_a_gaussian_process_by_its_hyper_parameters():
    inputs = np.sort(RANDOM.uniform(-3, 3, 25))
    targets = np.sin(2 * inputs) + 0.2 * RANDOM.normal(size=25)
    new = np.linspace(-2.5, 2.5, 17)
    a, y, b, z = (array64(v) for v in (inputs, targets, new, np.sin(2 * new)))

    def energy(weights, hyper, a, y):
        """Least where (K + σ² I) weights = y."""
        smooth = kernel(a, a, hyper["log_length"]) @ weights
        noise = mx.power(math.e, 2 * hyper["log_noise"]) * weights
        return 0.5 * mx.inner(weights, smooth + noise) - mx.inner(weights, y)

    solve = argmin(energy, Newton(), tol=1e-11)

    def validation(hyper):
        weights = solve(mx.zeros(25, dtype=mx.float64), hyper, a, y)
        return mx.mean(mx.square(kernel(b, a, hyper["log_length"]) @ weights - z))

    hyper = {"log_length": array64(-0.3), "log_noise": array64(-1.2)}
    gradient = mo.grad(validation, compile=False)(hyper)
    for name in hyper:
        by_differences = difference(lambda at, n=name: validation({**hyper, n: at}), hyper[name])
        assert gradient[name].item() == pytest.approx(by_differences, rel=1e-5)

    def by_solving(log_length, log_noise):
        K = np.exp(-0.5 * np.subtract.outer(inputs, inputs) ** 2 / np.exp(2 * log_length))
        k = np.exp(-0.5 * np.subtract.outer(new, inputs) ** 2 / np.exp(2 * log_length))
        weights = np.linalg.solve(K + np.exp(2 * log_noise) * np.eye(25), targets)
        return np.mean((k @ weights - np.sin(2 * new)) ** 2)

    assert validation(hyper).item() == pytest.approx(by_solving(-0.3, -1.2), rel=1e-9)
    slope = (by_solving(-0.3, -1.2 + H) - by_solving(-0.3, -1.2 - H)) / (2 * H)
    assert gradient["log_noise"].item() == pytest.approx(slope, rel=1e-6)


def logistic_loss(params, l2, X, y):
    logits = X @ params["coef"][0] + params["intercept"]
    return mx.mean(logistic(logits, y)) + 0.5 * l2 * mx.sum(mx.square(params["coef"][0]))


def test_a_tree_of_parameters_labels_and_derivatives_in_the_data():
    labels = mx.array((Y > 0).astype(np.int32))
    start = {"coef": [mx.zeros(6, dtype=mx.float64)], "intercept": array64(0.0)}
    solve = argmin(logistic_loss, Newton(), tol=1e-12)

    def influence(X):
        fit = solve(start, array64(0.1), X, labels)
        return mx.sum(mx.square(fit["coef"][0])) + fit["intercept"]

    check_grads(influence, DATA[0], compile=False)  # twice
    fit = solve(start, 0.1, DATA[0], labels)  # a plain number: nothing to differentiate in it
    assert fit["coef"][0].dtype == mx.float64


def test_higher_derivatives_and_jacobians():
    def curved(w, l2, X, y):  # so that its third derivatives are not zero
        return ridge(w, l2, X, y) + 0.1 * l2 * mx.sum(mx.square(mx.square(w)))

    curved_solve = argmin(curved, Newton(), tol=1e-12)

    def validation(l2):
        return validation_error(curved_solve(START, l2, *DATA))

    l2 = array64(0.3)
    second = hessian(validation, compile=False)
    assert second(l2).item() == pytest.approx(difference(mx.grad(validation), l2), rel=1e-6)
    third = mx.grad(lambda l2: second(l2))(l2).item()
    assert third == pytest.approx(difference(second, l2), rel=1e-6)
    solve = argmin(ridge, Newton(), tol=1e-12)
    path = jacobian(lambda l2: solve(START, l2, *DATA), compile=False)(l2)
    np.testing.assert_allclose(np.array(path), ridge_by_hand(0.3)[1], rtol=1e-9)
    of_targets = jacobian(lambda y: solve(START, l2, DATA[0], y), compile=False)(DATA[1])
    np.testing.assert_allclose(
        np.array(of_targets), np.linalg.solve(X.T @ X / 40 + 0.3 * np.eye(6), X.T / 40), rtol=1e-9
    )


def test_the_strength_itself_can_be_minimized_over():
    solve = argmin(ridge, Newton(), tol=1e-12)

    def validation(log_l2):
        return validation_error(solve(START, mx.power(math.e, log_l2), *DATA))

    result = mo.minimize(validation, array64(-1.0), LBFGS(), compile=False)
    assert result.converged
    best = result.params.item()
    values = {
        shift: 0.5 * np.mean((X_NEW @ ridge_by_hand(np.exp(best + shift))[0] - Y_NEW) ** 2)
        for shift in (-0.1, 0.0, 0.1)
    }
    assert values[0.0] < min(values[-0.1], values[0.1])


def test_conjugate_gradients_in_place_of_the_dense_hessian(monkeypatch):
    solve = argmin(ridge, LBFGS(), tol=1e-11)

    def validation(l2):
        return validation_error(solve(START, l2, *DATA))

    l2 = array64(0.3)
    dense = mx.grad(validation)(l2).item(), mx.grad(mx.grad(validation))(l2).item()
    monkeypatch.setattr(_argmin, "_DENSE", 3)
    matrix_free = mx.grad(validation)(l2).item(), mx.grad(mx.grad(validation))(l2).item()
    assert matrix_free == pytest.approx(dense, rel=1e-9)
    path = jacobian(lambda l2: solve(START, l2, *DATA)[:2], compile=False)(l2)
    np.testing.assert_allclose(np.array(path), ridge_by_hand(0.3)[1][:2], rtol=1e-9)


def test_two_thousand_parameters():
    size = 2000
    scale = array64(np.linspace(1, 50, size))

    def loss(w, shift, scale):
        return 0.5 * mx.sum(scale * mx.square(w - shift)) + 0.25 * mx.sum(w**4)

    solve = argmin(loss, LBFGS(), tol=1e-10)

    def total(shift):
        return mx.sum(solve(mx.zeros(size, dtype=mx.float64), shift, scale))

    gradient = mx.grad(total)(array64(0.7)).item()
    w = np.array(solve(mx.zeros(size, dtype=mx.float64), array64(0.7), scale))
    assert gradient == pytest.approx(
        np.sum(np.array(scale) / (np.array(scale) + 3 * w**2)), rel=1e-9
    )


def test_float32_and_a_start_without_derivative():
    solve = argmin(ridge, Newton())
    data = [mx.array(X.astype(np.float32)), mx.array(Y.astype(np.float32))]
    start = mx.zeros(6)

    def total(l2, start=start):
        return mx.sum(solve(start, l2, *data))

    found = mo.grad(total, compile=False)(mx.array(0.3))
    assert found.dtype == mx.float32
    assert found.item() == pytest.approx(ridge_by_hand(0.3)[1].sum(), rel=1e-4)
    assert mx.grad(total, argnums=1)(mx.array(0.3), start + 1.0).tolist() == [0] * 6


@pytest.mark.parametrize("transform", ["compile", "vmap", "guard", "minimize", "grad of compile"])
def test_where_values_are_unknown_it_says_so(transform):
    solve = argmin(ridge, Newton())

    def validation(l2):
        return validation_error(solve(START, l2, *DATA))

    l2 = array64(0.3)
    call = {
        "compile": lambda: mx.compile(validation)(l2),
        "vmap": lambda: mx.vmap(validation)(mx.stack([l2, l2])),
        "guard": lambda: mo.grad(validation)(l2),
        "minimize": lambda: mo.minimize(validation, l2, LBFGS()),
        "grad of compile": lambda: mx.compile(mx.grad(validation))(l2),
    }[transform]
    with pytest.raises(mo.TapeError, match="compile=False"):
        call()


def test_forward_mode_is_refused_in_words():
    solve = argmin(ridge, Newton())
    with pytest.raises(NotImplementedError, match="reverse mode"):
        mx.jvp(lambda l2: solve(START, l2, *DATA), [array64(0.3)], [array64(1.0)])


def test_an_inner_problem_that_has_not_converged_is_told():
    with pytest.warns(mo.ConvergenceWarning, match="max_steps"):
        argmin(ridge, LBFGS(), max_steps=2)(START, array64(0.01), *DATA)
    with pytest.raises(ValueError, match="UNBOUNDED"), pytest.warns(mo.ConvergenceWarning):
        argmin(lambda w, a: a * mx.sum(w), LBFGS())(START, array64(1.0))
    with pytest.raises(ValueError, match="tol is 0"):
        argmin(ridge, LBFGS(), tol=0)


def test_minima_without_a_derivative(monkeypatch):
    def valley(w, a):
        return mx.square(w[0] + w[1] - a)

    def quartic(w, a):
        return mx.sum((w - 0 * a) ** 4)

    start = array64([1.0, 0.5])
    for loss, matrix_free in ((valley, False), (quartic, False), (quartic, True)):
        solve = argmin(loss, LBFGS(), tol=1e-30 if loss is quartic else 1e-8)
        point = array64([0.0, 0.0]) if loss is quartic else start

        def total(a, solve=solve, point=point):
            return mx.sum(solve(point, a))

        monkeypatch.setattr(_argmin, "_DENSE", 1 if matrix_free else 1000)
        with pytest.raises(ValueError, match="definite"):
            mx.grad(total)(array64(1.0))


def test_a_bound_is_no_smooth_minimum():
    with pytest.raises(ValueError, match="bound"):
        argmin(ridge, mo.LBFGSB(upper=0.0))(START, array64(0.3), *DATA)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="function"):
        argmin(3.0, LBFGS())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="optimizer is the class LBFGS"):
        argmin(ridge, LBFGS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="int32"):
        argmin(ridge, LBFGS())(mx.array([1]), array64(1.0), *DATA)
    with pytest.raises(mo.TapeError, match="reads an array back"):
        argmin(lambda w, a: mx.array(w[0].item()), LBFGS())(START, array64(1.0))


def test_random_numbers_are_those_of_the_minimization():
    def loss(w, a, X):
        return 0.5 * mx.sum(mx.square((w - a) * X * mx.random.normal((6,)))) + 0.5 * mx.sum(w**2)

    solve = argmin(loss, Newton())
    mx.random.seed(7)
    mask = np.array(mx.random.normal((6,)), dtype=np.float64) ** 2
    mx.random.seed(7)
    slope = mx.grad(lambda a: mx.sum(solve(START, a, mx.ones(6, dtype=mx.float64))))(array64(1.0))
    assert slope.item() == pytest.approx(np.sum(mask / (mask + 1)), rel=1e-6)


def matrix(size, condition):
    Q, _ = np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))
    return (Q * np.geomspace(1, condition, size)) @ Q.T


def test_the_linear_solvers():
    A, b = matrix(30, 1e4), np.random.default_rng(1).normal(size=30)
    expected = np.linalg.solve(A, b)
    root = inverse_of_hessian(A, 2.0**-52)
    np.testing.assert_allclose(root @ root.T @ b, expected, rtol=1e-9)
    found = solve_by_products(functools.partial(np.matmul, A), b, 2.0**-52)
    np.testing.assert_allclose(found, expected, rtol=1e-7)  # residual 2e-12, condition 1e4
    assert (solve_by_products(lambda v: v, np.zeros(3), 2.0**-52) == 0).all()
    units = np.diag(np.geomspace(1e-8, 1e8, 30))  # of the parameters: harmless to the dense one
    root = inverse_of_hessian(units @ A @ units, 2.0**-52)
    np.testing.assert_allclose(units @ root @ root.T @ units @ b, expected, rtol=1e-8)
    for indefinite in (A - 2 * np.eye(30), np.zeros((30, 30)), -A, A - np.outer(b, b)):
        with pytest.raises(ValueError, match="not positive definite"):
            inverse_of_hessian(indefinite, 2.0**-52)
    with pytest.raises(ValueError, match="not finite"):
        inverse_of_hessian(A + np.nan, 2.0**-52)
    with pytest.raises(ValueError, match="not positive definite"):
        solve_by_products(lambda v: -v, b, 2.0**-52)
    rounded = matrix(300, 1e12)
    with pytest.warns(mo.ConvergenceWarning, match="badly conditioned"):
        solve_by_products(lambda v: (rounded @ v).astype(np.float32), np.ones(300), 2.0**-40)

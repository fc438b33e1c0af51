"""NumPy arrays, numbers and keywords where a person would pass them."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxopt as mo

X = np.random.default_rng(0).normal(size=(20, 2))
Y = X @ [1.0, -2.0] + 0.5
W = np.array([0.3, 0.7])


def loss(w, X, y):
    return 0.5 * mx.mean(mx.square(X @ w - y))


def residuals(w, X, y):
    return X @ w - y


GRAD = X.T @ (X @ W - Y) / 20
CURVATURE = X.T @ X / 20
DERIVATIVES = {
    "value_and_grad": (lambda w: mo.value_and_grad(loss)(w, X, Y)[1], GRAD),
    "grad": (lambda w: mo.grad(loss)(w, X, Y), GRAD),
    "by name": (lambda w: mo.grad(loss)(w, X=X, y=Y), GRAD),
    "op by op": (lambda w: mo.grad(loss, compile=False)(w, X, Y), GRAD),
    "hessian": (lambda w: mo.hessian(loss)(w, X, Y), CURVATURE),
    "hvp": (lambda w: mo.hvp(loss)(w, np.array([1.0, 2.0]), X, Y), CURVATURE @ [1.0, 2.0]),
    "jacobian": (lambda w: mo.jacobian(residuals)(w, X, Y), X),
    "per_example_grad": (
        lambda w: mo.per_example_grad(loss)(w, X, Y),
        X * (X @ W - Y)[:, None],
    ),
}


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_derivatives_take_numpy_data(name, dtype):
    call, expected = DERIVATIVES[name]
    with mx.stream(mx.cpu):
        found = call(mx.array(W, dtype=dtype))
    assert found.dtype == dtype
    tolerance = 1e-12 if dtype == mx.float64 else 1e-5
    exact = mx.array(W, dtype=dtype)  # 0.3 of float32 in float64
    np.testing.assert_allclose(np.array(found), expected, rtol=tolerance, atol=tolerance)
    assert np.abs(np.array(exact) - W).max() < 1e-7


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_take_numpy_parameters(name):
    call, expected = DERIVATIVES[name]
    np.testing.assert_allclose(np.array(call(W)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["grad", "hessian", "jacobian", "per_example_grad"])
def test_derivatives_take_integers_as_numbers(name):
    x = np.arange(1, 6, dtype=np.uint8)
    loss = lambda w, x: mx.sum((w * x**2) ** 2)  # noqa: E731
    calls = {
        "grad": (mo.grad(loss), 4.0 * np.sum(x.astype(float) ** 4)),
        "hessian": (mo.hessian(loss), 2.0 * np.sum(x.astype(float) ** 4)),
        "jacobian": (mo.jacobian(lambda w, x: w * x**-1), 1.0 / x),
        "per_example_grad": (mo.per_example_grad(loss), 4.0 * x.astype(float) ** 4),
    }
    function, expected = calls[name]
    np.testing.assert_allclose(np.array(function(mx.array(2.0), x)), expected, rtol=1e-6)


NUMBERS = [3, 3.0, np.float64(3), np.float32(3), np.int64(3), np.array(3.0), np.array(3)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda one: f"{type(one).__name__} {one!r}")
def test_numbers_are_parameters(number):
    square = lambda w, c=1.0: mx.square(w - c)  # noqa: E731
    value, slope = mo.value_and_grad(square)(number)
    assert (value.item(), slope.item(), slope.dtype) == (4.0, 4.0, mx.float32)
    assert mo.hessian(square)(number).item() == 2
    assert abs(mo.minimize(square, number, mo.LBFGS()).params.item() - 1) < 1e-4
    fit = mo.least_squares(lambda w, y: w - y, number, [1.0, 1.25], tol=1e-3)
    assert abs(fit.params.item() - 1.125) < 1e-4
    tree = {"a": number, "b": mx.array(0.0)}
    total = lambda p: mx.square(p["a"] - 1) + mx.square(p["b"])  # noqa: E731
    found = mo.minimize(total, tree, mo.LBFGS()).params
    assert abs(found["a"].item() - 1) < 1e-4
    trained = mo.train(square, number, mo.SGD(0.25), [(1.0,)] * 30)
    assert abs(trained.params.item() - 1) < 1e-4
    assert mo.certify(square, type(number)(1) if type(number) is not np.ndarray else 1).is_minimum
    assert mo.argmin(square, mo.LBFGS())(number, mx.array(2.0)).item() == pytest.approx(2, abs=1e-4)


def test_numpy_parameters_are_arrays_of_mlx_in_the_result():
    result = mo.minimize(loss, {"w": W}["w"], mo.LBFGS(), X, X @ W)
    assert isinstance(result.params, mx.array)
    assert result.params.dtype == mx.float32
    half = mo.grad(lambda w: mx.sum(w**2))(W.astype(np.float16))
    assert half.dtype == mx.float16


def test_inference_keeps_the_digits_of_numpy_estimates():
    estimate = np.linalg.lstsq(X, Y, rcond=None)[0]
    found = mo.inference.covariance(lambda *args: 0.5 * mx.square(residuals(*args)), estimate, X, Y)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(X.T @ X), rtol=1e-12)


MODULE = nn.Linear(2, 1)
CALLS = {
    "minimize": lambda m: mo.minimize(loss, m, mo.LBFGS(), X, Y),
    "train": lambda m: mo.train(loss, m, mo.SGD(0.1), mo.batches(X, Y, batch_size=5)),
    "least_squares": lambda m: mo.least_squares(residuals, m, X, Y),
    "minimize_many": lambda m: mo.minimize_many(loss, m, mo.LBFGS(), X, Y),
    "value_and_grad": lambda m: mo.value_and_grad(loss)(m, X, Y),
    "hessian": lambda m: mo.hessian(loss)(m, X, Y),
    "certify": lambda m: mo.certify(loss, m, X, Y),
    "check_grads": lambda m: mo.check_grads(loss, m, X, Y),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("where", ["params", r"params\['net'\]", r"params\[0\]"])
def test_a_module_as_parameters_is_told_what_to_do(name, where):
    wrapped = {"params": MODULE, r"params\['net'\]": {"net": MODULE}, r"params\[0\]": [MODULE]}
    words = rf"{where} is an mlx.nn.Module \(Linear\); .*params, apply = mo.functional\(module\)"
    with pytest.raises(TypeError, match=words):
        CALLS[name](wrapped[where])


def test_a_module_among_the_data():
    frozen = nn.Embedding(3, 1)

    def shifted(w, module, k, y):
        return mx.mean(mx.square(w + module(k)[:, 0] - y))

    k, y = np.array([0, 2, 1]), np.zeros(3)
    slope = mo.grad(shifted)(mx.array(1.0), frozen, k, y)
    expected = 2 * (1 + np.array(frozen.weight)[:, 0].mean())
    np.testing.assert_allclose(slope.item(), expected, rtol=1e-5)
    with pytest.raises(TypeError, match=r"module is an mlx.nn.Module \(Embedding\)"):
        mo.minimize(shifted, mx.array(1.0), mo.LBFGS(), frozen, k, y)


def test_gradients_by_name_are_those_of_mlx():
    f = lambda a, b, c=2.0: mx.sum(a * b * c)  # noqa: E731
    a, b, c = mx.ones(2), mx.array([2.0, 3.0]), mx.array([4.0, 5.0])
    calls = [
        ({"argnames": "b"}, (a,), {"b": b}),
        ({"argnames": ["b", "c"]}, (a,), {"b": b, "c": c}),
        ({"argnums": 0, "argnames": "c"}, (a, b), {"c": c}),
        ({"argnums": (0, 1), "argnames": ("c",)}, (a, b), {"c": c}),
    ]
    for options, args, kwargs in calls:
        ours = mo.value_and_grad(f, **options)(*args, **kwargs)
        theirs = mx.value_and_grad(f, **options)(*args, **kwargs)
        assert str(ours) == str(theirs)
        assert str(mo.grad(f, **options)(*args, **kwargs)) == str(theirs[1])
    numpy = mo.grad(f, argnames="b")(np.ones(2), b=np.array([2.0, 3.0]))
    assert numpy[1]["b"].tolist() == [2, 2]


def test_arguments_that_are_not_where_they_are_expected():
    with pytest.raises(
        ValueError, match=r"loss was called with 0 .* and w, X, y by name.*argnames"
    ):
        mo.value_and_grad(loss)(w=W, X=X, y=Y)
    with pytest.raises(ValueError, match=r"without w=.*argnums"):
        mo.value_and_grad(loss, argnames="w")(W, X, Y)

"""Operations of MLX without a derivative: the error names them, and what to use in their place."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo

START = mx.array([1.0, 2.0, 3.0])
CPU: Any = {"stream": mx.cpu}


def matrix(p):
    return p[:, None] * p + 3 * mx.eye(3)


OPERATIONS = {
    "cholesky": (lambda p: mx.linalg.cholesky(matrix(p), **CPU), "mo.linalg.cholesky"),
    "inv": (lambda p: mx.linalg.inv(matrix(p), **CPU), "mo.linalg.inv"),
    "solve": (lambda p: mx.linalg.solve(matrix(p), p, **CPU), "mo.linalg.solve"),
    "triangular": (
        lambda p: mx.linalg.solve_triangular(mx.tril(matrix(p)), p[:, None], **CPU),
        "mo.linalg.solve_triangular",
    ),
    "qr": (lambda p: mx.linalg.qr(matrix(p), **CPU)[1], "mo.linalg.qr"),
    "svd": (lambda p: mx.linalg.svd(matrix(p), **CPU)[1], "mo.linalg.svd"),
    "pinv": (lambda p: mx.linalg.pinv(matrix(p), **CPU), "mo.linalg.lstsq"),
    "eigh": (lambda p: mx.linalg.eigh(matrix(p), **CPU)[0], "mo.linalg.eigh"),
    "eigvalsh": (lambda p: mx.linalg.eigvalsh(matrix(p), **CPU), "mo.linalg.eigh"),
    "lu": (lambda p: mx.linalg.lu(matrix(p), **CPU)[1], "mo.linalg.slogdet"),
    "view": (lambda p: mx.view(p, mx.int32).astype(mx.float32), "View.*mx.custom_function"),
    "segments": (
        lambda p: mx.segmented_mm(matrix(p), matrix(p), mx.array([[0, 3]])),
        "SegmentedMM.*other operations",
    ),
    "scatter": (
        lambda p: mx.ones(3).at[mx.array([0, 1, 1])].multiply(p),
        "scatter_prod.*mx.prod",
    ),
}
CALLS = {
    "minimize": lambda loss: mo.minimize(loss, START, mo.LBFGS()),
    "op by op": lambda loss: mo.minimize(loss, START, mo.LBFGS(), compile=False),
    "train": lambda loss: mo.train(lambda p, _: loss(p), START, mo.SGD(0.1), [mx.zeros(1)]),
    "least_squares": lambda loss: mo.least_squares(lambda p: loss(p) * mx.ones(4), START),
    "grad": lambda loss: mo.grad(loss)(START),
    "hvp": lambda loss: mo.hvp(loss)(START, START),
    "hessian": lambda loss: mo.hessian(loss)(START),
    "jacobian": lambda loss: mo.jacobian(lambda p: loss(p) * p)(START),
    "per_example_grad": lambda loss: mo.per_example_grad(lambda p, x: loss(p * x[0]))(
        START, mx.ones((2, 3))
    ),
    "check_grads": lambda loss: mo.check_grads(loss, START),
    "certify": lambda loss: mo.certify(loss, START),
    "many": lambda loss: mo.minimize_many(loss, mx.stack([START, START]), mo.LBFGS()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_operation_and_the_cure_are_named(name):
    function, cure = OPERATIONS[name]

    def loss(p):
        return mx.sum(function(p))

    for call in (CALLS["minimize"], CALLS["grad"]):
        with pytest.raises(ValueError, match=rf"loss cannot be differentiated.*{cure}"):
            call(loss)


@pytest.mark.parametrize("name", CALLS)
def test_every_entry_point_says_so(name):
    def loss(p):
        return mx.sum(mx.linalg.cholesky(matrix(p), **CPU))

    with pytest.raises(ValueError, match=r"MLX has no derivative for Cholesky.*mo\.linalg"):
        CALLS[name](loss)


def test_a_missing_second_derivative_is_named_where_it_is_needed():
    # The gradient of a convolution has none in MLX; that of this function neither.
    @mx.custom_function
    def root(x):
        return mx.sum(x * x)

    @root.vjp
    def _(x, cotangent, _):
        return 2 * cotangent * mx.view(mx.view(x, mx.int32), mx.float32)

    function: Any = root
    result = mo.minimize(function, START, mo.LBFGS())
    assert result.converged
    np.testing.assert_allclose(result.params, 0, atol=1e-5)
    for call in (
        lambda: mo.minimize(function, START, mo.Newton()),
        lambda: mo.minimize(function, START, mo.NewtonCG()),
        lambda: mo.hessian(root)(START),
    ):
        with pytest.raises(ValueError, match="no derivative for View, which is in it or in its"):
            call()


@pytest.mark.parametrize("name", ["cholesky", "inv", "eigh", "svd", "qr"])
def test_the_cures_have_derivatives(name):
    def loss(p):
        found = getattr(mo.linalg, name)(matrix(p))
        return mx.sum(found[0 if name == "eigh" else 1] if name in ("svd", "qr", "eigh") else found)

    def value(p):
        matrix = np.outer(p, p) + 3 * np.eye(3)
        found = {
            "cholesky": np.linalg.cholesky,
            "inv": np.linalg.inv,
            "eigh": np.linalg.eigvalsh,
            "svd": lambda a: np.linalg.svd(a)[1],
            "qr": lambda a: np.linalg.qr(a)[1] * np.sign(np.diag(np.linalg.qr(a)[1]))[:, None],
        }[name](matrix)
        return found.sum()

    p, units = np.array([1.0, 2.0, 3.0]), 1e-5 * np.eye(3)
    slopes = [(value(p + unit) - value(p - unit)) / 2e-5 for unit in units]
    with mx.stream(mx.cpu):
        found = mo.grad(loss)(mx.array(p, dtype=mx.float64))
    np.testing.assert_allclose(np.abs(found), np.abs(slopes), rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer", [mo.LBFGS(), mo.BFGS(), mo.ConjugateGradient(), mo.SGD(0.1)], ids=repr
)
def test_a_run_ends_without_second_derivatives(optimizer):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(28, 3)), rng.normal(size=28)

    @mx.custom_function
    def square(x):
        return x * x

    @square.vjp
    def _(x, cotangent, _):
        return 2 * cotangent * mx.view(mx.view(x, mx.int32), mx.float32)

    def loss(w, X, y):
        values: Any = square(X @ w - y)
        return mx.mean(values)

    result = mo.minimize(loss, START, optimizer, X, y)
    assert result.converged
    expected = np.linalg.lstsq(X, y, rcond=None)[0]
    # A loss near 1 tells parameters apart to the root of its rounding, 3.5e-4.
    np.testing.assert_allclose(result.params, expected, atol=3.5e-4)

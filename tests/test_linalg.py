"""Values and derivatives of mlxopt.linalg to second order: both ways, batched, compiled.

Unless a test says otherwise the arithmetic is float64. Finite differences are central with one
Richardson extrapolation at a step of 1e-3: an error of about 1e-12 from truncation and 1e-13 from
rounding, times the derivatives' own size, hence 1e-9 below.
"""

import mlx.core as mx
import numpy as np
import pytest

from mlxopt import linalg

N = 4


def array(values, dtype=mx.float64):
    return mx.array(np.asarray(values, dtype=np.float64), dtype=dtype)


def numbers(*shape, seed=0):
    return array(np.random.default_rng([seed, *shape]).normal(size=shape))


def general(seed=0, n=N):
    return numbers(n, n, seed=seed) + 3 * array(np.eye(n))


def definite(seed=0, n=N):
    half = np.array(numbers(n, n, seed=seed))
    return array(half @ half.T + np.eye(n))


def weigh(*outputs):
    """A scalar that depends on every entry of the outputs, and not linearly."""
    total = mx.array(0.0, dtype=mx.float64)
    for seed, output in enumerate(outputs):
        weights = numbers(*output.shape, seed=100 + seed)
        total = total + mx.sum(weights * output) + mx.sum(weights[..., ::-1] * output * output)
    return total


def eigen_loss(a):
    # Signs of vectors are arbitrary: a loss may only see what does not depend on them.
    w, v = linalg.eigh(a)
    return weigh(w, (v * (w**3 + w)) @ v.T, mx.square(v))


def singular_loss(a):
    u, s, vt = linalg.svd(a)
    return weigh(s, (u * s**3) @ vt, mx.square(u), mx.square(vt))


def least_squares_loss(a):
    return weigh(linalg.lstsq(a, numbers(a.shape[0], 2)))


def tall():
    return numbers(5, 3)


def wide():
    return numbers(3, 5)


def one():
    return array([[2.0]])


# name: (loss of one matrix, the matrix)
LOSSES = {
    "cholesky": (lambda a: weigh(linalg.cholesky(a)), definite),
    "cholesky, 1x1": (lambda a: weigh(linalg.cholesky(a)), one),
    "logdet": (lambda a: linalg.logdet(a) ** 2, definite),
    "slogdet": (lambda a: linalg.slogdet(a)[1] ** 2, general),
    "slogdet, 1x1": (lambda a: linalg.slogdet(a)[1] ** 2, one),
    "inv": (lambda a: weigh(linalg.inv(a)), general),
    "solve, a": (lambda a: weigh(linalg.solve(a, numbers(N, 2))), general),
    "solve, a of a vector": (lambda a: weigh(linalg.solve(a, numbers(N))), general),
    "solve, b": (lambda b: weigh(linalg.solve(general(), b)), lambda: numbers(N, 3)),
    "solve, both": (lambda a: weigh(linalg.solve(a, a @ a.T + a)), general),
    "solve, 1x1": (lambda a: weigh(linalg.solve(a, numbers(1))), one),
    "solve_triangular, lower": (
        lambda a: weigh(linalg.solve_triangular(a, a @ numbers(N, 2))), general,
    ),
    "solve_triangular, upper": (
        lambda a: weigh(linalg.solve_triangular(a, numbers(N), upper=True)), general,
    ),
    "solve_triangular, 1x1": (lambda a: weigh(linalg.solve_triangular(a, numbers(1, 2))), one),
    "qr, tall": (lambda a: weigh(*linalg.qr(a)), tall),
    "qr, square": (lambda a: weigh(*linalg.qr(a)), general),
    "qr, wide": (lambda a: weigh(*linalg.qr(a)), wide),
    "qr, 1x1": (lambda a: weigh(*linalg.qr(a)), one),
    "lstsq, a tall": (least_squares_loss, tall),
    "lstsq, a square": (least_squares_loss, general),
    "lstsq, a wide": (least_squares_loss, wide),
    "lstsq, b": (lambda b: weigh(linalg.lstsq(tall(), b)), lambda: numbers(5)),
    "eigh": (eigen_loss, definite),
    "eigh, 1x1": (eigen_loss, one),
    "eigh, values": (lambda a: weigh(linalg.eigh(a)[0]), definite),
    "svd, square": (singular_loss, general),
    "svd, tall": (singular_loss, tall),
    "svd, wide": (singular_loss, wide),
    "svd, values": (lambda a: weigh(linalg.svd(a)[1]), tall),
    "svd, 1x1": (singular_loss, one),
}  # fmt: skip

by_loss = pytest.mark.parametrize("name", LOSSES)


def differences(function, at, direction, step=1e-3):
    """The derivative of `function` along `direction`."""

    def central(h):
        return (np.array(function(at + h * direction)) - np.array(function(at - h * direction))) / (
            2 * h
        )

    return (4 * central(step / 2) - central(step)) / 3


def product(loss):
    """The Hessian of `loss` times a vector, reverse over reverse."""
    return lambda a, v: mx.grad(lambda b: mx.sum(mx.grad(loss)(b) * v))(a)


def close(got, wanted, tolerance=1e-9):
    got, wanted = np.array(got), np.array(wanted)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * max(1, np.abs(wanted).max()))


@by_loss
def test_gradient_is_that_of_finite_differences(name):
    loss, make = LOSSES[name]
    a = make()
    gradient = mx.grad(loss)(a)
    assert gradient.dtype == mx.float64
    # every entry on its own: symmetric functions are functions of all n² entries
    for index in np.ndindex(*a.shape):
        unit = np.zeros(a.shape)
        unit[index] = 1
        close(np.array(gradient)[index], differences(loss, a, array(unit)))


@by_loss
def test_second_derivative_is_that_of_finite_differences_of_the_gradient(name):
    loss, make = LOSSES[name]
    a, v = make(), numbers(*make().shape, seed=9)
    close(product(loss)(a, v), differences(mx.grad(loss), a, v))


@by_loss
def test_forwards_is_backwards(name):
    # Two ways through the same rules: only rounding between them.
    loss, make = LOSSES[name]
    a, v = make(), numbers(*make().shape, seed=9)
    (_,), (slope,) = mx.jvp(lambda a: [loss(a)], [a], [v])
    close(slope, mx.sum(mx.grad(loss)(a) * v), 1e-12)
    _, (forward,) = mx.jvp(lambda a: [mx.grad(loss)(a)], [a], [v])
    close(forward, product(loss)(a, v), 1e-11)
    over = mx.grad(lambda b: mx.jvp(lambda c: [loss(c)], [b], [v])[1][0])(a)
    close(over, product(loss)(a, v), 1e-11)


@pytest.mark.parametrize("name", ["cholesky", "solve, both", "qr, tall", "eigh", "svd, tall"])
def test_third_derivative_is_that_of_finite_differences_of_the_second(name):
    loss, make = LOSSES[name]
    a, v = make(), numbers(*make().shape, seed=9)
    third = mx.grad(lambda b: mx.sum(product(loss)(b, v) * v))(a)
    slope = differences(lambda b: mx.sum(product(loss)(b, v) * v), a, v, step=1e-3)
    # fifth derivatives of these losses reach 1e4, and truncation with them
    close(mx.sum(third * v), slope, 1e-6)


@by_loss
def test_batched_is_one_by_one(name):
    loss, make = LOSSES[name]
    a = mx.stack([make(), 1.1 * make(), 0.8 * make()])
    v = numbers(*a.shape, seed=9)
    one_by_one = [loss(b) for b in a]
    gradients = mx.stack([mx.grad(loss)(b) for b in a])
    products = mx.stack([product(loss)(b, w) for b, w in zip(a, v, strict=True)])
    close(mx.vmap(loss)(a), mx.stack(one_by_one), 1e-13)
    close(mx.vmap(mx.grad(loss))(a), gradients, 1e-12)
    close(mx.grad(lambda a: mx.sum(mx.vmap(loss)(a)))(a), gradients, 1e-12)
    close(mx.vmap(product(loss))(a, v), products, 1e-11)
    close(product(lambda a: mx.sum(mx.vmap(loss)(a)))(a, v), products, 1e-11)
    # many vectors at one matrix, as the dense Hessian asks for
    at_one = mx.stack([product(loss)(a[0], w) for w in v])
    close(mx.vmap(product(loss), in_axes=(None, 0))(a[0], v), at_one, 1e-11)
    last = mx.moveaxis(a, 0, -1)
    close(mx.vmap(loss, in_axes=-1)(last), mx.stack(one_by_one), 1e-13)
    nested = mx.vmap(mx.vmap(loss))(mx.stack([a, a]))
    close(nested, mx.stack([mx.stack(one_by_one)] * 2), 1e-13)


@pytest.mark.parametrize(
    "name",
    [
        "cholesky",
        "logdet",
        "slogdet",
        "inv",
        "solve, both",
        "solve_triangular, upper",
        "qr, tall",
        "qr, wide",
        "lstsq, a wide",
        "eigh",
        "svd, tall",
    ],
)
def test_compiled_is_eager(name):
    loss, make = LOSSES[name]
    a, v = make(), numbers(*make().shape, seed=9)
    together = mx.compile(lambda a, v: (loss(a), mx.grad(loss)(a), product(loss)(a, v)))
    for got, wanted in zip(
        together(a, v), (loss(a), mx.grad(loss)(a), product(loss)(a, v)), strict=True
    ):
        close(got, wanted, 1e-11)
    # other values than those of the trace
    close(together(1.5 * a, v)[1], mx.grad(loss)(1.5 * a), 1e-11)


def test_compiled_vmap_and_vmap_of_compiled():
    a = mx.stack([general(), general(5)])
    for name in ("inv", "qr, square"):
        loss = LOSSES[name][0]
        gradients = mx.stack([mx.grad(loss)(b) for b in a])
        close(mx.compile(mx.vmap(mx.grad(loss)))(a), gradients, 1e-11)
        close(mx.vmap(mx.compile(mx.grad(loss)))(a), gradients, 1e-11)

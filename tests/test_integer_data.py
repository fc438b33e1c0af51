"""Integers among the data are numbers, except where the loss needs integers."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxopt as mo
from mlxopt.autodiff._arguments import as_data

X = np.arange(1, 21)
KINDS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
GROUP = np.arange(20) % 4


def fit(residual, *data):
    """Return the parameters of a fit by `minimize` and by `least_squares`, in float64."""

    def loss(params, *data):
        return mx.mean(mx.square(residual(params, *data)))

    start = mx.zeros(2, dtype=mx.float64)

    return [
        mo.minimize(loss, start, mo.LBFGS(), *data).params,
        mo.least_squares(residual, start, *data).params,
        mo.minimize_many(
            loss, start[None], mo.LBFGS(), *data, in_axes=(0, *[None] * len(data))
        ).params[0],
    ]


BASES = {
    "x**-1": (lambda x: x**-1, lambda x: 1 / x),
    "x**2": (lambda x: x**2, lambda x: x * x),
    "x*x*x": (lambda x: x * x * x, lambda x: x**3),
    "1 - x": (lambda x: 1 - x, lambda x: 1 - x),
    "square": (mx.square, np.square),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("wrap", [lambda x: x, mx.array, np.ndarray.tolist], ids=["np", "mx", "[]"])
def test_numbers_are_floats(base, kind, wrap):
    ours, theirs = BASES[base]
    column = theirs(X.astype(np.float64))
    residual = lambda p, x, y: p[0] + p[1] * ours(x) - y  # noqa: E731
    loss = lambda p, x, y: mx.mean(residual(p, x, y) ** 2)  # noqa: E731
    data = wrap(X.astype(kind)), 2 + 3 * column
    slope = mo.value_and_grad(loss)
    at = mx.array([0.0, 1.0], dtype=mx.float64)
    items = as_data(data, at, loss)
    value, grad = slope(at, *items)
    error = column - data[1]
    np.testing.assert_allclose(value.item(), np.mean(error**2), rtol=1e-12)
    np.testing.assert_allclose(
        np.array(grad), 2 * np.array([error.mean(), (error * column).mean()])
    )


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_every_front_end_takes_them_as_numbers(kind):
    x = X.astype(kind)
    y = 2 + 3 / X
    for found in fit(lambda p, x, y: p[0] + p[1] * x**-1 - y, x, y):
        np.testing.assert_allclose(np.array(found), [2, 3], rtol=1e-6)


def test_batches_and_inference_and_certificates_take_them_as_numbers():
    x, y = X.astype(np.uint8), 3.0 / X
    loss = lambda p, x, y: mx.mean((p * x**-1 - y) ** 2)  # noqa: E731
    found = mo.train(loss, mx.array(0.0), mo.SGD(1.0), mo.batches(x, y, batch_size=10), epochs=200)
    assert abs(found.params.item() - 3) < 1e-4
    assert mo.certify(loss, mx.array(3.0), x, y).is_minimum
    nll = lambda p, x, y: 0.5 * (p * x**2 - y) ** 2  # noqa: E731
    error = mo.inference.covariance(nll, mx.array(3.0), x, 3.0 * X**2).standard_errors
    np.testing.assert_allclose(error.item(), np.sum(X**4.0) ** -0.5, rtol=1e-12)
    assert mo.check_grads(loss, mx.array(1.0), x, y).passed


def cross_entropy(p, y):
    return mx.mean(nn.losses.cross_entropy(mx.broadcast_to(p, (y.size, 4)), y))


MEANS = np.array([5.0, 1.0, -2.0, 0.5])
INDEXED = {
    "index": lambda p, k, y: mx.mean((p[k] - y) ** 2),
    "take": lambda p, k, y: mx.mean((mx.take(p, k) - y) ** 2),
    "one-hot": lambda p, k, y: mx.mean((mx.eye(4)[k] @ p - y) ** 2),
    "along an axis": lambda p, k, y: mx.mean(
        (mx.take_along_axis(p[None] + mx.zeros((k.size, 1)), k[:, None], axis=1)[:, 0] - y) ** 2
    ),
    "computed": lambda p, k, y: mx.mean((p[(k * 100 + 3) % 100 + k - 3] - y) ** 2),
    "cast": lambda p, k, y: mx.mean((p[k.astype(mx.int32)] - y) ** 2),
    "compared": lambda p, k, y: mx.mean(((k[:, None] == mx.arange(4)) @ p - y) ** 2),
    "scatter": lambda p, k, y: mx.mean((mx.zeros(20).at[mx.arange(20)].add(p[k]) - y) ** 2),
    "embedding": lambda p, k, y: mx.mean((embedded(p, k) - y) ** 2),
    "compiled": lambda p, k, y: mx.mean((mx.compile(lambda p, k: p[k])(p, k) - y) ** 2),
    "bits": lambda p, k, y: mx.mean((p[(k >> 1) * 2 + (k & 1)] - y) ** 2),
}


def embedded(p, k):
    layer = nn.Embedding(4, 1)
    layer.weight = p[:, None]
    return layer(k)[:, 0]


@pytest.mark.parametrize("use", INDEXED)
@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_indices_stay_integers(use, kind):
    labels, y = GROUP.astype(kind), MEANS[GROUP]
    result = mo.minimize(INDEXED[use], mx.zeros(4), mo.LBFGS(), labels, y)
    np.testing.assert_allclose(np.array(result.params), MEANS, atol=1e-4)
    batches = mo.batches(labels, y, batch_size=20)
    found = mo.train(INDEXED[use], mx.zeros(4), mo.SGD(1.0), batches, epochs=60)
    np.testing.assert_allclose(np.array(found.params), MEANS, atol=1e-3)


def test_labels_of_a_cross_entropy_stay_integers():
    labels = np.repeat(np.arange(4), [1, 2, 3, 4])
    found = mo.minimize(cross_entropy, mx.zeros(4), mo.LBFGS(), labels)
    share = np.exp(np.array(found.params))
    np.testing.assert_allclose(share / share.sum(), [0.1, 0.2, 0.3, 0.4], atol=1e-4)


def test_each_argument_is_decided_on_its_own():
    def loss(p, data, labels, mask):
        scaled = p[labels["k"]] * data["x"] ** -1
        return mx.mean(mx.where(mask, scaled - data["y"], 0.0) ** 2)

    y, mask = MEANS[GROUP] / X, X < 17
    data, labels = {"x": X, "y": np.where(mask, y, 99)}, {"k": GROUP}
    result = mo.minimize(loss, mx.zeros(4), mo.LBFGS(), data, labels, mask)
    np.testing.assert_allclose(np.array(result.params), MEANS, atol=1e-3)
    items = as_data((data, labels, mask), mx.zeros(4), loss)
    assert items[0]["x"].dtype == mx.float32
    assert items[1]["k"].dtype == mx.int64
    assert items[2].dtype == mx.bool_


def test_the_same_array_twice_is_two_arguments():
    labels = mx.array(GROUP + 1)
    loss = lambda p, k, x: mx.mean((p[k - 1] - x**-1) ** 2)  # noqa: E731
    result = mo.minimize(loss, mx.zeros(4), mo.LBFGS(), labels, labels)
    np.testing.assert_allclose(np.array(result.params), [1, 1 / 2, 1 / 3, 1 / 4], atol=1e-4)


def test_a_key_of_random_numbers_stays_what_it_is():
    key, x = mx.random.key(3), np.full(50, 2, dtype=np.uint8)

    def loss(p, key, x):
        return mx.mean((p * x**-1 - mx.random.normal((50,), key=key)) ** 2)

    found = mo.minimize(loss, mx.array(0.0), mo.LBFGS(), key, x).params.item()
    assert abs(found - 2 * mx.mean(mx.random.normal((50,), key=key)).item()) < 1e-4


def test_large_integers_are_subtracted_as_integers():
    seconds = 1_700_000_000 + np.arange(40)

    def loss(p, t, y):
        return mx.mean((p[0] + p[1] * (t - t[0]) - y) ** 2)

    fit = mo.minimize(loss, mx.zeros(2), mo.LBFGS(), seconds, 1 + 0.5 * np.arange(40))
    np.testing.assert_allclose(np.array(fit.params), [1, 0.5], rtol=1e-4)


def test_losses_that_read_their_data_or_branch_are_no_obstacle():
    def loss(p, k, x):
        weight = 2.0 if k[0].item() == 0 else 1.0
        return weight * mx.mean((p[k] - x**-1) ** 2)

    result = mo.minimize(loss, mx.zeros(4), mo.LBFGS(), GROUP, GROUP + 1, compile=False)
    np.testing.assert_allclose(np.array(result.params), [1, 1 / 2, 1 / 3, 1 / 4], atol=1e-4)

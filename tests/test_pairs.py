"""Shapes (n,) and (n, 1) in one operation, which make n² pairs of n rows."""

import itertools
import warnings

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxopt as mo

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3))
x = X[:, 0]
Y = X @ [1.0, -2.0, 0.5] + 0.1 * RNG.normal(size=20)
LABELS = (Y > 0).astype(np.int64)


# --- Our losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [mo.losses.squared_error, mo.losses.huber, mo.losses.logistic])
@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((4,), (4, 1)), r"\(4,\) and \(4, 1\).*targets.squeeze"),
        (((4, 1), (4,)), r"predictions.squeeze"),
        (((4, 2), (4,)), r"expected equal ones"),
        (((4, 2), (2,)), r"mx.broadcast_arrays"),
        (((4,), (5,)), r"\(5,\)"),
        (((1,), (4,)), r"\(1,\)"),
    ],
)
def test_losses_refuse_unequal_shapes(loss, shapes, words):
    with pytest.raises(ValueError, match=words):
        loss(*(mx.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("loss", [mo.losses.squared_error, mo.losses.huber, mo.losses.logistic])
def test_losses_take_equal_shapes_numbers_and_stated_pairs(loss):
    one = loss(mx.array([0.25]), mx.array([1.0])).item()
    for shape in ((), (4,), (4, 1), (2, 3, 4)):
        assert loss(mx.full(shape, 0.25), mx.ones(shape)).shape == shape
        found = loss(mx.full(shape, 0.25), mx.array(1.0))
        np.testing.assert_allclose(np.array(found), one, rtol=1e-6)
    pairs = loss(*mx.broadcast_arrays(mx.full((4, 1), 0.25), mx.ones(3)))
    assert pairs.shape == (4, 3)
    rows = mx.vmap(loss, in_axes=(0, None))(mx.full((4,), 0.25), mx.array(1.0))
    assert rows.shape == (4,)


# --- Residuals and losses by row -----------------------------------------------------------------


def line(p, x, y):
    return p[0] * x + p[1] - y


def plane(p, X, y):
    return X @ p - y


def network(sizes):
    mx.random.seed(1)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return mo.functional(nn.Sequential(*layers))


PARAMS, APPLY = network([3, 1])
DEEP, DEEPLY = network([3, 4, 1])
COLUMN = mx.array(Y[:, None])
WRONG = {
    "column of targets": (line, mx.zeros(2), (x, Y[:, None])),
    "column of inputs": (line, mx.zeros(2), (x[:, None], Y)),
    "product": (plane, mx.zeros(3), (X, Y[:, None])),
    "wide": (plane, mx.zeros(20), (RNG.normal(size=(20, 20)), Y[:, None])),
    "linear layer": (lambda p, X, y: APPLY(p, X) - y, PARAMS, (X, Y)),
    "flattened": (lambda p, x, y: line(p, x, y).reshape(-1), mx.zeros(2), (x, Y[:, None])),
    "weighted": (
        lambda p, x, y, w: line(p, x, y) * w,
        mx.zeros(2),
        (x, Y, RNG.uniform(1, 2, (20, 1))),
    ),
    "captured": (lambda p, x: p[0] * x - COLUMN, mx.zeros(1), (x,)),
    "with a penalty": (
        lambda p, x, y: mx.concatenate([line(p, x, y).reshape(-1), 0.1 * p]),
        mx.zeros(2),
        (x, Y[:, None]),
    ),
    "other lengths": (line, mx.zeros(2), (x, RNG.normal(size=(21, 1)))),
    "in a dict": (
        lambda p, d: p[0] * d["x"] + p[1] - d["y"],
        mx.zeros(2),
        ({"x": x, "y": Y[:, None]},),
    ),
}
IMAGES = RNG.normal(size=(5, 6, 6))
GRID = np.add.outer(x, x)
GRID_MX = mx.array(GRID)
HONEST = {
    "line": (line, mx.zeros(2), (x, Y)),
    "columns": (line, mx.zeros(2), (x[:, None], Y[:, None])),
    "column design": (plane, mx.zeros(1), (X[:, :1], Y)),
    "plane": (plane, mx.zeros(3), (X, Y)),
    "square design": (plane, mx.zeros(20), (RNG.normal(size=(20, 20)), Y)),
    "linear layer": (lambda p, X, y: APPLY(p, X)[:, 0] - y, PARAMS, (X, Y)),
    "penalty": (lambda p, *d: mx.concatenate([plane(p, *d), 0.1 * p]), mx.zeros(3), (X, Y)),
    "penalties": (
        lambda p, *d: mx.concatenate([plane(p, *d), *[0.1 * p] * 9]),
        mx.zeros(3),
        (X[:4], Y[:4]),
    ),
    "several outputs": (
        lambda p, X, Y: X @ p - Y,
        mx.zeros((3, 20)),
        (X, RNG.normal(size=(20, 20))),
    ),
    "images": (lambda p, I: p - I, mx.zeros((6, 6)), (IMAGES,)),
    "no rows": (lambda p, a: mx.stack([p[0] - a, p[1] - 2, p[0] * p[1]]), mx.ones(2), (1.0,)),
    "no data": (lambda p: mx.stack([p[0] - 1, p[1] - 2, p[0] * p[1] - 2]), mx.ones(2), ()),
    "state of a simulation": (
        lambda p, y0: (mx.exp(-p[0] * mx.arange(30))[:, None] * y0 - 1).reshape(-1),
        mx.ones(1),
        (np.array([1.0, 2.0]),),
    ),
    "a grid": (
        lambda p, x, t, Z: p[0] * x[:, None] + p[1] * t - Z,
        mx.zeros(2),
        (x, x, GRID),
    ),
    "a grid of a captured array": (
        lambda p, x, t: p[0] * x[:, None] + p[1] * t - GRID_MX[:, :19],
        mx.zeros(2),
        (x, x[:19]),
    ),
    "distances": (
        lambda p, D: mx.sqrt(1e-3 + mx.sum((p[:, None] - p) ** 2, axis=-1)) - D,
        mx.array(RNG.normal(size=(5, 2))),
        (np.ones((5, 5)),),
    ),
    "pairs i < j": (
        lambda p, x: p[0] * (x[np.triu_indices(20, 1)[0].tolist()]) - 1.0,
        mx.zeros(1),
        (mx.array(x),),
    ),
    "differences": (lambda p, x: mx.concatenate([x[1:] - p, x[2:] - p]), mx.zeros(1), (x,)),
}


def caught(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in found if one.category is UserWarning]


@pytest.mark.parametrize("name", WRONG)
def test_residuals_of_all_pairs_are_warned_about(name):
    residual, params, data = WRONG[name]
    found = caught(lambda: mo.least_squares(residual, params, *data, max_steps=2))
    assert len(found) == 1
    assert "for data of 20" in found[0]
    assert "(n, 1)" in found[0]


@pytest.mark.parametrize("name", HONEST)
def test_honest_residuals_are_not(name):
    residual, params, data = HONEST[name]
    assert not caught(lambda: mo.least_squares(residual, params, *data, max_steps=2))


def test_losses_by_example_of_inference():
    found = []

    def call():
        with pytest.raises(ValueError, match="value for the same example"):
            mo.inference.covariance(
                lambda *args: 0.5 * mx.square(line(*args)).reshape(-1), mx.zeros(2), x, Y[:, None]
            )

    found = caught(call)
    assert len(found) == 1
    assert "400 numbers" in found[0]


# --- Losses --------------------------------------------------------------------------------------


def of(residual):
    def loss(*args):
        return mx.mean(mx.square(residual(*args)))

    return loss


WRONG_LOSSES = {
    **{
        name: (of(WRONG[name][0]), *WRONG[name][1:])
        for name in WRONG
        if name[:2] not in ("ca", "ot")
    },
    "only columns": (of(plane), mx.zeros(1), (X[:, :1], Y[:, None])),
    "deep": (of(lambda p, X, y: DEEPLY(p, X) - y), DEEP, (X, Y)),
    "sum": (lambda *args: mx.sum(mx.abs(line(*args))), mx.zeros(2), (x, Y[:, None])),
    "classes": (
        lambda p, X, y: mx.mean(mx.logaddexp(mx.zeros(1), APPLY(p, X)) - y * APPLY(p, X)),
        PARAMS,
        (X, LABELS.astype(float)),
    ),
    "penalized": (
        lambda p, X, y: of(plane)(p, X, y) + 0.1 * mx.sum(p**2),
        mx.zeros(3),
        (X, Y[:, None]),
    ),
}
HONEST_LOSSES = {
    **{name: (of(HONEST[name][0]), *HONEST[name][1:]) for name in HONEST},
    "reshaped": (lambda p, x, y: of(line)(p, x, y.reshape(-1)), mx.zeros(2), (x, Y[:, None])),
    "column design, column targets": (
        lambda p, X, y: of(plane)(p, X, y[:, 0]),
        mx.zeros(1),
        (X[:, :1], Y[:, None]),
    ),
    "two samples": (
        lambda p, a, b: mx.mean((a - p[0]) ** 2) + mx.mean((b - p[1]) ** 2),
        mx.zeros(2),
        (x, Y[:, None]),
    ),
    "kernel of two samples": (
        lambda p, a, b: mx.mean(mx.exp(-((p[0] * a[:, None] - b[None]) ** 2))),
        mx.ones(1),
        (x, Y),
    ),
    "kernel of two columns": (
        lambda p, a, b: mx.mean(mx.exp(-((p[0] * a - b.T) ** 2))),
        mx.ones(1),
        (x[:, None], Y[:, None]),
    ),
    "kernel": (
        lambda p, a, y: mx.mean((y @ mx.exp(-p[0] * (a[:, None] - a) ** 2) - y) ** 2),
        mx.ones(1),
        (x, Y),
    ),
    "ranking": (
        lambda p, X, y: mx.mean(
            mx.logaddexp(0.0, -((X @ p)[:, None] - X @ p) * mx.sign(y[:, None] - y))
        ),
        mx.ones(3),
        (X, Y),
    ),
    "not used": (lambda p, X, y, ids: of(plane)(p, X, y), mx.zeros(3), (X, Y, np.arange(20.0))),
    "labels": (
        lambda p, X, k: mx.mean(nn.losses.cross_entropy(X @ p, k)),
        mx.zeros((3, 2)),
        (X, LABELS),
    ),
    "mixture": (lambda p, x: -mx.mean(mx.logaddexp(p[0] * x, p[1] * x**2)), mx.ones(2), (x,)),
    "collocation": (
        lambda p, a, b, u: mx.mean((p[0] * a) ** 2) + mx.mean((p[1] * b - u) ** 2),
        mx.ones(2),
        (x[:, None], X[:, 1:2], Y[:, None]),
    ),
}


@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_losses_of_all_pairs_are_warned_about(name):
    loss, params, data = WRONG_LOSSES[name]
    found = caught(lambda: mo.minimize(loss, params, mo.LBFGS(), *data, max_steps=2))
    assert len(found) == 1
    assert "every row with all others" in found[0]
    batches = mo.batches(*data, batch_size=10) if name != "in a dict" else [data]
    found = caught(lambda: mo.train(loss, params, mo.SGD(1e-3), batches))
    assert len(found) == 1


@pytest.mark.parametrize("name", HONEST_LOSSES)
def test_honest_losses_are_not(name):
    loss, params, data = HONEST_LOSSES[name]
    assert not caught(lambda: mo.minimize(loss, params, mo.LBFGS(), *data, max_steps=2))


def test_many_problems():
    data = np.stack([Y, 2 * Y])[:, :, None]
    axes = (None, None, 0)
    call = lambda data: mo.minimize_many(  # noqa: E731
        of(line), mx.zeros(2), mo.LBFGS(), x, data, in_axes=axes, max_steps=2
    )
    assert "every row" in caught(lambda: call(data))[0]
    assert not caught(lambda: call(data[:, :, 0]))

"""Many problems at once: each verdict is that of a run alone, in any units."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt import prox
from mlxopt.many._loop import Batch

S = mo.Status


class Case(NamedTuple):
    """Five problems of one loss(params, data)."""

    loss: Callable[..., mx.array]
    starts: Any  # (5, p)
    data: Any  # (5, ...)
    status: Sequence[mo.Status | None]  # with LBFGS; None where the run alone decides
    params: Any = None  # the right answers, (5, p), NaN where there is none


def quadratic(p, c):
    return mx.mean((p - c) ** 2)


def net(p, x):
    return mx.mean((mx.tanh(x * p[0]) * p[1] - mx.tanh(0.8 * x)) ** 2)


def saturation(p, x):
    return mx.mean((1e-6 * p[0] * x / (1e3 * p[1] + x) - 2e-6 * x / (1.5e3 + x)) ** 2)


ZERO, NAN = np.zeros((5, 2)), np.nan
FINE, FLAT = [S.CONVERGED] * 5, S.FLAT
CENTERS = np.array([[3e-6, -2e-6], [3e6, -2e6], [3.0, -2.0], [1e-3, 1e3], [5e-6, 4e-6]])
GRID = np.linspace(-1, 1, 9) * np.array([[1.0], [1.5], [2.0], [2.5], [3.0]])

CASES = {
    "small and large units": Case(quadratic, ZERO, CENTERS, FINE, CENTERS),
    "a curve with small values": Case(
        saturation,
        np.array([[1.0, 1.0], [2.0, 2.0], [1.0, 0.5], [3.0, 2.0], [2.0, 1.4]]),
        np.geomspace(10, 1e5, 12) * np.ones((5, 1)),
        FINE,
        np.tile([2.0, 1.5], (5, 1)),
    ),
    "plateaus": Case(
        lambda p, c: 1 - mx.exp(-mx.sum((p - c) ** 2)),
        np.zeros((5, 1)),
        np.array([[30.0], [0.5], [0.0], [-40.0], [1e3]]),
        [FLAT, S.CONVERGED, S.CONVERGED, FLAT, FLAT],
        np.array([[NAN], [0.5], [0.0], [NAN], [NAN]]),
    ),
    "rounding": Case(
        lambda p, c: mx.sum((mx.round(p) - c) ** 2),
        np.array([[0.2], [3.1], [5.2], [1.4], [2.3]]),
        np.array([[3.0], [2.0], [4.0], [7.0], [0.0]]),
        [FLAT, FLAT, FLAT, None, FLAT],  # 1.4 is near a step down
    ),
    "accuracy": Case(
        lambda p, x: -mx.mean((x * p[0] + p[1] > 0).astype(p.dtype)),
        np.array([[1.0, 0.1], [-1.0, 0.2], [2.0, 0.3], [0.5, -0.1], [1.0, -0.2]]),
        GRID + 0.03,
        [FLAT] * 5,
    ),
    "stop_gradient": Case(
        lambda p, c: mx.sum((mx.stop_gradient(p) - c) ** 2) + 0.0 * p[0],
        np.array([[1.0, 2.0], [3.0, 4.0], [-1.0, 0.5], [10.0, 20.0], [0.1, 0.2]]),
        ZERO,
        [None] * 5,
    ),
    "an underflowing product": Case(
        lambda p, c: -mx.exp(-c[0] * p[0] ** 2) * mx.exp(-c[0] * (p[1] - 1) ** 2),
        np.full((5, 2), 20.0),
        np.array([[10.0], [20.0], [30.0], [40.0], [1e3]]),
        [FLAT] * 5,
    ),
    "saddles": Case(
        lambda p, c: p[0] ** 2 + c[0] * p[1] ** 2 + 0.25 * p[1] ** 4,
        np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 0.0]]),
        np.array([[-1.0], [-2.0], [-0.5], [1.0], [-1e3]]),
        [S.SADDLE, S.SADDLE, S.CONVERGED, S.CONVERGED, S.SADDLE],
        np.array([[NAN, NAN], [NAN, NAN], [0.0, 1.0], [0.0, 0.0], [NAN, NAN]]),
    ),
    "nets with zero weights": Case(
        net,
        np.array([[0.0, 0.0], [0.0, 0.0], [0.5, 0.5], [0.0, 0.0], [1.0, 0.9]]),
        GRID,
        [S.SADDLE, S.SADDLE, S.CONVERGED, S.SADDLE, S.CONVERGED],
        np.array([[NAN, NAN], [NAN, NAN], [0.8, 1.0], [NAN, NAN], [0.8, 1.0]]),
    ),
    "starts that are minima": Case(
        lambda p, c: mx.sum((p - c) ** 2) + (p[0] - c[0]) ** 4,
        np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 3.0], [1e5, 1e-5], [-1e-6, 1e6]]),
        np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 3.0], [1e5, 1e-5], [-1e-6, 1e6]]),
        FINE,
    ),
    "parameters that the data do not determine": Case(
        lambda p, x: mx.mean(((p[0] + p[1]) * x - 2 * x - 0.1 * mx.square(x)) ** 2),
        np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, -9.0], [1.0, 1.0]]),
        GRID,
        FINE,
    ),
    "no minimum": Case(
        lambda p, c: mx.sum(c * p),
        ZERO,
        np.array([[1.0, 2.0], [0.0, 0.0], [-1e3, 1.0], [1e-3, 1.0], [5.0, 5.0]]),
        [S.UNBOUNDED, None, S.UNBOUNDED, S.UNBOUNDED, S.UNBOUNDED],
    ),
}
OPTIMIZERS = [
    mo.LBFGS(),
    mo.Newton(),
    mo.BFGS(),
    mo.TrustRegion(),
    mo.LBFGSB(lower=-1e7),
    mo.ProximalGradient(prox.L1(1e-9)),
    mo.Clipped(mo.SGD(0.1), norm=1.0),
]


def both(loss, starts, optimizer, data, dtype=mx.float64, **options):
    """Return the result of many problems, and those of each alone."""
    starts, data = (mx.array(np.array(one), dtype=dtype) for one in (starts, data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        many = mo.minimize_many(loss, starts, optimizer, data, **options)
        alone = [
            mo.minimize(loss, start, optimizer, item, **options)
            for start, item in zip(starts, data, strict=True)
        ]
    return many, alone


def assert_alike(many, alone):
    assert [one.name for one in many.status] == [one.status.name for one in alone]
    # Rounding, which differs between a batch and a single call, may decide about a step.
    assert (np.abs(many.steps - [one.steps for one in alone]) <= 1).all()
    # A gain is the square of a gradient that may be rounding alone.
    known = np.array([one.gain for one in alone])
    np.testing.assert_array_equal(np.isnan(many.gain), np.isnan(known))
    assert [one.gain for one in many] == pytest.approx(list(many.gain), nan_ok=True)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_verdicts_are_those_of_runs_alone(name, dtype):
    case = CASES[name]
    many, alone = both(case.loss, case.starts, mo.LBFGS(), case.data, dtype)
    assert_alike(many, alone)
    expected = zip(case.status, many.status, strict=True)
    assert all(wanted in (None, found) for wanted, found in expected), many.status
    if case.params is not None:
        known = np.isfinite(case.params)
        digits = 1e-3 if dtype == mx.float32 else 1e-6
        found = np.array(many.params)[known]
        np.testing.assert_allclose(found, case.params[known], rtol=digits, atol=digits)


@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("name", ["small and large units", "plateaus", "saddles", "accuracy"])
def test_verdicts_of_other_optimizers(name, optimizer):
    case = CASES[name]
    many, alone = both(case.loss, case.starts, optimizer, case.data, max_steps=100)
    assert_alike(many, alone)
    if optimizer.loss_alone and name != "saddles":  # some leave a saddle
        expected = zip(case.status, many.status, strict=True)
        assert not any(wanted is FLAT and found is S.CONVERGED for wanted, found in expected)


@pytest.mark.parametrize("optimizer", [mo.LBFGS(), mo.Newton()], ids=repr)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
def test_starts_at_a_minimum_stay(optimizer, dtype):
    """Minima known to rounding, with gradients that are not zero; in any units."""

    def loss(w, X, y):
        return mx.mean(mo.losses.logistic(X @ w, y))

    rng = np.random.default_rng(0)
    X = rng.standard_normal((5, 60, 3)) * 10.0 ** np.arange(-2, 3)[:, None, None]
    y = (rng.random((5, 60)) < 0.5).astype(float)
    starts = mx.zeros((5, 3), dtype=mx.float64)
    best = mo.minimize_many(loss, starts, mo.Newton(), X, y, tol=1e-13)
    again = mo.minimize_many(loss, best.params.astype(dtype), optimizer, X, y)
    assert again.converged.all()
    assert (again.steps <= 1).all()
    np.testing.assert_allclose(np.array(again.params), np.array(best.params), rtol=1e-5)
    for i in range(5):
        alone = mo.minimize(loss, best.params[i].astype(dtype), optimizer, X[i], y[i])
        assert (again.status[i], again.steps[i]) == (alone.status, alone.steps)


# --- In other units ------------------------------------------------------------------------------


def logistic(params, X, y, scale, shift, units):
    value = mx.mean(mo.losses.logistic(X @ (units * params["w"]) + params["b"], y))
    return scale * value + shift


def classes(rows=40):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((rows, 3))
    return X, (rng.random(rows) < 1 / (1 + np.exp(-X @ [1.0, -0.5, 0.3]))).astype(float)


def regressions(optimizer, dtype, scale=None, shift=None, units=None):
    """Return the fits of one regression in several units."""
    size = len(next(one for one in (scale, shift, units) if one is not None))
    X, y = classes()
    scale = np.ones(size) if scale is None else scale
    shift = np.zeros(size) if shift is None else shift
    units = np.ones((size, 3)) if units is None else units
    start = {"w": mx.zeros(3, dtype=dtype), "b": mx.zeros((), dtype=dtype)}
    axes = (None, None, None, 0, 0, 0)
    data = X, y, scale, shift, units
    return mo.minimize_many(logistic, start, optimizer, *data, in_axes=axes, max_steps=3000), units


BATCHED = [mo.LBFGS(), mo.Newton(), mo.TrustRegion(), mo.BFGS()]
DIGITS = {mx.float32: 1e-3, mx.float64: 1e-6}


@pytest.mark.parametrize("dtype", DIGITS, ids=str)
@pytest.mark.parametrize("optimizer", BATCHED, ids=lambda one: type(one).__name__)
def test_the_scale_of_the_loss_changes_nothing(optimizer, dtype):
    fits, _ = regressions(optimizer, dtype, scale=10.0 ** np.arange(-12, 13, 3))
    assert fits.converged.all()
    w = np.array(fits.params["w"])
    np.testing.assert_allclose(w, w[[4]].repeat(len(w), axis=0), rtol=DIGITS[dtype])
    # As far as rounding goes, the gain has the units of the loss.
    assert (fits.gain <= 1e-5 * np.abs(fits.value)).all()


@pytest.mark.parametrize("dtype", DIGITS, ids=str)
@pytest.mark.parametrize("optimizer", BATCHED, ids=lambda one: type(one).__name__)
def test_a_constant_in_the_loss_changes_no_verdict(optimizer, dtype):
    fits, _ = regressions(optimizer, dtype, shift=np.array([0.0, 1.0, -0.6, 10.0, -100.0]))
    assert fits.converged.all()
    w = np.array(fits.params["w"])
    # A loss near 100 is rounded to 100 eps, and its minimum is known to the root of that.
    eps = 2.0**-23 if dtype == mx.float32 else 2.0**-52
    np.testing.assert_allclose(w, w[[0]].repeat(5, axis=0), atol=30 * np.sqrt(100 * eps))


@pytest.mark.parametrize("dtype", DIGITS, ids=str)
def test_each_parameter_may_have_units_of_its_own(dtype):
    least, most = (-3, 3) if dtype == mx.float32 else (-6, 6)
    units = 10.0 ** np.random.default_rng(2).uniform(least, most, (6, 3))
    units[0] = 1.0
    fits, units = regressions(mo.Newton(), dtype, units=units)
    assert fits.converged.all()
    w = units * np.array(fits.params["w"])
    np.testing.assert_allclose(w, w[[0]].repeat(6, axis=0), rtol=DIGITS[dtype])


# --- The result ----------------------------------------------------------------------------------


def test_the_warning_counts_and_explains_each_failure():
    case = CASES["plateaus"]
    with pytest.warns(mo.ConvergenceWarning, match=r"3 of 5 problems failed \(3 FLAT\)\. FLAT: "):
        many = mo.minimize_many(case.loss, mx.array(case.starts), mo.LBFGS(), mx.array(case.data))
    assert list(many.converged) == [False, True, True, False, False]
    assert many.gain.shape == (5,)
    assert many[0].status is FLAT


def test_a_refused_claim_enters_the_batch_again(monkeypatch):
    """Whoever claims too early goes on as alone, among others long ended or far from it."""
    refused = []
    original = Batch._refused

    def watched(self, waiting):
        left = original(self, waiting)
        refused.extend(left.rows)
        return left

    monkeypatch.setattr(Batch, "_refused", watched)
    scales = np.stack([[1.0, 1.0 + i, (1.0 + i) ** 3] for i in range(12)])

    def loss(x, scale):
        return 0.5 * mx.sum(scale * mx.square(x - 1.0)) + 0.1 * mx.sum((x - 1.0) ** 4)

    many, alone = both(loss, np.zeros((12, 3)), mo.LBFGS(), scales)
    assert refused
    assert_alike(many, alone)
    np.testing.assert_allclose(np.array(many.params), 1.0, atol=1e-6)


def test_losses_without_a_batched_hessian_are_judged_one_by_one(monkeypatch):
    from mlxopt.many._objective import BatchedObjective

    def refuses(self, x, structured=None):
        raise ValueError("MLX cannot batch this")

    monkeypatch.setattr(BatchedObjective, "hessian", refuses)
    for name in ("small and large units", "saddles", "plateaus"):
        case = CASES[name]
        many, alone = both(case.loss, case.starts, mo.LBFGS(), case.data)
        assert_alike(many, alone)


def test_ctrl_c_keeps_the_verdicts_of_those_that_had_converged(monkeypatch):
    original = Batch.advance

    def interrupted(self, objective, state, count):
        if len(state.running.rows) == 1:
            raise KeyboardInterrupt
        return original(self, objective, state, count)

    monkeypatch.setattr(Batch, "advance", interrupted)

    def loss(x, c):  # the last is Rosenbrock's
        return mx.sum((x - 1) ** 2) + c * 100 * (x[1] - x[0] ** 2) ** 2

    starts = mx.array([[0.0, 0.0], [0.5, 2.0], [-1.2, 1.0]])
    many = mo.minimize_many(loss, starts, mo.LBFGS(), mx.array([0.0, 0.0, 1.0]))
    assert [one.name for one in many.status] == ["CONVERGED", "CONVERGED", "INTERRUPTED"]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("method", [mo.LBFGS(), mo.Newton(), mo.BFGS()], ids=repr)
def test_a_variance_that_goes_to_zero_is_no_minimum(method, dtype):
    x = np.linspace(0, 1, 20)

    def loss(p, y):
        return mx.mean(0.5 * mx.square((p[0] * x + p[1] - y) / mx.exp(p[2]))) + p[2]

    with mx.stream(mx.cpu):
        starts = mx.zeros((3, 3), dtype=dtype)
    lines = np.stack([2 * x + 1, np.ones(20), 3 * x])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        found = mo.minimize_many(loss, starts, method, lines)
    assert not found.converged.any()


@pytest.mark.parametrize(
    ("loss", "status"),
    [
        (lambda p: mx.round(2 * p[0]) ** 2 + (p[1] - 1) ** 2, mo.Status.FLAT),
        (lambda p: p[0] ** 2 + 0.1 * (p[0] > 0.01) + (p[1] - 1) ** 2, None),
        (lambda p: (p[0] > -0.01) + p[0] ** 2 + (p[1] - 1) ** 2, mo.Status.NO_PROGRESS),
        (lambda p: p[0] ** 4 + (p[1] - 1) ** 2, None),
    ],
    ids=["a step in one parameter", "a jump up", "a jump down", "a flat minimum"],
)
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_what_the_derivatives_do_not_show_is_looked_at(loss, status):
    starts = mx.array([[0.28, 0.0], [0.29, 0.1], [0.3, 3.0]])
    found = mo.minimize_many(loss, starts, mo.LBFGS()).status
    assert list(found) == [status or mo.Status.CONVERGED] * 3

"""Many problems at once: each ends where it would alone, for its own reason, whoever is beside."""

import dataclasses
import itertools
import math
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlxopt as mo
from mlxopt import prox
from mlxopt._dense import newton_direction
from mlxopt.many._descent import Descent
from mlxopt.many._objective import BatchedObjective
from mlxopt.many.lbfgs import BatchedLBFGS
from mlxopt.optimizers import Optimizer
from mlxopt.optimizers import _line_search as search

OPTIMIZERS = [mo.LBFGS(), mo.LBFGS(memory=2), mo.Newton()]
RESIDUAL_OPTIMIZERS = [mo.LevenbergMarquardt(), mo.GaussNewton()]


def logistic(params, X, y):
    return mx.mean(mo.losses.logistic(X @ params["w"] + params["b"], y))


def classes(problems, rows=40, columns=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((problems, rows, columns))
    logits = np.einsum("bnp,bp->bn", X, rng.standard_normal((problems, columns)))
    return X, (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)


def start(columns=3, dtype=mx.float64):
    return {"w": mx.zeros(columns, dtype=dtype), "b": mx.zeros((), dtype=dtype)}


def decay(params, x, y):
    return params["height"] * mo.special.exp(-params["rate"] * x) - y


def decays(problems, seed=0):
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 4, 30)
    height, rate = rng.uniform(1, 3, (2, problems, 1))
    return x, height * np.exp(-rate * x) + 0.05 * rng.standard_normal((problems, 30))


def decay_start(dtype=mx.float64):
    return {"height": mx.array(1.0, dtype=dtype), "rate": mx.array(1.0, dtype=dtype)}


def row(result, index):
    return {key: np.array(leaf[index]) for key, leaf in result.params.items()}


# --- The same as alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_each_problem_takes_the_steps_it_takes_alone(optimizer):
    X, y = classes(12)
    options: Any = {"tol": 1e-8}
    result = mo.minimize_many(logistic, start(), optimizer, X, y, in_axes=(None, 0, 0), **options)
    assert result.converged.all()
    for i in range(12):
        alone = mo.minimize(logistic, start(), optimizer, X[i], y[i], **options)
        # Sums are rounded otherwise, by each CPU in its own way, which the last steps go by.
        assert abs(result.steps[i] - alone.steps) <= 0.1 * alone.steps
        assert result.value[i] == pytest.approx(alone.value, rel=1e-12)
        for key, leaf in row(result, i).items():
            # The same steps but for the rounding of sums; curvature here is above 0.01.
            np.testing.assert_allclose(leaf, np.array(alone.params[key]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("optimizer", RESIDUAL_OPTIMIZERS, ids=repr)
def test_residuals_take_the_steps_they_take_alone(optimizer):
    x, Y = decays(12)
    result = mo.minimize_many(decay, decay_start(), optimizer, x, Y, in_axes=(None, None, 0))
    assert result.converged.all()
    for i in range(12):
        alone = mo.least_squares(decay, decay_start(), x, Y[i], optimizer=optimizer, polish=False)
        assert result.steps[i] == alone.steps
        assert result.grad_norm[i] == pytest.approx(alone.grad_norm, rel=1e-3)
        assert result.optimality[i] == pytest.approx(alone.optimality, rel=1e-3)
        for key, leaf in row(result, i).items():
            np.testing.assert_allclose(leaf, np.array(alone.params[key]), rtol=0, atol=1e-10)


MGH = [p for p in mo.problems.MGH if p.size <= 4]


@pytest.mark.parametrize("optimizer", [mo.LBFGS(), mo.Newton()], ids=repr)
@pytest.mark.parametrize("problem", MGH, ids=lambda p: p.name)
def test_classic_problems_from_many_starts_end_as_alone(problem, optimizer):
    # Long, curved ways down, indefinite Hessians, far starts: whatever befalls one run alone.
    # Where rounding decides between two ways, the runs may part; so what is compared is the end.
    base = problem.params(mx.float64)
    factors = mx.array(np.array([1.0, 1.1, 0.5]), dtype=mx.float64)
    starts = factors.reshape(-1, *[1] * base.ndim) * base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        result = mo.minimize_many(problem.loss, starts, optimizer, max_steps=400)
        for i in range(3):
            alone = mo.minimize(problem.loss, starts[i], optimizer, max_steps=400)
            assert result.status[i] == alone.status or result.value[i] <= alone.value + 1e-9
            if result.converged[i]:  # little is left to gain, or less than rounding
                drop = problem.loss(starts[i]).item() - result.value[i]
                # Residuals of 1e-5 are differences of numbers near 1.
                assert result.gain[i] <= max(1e-18 * drop, 1e-12 * abs(result.value[i]))
            if result.converged[i] and result.steps[i] == alone.steps:
                assert result.value[i] == pytest.approx(alone.value, rel=1e-6, abs=1e-12)


# Here rounding, which differs between a batch and a single call, decides which way a run goes: at
# a Jacobian without full rank, after a hundred steps at the floor of the loss, or where a line
# search that got nowhere is cut off by max_steps.
CLOSE_CALLS = {
    ("Freudenstein and Roth", "GaussNewton"),
    ("Bard", "GaussNewton"),
    ("Jennrich and Sampson", "GaussNewton"),
    ("Brown and Dennis", "LevenbergMarquardt"),
    ("Meyer", "LevenbergMarquardt"),
    ("Brown and Dennis", "GaussNewton"),
}


@pytest.mark.parametrize("optimizer", RESIDUAL_OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("problem", [p for p in MGH if p.residual], ids=lambda p: p.name)
def test_classic_residuals_take_the_steps_they_take_alone(problem, optimizer):
    starts = mx.stack([problem.params(mx.float64, factor) for factor in (1.0, 0.5, 10.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        options: Any = {"tol": 1e-8, "max_steps": 300}
        result = mo.minimize_many(problem.residual, starts, optimizer, **options)
        for i in range(3):
            alone = mo.least_squares(
                problem.residual, starts[i], optimizer=optimizer, polish=False, **options
            )
            if (problem.name, type(optimizer).__name__) in CLOSE_CALLS:
                assert result.value[i] == pytest.approx(alone.value, rel=0.01)
                continue
            # Up to the first claim; alone, its verdict can ask for more. Some steps are lost and
            # won where a line search ends at rounding.
            assert result.status[i] == alone.status
            steps = alone.phases[0].steps
            assert abs(result.steps[i] - steps) <= 0.05 * steps
            # A loss that is zero at its minimum is known to the square of 1e-8 or so.
            assert result.value[i] == pytest.approx(alone.value, rel=1e-6, abs=1e-15)


def test_what_is_told_of_a_point_is_told_of_that_point():
    X, y = classes(9)
    result = mo.minimize_many(logistic, start(), mo.LBFGS(), X, y, in_axes=(None, 0, 0), tol=1e-4)
    for i in range(9):
        params = {key: leaf[i] for key, leaf in result.params.items()}
        with mx.stream(mx.cpu):
            value, grad = mo.value_and_grad(logistic)(
                params, mx.array(X[i], dtype=mx.float64), mx.array(y[i], dtype=mx.float64)
            )
            largest = max(np.abs(np.array(leaf)).max() for leaf in grad.values())
        assert result.value[i] == pytest.approx(value.item(), rel=1e-13)
        # The gradient is a mean of 40 terms up to 3, each rounded to 1e-16.
        assert result.grad_norm[i] == pytest.approx(largest, abs=1e-15)
        assert result.converged[i] == (largest <= 1e-4)


# --- Each its own end ----------------------------------------------------------------------------


def mixed():
    """Return problems that end in every way, their starts, and what each should come to."""
    X, y = classes(6)
    y[1] = X[1] @ [1.0, 2.0, -1.0] > 0  # separable: the loss falls for ever, towards 0
    X[2, 5, 1] = np.nan
    y[4, 0] = np.inf
    return X, y


@pytest.mark.parametrize("optimizer", [mo.LBFGS(), mo.Newton()], ids=repr)
def test_bad_data_is_its_own_problem_alone(optimizer):
    X, y = mixed()
    with pytest.warns(mo.ConvergenceWarning, match=r"of 6 problems .*2 NONFINITE"):
        result = mo.minimize_many(
            logistic, start(), optimizer, X, y, in_axes=(None, 0, 0), max_steps=60, tol=1e-10
        )
    good = [0, 3, 5]
    assert [result.status[i] for i in (2, 4)] == [mo.Status.NONFINITE] * 2
    assert result.status[1] != mo.Status.NONFINITE
    assert list(result.steps[[2, 4]]) == [0, 0]
    assert result.converged[good].all()
    alone = mo.minimize_many(
        logistic, start(), optimizer, X[good], y[good], in_axes=(None, 0, 0), tol=1e-10
    )
    assert list(result.steps[good]) == list(alone.steps)
    for key, leaf in alone.params.items():
        np.testing.assert_allclose(
            np.array(result.params[key])[good], np.array(leaf), rtol=0, atol=1e-12
        )


def test_separable_classes_are_not_called_converged_in_float64():
    X, y = mixed()
    with pytest.warns(mo.ConvergenceWarning, match="1 of 2 problems"):
        result = mo.minimize_many(
            logistic, start(), mo.LBFGS(), X[:2], y[:2], in_axes=(None, 0, 0), max_steps=12
        )
    assert result.status[1] == mo.Status.MAX_STEPS
    assert list(result.converged) == [True, False]


def test_every_reason_to_stop():
    def loss(x, kind):
        well = mx.square(x - 2.0)
        line = x
        known = [well, line, -mx.square(x)]
        return mx.sum(mx.stack([mx.where(kind == i, f, 0.0) for i, f in enumerate(known)]))

    kinds = mx.array([0, 0, 1, 2])
    starts = mx.array([2.0, 0.0, 0.0, 1.0], dtype=mx.float32)
    with pytest.warns(mo.ConvergenceWarning, match=r"2 of 4 problems .*\(2 UNBOUNDED\)"):
        result = mo.minimize_many(loss, starts, mo.LBFGS(), kinds)
    assert [one.name for one in result.status] == ["CONVERGED"] * 2 + ["UNBOUNDED"] * 2
    assert result.steps[0] == 0
    assert result.params.tolist()[:2] == [2.0, 2.0]
    for i in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mo.ConvergenceWarning)
            alone = mo.minimize(loss, starts[i], mo.LBFGS(), kinds[i])
        assert result.status[i] == alone.status
        assert result.value[i] == alone.value


def test_a_rough_loss_ends_without_progress_beside_a_smooth_one():
    def loss(x, weight):
        return mx.sum(mx.square(x)) + weight * mx.abs(x[0] - 1.0)

    with pytest.warns(mo.ConvergenceWarning, match="NO_PROGRESS"):
        result = mo.minimize_many(
            loss, mx.array([3.0, 0.0]), mo.LBFGS(), mx.array([0.0, 10.0]), in_axes=(None, 0)
        )
    assert [one.name for one in result.status] == ["CONVERGED", "NO_PROGRESS"]
    # The kink is at x = (1, 0), on the line of descent; the loss there is 1.
    assert result.value[1] == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("optimizer", [mo.LBFGS(), mo.Newton()], ids=repr)
def test_permuting_the_problems_permutes_the_answers(optimizer):
    X, y = mixed()
    order = np.array([4, 2, 0, 5, 1, 3])
    with pytest.warns(mo.ConvergenceWarning):
        one = mo.minimize_many(
            logistic, start(), optimizer, X, y, in_axes=(None, 0, 0), max_steps=20
        )
    with pytest.warns(mo.ConvergenceWarning):
        other = mo.minimize_many(
            logistic, start(), optimizer, X[order], y[order], in_axes=(None, 0, 0), max_steps=20
        )
    assert list(one.status[order]) == list(other.status)
    assert list(one.steps[order]) == list(other.steps)
    for key in one.params:
        np.testing.assert_allclose(
            np.array(one.params[key])[order], np.array(other.params[key]), rtol=1e-9, atol=1e-12
        )


def test_problems_leave_the_batch_and_nobody_notices(monkeypatch):
    # Quadratics of growing condition end one after the other; shrink as soon as half are gone.
    def loss(x, scale):
        return 0.5 * mx.sum(scale * mx.square(x - 1.0))

    scales = np.stack([[1.0, 1.0 + i, (1.0 + i) ** 2] for i in range(40)])
    sizes = []
    pad = BatchedObjective._pad

    def watched(self):
        pad(self)
        if self.compile:  # not for the verdicts
            sizes.append(self._size)

    monkeypatch.setattr(BatchedObjective, "_pad", watched)
    lazy = mo.minimize_many(
        loss, mx.zeros(3, dtype=mx.float64), mo.LBFGS(), scales, in_axes=(None, 0)
    )
    assert sizes == [40]  # so little work is not worth a new trace
    sizes.clear()
    monkeypatch.setattr("mlxopt.many._objective._WORTH_SHRINKING", 0)
    monkeypatch.setattr("mlxopt.many._objective._WORTH_TWO", 8)  # two streams
    monkeypatch.setattr("mlxopt.many._objective._MOST", 64)  # and several calls on each
    eager = mo.minimize_many(
        loss, mx.zeros(3, dtype=mx.float64), mo.LBFGS(), scales, in_axes=(None, 0)
    )
    assert len(set(sizes)) > 3
    # Until problems come back that claimed too early to have converged.
    first = sizes[: 1 + sizes.index(min(sizes))]
    assert len(first) > 2
    assert all(later <= 0.8 * earlier for earlier, later in itertools.pairwise(first))
    assert lazy.converged.all()
    assert len(set(lazy.steps)) > 4
    assert list(lazy.steps) == list(eager.steps)
    drops = 0.5 * scales.sum(axis=1)
    left = 0.5 * (scales * np.square(np.array(lazy.params) - 1.0)).sum(axis=1)
    assert (left <= 1.01e-18 * drops).all()  # tol², but for rounding
    np.testing.assert_array_equal(np.array(lazy.params), np.array(eager.params))


# --- Every other optimizer -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cautious(Optimizer):
    """Newton's step, halved where the loss would rise: two evaluations, a product and a Hessian."""

    hessian: Any = None

    class State(NamedTuple):
        params: Any
        value: float
        grad: Any
        optimality: float
        status: Any = None
        moved: bool = True

    def init(self, objective, params):
        value, grad = objective.value_and_grad(params)
        value, optimality = np.array(mx.stack([value, mx.max(mx.abs(grad))])).tolist()
        return self.State(params, value, grad, optimality)

    def step(self, objective, state):
        assert len(objective.data) == 2
        matrix = np.array(objective.hessian(state.params, self.hessian))
        direction = mx.array(-np.linalg.solve(matrix, np.array(state.grad)), dtype=mx.float64)
        product = objective.hvp(state.params, direction)
        assert np.allclose(np.array(product), -np.array(state.grad))
        trials = [self.init(objective, state.params + share * direction) for share in (1.0, 0.5)]
        return min(trials, key=lambda trial: trial.value)


def rules():
    return [
        mo.SGD(0.5),
        mo.SGD(1e3),
        mo.Adam(mo.schedules.cosine(0.1, steps=100)),
        mo.Prodigy(),
        mo.Adagrad(mo.schedules.reduce_on_plateau(2.0, factor=0.5, patience=1)),
        mo.Grouped(mo.SGD(0.3), {"*w*": mo.Adam(0.05), "*b*": None}),
        mo.Clipped(mo.Momentum(0.3), norm=0.01),
        optim.Adam(learning_rate=0.1),
    ]


OTHERS = [
    mo.BFGS(),
    mo.ConjugateGradient(),
    mo.GradientDescent(),
    mo.NewtonCG(),
    mo.TrustRegion(),
    mo.TrustRegion(exact=False),
    mo.LBFGSB(lower=-0.5, upper={"w": 0.3, "b": None}),
    mo.ProximalGradient(prox.L1(0.05)),
    *rules(),
]


@pytest.mark.parametrize("optimizer", OTHERS, ids=lambda optimizer: type(optimizer).__name__)
def test_every_optimizer_takes_the_steps_it_takes_alone(optimizer):
    X, y = classes(6)
    X[4, 3, 1] = np.nan
    options = {"max_steps": 95, "tol": 1e-7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        result = mo.minimize_many(
            logistic, start(), optimizer, X, y, in_axes=(None, 0, 0), **options
        )
        assert (result.status[4], result.steps[4]) == (mo.Status.NONFINITE, 0)
        for i in (0, 1, 2, 3, 5):
            alone = mo.minimize(logistic, start(), optimizer, X[i], y[i], **options)
            assert (result.status[i], result.steps[i]) == (alone.status, alone.steps)
            assert result.value[i] == pytest.approx(alone.value, rel=1e-12)
            assert result[i].optimality == pytest.approx(alone.optimality, rel=1e-6, abs=1e-12)
            assert (result[i].certify is None) == (alone.certify is None)
            for key, leaf in row(result, i).items():
                np.testing.assert_allclose(leaf, np.array(alone.params[key]), rtol=1e-9, atol=1e-9)


def test_an_optimizer_of_the_users_own():
    X, y = classes(5)
    calls = []

    def loss(w, X, y):
        return mx.mean(mo.losses.logistic(X @ w, y)) + 0.05 * mx.sum(mx.square(w))

    def hessian(w, X, y):
        calls.append(1)
        s = mo.special.sigmoid(X @ w)
        return X.T @ (X * (s * (1 - s))[:, None]) / y.shape[0] + 0.1 * mx.eye(3, dtype=w.dtype)

    w = mx.zeros(3, dtype=mx.float64)
    options: dict[str, Any] = {"in_axes": (None, 0, 0)}
    mo.minimize_many(loss, w, Cautious(hessian), X, y, tol=0, max_steps=4, **options)
    assert len(calls) == 4 * 5  # computed once, however often a step runs again
    result = mo.minimize_many(loss, w, Cautious(hessian), X, y, **options)
    assert result.converged.all()
    for i in range(5):
        alone = mo.minimize(loss, w, Cautious(), X[i], y[i])
        assert result.steps[i] == alone.steps
        np.testing.assert_allclose(np.array(result.params[i]), np.array(alone.params), atol=1e-12)


def test_rules_stop_where_the_loss_ends():
    """The runs leave the domain of the loss within ten steps, each at a step of its own."""

    def loss(x, slope):
        return slope * x + 0.0 * mx.log(x)

    slopes = mx.array([0.7, 1.5, 3.0, 1e-3])
    starts = mx.array(10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        result = mo.minimize_many(
            loss, starts, mo.SGD(1.0), slopes, in_axes=(None, 0), max_steps=25, tol=0
        )
        for i in range(4):
            alone = mo.minimize(loss, starts, mo.SGD(1.0), slopes[i], max_steps=25, tol=0)
            assert (result.status[i], result.steps[i]) == (alone.status, alone.steps)
            assert result.params[i].item() == pytest.approx(alone.params.item(), rel=1e-6)
    assert list(result.steps) == [14, 6, 3, 25]


# --- Arguments -----------------------------------------------------------------------------------


def test_axes_of_every_kind():
    X, y = classes(5)
    X32 = X.astype(np.float32)
    expected = mo.minimize_many(
        logistic, start(dtype=mx.float32), mo.Newton(), X32, y, in_axes=(None, 0, 0)
    )
    many = {"w": mx.zeros((5, 3)), "b": mx.zeros(5)}
    variants: list[Any] = [
        (many, (X32, y), 0),
        (many, (X32, y), [0, 0, 0]),
        ({"w": mx.zeros((3, 5)), "b": mx.zeros(())}, (X32, y), ({"w": 1, "b": None}, 0, 0)),
        (start(dtype=mx.float32), (np.moveaxis(X32, 0, -1), y.T), (None, -1, 1)),
        (start(dtype=mx.float32), (mx.array(X32), y), (None, 0, 0)),
    ]
    for params, data, in_axes in variants:
        found = mo.minimize_many(logistic, params, mo.Newton(), *data, in_axes=in_axes)
        assert found.params["w"].shape == (5, 3)
        assert found.params["b"].shape == (5,)
        assert found.params["w"].dtype == mx.float32
        for key, leaf in found.params.items():
            np.testing.assert_allclose(np.array(leaf), np.array(expected.params[key]), atol=1e-6)


def test_data_of_every_kind():
    def loss(params, data, power, note, table):
        assert note == "as it is"
        fit = params[0] * data["x"] + params[1] - table[1]
        return mx.mean(mx.abs(fit) ** power) + 0 * mx.sum(table[0])

    x, rng = np.linspace(0, 1, 10), np.random.default_rng(0)
    y = rng.standard_normal((4, 10))
    params = (mx.array(0.0, dtype=mx.float64), mx.array(0.0, dtype=mx.float64))
    result = mo.minimize_many(
        loss,
        params,
        mo.Newton(),
        {"x": x},
        2,
        "as it is",
        (np.ones(3), y),
        in_axes=(None, None, 0, 0, (None, 0)),
    )
    assert isinstance(result.params, tuple)
    for i in range(4):
        slope, intercept = np.polyfit(x, y[i], 1)
        assert result.params[0][i].item() == pytest.approx(slope, abs=1e-10)
        assert result.params[1][i].item() == pytest.approx(intercept, abs=1e-10)


def test_a_grid_of_settings_over_shared_data():
    X, y = classes(1)
    X, y = X[0], y[0]

    def ridge(w, X, y, strength):
        return 0.5 * mx.mean(mx.square(X @ w - y)) + 0.5 * strength * mx.sum(mx.square(w))

    strengths = np.geomspace(1e-3, 10, 8)
    result = mo.minimize_many(
        ridge,
        mx.zeros(3, dtype=mx.float64),
        mo.Newton(),
        X,
        y,
        strengths,
        in_axes=(None, None, None, 0),
    )
    for i, strength in enumerate(strengths):
        exact = np.linalg.solve(X.T @ X / 40 + strength * np.eye(3), X.T @ y / 40)
        # The tolerance of the gradient over the least curvature, which is above 0.5.
        np.testing.assert_allclose(np.array(result.params[i]), exact, rtol=0, atol=2e-8)


def test_one_problem_is_many_enough():
    X, y = classes(1)
    for optimizer in OPTIMIZERS:
        result = mo.minimize_many(logistic, start(), optimizer, X, y, in_axes=(None, 0, 0))
        alone = mo.minimize(logistic, start(), optimizer, X[0], y[0])
        assert len(result) == 1
        assert result.steps[0] == alone.steps
        assert result[0].value == pytest.approx(alone.value, rel=1e-12)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("optimizer", [mo.LBFGS(), mo.Newton()], ids=repr)
def test_dtypes_are_kept(optimizer, dtype):
    def loss(params):
        return mx.mean(mx.square(params["a"] - 3.0)).astype(mx.float32) + mx.sum(
            mx.square(params["b"] - 0.5)
        ).astype(mx.float32)

    starts = {"a": mx.zeros((4, 2), dtype=dtype), "b": mx.arange(4).astype(dtype)}
    result = mo.minimize_many(loss, starts, optimizer)
    assert result.converged.all()
    assert {leaf.dtype for leaf in result.params.values()} == {dtype}
    np.testing.assert_allclose(np.array(result.params["a"].astype(mx.float32)), 3.0, atol=2e-3)
    np.testing.assert_allclose(np.array(result.params["b"].astype(mx.float32)), 0.5, atol=2e-3)


def test_mixed_dtypes_are_rounded_leaf_by_leaf():
    def loss(params):
        wide = params["narrow"].astype(mx.float32)
        return mx.square(params["wide"] - 1 / 3) + mx.square(wide - 1 / 3)

    starts = {"wide": mx.zeros(3), "narrow": mx.zeros(3, dtype=mx.float16)}
    # A float16 near 1/3 is off by up to 2⁻¹³, and the slope by twice that: far above this tol.
    result = mo.minimize_many(loss, starts, mo.LBFGS(), tol=1e-6)
    assert {one.reason for one in result} == {"to the rounding of float32."}
    assert result.optimality.max() > 1e-4
    assert result.params["narrow"].dtype == mx.float16
    nearest = np.float16(1 / 3)
    assert abs(float(result.params["narrow"][0].item()) - nearest) <= 2.0**-12
    assert result.params["wide"].dtype == mx.float32


@pytest.mark.parametrize("compile", [True, False])
def test_compiled_or_not(compile):
    X, y = classes(4)
    result = mo.minimize_many(
        logistic, start(), mo.Newton(), X, y, in_axes=(None, 0, 0), compile=compile
    )
    for i in range(4):
        alone = mo.minimize(logistic, start(), mo.Newton(), X[i], y[i])
        assert result.value[i] == pytest.approx(alone.value, rel=1e-12)


def test_random_losses_see_one_draw():
    def loss(x, target):
        return mx.mean(mx.square(x + mx.random.normal((100,)) - target))

    targets = mx.array([0.0, 1.0, 2.0])
    state: Any = mx.random.state
    before = state[0].tolist()
    result = mo.minimize_many(loss, mx.array(0.0), mo.LBFGS(), targets, in_axes=(None, 0))
    assert state[0].tolist() == before
    found = np.array(result.params)
    np.testing.assert_allclose(found - found[0], [0.0, 1.0, 2.0], atol=1e-5)


def test_a_hessian_of_the_users_own():
    X, y = classes(4)

    def hessian(w, X, y):
        s = mo.special.sigmoid(X @ w)
        return X.T @ (X * (s * (1 - s))[:, None]) / y.shape[0]

    def loss(w, X, y):
        return mx.mean(mo.losses.logistic(X @ w, y))

    w = mx.zeros(3, dtype=mx.float64)
    given = mo.minimize_many(loss, w, mo.Newton(hessian), X, y, in_axes=(None, 0, 0))
    found = mo.minimize_many(loss, w, mo.Newton(), X, y, in_axes=(None, 0, 0))
    assert list(given.steps) == list(found.steps)
    np.testing.assert_allclose(np.array(given.params), np.array(found.params), atol=1e-12)
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(3, 3\)"):
        mo.minimize_many(loss, w, mo.Newton(lambda w, X, y: w), X, y, in_axes=(None, 0, 0))


# --- The result ----------------------------------------------------------------------------------


def test_the_result_of_each():
    X, y = mixed()
    with pytest.warns(mo.ConvergenceWarning):
        result = mo.minimize_many(
            logistic, start(), mo.Newton(), X, y, in_axes=(None, 0, 0), max_steps=30
        )
    assert len(result) == len(list(result)) == 6
    assert "6" in repr(result)
    assert "2 NONFINITE" in repr(result)
    assert result.evaluations == result.steps.sum() + 6
    one = result[-1]
    assert isinstance(one, mo.Result)
    assert one.converged
    assert one.value == result.value[5]
    assert one.steps == result.steps[5]
    assert one.params["w"].tolist() == result.params["w"][5].tolist()
    assert one.certificate.is_minimum
    assert one.history.value.tolist() == [one.value]
    assert result[2].status is mo.Status.NONFINITE
    with pytest.raises(IndexError, match="no problem 6; there are 6"):
        result[6]


def test_tol_zero_takes_every_step():
    def loss(x, target):
        return mx.sum((x - target) ** 4)

    result = mo.minimize_many(
        loss, mx.zeros(2), mo.Newton(), mx.array([1.0, 2.0]), in_axes=(None, 0), tol=0, max_steps=5
    )
    assert [one.name for one in result.status] == ["COMPLETED"] * 2
    assert list(result.steps) == [5, 5]


def test_ctrl_c_returns_the_last_points(monkeypatch):
    X, y = classes(5)
    calls = []
    original = BatchedLBFGS.step

    def interrupted(self, objective, state):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, objective, state)

    monkeypatch.setattr(BatchedLBFGS, "step", interrupted)
    result = mo.minimize_many(logistic, start(), mo.LBFGS(), X, y, in_axes=(None, 0, 0))
    assert {one.name for one in result.status} == {"INTERRUPTED"}
    assert list(result.steps) == [3] * 5
    assert (result.value < math.log(2)).all()


# --- Misuse --------------------------------------------------------------------------------------


def square(x, y):
    return mx.sum(mx.square(x - y))


def difference(x, y):
    return x - y


MISUSE: list[tuple[dict[str, Any], type, str]] = [
    ({"optimizer": [mo.LBFGS()]}, TypeError, r"list.*LBFGS\("),
    ({"optimizer": mo.LBFGS}, TypeError, r"call it: LBFGS\(\)"),
    ({"optimizer": mo.LevenbergMarquardt(geodesic=True)}, ValueError, "geodesic=False"),
    ({"optimizer": mo.ProximalGradient(prox.Simplex())}, ValueError, "starts .* outside"),
    ({"loss": None}, TypeError, "loss is NoneType"),
    ({"params": [1.0]}, TypeError, "expected an mx.array"),
    ({"params": mx.zeros((2, 1)), "in_axes": 0}, ValueError, r"2 in params, 3 in data\[0\]"),
    ({"in_axes": (None, None)}, ValueError, "tells"),
    ({"in_axes": None}, ValueError, "tells the problems"),
    ({"in_axes": (0,)}, ValueError, "1 entries; expected 2"),
    ({"in_axes": (None, 1)}, ValueError, r"axis 1 of data\[0\], whose shape is \(3,\)"),
    ({"data": np.float64(3.0), "in_axes": 0}, ValueError, r"data\[0\].*\(\)"),
    ({"in_axes": (None, "0")}, TypeError, "'0' for data"),
    ({"in_axes": (None, True)}, TypeError, "True for data"),
    (
        {"params": {"a": mx.zeros(2)}, "in_axes": ({"b": 0}, 0)},
        ValueError,
        r"params: expected a dict with the keys \['a'\], got .* \['b'\]",
    ),
    ({"data": mx.zeros((0, 2))}, ValueError, "length 0"),
    ({"loss": difference}, ValueError, r"shape \(2,\); expected a scalar"),
    ({"loss": lambda x, y: mx.sum(x @ y), "data": mx.zeros((3, 4))}, ValueError, "matmul"),
    (
        {"loss": lambda x, y: (x - y)[:1], "optimizer": mo.GaussNewton()},
        ValueError,
        "1 entries and params 2",
    ),
]


@pytest.mark.parametrize(("changes", "error", "words"), MISUSE)
def test_misuse_is_told_at_the_door(changes, error, words):
    usual = {"loss": square, "params": mx.zeros(2), "optimizer": mo.LBFGS(), "data": mx.zeros(3)}
    call = {**usual, "in_axes": (None, 0), **changes}
    in_axes = call.pop("in_axes")
    with pytest.raises(error, match=words):
        mo.minimize_many(*call.values(), in_axes=in_axes)


def test_residuals_of_any_shape():
    call = (difference, mx.zeros(2), mo.LevenbergMarquardt(), mx.zeros((3, 1)))
    assert mo.minimize_many(*call, in_axes=(None, 0)).converged.all()


@pytest.mark.parametrize(
    ("options", "error"),
    [({"tol": -1}, ValueError), ({"tol": "x"}, TypeError), ({"max_steps": 0}, ValueError)],
)
def test_options_are_checked(options, error):
    with pytest.raises(error):
        mo.minimize_many(square, mx.zeros((3, 2)), mo.LBFGS(), mx.zeros(3), **options)


def test_a_read_back_is_refused():
    def loss(x, y):
        return mx.sum(x * x) if y.item() > 0 else mx.sum(mx.abs(x))

    for compile in (True, False):
        with pytest.raises(mo.TapeError, match="loss reads an array back"):
            mo.minimize_many(
                loss, mx.ones(2), mo.LBFGS(), mx.zeros(3), in_axes=(None, 0), compile=compile
            )


def test_all_starts_bad_is_an_error():
    with pytest.raises(ValueError, match="loss is nan at the start"):
        mo.minimize_many(
            square, mx.zeros(2), mo.LBFGS(), mx.full((3,), math.nan), in_axes=(None, 0)
        )


def test_an_ignored_leaf_is_told():
    def loss(params, y):
        return mx.square(params["used"] - y)

    params = {"used": mx.array(0.0), "idle": mx.array(1.0)}
    with pytest.warns(mo.ConvergenceWarning, match=r"ignores params\['idle'\]"):
        result = mo.minimize_many(loss, params, mo.LBFGS(), mx.array([1.0, 2.0]), in_axes=(None, 0))
    assert result.converged.all()
    assert result.params["idle"].tolist() == [1.0, 1.0]


def test_a_wrong_batching_rule_is_found_out():
    def loss(x, y):
        z = mx.square(x - y)
        z[0] = 1.0  # MLX 0.32: in a batch this is done for the first problem only
        return mx.sum(z)

    starts = mx.random.normal((5, 3), key=mx.random.key(0))
    y = mx.arange(5).astype(mx.float32)
    try:
        result = mo.minimize_many(loss, starts, mo.LBFGS(), y)
    except ValueError as error:
        complaint = str(error)
    else:  # a version of MLX that has it right
        np.testing.assert_array_equal(np.array(result.params[:, 0]), np.array(starts[:, 0]))
        return
    assert "assignment to a slice" in complaint or "cannot batch" in complaint


def test_a_planted_batching_mistake_is_found_out(monkeypatch):
    # As if MLX answered for the first problem whatever it was asked.
    right = mx.vmap

    def wrong(function, in_axes=0):
        mapped = right(function, in_axes=in_axes)

        def first_of_all(*args):
            found = mapped(*args)
            return mx.repeat(found[:1], found.shape[0], axis=0)

        return first_of_all

    monkeypatch.setattr(mx, "vmap", wrong)
    starts = mx.random.normal((5, 3), key=mx.random.key(0))
    with pytest.raises(ValueError, match=r"differs from what single calls give \(problem 4\)"):
        mo.minimize_many(square, starts, mo.LBFGS(), mx.arange(5).astype(mx.float32))


def test_cancellation_is_no_batching_mistake():
    # In float32 this value is nothing but rounding, in a batch and alone.
    def loss(x, y):
        return mx.sum(x @ y) - mx.sum(mx.matmul(y.T, x)) + 1e-6 * mx.sum(mx.square(x - 1))

    y = mx.random.normal((6, 50, 50), key=mx.random.key(0)) * 100
    starts = mx.random.normal((6, 50), key=mx.random.key(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        mo.minimize_many(loss, starts, mo.LBFGS(), y, max_steps=3)
    # At an exact solution nothing but rounding is left.
    x = np.random.default_rng(0).standard_normal((3, 20, 2))
    solution = np.array([0.1, 0.7])
    result = mo.minimize_many(
        lambda w, x, y: mx.sum(mx.square(x @ w - y)),
        mx.array(solution, dtype=mx.float64),
        mo.Newton(),
        x,
        x @ solution,
        in_axes=(None, 0, 0),
    )
    assert list(result.steps) == [0, 0, 0]


# --- Derivatives under vmap ----------------------------------------------------------------------

SPECIAL = {
    "softplus": (mo.special.softplus, 0.1),
    "sigmoid": (mo.special.sigmoid, 0.1),
    "exp": (mo.special.exp, 0.1),
    "log_sigmoid": (mo.special.log_sigmoid, 0.1),
    "logsumexp": (lambda x: mo.special.logsumexp(x) + 0 * x, 0.1),
    "lgamma": (mo.special.lgamma, 1.5),
    "erf": (mo.special.erf, 0.1),
    "cholesky": (lambda x: mo.linalg.cholesky(mx.eye(3, dtype=x.dtype) * 9 + x[:, None] * x), 0.1),
    "solve": (lambda x: mo.linalg.solve(mx.eye(3, dtype=x.dtype) * 9 + x[:, None] * x, x), 0.1),
}


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("case", SPECIAL)
def test_functions_with_derivatives_of_their_own(case, compile):
    function, low = SPECIAL[case]

    def loss(x, y):
        return mx.mean(mx.square(function(x) - y)) + 0.05 * mx.sum(mx.square(x - low - 0.3))

    starts = mx.array(np.random.default_rng(0).uniform(low, low + 1, (4, 3)), dtype=mx.float64)
    y = mx.array(np.array([0.3, 0.5, 0.7, 0.9]), dtype=mx.float64)
    for optimizer in (mo.LBFGS(), mo.Newton()):
        result = mo.minimize_many(loss, starts, optimizer, y, compile=compile, tol=1e-9)
        for i in range(4):
            alone = mo.minimize(loss, starts[i], optimizer, y[i], tol=1e-9)
            assert result.converged[i]
            assert result.value[i] == pytest.approx(alone.value, abs=1e-12)


def test_a_factorization_that_fails_for_one_is_backed_away_from():
    def loss(x, y):  # positive definite for x > -1 only
        L = mo.linalg.cholesky(mx.eye(2) * (1.0 + x))
        return mx.square(x - y) - 0.001 * mx.log(L[0, 0])

    targets = mx.array([1.0, -3.0, 2.0])
    for compile in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mo.ConvergenceWarning)
            result = mo.minimize_many(
                loss, mx.array(0.0), mo.LBFGS(), targets, in_axes=(None, 0), compile=compile
            )
        assert result.converged[[0, 2]].all()
        assert np.isfinite(result.value).all()
        assert (np.array(result.params) > -1).all()


# --- The pieces ----------------------------------------------------------------------------------

numbers = st.floats(-5, 5).map(lambda x: round(x, 3))


class Along(Descent):
    """Line searches along the axis, from 0, and no second ones."""

    def direction(self, objective, state):
        ones = np.ones(len(state.status))
        return state._replace(direction=ones[:, None], step_size=ones)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers, st.integers(0, 4)), min_size=1, max_size=6))
def test_line_searches_go_as_one_goes(coefficients):
    """Quartics with a little of everything: bumps, edges, drops to infinity, float32 noise."""

    def along(coefficient, t):
        a, b, c, kind = coefficient
        value = -t + a * t**2 + b * t**3 / 10 + abs(c) * t**4 / 100
        slope = -1 + 2 * a * t + 0.3 * b * t**2 + abs(c) * t**3 / 25
        if kind == 1 and t > 1:
            return math.nan, math.nan
        if kind == 2 and t > 3:
            return -math.inf, math.nan
        if kind == 3:
            return value + 1e6 + 1e-3 * np.sin(1e4 * t), slope
        return value, slope

    def value_and_grad(x):
        answers = [along(c, t) for c, t in zip(coefficients, x[:, 0], strict=True)]
        values, slopes = np.array(answers).T
        return values, slopes[:, None]

    like = SimpleNamespace(like=mx.array([0.0]))
    objective: Any = SimpleNamespace(
        value_and_grad=value_and_grad,
        problems=like,
        dtype=mx.float32,
        epsilon=lambda: np.full(len(coefficients), 2.0**-23),
    )
    method = Along(mo.LBFGS())
    state = method.init(objective, np.zeros((len(coefficients), 1)))
    alone = [search.begin(along(c, 0.0)[0], -1.0, 1.0, 2.0**-23) for c in coefficients]
    open_ = np.ones(len(alone), dtype=bool)
    for trial in range(1, 46):
        state = method.step(objective, state)
        for i in np.flatnonzero(open_):
            with np.errstate(all="ignore"):
                t = float(np.float32(alone[i].step_size))
                alone[i] = one = search.proceed(alone[i], *along(coefficients[i], t))
            assert one.trials == trial
            assert state.step_size[i] == one.step_size
            assert (state.search[i] or one._replace(verdict="")) == one._replace(verdict="")
            assert (state.search[i] is None) == (one.verdict in ("accepted", "failed", "unbounded"))
            assert (state.status[i] == mo.Status.UNBOUNDED) == (one.verdict == "unbounded")
            known = t < math.inf and np.isfinite(along(coefficients[i], t)).all()
            assert state.moved[i] == (
                one.verdict == "accepted" or (one.verdict == "unbounded" and known)
            )
            assert state.points.x[i, 0] == (t if state.moved[i] else 0.0)
            open_[i] = one.verdict == ""
        if not open_.any():
            return
    pytest.fail("a search did not end")


def test_newton_directions_are_those_of_one():
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((30, 4, 4))
    matrices = matrices + np.swapaxes(matrices, 1, 2)
    matrices[:10] = matrices[:10] @ matrices[:10]  # positive definite
    matrices[10] = 0.0
    matrices[11] = np.outer([1, 2, 3, 4], [1, 2, 3, 4])  # rank one
    matrices[12, 0, 0] = -1e-9
    matrices[13] = np.diag([1e-12, 1.0, 1e12, 1.0])
    gradients = rng.standard_normal((30, 4))
    for eps in (2.0**-23, 2.0**-52):
        found = newton_direction(matrices, gradients, eps)
        for matrix, gradient, direction in zip(matrices, gradients, found, strict=True):
            one = newton_direction(matrix, gradient, eps)
            # Eigenvalues near zero are floored at √eps of the largest; 1e-8 of that is rounding.
            np.testing.assert_allclose(direction, one, rtol=1e-6, atol=1e-9 * abs(one).max())
            assert direction @ gradient < 0


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "optimizer", [mo.LBFGS(), mo.Newton(), mo.LevenbergMarquardt(), mo.GaussNewton()], ids=repr
)
def test_a_start_that_is_not_finite_is_told_by_its_status_alone(optimizer):
    centers = np.zeros((4, 3))
    centers[1, 1], centers[2, 0] = np.nan, np.inf
    of_squares = isinstance(optimizer, (mo.LevenbergMarquardt, mo.GaussNewton))

    def loss(w, center):
        return w - center if of_squares else mx.sum(mx.square(w - center))

    with pytest.warns(mo.ConvergenceWarning, match="2 of 4 problems failed"):
        result = mo.minimize_many(
            loss, mx.zeros(3), optimizer, centers, in_axes=(None, np.int64(0)), progress=False
        )
    assert [status.name for status in result.status] == [
        "CONVERGED",
        "NONFINITE",
        "NONFINITE",
        "CONVERGED",
    ]

"""least_squares: against closed forms, against SciPy, and at its doors."""

import json
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm

import mlxopt as mo
from mlxopt import problems
from mlxopt._least_squares import least_squares
from mlxopt._residual_objective import ROBUST, ResidualObjective, Robust
from mlxopt._tree import ravel
from mlxopt.optimizers.gauss_newton import GaussNewton
from mlxopt.optimizers.levenberg_marquardt import Factored, LevenbergMarquardt, region_step
from mlxopt.special import exp


def array64(values: Any) -> mx.array:
    return mx.array(np.asarray(values, dtype=np.float64), dtype=mx.float64)


def linear(params, X, y):
    return X @ params - y


def decay(params, x, y):
    return params["size"] * exp(-params["rate"] * x) + params["floor"] - y


def linear_data(rows=40, columns=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, columns)) * [1, 100, 0.01][:columns]
    return X, X @ rng.normal(size=columns) + rng.normal(size=rows)


def decay_data(noise=0.05, outliers=0, seed=0):
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 5, 40)
    y = 3 * np.exp(-1.3 * x) + 0.5 + noise * rng.normal(size=40)
    y[7 : 7 + 8 * outliers : 8] += 3
    return x, y


def decay_start(dtype=mx.float64):
    return {name: mx.array(1.0, dtype=dtype) for name in ("size", "rate", "floor")}


def scipy_decay(x, y, **options):
    def residual(p):
        return p[0] * np.exp(-p[1] * x) + p[2] - y

    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    return scipy.optimize.least_squares(residual, [1.0, 1.0, 1.0], **tight, **options)


def vector(params) -> np.ndarray:
    return np.array(ravel(params, mx.float64))


# --- the answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [LevenbergMarquardt(), GaussNewton()])
def test_a_linear_fit_is_ordinary_least_squares(optimizer):
    X, y = linear_data()
    result = least_squares(linear, mx.zeros(3, dtype=mx.float64), X, y, optimizer=optimizer)
    reference = sm.OLS(y, X).fit()
    assert result.converged
    # The condition number is 1e4, scaled 1: closed forms agree to some 12 digits.
    np.testing.assert_allclose(np.array(result.params), reference.params, rtol=1e-11)
    np.testing.assert_allclose(result.covariance, reference.cov_params(), rtol=1e-10)
    np.testing.assert_allclose(np.array(result.standard_errors), reference.bse, rtol=1e-10)
    assert result.residual_sd == pytest.approx(np.sqrt(reference.scale), rel=1e-12)
    assert (result.rank, result.degrees_of_freedom) == (3, 37)
    for level in (0.95, 0.5):
        ends = np.array(result.intervals(level)).T
        np.testing.assert_allclose(ends, reference.conf_int(1 - level), rtol=1e-9)
    np.testing.assert_allclose(result.residual, -reference.resid, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.jacobian, X, rtol=1e-15)
    assert result.value == pytest.approx(0.5 * reference.ssr, rel=1e-13)


def test_gauss_newton_solves_a_linear_fit_in_one_step():
    X, y = linear_data()
    start = mx.zeros(3, dtype=mx.float64)
    result = least_squares(linear, start, X, y, optimizer=GaussNewton(), polish=False)
    assert (result.steps, result.evaluations) == (1, 2)


@pytest.mark.parametrize("geodesic", [False, True])
def test_a_tree_of_parameters(geodesic):
    x, y = decay_data()
    optimizer = LevenbergMarquardt(geodesic=geodesic)
    result = least_squares(decay, decay_start(), x, y, optimizer=optimizer)
    reference = scipy_decay(x, y)
    np.testing.assert_allclose(vector(result.params), reference.x, rtol=1e-8)
    assert result.standard_errors.keys() == result.params.keys()
    lower, upper = result.intervals()
    assert float(lower["rate"]) < 1.3 < float(upper["rate"])
    for text in ("LeastSquaresResult", "CONVERGED", "37 degrees of freedom", "std errors"):
        assert text in repr(result)


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside = 0
    for seed in range(100):
        x, y = decay_data(seed=seed)
        fit = least_squares(decay, decay_start(), x, y, compile=False, polish=False)
        lower, upper = fit.intervals(0.8)
        inside += float(lower["rate"]) < 1.3 < float(upper["rate"])
    # Binomial with 100 and 0.8: within 4 standard deviations.
    assert 64 <= inside <= 96


def test_units_do_not_matter():
    x, y = decay_data()
    plain = least_squares(decay, decay_start(), x, y, compile=False)

    def in_other_units(params, x, y):
        return 1e6 * decay(
            {"size": params[0] * 1e9, "rate": params[1] * 1e-7, "floor": params[2]}, x, y
        )

    start = array64([1e-9, 1e7, 1])
    other = least_squares(in_other_units, start, x, y, compile=False)
    assert other.converged
    scaled = np.array(other.params) * [1e9, 1e-7, 1]
    np.testing.assert_allclose(scaled, vector(plain.params), rtol=1e-10)
    assert other.evaluations == plain.evaluations
    errors = np.array(other.standard_errors) * [1e9, 1e-7, 1]
    np.testing.assert_allclose(errors, vector(plain.standard_errors), rtol=1e-8)


def test_data_that_do_not_determine_all_parameters():
    def residual(p, x):
        return (p[0] + p[1]) * x + p[2] - 3 * x**2

    x = np.linspace(0, 1, 10)
    with pytest.warns(mo.ConvergenceWarning, match=r"determine params\[0\] - params\[1\]"):
        result = least_squares(residual, mx.ones(3, dtype=mx.float64), x)
    assert (result.rank, result.degrees_of_freedom) == (2, 8)
    assert np.isnan(np.diag(result.covariance)).tolist() == [True, True, False]
    reference = sm.OLS(3 * x**2, np.column_stack([x, np.ones(10)])).fit()
    assert float(result.standard_errors[2]) == pytest.approx(reference.bse[1], rel=1e-9)
    assert "only 2 of 3 parameters" in " ".join(repr(result).split())


def test_as_many_residuals_as_parameters_leave_no_standard_errors():
    result = run(problems.get("Rosenbrock"), mx.float64)
    assert result.converged
    assert np.isnan(result.residual_sd)
    assert np.isnan(np.array(result.standard_errors)).all()


# --- robust losses ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ROBUST))
def test_robust_losses_against_scipy(name):
    x, y = decay_data(outliers=4)
    result = least_squares(decay, decay_start(), x, y, robust=(name, 0.2))
    reference = scipy_decay(x, y, loss=name, f_scale=0.2)
    assert result.converged
    assert result.value == pytest.approx(reference.cost, rel=1e-10)
    np.testing.assert_allclose(vector(result.params), reference.x, rtol=1e-6)
    plain = least_squares(decay, decay_start(), x, y)
    assert abs(float(result.params["rate"]) - 1.3) < abs(float(plain.params["rate"]) - 1.3)
    assert np.isfinite(np.diag(result.covariance)).all()


@pytest.mark.parametrize("name", list(ROBUST))
def test_robust_slopes_are_the_derivatives(name):
    robust = Robust(ROBUST[name], 0.7)
    r = np.array([-3.0, -0.69, -0.1, 0.0, 0.3, 0.71, 5.0, 1e3])
    with mx.stream(mx.cpu):
        slope = mx.grad(robust.loss)
        first = np.array(slope(array64(r)))
        second = np.array(mx.grad(lambda at: mx.sum(slope(at)))(array64(r)))
        value = float(np.array(robust.loss(array64(r))))
    pull, curvature = robust.slopes(r)
    np.testing.assert_allclose(pull * r, first, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(curvature, second, rtol=1e-12, atol=1e-15)
    assert robust.value(r) == pytest.approx(value, rel=1e-14)


def test_the_robust_covariance_is_the_sandwich():
    X, y = linear_data(rows=400)
    y[::10] += 20
    result = least_squares(linear, mx.zeros(3, dtype=mx.float64), X, y, robust=("huber", 1.345))
    inside = np.abs(result.residual) <= 1.345
    psi = np.clip(result.residual, -1.345, 1.345)
    bread = np.linalg.inv(X[inside].T @ X[inside])
    expected = bread @ (X.T * psi**2 @ X) @ bread * 400 / 397
    np.testing.assert_allclose(result.covariance, expected, rtol=1e-8)


# --- bounds -------------------------------------------------------------------------------------


def test_bounds_against_scipy_and_never_left():
    x, y = decay_data()
    rng = np.random.default_rng(1)
    active = 0
    for _ in range(12):
        lower = rng.uniform(-1, 1, 3)
        upper = lower + rng.uniform(0.1, 3, 3)
        start = lower + rng.uniform(0.05, 0.95, 3) * (upper - lower)
        names = ("size", "rate", "floor")
        box: Any = [dict(zip(names, map(float, side), strict=True)) for side in (lower, upper)]
        seen = []
        result = least_squares(
            decay,
            {name: array64(value) for name, value in zip(names, start, strict=True)},
            x, y, bounds=box, compile=False,
            callback=lambda info, seen=seen: seen.append(vector(info.params)),
        )  # fmt: skip
        reference = scipy.optimize.least_squares(
            lambda p: p[0] * np.exp(-p[1] * x) + p[2] - y, start, bounds=(lower, upper),
            xtol=1e-15, ftol=1e-15, gtol=1e-13,
        )  # fmt: skip
        assert result.converged
        assert (lower <= np.array(seen)).all()
        assert (np.array(seen) <= upper).all()
        # SciPy stays strictly inside: not below it, and no more than its distance above.
        assert result.value <= reference.cost * (1 + 1e-9)
        assert result.value >= reference.cost * (1 - 1e-3)
        held = np.isnan(np.diag(result.covariance))
        at = vector(result.params)
        gradient = result.jacobian.T @ result.residual
        assert (gradient[held & (at == lower)] > 0).all()
        assert (gradient[held & (at == upper)] < 0).all()
        assert np.abs(gradient[~held]).max(initial=0) < 1e-7
        assert result.grad_norm == pytest.approx(np.abs(gradient[~held]).max(initial=0))
        active += held.any()
    assert active >= 5


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_a_number_as_a_bound_and_its_rounding(dtype):
    # 0.1 is not a float32: the nearest one lies above it.
    result = least_squares(
        lambda p: p - 1, mx.zeros(2, dtype=dtype), bounds=(None, 0.1), compile=False
    )
    assert result.converged
    assert (np.array(result.params).astype(np.float64) <= 0.1).all()
    assert result.rank == 0


def test_bounded_problems():
    for problem in problems.BOUNDED:
        if problem.residual is None or problem.bounds is None:
            continue
        bounds = (np.array(problem.bounds[0]), np.array(problem.bounds[1]))
        result = run(problem, mx.float64, bounds=bounds)
        assert result.converged
        assert problem.solved_by(2 * result.value), problem.name


# --- the set of Moré, Garbow and Hillstrom ------------------------------------------------------


def run(problem, dtype, factor=1.0, **options):
    start = problem.params(dtype, factor)
    return least_squares(problem.residual, start, compile=False, **options)


@pytest.mark.parametrize("problem", problems.MGH, ids=lambda problem: problem.name)
def test_float64_from_the_standard_start(problem):
    # The Jacobian of Powell's singular functions has half its rank at the minimum.
    if "rank 1" in problem.name or "singular" in problem.name:
        with pytest.warns(mo.ConvergenceWarning, match="the data do not determine .*rank"):
            result = run(problem, mx.float64)
    else:
        result = run(problem, mx.float64)
    assert result.converged
    assert problem.solved_by(2 * result.value)


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
@pytest.mark.parametrize("problem", problems.MGH, ids=lambda problem: problem.name)
def test_float32_never_converges_where_it_has_not(problem):
    result = run(problem, mx.float32)
    assert result.status in (mo.Status.CONVERGED, mo.Status.NO_PROGRESS)
    with mx.stream(mx.cpu):
        value = float(np.array(problem.loss(result.params.astype(mx.float64))))
    # Watson (12) has a condition number of 1e8 and gets to the second digit.
    assert problem.solved_by(value, 0.1 if problem.name == "Watson (12)" else 1e-3)
    if result.converged:
        # What float32 calls small is small in float64: the decrease that the gradient promises
        # is below the loss's own rounding, or the loss is zero but for rounding.
        objective = ResidualObjective(problem.residual, compile=False)
        with mx.stream(mx.cpu):
            x = result.params.astype(mx.float64)
            r, J = np.array(objective.residual(x)), np.array(objective.jacobian(x))
        lengths = np.linalg.norm(J, axis=0)
        cosines = np.abs(J.T @ r) / np.where(lengths > 0, lengths, 1)
        size = np.linalg.norm(np.abs(J) @ np.abs(np.array(x)))
        # At the rounding floor, the step left is a hundredth of a standard error.
        tol = 1e-2 if result.reason else 2e-5
        assert cosines.max() <= tol * np.linalg.norm(r) + 2.0**-23 * size


def test_float32_converges_to_its_rounding_and_says_so():
    # A residual of 1e-4 of the data: the last bit of p turns it by an angle of 1e-3 or so, and a
    # smaller cosine is luck; but that bit is a hundredth of the standard error.
    x = np.linspace(1, 2, 8)
    y = 3 * x + 1e-4 * np.tile([1, -1], 4)
    for start in (0.0, 1.0, 2.5, 7.0):
        result = least_squares(linear, mx.array([start]), x[:, None], y, compile=False)
        assert result.converged
        assert result.reason == "to the rounding of float32."
        assert float(result.params[0]) == pytest.approx(3, rel=1e-5)
        # The last bit of p moves the residual by 2⁻²³ of the data.
        turned = 2.0**-23 * np.linalg.norm(y) / np.linalg.norm(result.residual)
        assert result.optimality > 0.3 * turned > 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_ten_times_farther_out():
    solved = []
    for problem in problems.MGH:
        result = run(problem, mx.float64, factor=10)
        if problem.solved_by(2 * result.value):
            solved.append(problem.name)
    # Elsewhere it ends in other local minima, or is lost on a plateau or among huge polynomials.
    missed = {problem.name for problem in problems.MGH} - set(solved)
    assert missed <= {
        "Beale", "Jennrich and Sampson", "Bard", "Box", "Osborne 2", "Trigonometric (10)",
        "Chebyquad (8)", "Chebyquad (9)", "Chebyquad (10)",
    }, missed  # fmt: skip


def test_geodesic_needs_fewer_steps_in_a_curved_valley():
    problem = problems.get("Meyer")
    plain = run(problem, mx.float64)
    bent = run(problem, mx.float64, optimizer=LevenbergMarquardt(geodesic=True))
    assert problem.solved_by(2 * bent.value)
    assert bent.steps < 0.6 * plain.steps


def test_a_saddle_is_left():
    # (0, 0) is stationary, and JᵀJ says it is a minimum in y as it is in x.
    def residual(p):
        return mx.stack([p[0], 0.5 * (p[1] * p[1] - 1)])

    start = array64([1.0, 0.0])
    with pytest.warns(mo.ConvergenceWarning, match="SADDLE"):
        assert least_squares(residual, start, polish=False).value == pytest.approx(0.125)
    result = least_squares(residual, start)
    assert result.converged
    assert result.value < 1e-20
    assert abs(float(result.params[1])) == pytest.approx(1)


# --- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 4, 6, 7, 100, 200])
@pytest.mark.parametrize("compile", [False, True])
def test_the_jacobian_by_rows_and_by_columns(rows, compile):
    X = np.random.default_rng(rows).normal(size=(rows, 3))

    def residual(params, X):
        return mx.tanh(X @ params) ** 2

    objective = ResidualObjective(residual, (array64(X),), compile=compile)
    at = np.array([0.3, -0.5, 0.8])
    with mx.stream(mx.cpu):
        found = np.array(objective.jacobian(array64(at)))
    t = np.tanh(X @ at)
    np.testing.assert_allclose(found, (2 * t * (1 - t * t))[:, None] * X, rtol=1e-12, atol=1e-14)


def test_a_hand_written_derivative_is_used():
    @mx.custom_function
    def rounded(x):
        return mx.round(x)

    @rounded.vjp
    def _(x, cotangent, _):
        return cotangent

    for rows in (2, 50):  # by rows and by columns
        objective = ResidualObjective(
            lambda p, n=rows: mx.broadcast_to(cast(mx.array, rounded(p))[:1], (n,)), compile=False
        )
        assert np.array(objective.jacobian(mx.array([0.4])))[:, 0].tolist() == [1.0] * rows


@pytest.mark.parametrize("rows", [3, 30])
def test_the_jacobian_of_an_assignment(rows):
    # mx.vmap of an assignment to a slice is right in its first row only (MLX 0.32).
    X = np.random.default_rng(0).normal(size=(rows, 3))

    def residual(params, X):
        z = mx.zeros(3, dtype=params.dtype)
        z[0] = params[1] ** 2
        z[1:] = params[:2]
        return X @ z

    objective = ResidualObjective(residual, (array64(X),))
    with mx.stream(mx.cpu):
        found = np.array(objective.jacobian(array64([1.0, 2.0, 3.0])))
    inner = np.array([[0.0, 4.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(found, X @ inner, rtol=1e-12, atol=1e-14)


def test_the_region_is_kept():
    rng = np.random.default_rng(0)
    for _ in range(50):
        J, r = rng.normal(size=(8, 4)) * 10.0 ** rng.integers(-4, 4, 4), rng.normal(size=8)
        q, R = np.linalg.qr(J)
        u, s, vt = np.linalg.svd(R)
        factored = Factored(np.arange(4), R, q.T @ r, s, vt, -(u.T @ (q.T @ r)), np.ones(4))
        newton = np.linalg.lstsq(J, -r, rcond=None)[0]
        for share in (1e-3, 0.5, 2.0):
            radius = share * float(np.linalg.norm(newton))
            step, multiplier = region_step(factored, radius)
            assert np.linalg.norm(step) <= 1.1 * radius * (1 + 1e-12)
            if share > 1.1:
                assert multiplier == 0
                np.testing.assert_allclose(step, newton, rtol=1e-6)
            else:
                assert np.linalg.norm(step) >= 0.9 * radius * (1 - 1e-12)
                expected = np.linalg.solve(J.T @ J + multiplier * np.eye(4), -(J.T @ r))
                np.testing.assert_allclose(step, expected, rtol=1e-4)


@pytest.mark.parametrize("optimizer", [LevenbergMarquardt(), GaussNewton()])
def test_the_state_is_of_its_own_point(optimizer):
    problem = problems.get("Kowalik and Osborne")
    with mx.stream(mx.cpu):
        assert problem.residual is not None
        objective = ResidualObjective(problem.residual, compile=False)
        state = optimizer.init(objective, problem.params())
        moved = 0
        for _ in range(15):
            before, count = state, objective.evaluations
            state = optimizer.step(objective, state)
            assert objective.evaluations == count + 1
            value, grad = objective.value_and_grad(state.params)
            assert state.value == pytest.approx(float(np.array(value)), rel=1e-13)
            # The gradient's terms are summed in another order.
            np.testing.assert_allclose(np.array(state.grad), np.array(grad), rtol=1e-9, atol=1e-14)
            assert state.value <= before.value
            moved += state.params is not before.params
        assert moved >= 5


def test_a_trial_outside_the_domain_is_refused():
    def residual(p, y):
        return mx.log(p) - y

    result = least_squares(residual, array64([1e-3, 1.0, 50.0]), np.array([0.0, 1.0, -9.0]))
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), np.exp([0.0, 1.0, -9.0]), rtol=1e-12)


# --- the loop and the doors ---------------------------------------------------------------------


def test_the_loop_is_the_one_of_minimize():
    problem = problems.get("Rosenbrock")
    seen = []
    result = run(problem, mx.float64, callback=lambda info: seen.append(info.step))
    assert seen == sorted(seen)
    assert result.history.step[-1] == result.steps
    assert [phase.optimizer for phase in result.phases] == ["LevenbergMarquardt", "Polish"]
    assert run(problem, mx.float64, callback=lambda info: info.step == 3).steps == 3
    assert run(problem, mx.float64, tol=0, max_steps=5).status is mo.Status.COMPLETED
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS"):
        assert run(problem, mx.float64, max_steps=5).steps == 5


def test_an_ignored_parameter_is_named():
    with pytest.warns(mo.ConvergenceWarning, match=r"params\['b'\]"):
        result = least_squares(
            lambda p, x: p["a"] * x - 1, {"a": array64(0.0), "b": array64(1.0)}, [1.0, 2.0]
        )
    assert result.rank == 1


BAD = [
    (lambda p: p[:1], {}, ValueError, "1 entries and params 2"),
    (lambda p: None, {}, TypeError, "NoneType; expected an mx.array"),
    (lambda p: p > 0, {}, TypeError, "bool; expected real"),
    (lambda p: p * float(mx.sum(p)), {}, mo.TapeError, "reads an array back"),
    (lambda p: mx.log(p - 5), {}, ValueError, "at the start"),
    (lambda p: p, {"optimizer": mo.LBFGS()}, TypeError, "expected LevenbergMarquardt"),
    (lambda p: p, {"optimizer": LevenbergMarquardt}, TypeError, "call it"),
    (lambda p: p, {"robust": "hubert"}, ValueError, "Did you mean 'huber'"),
    (lambda p: p, {"robust": 3}, TypeError, "expected one of 'huber'"),
    (lambda p: p, {"robust": ("huber", -1)}, ValueError, "more than zero"),
    (lambda p: p, {"bounds": 3}, TypeError, "expected \\(lower, upper\\)"),
    (lambda p: p, {"bounds": (3, 2)}, ValueError, "lower is above upper"),
    (lambda p: p, {"bounds": (1.5, None)}, ValueError, "outside its bounds"),
    (lambda p: p, {"bounds": ({"a": 1}, None)}, ValueError, "fit"),
    (lambda p: p, {"bounds": (0, 9), "optimizer": GaussNewton()}, ValueError, "knows no bounds"),
    (lambda p: p, {"tol": -1}, ValueError, "tol"),
    (lambda p: p, {"max_steps": 0}, ValueError, "max_steps"),
    (3, {}, TypeError, "expected a function"),
]


@pytest.mark.parametrize(("residual", "options", "error", "message"), BAD)
def test_misuse_is_refused(residual, options, error, message):
    with pytest.raises(error, match=message):
        least_squares(residual, mx.array([1.0, 2.0]), **options)


def test_more_misuse():
    with pytest.raises(TypeError, match="came among the data"):
        least_squares(lambda p: p, mx.array([1.0]), LevenbergMarquardt())
    with pytest.raises(TypeError, match="least_squares\\(residual"):
        mo.minimize(lambda p: mx.sum(p), mx.array([1.0]), LevenbergMarquardt())
    wrong: list[Any] = [{"radius": 0}, {"radius": "big"}, {"geodesic": 1}]
    for options in wrong:
        with pytest.raises((TypeError, ValueError), match="LevenbergMarquardt\\("):
            LevenbergMarquardt(**options)
    x, y = decay_data()
    with pytest.raises(ValueError, match="level"):
        least_squares(decay, decay_start(), x, y).intervals(95)


def test_results_are_plain_numbers():
    x, y = decay_data()
    result = least_squares(decay, decay_start(mx.float32), x, y)
    assert result.params["rate"].dtype == mx.float32
    json.dumps([result.value, result.residual_sd, result.rank, result.optimality])
    reach = scipy.stats.t.ppf(0.975, result.degrees_of_freedom)
    lower, upper = result.intervals()
    width = float(upper["rate"]) - float(lower["rate"])
    error = float(result.standard_errors["rate"])
    assert width == pytest.approx(2 * reach * error, rel=1e-5)

"""LBFGSB: bounds never left, SciPy's answers, the subspace step, and what is wrong with bounds."""

from typing import NamedTuple, cast

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from problems import PROBLEMS, array64, rosenbrock
from scipy.optimize import minimize as scipy_minimize
from scipy.optimize import nnls

import mlxopt as mo
from mlxopt._bounds import bound_vectors
from mlxopt._objective import Objective
from mlxopt.optimizers import lbfgsb
from mlxopt.optimizers.lbfgsb import LBFGSB


def quadratic(x, A, b):
    return 0.5 * mx.sum(x * (A @ x)) - mx.sum(b * x)


def projected_gradient(x, g, lower, upper):
    return np.clip(x - g, lower, upper) - x


def run(loss, start, lower, upper, *data, **options):
    """Minimize, with every point that the loss is evaluated at or the callback sees checked."""
    seen = []

    def look(info):
        seen.append(np.array(info.params, dtype=np.float64))

    result = mo.minimize(
        loss, start, LBFGSB(lower=lower, upper=upper), *data, callback=look, **options
    )
    for point in [*seen, np.array(result.params, dtype=np.float64)]:
        assert (point >= lower).all()
        assert (point <= upper).all()
    return result


@st.composite
def boxes(draw):
    """A convex quadratic, a box (sides may be infinite, or of no width), and a start inside."""
    size = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    Q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    A = Q @ np.diag(np.geomspace(1, 10 ** draw(st.floats(0, 4)), size)) @ Q.T
    A = 0.5 * (A + A.T)
    b = A @ rng.normal(size=size)
    ends = np.sort(rng.normal(size=(2, size)), axis=0)
    kind = rng.integers(0, 5, size=size)
    lower = np.where(kind == 0, -np.inf, ends[0])
    upper = np.where(kind == 1, np.inf, np.where(kind == 2, lower, ends[1]))
    start = np.clip(rng.normal(size=size), lower, upper)
    return A, b, lower, upper, start


@settings(max_examples=60, deadline=None)
@given(boxes())
def test_random_boxes_agree_with_scipy(box):
    A, b, lower, upper, start = box
    result = run(quadratic, array64(start), lower, upper, A, b, tol=1e-9)
    reference = scipy_minimize(
        lambda x: (0.5 * x @ A @ x - b @ x, A @ x - b), start, jac=True, method="L-BFGS-B",
        bounds=list(zip(lower, upper, strict=True)), options={"gtol": 1e-9, "ftol": 0},
    )  # fmt: skip
    assert result.converged
    x = np.array(result.params)
    # Curvature is 1 or more: the value is within 1e-9² · size / 2 of the minimum's, and rounding.
    scale = np.abs(b).max() ** 2 + 1
    assert result.value <= reference.fun + 1e-12 * scale
    optimality = np.abs(projected_gradient(x, A @ x - b, lower, upper)).max()
    assert optimality <= 1e-9 * result.history.optimality.max() + 1e-13 * scale


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_random_boxes_on_rosenbrock_end_in_stationary_points(seed):
    rng = np.random.default_rng(seed)
    start = rng.normal(size=5)
    lower, upper = start - rng.exponential(size=5), start + rng.exponential(size=5)
    result = run(rosenbrock, array64(start), lower, upper, max_steps=2000)
    assert result.converged
    with mx.stream(mx.cpu):
        g = np.array(mx.grad(rosenbrock)(result.params))
    largest = np.abs(projected_gradient(np.array(result.params), g, lower, upper)).max()
    assert largest <= 1e-8 * result.history.optimality.max()
    reference = mo.minimize(rosenbrock, array64(start), mo.LBFGS())
    assert result.value >= reference.value - 1e-12


def test_every_evaluated_point_is_within_the_bounds():
    seen = []

    def loss(x):
        seen.append(np.array(mx.stop_gradient(x), dtype=np.float64).copy())
        return mx.sum(mx.sqrt(x)) + rosenbrock(x + 1)  # NaN below 0

    with mx.stream(mx.cpu):
        # The loss itself looks at its points, so neither it nor its gradient may be traced.
        objective = Objective(loss, compile=False)
        objective.value_and_grad = lambda params: _by_hand(loss, params)  # pyright: ignore
        optimizer = LBFGSB(lower=0.0, upper=[0.5, None, 3.0, 4.0])
        state = optimizer.init(objective, array64([0.5, 3.0, 1.0, 4.0]))
        for _ in range(60):
            state = optimizer.step(objective, state)
    points = np.array(seen)
    assert len(points) > 5
    assert points.min() >= 0
    assert (points <= [0.5, np.inf, 3.0, 4.0]).all()


def _by_hand(loss, x):
    value = loss(x)
    a = np.array(x)
    z = a + 1
    g = 0.5 / np.sqrt(np.maximum(a, 1e-300))
    g[:-1] += -400 * z[:-1] * (z[1:] - z[:-1] ** 2) - 2 * (1 - z[:-1])
    g[1:] += 200 * (z[1:] - z[:-1] ** 2)
    return value, array64(g)


# --- against textbooks -------------------------------------------------------------------------


@pytest.mark.parametrize("filled", range(7))
def test_the_free_step_solves_with_the_materialized_matrix(filled):
    rng = np.random.default_rng(filled)
    p, m = 9, 6
    A = rng.normal(size=(p, p))
    A = A @ A.T + np.eye(p)
    order = tuple(int(i) for i in rng.permutation(m)[:filled])  # pairs may lie in any order
    rows = np.zeros((2 * m + 1, p))
    theta, B = 1.7, 1.7 * np.eye(p)
    for i in order:
        s = rng.normal(size=p)
        y = A @ s
        rows[i], rows[m + i] = s, y
        # Nocedal and Wright (2006), equation 6.19.
        B = B - np.outer(B @ s, B @ s) / (s @ B @ s) + np.outer(y, y) / (y @ s)
    rows[-1] = g = rng.normal(size=p)
    free = rng.uniform(size=p) < 0.6
    kept = rows * free
    step = lbfgsb.free_step(rows @ rows.T, kept @ kept.T, order, theta) @ kept
    np.testing.assert_allclose(
        step[free], -np.linalg.solve(B[np.ix_(free, free)], g[free]), rtol=1e-8
    )


def test_what_is_held_goes_down_the_gradient_to_its_bound():
    rng = np.random.default_rng(0)
    rows, combination, theta = rng.normal(size=(5, 4)), rng.normal(size=5), 2.5
    free = np.array([True, False, True, False])
    with mx.stream(mx.cpu):
        D = array64([1.0, 2.0, 4.0, 8.0])
        arrays = (array64(combination), mx.array(free), array64(rows), array64(theta))
        mixed, wide = lbfgsb._mix(*arrays, None), lbfgsb._mix(*arrays, D)
    expected = np.where(free, combination @ rows, -rows[-1] / theta)
    np.testing.assert_array_equal(np.array(wide), np.array(mixed) * np.array(D))
    np.testing.assert_allclose(np.array(mixed), expected, rtol=1e-12)


def textbook(A, b, lower, upper, x, steps):
    """The method with all matrices materialized: the points that it accepts, on a quadratic."""
    points, pairs = [x], []
    g = A @ x - b
    theta = (g @ A @ g) / (g @ g)  # the minimum along -gradient, all parameters being inside
    for _ in range(steps):
        near = np.abs(projected_gradient(x, g / theta, lower, upper)).max()
        near = np.minimum(near, 1e-6 * np.abs(x))
        held = ((x <= lower + near) & (g > 0)) | ((x >= upper - near) & (g < 0))
        free = ~held
        B = theta * np.eye(len(x))
        for s, y in pairs[-3:]:
            B = B - np.outer(B @ s, B @ s) / (s @ B @ s) + np.outer(y, y) / (y @ s)
        d = -g / theta
        d[free] = -np.linalg.solve(B[np.ix_(free, free)], g[free])
        # Along the path's first piece the loss is a quadratic of t; here full steps are enough.
        new = np.clip(x + d, lower, upper)
        new_g = A @ new - b
        s, y = new - x, new_g - g
        theta = (y @ y) / (s @ y)
        pairs.append((s, y))
        x, g = new, new_g
        points.append(x)
    return points


def test_the_path_is_that_of_the_textbook():
    # A quadratic near enough to the identity for every first trial to be accepted.
    rng = np.random.default_rng(3)
    A = rng.normal(size=(8, 8))
    A = np.eye(8) + 0.03 * (A + A.T)
    b = 2 * rng.normal(size=8)
    lower, upper = np.full(8, -1.6), np.full(8, 1.8)
    start = rng.uniform(-0.5, 0.5, size=8)
    theirs = textbook(A, b, lower, upper, start, 6)
    ours = [start]
    with mx.stream(mx.cpu):
        optimizer = LBFGSB(lower=-1.6, upper=1.8, memory=3)
        objective = Objective(quadratic, (array64(A), array64(b)))
        state = optimizer.init(objective, array64(start))
        for _ in range(6):
            state = optimizer.step(objective, state)
            ours.append(np.array(state.params))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)
    assert 0 < np.sum((ours[-1] == lower) | (ours[-1] == upper)) < 8


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("dtype", [mx.float64, mx.float32])
def test_without_bounds_it_is_lbfgs(problem, dtype):
    start = mx.array(np.array(problem.start), dtype=dtype)
    ours, theirs = (
        mo.minimize(problem.loss, start, optimizer) for optimizer in (LBFGSB(), mo.LBFGS())
    )
    assert ours.converged
    # In float32 rounding, which differs from CPU to CPU, tells them apart after some steps.
    assert abs(ours.steps - theirs.steps) <= (0 if dtype == mx.float64 else 0.1 * theirs.steps)
    tolerance = 1e-7 if dtype == mx.float64 else 1e-3
    np.testing.assert_allclose(
        np.array(ours.params), np.array(theirs.params), rtol=tolerance, atol=tolerance
    )


def test_non_negative_least_squares_is_that_of_lawson_and_hanson():
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(80, 30)), rng.normal(size=80)
    expected, _ = nnls(X, y)

    def loss(w, X, y):
        return 0.5 * mx.mean(mx.square(X @ w - y))

    result = mo.minimize(loss, array64(np.ones(30)), LBFGSB(lower=0), X, y, tol=1e-10)
    np.testing.assert_allclose(np.array(result.params), expected, atol=1e-8)
    np.testing.assert_array_equal(np.array(result.params) == 0, expected == 0)


def test_hundreds_of_bounds_are_met_in_a_few_steps():
    target = np.linspace(-3, 3, 2000)
    weights = 1 + np.arange(2000) % 7.0

    def loss(x, target, weights):
        return mx.sum(weights * mx.square(x - target))

    result = run(loss, array64(np.zeros(2000)), -1.0, 1.0, target, weights)
    assert result.converged
    assert result.steps <= 30  # for 1,333 bounds
    np.testing.assert_allclose(np.array(result.params), np.clip(target, -1, 1), atol=1e-8)


def test_it_needs_no_more_evaluations_than_scipy_on_boxes():
    ours = theirs = 0
    rng = np.random.default_rng(0)
    for size, condition in [(5, 1e3), (20, 1e3), (50, 500), (100, 30), (50, 5), (50, 200)]:
        Q = np.linalg.qr(rng.normal(size=(size, size)))[0]
        A = Q @ np.diag(np.geomspace(1, condition, size)) @ Q.T
        b = A @ rng.normal(size=size)
        lower, upper = -rng.uniform(size=size), rng.uniform(size=size)
        result = run(quadratic, array64(np.zeros(size)), lower, upper, A, b)
        reference = scipy_minimize(
            lambda x, A=A, b=b: (0.5 * x @ A @ x - b @ x, A @ x - b), np.zeros(size), jac=True,
            method="L-BFGS-B", bounds=list(zip(lower, upper, strict=True)),
            options={"gtol": 1e-8, "ftol": 0},
        )  # fmt: skip
        assert result.value <= reference.fun + 1e-9 * abs(reference.fun)
        ours, theirs = ours + result.evaluations, theirs + reference.nfev
    assert ours <= 1.2 * theirs, (ours, theirs)


# --- dtypes and trees --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_bounds_that_the_dtype_cannot_hold_are_not_exceeded_either(dtype):
    def loss(x):
        return mx.sum(mx.square(x.astype(mx.float32) - mx.array([-1.0, 3.0, 0.15])))

    result = mo.minimize(loss, mx.full((3,), 0.15, dtype=dtype), LBFGSB(lower=0.1, upper=0.2))
    assert result.params.dtype == dtype
    x = np.array(result.params.astype(mx.float32), dtype=np.float64)
    assert (x >= 0.1).all()  # in float64: float32(0.1) is above 0.1 and float32(0.2) above 0.2
    assert (x <= 0.2).all()
    eps = {mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}[dtype]
    np.testing.assert_allclose(x[:2], [0.1, 0.2], rtol=eps)


def test_a_start_on_a_bound_that_the_dtype_rounds_is_inside():
    result = mo.minimize(lambda x: mx.sum(x), mx.full((2,), 0.2), LBFGSB(lower=0.1, upper=0.2))
    assert result.converged
    assert all(0.1 <= entry < 0.1 + 1e-7 for entry in result.params.tolist())


class Pair(NamedTuple):
    slope: mx.array
    rest: dict


def test_bounds_may_be_a_tree():
    params = Pair(array64([1.0, 1.0]), {"b": array64(2.0), "free": [array64([[3.0, -3.0]])]})

    def loss(p):
        return (
            mx.sum(mx.square(p.slope + 1))
            + mx.square(p.rest["b"] - 5)
            + mx.sum(mx.square(p.rest["free"][0]))
        )

    lower = Pair(array64([0.5, -9.0]), {"b": None, "free": [None]})
    upper = (None, {"b": 4, "free": [np.array([1e9, -2.0])]})
    result = mo.minimize(loss, params, LBFGSB(lower=lower, upper=upper))
    assert result.converged
    assert isinstance(result.params, Pair)
    np.testing.assert_allclose(np.array(result.params.slope), [0.5, -1], atol=1e-8)
    assert result.params.rest["b"].item() == 4
    np.testing.assert_allclose(np.array(result.params.rest["free"][0]), [[0, -2]], atol=1e-8)


def test_equal_bounds_hold_a_parameter_fixed():
    result = mo.minimize(
        rosenbrock, array64([0.5, 2.0]), LBFGSB(lower=[0.5, None], upper=[0.5, None])
    )
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), [0.5, 0.25], atol=1e-9)
    fixed = mo.minimize(rosenbrock, array64([0.5, 2.0]), LBFGSB(lower=[0.5, 2], upper=[0.5, 2]))
    assert fixed.converged
    assert fixed.optimality == 0
    # Also where the dtype has no number at that place.
    third = mo.minimize(lambda x: mx.sum(x), mx.array([0.1]), LBFGSB(lower=0.1, upper=0.1))
    assert third.params.item() == mx.array(0.1).item()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64])
@settings(max_examples=100, deadline=None)
@given(st.floats(-6e4, 6e4), st.floats(-6e4, 6e4))
@example(39457.0, 39472.0)  # nothing between in float16, and its nearest numbers are not the same
def test_bounds_are_rounded_inwards(dtype, a, b):
    low, high = min(a, b), max(a, b)
    found = [
        np.array(vector, dtype=np.float64).item()
        for vector in bound_vectors("LBFGSB", low, high, mx.zeros(1, dtype=dtype))
    ]
    with mx.stream(mx.cpu):
        ends = mx.array([low, high], dtype=mx.float64).astype(dtype).astype(mx.float64)
        nearest = np.array(ends)
    eps = {mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7, mx.float32: 2.0**-23, mx.float64: 2.0**-52}
    tiny = 6.2e-5 if dtype == mx.float16 else 2e-38
    inside = low <= found[0] <= found[1] <= high
    assert inside or found == list(nearest)
    # No interval that is wider than the spacing of the dtype lies between two of its numbers.
    assert inside or high - low <= eps[dtype] * max(abs(low), abs(high)) + tiny
    np.testing.assert_allclose(found, [low, high], rtol=2 * eps[dtype], atol=tiny)


# --- honest ends -------------------------------------------------------------------------------


def test_a_loss_unbounded_within_the_bounds_is_told():
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        mo.minimize(lambda x: -mx.sum(x), array64([1.0, 2.0]), LBFGSB(lower=0))


def test_a_wrong_gradient_ends_without_progress():
    @mx.custom_function
    def shifted(x):
        return mx.sum(x)

    @shifted.vjp
    def shifted_vjp(x, cotangent, output):
        return -cotangent * mx.ones_like(x)  # the wrong sign

    with pytest.warns(mo.ConvergenceWarning, match="NO_PROGRESS"):
        mo.minimize(
            lambda x: cast(mx.array, shifted(x)),
            array64([0.5, 0.5]),
            LBFGSB(lower=0, upper=1),
            compile=False,
        )


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_float32_ends_with_an_honest_status():
    for seed in range(5):
        start = mx.array(np.random.default_rng(seed).uniform(-1, 0.8, size=6).astype(np.float32))
        result = mo.minimize(rosenbrock, start, LBFGSB(lower=-1, upper=0.8), tol=1e-6)
        g = np.array(mx.grad(rosenbrock)(result.params))
        largest = np.abs(projected_gradient(np.array(result.params), g, -1, np.float32(0.8))).max()
        if result.converged:
            # Two compilations round differently.
            assert largest <= 2e-6 * result.history.optimality.max() + 1e-4
        else:
            assert result.status is mo.Status.NO_PROGRESS
        assert largest <= 1e-3


# --- misuse ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lower": 1, "upper": 0}, ValueError, "lower is above upper. Swap"),
        ({"lower": float("nan")}, ValueError, "None is no bound"),
        ({"lower": "0"}, TypeError, "expected a number, a tree or None"),
        ({"upper": True}, TypeError, "expected a number, a tree or None"),
        ({"memory": 0}, ValueError, "1 or more"),
        ({"memory": 2.5}, TypeError, "whole number"),
    ],
)
def test_hyper_parameters_are_checked(options, error, words):
    with pytest.raises(error, match=words):
        LBFGSB(**options)


@pytest.mark.parametrize(
    ("lower", "upper", "words"),
    [
        (
            {"w": [0, 5, 0], "b": None},
            {"w": 3, "b": 1},
            r"above upper for params\['w'\]: 5.0 > 3.0",
        ),
        (
            {"w": 0},
            None,
            r"lower is not a tree like params: .*\['w', 'b'\], got .* \['w'\]",
        ),
        ({"w": 0, "c": 0}, None, r"got a dict with the keys \['w', 'c'\]"),
        (None, [0, 1], r"upper is not a tree like params: .*got a list of 2"),
        ({"w": [0, 0], "b": 0}, None, r"lower\['w'\] does not fit its leaf: .*\(3,\)"),
        ({"w": mx.zeros((2, 3)), "b": 0}, None, r"broadcasts to \(3,\), got \(2, 3\)"),
        ({"w": [0, float("nan"), 0], "b": 0}, None, r"lower\['w'\] has NaN"),
        ({"w": "zero", "b": 0}, None, r"lower\['w'\] does not fit its leaf"),
        (None, {"w": [9, 9, 0.5], "b": 9}, r"params\['w'\] \(entry 2 of 3\) starts at 1, outside"),
        (2, None, r"starts at 1, outside its bounds \[2, inf\]. Start inside"),
    ],
)
def test_bounds_that_do_not_fit_are_named(lower, upper, words):
    params = {"w": mx.ones(3), "b": mx.array(1.0)}
    with pytest.raises(ValueError, match=words):
        mo.minimize(lambda p: mx.sum(p["w"]) + p["b"], params, LBFGSB(lower=lower, upper=upper))


def test_a_list_of_bounds_for_a_list_of_arrays():
    params = [mx.ones(2), mx.ones(1)]
    with pytest.raises(ValueError, match="expected a list of 2, got a list of 3"):
        mo.minimize(lambda p: mx.sum(p[0]) + p[1][0], params, LBFGSB(lower=[0, 0, 0]))

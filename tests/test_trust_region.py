"""TrustRegion: the exact step against its optimality conditions, saddles, and known answers."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROBLEMS, array64, rosenbrock
from scipy.optimize import rosen, rosen_der, rosen_hess

import mlxopt as mo
from mlxopt._objective import Objective
from mlxopt.optimizers.trust_region import TrustRegion, exact_step

BOTH = pytest.mark.parametrize("exact", [True, False])


def check_step(eigenvalues, components, radius):
    """Assert the conditions that make s a global minimizer: Nocedal and Wright, theorem 4.1."""
    step = exact_step(eigenvalues, components, radius)
    length = np.linalg.norm(step)
    scale = max(np.abs(eigenvalues).max(), np.linalg.norm(components) / radius)
    assert length <= radius * (1 + 1e-9)
    # λ from (λᵢ + λ) sᵢ = -aᵢ, where s is largest.
    k = int(np.argmax(np.abs(step)))
    shift = -components[k] / step[k] - eigenvalues[k] if step[k] else 0.0
    if length < radius * (1 - 1e-9):
        shift = 0.0
    assert shift >= -1e-8 * scale
    assert eigenvalues[0] + shift >= -1e-8 * scale
    np.testing.assert_allclose(
        (eigenvalues + shift) * step, -components, atol=1e-8 * scale * radius
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-100, 100), st.sampled_from([0.0, 1e-12, 1e-3, 1.0, -5.0, 1e4])),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e4]),
)
def test_the_exact_step_is_a_global_minimizer_in_the_radius(pairs, radius):
    pairs = sorted(pairs)
    # Curvatures below 1e-6 would make s so long that its residual is rounding alone.
    eigenvalues = np.array([0.0 if abs(pair[0]) < 1e-6 else pair[0] for pair in pairs])
    components = np.array([pair[1] for pair in pairs])
    if not components.any() and eigenvalues[0] >= 0:
        np.testing.assert_array_equal(exact_step(eigenvalues, components, radius), 0)
    else:
        check_step(np.sort(eigenvalues), components, radius)


@pytest.mark.parametrize("first", [0.0, 1e-300, 1e-20, 1e-9])
def test_the_hard_case_fills_up_with_the_lowest_eigenvector(first):
    eigenvalues, components = np.array([-2.0, 1.0, 4.0]), np.array([first, 3.0, 6.0])
    step = exact_step(eigenvalues, components, 10.0)
    np.testing.assert_allclose(step[1:], [-1.0, -1.0], atol=1e-8)
    assert np.linalg.norm(step) == pytest.approx(10.0)


def test_the_newton_step_is_taken_where_it_fits():
    eigenvalues, components = np.array([1.0, 2.0, 8.0]), np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(exact_step(eigenvalues, components, 2.0), [-1.0, -1.0, -0.5])


# --- a textbook version ------------------------------------------------------------------------


def textbook_trust_region(x, radius, trials):
    """Nocedal and Wright (2006), algorithm 4.1, with the multiplier found by bisection."""
    points = []
    for _ in range(trials):
        f, g, B = rosen(x), rosen_der(x), np.asarray(rosen_hess(x))
        values, vectors = np.linalg.eigh(B)
        a = vectors.T @ g
        low, high = max(0.0, -values[0]), np.linalg.norm(g) / radius + abs(values[0])
        if values[0] > 0 and np.linalg.norm(a / values) <= radius:
            low = high = 0.0
        for _ in range(200):
            middle = 0.5 * (low + high)
            if np.linalg.norm(a / (values + middle)) > radius:
                low = middle
            else:
                high = middle
        step = -vectors @ (a / (values + high))
        ratio = (f - rosen(x + step)) / -(g @ step + 0.5 * step @ B @ step)
        length = np.linalg.norm(step)
        if ratio < 0.25:
            radius = 0.25 * length
        elif ratio > 0.75 and high > 0:
            radius = 2 * radius
        if ratio > 1e-4:
            x = x + step
        points.append(x)
    return points


def test_the_path_is_that_of_the_textbook():
    start = np.array([-1.2, 1.0, 0.7, -0.4])
    ours = []
    with mx.stream(mx.cpu):
        objective = Objective(rosenbrock)
        state = TrustRegion(radius=0.5).init(objective, array64(start))
        for _ in range(15):
            state = TrustRegion().step(objective, state)
            ours.append(np.array(state.params))
    np.testing.assert_allclose(ours, textbook_trust_region(start, 0.5, 15), rtol=1e-7, atol=1e-7)


# --- saddles -----------------------------------------------------------------------------------


def double_well(x):  # minima at (±1, 0), a saddle at 0
    return 0.25 * x[0] ** 4 - 0.5 * x[0] ** 2 + 0.5 * x[1] ** 2


@pytest.mark.parametrize("dtype", [mx.float64, mx.float32])
def test_it_leaves_a_saddle_it_was_started_on(dtype):
    start = mx.zeros(2, dtype=dtype)
    result = mo.minimize(double_well, start, TrustRegion())
    assert result.converged
    assert result.value == pytest.approx(-0.25, abs=1e-6)
    np.testing.assert_allclose(np.abs(np.array(result.params)), [1, 0], atol=1e-5)


def test_it_leaves_a_maximum_and_a_monkey_saddles_neighbor():
    result = mo.minimize(
        lambda x: mx.sum(0.25 * x**4 - 0.5 * x**2), array64([0, 0, 0]), TrustRegion()
    )
    assert result.converged
    np.testing.assert_allclose(np.abs(np.array(result.params)), 1, atol=1e-8)


def test_a_saddle_of_a_deep_linear_network_is_left():
    # Baldi and Hornik (1989): zero weights are a saddle, and all minima are global.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 1))

    def loss(params, X, y):
        return mx.mean(mx.square(X @ params["first"] @ params["second"] - y))

    start = {"first": array64(np.zeros((3, 2))), "second": array64(np.zeros((2, 1)))}
    result = mo.minimize(loss, start, TrustRegion(), X, y)
    assert result.converged
    best = np.mean((X @ np.linalg.lstsq(X, y)[0] - y) ** 2)
    assert result.value == pytest.approx(best, rel=1e-9)


def test_at_a_saddle_optimality_is_the_negative_curvature():
    with mx.stream(mx.cpu):
        state = TrustRegion().init(Objective(double_well), array64([0.0, 0.0]))
    assert state.optimality == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [mx.float64, mx.float32])
def test_a_flat_minimum_is_no_saddle(dtype):
    # A Hessian of rank 3, computed with eigenvalues a little below zero; they must not count.
    A = np.random.default_rng(1).normal(size=(3, 8))

    def loss(x, A):
        return 1e6 * mx.mean(mx.square(A @ x))

    with mx.stream(mx.cpu):
        data = (mx.array(A, dtype=dtype),)
        state = TrustRegion().init(Objective(loss, data), mx.zeros(8, dtype=dtype))
    assert abs(state.eigenvalues[0]) < 1e-6 * state.eigenvalues[-1]  # zero, as rounded
    assert state.optimality == 0
    result = mo.minimize(
        lambda x, A: mx.mean(mx.square(A @ x - 1)), mx.zeros(8, dtype=dtype), TrustRegion(), A
    )
    assert result.converged


# --- known answers -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_it_reaches_known_minima(problem, exact):
    result = mo.minimize(problem.loss, array64(problem.start), TrustRegion(exact=exact))
    assert result.converged
    assert result.steps <= 40
    assert result.evaluations == result.steps + 1
    np.testing.assert_allclose(result.value, problem.value, atol=1e-12)
    np.testing.assert_allclose(np.array(result.params), problem.minimizer, atol=2e-7)


@BOTH
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_float32_ends_with_an_honest_status(problem, exact):
    for tol in (1e-5, 1e-9):  # the second is below what float32 can do on most of them
        result = mo.minimize(
            problem.loss, mx.array(problem.start), TrustRegion(exact=exact), tol=tol
        )
        largest = np.abs(np.array(mx.grad(problem.loss)(result.params))).max()
        # The gradient of the compiled loss may round differently from this one.
        if result.converged:
            assert largest <= 1e-5 * result.history.optimality.max()
        else:
            assert result.status is mo.Status.NO_PROGRESS
        np.testing.assert_allclose(np.array(result.params), problem.minimizer, atol=1e-3)


def test_many_parameters_go_by_conjugate_gradients():
    size = 1000

    def loss(x):
        return mx.sum(0.25 * mx.square(mx.square(x) - 1)) + 0.5 * mx.sum(mx.square(x[1:] - x[:-1]))

    start = np.linspace(0.2, 2.0, size)
    with mx.stream(mx.cpu):
        state = TrustRegion().init(Objective(loss), array64(start))
    assert state.eigenvalues.shape == (0,)
    result = mo.minimize(loss, array64(start), TrustRegion())
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), 1, atol=1e-7)


@BOTH
def test_a_loss_without_a_minimum_is_told(exact):
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        result = mo.minimize(lambda x: -mx.sum(x), array64([1.0, 2.0]), TrustRegion(exact=exact))
    assert result.status is mo.Status.UNBOUNDED


@BOTH
def test_a_nan_beside_the_path_shrinks_the_radius(exact):
    result = mo.minimize(
        lambda x: mx.sum(x - mx.log(x)), array64([1e-3, 5.0]), TrustRegion(radius=10, exact=exact)
    )
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), 1.0, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TrustRegion(radius=0), ValueError, "more than zero"),
        (lambda: TrustRegion(radius=-1.0), ValueError, "more than zero"),
        (lambda: TrustRegion(radius=math.nan), ValueError, "finite"),
        (lambda: TrustRegion(radius="big"), TypeError, "number"),  # pyright: ignore
        (lambda: TrustRegion(exact="yes"), TypeError, "True, False or None"),  # pyright: ignore
    ],
)
def test_hyper_parameters_are_checked(make, error, words):
    with pytest.raises(error, match=words):
        make()

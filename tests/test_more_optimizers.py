"""GradientDescent, ConjugateGradient, BFGS and NewtonCG: textbook versions and known answers."""

from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from problems import PROBLEMS, array64, rosenbrock
from scipy.optimize import rosen, rosen_der, rosen_hess

import mlxopt as mo
from mlxopt._objective import Objective
from mlxopt.optimizers import _descent, bfgs
from mlxopt.optimizers._line_search import C2, begin, proceed
from mlxopt.optimizers.bfgs import BFGS
from mlxopt.optimizers.conjugate_gradient import ConjugateGradient
from mlxopt.optimizers.gradient_descent import GradientDescent
from mlxopt.optimizers.newton_cg import NewtonCG, truncated_cg

EPS = 2.0**-52
START = np.array([-1.2, 1.0, 0.7, -0.4])  # of Rosenbrock's function in four parameters


def quadratic(size, seed=0, condition=100.0):
    """Return a loss ½xᵀAx - bᵀx, its A and b, and a start."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    A = Q @ np.diag(np.geomspace(1, condition, size)) @ Q.T
    b, start = rng.normal(size=(2, size))
    return lambda x, A, b: 0.5 * mx.sum(x * (A @ x)) - mx.sum(b * x), A, b, start


def accepted(optimizer, loss, start, *data, steps=1000, tol=1e-8):
    """Return the points that a run accepts, the start among them, until it converges."""
    with mx.stream(mx.cpu):
        objective = Objective(loss, tuple(array64(item) for item in data))
        state = optimizer.init(objective, array64(start))
        points = [np.array(state.params)]
        for _ in range(steps):
            if state.optimality <= tol or state.status is not None:
                break
            before = state.params
            state = optimizer.step(objective, state)
            if state.params is not before:
                points.append(np.array(state.params))
    return points


# --- textbook versions -------------------------------------------------------------------------


def search(f, gradient, x, d, first, flatness):
    """Walk along d with the library's line search; return the step and the point."""
    slope = float(gradient(x) @ d)
    state = begin(f(x), slope, first, EPS)._replace(slope=slope * flatness / C2)
    while state.verdict == "":
        x_new = x + state.step_size * d
        state = proceed(state, f(x_new), float(gradient(x_new) @ d))
    assert state.verdict == "accepted"
    return state.step_size, x + state.step_size * d


def first_step(x):
    """The minimum along -gradient of the quadratic, at x of Rosenbrock's function."""
    g = rosen_der(x)
    return g @ g / abs(g @ rosen_hess(x) @ g)


def textbook_gradient_descent(f, gradient, x, steps):
    """Steepest descent, from the second step on tried first with Barzilai and Borwein's sᵀy/yᵀy."""
    points, first = [x], first_step(x)
    for _ in range(steps):
        g = gradient(x)
        _, x = search(f, gradient, x, -g, first, 0.9)
        s, y = x - points[-1], gradient(x) - g
        first = (s @ y) / (y @ y)
        points.append(x)
    return points


def textbook_conjugate_gradient(f, gradient, x, steps, method):
    """Nocedal and Wright (2006), algorithm 5.4, with β of Polak and Ribière, or Hager and Zhang."""
    g = gradient(x)
    d, points, first = -g, [x], first_step(x)
    for _ in range(steps):
        t, x = search(f, gradient, x, d, first, 0.1)
        new = gradient(x)
        y = new - g
        if method == "polak-ribiere":
            beta = max(0.0, new @ y / (g @ g))
        else:
            beta = (y - 2 * d * (y @ y) / (d @ y)) @ new / (d @ y)
            beta = max(beta, 0.4 * (g @ d) / (d @ d))
        slope, curvature = g @ d, y @ d / (t * d @ d)
        d = -new + beta * d
        if new @ d >= 0:
            d = -new
        first = min(t * slope / (new @ d), -(new @ d) / (curvature * d @ d))
        g = new
        points.append(x)
    return points


def textbook_bfgs(f, gradient, x, steps):
    """Nocedal and Wright (2006), algorithm 6.1."""
    size = len(x)
    g, H, points = gradient(x), np.eye(size), [x]
    first = first_step(x)
    for k in range(steps):
        _, new = search(f, gradient, x, -H @ g, first, 0.9)
        s, y = new - x, gradient(new) - g
        if k == 0:
            H = H * np.linalg.norm(s) / np.linalg.norm(y)
        rho = 1 / (s @ y)
        V = np.eye(size) - rho * np.outer(s, y)
        H = V @ H @ V.T + rho * np.outer(s, s)
        x, g, first = new, gradient(new), 1.0
        points.append(x)
    return points


def textbook_newton_cg(f, gradient, hessian, x, steps):
    """Nocedal and Wright (2006), algorithm 7.1."""
    points, largest = [x], 0.0
    for _ in range(steps):
        g, B = gradient(x), hessian(x)
        norm = np.linalg.norm(g)
        largest = max(norm, largest)
        z, r, d, first = np.zeros(len(x)), g, -g, 1.0
        for j in range(100):
            if d @ B @ d <= 0:
                if j == 0:
                    z, first = -g, first_step(x)
                break
            alpha = (r @ r) / (d @ B @ d)
            z, old, r = z + alpha * d, r, r + alpha * B @ d
            if np.linalg.norm(r) <= min(0.5, np.sqrt(norm / largest)) * norm:
                break
            d = -r + (r @ r) / (old @ old) * d
        _, x = search(f, gradient, x, z, first, 0.9)
        points.append(x)
    return points


TEXTBOOK = {
    "GradientDescent": (
        GradientDescent(), lambda n: textbook_gradient_descent(rosen, rosen_der, START, n)),
    "hager-zhang": (
        ConjugateGradient(),
        lambda n: textbook_conjugate_gradient(rosen, rosen_der, START, n, "hager-zhang")),
    "polak-ribiere": (
        ConjugateGradient("polak-ribiere"),
        lambda n: textbook_conjugate_gradient(rosen, rosen_der, START, n, "polak-ribiere")),
    "BFGS": (BFGS(), lambda n: textbook_bfgs(rosen, rosen_der, START, n)),
    "NewtonCG": (
        NewtonCG(), lambda n: textbook_newton_cg(rosen, rosen_der, rosen_hess, START, n)),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTBOOK)
def test_the_path_is_that_of_the_textbook(name):
    optimizer, textbook = TEXTBOOK[name]
    ours = accepted(optimizer, rosenbrock, START, steps=60)[:16]
    theirs = textbook(len(ours) - 1)
    assert len(ours) >= 10
    # Rounding differences grow along a run on a chaotic map: the early part agrees to 1e-9.
    np.testing.assert_allclose(ours[:8], theirs[:8], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


# --- known answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize(
    "optimizer",
    [ConjugateGradient(), ConjugateGradient("polak-ribiere"), BFGS()],
    ids=["hager-zhang", "polak-ribiere", "BFGS"],
)
def test_exact_line_searches_end_a_quadratic_in_as_many_steps_as_dimensions(
    optimizer, size, monkeypatch
):
    # Nocedal and Wright (2006), theorems 5.1 and 6.4; one more, since the search is not quite exact
    # and neither is the arithmetic.
    monkeypatch.setattr(_descent.Descent, "flatness", 1e-10)
    monkeypatch.setattr(ConjugateGradient, "flatness", 1e-10)
    loss, A, b, start = quadratic(size, seed=size, condition=10.0)
    points = accepted(optimizer, loss, start, A, b, tol=1e-8)
    assert len(points) - 1 <= size + 1
    np.testing.assert_allclose(points[-1], np.linalg.solve(A, b), atol=1e-8)


def test_bfgs_has_learnt_the_hessian_at_the_end_of_a_quadratic(monkeypatch):
    # Nocedal and Wright (2006), theorem 6.4: after n exact steps H is the inverse Hessian.
    monkeypatch.setattr(_descent.Descent, "flatness", 1e-12)
    loss, A, b, start = quadratic(4, seed=3, condition=10.0)
    with mx.stream(mx.cpu):
        objective = Objective(loss, (array64(A), array64(b)))
        state = BFGS().init(objective, array64(start))
        steps = 0
        while steps < 4:
            before = state.params
            state = BFGS().step(objective, state)
            steps += state.params is not before
    np.testing.assert_allclose(state.memory.inverse, np.linalg.inv(A), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_bfgs_update_is_equation_6_17(seed):
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(6, 6))
    H = H @ H.T
    s, y = rng.normal(size=(2, 6))
    y *= np.sign(s @ y)
    rho = 1 / (s @ y)
    V = np.eye(6) - rho * np.outer(y, s)
    updated = bfgs.updated(H, s, y)
    np.testing.assert_allclose(updated, V.T @ H @ V + rho * np.outer(s, s), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(updated @ y, s, atol=1e-9 * np.abs(updated).max())  # the secant
    assert np.linalg.eigvalsh(updated).min() > 0


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize(
    "optimizer",
    [
        GradientDescent(),
        ConjugateGradient(),
        ConjugateGradient("polak-ribiere"),
        BFGS(),
        NewtonCG(),
    ],
    ids=lambda optimizer: repr(optimizer),
)
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_float32_ends_with_an_honest_status(optimizer, problem):
    result = mo.minimize(problem.loss, mx.array(problem.start), optimizer, max_steps=300)
    largest = np.abs(np.array(mx.grad(problem.loss)(result.params))).max()
    if result.converged:
        # The rounding of the loss hides a gradient of √ε, 3.5e-4.
        assert largest <= 3.5e-4 * result.history.optimality.max()
        np.testing.assert_allclose(np.array(result.params), problem.minimizer, atol=1e-3)
    else:
        assert result.status in (mo.Status.NO_PROGRESS, mo.Status.MAX_STEPS)
        assert largest > 0
        assert result.value <= problem.loss(mx.array(problem.start)).item()


@pytest.mark.parametrize(
    "optimizer", [GradientDescent(), ConjugateGradient(), BFGS(), NewtonCG()], ids=repr
)
def test_a_loss_without_a_minimum_is_told(optimizer):
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        result = mo.minimize(lambda x: -mx.sum(x), array64([1.0, 2.0]), optimizer)
    assert result.status is mo.Status.UNBOUNDED


@pytest.mark.parametrize(
    "optimizer", [GradientDescent(), ConjugateGradient(), BFGS(), NewtonCG()], ids=repr
)
def test_a_wrong_gradient_ends_without_progress(optimizer):
    @mx.custom_function
    def shifted(x):
        return mx.sum(x)

    @shifted.vjp
    def shifted_vjp(x, cotangent, output):
        return -cotangent * mx.ones_like(x)  # the wrong sign

    with pytest.warns(mo.ConvergenceWarning, match="NO_PROGRESS"):
        result = mo.minimize(
            lambda x: cast(mx.array, shifted(x)),
            array64([1.0, 2.0]),
            optimizer,
            compile=False,
            max_steps=300,
        )
    np.testing.assert_array_equal(np.array(result.params), [1.0, 2.0])


def test_a_nan_beside_the_path_is_stepped_back_from():
    def loss(x):  # the logarithm's domain ends at 0
        return mx.sum(x - mx.log(x))

    for optimizer in (GradientDescent(), ConjugateGradient(), BFGS(), NewtonCG()):
        result = mo.minimize(loss, array64([1e-3, 5.0]), optimizer)
        assert result.converged
        np.testing.assert_allclose(np.array(result.params), 1.0, atol=1e-7)


def test_hager_and_zhangs_beta_has_a_floor():
    # A trial with gᵀd = 1, g₀ᵀd = -1, so dᵀy = 2; β' = (gᵀy - 2 yᵀy · 1/2) / 2 = -49.5. The floor
    # is 0.4 g₀ᵀd / dᵀd (Hager and Zhang 2013).
    trial = _descent.Trial(None, 0.0, None, 0.0, slope=1.0, gg=1.0, gy=1.0, yy=100.0, dd=1e-3)
    optimizer = ConjugateGradient()
    assert optimizer._beta(-1.0, 1.0, trial) == pytest.approx(-49.5)  # above -400
    assert optimizer._beta(-1.0, 1.0, trial._replace(dd=9.0)) == pytest.approx(-0.4 / 9)
    assert optimizer._beta(-1.0, 1.0, trial._replace(dd=0.01)) == pytest.approx(-40)


# --- NewtonCG's inner iteration ----------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 20])
def test_conjugate_gradients_solve_the_newton_system(size):
    loss, A, b, start = quadratic(size, seed=size)
    with mx.stream(mx.cpu):
        objective = Objective(loss, (array64(A), array64(b)))
        g = A @ start - b
        found = truncated_cg(objective, array64(start), array64(g), float(g @ g), 1e-12)
    z = -np.linalg.solve(A, g)
    np.testing.assert_allclose(np.array(found.step), z, atol=1e-10)
    assert found.slope == pytest.approx(g @ z)
    assert found.decrease == pytest.approx(-(g @ z + 0.5 * z @ A @ z))
    assert found.length == pytest.approx(np.linalg.norm(z))
    assert not found.curved


@pytest.mark.parametrize("radius", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("lowest", [1.0, -1.0])
def test_conjugate_gradients_stop_at_the_radius(radius, lowest):
    curvatures = np.array([lowest, 2.0, 5.0, 9.0])
    g = np.array([1.0, -20.0, 30.0, 40.0])

    def loss(x, curvatures, g):
        return mx.sum(0.5 * curvatures * mx.square(x) + g * x)

    with mx.stream(mx.cpu):
        objective = Objective(loss, (array64(curvatures), array64(g)))
        found = truncated_cg(
            objective, array64(np.zeros(4)), array64(g), float(g @ g), 1e-12, radius
        )
    z = np.array(found.step)
    assert np.linalg.norm(z) == pytest.approx(radius)
    assert found.length == pytest.approx(radius)
    assert found.slope == pytest.approx(g @ z)
    assert found.decrease == pytest.approx(-(g @ z + 0.5 * z @ (curvatures * z)))
    # At least the decrease of the Cauchy point: Nocedal and Wright (2006), lemma 4.3.
    norm = np.linalg.norm(g)
    assert found.decrease >= 0.5 * norm * min(radius, norm / np.abs(curvatures).max())


def test_negative_curvature_at_once_leads_down_the_gradient():
    with mx.stream(mx.cpu):
        objective = Objective(lambda x: mx.sum(mx.sqrt(1 + mx.square(x)) - mx.square(x)))
        g = array64([-1.0, -1.0])
        found = truncated_cg(objective, array64([3.0, 3.0]), g, 2.0, 1e-6)
    assert found.curved
    np.testing.assert_array_equal(np.array(found.step), 0)


def test_newton_cg_counts_one_evaluation_a_step():
    result = mo.minimize(rosenbrock, array64(START), NewtonCG())
    assert result.converged
    assert result.evaluations == result.steps + 1


# --- misuse ------------------------------------------------------------------------------------


def test_hyper_parameters_are_checked():
    with pytest.raises(ValueError, match="'hager-zhang' or 'polak-ribiere'"):
        ConjugateGradient("fletcher")  # pyright: ignore


def test_bfgs_says_when_its_matrix_is_too_large():
    with pytest.raises(ValueError, match=r"at most 20000 parameters. Use LBFGS\(\)"):
        mo.minimize(lambda x: mx.sum(mx.square(x)), mx.ones(20_001), BFGS())

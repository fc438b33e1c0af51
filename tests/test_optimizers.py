"""Every optimizer: the contract of `optimizers/_base.py`, a textbook version, known answers."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from problems import PROBLEMS, Problem, array64, regression, squared_loss
from scipy.optimize import rosen_hess

import mlxopt as mo
from mlxopt import _dense
from mlxopt._objective import Objective
from mlxopt.optimizers import _line_search, lbfgs
from mlxopt.optimizers._line_search import begin, proceed

OPTIMIZERS = {
    "SGD": mo.SGD(0.05),
    "Momentum": mo.Momentum(0.02),
    "Nesterov": mo.Momentum(0.02, nesterov=True),
    "Adam": mo.Adam(0.1),
    "AdamW": mo.AdamW(0.1, weight_decay=0.0),  # decay would move the minimum
    "RMSProp": mo.RMSProp(mo.schedules.exponential(0.1, 0.998)),
    "Adagrad": mo.Adagrad(0.5),
    "Lion": mo.Lion(mo.schedules.exponential(0.05, 0.997)),
    "Prodigy": mo.Prodigy(mo.schedules.exponential(1.0, 0.9995)),
    "Clipped": mo.Clipped(mo.Adam(0.1), norm=100.0),
    "Grouped": mo.Grouped(mo.Adam(0.1), {"params*": mo.Momentum(0.02)}),
    "Newton": mo.Newton(),
    "LBFGS": mo.LBFGS(),
    "LBFGS(1)": mo.LBFGS(memory=1),
    "GradientDescent": mo.GradientDescent(),
    "ConjugateGradient": mo.ConjugateGradient(),
    "Polak-Ribière": mo.ConjugateGradient("polak-ribiere"),
    "BFGS": mo.BFGS(),
    "LBFGSB": mo.LBFGSB(),
    "LBFGSB in a box": mo.LBFGSB(lower=-50.0, upper=50.0),
    "NewtonCG": mo.NewtonCG(),
    "TrustRegion": mo.TrustRegion(),
    "TrustRegion by CG": mo.TrustRegion(exact=False),
}
FIRST_ORDER = {
    name: opt for name, opt in OPTIMIZERS.items() if isinstance(opt, mo.optimizers.FirstOrder)
}

# These two end in float32 at a gradient some times tol, and say so.
SLOW_ENDS = {"GradientDescent", "Polak-Ribière"}
SECOND_ORDER = [name for name in OPTIMIZERS if name not in {*FIRST_ORDER, *SLOW_ENDS}]
DENSE_HESSIAN = {"Newton", "TrustRegion"}  # which is not compiled

# What a fixed step size cannot do, each with its reason.
EXCEPTIONS = {
    ("Grouped", "rosenbrock"): "this is Momentum",
    ("RMSProp", "rosenbrock"): "its steps shrink before it has gone along the valley",
    ("Adagrad", "rosenbrock"): "the same: gradient 5e-8 after 20,000 steps",
    ("SGD", "rosenbrock"): "needs a step below 2/1002, and then some 10,000 steps",
    ("Momentum", "rosenbrock"): "the same",
    ("Nesterov", "rosenbrock"): "the same",
    ("SGD", "beale"): "the curvature on the way is above 2/0.05",
    ("Nesterov", "beale"): "the curvature on the way is above 2/0.02",
}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_solver_by_problem_matrix(name, problem: Problem):
    if (name, problem.name) in EXCEPTIONS:
        pytest.skip(EXCEPTIONS[name, problem.name])
    start = array64(problem.start)
    result = mo.minimize(problem.loss, start, OPTIMIZERS[name], max_steps=20_000)
    assert result.converged
    small = result.optimality <= 1e-8 * result.history.optimality.max()
    assert small or "rounding" in result.reason
    # Value and place follow from the gradient by the curvature, 0.1 or more in all of them.
    np.testing.assert_allclose(result.value, problem.value, atol=1e-12)
    np.testing.assert_allclose(np.array(result.params), problem.minimizer, atol=2e-7)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_float32_ends_at_the_tolerance_or_says_why_not(name, problem: Problem):
    result = mo.minimize(problem.loss, mx.array(problem.start), OPTIMIZERS[name])
    assert result.converged
    largest = np.abs(np.array(mx.grad(problem.loss)(result.params))).max()
    # The rounding of the loss hides a gradient of √ε, 3.5e-4.
    assert largest <= 3.5e-4 * result.history.optimality.max()
    np.testing.assert_allclose(np.array(result.params), problem.minimizer, atol=1e-3)


def states(optimizer, objective, params, steps=8):
    state = optimizer.init(objective, params)
    found = [state]
    for _ in range(steps):
        state, _ = optimizer.advance(objective, state, 1)
        found.append(state)
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [mx.float64, mx.float32])
def test_value_gradient_and_optimality_are_those_of_params(name, dtype):
    X, y, _ = regression()
    X, y = mx.array(X, dtype=dtype), mx.array(y, dtype=dtype)
    params = {"w": mx.zeros(5, dtype=dtype), "b": mx.array(0.0, dtype=dtype)}
    # Two ways to the same float32 number may round differently; sums of 200 lose a digit more.
    tolerance = 1e-12 if dtype == mx.float64 else 2e-5
    with mx.stream(mx.cpu):
        for state in states(OPTIMIZERS[name], Objective(squared_loss, (X, y)), params):
            value, gradient = mx.value_and_grad(squared_loss)(state.params, X, y)
            assert state.value == pytest.approx(value.item(), rel=tolerance, abs=tolerance)
            largest = 0.0
            for (_, ours), (_, theirs) in zip(
                tree_flatten(state.grad), tree_flatten(gradient), strict=True
            ):
                np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=0, atol=tolerance)
                largest = max(largest, np.abs(np.array(ours)).max())
            assert state.optimality == pytest.approx(largest)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_shape_and_dtype_of_the_state_never_change(name):
    X, y, _ = regression()
    data = mx.array(X.astype(np.float32)), mx.array(y.astype(np.float32))
    params, optimizer = {"w": mx.zeros(5), "b": mx.array(0.0)}, OPTIMIZERS[name]
    # None before it is chosen: the direction, and in the memory of conjugate gradients.
    chosen = {"6", "8.0.0"} if hasattr(optimizer, "direction") else set()

    def makeup(state):
        arrays = [(path, leaf) for path, leaf in tree_flatten(state) if hasattr(leaf, "shape")]
        arrays = [entry for entry in arrays if entry[0] not in chosen]
        return [(path, getattr(leaf, "shape"), getattr(leaf, "dtype")) for path, leaf in arrays]  # noqa: B009

    found = states(optimizer, Objective(squared_loss, data), params, steps=5)
    assert all(makeup(state) == makeup(found[0]) for state in found if state.status is None)
    assert all(state._fields == found[0]._fields for state in found)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_python_loss_is_called_no_more_often_for_more_steps(name):
    X, y, _ = regression(noise=1.0)
    calls = []

    def loss(params, X, y):
        calls.append(1)
        # Not quadratic, so that Newton and LBFGS have something to do for many steps.
        return mx.mean(
            mx.logaddexp(squared_loss(params, X, y), mx.sum(mx.square(params["w"] ** 2)))
        )

    params = {"w": mx.full((5,), 3.0), "b": mx.array(1.0)}
    counts = []
    for steps in (60, 120):
        calls.clear()
        mo.minimize(loss, params, OPTIMIZERS[name], X, y, tol=0, max_steps=steps)
        counts.append(len(calls))
    if name in FIRST_ORDER:
        # Whether ten steps share a call depends on the clock: then the trace holds ten more.
        assert abs(counts[1] - counts[0]) <= 10
    elif name in DENSE_HESSIAN:
        assert counts[1] - counts[0] <= 60 * 6  # once for each row of a Hessian, for nothing else
    else:
        assert counts[1] == counts[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiled_equals_eager(name):
    X, y, _ = regression()
    params = {"w": array64(np.zeros(5)), "b": array64(0.0)}
    # 57 steps: five strides of ten and a rest; the others stop by themselves.
    options: dict[str, Any] = {"tol": 0, "max_steps": 57} if name in FIRST_ORDER else {"tol": 1e-10}
    runs = [
        mo.minimize(squared_loss, params, OPTIMIZERS[name], X, y, compile=compile, **options)
        for compile in (True, False)
    ]
    assert runs[0].steps == runs[1].steps
    for key in params:
        np.testing.assert_allclose(
            np.array(runs[0].params[key]), np.array(runs[1].params[key]), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_inputs_are_left_untouched(name):
    X, y, _ = regression()
    data = mx.array(X.astype(np.float32)), mx.array(y.astype(np.float32))
    params = {"w": mx.ones(5), "b": mx.array(2.0)}
    mo.minimize(squared_loss, params, OPTIMIZERS[name], *data, tol=0, max_steps=20)
    assert params["w"].tolist() == [1.0] * 5
    assert params["b"].item() == 2.0
    np.testing.assert_array_equal(np.array(data[0]), X.astype(np.float32))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_sixteen_bit_parameters_keep_their_dtype_and_descend(name, dtype):
    def loss(params):
        return mx.sum(mx.square(params["a"].astype(mx.float32) - 1)) + mx.square(params["b"] - 2)

    params = {"a": mx.zeros(3, dtype=dtype), "b": mx.array(0.0)}
    result = mo.minimize(loss, params, OPTIMIZERS[name], tol=0.02)
    assert result.converged
    assert result.params["a"].dtype == dtype
    assert result.params["b"].dtype == mx.float32
    np.testing.assert_allclose(np.array(result.params["a"].astype(mx.float32)), 1, atol=0.06)


def test_an_optimizer_is_an_immutable_value():
    for optimizer in OPTIMIZERS.values():
        with pytest.raises(AttributeError):
            optimizer.anything = 1
    assert mo.SGD(0.1) == mo.SGD(0.1) != mo.SGD(0.2)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: mo.SGD(-1.0), ValueError, "zero or more"),
        (lambda: mo.SGD(float("nan")), ValueError, "finite"),
        (lambda: mo.SGD("fast"), TypeError, "number, or a function"),  # pyright: ignore
        (lambda: mo.SGD(True), TypeError, "number, or a function"),
        (lambda: mo.Momentum(0.1, momentum=1.0), ValueError, "less than 1"),
        (lambda: mo.Momentum(0.1, momentum=-0.1), ValueError, "zero or more"),
        (lambda: mo.Momentum(0.1, momentum="big"), TypeError, "number"),  # pyright: ignore
        (lambda: mo.Newton(hessian=3), TypeError, "expected a function"),  # pyright: ignore
        (lambda: mo.LBFGS(memory=0), ValueError, "1 or more"),
        (lambda: mo.LBFGS(memory=2.5), TypeError, "whole number"),  # pyright: ignore
    ],
)
def test_hyper_parameters_are_checked(make, error, words):
    with pytest.raises(error, match=words):
        make()


# --- textbook versions -------------------------------------------------------------------------


def textbook_momentum(gradient, w, rate, momentum, nesterov, steps):
    """Sutskever et al. (2013) with the gradient at the iterate, as a plain loop."""
    v = np.zeros_like(w)
    for step in range(steps):
        g = gradient(w)
        v = momentum * v + g
        w = w - rate(step) * (g + momentum * v if nesterov else v)
    return w


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("schedule", [lambda step: 0.1, lambda step: 0.1 / (1 + step)])
@pytest.mark.parametrize("steps", [1, 9, 43])
def test_sgd_and_momentum_equal_a_plain_loop(nesterov, momentum, schedule, steps):
    X, y, _ = regression()

    def gradient(w):
        return X.T @ (X @ w - y) / len(y)

    def loss(w, X, y):
        return 0.5 * mx.mean(mx.square(X @ w - y))

    expected = textbook_momentum(gradient, np.zeros(5), schedule, momentum, nesterov, steps)
    optimizers: list[Any] = [mo.Momentum(schedule, momentum, nesterov)]
    if momentum == 0:
        optimizers.append(mo.SGD(schedule))
    for optimizer in optimizers:
        result = mo.minimize(loss, array64(np.zeros(5)), optimizer, X, y, tol=0, max_steps=steps)
        assert result.steps == steps
        np.testing.assert_allclose(np.array(result.params), expected, rtol=1e-12, atol=1e-13)


def test_nesterov_is_the_look_ahead_form_in_other_variables():
    # Sutskever et al. (2013), equations 3 and 4: the gradient is taken at θ + μv. Our parameters
    # are that look-ahead point.
    X, y, _ = regression()
    mu, rate = 0.8, 0.1
    theta, v = np.zeros(5), np.zeros(5)
    for _ in range(30):
        ahead = theta + mu * v
        v = mu * v - rate * X.T @ (X @ ahead - y) / len(y)
        theta = theta + v

    def loss(w, X, y):
        return 0.5 * mx.mean(mx.square(X @ w - y))

    result = mo.minimize(
        loss, array64(np.zeros(5)), mo.Momentum(rate, mu, nesterov=True), X, y, tol=0, max_steps=30
    )
    np.testing.assert_allclose(np.array(result.params), theta + mu * v, rtol=1e-12)


def test_newton_equals_a_plain_loop_on_a_convex_loss():
    k = np.arange(1, 4)
    start = np.log(k) + np.array([0.3, -0.2, 0.4])  # near enough for full steps
    x = start
    for _ in range(4):
        x = x - (np.exp(x) - k) / np.exp(x)  # the Hessian is diag(exp(x))
    exponentials = next(p.loss for p in PROBLEMS if p.name == "exponentials")
    result = mo.minimize(exponentials, array64(start), mo.Newton(), tol=0, max_steps=4)
    np.testing.assert_allclose(np.array(result.params), x, rtol=1e-13, atol=1e-14)


def test_newton_takes_a_structured_hessian():
    X, y, _ = regression()
    seen = []

    def hessian(w, X, y):
        seen.append(w.shape)
        return X.T @ X / X.shape[0]

    def loss(w, X, y):
        return 0.5 * mx.mean(mx.square(X @ w - y))

    result = mo.minimize(loss, array64(np.zeros(5)), mo.Newton(hessian=hessian), X, y)
    assert result.steps == 1
    assert seen == [(5,), (5,)]  # that at the end confirms it
    np.testing.assert_allclose(np.array(result.params), np.linalg.lstsq(X, y)[0], rtol=1e-12)
    with pytest.raises(ValueError, match=r"\(5, 5\)"):
        mo.minimize(loss, mx.zeros(5), mo.Newton(hessian=lambda w, X, y: X.T @ y), X, y)


def test_a_structured_hessian_of_another_make():
    def loss(w):
        return mx.sum(mx.square(w - 1.0))

    narrow = mo.Newton(hessian=lambda w: 2.0 * mx.eye(2, dtype=mx.bfloat16))
    assert mo.minimize(loss, mx.zeros(2), narrow).params.tolist() == [1, 1]
    from_numpy = mo.Newton(hessian=lambda w: 2.0 * np.eye(2))  # pyright: ignore
    assert mo.minimize(loss, mx.zeros(2), from_numpy).params.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"float; expected \(2, 2\)"):
        mo.minimize(loss, mx.zeros(2), mo.Newton(hessian=lambda w: 2.0))  # pyright: ignore


@pytest.mark.parametrize("rate", [None, "fast", -1.0, float("nan")])
def test_a_schedule_that_gives_no_rate_is_named_with_its_step(rate):
    with pytest.raises((TypeError, ValueError), match=r"learning_rate\(3\) is"):
        mo.minimize(
            lambda w: mx.sum(mx.square(w)),
            mx.ones(2),
            mo.SGD(lambda step: 0.1 if step < 3 else rate),
        )


def test_a_schedule_may_return_an_array():
    def loss(w):
        return mx.sum(mx.square(w))

    number = mo.minimize(loss, mx.ones(2), mo.SGD(0.1), max_steps=20, tol=0)
    array = mo.minimize(loss, mx.ones(2), mo.SGD(lambda step: mx.array(0.1)), max_steps=20, tol=0)
    assert number.params.tolist() == array.params.tolist()


def test_the_autodiff_hessian_is_in_tree_flatten_order():
    X, y, _ = regression(columns=3)
    params = {"w": array64(np.zeros(3)), "b": array64(0.0)}
    with mx.stream(mx.cpu):
        data = array64(X), array64(y)
        computed = np.array(Objective(squared_loss, data).hessian(params))
    design = np.column_stack([X, np.ones(len(y))])
    np.testing.assert_allclose(computed, design.T @ design / len(y), rtol=1e-12, atol=1e-14)


def test_hessian_vector_products_are_the_hessian_times_the_vector():
    x, v = array64([0.3, -1.7]), array64([2.0, 0.5])
    rosenbrock = next(p.loss for p in PROBLEMS if p.name == "rosenbrock")
    objective = Objective(rosenbrock)
    with mx.stream(mx.cpu):
        matrix = np.array(objective.hessian(x))
        product = np.array(objective.hvp(x, v))
    a, b = 0.3, -1.7
    expected = [[1200 * a * a - 400 * b + 2, -400 * a], [-400 * a, 200]]
    np.testing.assert_allclose(matrix, expected, rtol=1e-13)
    np.testing.assert_allclose(product, matrix @ [2.0, 0.5], rtol=1e-13)


def test_a_hessian_of_more_rows_than_one_block():
    x = array64(np.linspace(-1, 1, 150))
    with mx.stream(mx.cpu):
        matrix = np.array(Objective(lambda x: mx.sum(x**4) / 12).hessian(x))
    np.testing.assert_allclose(matrix, np.diag(np.linspace(-1, 1, 150) ** 2), atol=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_the_newton_direction_leads_down_whatever_the_hessian(seed):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    for eigenvalues in ([1, 2, 3, 4, 5, 6], [-3, -1, 0, 1e-9, 2, 50], [0] * 6, [-1] * 6):
        matrix = Q @ np.diag(eigenvalues).astype(float) @ Q.T
        gradient = rng.normal(size=6)
        direction = _dense.newton_direction(matrix, gradient, 2.0**-52)
        assert np.isfinite(direction).all()
        assert direction @ gradient < 0
        if min(eigenvalues) > 0:
            np.testing.assert_allclose(matrix @ direction, -gradient, atol=1e-12)


def test_newton_leaves_a_saddle_behind():
    def loss(x):  # minima at (±1, 0), a saddle at 0, where the Hessian is indefinite
        return 0.25 * x[0] ** 4 - 0.5 * x[0] ** 2 + 0.5 * x[1] ** 2

    result = mo.minimize(loss, array64([0.1, 1.0]), mo.Newton())
    assert result.converged
    np.testing.assert_allclose(np.abs(np.array(result.params)), [1, 0], atol=1e-8)


def textbook_h(pairs):
    """Nocedal and Wright (2006), equation 6.17, from γI, equation 7.20."""
    s, y = pairs[-1]
    H = np.eye(len(s)) * (s @ y) / (y @ y)
    for s, y in pairs:
        rho = 1 / (s @ y)
        V = np.eye(len(s)) - rho * np.outer(y, s)
        H = V.T @ H @ V + rho * np.outer(s, s)
    return H


@pytest.mark.parametrize("filled", range(1, 7))
def test_the_lbfgs_product_equals_the_materialized_matrix_at_every_fill(filled):
    rng = np.random.default_rng(filled)
    p, m = 8, 6
    A = rng.normal(size=(p, p))
    A = A @ A.T + np.eye(p)
    pairs = [(s, A @ s) for s in rng.normal(size=(filled, p))]
    g = rng.normal(size=p)
    rows = np.zeros((2 * m + 1, p))
    order = tuple(int(i) for i in rng.permutation(m)[:filled])  # pairs may lie in any order
    for i, (s, y) in enumerate(pairs):
        rows[order[i]], rows[m + order[i]] = s, y
    rows[-1] = g
    direction = lbfgs.two_loop(rows @ rows.T, order) @ rows
    np.testing.assert_allclose(direction, -textbook_h(pairs) @ g, rtol=1e-10)


def textbook_lbfgs(f, gradient, hessian, x, memory, steps):
    """L-BFGS on vectors, with the same line search: (trial values, last point)."""
    pairs, values = [], []
    value, g = f(x), gradient(x)
    while len(values) < steps:
        d = -textbook_h(pairs) @ g if pairs else -g
        first = 1.0 if pairs else g @ g / (g @ hessian(x) @ g)
        search = begin(value, d @ g, first, 2.0**-52)
        trial, trial_value, trial_g = x, value, g
        while search.verdict == "":
            trial = x + search.step_size * d
            trial_value, trial_g = f(trial), gradient(trial)
            values.append(trial_value)
            search = proceed(search, trial_value, trial_g @ d)
        assert search.verdict == "accepted"
        pairs = [*pairs, (trial - x, trial_g - g)][-memory:]
        x, value, g = trial, trial_value, trial_g
    return values, x


@pytest.mark.parametrize("memory", [1, 2, 5, 20])
def test_lbfgs_follows_the_textbook_step_by_step(memory):
    def f(x):
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    def gradient(x):
        r = x[1] - x[0] ** 2
        return np.array([-400 * x[0] * r - 2 * (1 - x[0]), 200 * r])

    values, _ = textbook_lbfgs(f, gradient, rosen_hess, np.array([-1.2, 1.0]), memory, 30)
    rosenbrock = next(p.loss for p in PROBLEMS if p.name == "rosenbrock")
    trials = []

    class Spy(Objective):
        def value_and_grad(self, params):
            trials.append(f(np.array(params)))
            return super().value_and_grad(params)

    objective = Spy(rosenbrock)
    with mx.stream(mx.cpu):
        optimizer = mo.LBFGS(memory=memory)
        state = optimizer.init(objective, array64([-1.2, 1.0]))
        trials.clear()
        for _ in range(30):
            state = optimizer.step(objective, state)
    # Rounding differences grow along a run on a chaotic map: the early part agrees to 1e-8.
    np.testing.assert_allclose(trials[:20], values[:20], rtol=1e-8)
    np.testing.assert_allclose(trials, values[:30], rtol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_lbfgs_ends_a_quadratic_in_about_as_many_steps_as_dimensions(size):
    rng = np.random.default_rng(size)
    A = rng.normal(size=(size, size))
    A = A @ A.T + np.eye(size)
    x0 = rng.normal(size=size)

    def loss(x, A):
        return 0.5 * mx.sum(x * (A @ x))

    result = mo.minimize(loss, array64(x0), mo.LBFGS(memory=size + 1), A, tol=1e-8)
    assert result.converged
    # An exact line search would end in `size` steps; an inexact one takes a few more.
    assert result.steps <= 3 * size + 8


@pytest.mark.parametrize("size", [1, 2, 5, 12, 30])
def test_lbfgs_with_an_exact_line_search_ends_a_quadratic_in_its_dimension(size, monkeypatch):
    # Then its directions are conjugate (Nocedal and Wright 2006, section 7.2): n steps and, for the
    # rounding, one more. A cubic through two points finds the minimizer on a line exactly.
    monkeypatch.setattr(_line_search, "C2", 1e-9)
    rng = np.random.default_rng(size)
    A = rng.normal(size=(size, size))
    A = A @ A.T / size + np.eye(size)

    def loss(x, A):
        return 0.5 * mx.sum(x * (A @ x))

    points = []

    def note(info):
        if not points or info.params is not points[-1]:
            points.append(info.params)

    result = mo.minimize(
        loss, array64(rng.normal(size=size)), mo.LBFGS(memory=size + 1), array64(A),
        tol=1e-9, callback=note, progress=False,
    )  # fmt: skip
    assert result.converged
    assert len(points) - 1 <= size + 1


def test_lbfgs_needs_no_more_evaluations_than_scipy():
    from scipy.optimize import minimize as scipy_minimize

    ours = theirs = 0
    for problem in PROBLEMS:

        def both(x, loss=problem.loss):
            with mx.stream(mx.cpu):
                value, gradient = mx.value_and_grad(loss)(array64(x))
                return value.item(), np.array(gradient)

        result = mo.minimize(problem.loss, array64(problem.start), mo.LBFGS())
        reference = scipy_minimize(
            both, problem.start, jac=True, method="L-BFGS-B",
            options={"gtol": 1e-8, "ftol": 0, "maxcor": 10},
        )  # fmt: skip
        ours, theirs = ours + result.evaluations, theirs + reference.nfev
    assert ours <= 1.1 * theirs, (ours, theirs)

"""Proximal operators by their definition; ProximalGradient by the subdifferential at its end."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import array64
from scipy.optimize import lsq_linear, nnls

import mlxopt as mo
from mlxopt import prox
from mlxopt._objective import Objective
from mlxopt._tree import EPSILON
from mlxopt.optimizers.proximal import ProximalGradient

PENALTIES = {
    "l1": prox.L1(0.7),
    "elastic net": prox.ElasticNet(0.7, 0.4),
    "group lasso": prox.GroupLasso(0.9, axis=1),
    "one group": prox.GroupLasso(1.3),
    "non-negative": prox.NonNegative(),
    "box": prox.Box(-0.5, [0.1, 0.2, 0.3]),
    "simplex": prox.Simplex(),
    "larger simplex": prox.Simplex(3.0),
}


def groups(penalty, x):
    """Return the groups of a group lasso, one a row."""
    return x.reshape(-1, x.shape[-1]) if penalty.axis == 1 else x.reshape(1, -1)


def distance(penalty, x, v):
    """Return how far -v is from the subdifferential of the penalty at x: largest entry, float64.

    Zero where x minimizes the penalty plus a smooth function of gradient v at x.
    """
    v, x = np.asarray(v, dtype=np.float64), np.asarray(x, dtype=np.float64)
    if penalty is None:
        return np.abs(v).max()
    if isinstance(penalty, prox.ElasticNet):
        return distance(prox.L1(penalty.l1), x, v + penalty.l2 * x)
    if isinstance(penalty, prox.L1):
        s = penalty.strength
        at_zero = np.maximum(np.abs(v) - s, 0)
        return np.where(x == 0, at_zero, np.abs(v + s * np.sign(x))).max()
    if isinstance(penalty, prox.GroupLasso):
        found = 0.0
        for g, w in zip(groups(penalty, x), groups(penalty, v), strict=True):
            norm = np.linalg.norm(g)
            gap = w + penalty.strength * g / norm if norm > 0 else None
            off = max(np.linalg.norm(w) - penalty.strength, 0) if gap is None else abs(gap).max()
            found = max(found, off)
        return found
    if isinstance(penalty, prox.Simplex):
        assert (x >= 0).all()
        np.testing.assert_allclose(x.sum(axis=-1), penalty.total, rtol=1e-12)
        # Where x is positive v is the same, and nowhere less.
        level = v.min(axis=-1, keepdims=True)
        return np.where(x > 0, v - level, 0).max()
    lower, upper = 0.0, np.inf
    if isinstance(penalty, prox.Box):
        lower = -np.inf if penalty.lower is None else np.asarray(penalty.lower)
        upper = np.inf if penalty.upper is None else np.asarray(penalty.upper)
    assert (x >= lower).all()
    assert (x <= upper).all()
    held = ((x == lower) & (v >= 0)) | ((x == upper) & (v <= 0))
    return np.where(held, 0, np.abs(v)).max()


# --- the operators -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=12, max_size=12),
    step_size=st.floats(1e-3, 1e3),
)
def test_an_operator_solves_what_defines_it(name, numbers, step_size):
    # prox(x, t) minimizes g(u) + ‖u - x‖²/2t, whose smooth part has the gradient (u - x)/t at u.
    penalty, x = PENALTIES[name], np.array(numbers).reshape(4, 3)
    with mx.stream(mx.cpu):
        u = np.array(penalty.prox(array64(x), array64(step_size)))
    # u is known to 1e-16 of the largest number that went into it.
    size = 1 + np.abs(x).max() + step_size
    assert distance(penalty, u, (u - x) / step_size) <= 1e-12 * size / min(step_size, 1)


def test_an_operator_solves_its_problem_by_brute_force():
    grid = np.linspace(-3, 3, 600_001)
    for penalty, g in (
        (prox.L1(0.7), 0.7 * np.abs(grid)),
        (prox.ElasticNet(0.7, 0.4), 0.7 * np.abs(grid) + 0.2 * grid**2),
        (prox.GroupLasso(0.7), 0.7 * np.abs(grid)),
        (prox.Box(-0.3, 0.8), np.where((grid >= -0.3) & (grid <= 0.8), 0, np.inf)),
        (prox.NonNegative(), np.where(grid >= 0, 0, np.inf)),
    ):
        for x in (-2.1, -0.4, 0.0, 0.5, 1.7):
            best = grid[np.argmin(g + (grid - x) ** 2 / (2 * 1.5))]
            with mx.stream(mx.cpu):
                u = penalty.prox(array64([x]), array64(1.5)).item()
            assert u == pytest.approx(best, abs=2e-5), (penalty, x)


@pytest.mark.parametrize("name", PENALTIES)
def test_operators_keep_dtype_and_never_spread_points_apart(name):
    rng = np.random.default_rng(0)
    penalty = PENALTIES[name]
    a, b = rng.normal(size=(2, 4, 3)).astype(np.float32)
    u, v = (penalty.prox(mx.array(x), mx.array(0.8)) for x in (a, b))
    assert u.dtype == mx.float32
    assert np.linalg.norm(np.array(u) - np.array(v)) <= np.linalg.norm(a - b) * (1 + 1e-6)


@pytest.mark.parametrize("others", [mx.float32, mx.float64])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64])
def test_rounding_does_not_lead_out_of_a_box(dtype, others):
    def loss(p):
        return mx.sum(mx.square(p["x"].astype(mx.float32) - mx.array([1.0, -1.0]))) + p["y"] ** 2

    rule = ProximalGradient({"x": prox.Box(lower=[0.0, 0.1], upper=[0.3, 2.0]), "y": None})
    with mx.stream(mx.cpu):
        params = {"x": mx.array([0.2, 0.2], dtype=dtype), "y": mx.array(0.5, dtype=others)}
        found = mo.minimize(loss, params, rule, tol=1e-3).params["x"]
        assert found.dtype == dtype
        x = np.array(found.astype(mx.float64))
    # In float64: float32(0.1) is above 0.1, and float32(0.3) is above 0.3.
    assert x[0] <= 0.3
    assert x[1] >= 0.1
    np.testing.assert_allclose(x, [0.3, 0.1], rtol=EPSILON[dtype])


def test_the_simplex_holds_in_float32_for_long_and_large_vectors():
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=10_000), 1e6 + rng.normal(size=100), np.full(1000, -1e7)):
        u = np.array(prox.Simplex().prox(mx.array(x.astype(np.float32)), mx.array(1.0)))
        assert (u >= 0).all()
        # A thousandth of ten thousand roundings.
        np.testing.assert_allclose(u.astype(np.float64).sum(), 1.0, atol=2e-4)


def test_values_are_those_of_the_formulas():
    x = array64([[3.0, -4.0], [0.0, 1.0]])
    with mx.stream(mx.cpu):
        assert prox.L1(0.5).value(x).item() == 4.0
        assert prox.ElasticNet(0.5, 2.0).value(x).item() == 4.0 + 26.0
        assert prox.GroupLasso(2.0, axis=1).value(x).item() == 2 * (5 + 1)
        assert prox.GroupLasso(1.0).value(x).item() == pytest.approx(26**0.5)
        assert prox.Box(0, 1).value(x).item() == 0


# --- solutions ---------------------------------------------------------------------------------


def data(rows=120, columns=12, condition=1.0, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, columns)) * np.geomspace(1, condition, columns)
    w = np.where(np.arange(columns) % 3 == 0, rng.normal(size=columns), 0)
    return X, X @ w + 0.7 + 0.3 * rng.normal(size=rows)


def squared(params: dict[str, mx.array], X, y):
    return 0.5 * mx.mean(mx.square(X @ params["w"] + params["b"] - y))


def solve(penalty, X, y, start=0.0, **options):
    params = {"w": array64(np.full(X.shape[1], start)), "b": array64(0.0)}
    optimizer = ProximalGradient({"w": penalty, "b": None})
    return mo.minimize(squared, params, optimizer, X, y, **{"max_steps": 5000, **options})


SOLVED = {
    "l1": prox.L1(0.2),
    "elastic net": prox.ElasticNet(0.2, 0.3),
    "one group": prox.GroupLasso(0.3),
    "a group at zero": prox.GroupLasso(50.0),
    "non-negative": prox.NonNegative(),
    "box": prox.Box(-0.1, 0.4),
    "one bound": prox.Box(upper=np.linspace(-0.2, 0.8, 12)),
    "simplex": prox.Simplex(),
}


@pytest.mark.parametrize("condition", [1.0, 10.0])
@pytest.mark.parametrize("name", SOLVED)
def test_solutions_satisfy_their_optimality_conditions(name, condition):
    penalty = SOLVED[name]
    X, y = data(condition=condition)
    start = {"simplex": 1 / 12, "one bound": -0.3}.get(name, 0.0)
    result = solve(penalty, X, y, start)
    assert result.converged
    w, b = np.array(result.params["w"]), result.params["b"].item()
    residual = X @ w + b - y
    assert distance(penalty, w, X.T @ residual / len(y)) <= 1e-6
    assert abs(residual.mean()) <= 1e-6
    with mx.stream(mx.cpu):
        extra = penalty.value(result.params["w"]).item()
    assert result.value == pytest.approx(0.5 * np.mean(residual**2) + extra, rel=1e-12)


def test_groups_along_an_axis_for_a_classifier():
    # Multinomial regression with rows of zeros: a feature is used for all classes or for none.
    rng = np.random.default_rng(3)
    X, labels = rng.normal(size=(150, 8)), rng.integers(0, 3, 150)
    X[:, 0] += labels
    X[:, 1] -= 0.8 * labels

    def loss(W, X, onehot):
        logits = X @ W
        top = mx.stop_gradient(mx.max(logits, axis=1, keepdims=True))
        lse = mo.special.log(mx.sum(mo.special.exp(logits - top), axis=1)) + top[:, 0]
        return mx.mean(lse - mx.sum(onehot * logits, axis=1))

    onehot = np.eye(3)[labels]
    penalty = prox.GroupLasso(0.08, axis=1)
    result = mo.minimize(loss, array64(np.zeros((8, 3))), ProximalGradient(penalty), X, onehot)
    assert result.converged
    W = np.array(result.params)
    P = np.exp(X @ W)
    P /= P.sum(axis=1, keepdims=True)
    assert distance(penalty, W, X.T @ (P - onehot) / len(X)) <= 1e-6
    assert 2 <= (np.abs(W).max(axis=1) > 0).sum() < 8


@pytest.mark.parametrize("l1_ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("condition", [1.0, 30.0])
def test_elastic_net_agrees_with_scikit_learn(l1_ratio, condition):
    from sklearn.linear_model import ElasticNet

    X, y = data(condition=condition, seed=1)
    alpha = 0.3
    theirs = ElasticNet(alpha=alpha, l1_ratio=l1_ratio, tol=1e-14, max_iter=1_000_000)
    if l1_ratio == 0:  # scikit-learn says that coordinate descent is not for that
        from sklearn.linear_model import Ridge

        theirs = Ridge(alpha=alpha * len(y), tol=1e-14)
    theirs.fit(X, y)
    ours = solve(prox.ElasticNet(alpha * l1_ratio, alpha * (1 - l1_ratio)), X, y)
    assert ours.converged
    np.testing.assert_allclose(np.array(ours.params["w"]), theirs.coef_, rtol=0, atol=1e-6)
    assert ours.params["b"].item() == pytest.approx(theirs.intercept_, abs=1e-6)


def test_bounded_least_squares_agree_with_scipy():
    X, y = data(seed=2)

    def loss(w, X, y):
        return 0.5 * mx.mean(mx.square(X @ w - y))

    start = array64(np.zeros(12))
    found = mo.minimize(loss, start, ProximalGradient(prox.NonNegative()), X, y)
    np.testing.assert_allclose(np.array(found.params), nnls(X, y)[0], atol=1e-7)
    found = mo.minimize(loss, start, ProximalGradient(prox.Box(-0.1, 0.4)), X, y)
    box = lsq_linear(X, y, (-0.1, 0.4), tol=1e-13, lsq_solver="exact")
    np.testing.assert_allclose(np.array(found.params), box.x, atol=1e-6)
    lbfgsb = mo.minimize(loss, start, mo.LBFGSB(lower=-0.1, upper=0.4), X, y)
    np.testing.assert_allclose(np.array(found.params), np.array(lbfgsb.params), atol=1e-7)


def test_without_a_penalty_it_is_a_method_for_smooth_losses():
    X, y = data(condition=20.0)
    result = solve(None, X, y)
    expected = np.linalg.lstsq(np.column_stack([X, np.ones(len(y))]), y)[0]
    np.testing.assert_allclose(np.array(result.params["w"]), expected[:-1], atol=1e-6)


def test_a_loss_that_is_not_convex_still_only_falls():
    def loss(x):
        return 100 * mx.square(x[1] - mx.square(x[0])) + mx.square(1 - x[0])

    penalty, values = prox.L1(0.1), []
    result = mo.minimize(
        loss, array64([-1.2, 1.0]), ProximalGradient(penalty), max_steps=20_000,
        callback=lambda info: values.append(info.value),
    )  # fmt: skip
    assert result.converged
    a, b = np.array(result.params)
    gradient = [-400 * a * (b - a * a) - 2 * (1 - a), 200 * (b - a * a)]
    assert distance(penalty, [a, b], gradient) <= 1e-6
    # Ten roundings of values of about one.
    assert (np.diff(values) <= 1e-14).all()


# --- the method --------------------------------------------------------------------------------


def textbook(X, y, strength, steps, restart):
    """FISTA with a constant step (Beck and Teboulle 2009) and O'Donoghue and Candès's restart."""
    t = 1 / np.linalg.eigvalsh(X.T @ X / len(y)).max()
    x = y_point = np.zeros(X.shape[1])
    theta, points = 1.0, []
    for _ in range(steps):
        moved = y_point - t * X.T @ (X @ y_point - y) / len(y)
        new = np.sign(moved) * np.maximum(np.abs(moved) - t * strength, 0)
        if restart and len(points) and (y_point - new) @ (new - x) > 0:
            theta = 1.0
            y_point, x = new, new
        elif not points:  # ours begins its momentum one point later
            y_point, x = new, new
        else:
            following = 0.5 * (1 + np.sqrt(1 + 4 * theta**2))
            y_point, x = new + (theta - 1) / following * (new - x), new
            theta = following
        points.append(x)
    return t, np.array(points)


def plain(w, X, y):
    return 0.5 * mx.mean(mx.square(X @ w - y))


def kept(optimizer, X, y, count):
    """Return the first `count` points that a run keeps after its start."""
    points = []
    with mx.stream(mx.cpu):
        objective = Objective(plain, (array64(X), array64(y)))
        state = optimizer.init(objective, array64(np.zeros(X.shape[1])))
        while len(points) < count:
            before, state = state, optimizer.step(objective, state)
            assert state.status is None
            if state.params is not before.params:
                points.append(np.array(state.params))
    return np.array(points)


def test_it_follows_the_textbook_step_by_step():
    X, y = data(condition=10.0)
    t, expected = textbook(X, y, 0.2, 60, restart=True)
    _, unrestarted = textbook(X, y, 0.2, 60, restart=False)
    assert np.abs(expected - unrestarted).max() > 1e-3  # a restart has happened
    points = kept(ProximalGradient(prox.L1(0.2), step_size=t), X, y, 60)
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-12)


def test_it_needs_far_fewer_evaluations_than_without_acceleration():
    X, y = data(condition=30.0)
    t, _ = textbook(X, y, 0.2, 1, restart=False)
    x, steps = np.zeros(12), 0
    while distance(prox.L1(0.2), x, X.T @ (X @ x - y) / len(y)) > 1e-6:
        moved = x - t * X.T @ (X @ x - y) / len(y)
        x = np.sign(moved) * np.maximum(np.abs(moved) - t * 0.2, 0)
        steps += 1
    result = mo.minimize(
        plain, array64(np.zeros(12)), ProximalGradient(prox.L1(0.2)), X, y, tol=1e-6,
        max_steps=steps,
    )  # fmt: skip
    assert result.converged
    assert result.evaluations < steps / 4


def test_value_gradient_and_optimality_are_those_of_params():
    X, y = data()
    penalty = prox.L1(0.2)
    optimizer = ProximalGradient(penalty)
    with mx.stream(mx.cpu):
        objective = Objective(plain, (array64(X), array64(y)))
        state = optimizer.init(objective, array64(np.zeros(12)))
        for _ in range(30):
            before, state = state, optimizer.step(objective, state)
            w = np.array(state.params)
            gradient = X.T @ (X @ w - y) / len(y)
            np.testing.assert_allclose(np.array(state.grad), gradient, atol=1e-13)
            value = 0.5 * np.mean((X @ w - y) ** 2) + 0.2 * np.abs(w).sum()
            assert state.value == pytest.approx(value, rel=1e-13)
            assert state.value <= before.value + 1e-13
            moved = w - gradient
            moved = np.sign(moved) * np.maximum(np.abs(moved) - 0.2, 0)
            assert state.optimality == pytest.approx(np.abs(w - moved).max(), rel=1e-9, abs=1e-14)


def test_a_constraint_is_never_left():
    X, y = data(condition=10.0)
    seen = []
    solve(prox.Box(-0.1, 0.4), X, y, callback=lambda info: seen.append(np.array(info.params["w"])))
    assert (np.array(seen) >= -0.1).all()
    assert (np.array(seen) <= 0.4).all()


def test_a_loss_that_ends_is_not_left():
    def loss(x):  # defined for x > 0 only; the minimum is at x = 1/2.3
        return mx.sum(2 * x - mx.log(x))

    result = mo.minimize(loss, array64([5.0, 0.01]), ProximalGradient(prox.L1(0.3)))
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), 1 / 2.3, atol=1e-7)


def test_one_penalty_or_a_tree_of_them_with_one_for_a_branch():
    def loss(params):
        flat = mx.concatenate([params["a"], params["rest"][0], params["rest"][1].reshape(1)])
        return 0.5 * mx.sum(mx.square(flat - 2))

    params = {"a": mx.zeros(2), "rest": (mx.zeros(1), mx.array(0.0))}
    whole = mo.minimize(loss, params, ProximalGradient(prox.L1(0.5))).params
    assert whole["a"].tolist() == [1.5, 1.5]
    assert whole["rest"][1].item() == 1.5
    tree = {"a": None, "rest": prox.L1(0.5)}
    part = mo.minimize(loss, params, ProximalGradient(tree)).params
    assert part["a"].tolist() == [2, 2]
    assert [leaf.tolist() for leaf in part["rest"]] == [[1.5], 1.5]
    each = mo.minimize(
        loss, params, ProximalGradient({"a": prox.Box(upper=1), "rest": (None, prox.L1(5.0))})
    ).params
    assert each["a"].tolist() == [1, 1]
    assert [leaf.tolist() for leaf in each["rest"]] == [[2], 0]


def test_a_penalty_of_ones_own():
    class Squared(prox.Penalty):
        def value(self, x):
            return 0.5 * mx.sum(mx.square(x))

        def prox(self, x, step_size):
            return x / (1 + step_size)

    result = mo.minimize(
        lambda x: 0.5 * mx.sum(mx.square(x - 3)), array64([0.0, 1.0]), ProximalGradient(Squared())
    )
    np.testing.assert_allclose(np.array(result.params), 1.5, atol=1e-8)
    assert result.value == pytest.approx(2 * (0.5 * 1.5**2 + 0.5 * 1.5**2))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_narrow_parameters_keep_their_dtype(dtype):
    def loss(params):
        return 0.5 * mx.sum(mx.square(params["a"].astype(mx.float32) - mx.array([2.0, 0.1])))

    result = mo.minimize(loss, {"a": mx.zeros(2, dtype=dtype)}, ProximalGradient(prox.L1(0.5)))
    assert result.params["a"].dtype == dtype
    assert result.params["a"].tolist() == pytest.approx([1.5, 0], abs=0.01)


def test_float32_ends_at_the_tolerance_or_says_why_not():
    X, y = (item.astype(np.float32) for item in data(condition=10.0))
    result = mo.minimize(plain, mx.zeros(12), ProximalGradient(prox.L1(0.2)), X, y, max_steps=5000)
    assert result.converged
    w = np.array(result.params, dtype=np.float64)
    largest = result.history.optimality.max()
    assert distance(prox.L1(0.2), w, X.T @ (X @ w - y) / len(y)) <= 1e-5 * largest
    rule = ProximalGradient(prox.L1(0.2))
    result = mo.minimize(plain, mx.zeros(12), rule, X, y, tol=1e-12, max_steps=5000)
    assert result.converged
    assert result.reason == "to the rounding of float32."


def test_rounding_is_not_taken_for_a_minimum():
    # At 3e4 float32 numbers lie 0.002 apart: a gradient of 0.0005 vanishes in the difference.
    def loss(x):
        return 0.5 * mx.sum(mx.square(x - 30_001.0) / 100)

    objective, start = Objective(loss), mx.array([30_000.95])
    _, grad = objective.value_and_grad(start)
    assert mx.array_equal(start - grad, start).item()
    assert ProximalGradient(prox.L1(0.0)).init(objective, start).optimality >= 4e-4
    held = ProximalGradient(prox.Box(upper=30_000.0)).init(objective, mx.array([30_000.0]))
    assert held.optimality == 0  # a bound holds it, whatever the rounding


def test_a_step_that_is_too_long_is_not_called_converged():
    X, y = data()
    with pytest.warns(mo.ConvergenceWarning, match="DIVERGED"):
        result = mo.minimize(
            plain, array64(np.zeros(12)), ProximalGradient(prox.L1(0.2), step_size=5.0), X, y
        )
    assert np.isfinite(np.array(result.params)).all()


def test_where_nothing_is_left_to_do():
    # A penalty so strong that zero is the minimum: the start is the end.
    X, y = data()
    result = mo.minimize(plain, array64(np.zeros(12)), ProximalGradient(prox.L1(100.0)), X, y)
    assert result.converged
    assert (result.steps, result.optimality) == (0, 0.0)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: prox.L1(-1.0), ValueError, "zero or more"),
        (lambda: prox.L1(float("nan")), ValueError, "finite"),
        (lambda: prox.L1("big"), TypeError, "a number"),  # pyright: ignore
        (lambda: prox.ElasticNet(0.1, -0.1), ValueError, "l2"),
        (lambda: prox.GroupLasso(0.1, axis=0.5), TypeError, "whole number"),  # pyright: ignore
        (lambda: prox.Box(2, 1), ValueError, "Swap"),
        (lambda: prox.Box("low"), TypeError, "an array or None"),
        (lambda: prox.Box(float("nan")), ValueError, "no bound"),
        (lambda: prox.Simplex(0.0), ValueError, "more than zero"),
        (lambda: ProximalGradient(0.1), TypeError, "one of mlxopt.prox"),
        (lambda: ProximalGradient({"w": prox.L1}), TypeError, r"\['w'\].*Write L1\(...\)"),
        (lambda: ProximalGradient(prox.L1(0.1), step_size=0), ValueError, "more than zero"),
        (lambda: ProximalGradient(prox.L1(0.1), step_size=-1), ValueError, "more than zero"),
    ],
)
def test_hyper_parameters_are_checked(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("penalty", "words"),
    [
        (prox.Box(1, 2), r"params\['w'\] starts 1 outside of Box"),
        (prox.Simplex(), "outside of Simplex"),
        ({"w": prox.L1(1.0)}, "the keys"),
        ((prox.L1(1.0), None), "a dict with the keys"),
        (prox.GroupLasso(1.0, axis=1), "no such axis"),
        ({"w": None, "b": prox.Simplex()}, "one axis or more"),
    ],
)
def test_what_does_not_fit_the_start_is_an_error(penalty, words):
    X, y = data()
    params = {"w": array64(np.zeros(12)), "b": array64(0.0)}
    with pytest.raises(ValueError, match=words):
        mo.minimize(squared, params, ProximalGradient(penalty), X, y)

"""First-order rules: plain loops in NumPy, the rules of MLX, 16-bit leaves.

The contract that all optimizers keep is tested in test_optimizers.py.
"""

import mlx.core as mx
import mlx.optimizers as mlx_optimizers
import numpy as np
import pytest
from problems import array64, regression

import mlxopt as mo
from mlxopt import schedules

# --- textbook versions: NumPy, one vector, the formulas as their papers print them ---------------


def adam(gradient, x, rate, steps, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0):
    """Kingma and Ba (2015), algorithm 1; Loshchilov and Hutter (2019), algorithm 2."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = gradient(x)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        x = x - rate(t - 1) * (m_hat / (np.sqrt(v_hat) + epsilon) + weight_decay * x)
    return x


def rmsprop(gradient, x, rate, steps, decay=0.99, epsilon=1e-8):
    v = np.zeros_like(x)
    for t in range(steps):
        g = gradient(x)
        v = decay * v + (1 - decay) * g**2
        x = x - rate(t) * g / (np.sqrt(v) + epsilon)
    return x


def adagrad(gradient, x, rate, steps, epsilon=1e-10):
    v = np.zeros_like(x)
    for t in range(steps):
        g = gradient(x)
        v = v + g**2
        x = x - rate(t) * g / (np.sqrt(v) + epsilon)
    return x


def lion(gradient, x, rate, steps, beta1=0.9, beta2=0.99, weight_decay=0.0):
    m = np.zeros_like(x)
    for t in range(steps):
        g = gradient(x)
        x = x - rate(t) * (np.sign(beta1 * m + (1 - beta1) * g) + weight_decay * x)
        m = beta2 * m + (1 - beta2) * g
    return x


def prodigy(gradient, x, rate, steps, beta1=0.9, beta2=0.999, epsilon=1e-8, distance=1e-6):
    """Mishchenko and Defazio (2024), algorithm 4."""
    x0, d, r = x, distance, 0.0
    m, v, s = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for t in range(steps):
        g, gamma, root = gradient(x), rate(t), np.sqrt(beta2)
        m = beta1 * m + (1 - beta1) * d * g
        v = beta2 * v + (1 - beta2) * d**2 * g**2
        r = root * r + (1 - root) * gamma * d**2 * (g @ (x0 - x))
        s = root * s + (1 - root) * gamma * d**2 * g
        x = x - gamma * d * m / (np.sqrt(v) + d * epsilon)
        d = max(d, r / np.abs(s).sum())
    return x


CASES = {
    "Adam": (mo.Adam, adam, {}),
    "Adam, other betas": (mo.Adam, adam, {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}),
    "Adam without memory": (mo.Adam, adam, {"beta1": 0.0, "beta2": 0.0}),
    "AdamW": (mo.AdamW, adam, {"weight_decay": 0.1}),
    "RMSProp": (mo.RMSProp, rmsprop, {}),
    "RMSProp, other decay": (mo.RMSProp, rmsprop, {"decay": 0.5, "epsilon": 1e-3}),
    "Adagrad": (mo.Adagrad, adagrad, {}),
    "Lion": (mo.Lion, lion, {"weight_decay": 0.1}),
    "Lion, other betas": (mo.Lion, lion, {"beta1": 0.5, "beta2": 0.7}),
    "Prodigy": (mo.Prodigy, prodigy, {}),
    "Prodigy, other start": (mo.Prodigy, prodigy, {"beta2": 0.9, "distance": 1e-2}),
}
RATES = {"fixed": 0.05, "falling": schedules.step(0.1, every=7, factor=0.5)}


def mean_square(w, X, y):
    return 0.5 * mx.mean(mx.square(X @ w - y))


def least_squares():
    X, y, _ = regression()
    return X, y, lambda w: X.T @ (X @ w - y) / len(y)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("schedule", RATES)
@pytest.mark.parametrize("name", CASES)
def test_rules_equal_a_plain_loop(name, schedule, dtype):
    make, textbook, options = CASES[name]
    rate = RATES[schedule]
    X, y, gradient = least_squares()
    # In float32 for as long as rounding has not yet decided a sign or a spike.
    steps = 43 if dtype == "float64" else 12
    expected = textbook(
        gradient, np.full(5, 0.1), rate if callable(rate) else lambda t: rate, steps, **options
    )
    start = np.full(5, 0.1, dtype=dtype)
    start = mx.array(start, dtype=getattr(mx, dtype))
    result = mo.minimize(mean_square, start, make(rate, **options), X, y, tol=0, max_steps=steps)
    assert result.steps == steps
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(np.array(result.params), expected, rtol=tolerance, atol=tolerance)


PAIRS = [
    (mo.Adam(0.05), mlx_optimizers.Adam(0.05, bias_correction=True)),
    (
        mo.AdamW(0.05, weight_decay=0.2),
        mlx_optimizers.AdamW(0.05, weight_decay=0.2, bias_correction=True),
    ),
    (mo.RMSProp(0.05, decay=0.9), mlx_optimizers.RMSprop(0.05, alpha=0.9)),
    (mo.Adagrad(0.05), mlx_optimizers.Adagrad(0.05, eps=1e-10)),
    (mo.Lion(0.05, weight_decay=0.2), mlx_optimizers.Lion(0.05, weight_decay=0.2)),
    (
        mo.Adam(schedules.cosine(0.05, steps=30)),
        mlx_optimizers.Adam(mlx_optimizers.cosine_decay(0.05, 30), bias_correction=True),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda rule: type(rule).__name__)
def test_rules_equal_those_of_mlx(ours, theirs):
    X, y, _ = regression()
    A, b = mx.array(X.astype(np.float32)), mx.array(y.astype(np.float32))
    params = {"w": mx.full((5,), 0.1)}

    def loss(params, X, y):
        return mean_square(params["w"], X, y)

    # After one step, and after ten: MLX scales by 1 - 0.999ᵗ in float32, which keeps 4 to 5 digits
    # of it in the first steps, so that its own steps are off by that share of their length.
    for steps, tolerance in ((1, 2e-6), (10, 2e-5)):
        result = mo.minimize(loss, params, ours, A, b, tol=0, max_steps=steps)
        run = mo.train(loss, params, theirs, [(A, b)] * steps)
        np.testing.assert_allclose(
            np.array(result.params["w"]), np.array(run.params["w"]), rtol=tolerance, atol=tolerance
        )


def test_the_first_step_of_adam_is_the_learning_rate_to_full_precision():
    # |m̂| = √v̂ exactly after one step; float32's 1 - 0.999 would miss it in the fifth digit.
    for name, dtype in (("float32", mx.float32), ("float64", mx.float64)):
        with mx.stream(mx.cpu):
            start = mx.zeros(3, dtype=dtype)
            slopes = mx.array([1.0, -7.0, 300.0]).astype(dtype)
            rule = mo.Adam(0.25, epsilon=0.0)
            found = mo.minimize(
                lambda w, s: mx.sum(s * w), start, rule, slopes, tol=0, max_steps=1
            ).params
        rounding = 4 * float(np.finfo(name).eps)
        np.testing.assert_allclose(np.array(found), [-0.25, 0.25, -0.25], rtol=rounding)


def test_prodigy_needs_no_learning_rate_whatever_the_distance():
    for scale in (1e-3, 1.0, 1e4):

        def loss(w, scale=scale):
            return mx.sum(mx.sqrt(1 + mx.square(w / scale - 1)))

        rule = mo.Prodigy(schedules.cosine(1.0, steps=600))
        result = mo.minimize(loss, array64(np.zeros(3)), rule, tol=0, max_steps=600)
        np.testing.assert_allclose(np.array(result.params), scale, rtol=1e-2)


def test_prodigy_adds_up_steps_below_the_rounding_of_the_parameters():
    # Its first steps of 1e-6 vanish beside 1000 in float32; the estimate must grow all the same.
    def loss(w):
        return mx.sum(mx.sqrt(1 + mx.square(w - 990.0)))

    rule = mo.Prodigy(schedules.cosine(1.0, steps=400))
    result = mo.minimize(loss, mx.full((2,), 1000.0), rule, tol=0, max_steps=400)
    np.testing.assert_allclose(np.array(result.params), 990.0, atol=0.1)


RULES = {
    "Adam": mo.Adam(0.05),
    "AdamW": mo.AdamW(0.05, weight_decay=0.1),
    "RMSProp": mo.RMSProp(0.02),
    "Adagrad": mo.Adagrad(0.5),
    "Lion": mo.Lion(0.02),
    "Prodigy": mo.Prodigy(),
    "Clipped": mo.Clipped(mo.Adam(0.05), norm=0.5),
    "Grouped": mo.Grouped(mo.Adam(0.05), {"*'b'*": mo.SGD(0.1)}),
}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_sixteen_bit_leaves_keep_their_dtype_and_follow_float32(name, dtype):
    X, y, _ = regression()

    def loss(params, X, y):
        wide = {key: leaf.astype(mx.float32) for key, leaf in params.items()}
        return mean_square(wide["w"], X, y - wide["b"])

    def run(kind):
        params = {"w": mx.zeros(5, dtype=kind), "b": mx.array(0.0)}
        return mo.train(loss, params, RULES[name], mo.batches(X, y, batch_size=20), epochs=20)

    narrow, wide = run(dtype), run(mx.float32)
    assert narrow.params["w"].dtype == dtype
    assert narrow.params["b"].dtype == mx.float32
    # bfloat16 holds 8 bits: each entry is off by up to 0.4 %, after steps that were, too.
    difference = np.array(narrow.params["w"].astype(mx.float32)) - np.array(wide.params["w"])
    assert np.abs(difference).max() < 0.05


def test_buffers_of_sixteen_bit_leaves_are_float32():
    # A gradient of 1e-4 has a square of 1e-8, which float16 rounds to nothing.
    slope = mx.array(1e-4, dtype=mx.float16)
    params = mx.array(1.0, dtype=mx.float16)
    for rule in (mo.Adam(0.125), mo.RMSProp(0.125), mo.Adagrad(0.125)):
        buffers = rule.start(params)
        moved, _ = rule.update(slope, buffers, params, mx.array(0.125))
        assert moved.dtype == mx.float16
        assert 1.0 - moved.item() == pytest.approx(
            1.25 if isinstance(rule, mo.RMSProp) else 0.125, rel=2e-3
        )


def test_a_tree_of_several_dtypes():
    def loss(params):
        a, b, c = (params[key].astype(mx.float64) for key in "abc")
        return mx.sum(mx.square(a - 1)) + mx.sum(mx.square(b - 2)) + mx.sum(mx.square(c - 3))

    start = {
        "a": array64(np.zeros(2)),
        "b": mx.zeros(2),
        "c": mx.zeros(2, dtype=mx.bfloat16),
    }
    for rule in RULES.values():
        rule = mo.Adam(0.1) if isinstance(rule, mo.AdamW) else rule
        result = mo.minimize(loss, start, rule, tol=0, max_steps=400)
        for key, (dtype, target) in zip(
            "abc", [(mx.float64, 1), (mx.float32, 2), (mx.bfloat16, 3)], strict=True
        ):
            assert result.params[key].dtype == dtype
            found = np.array(result.params[key].astype(mx.float32))
            np.testing.assert_allclose(found, target, atol=0.1)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: mo.Adam(beta1=1.0), ValueError, "less than 1"),
        (lambda: mo.Adam(beta2=-0.1), ValueError, "zero or more"),
        (lambda: mo.Adam(epsilon=float("nan")), ValueError, "finite"),
        (lambda: mo.AdamW(weight_decay=-1.0), ValueError, "zero or more"),
        (lambda: mo.RMSProp(decay=1.0), ValueError, "less than 1"),
        (lambda: mo.Adagrad(epsilon="small"), TypeError, "number"),  # pyright: ignore
        (lambda: mo.Lion(beta2=2.0), ValueError, "less than 1"),
        (lambda: mo.Prodigy(distance=0), ValueError, "more than zero"),
    ],
)
def test_hyper_parameters_are_checked(make, error, words):
    with pytest.raises(error, match=words):
        make()


class Damped(mo.optimizers.FirstOrder):
    """A rule by a user: a step along the mean of this gradient and the last."""

    def update(self, grad, buffers, params, learning_rate):
        return params - 0.5 * learning_rate * (grad + buffers), grad


def test_a_rule_by_a_user_is_an_update():
    rule = Damped(0.1)
    found = mo.minimize(lambda w: mx.sum(mx.square(w - 3)), mx.zeros(2), rule)
    assert found.converged
    np.testing.assert_allclose(np.array(found.params), 3, rtol=1e-5)
    wrapped = mo.Clipped(rule, norm=1e3)
    again = mo.minimize(lambda w: mx.sum(mx.square(w - 3)), mx.zeros(2), wrapped)
    np.testing.assert_array_equal(np.array(again.params), np.array(found.params))


def test_rules_made_of_rules_have_the_patience_of_their_rules():
    falling = mo.SGD(schedules.cosine(0.1, steps=10))
    for rule in (falling, mo.Clipped(falling, norm=1.0), mo.Grouped(mo.SGD(0.1), {"*b*": falling})):
        assert isinstance(rule, mo.optimizers.FirstOrder)
        assert rule.patience == float("inf")
    for rule in (mo.SGD(0.1), mo.Clipped(mo.SGD(0.1), norm=1.0), mo.Grouped(None, {})):
        assert rule.patience == 100

"""Derivatives of mlxopt.special to third order against mpmath, in every mode that MLX has."""

import math

import mlx.core as mx
import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf

import mlxopt.special as special

TAIL_CDF = [-1000.0, -100.0, -30.0, -3.0, -0.2, 0.0, 0.5, 3.0, 8.0]
POSITIVE = [1e-3, 0.5, 1.0, 1.5, 2.0, 3.9, 4.1, 100.0]
LOGISTIC = [-40.0, -1.0, 0.0, 0.3, 17.5, 40.0]
CASES = {
    "exp": (mpmath.exp, [-30.0, -1.0, 0.0, 2.5]),
    "expm1": (mpmath.expm1, [-30.0, -1e-5, 0.0, 2.5]),
    "log": (mpmath.log, [1e-5, 0.7, 1.0, 90.0]),
    "log1p": (mpmath.log1p, [-0.9, 0.0, 1e-6, 30.0]),
    "log2": (lambda x: mpmath.log(x, 2), [1e-5, 0.7, 1.0, 90.0]),
    "log10": (mpmath.log10, [1e-5, 0.7, 1.0, 90.0]),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), LOGISTIC),
    "softplus": (lambda x: mpmath.log1p(mpmath.exp(x)), LOGISTIC),
    "log_sigmoid": (lambda x: -mpmath.log1p(mpmath.exp(-x)), LOGISTIC),
    "erf": (mpmath.erf, [-3.0, -0.2, 0.0, 0.5, 1.75]),
    "erfc": (mpmath.erfc, [-3.0, 0.0, 0.5, 6.0, 9.0]),
    "erfinv": (mpmath.erfinv, [-0.75, -0.2, 0.0, 0.5, 0.99]),
    "normal_cdf": (mpmath.ncdf, [-12.0, -3.0, -0.2, 0.0, 0.5, 1.75]),
    "normal_log_cdf": (lambda x: mpmath.log(mpmath.ncdf(x)), TAIL_CDF),
    "sin": (mpmath.sin, [-3.0, 0.0, 1.0, 1e4]),
    "cos": (mpmath.cos, [-3.0, 0.0, 1.0, 1e4]),
    "tan": (mpmath.tan, [-3.0, 0.0, 1.0, 1.5]),
    "lgamma": (mpmath.loggamma, POSITIVE),
    "digamma": (mpmath.digamma, POSITIVE),
    "trigamma": (lambda x: mpmath.psi(1, x), POSITIVE),
}
# What the fit of L (7e-6 and 3e-12) leaves in the third derivative of log Φ; without it, roundings.
TOLERANCE = {mx.float64: 1e-11, mx.float32: 3e-5}


def derivative(function, order):
    for _ in range(order):
        function = mx.grad(function)
    return function


def true_derivatives(function, points, order):
    # mpmath differentiates numerically: what cancels in exp(-x²/2) near the tail costs digits.
    with mp.workdps(60):
        exact = [mpf(float(np.float32(x))) for x in points]
    values = []
    for x in exact:
        with mp.workdps(400 if x < -200 else 80):
            values.append(float(mpmath.diff(function, x, order)))
    return np.array(values)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_derivatives_to_third_order(name, order):
    reference, points = CASES[name]
    expected = true_derivatives(reference, points, order)
    function = derivative(getattr(special, name), order)
    for dtype, tolerance in TOLERANCE.items():
        with mx.stream(mx.cpu):
            x = mx.array(np.array(points, np.float32)).astype(dtype)
            got = [function(x[i]).item() for i in range(len(points))]
        # Numerical differentiation leaves 1e-20 or so where the derivative is 0.
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=1e-15)


POINTS = {name: points for name, (_, points) in CASES.items()}


@pytest.mark.parametrize("name", POINTS)
def test_every_mode_gives_the_same_derivatives(name):
    function = getattr(special, name)

    def total(x):
        return function(x).sum()

    with mx.stream(mx.cpu):
        x = mx.array(POINTS[name], dtype=mx.float64)
        tangent = mx.ones_like(x)
        first = mx.grad(total)(x)
        second = mx.grad(lambda x: mx.grad(total)(x).sum())(x)

        def forward(x):
            return mx.jvp(function, [x], [tangent])[1][0]

        others = {
            "grad of vmap": mx.grad(lambda x: mx.vmap(function)(x).sum())(x),
            "vmap of grad": mx.vmap(mx.grad(function))(x),
            "compiled grad": mx.compile(mx.grad(total))(x),
            "grad of compiled": mx.grad(mx.compile(total))(x),
            "jvp": forward(x),
            "compiled jvp": mx.compile(forward)(x),
            "vmap of jvp": mx.vmap(lambda v: mx.jvp(function, [v], [tangent[0]])[1][0])(x),
            "jvp of vmap": mx.jvp(mx.vmap(function), [x], [tangent])[1][0],
        }
        seconds = {
            "forward over reverse": mx.jvp(mx.grad(total), [x], [tangent])[1][0],
            "reverse over forward": mx.grad(lambda x: forward(x).sum())(x),
            "forward over forward": mx.jvp(forward, [x], [tangent])[1][0],
            "vmap": mx.vmap(mx.grad(mx.grad(function)))(x),
            "compiled": mx.compile(mx.grad(lambda x: mx.grad(total)(x).sum()))(x),
        }
        for mode, got in others.items():
            np.testing.assert_allclose(got, first, rtol=1e-14, atol=1e-300, err_msg=mode)
        for mode, got in seconds.items():
            np.testing.assert_allclose(got, second, rtol=1e-14, atol=1e-300, err_msg=mode)


def test_known_slopes():
    assert mx.grad(special.softplus)(mx.array(0.0)).item() == 0.5
    assert mx.grad(special.log_sigmoid)(mx.array(0.0)).item() == 0.5
    # log σ has slope 1 far on the left, where -log(sigmoid) is infinite in float32.
    assert mx.grad(special.log_sigmoid)(mx.array(-200.0)).item() == 1
    # Far in the tail log Φ(x) is -x²/2 - log(-x) - ½ log 2π: slope -x, curvature -1.
    assert mx.grad(special.normal_log_cdf)(mx.array(-1e5)).item() == 1e5
    assert derivative(special.normal_log_cdf, 2)(mx.array(-1e5)).item() == -1
    assert derivative(special.normal_log_cdf, 2)(mx.array(math.inf)).item() == 0


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *[("exp", 1000.0), ("expm1", 1000.0), ("log", 0.0), ("log1p", -1.0)],
        *[("log2", 0.0), ("log10", 0.0), ("erfinv", 1.0)],
        *[("lgamma", 0.0), ("digamma", 0.0), ("trigamma", 0.0), ("normal_log_cdf", -math.inf)],
    ],
)
def test_the_branch_not_taken_leaves_no_nan(name, bad):
    function = getattr(special, name)
    x = mx.array([bad, 0.5])

    def masked(x):
        return mx.where(x == bad, 0.0, function(x)).sum()

    expected = mx.grad(function)(x[1]).item()
    assert mx.grad(masked)(x).tolist() == [0, expected]
    assert mx.grad(mx.compile(masked))(x).tolist() == [0, expected]
    curvature = mx.grad(lambda x: mx.grad(masked)(x).sum())(x).tolist()
    assert curvature == [0, derivative(function, 2)(x[1]).item()]


def test_a_zero_cotangent_does_not_hide_a_second_derivative():
    # d²/dx² ½ log(x)² at 1 is 1: the cotangent log(x) is 0 there, its derivative is not.
    square = derivative(lambda x: 0.5 * special.log(x) ** 2, 2)
    assert square(mx.array(1.0)).item() == 1


@pytest.mark.parametrize("kind", ["logsumexp", "softmax", "log_softmax"])
def test_log_sum_exp_family_against_its_closed_forms(kind):
    rng = np.random.default_rng(31)
    values, weights = rng.normal(size=(2, 5)) * 3, rng.normal(size=(2, 5))
    p = np.exp(values - np.logaddexp.reduce(values, axis=1)[:, None])
    eye = np.eye(5)
    # Jacobian of softmax, and third derivatives of log Σ exp, row by row.
    jacobian = p[:, :, None] * (eye - p[:, None, :])
    third = jacobian[:, :, None, :] * eye[None, :, :, None]
    third = third - jacobian[:, :, None, :] * p[:, None, :, None]
    third = third - p[:, :, None, None] * jacobian[:, None, :, :]
    with mx.stream(mx.cpu):
        x, w = mx.array(values, dtype=mx.float64), mx.array(weights, dtype=mx.float64)
        function = getattr(special, kind)

        def total(x, w):
            y = function(x, axis=-1)
            return (y * w).sum() if y.ndim == x.ndim else y.sum()

        gradient = mx.grad(total)

        def bent(x, w):
            return (gradient(x, w) * w).sum()

        got = [np.array(gradient(x, w)), np.array(mx.grad(bent)(x, w))]
        modes = [
            mx.vmap(gradient)(x, w),
            mx.grad(lambda x: mx.vmap(total)(x, w).sum())(x),
            mx.compile(gradient)(x, w),
            mx.jvp(lambda x: mx.vmap(total)(x, w), [x], [w])[1][0],
            mx.jvp(lambda x: gradient(x, w), [x], [w])[1][0],
        ]
    first, second = {
        "logsumexp": (p, np.einsum("nij,nj->ni", jacobian, weights)),
        "softmax": (
            np.einsum("nij,ni->nj", jacobian, weights),
            np.einsum("nijk,ni,nj->nk", third, weights, weights),
        ),
        "log_softmax": (
            weights - p * weights.sum(axis=1, keepdims=True),
            -np.einsum("nij,nj->ni", jacobian, weights) * weights.sum(axis=1, keepdims=True),
        ),
    }[kind]
    np.testing.assert_allclose(got[0], first, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(got[1], second, rtol=1e-12, atol=1e-14)
    expected = [first, first, first, (first * weights).sum(axis=1), second]
    for i, (mode, value) in enumerate(zip(modes, expected, strict=True)):
        np.testing.assert_allclose(mode, value, rtol=1e-12, atol=1e-14, err_msg=str(i))


def test_vmap_over_any_axis_of_the_log_sum_exp_family():
    x = mx.random.normal((3, 4, 5), key=mx.random.key(5))
    for function in (special.softmax, special.log_softmax):
        mapped = mx.vmap(lambda row, f=function: f(row, axis=0), in_axes=1, out_axes=1)(x)
        assert mx.array_equal(mapped, function(x, axis=0))
    sums = mx.vmap(special.logsumexp, in_axes=2)(x)
    np.testing.assert_allclose(sums, special.logsumexp(x, axis=(0, 1)), rtol=1e-6)


def test_betaln_derivatives_and_modes():
    pairs = [(0.3, 2.0), (1.0, 1.0), (3.0, 5.5), (20.0, 0.7)]
    with mx.stream(mx.cpu):
        a = mx.array([p[0] for p in pairs], dtype=mx.float64)
        b = mx.array([p[1] for p in pairs], dtype=mx.float64)

        def total(a, b):
            return special.betaln(a, b).sum()

        slopes = mx.grad(total, argnums=(0, 1))
        bends = mx.grad(lambda a, b: slopes(a, b)[0].sum(), argnums=(0, 1))
        thirds = mx.grad(lambda a, b: bends(a, b)[1].sum(), argnums=(0, 1))
        orders = {(1, 0): slopes(a, b)[0], (0, 1): slopes(a, b)[1], (2, 0): bends(a, b)[0]}
        orders |= {(1, 1): bends(a, b)[1], (2, 1): thirds(a, b)[0], (1, 2): thirds(a, b)[1]}
        one = mx.ones_like(a)
        np.testing.assert_allclose(
            mx.jvp(special.betaln, [a, b], [one, 2 * one])[1][0],
            slopes(a, b)[0] + 2 * slopes(a, b)[1],
            rtol=1e-14,
        )
        alone = mx.jvp(lambda a: special.betaln(a, b), [a], [one])[1][0]
        np.testing.assert_allclose(alone, slopes(a, b)[0], rtol=1e-14)
        mapped = mx.vmap(special.betaln, in_axes=(0, None))(a, b[:2])
        np.testing.assert_allclose(mapped, special.betaln(a[:, None], b[None, :2]), rtol=1e-15)
        scalar = mx.grad(lambda s: special.betaln(s, b).sum())(a[0])
        np.testing.assert_allclose(
            scalar, mx.grad(total)(mx.broadcast_to(a[0], b.shape), b).sum(), rtol=1e-14
        )
        mx.eval(mx.grad(lambda a: mx.vmap(special.betaln)(a, b).sum())(a))
    with mp.workdps(60):
        for order, got in orders.items():
            expected = [
                float(
                    mpmath.diff(
                        lambda x, y: (
                            mpmath.loggamma(x) + mpmath.loggamma(y) - mpmath.loggamma(x + y)
                        ),
                        (mpf(p[0]), mpf(p[1])),
                        order,
                    )
                )
                for p in pairs
            ]
            np.testing.assert_allclose(got, expected, rtol=1e-12, err_msg=str(order))


def test_logaddexp_and_logcumsumexp_derivatives_and_modes():
    rng = np.random.default_rng(32)
    u, v = rng.normal(size=(2, 6)) * 2
    u[0] = v[0]
    share = 1 / (1 + np.exp(v - u))
    with mx.stream(mx.cpu):
        a, b = mx.array(u, dtype=mx.float64), mx.array(v, dtype=mx.float64)
        slope = mx.grad(lambda a, b: special.logaddexp(a, b).sum())
        np.testing.assert_allclose(slope(a, b), share, rtol=1e-14)
        bend = mx.grad(lambda a: slope(a, b).sum())
        np.testing.assert_allclose(bend(a), share * (1 - share), rtol=1e-13)
        np.testing.assert_allclose(mx.compile(bend)(a), share * (1 - share), rtol=1e-13)
        mapped = mx.vmap(special.logaddexp, in_axes=(0, None))(a, b)
        np.testing.assert_allclose(mapped, special.logaddexp(a[:, None], b[None]), rtol=1e-15)

        def running(x):
            return special.logcumsumexp(x)[-1]

        softmax = np.exp(u - np.logaddexp.reduce(u))
        np.testing.assert_allclose(mx.grad(running)(a), softmax, rtol=1e-14)
        hessian = mx.vmap(lambda unit: mx.grad(lambda a: (mx.grad(running)(a) * unit).sum())(a))
        expected = np.diag(softmax) - np.outer(softmax, softmax)
        np.testing.assert_allclose(hessian(mx.eye(6, dtype=mx.float64)), expected, atol=1e-15)

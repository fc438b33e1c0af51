"""The line search: every step size that it accepts satisfies its conditions, checked afresh."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxopt.optimizers import _line_search as ls

EPS = 2.0**-52


def run(phi, slope, step_size=1.0, eps=EPS, most=200):
    """Drive a search; return it and the trials made."""
    search = ls.begin(phi(0.0), slope(0.0), step_size, eps)
    trials = []
    while search.verdict == "" and len(trials) < most:
        t = search.step_size
        trials.append(t)
        search = ls.proceed(search, phi(t), slope(t))
    return search, trials


# Test functions of Moré and Thuente (1994), "Line search algorithms with guaranteed sufficient
# decrease", section 5: (5.1) with β = 2, (5.2) with β = 0.004; and a few others.
def more_thuente_1(beta=2.0):
    return (
        lambda t: -t / (t * t + beta),
        lambda t: (t * t - beta) / (t * t + beta) ** 2,
    )


def more_thuente_2(beta=0.004):
    return (
        lambda t: (t + beta) ** 5 - 2 * (t + beta) ** 4,
        lambda t: 5 * (t + beta) ** 4 - 8 * (t + beta) ** 3,
    )


FUNCTIONS = {
    "Moré-Thuente 1": more_thuente_1(),
    "Moré-Thuente 2": more_thuente_2(),
    "quadratic": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
    "far quadratic": (lambda t: (t - 1e4) ** 2, lambda t: 2 * (t - 1e4)),
    "wavy": (lambda t: t * t - 3 * math.sin(5 * t), lambda t: 2 * t - 15 * math.cos(5 * t)),
    "log barrier": (
        lambda t: -t - 0.1 * math.log(1 - t) if t < 1 else math.nan,
        lambda t: -1 + 0.1 / (1 - t) if t < 1 else math.nan,
    ),
    "overflow": (
        lambda t: math.exp(t) - 3 * t if t < 700 else math.inf,
        lambda t: math.exp(t) - 3 if t < 700 else math.inf,
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("first", [1e-6, 1e-3, 1e-1, 1.0, 10.0, 1e3, 1e6])
def test_an_accepted_step_satisfies_the_strong_wolfe_conditions(name, first):
    phi, slope = FUNCTIONS[name]
    search, trials = run(phi, slope, first)
    assert search.verdict == "accepted"
    t = trials[-1]
    assert phi(t) <= phi(0) + ls.C1 * t * slope(0)
    assert abs(slope(t)) <= ls.C2 * abs(slope(0))
    assert len(trials) <= 25


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=5),
    st.floats(1e-4, 1e4),
)
def test_it_ends_on_any_polynomial_that_falls_and_then_rises(coefficients, first):
    top = [1.0] if len(coefficients) % 2 else [1.0, 0.0]  # an even degree, with positive lead
    polynomial = np.polynomial.Polynomial([0.0, -1.0, *coefficients, *top])
    derivative = polynomial.deriv()
    search, trials = run(lambda t: float(polynomial(t)), lambda t: float(derivative(t)), first)
    assert search.verdict == "accepted"
    t = trials[-1]
    assert float(polynomial(t)) <= ls.C1 * t * -1.0 + 1e-12
    assert abs(float(derivative(t))) <= ls.C2 + 1e-9


def test_a_linear_function_is_unbounded():
    search, trials = run(lambda t: -t, lambda t: -1.0)
    assert search.verdict == "unbounded"
    assert trials[-1] > 1e9


def test_minus_infinity_is_unbounded():
    search, _ = run(
        lambda t: -math.exp(t) if t < 709 else -math.inf, lambda t: -math.exp(min(t, 709)), 1000.0
    )
    assert search.verdict == "unbounded"


def test_a_wrong_slope_fails_and_says_so():
    search, _ = run(lambda t: t, lambda t: -1.0)  # rises, whatever its slope claims
    assert search.verdict == "failed"


def test_nan_everywhere_but_at_the_start_fails():
    search, _ = run(lambda t: 0.0 if t == 0 else math.nan, lambda t: -1.0)
    assert search.verdict == "failed"


def test_slopes_decide_where_rounding_hides_the_decrease():
    # A decrease of 1e-20 on top of 1: no value ever changes, but the slopes do.
    search, trials = run(lambda t: 1.0, lambda t: (t - 1) * 1e-20, 0.01)
    assert search.verdict == "accepted"
    assert abs(trials[-1] - 1) <= ls.C2


def test_the_cubic_minimizer_is_exact_on_cubics():
    for a, b in [(0.0, 1.0), (0.2, 3.0), (2.0, 0.5)]:
        phi = np.polynomial.Polynomial([1.0, -2.0, 0.5, 0.3])
        d = phi.deriv()
        expected = max(d.roots().real)
        found = ls.cubic_minimizer(a, phi(a), d(a), b, phi(b), d(b))
        assert found == pytest.approx(expected, rel=1e-9)


def test_the_rounding_of_a_long_sum_does_not_end_a_search():
    # A parabola near its minimum whose value is off by 30 times what the search takes for noise.
    eps = 2.0**-23
    search = ls.begin(1.0, -1e-6, 1.0, eps)
    rough = ls.proceed(search, 1.0 + 300 * eps, -0.5e-6)
    assert rough.verdict == "accepted"
    # A rise that the slopes do explain is a rise.
    steep = ls.begin(1.0, -1.0, 1e-4, eps)
    assert ls.proceed(steep, 1.0 + 300 * eps, 0.5).verdict == ""

"""check_grads: what is right passes, what is wrong fails at the leaf and entry that are wrong."""

import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt.autodiff import GradientCheck, GradientError, check_grads
from mlxopt.autodiff._differences import differentiate


def rules(value, slope) -> Any:
    """An elementwise function of MLX whose derivative is `slope`, right or not."""

    @mx.custom_function
    def function(x):
        return value(x)

    @function.vjp
    def _(primal, cotangent, output):
        return cotangent * slope(primal)

    return function


cube = rules(lambda x: x**3, lambda x: 3 * x**2)
wrong_everywhere = rules(lambda x: x**3, lambda x: 2.9 * x**2)
wrong_where_large = rules(lambda x: x**3, lambda x: mx.where(x > 2.5, 3 * x**2 + 0.1, 3 * x**2))
wrong_second = rules(lambda x: x**3, lambda x: 3 * mx.stop_gradient(x) ** 2)
nearly_right = rules(lambda x: x**3, lambda x: (3 + 1e-5) * x**2)
forgetful = rules(lambda x: x**3, lambda x: mx.zeros_like(x))

PARAMS = {"first": mx.array([0.5, -1.0]), "second": [mx.array([[0.3, 1.2, 0.1], [2.0, 3.0, -0.4]])]}


def loss(params, function):
    return mx.sum(params["first"] ** 2) * mx.sum(function(params["second"][0]))


def test_a_right_rule_passes_and_says_how_well():
    report = check_grads(lambda params: loss(params, cube), PARAMS)
    assert isinstance(report, GradientCheck)
    assert report.passed
    assert report.dtype == "float64"
    assert [(one.order, one.path) for one in report.comparisons] == [
        (1, "['first']"), (1, "['second'][0]"), (2, "['first']"), (2, "['second'][0]"),
    ]  # fmt: skip
    for one in report.comparisons:
        assert abs(one.autodiff - one.difference) < 1e-9 * max(1, abs(one.autodiff))
    assert "4 comparisons, all passed" in str(report)


@pytest.mark.parametrize(
    ("function", "order", "entry"),
    [
        (wrong_everywhere, 1, None),
        (wrong_where_large, 1, (1, 1)),
        (nearly_right, 1, None),
        (forgetful, 1, None),
        (wrong_second, 2, None),
    ],
)
def test_a_wrong_rule_fails_and_names_leaf_and_entry(function, order, entry):
    with pytest.raises(GradientError) as caught:
        check_grads(lambda params: loss(params, function), PARAMS)
    failed = [one for one in caught.value.report.comparisons if not one.passed]
    assert {one.order for one in failed} <= {order, 2}
    first = next(one for one in failed if one.order == order)
    assert first.path == "['second'][0]"
    assert first.entry is not None
    row, column = first.entry
    truth = 1.25 * 3 * np.array(PARAMS["second"][0])[row, column] ** 2
    if order == 1:
        assert first.difference == pytest.approx(truth, rel=1e-8)
    if entry is not None:
        assert first.entry == entry
    assert re.search(r"FAILED +order \d, params\['second'\]\[0\], entry \[", str(caught.value))


def test_order_1_asks_nothing_of_the_second_derivative():
    assert check_grads(lambda params: loss(params, wrong_second), PARAMS, order=1).passed
    with pytest.raises(ValueError, match="order is 3"):
        check_grads(lambda params: loss(params, cube), PARAMS, order=3)


def test_one_wrong_entry_among_thousands_is_found():
    x = mx.random.uniform(0.0, 2.0, (60, 50), key=mx.random.key(0))
    x[17, 31] = 2.75
    with pytest.raises(GradientError) as caught:
        check_grads(lambda x: mx.sum(wrong_where_large(x)), x, order=1)
    assert caught.value.report.comparisons[0].entry == (17, 31)


MISTAKES_OF_MLX = {
    "a power of a complex number": lambda x: mx.sum(mx.imag((x + 1j) ** 2)),
    "abs of a complex number, twice": lambda x: mx.sum(mx.abs(x + 1j * x**2)),
    "rows assigned to twice": lambda x: mx.sum(assign_twice(x) ** 3),
}


def assign_twice(x):
    y = mx.zeros((2,), dtype=x.dtype)
    y[mx.array([0, 0])] = x[:2]
    return y


@pytest.mark.parametrize("name", MISTAKES_OF_MLX)
def test_it_finds_what_mlx_gets_wrong(name):
    try:
        check_grads(MISTAKES_OF_MLX[name], mx.array([0.5, 1.0, 1.5]))
    except GradientError:
        return
    pytest.skip("this version of MLX has it right")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64])
def test_parameters_of_any_dtype(dtype):
    x = mx.array([0.5, 1.5], dtype=dtype)
    assert check_grads(lambda x: mx.sum(cube(x)), x).passed
    with pytest.raises(GradientError):
        check_grads(lambda x: mx.sum(wrong_everywhere(x)), x)


def test_what_float64_cannot_do_is_done_in_float32():
    def mixed(x):
        return mx.sum(mx.tanh(mx.hadamard_transform(x)))

    x = mx.random.normal((2, 4), key=mx.random.key(0))
    assert check_grads(mixed, x).dtype == "float32"
    assert check_grads(mixed, x.astype(mx.float64)).dtype == "float32"
    with pytest.raises(GradientError):
        check_grads(lambda x: mixed(wrong_everywhere(x)), x)


def test_at_a_minimum_of_zero_on_a_plateau_and_along_a_line():
    zero = mx.zeros(2)
    for flat in (
        lambda x: mx.sum(x**2),
        lambda x: mx.sum(x**4),
        lambda x: mx.sum(0 * x) + 3,
        lambda x: 2 * x[0] - x[1],
        lambda x: mx.sum(mx.exp(x)),
    ):
        assert check_grads(flat, zero).passed


def test_domains_scales_and_kinks():
    assert check_grads(lambda x: mx.sum(mx.log(x)), mx.array([1e-3, 2.0])).passed
    assert check_grads(lambda x: mx.sum(mx.sqrt(x)), mx.array([4e6, 9e6])).passed
    assert check_grads(lambda x: 1e20 * mx.sum(x**2), mx.array([1.0, 2.0])).passed
    weights = mx.random.normal((20, 30), key=mx.random.key(0))
    data = mx.random.normal((50, 20), key=mx.random.key(1))
    relu = check_grads(lambda w, X: mx.mean(mx.maximum(X @ w, 0) ** 2), weights, data)
    assert relu.passed


def test_noise_is_measured_and_hopeless_noise_is_told():
    # A captured mx.sin has seven digits in float64: the differences allow for that, no more.
    sin = mx.sin
    report = check_grads(lambda x: mx.sum(sin(x)), mx.array([0.5, 1.0]))
    assert all(1e-5 < one.allowed < 1e-2 for one in report.comparisons)
    report = check_grads(lambda x: mx.sum(mx.sin(x)), mx.array([0.5, 1.0]))
    assert all(one.allowed < 1e-6 for one in report.comparisons)
    with pytest.raises(GradientError, match="UNCLEAR"):
        check_grads(lambda x: mx.sum(x**2) + 0.01 * mx.round(mx.sum(x) * 1e6 % 7), mx.ones(2))


def test_random_operations_see_one_draw_and_data_may_come_from_numpy():
    mx.random.seed(1)
    before = mx.random.state[0].tolist()  # pyright: ignore[reportIndexIssue]

    def noisy(w, X):
        return mx.sum((X * mx.random.normal(X.shape)) @ w) ** 2

    assert check_grads(noisy, mx.array([1.0, 2.0]), np.ones((3, 2))).passed
    assert mx.random.state[0].tolist() == before  # pyright: ignore[reportIndexIssue]


def test_guards_are_those_of_value_and_grad():
    with pytest.raises(mo.TapeError):
        check_grads(lambda x: mx.array(x[0].item()), mx.ones(2))
    with pytest.raises(TypeError, match="int32"):
        check_grads(lambda x: mx.sum(x), mx.array([1, 2]))
    with pytest.raises(ValueError, match="scalar"):
        check_grads(lambda x: x, mx.ones(2))
    branch = check_grads(
        lambda x: mx.sum(x**2) if x[0] > 0 else mx.sum(x), mx.ones(2), compile=False
    )
    assert branch.passed


@pytest.mark.parametrize(
    ("function", "slope", "digits"),
    [
        (np.exp, 1.0, 1e-12),
        (lambda t: np.sin(40 * t), 40.0, 1e-9),
        (lambda t: np.log(0.01 + t) if t > -0.01 else np.nan, 100.0, 1e-9),
        (lambda t: abs(t + 1e-4), 1.0, 1e-9),
        (lambda t: np.float64(np.float32(np.exp(np.float32(t)))), 1.0, 1e-5),
        (lambda t: 1e9 + t**2 + t, 1.0, 1e-5),
    ],
)
def test_a_difference_knows_its_error(function, slope, digits):
    found = differentiate(lambda t: np.array([function(t)]), 2.0**-52)
    off = abs(found.value[0] - slope)
    assert off <= digits * slope
    assert off <= 10 * found.error[0] + 1e-14
    assert found.error[0] <= 1e-3 * slope

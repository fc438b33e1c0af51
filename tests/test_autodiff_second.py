"""hvp and hessian: known answers, trees, transformations; and the guards of all derivatives."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt._objective import Objective
from mlxopt._tree import count, leaves, ravel, structure
from mlxopt.autodiff import hessian, hvp, jacobian, per_example_grad
from mlxopt.losses import logistic, sigmoid


class Line(NamedTuple):
    w: Any
    b: Any


TREES = {
    "array": mx.array([1.0, 2.0]),
    "matrix": mx.array([[1.0, 2.0], [3.0, 4.0]]),
    "list": [mx.array([1.0, 2.0]), mx.array(3.0)],
    "tuple": (mx.array([1.0, 2.0]), (mx.array(3.0),)),
    "dict": {"b": mx.array(3.0), "a": {"c": mx.array([[1.0, 2.0]])}},
    "namedtuple": Line(mx.array([1.0, 2.0]), mx.array(3.0)),
}


def array64(values):
    return mx.array(np.asarray(values, dtype=np.float64), dtype=mx.float64)


def square_of_sum_of_squares(params):
    """½ s² with s = ½ Σ x²: gradient s x, Hessian s I + x xᵀ, exact in small numbers."""
    return 0.5 * (0.5 * sum((mx.sum(leaf**2) for leaf in leaves(params)), mx.array(0.0))) ** 2


def its_hessian(params):
    x = np.array(ravel(params, mx.float32))
    return 0.5 * (x @ x) * np.eye(len(x)) + np.outer(x, x)


@pytest.mark.parametrize("name", TREES)
def test_products_and_hessians_of_any_tree(name):
    params = TREES[name]
    expected = its_hessian(params)
    flat = hessian(square_of_sum_of_squares, flat=True)(params)
    np.testing.assert_array_equal(np.array(flat), expected)

    product = hvp(square_of_sum_of_squares)(params, params)
    assert structure(product) == structure(params)
    x = np.array(ravel(params, mx.float32))
    np.testing.assert_array_equal(np.array(ravel(product, mx.float32)), expected @ x)

    tree = hessian(square_of_sum_of_squares)(params)
    top = 0
    for row, band in zip(leaves(params), _bands(tree, params), strict=True):
        assert structure(band) == structure(params)
        left = 0
        for column, block in zip(leaves(params), leaves(band), strict=True):
            assert block.shape == row.shape + column.shape
            piece = expected[top : top + row.size, left : left + column.size]
            np.testing.assert_array_equal(np.array(block).reshape(piece.shape), piece)
            left += column.size
        top += row.size


def _bands(tree, like):
    """The trees that stand where `like` has leaves."""
    if isinstance(like, dict):
        return [band for key in like for band in _bands(tree[key], like[key])]
    if isinstance(like, (list, tuple)):
        return [band for one, two in zip(tree, like, strict=True) for band in _bands(one, two)]
    return [tree]


def test_a_vector_may_hold_its_keys_in_another_order():
    params = {"a": mx.array(2.0), "b": mx.array(3.0)}

    def loss(params):
        return params["a"] ** 2 * params["b"]

    found = hvp(loss)(params, {"b": mx.array(0.0), "a": mx.array(1.0)})
    assert (found["a"].item(), found["b"].item()) == (6, 4)


@pytest.mark.parametrize(
    ("vector", "error", "words"),
    [
        ({"a": mx.zeros(2)}, ValueError, ["a dict with the keys ['a']", "['a', 'b']"]),
        ([mx.zeros(2), mx.zeros(())], ValueError, ["a list of 2", "a dict"]),
        (mx.zeros(3), ValueError, ["shape (3,)", "a dict"]),
        ({"a": mx.zeros(3), "b": mx.zeros(())}, ValueError, ["vector['a']", "(3,)", "(2,)"]),
        ({"a": mx.zeros(2), "b": mx.zeros(1)}, ValueError, ["vector['b']", "(1,)", "()"]),
        ({"a": np.zeros(3), "b": mx.zeros(())}, ValueError, ["vector['a']", "(3,)", "(2,)"]),
        ({"a": mx.zeros(2) + 1j, "b": mx.zeros(())}, TypeError, ["vector['a']", "complex64"]),
    ],
)
def test_vectors_that_are_not_like_the_parameters(vector, error, words):
    params = {"a": mx.array([1.0, 2.0]), "b": mx.array(3.0)}
    with pytest.raises(error) as caught:
        hvp(square_of_sum_of_squares)(params, vector)
    for word in words:
        assert word in str(caught.value)


def test_the_hessian_of_a_logistic_regression_is_known():
    random = np.random.default_rng(0)
    X, y, w = random.normal(size=(30, 4)), random.integers(0, 2, 30), random.normal(size=4)

    def loss(w, X, y):
        return mx.mean(logistic(X @ w, y))

    with mx.stream(mx.cpu):
        found = hessian(loss)(array64(w), array64(X), mx.array(y))
        p = np.array(sigmoid(array64(X @ w)))
        expected = X.T @ (X * (p * (1 - p) / 30)[:, None])
        # Two ways of summing 30 terms; entries are about 0.1.
        np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=1e-15)
        at_zero = hessian(loss)(array64(np.zeros(4)), array64(X), mx.array(y))
        np.testing.assert_allclose(np.array(at_zero), X.T @ X / 120, rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_blocks_of_rows_leave_no_seam(size):
    x = mx.arange(1, size + 1).astype(mx.float32) / size
    found = hessian(lambda x: mx.sum(x) ** 2 * 0.5 + mx.sum(x**3) / 6)(x)
    np.testing.assert_allclose(np.array(found), 1 + np.diag(np.array(x)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_sixteen_bit_parameters(dtype):
    params = mx.full((3000,), 10.0, dtype=dtype)
    product = hvp(lambda w: mx.mean(w.astype(mx.float32) ** 2) * 1500)(params, params)
    assert product.dtype == dtype
    assert product.tolist() == [10.0] * 3000  # their sum of squares is beyond float16
    assert hessian(lambda w: mx.sum(w**2))(params[:2]).dtype == dtype
    assert hessian(lambda w: mx.sum(w**2), flat=True)(params[:2]).dtype == mx.float32


def assign(w):
    z = w * 1.0
    z[0] = 1.0
    return z


def test_where_the_batching_of_mlx_is_wrong_the_hessian_is_right():
    # In MLX 0.32 vmap assigns in its first row alone, so rows from the second on would be wrong.
    expected = np.full((3, 3), 9.0)
    expected[0] = expected[:, 0] = 0
    w = mx.array([0.1, 0.2, 0.3])
    derivative = hessian(lambda w: mx.sum(assign(w)) ** 3)
    np.testing.assert_allclose(np.array(derivative(w)), expected, rtol=1e-6)
    np.testing.assert_allclose(np.array(mx.compile(derivative)(w)), expected, rtol=1e-6)
    # Nor may a caller that differentiates further see anything else.
    twice = mx.grad(lambda w: mx.sum(derivative(w)))(w)
    np.testing.assert_allclose(np.array(twice), [0, 24, 24], rtol=1e-6)  # 6 s, four times over

    def rows(w):
        return mx.outer(assign(w), mx.arange(1.0, 12.0)).reshape(-1)

    tall = np.zeros((3, 11, 3))
    tall[1, :, 1] = tall[2, :, 2] = np.arange(1.0, 12.0)
    np.testing.assert_allclose(np.array(jacobian(rows)(w)), tall.reshape(33, 3))
    np.testing.assert_allclose(np.array(jacobian(assign)(w)), np.diag([0.0, 1, 1]))


def test_the_objective_of_the_optimizers_has_the_right_hessian_too():
    w = mx.array([0.1, 0.2, 0.3])
    for compile in (True, False):
        objective = Objective(lambda w, power: mx.sum(assign(w)) ** power, (3,), compile=compile)
        expected = np.full((3, 3), 9.0)
        expected[0] = expected[:, 0] = 0
        np.testing.assert_allclose(np.array(objective.hessian(w)), expected, rtol=1e-6)
        np.testing.assert_allclose(np.array(objective.hvp(w, w)), [0, 4.5, 4.5], rtol=1e-6)


def test_all_rows_see_one_draw_and_the_generator_is_left_alone():
    def loss(w):
        return 0.5 * mx.sum((w * mx.random.normal(w.shape)) ** 2)

    mx.random.seed(3)
    mask = np.array(mx.random.normal((100,)))
    mx.random.seed(3)
    found = hessian(loss)(mx.ones(100))
    np.testing.assert_allclose(np.array(found), np.diag(mask**2), rtol=1e-6)
    rows = jacobian(lambda w: w * mx.random.normal(w.shape))(mx.ones(100))
    np.testing.assert_allclose(np.array(rows), np.diag(mask), rtol=1e-6)
    np.testing.assert_array_equal(np.array(mx.random.normal((100,))), mask)


def test_a_rebound_global_is_seen():
    scale = mx.array(1.0)
    derivative = hessian(lambda w: scale * mx.sum(w**2))
    assert derivative(mx.array([1.0])).tolist() == [[2]]
    scale = mx.array(7.0)
    assert derivative(mx.array([1.0])).tolist() == [[14]]


def test_they_compose_with_each_other_and_with_mlx():
    def loss(w, x):
        return mx.sum(mx.sin(w * x)) * mx.sum(w)

    w, x = mx.array([0.5, 1.0, -0.3]), mx.array([1.0, 2.0, 0.7])
    expected = np.array(hessian(loss)(w, x))
    np.testing.assert_allclose(np.array(jacobian(mx.grad(loss))(w, x)), expected, rtol=1e-5)
    np.testing.assert_allclose(np.array(jacobian(mo.grad(loss))(w, x)), expected, rtol=1e-5)
    many = mx.vmap(hessian(loss), in_axes=(0, None))(mx.stack([w, 2 * w]), x)
    np.testing.assert_allclose(np.array(many[0]), expected, rtol=1e-5)
    np.testing.assert_allclose(np.array(many[1]), np.array(hessian(loss)(2 * w, x)), rtol=1e-5)
    trace = mx.grad(lambda w: mx.trace(hessian(loss)(w, x)))(w)
    step = 1e-2 * np.eye(3)
    for i in range(3):
        up, down = (
            np.trace(np.array(hessian(loss)(w + sign * mx.array(step[i].astype(np.float32)), x)))
            for sign in (1, -1)
        )
        assert trace[i].item() == pytest.approx((up - down) / 2e-2, abs=2e-3)  # float32, step²


def test_a_newton_step_inside_a_compiled_function():
    @mx.compile
    def step(w, X, y):
        def loss(w, X, y):
            return mx.mean((X @ w - y) ** 2)

        curvature = hessian(loss)(w, X, y)
        return hvp(loss)(w, mo.grad(loss)(w, X, y), X, y), curvature

    X = mx.random.normal((20, 3), key=mx.random.key(0))
    y, w = X @ mx.array([1.0, 2.0, 3.0]), mx.zeros(3)
    product, curvature = step(w, X, y)
    expected = np.array(X).T @ np.array(X) / 10
    np.testing.assert_allclose(np.array(curvature), expected, rtol=1e-5, atol=1e-5)
    slope = -np.array(X).T @ np.array(y) / 10
    np.testing.assert_allclose(np.array(product), expected @ slope, rtol=1e-4)


DERIVATIVES = {
    "hvp": lambda loss, **options: lambda w: hvp(loss, **options)(w, w),
    "hessian": lambda loss, **options: hessian(loss, **options),
    "jacobian": lambda loss, **options: jacobian(loss, **options),
    "per_example_grad": lambda loss, **options: (
        lambda w: per_example_grad(lambda w, X: loss(w), **options)(w, mx.zeros((3, 1)))
    ),
}


def reading(w):
    return mx.sum(w**2) * w[0].item()


def branching(w):
    return mx.sum(w**2) if w[0] > 0 else -mx.sum(w**2)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_guards_are_those_of_value_and_grad(name):
    make = DERIVATIVES[name]
    with pytest.raises(mo.TapeError, match=rf"line {reading.__code__.co_firstlineno + 1} "):
        make(reading)(mx.array([1.0, 2.0]))
    found = make(branching, compile=False)(mx.array([-1.0, 2.0]))
    expected = {"hvp": [2, -4], "hessian": [[-2, 0], [0, -2]], "jacobian": [2, -4]}
    assert found.tolist() == expected.get(name, [[2, -4]] * 3)
    for params, error, word in (
        (mx.array([1, 2]), TypeError, "int32"),
        ({"a": "text"}, TypeError, "builtins.str"),
        ({}, ValueError, "no arrays"),
    ):
        with pytest.raises(error, match=word):
            make(lambda w: mx.array(0.0))(params)
    with pytest.raises(TypeError, match="function"):
        make(3.0)(mx.ones(2)) if name != "per_example_grad" else per_example_grad(3.0)  # pyright: ignore
    with pytest.raises(KeyError, match="mine"):
        make(raising)(mx.ones(2))
    if name != "jacobian":
        with pytest.raises(ValueError, match=r"shape \(2,\)"):
            make(lambda w: 2 * w)(mx.ones(2))


def raising(w):
    raise KeyError("mine")


def test_an_output_that_ignores_the_parameters_has_derivative_zero():
    assert jacobian(lambda w: mx.ones(2))(mx.ones(3)).tolist() == [[0, 0, 0]] * 2
    assert jacobian(lambda w: mx.ones(7))(mx.ones(3)).tolist() == [[0, 0, 0]] * 7
    assert hessian(lambda w: mx.sum(w) * 2)(mx.ones(2)).tolist() == [[0, 0], [0, 0]]
    assert count(hvp(lambda w: mx.array(1.0))(mx.ones(2), mx.ones(2))) == 2

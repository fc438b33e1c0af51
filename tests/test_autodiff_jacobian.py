"""jacobian and per_example_grad: known answers, trees, shapes."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from mlxopt.autodiff import _jacobian, hvp, jacobian, per_example_grad


class Line(NamedTuple):
    w: Any
    b: Any


def test_the_jacobian_has_the_structure_of_output_and_parameters():
    params = {"w": mx.array([[1.0, 2.0, 3.0]]), "b": mx.array(4.0)}

    def function(params, x):
        return Line(params["w"] * x, params["b"] ** 2 * mx.ones(2))

    found = jacobian(function)(params, mx.array(10.0))
    assert type(found) is Line
    assert list(found.w) == list(found.b) == ["w", "b"]
    assert {key: leaf.shape for key, leaf in found.w.items()} == {"w": (1, 3, 1, 3), "b": (1, 3)}
    assert {key: leaf.shape for key, leaf in found.b.items()} == {"w": (2, 1, 3), "b": (2,)}
    np.testing.assert_array_equal(np.array(found.w["w"]).reshape(3, 3), 10 * np.eye(3))
    assert found.b["b"].tolist() == [8, 8]
    flat = jacobian(function, flat=True)(params, mx.array(10.0))
    expected = np.zeros((5, 4))
    expected[:3, :3] = 10 * np.eye(3)
    expected[3:, 3] = 8
    np.testing.assert_array_equal(np.array(flat), expected)


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 7, 150])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_jacobians_of_every_shape(outputs, dtype):
    random = np.random.default_rng(outputs)
    with mx.stream(mx.cpu):
        A = mx.array(random.normal(size=(outputs, 3)), dtype=dtype)
        x = mx.array(random.normal(size=3), dtype=dtype)
        found = jacobian(lambda x, A: mx.tanh(A @ x))(x, A)
        assert found.dtype == dtype
        slope = 1 - np.tanh(np.array(A) @ np.array(x)) ** 2
        tolerance = 1e-14 if dtype == mx.float64 else 1e-5
        np.testing.assert_allclose(
            np.array(found), slope[:, None] * np.array(A), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(("outputs", "expected"), [(3, "_pull"), (4, "_push")])
def test_the_mode_goes_by_the_shape(monkeypatch, outputs, expected):
    seen = []
    for name in ("_pull", "_push"):
        make = getattr(_jacobian, name)
        monkeypatch.setattr(
            _jacobian, name, lambda *args, n=name, make=make: seen.append(n) or make(*args)
        )
    jacobian(lambda x: mx.sum(x) * mx.ones(outputs))(mx.ones(3))
    assert seen[0] == expected


def test_both_modes_keep_to_the_derivative_that_a_custom_function_brings():
    def rounded(x):
        return mx.round(x)

    straight_through: Any = mx.custom_function(rounded)

    @straight_through.vjp
    def _(primal, cotangent, output):
        return cotangent

    x = mx.array([0.3, 1.6])
    assert jacobian(straight_through)(x).tolist() == [[1, 0], [0, 1]]
    tall = jacobian(lambda x: mx.concatenate([straight_through(x)] * 3))(x)
    assert tall.tolist() == [[1, 0], [0, 1]] * 3
    # So does a product: forward over reverse would differentiate the body within the rule.
    assert hvp(lambda x: mx.sum(straight_through(x) ** 2))(x, mx.ones(2)).tolist() == [2, 2]


def example_loss(params, X, y, l2: Any = 0.0, *, power=2):
    residual = mx.tanh(X @ params["w"])[:, 0] + params["b"] - y
    return mx.mean(mx.abs(residual) ** power) + 0.5 * l2 * mx.sum(params["w"] ** 2)


def examples():
    random = np.random.default_rng(0)
    params = {"w": mx.array(random.normal(size=(3, 1)).astype(np.float32)), "b": mx.array(0.1)}
    X = mx.array(random.normal(size=(10, 3)).astype(np.float32))
    return params, X, mx.array(random.normal(size=10).astype(np.float32))


@pytest.mark.parametrize("compiled", [False, True])
def test_one_gradient_for_each_example(compiled):
    params, X, y = examples()
    l2 = mx.array(0.3)
    derivative = per_example_grad(example_loss)
    each = (mx.compile(derivative) if compiled else derivative)(params, X, y, l2)
    assert (each["w"].shape, each["b"].shape) == ((10, 3, 1), (10,))
    for i in range(10):
        single = mx.grad(example_loss)(params, X[i : i + 1], y[i : i + 1], l2)
        np.testing.assert_allclose(np.array(each["w"][i]), np.array(single["w"]), rtol=1e-5)
        np.testing.assert_allclose(each["b"][i].item(), single["b"].item(), rtol=1e-5)
    whole = mx.grad(example_loss)(params, X, y, l2)
    np.testing.assert_allclose(np.array(mx.mean(each["w"], axis=0)), whole["w"], rtol=1e-5)


def test_what_examples_share_goes_by_keyword_or_is_a_number():
    params, X, y = examples()
    each = per_example_grad(example_loss)(params, X, y, 0.5, power=4)
    whole = mx.grad(example_loss)(params, X, y, 0.5, power=4)
    np.testing.assert_allclose(np.array(mx.mean(each["w"], axis=0)), whole["w"], rtol=1e-5)
    shared = per_example_grad(lambda p, X, *, prior: mx.mean(X @ (p - prior)))
    assert shared(mx.zeros(3), X, prior=mx.ones(3)).tolist() == X.tolist()


def test_examples_that_are_assigned_to():
    # vmap would assign in the first example alone.
    def loss(w, X):
        Z = X * 1.0
        Z[:, 0] = 1.0
        return mx.sum(Z @ w)

    X = mx.arange(12.0).reshape(4, 3)
    expected = np.column_stack([np.ones(4), np.array(X)[:, 1:]]).tolist()
    assert per_example_grad(loss)(mx.ones(3), X).tolist() == expected
    assert mx.compile(per_example_grad(loss))(mx.ones(3), X).tolist() == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((), ["no array"]),
        ((1.0, mx.array(2.0)), ["no array"]),
        ((mx.zeros((3, 2)), mx.zeros(4)), ["arrays of 3 and 4 rows", "by keyword"]),
        ((mx.zeros((0, 2)),), ["0 rows"]),
    ],
)
def test_data_without_examples(data, words):
    with pytest.raises(ValueError, match="data of") as caught:
        per_example_grad(lambda w, *data: mx.sum(w))(mx.ones(2), *data)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, ["NoneType"]),
        (3.0, ["float", "no derivative"]),
        ((), ["()", "expected an mx.array"]),
        ({"a": mx.array(1), "b": mx.array(1.0)}, ["['a']", "int32"]),
        (mx.array([1j]), ["complex64"]),
    ],
)
def test_functions_that_return_the_wrong_thing(result, words):
    with pytest.raises(TypeError) as caught:
        jacobian(lambda w: result)(mx.ones(2))
    for word in words:
        assert word in str(caught.value)

"""value_and_grad and grad: MLX's own answers, and guards where those would be silently wrong."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt._tree import leaves, structure


class Line(NamedTuple):
    w: mx.array
    b: mx.array


TREES = {
    "array": mx.array([1.0, 2.0]),
    "list": [mx.array([1.0, 2.0]), mx.array(3.0)],
    "tuple": (mx.array([1.0, 2.0]), (mx.array(3.0),)),
    "dict": {"b": mx.array(3.0), "a": {"c": mx.array([[1.0, 2.0]])}},
    "namedtuple": Line(mx.array([1.0, 2.0]), mx.array(3.0)),
}


def sum_of_cubes(params):
    return sum((mx.sum(leaf**3) for leaf in leaves(params)), mx.array(0.0))


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("compile", [True, False])
def test_gradient_over_any_tree_has_its_structure_and_the_known_values(name, compile):
    params = TREES[name]
    value, gradient = mo.value_and_grad(sum_of_cubes, compile=compile)(params)
    assert type(gradient) is type(params)
    assert structure(gradient) == structure(params)
    for leaf, slope in zip(leaves(params), leaves(gradient), strict=True):
        np.testing.assert_array_equal(np.array(slope), 3 * np.array(leaf) ** 2)  # small integers
    assert value.item() == sum(float(mx.sum(leaf**3)) for leaf in leaves(params))


def test_argnums_and_aux_are_those_of_mlx():
    def loss(a, b, c):
        return mx.sum(a * b) + c, {"aux": a}

    a, b, c = mx.array([1.0, 2.0]), mx.array([3.0, 4.0]), mx.array(5.0)
    for argnums in (0, 1, [0, 2], (1, 2)):
        ours = mo.value_and_grad(loss, argnums=argnums, has_aux=True)(a, b, c)
        theirs = mx.value_and_grad(loss, argnums=argnums)(a, b, c)
        assert ours[0][0].item() == theirs[0][0].item()
        assert str(ours[1]) == str(theirs[1])
    gradient, aux = mo.grad(loss, has_aux=True)(a, b, c)
    assert gradient.tolist() == [3, 4]
    assert aux["aux"].tolist() == [1, 2]


def test_several_aux_values_come_back_one_by_one():
    def loss(w):
        return mx.sum(w**2), w + 1, "two"

    (value, first, second), gradient = mo.value_and_grad(loss, has_aux=True)(mx.array([3.0]))
    assert (value.item(), first.tolist(), second, gradient.tolist()) == (9, [4], "two", [6])
    gradient, first, second = mo.grad(loss, has_aux=True)(mx.array([3.0]))
    assert (gradient.tolist(), first.tolist(), second) == ([6], [4], "two")


def test_keyword_arguments_reach_the_loss():
    assert mo.grad(lambda w, *, power: mx.sum(w**power))(mx.array([2.0]), power=2).tolist() == [4]


def item_loss(w):
    return mx.array(w[0].item() ** 2)


def float_loss(w):
    return w[0] * float(w[1])


def numpy_loss(w):
    return mx.sum(w * np.array(w))


def branch_loss(w):
    return mx.sum(w) if w[0] > 0 else -mx.sum(w)


def list_loss(w):
    return mx.array(sum(w.tolist()))


@pytest.mark.parametrize("loss", [item_loss, float_loss, numpy_loss, branch_loss, list_loss])
def test_a_read_back_raises_and_names_file_and_line(loss):
    line = loss.__code__.co_firstlineno + 1
    where = rf"{__file__}, line {line}"
    for call in (
        lambda: mo.value_and_grad(loss)(mx.array([1.0, 2.0])),
        lambda: mo.grad(loss)(mx.array([1.0, 2.0])),
        lambda: mo.minimize(loss, mx.array([1.0, 2.0]), mo.SGD(0.1)),
        lambda: mo.train(lambda w, x: loss(w), mx.array([1.0, 2.0]), mo.SGD(0.1), [mx.zeros(1)]),
    ):
        with pytest.raises(mo.TapeError) as caught:
            call()
        assert where in str(caught.value)
        assert "compile=False; minimize, train and value_and_grad all take it" in str(caught.value)
        assert "may be silently wrong" in str(caught.value)


def test_compile_false_lets_a_loss_branch_on_values():
    assert mo.grad(branch_loss, compile=False)(mx.array([-1.0, 2.0])).tolist() == [-1, -1]
    result = mo.minimize(
        lambda w: mx.sum(w**2) if w[0] > 1 else mx.sum(w**2 + 0 * w),
        mx.array([3.0]),
        mo.SGD(0.4),
        compile=False,
    )
    assert result.converged


def test_reading_data_back_is_no_tape_break_in_value_and_grad():
    def loss(w, n):
        return mx.sum(w) * int(n.item())

    assert mo.grad(loss)(mx.array([1.0]), mx.array(3)).tolist() == [3]


def test_a_number_that_switches_the_loss_is_proven_by_its_type_alone():
    def loss(w, power):
        return mx.sum(w**2) if power == 2 else mx.array(w[0].item() ** 3)

    derivative = mo.grad(loss)
    assert derivative(mx.array([1.0]), 2).tolist() == [2]
    assert derivative(mx.array([1.0]), 3).tolist() == [0]  # as the documentation says
    with pytest.raises(mo.TapeError):
        mo.grad(loss)(mx.array([1.0]), 3)


def test_messages_know_a_callable_that_has_no_name():
    class Mine:
        def __call__(self, w):
            return mx.array(w.tolist()[0])

    with pytest.raises(mo.TapeError, match="Mine reads an array back"):
        mo.grad(Mine())(mx.array([1.0]))


def test_a_rebound_global_is_seen():
    # A compiled derivative would have frozen the first array: MLX's own does not, nor does ours.
    scale = mx.array(1.0)

    def loss(w):
        return mx.sum(scale * w)

    derivative = mo.grad(loss)
    assert derivative(mx.array([1.0])).tolist() == [1]
    scale = mx.array(7.0)
    assert derivative(mx.array([1.0])).tolist() == [7]


def test_it_composes_with_mlx_transformations():
    def loss(w, x):
        return mx.sum(mx.exp(w * x))

    w, x = mx.array([0.5, 1.0]), mx.array([1.0, 2.0])
    plain = mo.grad(loss)(w, x).tolist()
    assert mx.compile(mo.grad(loss))(w, x).tolist() == pytest.approx(plain, rel=1e-6)
    rows = mx.vmap(mo.grad(loss), in_axes=(0, None))(mx.stack([w, w]), x)
    assert rows[1].tolist() == pytest.approx(plain, rel=1e-6)
    twice = mo.grad(lambda w: mx.sum(mo.grad(loss)(w, x)))(w)
    assert twice.tolist() == pytest.approx((np.array(x) * np.array(plain)).tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        (mx.array([1, 2]), TypeError, ["int32", "float32"]),
        (mx.array([True]), TypeError, ["bool", "float32"]),
        (mx.array([1 + 1j]), TypeError, ["complex64", "real and an imaginary"]),
        ([3.0, 1.0], TypeError, ["list of numbers", "mx.array([3.0, 1.0]"]),
        ({"a": "text"}, TypeError, ["params['a'] is builtins.str", "mx.array"]),
        (np.array([True]), TypeError, ["bool", "float32"]),
        (np.array([1 + 1j]), TypeError, ["complex128", "real and the imaginary"]),
        (np.ma.array([1.0, 2.0], mask=[False, True]), TypeError, ["a masked array", "1 of its 2"]),
        ({"a": mx.array([1.0]), "b": {"c": mx.array([1])}}, TypeError, ["params['b']['c']"]),
        ({}, ValueError, ["no arrays"]),
        (mx.zeros((0,)), ValueError, ["empty"]),
        (None, TypeError, ["NoneType", "mx.array"]),
    ],
)
def test_parameters_that_cannot_be_differentiated(params, error, words):
    def loss(p):
        return mx.array(0.0)

    for call in (
        lambda: mo.grad(loss)(params),
        lambda: mo.minimize(loss, params, mo.SGD()),
        lambda: mo.train(loss, params, mo.SGD(), [mx.zeros(1)]),
    ):
        with pytest.raises(error) as caught:
            call()
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (lambda w: w * 2, ValueError, ["shape (2,)", "mx.mean"]),
        (lambda w: mx.sum(w, keepdims=True), ValueError, ["shape (1,)", "scalar"]),
        (lambda w: 3.0, TypeError, ["float", "mx.array"]),
        (lambda w: None, TypeError, ["None", "return missing"]),
        (lambda w: np.float64(3.0), TypeError, ["numpy.float64", "mx.array"]),
        (lambda w: mx.sum(w > 0), TypeError, ["int32", "smooth"]),
        (lambda w: mx.all(w > 0), TypeError, ["bool"]),
        (lambda w: mx.sum(w.astype(mx.complex64)), TypeError, ["complex64", "mx.real"]),
    ],
)
@pytest.mark.parametrize("compile", [True, False])
def test_losses_that_return_the_wrong_thing(loss, error, words, compile):
    w = mx.array([1.0, 2.0])
    for call in (
        lambda: mo.value_and_grad(loss, compile=compile)(w),
        lambda: mo.minimize(loss, w, mo.LBFGS(), compile=compile),
    ):
        with pytest.raises(error) as caught:
            call()
        for word in words:
            assert word in str(caught.value)


def test_aux_must_be_a_tuple():
    with pytest.raises(TypeError, match="has_aux"):
        mo.grad(lambda w: mx.sum(w), has_aux=True)(mx.array([1.0]))


def test_a_loss_that_cannot_be_called():
    with pytest.raises(TypeError, match="function"):
        mo.grad(mx.array(1.0))  # pyright: ignore


def test_an_error_inside_the_loss_passes_through():
    def loss(w):
        raise KeyError("mine")

    for call in (
        lambda: mo.grad(loss)(mx.array([1.0])),
        lambda: mo.minimize(loss, mx.array([1.0]), mo.SGD()),
    ):
        with pytest.raises(KeyError, match="mine"):
            call()


def test_the_random_state_is_left_alone_by_the_check():
    mx.random.seed(4)
    expected = mx.random.normal((3,)).tolist()
    mx.random.seed(4)
    derivative = mo.grad(lambda w: mx.sum(w * mx.random.normal((3,))))
    assert derivative(mx.zeros(3)).tolist() == expected

"""Results that are kept: pickled, copied, released from their data."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt._tree import leaves

X = np.linspace(0.0, 1.0, 12)
Y = 2.0 * X + 0.5 + 0.01 * np.sin(40 * X)
SLOPE, OFFSET = np.polyfit(X, Y, 1)


def residual(params, x, y):
    return params["w"][0] * x + params["b"] - y


def loss(params, x, y):
    return mx.mean(mx.square(residual(params, x, y)))


def start(*shape: int, dtype: mx.Dtype = mx.float32):
    with mx.stream(mx.cpu):
        return {"w": mx.zeros((*shape, 1), dtype=dtype), "b": mx.zeros(shape, dtype=dtype)}


def many(dtype=mx.float32, optimizer: Any = None, of: Any = loss):
    return mo.minimize_many(
        of, start(3, dtype=dtype), optimizer or mo.LBFGS(), X, Y, in_axes=(0, None, None)
    )


RESULTS: dict[str, Callable[[], Any]] = {
    "minimize": lambda: mo.minimize(loss, start(), mo.LBFGS(), X, Y),
    "finish": lambda: mo.minimize(loss, start(), mo.Newton(), X, Y, finish="float64"),
    "bfloat16": lambda: mo.minimize(
        loss, start(dtype=mx.bfloat16), mo.Adam(0.1), X, Y, tol=0, max_steps=200
    ),
    "least_squares": lambda: mo.least_squares(residual, start(dtype=mx.float64), X, Y),
    "train": lambda: mo.train(loss, start(), mo.Adam(0.1), mo.batches(X, Y, batch_size=6), 100),
    "minimize_many": many,
    "minimize_many, float64": lambda: many(mx.float64),
    "minimize_many, Levenberg": lambda: many(
        mx.float64, mo.LevenbergMarquardt(), lambda *args: residual(*args)
    ),
    "minimize_many, Adam": lambda: many(optimizer=mo.Adam(0.1)),
    "minimize_many, bounds": lambda: many(optimizer=mo.LBFGSB(lower=0.0)),
}
WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda result: pickle.loads(pickle.dumps(result)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def numbers(tree: Any) -> list[Any]:
    with mx.stream(mx.cpu):
        return [leaf.tolist() for leaf in leaves(tree)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RESULTS)
def test_a_result_can_be_pickled_and_copied(name, way):
    result = RESULTS[name]()
    kept = WAYS[way](result)
    assert type(kept) is type(result)
    assert numbers(kept.params) == numbers(result.params)
    dtypes = [leaf.dtype for leaf in leaves(result.params)]
    assert [leaf.dtype for leaf in leaves(kept.params)] == dtypes
    assert np.array_equal(kept.status, result.status)
    assert repr(kept) == repr(result)
    if isinstance(result, mo.ManyResult):
        assert len(kept) == 3
        one = kept[-1]
        assert repr(one) == repr(result[2])
        np.testing.assert_allclose(numbers(one.params)[0], SLOPE, rtol=1e-3)
        assert [each.value for each in kept] == result.value.tolist()
    else:
        one = kept
        assert kept.history.value.tolist() == result.history.value.tolist()
    with pytest.raises(ValueError, match=r"mo.certify\(loss, result.params"):
        one.certificate  # noqa: B018


def test_a_problem_of_many_has_a_certificate_until_it_is_released():
    result = many()
    assert result[1].certificate.curvature == pytest.approx(0.155, rel=0.01)
    result.release()
    with pytest.raises(ValueError, match="released"):
        result[1].certificate  # noqa: B018


class Held(np.ndarray):
    """Data that can be referred to weakly."""


@pytest.mark.parametrize("name", ["minimize", "minimize_many"])
def test_a_released_result_lets_go_of_the_data(name):
    data = np.array(Y).view(Held)
    there = weakref.ref(data)
    if name == "minimize":
        result = mo.minimize(loss, start(), mo.LBFGS(), X, data)
    else:
        result = mo.minimize_many(loss, start(2), mo.LBFGS(), X, data, in_axes=(0, None, None))
    del data
    gc.collect()
    result.release()
    gc.collect()
    assert there() is None

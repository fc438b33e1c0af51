"""Keywords and bounds of SciPy and others in our calls."""

import inspect
import pickle
import traceback

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import Bounds

import mlxopt as mo

X = np.arange(5.0)
START = mx.zeros(2)


def loss(p, x):
    return mx.mean((p[0] + p[1] * x - 2 * x) ** 2)


def residual(p, x):
    return p[0] + p[1] * x - 2 * x


CASES = [
    (
        mo.minimize,
        {"args": (X,)},
        r"'args'. The data .* minimize\(loss, params, optimizer, \*data\)",
    ),
    (mo.minimize, {"fun": loss, "x0": START}, r"The function comes first: minimize\(loss"),
    (mo.minimize, {"x0": START}, r"The start comes second: minimize\(loss, params, optimizer"),
    (mo.minimize, {"method": "L-BFGS-B"}, r"mo.LBFGS\(\)"),
    (mo.minimize, {"bounds": [(0, 1)]}, "mo.LBFGSB"),
    (mo.minimize, {"jac": True}, "Derivatives are computed"),
    (mo.minimize, {"maxiter": 10}, "Write max_steps=1000"),
    (mo.minimize, {"max_iter": 10}, "Write max_steps=1000"),
    (mo.minimize, {"gtol": 1e-5}, "Write tol="),
    (mo.minimize, {"options": {}}, "keywords of their own"),
    (mo.minimize, {"constraints": ()}, "ProximalGradient"),
    (mo.minimize, {"lr": 0.1}, r"mo.SGD\(0.1\)"),
    (mo.minimize, {"batch_size": 32}, "mo.train"),
    (mo.minimize, {"max_step": 32}, "Did you mean max_steps="),
    (mo.minimize, {"call_back": print}, "Did you mean callback="),
    (mo.least_squares, {"args": (X,)}, r"least_squares\(residual, params, \*data\)"),
    (mo.least_squares, {"loss": "huber"}, 'robust="huber"'),
    (mo.least_squares, {"max_nfev": 10}, "max_steps"),
    (mo.least_squares, {"ftol": 1e-5}, "tol="),
    (mo.least_squares, {"sigma": X}, "/ sigma in a residual"),
    (mo.minimize_many, {"maxiter": 10}, "max_steps"),
    (mo.minimize_many, {"vmap": 0}, "in_axes="),
    (mo.train, {"max_epochs": 3}, "epochs=10"),
    (mo.train, {"lr": 0.1}, r"mo.SGD\(0.1\)"),
    (mo.train, {"shuffle": True}, "mo.batches"),
]


@pytest.mark.parametrize(("function", "given", "words"), CASES)
def test_keywords_of_others_are_told_ours(function, given, words):
    with pytest.raises(TypeError, match=words) as caught:
        function(**given)
    assert f"{function.__name__}() got an unexpected keyword argument" in str(caught.value)


@pytest.mark.parametrize("function", [mo.minimize, mo.least_squares, mo.minimize_many, mo.train])
def test_unknown_keywords_and_missing_arguments_read_as_in_python(function):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'\.$"):
        function(zzz=1)
    with pytest.raises(TypeError, match=r"missing \d required positional argument"):
        function()


@pytest.mark.parametrize("function", [mo.minimize, mo.least_squares, mo.minimize_many, mo.train])
def test_signatures_and_sources_are_the_functions_own(function):
    names = list(inspect.signature(function).parameters)
    assert names[1] == "params"
    assert ">>> import mlx.core as mx" in (inspect.getdoc(function) or "")
    assert f"def {function.__name__}(" in inspect.getsource(function)
    assert pickle.loads(pickle.dumps(function)) is function
    assert function.__globals__["__name__"] == function.__module__  # or doctest passes it over


def test_a_traceback_has_one_frame_more():
    def wrong(p):
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        mo.minimize(wrong, START, mo.LBFGS())
    names = [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert names[1:3] == ["call", "minimize"]


PAIRS = {
    "two": ([(0, 1), (0, None)], mx.array([0.5, 0.5]), r"\(\[0, 0\], \[1, None\]\)"),
    "three": ([(0, 1), (0, None), (-1, 1)], mx.zeros(3), r"\(\[0, 0, -1\], \[1, None, 1\]\)"),
    "one": ([(0, 1)], mx.zeros(1), r"\(\[0\], \[1\]\)"),
    "lists": ([[0, 1], [0, 1], [0, 1]], mx.zeros(3), r"\(\[0, 0, 0\], \[1, 1, 1\]\)"),
    "an object": (Bounds(0.0, 1.0), mx.zeros(2), r"\(bounds.lb, bounds.ub\)"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_bounds(name):
    bounds, start, words = PAIRS[name]
    with pytest.raises(TypeError, match=rf"expected \(lower, upper\).*bounds={words}"):
        mo.least_squares(lambda p: mx.concatenate([p - 2, p]), start, bounds=bounds)


def test_the_advice_on_bounds_holds():
    fit = mo.least_squares(residual, mx.array([0.5, 0.5]), X, bounds=([0, 0], [1, None]), tol=1e-4)
    np.testing.assert_allclose(np.array(fit.params), [0, 2], atol=1e-4)
    low, high = np.array([0.0, 0.0]), np.array([1.0, 1.5])
    fit = mo.least_squares(residual, mx.array([0.5, 0.5]), X, bounds=(low, high), tol=1e-4)
    exact = np.array([np.mean(0.5 * X), 1.5])  # the slope at its bound
    np.testing.assert_allclose(np.array(fit.params), exact, atol=1e-4)

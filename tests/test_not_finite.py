"""A start at which the loss is not finite: the error says where that comes from."""

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo

rng = np.random.default_rng(0)
X = rng.normal(size=(30, 2))
Y = X @ [1.5, -0.5] + 1
WEIGHTS = {"x": X, "names": (np.ones(30),)}


def fit(p, X, y):
    return mx.mean(mx.square(X @ p["w"] + p["b"] - y))


def start(w=(0.0, 0.0), b=0.0):
    return {"w": mx.array(w), "b": mx.array(b)}


def spoiled(array, *places, by=np.nan):
    array = array.copy()
    for place in places:
        array[place] = by
    return array


ENTRIES = {
    "minimize": lambda loss, p, *data: mo.minimize(loss, p, mo.LBFGS(), *data),
    "first order": lambda loss, p, *data: mo.minimize(loss, p, mo.Adam(0.1), *data),
    "Newton": lambda loss, p, *data: mo.minimize(loss, p, mo.Newton(), *data),
    "op by op": lambda loss, p, *data: mo.minimize(loss, p, mo.LBFGS(), *data, compile=False),
    "train": lambda loss, p, *data: mo.train(loss, p, mo.SGD(0.1), [data]),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("params", "data", "words"),
    [
        (start(), (spoiled(X, (17, 1)), Y), r"In the data X\[17, 1\] is nan: leave out"),
        (
            start(),
            (spoiled(X, (3, 0), (9, 0), (9, 1)), Y),
            r"X\[3, 0\] is nan, the first of 2 such",
        ),
        (start(), (X, spoiled(Y, 4, by=np.inf)), r"y\[4\] is inf"),
        (start(), (X, spoiled(Y, 4, 5, 29)), r"y\[4\] is nan, the first of 3 such entries"),
        (start(w=(0.0, np.nan)), (X, Y), r"params\['w'\]\[1\] is nan: start at finite numbers"),
        (start(b=np.inf), (X, spoiled(Y, 4)), r"params\['b'\] is inf: start"),
    ],
)
def test_numbers_that_are_not_finite_are_named(entry, params, data, words):
    with pytest.raises(ValueError, match=rf"the loss is (nan|inf) at the start.*{words}"):
        ENTRIES[entry](fit, params, *data)


def test_nested_data_are_named_by_their_path():
    def loss(p, batch, *others):
        return mx.mean(mx.square(batch["x"] @ p) * batch["names"][0]) * others[0]

    data = {"x": X, "names": (spoiled(np.ones(30), 7),)}
    with pytest.raises(ValueError, match=r"batch\['names'\]\[0\]\[7\] is nan"):
        mo.minimize(loss, mx.ones(2), mo.LBFGS(), data, mx.array(1.0))
    with pytest.raises(ValueError, match=r"data\[1\] is nan"):
        mo.minimize(loss, mx.ones(2), mo.LBFGS(), WEIGHTS, mx.array(np.nan))


def branch_not_taken(p, x):
    return mx.sum(mx.where(x * p["w"] > 0, mx.log(x * p["w"]), 0)) + p["b"] ** 2


def root_at_zero(p, x):
    return mx.sum(mx.sqrt(mx.abs(p["w"]))) + p["b"] ** 2


def norm_at_zero(p, x):
    return mx.sqrt(mx.sum(mx.square(p["w"]))) + p["b"] ** 2


def power_at_zero(p, x):
    return mx.sum(mx.power(p["w"], 0.5)) + p["b"] ** 2


def arc_at_one(p, x):
    return mx.sum(mx.arccos(p["w"] + 1)) + p["b"] ** 2


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "loss", [branch_not_taken, root_at_zero, norm_at_zero, power_at_zero, arc_at_one]
)
def test_a_gradient_that_is_not_finite_is_named_by_its_leaf(entry, loss):
    words = r"gradient is NaN or infinite at the start.*The gradient in params\['w'\]\[0\] is "
    with pytest.raises(ValueError, match=words + r".*mx\.log\(mx\.where\(x > 0, x, 1\)\)"):
        ENTRIES[entry](loss, start(b=1.0), mx.ones(2))


def test_the_cure_of_the_branch_works():
    def loss(p):
        x = mx.array([-1.0, 2.0]) * p
        return mx.square(mx.sum(mx.where(x > 0, mx.log(mx.where(x > 0, x, 1)), 0)) - 1)

    result = mo.minimize(loss, mx.array(1.0), mo.LBFGS())
    assert result.params.item() == pytest.approx(np.e / 2, rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p: mx.sum(mx.exp(p * 200)),
        lambda p: mx.sum(mx.square(p * 1e25)),
        lambda p: mx.log(mx.sum(mx.exp(p * 100))),
        lambda p: mx.sum(p * 1e30) ** 2,
        lambda p: mx.sum(mx.cosh(90 * p)),
    ],
)
def test_an_overflow_is_called_one(loss):
    with pytest.raises(ValueError, match=r"In float64 the loss is \d.*it overflows float32"):
        mo.minimize(loss, mx.ones(2), mo.LBFGS())
    with pytest.raises(ValueError, match=r"It overflows|Which operation"):
        mo.minimize(lambda p: loss(1e200 * p), mx.ones(2, mx.float64), mo.LBFGS())


@pytest.mark.parametrize(
    "function",
    [
        lambda p: mx.log(p - 1),
        lambda p: mx.sqrt(p - 3),
        lambda p: p / (p - p),
        lambda p: mx.arccosh(p - 2),
        lambda p: mx.array(np.nan) * p,
    ],
)
def test_otherwise_it_is_the_domain(function):
    p = mx.array([0.5, 0.7])
    for dtype in (mx.float32, mx.float64):
        with pytest.raises(
            ValueError, match=r"All arguments are finite\. (It .*\. )?Start inside the domain"
        ):
            mo.minimize(lambda p: mx.sum(function(p)), p.astype(dtype, stream=mx.cpu), mo.LBFGS())


def test_least_squares_names_the_residual():
    x = np.linspace(-1, 4, 6)

    def residual(p, x, y):
        return p[0] * mx.log(x + p[1]) - y

    with pytest.raises(ValueError, match=r"residual\[0\] is nan, the first of 2 such entries"):
        mo.least_squares(residual, mx.array([1.0, -0.5]), x, np.ones(6))
    with pytest.raises(ValueError, match=r"In the data y\[2\] is nan"):
        mo.least_squares(residual, mx.array([1.0, 2.0]), x, spoiled(np.ones(6), 2))
    with pytest.raises(ValueError, match=r"params\[1\] is nan"):
        mo.least_squares(residual, mx.array([1.0, np.nan]), x, np.ones(6))


def test_many_problems_name_the_data_of_the_first():
    y = np.full((3, 30), np.nan)
    with pytest.raises(ValueError, match=r"at the start.*y\[0\] is nan, the first of 30"):
        mo.minimize_many(fit, start(), mo.LBFGS(), X, y, in_axes=(None, None, 0))

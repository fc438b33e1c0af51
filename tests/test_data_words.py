"""What is said of data and losses that cannot be used."""

import datetime
import decimal

import mlx.core as mx
import numpy as np
import pytest
import scipy.sparse

import mlxopt as mo

T = np.arange(6.0)
HIDDEN = np.ma.array(T, mask=T == 3)
DATES = np.array("2020-01-01", dtype="datetime64[D]") + np.arange(6)


def loss(p, x, y):
    return mx.mean((p * x - y) ** 2)


DOORS = {
    "minimize": lambda x: mo.minimize(loss, mx.array(0.0), mo.LBFGS(), x, T),
    "least_squares": lambda x: mo.least_squares(lambda p, x, y: p * x - y, mx.array(0.0), x, T),
    "train": lambda x: mo.train(loss, mx.array(0.0), mo.SGD(0.1), [(x, T)]),
    "minimize_many": lambda x: mo.minimize_many(
        loss, mx.zeros(2), mo.LBFGS(), x, T, in_axes=(0, None, None)
    ),
    "certify": lambda x: mo.certify(loss, mx.array(0.0), x, T),
    "value_and_grad": lambda x: mo.value_and_grad(loss)(mx.array(0.0), x, T),
    "hessian": lambda x: mo.hessian(loss)(mx.array(0.0), x, T),
    "by name": lambda x: mo.grad(loss)(mx.array(0.0), x=x, y=T),
    "check_grads": lambda x: mo.check_grads(loss, mx.array(0.0), x, T),
    "covariance": lambda x: mo.inference.covariance(
        lambda p, x, y: (p * x - y) ** 2, mx.array(1.0), x, T
    ),
}
WORDS = {
    "dates": (DATES, r"datetime64\[D\].*Subtract the first date.*np.timedelta64\(1, 'D'\)"),
    "days": (DATES - DATES[0], r"timedelta64\[D\].*Divide by a unit: x / np.timedelta64"),
    "date objects": (
        np.array([datetime.date(2020, 1, d) for d in range(1, 7)], dtype=object),
        r"datetime.date\(2020, 1, 1\).*Subtract the first date",
    ),
    "complex numbers": (T + 1j, r"complex128.*x.real and x.imag"),
    "text": (np.array(list("abcdef")), "Encode text as numbers"),
    "text in objects": (np.array([*"abcde", 1], dtype=object), "'a'. Encode text as numbers"),
    "a missing entry": (np.array([1.0, None, 3, 4, 5, 6], dtype=object), "None. Drop or fill"),
    "decimals": (np.array([decimal.Decimal(1)] * 6), r"Decimal\('1'\).*x.astype\(float\)"),
    "records": (np.zeros(6, dtype=[("a", float), ("b", float)]), r"x\['a'\]"),
    "a sparse matrix": (scipy.sparse.eye(6), r"sparse dia_matrix.*x.toarray\(\)"),
    "a mask": (HIDDEN, r"masked array, 1 of its 6 entries masked.*filled\(0\) and the weights"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", WORDS)
def test_data_that_are_no_numbers(door, name):
    data, words = WORDS[name]
    with pytest.raises(TypeError, match=f"^x.*{words}"):
        DOORS[door](data)


def test_masks_elsewhere():
    with pytest.raises(TypeError, match="array 1 of batches is a masked array"):
        mo.batches(T, HIDDEN, batch_size=2)
    rows = [np.ma.array([1.0, 2.0], mask=[False, True]), np.array([1.0, 2.0])]
    with pytest.raises(TypeError, match="x is a masked array, 1 of its 2"):
        DOORS["minimize"](rows)
    with pytest.raises(TypeError, match=r"x\['a'\] is a masked array"):
        mo.minimize(lambda p, x: mx.sum(p * x["a"]), mx.array(0.0), mo.LBFGS(), {"a": HIDDEN})
    table = np.ma.array(np.stack([T, T**2], axis=1), mask=False)
    table[2, 1] = np.ma.masked
    with pytest.raises(TypeError, match="X is a masked array, 1 of its 12"):
        mo.models.LinearRegression().fit(table, T)
    with pytest.raises(TypeError, match="y is a masked array"):
        mo.models.LinearRegression().fit(T[:, None], HIDDEN)
    with pytest.raises(TypeError, match="y is a masked array"):
        mo.models.LogisticRegression().fit(T[:, None], np.ma.array(T > 2, mask=T == 3))


@pytest.mark.parametrize("door", DOORS)
def test_an_empty_mask_hides_nothing(door):
    plain, masked = (DOORS[door](x) for x in (T, np.ma.array(T, mask=False)))
    if isinstance(plain, mo.Result):
        assert plain.params.tolist() == masked.params.tolist()


def test_the_advice_on_dates_holds():
    days = (DATES - DATES[0]) / np.timedelta64(1, "D")
    result = mo.minimize(loss, mx.array(0.0), mo.LBFGS(), days, 2 * T)
    assert abs(result.params.item() - 2) < 1e-4


NUMPY_CALLS = {
    "sum": lambda p, x, y: np.sum((p * x - y) ** 2),
    "mean": lambda p, x, y: np.mean((p * x - y) ** 2),
    "max": lambda p, x, y: np.max(mx.abs(p * x - y)),
    "prod": lambda p, x, y: np.prod(p * x - y),
    "std": lambda p, x, y: np.std(p * x - y),
    "var": lambda p, x, y: np.var(p * x - y),
}


@pytest.mark.parametrize("name", NUMPY_CALLS)
@pytest.mark.parametrize("compile", [True, False])
def test_numpy_reductions_in_a_loss(name, compile):
    function = NUMPY_CALLS[name]
    line = function.__code__.co_firstlineno
    words = rf"calls np.{name} of an mx.array in .*test_data_words.py, line {line} .*mx.{name}"
    for call in (
        lambda: mo.minimize(function, mx.array(1.0), mo.LBFGS(), T, T, compile=compile),
        lambda: mo.train(function, mx.array(1.0), mo.SGD(0.1), [(T, T)], compile=compile),
        lambda: mo.value_and_grad(function, compile=compile)(mx.array(1.0), T, T),
        lambda: mo.hessian(function, compile=compile)(mx.array(1.0), T, T),
        lambda: mo.jacobian(function, compile=compile)(mx.array(1.0), T, T),
        lambda: mo.least_squares(function, mx.array(1.0), T, T, compile=compile),
    ):
        with pytest.raises(TypeError, match=words):
            call()


def test_numpy_arrays_that_a_loss_captures():
    table = np.ones((1, 6))

    def captured(p, y):
        return mx.mean((mx.stack([p]) @ table - y) ** 2)

    with pytest.raises(TypeError, match=r"@ table.*mx.array\(") as caught:
        mo.minimize(captured, mx.array(1.0), mo.LBFGS(), T)
    assert "incompatible function arguments" not in str(caught.value)

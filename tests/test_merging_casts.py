"""Numbers that a cast to float32 merges: long ids, seconds since 1970, counters near 2**32."""

import re
import warnings

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo

RNG = np.random.default_rng(0)
T = np.arange(60.0)
SECONDS = 1_700_000_000.0 + T
WORDS = "Subtract a number near them before the call"


def loss(p, x, y):
    return mx.mean((p[0] * x + p[1] - y) ** 2)


def plane(p, X, y):
    return mx.mean((X @ p - y) ** 2)


def caught(call, words="as float"):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    found = [str(one.message) for one in found if issubclass(one.category, UserWarning)]
    return [message for message in found if words in message]


def fit(x, y, dtype=mx.float32, **options):
    start = mx.zeros(2, dtype=dtype)
    if not options and not isinstance(x, list):
        return caught(lambda: mo.value_and_grad(loss)(start, x, y))
    return caught(lambda: mo.minimize(loss, start, mo.SGD(1e-20), x, y, **options))


MERGED = {
    "seconds": SECONDS,
    "integer seconds": SECONDS.astype(np.int64),
    "nanoseconds": 1_700_000_000_000_000_000 + 10**9 * np.arange(60),
    "counters": (2**32 - 100 + T).astype(np.uint32),
    "long counters": (2**63 + 100 * T).astype(np.uint64),
    "years in days": 2.46e6 + T / 24 / 60,
    "with missing values": np.where(T == 7, np.nan, SECONDS),
    "a list": SECONDS.tolist(),
    "large": T * 1e38,
    "tiny": T * 1e-46,
    "integers of MLX": mx.array(SECONDS.astype(np.int64)),
}
HARMLESS = {
    "small": T,
    "decimals": T / 10,
    "years": 1960.25 + T,
    "prices": 1e5 + 0.01 * RNG.normal(size=60).cumsum() * 100,
    "one large": np.where(T == 7, 1e12, T),
    "constant": np.full(60, 0.1),
    "constant but for rounding": np.where(T == 7, 0.1 + 0.2, 0.3),
    "missing": np.where(T == 7, np.nan, T),
    "infinite": np.where(T == 7, np.inf, T),
    "all missing": np.full(60, np.nan),
    "float32": SECONDS.astype(np.float32),
    "small integers": np.arange(60, dtype=np.uint8),
    "large even integers": 2**20 * np.arange(60),
    "a flag": T > 3,
    "of MLX": mx.array(SECONDS),
}


@pytest.mark.parametrize("name", MERGED)
def test_a_cast_that_merges_numbers_is_warned_about(name):
    found = fit(MERGED[name], T)
    assert len(found) == 1
    assert found[0].startswith("x loses digits as float32")
    numbers = re.search(
        r"up to (\S+), (\S+) of their spread \(([^)]+)\), and (\d+) .* become (\d+)", found[0]
    )
    assert numbers is not None
    values = np.array(MERGED[name], dtype=np.longdouble)
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        cast = values.astype(np.float32)
        moved, spread = np.abs(cast - values).max(), np.ptp(values)
    np.testing.assert_allclose(float(numbers[1]), float(moved), rtol=0.01)
    np.testing.assert_allclose(float(numbers[3]), float(spread), rtol=0.01)
    before, after = int(numbers[4]), int(numbers[5])
    missing = int(name == "with missing values")
    assert (before, after) == (np.unique(values).size + missing, np.unique(cast).size + missing)


@pytest.mark.parametrize("name", HARMLESS)
def test_other_casts_are_not(name):
    assert not fit(HARMLESS[name], T)


def test_the_cure_of_large_and_tiny_numbers_is_a_unit():
    assert "Divide them by a unit" in fit(MERGED["large"], T)[0]
    assert "Divide them by a unit" in fit(MERGED["tiny"], T)[0]
    assert "as in x - x[0]" in fit(SECONDS, T)[0]


def test_the_cures_cure():
    y = 3 + 0.5 * T
    start = mx.zeros(2)
    for x, first in ((SECONDS - SECONDS[0], start), (MERGED["nanoseconds"], start)):
        x = (x - x[0]) / (1 if x.dtype.kind == "f" else 10**9)
        result = mo.minimize(loss, first, mo.LBFGS(), x, y)
        np.testing.assert_allclose(np.array(result.params), [0.5, 3], rtol=1e-4)
    assert not fit(SECONDS, y, dtype=mx.float64)
    assert not fit(SECONDS, y, finish="float64")


def test_columns_of_a_matrix_are_judged_alone():
    X = np.stack([RNG.normal(size=60), SECONDS, np.ones(60)], axis=1)
    found = caught(lambda: mo.minimize(plane, mx.zeros(3), mo.SGD(1e-20), X, T, max_steps=1))
    assert len(found) == 1
    assert found[0].startswith("X[:, 1] loses digits")
    more = np.concatenate([X, SECONDS[:, None] + 0.5], axis=1)
    found = caught(lambda: mo.minimize(plane, mx.zeros(4), mo.SGD(1e-20), more, T, max_steps=1))
    assert "1 columns more" in found[0]
    replicates = 1e6 * np.linspace(1, 2, 60) + 1e-3 * RNG.normal(size=(3, 60))
    assert not caught(lambda: mo.grad(lambda p, Y: mx.mean((p - Y) ** 2))(mx.zeros(60), replicates))


def residual(p, x, y):
    return p[0] * x + p[1] - y


DOORS = {
    "least_squares": lambda x: mo.least_squares(residual, mx.zeros(2), x, T, max_steps=2),
    "minimize_many": lambda x: mo.minimize_many(
        loss, mx.zeros((2, 2)), mo.LBFGS(), x, T, in_axes=(0, None, None), max_steps=2
    ),
    "train": lambda x: mo.train(
        loss, mx.zeros(2), mo.SGD(1e-20), mo.batches(x, T, batch_size=10, shuffle=False), epochs=2
    ),
    "train on a generator": lambda x: mo.train(loss, mx.zeros(2), mo.SGD(1e-20), [(x, T)] * 3),
    "value_and_grad": lambda x: mo.value_and_grad(loss)(mx.zeros(2), x, T),
    "hessian": lambda x: mo.hessian(loss)(mx.zeros(2), x, T),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["seconds", "integer seconds"])
def test_every_door_warns_once(door, name):
    assert len(caught(lambda: DOORS[door](MERGED[name]))) == 1


def test_batches_in_order_are_judged_by_all_rows():
    x = np.linspace(0, 1e6, 6000) + RNG.uniform(0, 1e-3, 6000)  # float32 moves them by 0.03
    batches = mo.batches(x, x, batch_size=3, shuffle=False)
    assert not caught(lambda: mo.train(loss, mx.zeros(2), mo.SGD(1e-20), batches))


def test_nested_data_are_named():
    def nested(p, data):
        return mx.mean((p * data["time"][0] - data["y"]) ** 2)

    data = {"time": [mx.zeros(60), T], "y": SECONDS.astype(np.int64)}
    data["time"] = (SECONDS, T)
    found = caught(lambda: mo.minimize(nested, mx.array(0.0), mo.SGD(1e-20), data, max_steps=1))
    assert [message.split()[0] for message in found] == ["data['time'][0]", "data['y']"]


def test_large_arrays_cost_two_passes():
    from mlxopt._numbers import merged_by_cast

    assert merged_by_cast(RNG.normal(size=(1000, 20)), np.float32, "X") is None
    assert merged_by_cast(np.zeros((0, 3)), np.float32, "X") is None
    assert merged_by_cast(np.array(3.5), np.float32, "x") is None

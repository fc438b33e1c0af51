"""`train` keeps the good steps: before a NaN batch, an exception, Ctrl-C, a lucky first batch."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt import Status, _epochs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5]) + 0.3 * RNG.normal(size=120)).astype(np.float32)
QUIET: Any = {"progress": False, "compile": False}


def loss(w, X, y):
    return mx.mean(mx.square(X @ w - y))


def chunks(X, y, size):
    return [(X[i : i + size], y[i : i + size]) for i in range(0, len(y), size)]


def sgd(w, chunk_list, rate=0.01):
    """Return the parameters after each batch, in NumPy float64."""
    points = []
    for X, y in chunk_list:
        w = w - rate * 2 * X.T.astype(float) @ (X.astype(float) @ w - y) / len(y)
        points.append(w)
    return points


def train(loader, **options):
    options = {"epochs": 1, **QUIET, **options}
    return mo.train(options.pop("loss", loss), mx.zeros(3), mo.SGD(0.01), loader, **options)


# --- A batch that is not finite ------------------------------------------------------------------


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("bad", [3, 40, 49, 50, 77])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_the_steps_before_a_bad_batch_are_kept(compile, bad, number):
    data = X.copy()
    data[bad, 1] = number
    loader = chunks(data, Y, 1)
    with pytest.warns(mo.ConvergenceWarning, match="NONFINITE") as record:
        found = train(loader, compile=compile)
    assert (found.status, found.steps) == (Status.NONFINITE, bad)
    right = sgd(np.zeros(3), loader[:bad])[-1]
    np.testing.assert_allclose(np.array(found.params), right, rtol=2e-5, atol=1e-6)
    assert f"at batch {bad + 1} of epoch 1: X[0, 1] is {number}" in found.reason
    assert found.reason in str(record[0].message)
    assert found.state.batch == found.state.step == bad


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_epoch_and_the_argument_are_named(shuffle):
    y = Y.copy()
    loader = mo.batches(X, y, batch_size=8, shuffle=shuffle)
    whole = train(loader, epochs=2)
    row = list(loader.epoch(2))[1][1][5]
    y[np.flatnonzero(row == Y)] = np.nan
    spoilt = mo.batches(X, y, batch_size=8, shuffle=shuffle)
    with pytest.warns(mo.ConvergenceWarning, match=r"batch 2 of epoch 3: y\[5\] is nan"):
        found = mo.train(
            loss, mx.zeros(3), mo.SGD(0.01), spoilt, epochs=1, init=whole.state, **QUIET
        )
    right = sgd(np.array(whole.params, dtype=float), [next(loader.epoch(2))])[-1]
    np.testing.assert_allclose(np.array(found.params), right, rtol=1e-5)
    assert (found.steps, found.state.epoch, found.state.batch) == (1, 2, 1)


def test_data_in_trees_are_named_by_their_path():
    def named(w, batch):
        return loss(w, batch["X"], batch["y"])

    loader = [{"X": mx.array(X), "y": mx.array(y)} for y in (Y, Y, np.full(120, np.inf))]
    with pytest.warns(mo.ConvergenceWarning, match=r"batch 3 of epoch 1: batch\['y'\]\[0\] is inf"):
        found = train([(one,) for one in loader], loss=named)
    assert found.steps == 2


def test_finite_data_outside_the_domain_of_the_loss():
    def logarithm(w, X, y):
        return mx.mean(mx.log(y + 20)) + loss(w, X, y)

    y = Y.copy()
    y[33] = -25.0
    with pytest.warns(mo.ConvergenceWarning, match="batch 12 of epoch 1, whose data are finite"):
        found = train(chunks(X, y, 3), loss=logarithm)
    assert found.steps == 11
    right = sgd(np.zeros(3), chunks(X, y, 3)[:11])[-1]
    np.testing.assert_allclose(np.array(found.params), right, rtol=2e-5, atol=1e-6)


def test_nan_in_the_first_batch_is_named():
    data = X.copy()
    data[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"loss is nan at the start; .* X\[1, 2\] is nan"):
        train(chunks(data, Y, 4))


def test_ten_steps_a_call_are_taken_again_one_by_one():
    data = np.tile(X, (10, 1))
    data[777, 0] = np.nan
    loader = chunks(data, np.tile(Y, 10), 1)
    with pytest.warns(mo.ConvergenceWarning, match=r"batch 778 of epoch 1: X\[0, 0\] is nan"):
        found = train(loader, compile=True)
    right = sgd(np.zeros(3), loader[:777])[-1]
    np.testing.assert_allclose(np.array(found.params), right, rtol=1e-4)


def test_large_batches_are_read_before_many_are_held(monkeypatch):
    monkeypatch.setattr(_epochs, "_HELD", 10 * 8 * 16)
    steps = []
    train(mo.batches(X, Y, batch_size=8), callback=lambda info: steps.append(info.step))
    assert steps == [10, 15]


# --- Exceptions and Ctrl-C -----------------------------------------------------------------------


class Failing:
    """A loader that raises at one batch of one epoch, and knows how to start anew."""

    def __init__(self, error: BaseException, batch: int, epoch: int = 0) -> None:
        self.error, self.at, self.epoch = error, (epoch, batch), -1

    def __iter__(self):
        self.epoch += 1
        for number, batch in enumerate(chunks(X, Y, 2)):
            if (self.epoch, number) == self.at:
                raise self.error
            yield batch


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize(("batch", "epoch"), [(1, 0), (7, 0), (50, 0), (0, 1), (33, 2)])
def test_an_exception_of_the_loader_carries_all_steps(compile, batch, epoch):
    with pytest.raises(OSError, match="unplugged") as caught:
        train(Failing(OSError("unplugged"), batch, epoch), epochs=4, compile=compile)
    error: Any = caught.value
    assert f"Batch {batch + 1} of epoch {epoch + 1} raised it." in error.__notes__
    found, taken = error.result, 60 * epoch + batch
    assert (found.status, found.steps, found.state.step) == (Status.INTERRUPTED, taken, taken)
    loader = chunks(X, Y, 2)
    right = sgd(np.zeros(3), (loader * 4)[:taken])[-1]
    np.testing.assert_allclose(np.array(found.params), right, rtol=1e-4)
    whole = train(loader, epochs=4, compile=compile)
    rest = mo.train(
        loss,
        mx.zeros(3),
        mo.SGD(0.01),
        loader,
        epochs=4 - found.state.epoch,
        init=found.state,
        **QUIET,
    )
    np.testing.assert_allclose(np.array(rest.params), np.array(whole.params), rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_ctrl_c_in_the_loader_keeps_all_steps(batch):
    found = train(Failing(KeyboardInterrupt(), batch))
    assert (found.status, found.steps) == (Status.INTERRUPTED, batch)
    right = sgd(np.zeros(3), chunks(X, Y, 2)[:batch])[-1]
    np.testing.assert_allclose(np.array(found.params), right, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 12, 49, 55])
def test_a_batch_that_the_loss_does_not_take_is_named(batch):
    loader = chunks(X, Y, 2)
    loader[batch] = (X[:2, :2], Y[:2])
    with pytest.raises(ValueError, match=r".") as caught:
        train(loader)
    error: Any = caught.value
    assert f"Batch {batch + 1} of epoch 1 raised it." in error.__notes__
    assert error.result.steps == batch


def test_ctrl_c_while_the_losses_are_read_keeps_them(monkeypatch):
    read, calls = _epochs.read, []

    def interrupted(*scalars):
        calls.append(len(scalars))
        if len(calls) == 3:  # after that of the start and that of the first fifty
            raise KeyboardInterrupt
        return read(*scalars)

    monkeypatch.setattr(_epochs, "read", interrupted)
    found = train(chunks(X, Y, 1))
    assert (found.status, found.steps) == (Status.INTERRUPTED, 100)


# --- Growth --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("lucky", [0.0, 1e-7])
def test_a_lucky_first_row_is_no_divergence(seed, lucky):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(80, 3)).astype(np.float32)
    y = (X @ np.array([1.0, -2.0, 0.5]) + rng.normal(size=80)).astype(np.float32)
    X[0], y[0] = lucky, lucky  # which the start fits
    found = train(chunks(X, y, 1), epochs=2)
    assert found.status is Status.COMPLETED
    right = sgd(np.zeros(3), chunks(X, y, 1) * 2)[-1]
    np.testing.assert_allclose(np.array(found.params), right, rtol=1e-3, atol=1e-4)


def test_no_seed_calls_a_good_run_diverged():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(40, 2)).astype(np.float32)
    for seed in range(60):
        y = rng.normal(size=40).astype(np.float32)
        loader = mo.batches(X, y, batch_size=1, seed=seed)
        found = mo.train(loss, mx.zeros(2), mo.SGD(0.01), loader, **QUIET)
        assert found.status is Status.COMPLETED


@pytest.mark.parametrize("size", [1, 4, 60])
@pytest.mark.parametrize("rate", [3.0, 100.0])
def test_growth_is_still_divergence(size, rate):
    with pytest.warns(mo.ConvergenceWarning, match="DIVERGED"):
        found = mo.train(loss, mx.zeros(3), mo.SGD(rate), chunks(X, Y, size), epochs=9, **QUIET)
    assert found.status is Status.DIVERGED
    assert np.isfinite(np.array(found.params)).all()


def test_growth_from_a_lucky_first_row_is_divergence_too():
    data, y = X.copy(), Y.copy()
    data[0], y[0] = 0.0, 1e-4
    with pytest.warns(mo.ConvergenceWarning, match="DIVERGED"):
        mo.train(loss, mx.zeros(3), mo.SGD(5.0), chunks(data, y, 1), epochs=1, **QUIET)

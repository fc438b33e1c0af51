"""Schedules: against their formulas, term by term, and in the loops."""

import dataclasses
import math

import mlx.core as mx
import mlx.optimizers as mlx_optimizers
import numpy as np
import pytest
from problems import array64, regression

import mlxopt as mo
from mlxopt import schedules


def test_constant_step_and_exponential_are_their_formulas():
    steps = range(25)
    assert [schedules.constant(0.3)(k) for k in steps] == [0.3] * 25
    dropped = [1.0] * 10 + [0.5] * 10 + [0.25] * 5
    assert [schedules.step(1.0, every=10, factor=0.5)(k) for k in steps] == dropped
    found = [schedules.exponential(2.0, 0.9)(k) for k in steps]
    product = 2.0
    for rate in found:
        assert rate == pytest.approx(product, rel=1e-14)
        product *= 0.9


# MLX computes its schedules in float32.
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.cosine(0.1, steps=50), mlx_optimizers.cosine_decay(0.1, 50)),
        (schedules.cosine(0.1, steps=50, end=0.02), mlx_optimizers.cosine_decay(0.1, 50, 0.02)),
        (schedules.exponential(0.1, 0.9), mlx_optimizers.exponential_decay(0.1, 0.9)),
        (schedules.step(0.1, every=7, factor=0.5), mlx_optimizers.step_decay(0.1, 0.5, 7)),
        # Ours begins where theirs is after one step: no step at a rate of zero.
        (
            schedules.warmup(0.1, steps=9),
            lambda k: mlx_optimizers.linear_schedule(0.0, 0.1, 10)(k + 1),
        ),
    ],
    ids=lambda one: type(one).__name__,
)
def test_schedules_equal_those_of_mlx(ours, theirs):
    for k in range(70):
        assert ours(k) == pytest.approx(float(theirs(mx.array(k))), rel=1e-5, abs=1e-8)


def torch_one_cycle(top, total, share, div, final_div):
    """The phases of torch's OneCycleLR with cosine annealing, as its documentation gives them."""

    def anneal(begin, end, part):
        return end + (begin - end) / 2 * (1 + math.cos(math.pi * part))

    low = top / div
    phases = [(share * total - 1, low, top), (total - 1, top, low / final_div)]
    rates = []
    for k in range(total):
        begun = 0.0
        for ended, first, last in phases:
            if k <= ended:
                rates.append(anneal(first, last, (k - begun) / (ended - begun)))
                break
            begun = ended
    return rates


@pytest.mark.parametrize(("total", "share"), [(100, 0.3), (37, 0.5), (1000, 0.01), (20, 0.9)])
def test_one_cycle_equals_a_plain_loop(total, share):
    if share * total <= 1:
        pytest.skip("no rise")
    rate = schedules.one_cycle(0.2, steps=total, rise=share)
    expected = torch_one_cycle(0.2, total, share, 25.0, 1e4)
    np.testing.assert_allclose([rate(k) for k in range(total)], expected, rtol=1e-12)
    assert rate(total + 100) == pytest.approx(0.2 / 25 / 1e4, rel=1e-9)
    assert max(rate(k) for k in range(total)) <= 0.2


def test_warmup_joins_the_schedule_that_follows_without_a_jump():
    then = schedules.cosine(0.5, steps=40)
    rate = schedules.warmup(then, steps=10)
    rates = [rate(k) for k in range(60)]
    np.testing.assert_allclose(np.diff(rates[:11]), 0.5 / 11, rtol=1e-12)
    assert rates[10] == 0.5
    assert rates[10:] == [then(k) for k in range(50)]


class TorchPlateau:
    """torch's ReduceLROnPlateau, mode min and relative threshold: a plain state machine."""

    def __init__(self, rate, factor, patience, threshold, least):
        self.rate, self.factor, self.patience = rate, factor, patience
        self.threshold, self.least, self.best, self.bad = threshold, least, math.inf, 0

    def see(self, value):
        if value < self.best * (1 - self.threshold):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            self.rate, self.bad = max(self.rate * self.factor, self.least), 0
        return self.rate


@pytest.mark.parametrize("seed", range(4))
def test_reduce_on_plateau_equals_a_state_machine(seed):
    rng = np.random.default_rng(seed)
    losses = np.exp(-np.arange(60) / 10) + 0.2 * rng.random(60)
    rate = schedules.reduce_on_plateau(0.1, 0.5, patience=seed + 1, threshold=0.01, least=0.01)
    machine = TorchPlateau(0.1, 0.5, seed + 1, 0.01, 0.01)
    found, expected = [], []
    for k, value in enumerate(losses):
        expected.append(machine.see(value))
        found.append(rate(k, tuple(losses[: k + 1])))
    assert found == expected
    assert len(set(found)) > 2  # it did drop


def test_a_plateau_of_negative_losses_is_seen_too():
    rate = schedules.reduce_on_plateau(1.0, 0.5, patience=1, threshold=0.1)
    assert rate(0, (-1.0, -2.0, -3.0, -4.0)) == 1.0
    assert rate(0, (-1.0, -1.05, -1.05)) == 0.5


def noisy(rows=60):
    X, y, _ = regression(rows=rows, noise=1.0)
    return X, y


def loss(w, X, y):
    return 0.5 * mx.mean(mx.square(X @ w - y))


def test_train_hands_the_mean_loss_of_each_epoch_to_a_plateau():
    X, y = noisy()
    rule = mo.SGD(schedules.reduce_on_plateau(0.3, 0.5, patience=1))
    batches = mo.batches(X, y, batch_size=10)
    result = mo.train(loss, array64(np.zeros(5)), rule, batches, epochs=12)
    machine = TorchPlateau(0.3, 0.5, 1, 1e-4, 0.0)
    w, rate, rates = np.zeros(5), 0.3, []
    for epoch in range(12):
        values = []
        for X_batch, y_batch in batches.epoch(epoch):
            A, b = np.array(X_batch, dtype=np.float64), np.array(y_batch, dtype=np.float64)
            values.append(0.5 * np.mean((A @ w - b) ** 2))
            w = w - rate * A.T @ (A @ w - b) / len(b)
        rates.append(rate)
        rate = machine.see(float(np.mean(values)))
    assert len(set(rates)) > 2  # it did drop on the way
    np.testing.assert_allclose(np.array(result.params), w, rtol=1e-10)


def test_minimize_hands_the_losses_that_it_reads_to_a_plateau():
    scale = np.array([1.0, 10.0])

    def valley(w):
        return 0.5 * mx.sum(mx.array(scale, dtype=mx.float64) * mx.square(w))

    # 0.2 · 10 is just the step that jumps to and fro in the second entry, for ever.
    rule = mo.SGD(schedules.reduce_on_plateau(0.2, 0.5, patience=2))
    result = mo.minimize(valley, array64([1e-3, 1.0]), rule, record_every=5, tol=0, max_steps=200)
    w, rate = np.array([1e-3, 1.0]), 0.2
    machine = TorchPlateau(0.2, 0.5, 2, 1e-4, 0.0)
    machine.see(0.5 * scale @ w**2)
    for k in range(200):
        w = w - rate * scale * w
        if k % 5 == 4:
            rate = machine.see(0.5 * scale @ w**2)
    assert rate < 0.2
    np.testing.assert_allclose(np.array(result.params), w, rtol=1e-9, atol=1e-300)
    assert result.value < 1e-6
    again = mo.minimize(valley, array64([1e-3, 1.0]), rule, record_every=5, tol=0, max_steps=200)
    assert again.params.tolist() == result.params.tolist()


def test_a_blow_up_under_a_plateau_is_replayed_with_the_same_rates():
    def exploding(w):
        return mx.sum(mx.square(w))

    rule = mo.SGD(schedules.reduce_on_plateau(1e3, 0.5, patience=1))
    with pytest.warns(mo.ConvergenceWarning, match="DIVERGED|NONFINITE"):
        result = mo.minimize(exploding, mx.ones(2), rule, tol=0, max_steps=100)
    assert np.isfinite(result.value)


@pytest.mark.parametrize("wrap", [lambda r: mo.Clipped(r, norm=1e9), lambda r: mo.Grouped(r, {})])
def test_rules_made_of_rules_pass_the_losses_on(wrap):
    X, y = noisy()
    rule = mo.SGD(schedules.reduce_on_plateau(0.3, 0.5, patience=1))
    bare, wrapped = (
        mo.train(loss, mx.zeros(5), one, mo.batches(X, y, batch_size=10), epochs=12)
        for one in (rule, wrap(rule))
    )
    np.testing.assert_allclose(np.array(bare.params), np.array(wrapped.params), rtol=1e-6)


def test_schedules_are_immutable_values():
    one = schedules.cosine(0.1, steps=100)
    assert one == schedules.cosine(0.1, steps=100) != schedules.cosine(0.2, steps=100)
    assert repr(one) == "cosine(learning_rate=0.1, steps=100, end=0.0)"
    assert len({one, schedules.cosine(0.1, steps=100)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.steps = 5  # pyright: ignore[reportAttributeAccessIssue]
    assert mo.Adam(one) == mo.Adam(schedules.cosine(0.1, steps=100))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: schedules.constant(-0.1), ValueError, r"constant\(learning_rate=-0.1\).*zero or"),
        (lambda: schedules.constant(math.nan), ValueError, "finite"),
        (lambda: schedules.constant("fast"), TypeError, "number, got str"),  # pyright: ignore
        (lambda: schedules.step(0.1, every=0), ValueError, "every=0"),
        (lambda: schedules.step(0.1, every=10, factor=1.5), ValueError, "from 0 to 1"),
        (lambda: schedules.exponential(0.1, True), TypeError, "number, got bool"),
        (lambda: schedules.cosine(0.1, steps=1.5), TypeError, "whole number"),  # pyright: ignore
        (lambda: schedules.warmup(-1.0, steps=5), ValueError, "zero or more"),
        (lambda: schedules.one_cycle(0.1, steps=3), ValueError, "more than 1"),
        (lambda: schedules.one_cycle(0.1, steps=50, rise=1.0), ValueError, "fewer than all"),
        (lambda: schedules.one_cycle(0.1, steps=50, first=0.5), ValueError, "1 or more"),
        (lambda: schedules.reduce_on_plateau(0.1, patience=0), ValueError, "patience=0"),
        (
            lambda: schedules.warmup(schedules.reduce_on_plateau(0.1), steps=5),  # pyright: ignore
            TypeError,
            "step alone",
        ),
    ],
)
def test_misuse_raises_at_the_door(make, error, words):
    with pytest.raises(error, match=words):
        make()

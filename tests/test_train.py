"""The mini-batch loop."""

import mlx.core as mx
import numpy as np
import pytest
from problems import array64, regression, squared_loss

import mlxopt as mo
from mlxopt import Status, _epochs

START = {"w": mx.zeros(5), "b": mx.array(0.0)}


def test_scratch_regression_lands_within_two_thousandths():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 2))
    y = X @ [2, -3.4] + 4.2 + 0.01 * rng.normal(size=1000)
    params = {"w": mx.zeros(2), "b": mx.array(0.0)}
    result = mo.train(
        squared_loss, params, mo.SGD(0.03), mo.batches(X, y, batch_size=32), epochs=10
    )
    assert result.status is Status.COMPLETED
    assert result.steps == 320
    np.testing.assert_allclose(np.array(result.params["w"]), [2, -3.4], atol=2e-3)
    assert result.params["b"].item() == pytest.approx(4.2, abs=2e-3)


@pytest.mark.parametrize(
    "optimizer", [mo.SGD(0.05), mo.Momentum(0.01), mo.Momentum(0.01, nesterov=True)]
)
@pytest.mark.parametrize("rows", [64, 61])
def test_training_equals_a_plain_numpy_loop(optimizer, rows):
    # 61 rows: the last batch is smaller, which breaks up the calls of several steps.
    X, y, _ = regression(rows=rows)
    momentum = getattr(optimizer, "momentum", 0.0)
    nesterov = getattr(optimizer, "nesterov", False)
    w, v, values = np.zeros(6), np.zeros(6), []
    design = np.column_stack([X, np.ones(rows)])
    for _ in range(12):
        losses = []
        for start in range(0, rows, 4):
            A, b = design[start : start + 4], y[start : start + 4]
            losses += [0.5 * np.mean((A @ w - b) ** 2)] * len(b)
            g = A.T @ (A @ w - b) / len(b)
            v = momentum * v + g
            w = w - optimizer.learning_rate * (g + momentum * v if nesterov else v)
        values.append(np.mean(losses))
    params = {"w": array64(np.zeros(5)), "b": array64(0.0)}
    loader = mo.batches(X, y, batch_size=4, shuffle=False)
    result = mo.train(squared_loss, params, optimizer, loader, epochs=12)
    np.testing.assert_allclose(np.array(result.params["w"]), w[:-1], rtol=1e-11)
    assert result.value == pytest.approx(values[-1], rel=1e-11)
    assert result.steps == 12 * len(loader)
    assert result.params["w"].dtype == mx.float64


def test_the_python_loss_is_called_no_more_often_for_more_epochs():
    X, y, _ = regression()
    calls = []

    def loss(params, X, y):
        calls.append(1)
        return squared_loss(params, X, y)

    counts = []
    for epochs in (6, 30):
        calls.clear()
        mo.train(loss, START, mo.SGD(0.01), mo.batches(X, y, batch_size=10), epochs=epochs)
        counts.append(len(calls))
    # Whether ten steps share a call depends on the clock: then the trace holds ten more, and so do
    # two comparisons with MLX.
    assert abs(counts[1] - counts[0]) <= 30


def test_random_operations_draw_fresh_numbers_each_step():
    # loss = w · ε with ε ~ N(0, 1): w ends at minus the sum of the draws.
    def loss(w, x):
        return mx.sum(w * mx.random.normal((1,))) + 0 * mx.sum(x)

    mx.random.seed(3)
    result = mo.train(loss, mx.zeros(1), mo.SGD(1.0), [mx.zeros(1)] * 40)
    steps = np.diff(result.history.value)
    assert result.params.item() != 0
    mx.random.seed(3)
    again = mo.train(loss, mx.zeros(1), mo.SGD(1.0), [mx.zeros(1)] * 40)
    assert again.params.item() == result.params.item()  # the seed fixes them
    # One number repeated 40 times would end at 40 ε; independent ones near √40 · N(0, 1).
    assert abs(result.params.item()) < 4 * np.sqrt(40)
    assert len(steps)
    third = mo.train(loss, mx.zeros(1), mo.SGD(1.0), [mx.zeros(1)] * 40)
    assert third.params.item() != result.params.item()  # the generator has moved on


def test_dropout_masks_differ_from_step_to_step():
    seen = []

    def loss(w, x):
        mask = mx.random.bernoulli(0.5, (8,))
        return mx.sum(w * mask * x)

    class Spy(mo.SGD):
        pass

    def callback(info):
        seen.append(np.array(info.params))

    batches = [mx.ones(8)] * 50
    mo.train(loss, mx.zeros(8), Spy(1.0), batches, epochs=4, callback=callback)
    steps = np.diff(np.array([np.zeros(8), *seen]), axis=0)
    # Each entry is dropped in about half of 50 steps, not in all or none of them.
    assert (steps < -5).all()
    assert (steps > -45).all()


def test_batches_may_be_any_iterable():
    X, y, _ = regression(rows=40)
    pairs = [(X[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]
    expected = mo.train(squared_loss, START, mo.SGD(0.1), pairs, epochs=3).params["w"].tolist()

    class Stream:
        def __iter__(self):
            return iter(pairs)

    for batches in (Stream(), tuple(pairs), [list(map(mx.array, pair)) for pair in pairs]):
        result = mo.train(squared_loss, START, mo.SGD(0.1), batches, epochs=3)
        assert result.params["w"].tolist() == pytest.approx(expected, rel=1e-6)
    once = mo.train(squared_loss, START, mo.SGD(0.1), iter(pairs))
    assert once.steps == 5


def test_single_arrays_may_stand_for_batches():
    result = mo.train(
        lambda w, x: mx.mean(mx.square(w - x)), mx.array(0.0), mo.SGD(0.5), [np.ones(4)] * 30
    )
    assert result.params.item() == pytest.approx(1)


def test_a_one_shot_iterator_with_more_than_one_epoch_raises():
    with pytest.raises(ValueError, match="one-shot iterator"):
        mo.train(squared_loss, START, mo.SGD(), iter([(np.ones((2, 5)), np.ones(2))]), epochs=2)


def test_batches_that_run_dry_raise():
    class Dry:
        def __init__(self):
            self.left = [(np.ones((2, 5)), np.ones(2))]

        def __iter__(self):
            left, self.left = self.left, []
            return iter(left)

    with pytest.raises(ValueError, match="epoch 2 of 3"):
        mo.train(squared_loss, START, mo.SGD(0.01), Dry(), epochs=3)
    with pytest.raises(ValueError, match="epoch 1"):
        mo.train(squared_loss, START, mo.SGD(0.01), [])


def test_schedules_count_over_all_epochs():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.01

    X, y, _ = regression(rows=40)
    mo.train(squared_loss, START, mo.SGD(schedule), mo.batches(X, y, batch_size=7), epochs=4)
    assert asked == list(range(24))


def test_history_and_callback_at_the_end_of_each_epoch():
    X, y, _ = regression()
    seen = []
    loader = mo.batches(X, y, batch_size=10)
    result = mo.train(squared_loss, START, mo.SGD(0.1), loader, epochs=5, callback=seen.append)
    assert [info.step for info in seen] == [20, 40, 60, 80, 100]
    assert result.history.step.tolist() == [0, 20, 40, 60, 80, 100]
    assert result.history.value[-1] < result.history.value[0] / 50
    assert result.value == result.history.value[-1]
    stopped = mo.train(
        squared_loss, START, mo.SGD(0.1), loader, epochs=5, callback=lambda info: info.step >= 40
    )
    assert stopped.status is Status.STOPPED
    assert stopped.steps == 40


def test_a_blow_up_returns_the_last_finite_parameters():
    X, y, _ = regression()
    with pytest.warns(mo.ConvergenceWarning, match="DIVERGED.*learning rate"):
        result = mo.train(
            squared_loss, START, mo.SGD(100.0), mo.batches(X, y, batch_size=2), epochs=20
        )
    assert all(np.isfinite(np.array(leaf)).all() for leaf in result.params.values())


def test_nan_in_a_late_batch():
    X, y, _ = regression()
    y[150] = np.nan
    with pytest.warns(mo.ConvergenceWarning, match="NONFINITE"):
        result = mo.train(
            squared_loss, START, mo.SGD(0.1), mo.batches(X, y, batch_size=1, shuffle=False)
        )
    assert result.status is Status.NONFINITE
    assert result.steps == 150
    assert np.isfinite(result.value)


def test_nan_in_the_first_batch_raises():
    with pytest.raises(ValueError, match="at the start"):
        mo.train(squared_loss, START, mo.SGD(), [(np.full((2, 5), np.nan), np.ones(2))])


def test_ctrl_c_returns_what_was_reached():
    def callback(info):
        if info.step >= 40:
            raise KeyboardInterrupt

    X, y, _ = regression()
    loader = mo.batches(X, y, batch_size=10)
    result = mo.train(squared_loss, START, mo.SGD(0.1), loader, epochs=50, callback=callback)
    assert result.status is Status.INTERRUPTED
    assert result.steps == 40


def test_an_ignored_leaf_is_warned_about():
    params = {**START, "spare": mx.ones(3)}
    X, y, _ = regression()
    with pytest.warns(mo.ConvergenceWarning, match=r"ignores params\['spare'\]") as record:
        mo.train(squared_loss, params, mo.SGD(0.1), mo.batches(X, y, batch_size=50))
    assert record[0].filename == __file__


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_sixteen_bit_parameters_keep_their_dtype(dtype):
    X, y, _ = regression()
    params = {"w": mx.zeros(5, dtype=dtype), "b": mx.array(0.0, dtype=dtype)}
    for optimizer in (mo.SGD(0.1), mo.Momentum(0.05)):
        result = mo.train(
            squared_loss, params, optimizer, mo.batches(X, y, batch_size=20), epochs=3
        )
        assert result.params["w"].dtype == dtype
        assert result.value < result.history.value[0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"optimizer": mo.LBFGS()}, TypeError, "mo.minimize"),
        ({"optimizer": mo.SGD}, TypeError, "the class SGD"),
        ({"epochs": 0}, ValueError, "1 or more"),
        ({"epochs": 1.0}, TypeError, "whole number"),
        ({"batches": 32}, TypeError, "mo.batches"),
        ({"callback": 3}, TypeError, "callback"),
    ],
)
def test_misuse_raises_at_the_door(change, error, words):
    arguments = {"optimizer": mo.SGD(), "batches": [np.ones(2)], **change}
    with pytest.raises(error, match=words):
        mo.train(lambda w, x: mx.sum(w), mx.zeros(2), **arguments)


def test_the_result_prints_and_draws():
    X, y, _ = regression()
    result = mo.train(squared_loss, START, mo.SGD(0.1), mo.batches(X, y, batch_size=10), epochs=2)
    assert repr(result).startswith("TrainResult")
    assert "COMPLETED" in result._repr_html_()
    assert result.plot().get_xlabel() == "step"


def test_a_run_on_the_same_batches_can_be_repeated():
    X, y, _ = regression()
    loader = mo.batches(X, y, batch_size=10)
    first, second = (
        mo.train(squared_loss, START, mo.SGD(0.1), loader, epochs=2).params["w"].tolist()
        for _ in range(2)
    )
    assert first == second
    # Epochs differ from each other all the same.
    assert [b[1].tolist() for b in loader.epoch(0)] != [b[1].tolist() for b in loader.epoch(1)]


def test_a_parameter_that_is_infinite_in_no_batch_is_seen():
    # An embedding whose row 1 no loss looks at overflows through a huge rate on its decay.
    class Leaky(mo.SGD):
        def update(self, grad, buffers, params, learning_rate):
            return params * 1e6, buffers

    def loss(table, row):
        return mx.sum(mx.square(table[0] * 0 + row))

    with pytest.warns(mo.ConvergenceWarning):
        result = mo.train(loss, mx.ones((2, 3)), Leaky(0.1), [mx.ones(3)] * 60, epochs=3)
    assert result.status is Status.NONFINITE
    assert np.isfinite(np.array(result.params)).all()


def test_a_finite_blow_up_is_diverged_and_returns_the_best_point():
    X, y, _ = regression()
    loader = mo.batches(X, y, batch_size=10)
    with pytest.warns(mo.ConvergenceWarning, match="DIVERGED"):
        result = mo.train(squared_loss, START, mo.SGD(2.0), loader, epochs=1)
    assert result.status is Status.DIVERGED
    assert np.isfinite(np.array(result.params["w"])).all()
    assert result.value == min(result.history.value)


def test_a_loss_in_bfloat16_trains():
    def loss(w, x):
        return mx.sum(mx.square(w - x)).astype(mx.bfloat16)

    result = mo.train(loss, mx.zeros(2, dtype=mx.bfloat16), mo.SGD(0.25), [mx.ones(2)] * 20)
    assert np.array(result.params.astype(mx.float32)).tolist() == pytest.approx([1, 1], abs=0.02)


def test_ctrl_c_before_the_first_loss_is_a_ctrl_c():
    def batches():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        mo.train(squared_loss, START, mo.SGD(0.1), batches())


def test_slow_batches_are_looked_at_every_second(monkeypatch):
    clock = iter(range(0, 10**6))
    monkeypatch.setattr(_epochs.time, "perf_counter", lambda: 0.5 * next(clock))
    seen = []
    pairs = [(np.ones((2, 5)), np.ones(2))] * 30
    mo.train(squared_loss, START, mo.SGD(0.01), pairs, callback=seen.append)
    assert len(seen) > 5


def test_compile_false_lets_a_loss_branch_on_values():
    def loss(w, x):
        return mx.sum(mx.square(w - x)) if bool(mx.sum(w) > -1) else mx.sum(mx.abs(w))

    with pytest.raises(mo.TapeError, match="compile=False"):
        mo.train(loss, mx.zeros(2), mo.SGD(0.1), [mx.ones(2)] * 30)
    result = mo.train(loss, mx.zeros(2), mo.SGD(0.5), [mx.ones(2)] * 30, compile=False)
    assert result.params.tolist() == pytest.approx([1, 1], abs=1e-4)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (lambda grad, buffers, params, rate: params, "a tuple of two"),
        (lambda grad, buffers, params, rate: (params.astype(mx.float32), buffers), "float16"),
        (lambda grad, buffers, params, rate: (params, (mx.zeros(2),)), "of the buffers"),
        (lambda grad, buffers, params, rate: ([params], buffers), "of the parameters"),
    ],
)
def test_a_rule_that_breaks_the_contract_is_told(update, words):
    class Rule(mo.SGD):
        pass

    Rule.update = lambda self, *arguments: update(*arguments)  # type: ignore[method-assign]
    params = mx.zeros(2, dtype=mx.float16)

    def loss(w, *batch):
        return mx.sum(mx.square(w))

    with pytest.raises(TypeError, match=words):
        mo.train(loss, params, Rule(0.1), [mx.ones(2)])
    with pytest.raises(TypeError, match=words):
        mo.minimize(loss, params, Rule(0.1))

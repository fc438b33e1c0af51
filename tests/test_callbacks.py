"""What a callback returns: True stops, None and False do not, anything else is said once."""

import warnings

import mlx.core as mx
import numpy as np
import pytest
from tqdm import tqdm

import mlxopt as mo
from mlxopt import Status

X = np.linspace(0.0, 1.0, 200)
Y = 3.0 * X - 1.0


def squares(params, x, y):
    return mx.mean(mx.square(params[0] * x + params[1] - y))


def run_minimize(callback):
    return mo.minimize(
        squares, mx.zeros(2), mo.LBFGS(), X, Y, callback=callback, tol=0, max_steps=12
    )


def run_train(callback):
    batches = mo.batches(X, Y, batch_size=4, seed=0)
    return mo.train(squares, mx.zeros(2), mo.SGD(0.1), batches, epochs=4, callback=callback)


def run_least_squares(callback):
    def residual(params, x, y):
        return 1 / (1 + params[0] * x) + params[1] - y

    start, y = mx.zeros(2, mx.float64), 1 / (1 + 5.0 * X) + 2.0
    return mo.least_squares(residual, start, X, y, callback=callback)


RUNS = [run_minimize, run_train, run_least_squares]


def steps_of(run):
    """Return the steps of the run without a callback."""
    result = run(None)
    assert result.status is not Status.STOPPED
    return result.steps


def with_bar(bar):
    return lambda info: bar.update(1)


class Counter:
    """A callable whose answer is the number of its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, info):
        self.calls += 1
        return self.calls


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    "answer",
    [1, 0, "again", "", 2.5, np.float64(1.0), np.ones(3, bool), np.int64(1), mx.array(1.0), [True]],
    ids=repr,
)
def test_an_answer_that_is_no_bool_is_said_once_and_ignored(run, answer):
    steps = steps_of(run)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run(lambda info: answer)
    assert result.steps == steps
    assert result.status is not Status.STOPPED
    about = [one for one in caught if "callback" in str(one.message)]
    assert len(about) == 1
    assert type(answer).__qualname__ in str(about[0].message)
    assert about[0].filename == __file__


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("no", [None, False, np.False_, np.array(False), mx.array(False)], ids=repr)
def test_none_and_false_say_nothing(run, no):
    steps = steps_of(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(lambda info: no).steps == steps


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("yes", [True, np.True_, np.array(True), mx.array(1) == 1], ids=repr)
def test_true_stops(run, yes):
    seen = []
    result = run(lambda info: seen.append(info.step) or yes)
    assert result.status is Status.STOPPED
    assert len(seen) == 1


@pytest.mark.parametrize("run", RUNS)
def test_a_comparison_of_arrays_stops(run):
    result = run(lambda info: np.float64(info.step) >= 2)
    assert result.status is Status.STOPPED
    assert run(lambda info: mx.array(info.step) >= 2).steps == result.steps


@pytest.mark.parametrize("run", RUNS)
def test_the_update_of_tqdm_does_not_stop(run, capsys):
    steps = steps_of(run)
    # Without an interval between two pictures, each update draws and returns True.
    with tqdm(mininterval=0, miniters=1) as bar, pytest.warns(UserWarning, match="`update`"):
        result = run(with_bar(bar))
    assert result.steps == steps
    assert bar.n > 2


def test_a_def_that_updates_a_bar_can_stop(capsys):
    with tqdm(mininterval=0, miniters=1) as bar:

        def callback(info):
            bar.update(1)
            return info.step >= 3

        result = run_minimize(callback)
    assert (result.status, result.steps) == (Status.STOPPED, 3)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", [list, tuple])
def test_each_of_a_list_is_called_and_any_stops(run, kind):
    steps, seen = [], []
    callbacks = kind([lambda info: info.step >= 3, lambda info: steps.append(info.step), Counter()])
    with pytest.warns(UserWarning, match="the callback Counter returned a value of type int"):
        result = run([*callbacks, seen.append])
    assert result.status is Status.STOPPED
    assert steps[-1] >= 3
    assert [info.step for info in seen] == steps
    assert callbacks[2].calls == len(steps)
    assert run([]).status is not Status.STOPPED


@pytest.mark.parametrize("run", RUNS)
def test_what_is_no_function_is_named(run):
    with pytest.raises(TypeError, match=r"callback\[1\] is of type int; expected a function"):
        run([print, 3])
    with pytest.raises(TypeError, match="callback is of type str"):
        run("print")

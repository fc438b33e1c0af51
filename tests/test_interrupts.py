"""Ctrl-C and exceptions: at any place they leave the answer that was there."""

import inspect
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt import Status
from mlxopt._loop import Loop
from mlxopt._tree import leaves

PACKAGE = str(Path(mo.__file__).parent)
X = np.linspace(0.0, 1.0, 12)
Y = 2.0 * X + 0.5 + 0.01 * np.sin(40 * X)
LEAST = np.polyfit(X, Y, 1)  # slope, intercept
EXP = mx.exp
LOOSE: Any = {"progress": False, "compile": False}


def residual(params, x, y):
    return params[0] * x + params[1] - y


def loss(params, x, y):
    return mx.mean(mx.square(residual(params, x, y)))


def start(*shape, dtype=mx.float32):
    with mx.stream(mx.cpu):
        return mx.zeros((*shape, 2), dtype=dtype)


def fit(dtype=mx.float64, **options):
    return mo.least_squares(residual, start(dtype=dtype), X, Y, **LOOSE, **options)


RUNS: dict[str, Callable[[], Any]] = {
    "minimize": lambda: mo.minimize(loss, start(), mo.LBFGS(), X, Y, **LOOSE),
    "stages and a finish": lambda: mo.minimize(
        loss, start(), [(mo.SGD(0.1), 10), mo.Newton()], X, Y, finish="float64", **LOOSE
    ),
    "polish and covariance": fit,
    "finish and covariance": lambda: fit(mx.float32, finish="float64"),
    "robust": lambda: fit(robust="huber", bounds=(-1, 9)),
    "train": lambda: mo.train(
        loss, start(), mo.SGD(0.1), mo.batches(X, Y, batch_size=3), epochs=3, **LOOSE
    ),
    "minimize_many": lambda: mo.minimize_many(
        loss, start(2), mo.LBFGS(), X, Y, in_axes=(0, None, None), **LOOSE
    ),
}


def interrupted(call: Callable[[], Any], place: int) -> tuple[Any, bool, bool]:
    """Return the result of a call with Ctrl-C at the n-th call of a function of the package.

    Counted are those inside `Loop.answer`. Also whether there was such a call, and whether the loss
    at the start was known.
    """
    seen, inside, known = 0, None, False

    def profile(frame, event, _):
        nonlocal seen, inside, known
        code = frame.f_code
        if code is Loop.answer.__code__:
            inside = frame if event == "call" else None
        elif inside is not None and event == "call" and code.co_filename.startswith(PACKAGE):
            if (
                code.co_flags & inspect.CO_GENERATOR
            ):  # it may be at its end, where nothing is raised
                return
            seen += 1
            if seen == place:
                known = inside.f_locals["self"].state is not None
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        return call(), seen >= place, known
    except KeyboardInterrupt:
        return None, True, known
    finally:
        sys.setprofile(before)


def value_at(found) -> tuple[float, float]:
    """Return the loss that a result states, of its first problem, and that of its parameters."""
    params, value = found.params, found.value
    if isinstance(found, mo.ManyResult):
        params, value = params[0], value[0]
    with mx.stream(mx.cpu):
        slope, offset = np.array(leaves(params)[0], dtype=np.float64)
    squares = np.square(slope * X + offset - Y)
    return value, squares.sum() / 2 if isinstance(found, mo.LeastSquaresResult) else squares.mean()


@pytest.mark.parametrize("name", RUNS)
def test_ctrl_c_at_any_call_leaves_an_answer(name):
    place, answers = 1, 0
    while True:
        found, happened, known = interrupted(RUNS[name], place)
        if not happened:
            break
        place += 7 if place > 100 else 1
        assert found is not None or not known, place
        if found is not None:
            answers += 1
            ends = found.status if isinstance(found, mo.ManyResult) else [found.status]
            assert set(ends) <= {Status.INTERRUPTED, Status.CONVERGED, Status.COMPLETED}
            if name not in ("robust", "train"):
                stated, right = value_at(found)
                assert stated == pytest.approx(right, rel=1e-4)
            assert np.all(np.asarray(found.value) < 16)  # that of the start
    assert answers > 30
    RUNS["minimize"]()  # the next run puts MLX's functions back, wherever the last was cut short
    assert mx.exp is EXP


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it


def test_ctrl_c_between_two_stages_leaves_the_first(monkeypatch):
    monkeypatch.setattr(mo.Newton, "init", raising(KeyboardInterrupt()))
    found = mo.minimize(loss, start(), [(mo.SGD(0.1), 10), mo.Newton()], X, Y, **LOOSE)
    alone = mo.minimize(loss, start(), mo.SGD(0.1), X, Y, max_steps=10, tol=0, **LOOSE)
    assert (found.status, found.steps) == (Status.INTERRUPTED, 10)
    assert found.params.tolist() == alone.params.tolist()
    assert found.evaluations == alone.evaluations == 11


@pytest.mark.parametrize("where", ["trace", "hessian", "hvp"])
@pytest.mark.parametrize("optimizer", [mo.Newton(), mo.NewtonCG()], ids=["Newton", "NewtonCG"])
def test_ctrl_c_in_a_finish_leaves_the_float32_answer(monkeypatch, where, optimizer):
    wide = []

    def callback(info):
        if info.params.dtype == mx.float64 and not wide:
            wide.append(info.step)
            monkeypatch.setattr(
                f"mlxopt._objective.Objective.{where}", raising(KeyboardInterrupt())
            )

    options: Any = {"finish": "float64", "callback": callback, **LOOSE}
    found = mo.minimize(loss, start(), optimizer, X, Y, **options)
    np.testing.assert_allclose(np.array(found.params, dtype=np.float64), LEAST, rtol=1e-5)
    assert wide


@pytest.mark.parametrize("options", [{}, {"robust": "huber"}, {"bounds": (0, None)}], ids=str)
def test_ctrl_c_in_the_covariance_leaves_the_fit(monkeypatch, options):
    whole = fit(**options)
    monkeypatch.setattr("mlxopt._least_squares.statistics", raising(KeyboardInterrupt()))
    found = fit(**options)
    assert found.status is Status.INTERRUPTED
    assert found.params.tolist() == whole.params.tolist()
    assert found.residual.tolist() == whole.residual.tolist()
    assert np.isnan(found.covariance).all()
    assert "interrupted before the covariance was known" in " ".join(repr(found).split())


class Stumbles(mo.StopRule):
    def check(self, progress):
        if np.any(progress.step >= 3):
            raise OSError("the disk is full")
        return np.zeros(np.shape(progress.step), bool) if np.ndim(progress.step) else False


def stumble(info):
    if info.step >= 3:
        raise OSError("the disk is full")


EXCEPTIONS: dict[str, Callable[[], Any]] = {
    "callback of minimize": lambda: mo.minimize(
        loss, start(), mo.SGD(0.1), X, Y, record_every=1, callback=stumble, **LOOSE
    ),
    "stop rule of minimize": lambda: mo.minimize(
        loss, start(), mo.SGD(0.1), X, Y, record_every=1, stop=Stumbles(), **LOOSE
    ),
    "second stage": lambda: mo.minimize(
        loss, start(), [(mo.SGD(0.1), 2), mo.SGD(0.2)], X, Y, record_every=1, callback=stumble
    ),
    "callback of least_squares": lambda: fit(
        callback=stumble, bounds=(-9, 9), robust=("cauchy", 0.01), tol=1e-14
    ),
    "callback of train": lambda: mo.train(
        loss, start(), mo.SGD(0.1), mo.batches(X, Y, batch_size=4), callback=stumble, **LOOSE
    ),
    "stop rule of minimize_many": lambda: mo.minimize_many(
        loss, start(2), mo.SGD(0.1), X, Y, in_axes=(0, None, None), stop=Stumbles(), **LOOSE
    ),
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_carries_the_result_so_far(name):
    with pytest.raises(OSError, match="the disk is full") as caught:
        EXCEPTIONS[name]()
    found = caught.value.result  # pyright: ignore[reportAttributeAccessIssue]
    assert np.all(found.status == Status.INTERRUPTED)
    assert np.all(np.asarray(found.steps) >= 3)
    assert "error.result" in caught.value.__notes__[-1]
    if "least_squares" not in name and "train" not in name:
        stated, right = value_at(found)
        assert stated == pytest.approx(right, rel=1e-4)
        assert stated < np.mean(np.square(Y))
    if name == "callback of minimize":
        options: Any = {"record_every": 1, "tol": 0, "max_steps": 2, **LOOSE}
        more = mo.minimize(loss, start(), mo.SGD(0.1), X, Y, init=found.state, **options)
        five = mo.minimize(loss, start(), mo.SGD(0.1), X, Y, **{**options, "max_steps": 5})
        assert more.params.tolist() == five.params.tolist()


def test_an_exception_before_the_start_is_known_carries_nothing():
    with pytest.raises(OSError, match="the disk is full") as caught:
        mo.minimize(raising(OSError("the disk is full")), start(), mo.LBFGS(), X, Y)
    assert not hasattr(caught.value, "result")


TIMED: dict[str, Callable[[Any], Any]] = {
    "stages and a finish": lambda callback: mo.minimize(
        loss, start(), [(mo.SGD(0.1), 10), mo.LBFGS()], X, Y, finish="float64", callback=callback
    ),
    "finish and covariance": lambda callback: mo.least_squares(
        residual, start(), X, Y, finish="float64", callback=callback
    ),
    "train": lambda callback: mo.train(
        loss, start(), mo.SGD(0.1), mo.batches(X, Y, batch_size=1), epochs=30, callback=callback
    ),
}


@pytest.mark.parametrize("name", TIMED)
def test_a_real_ctrl_c_at_any_time(name):
    began = time.perf_counter()
    TIMED[name](None)
    whole = time.perf_counter() - began
    random.seed(0)
    # A test run in the background of a shell starts with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(10):
            wait = random.uniform(0.1, 1.0) * whole
            timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT))
            records, found = [], None
            try:
                timer.start()
                found = TIMED[name](lambda info: records.append(info.value))  # noqa: B023
                timer.join()
                time.sleep(0.01)  # the signal may come after the run
            except KeyboardInterrupt:
                pass
            assert found is not None or not records
            assert found is None or found.value < 16
    finally:
        signal.signal(signal.SIGINT, before)


def entrant(after: int) -> mo.LBFGS:
    """Return an optimizer whose step number `after`, counted over all runs, meets Ctrl-C."""
    steps = [0]

    class Ends(mo.LBFGS):
        def step(self, objective, state):
            steps[0] += 1
            if steps[0] > after:
                raise KeyboardInterrupt
            return super().step(objective, state)

    return Ends()


PROBLEMS = [mo.problems.get(name) for name in ("Rosenbrock", "Beale", "Wood")]


@pytest.mark.parametrize("whole", [1, 2])
def test_a_race_ends_at_ctrl_c_with_the_problems_that_were_run(whole):
    full = mo.race(PROBLEMS, {"LBFGS": mo.LBFGS(), "again": mo.LBFGS()})
    steps = sum(full.run(problem.name, "LBFGS").evaluations - 1 for problem in PROBLEMS[:whole])
    found = mo.race(PROBLEMS, {"LBFGS": mo.LBFGS(), "again": entrant(steps + 3)})
    assert found.interrupted
    assert not full.interrupted
    assert found.problems == full.problems[:whole]
    assert found.solved() == {"LBFGS": whole, "again": whole}
    for problem in found.problems:
        assert found.run(problem.name, "again").value == full.run(problem.name, "again").value
    assert f"on {'1 problem' if whole == 1 else '2 problems'} until Ctrl-C" in repr(found)


@pytest.mark.parametrize("residual", [False, True])
def test_a_race_without_a_whole_problem_is_a_keyboard_interrupt(residual, monkeypatch):
    optimizer: Any = entrant(3)
    if residual:
        optimizer = mo.LevenbergMarquardt()
        monkeypatch.setattr(mo.LevenbergMarquardt, "step", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        mo.race(PROBLEMS, {"LBFGS": mo.LBFGS(), "ends": optimizer})

"""Stop rules: values that every front end takes, and the loop that applies them."""

import dataclasses
import gc
import math
import time
import weakref
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_map

import mlxopt as mo
from mlxopt._stop import Progress, improves
from mlxopt._tree import largest_entry, read
from mlxopt.testing import check_optimizer

ROSENBROCK = mo.problems.get("Rosenbrock")


@dataclasses.dataclass(frozen=True)
class Below(mo.StopRule):
    bound: float

    def check(self, progress):
        return progress.value < self.bound


def line(params, x, y):
    return mx.mean(mx.square(params["w"] * x + params["b"] - y))


def residual(params, x, y):
    return params["w"] * x + params["b"] - y


START = {"w": mx.array(0.0), "b": mx.array(0.0)}
DATA = ([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.5, 6.5])


def many(stop):
    starts = {"w": mx.zeros(3), "b": mx.array([0.0, 1.0, 1e3])}
    axes = (0, None, None)
    options = {"in_axes": axes, "tol": 0, "max_steps": 50, "progress": False}
    return mo.minimize_many(line, starts, mo.SGD(0.1), *DATA, **options, stop=stop)


RUNS = {
    "minimize": lambda stop: mo.minimize(line, START, mo.SGD(0.01), *DATA, tol=0, stop=stop),
    "train": lambda stop: mo.train(line, START, mo.SGD(0.01), [DATA] * 200, epochs=9, stop=stop),
    "least_squares": lambda stop: mo.least_squares(residual, START, *DATA, tol=0, stop=stop),
    "minimize_many": lambda stop: many(stop)[0],
}


@pytest.mark.parametrize("name", RUNS)
def test_every_front_end_takes_a_rule_of_the_user(name):
    result = RUNS[name](Below(10.0))
    assert result.status is mo.Status.STOPPED
    assert result.value < 10.0


@pytest.mark.parametrize("name", RUNS)
def test_no_time_ends_a_run_at_its_first_record(name):
    with pytest.warns(mo.ConvergenceWarning, match="MAX_SECONDS"):
        result = RUNS[name](mo.Seconds(0))
    assert result.status is mo.Status.MAX_SECONDS
    assert result.steps == 0


def test_seconds_end_a_long_run():
    began = time.perf_counter()
    with pytest.warns(mo.ConvergenceWarning, match=r"MAX_SECONDS.*init=result\.state"):
        result = mo.minimize(
            line, START, mo.SGD(1e-9), *DATA, tol=0, max_steps=10**7, stop=mo.Seconds(0.5)
        )
    assert result.status is mo.Status.MAX_SECONDS
    # Far from the 10^7 steps, however busy the machine.
    assert time.perf_counter() - began < 60


def test_each_of_many_problems_stops_for_its_own_reason():
    result = many([Below(10.0)])
    assert [status.name for status in result.status[:2]] == ["STOPPED", "STOPPED"]
    assert result.steps[0] < result.steps[2]


def test_rules_take_effect_in_every_stage_and_the_first_that_applies_decides():
    stages: Any = [(mo.SGD(1e-3), 20), (mo.LBFGS(), 50)]
    result = mo.minimize(ROSENBROCK.loss, ROSENBROCK.params(), stages, stop=[Below(1e-3)])
    assert result.status is mo.Status.STOPPED
    assert [phase.optimizer for phase in result.phases] == ["SGD", "LBFGS"]
    # The tolerance comes first.
    done = mo.minimize(line, START, mo.LBFGS(), *DATA).params
    loose = mo.minimize(line, done, mo.LBFGS(), *DATA, stop=Below(math.inf))
    assert loose.status is mo.Status.CONVERGED


def test_a_stall_of_the_user_replaces_that_of_the_optimizer():
    def noisy(w):  # without a minimum to a float32's rounding
        return mx.sum(mx.abs(w)) + 1.0

    def steps(*stop):
        with pytest.warns(mo.ConvergenceWarning, match="NO_PROGRESS"):
            return mo.minimize(noisy, mx.array([0.3]), mo.SGD(1.0), record_every=1, stop=stop).steps

    assert steps(mo.Stall(3)) < steps(mo.Stall(30)) < steps() == steps(mo.Stall(100))


@pytest.mark.parametrize("stop", [3, [mo.Seconds(1), "soon"], mo.Seconds])
def test_what_is_no_rule_is_refused(stop):
    with pytest.raises(TypeError, match=r"expected a stop rule, such as mo.Seconds\(60\)"):
        mo.minimize(line, START, mo.LBFGS(), *DATA, stop=stop)


@pytest.mark.parametrize("seconds", [-1, math.inf, "1", True])
def test_seconds_are_checked(seconds):
    with pytest.raises((TypeError, ValueError), match="Seconds"):
        mo.Seconds(seconds)


numbers = st.floats(-1e3, 1e3)


@given(st.lists(st.tuples(numbers, st.floats(0, 1e3), st.booleans()), min_size=1, max_size=30))
def test_arrays_of_runs_progress_as_each_run_does(records):
    # Two runs: the records, and the same in reverse.
    both = [records, records[::-1]]
    single = []
    for run in both:
        progress = Progress(0, 0.0, 5.0, 5.0, 5.0, 5.0, 5.0)
        for step, (value, optimality, moved) in enumerate(run, start=1):
            progress = progress.after(value, optimality, moved, step, 0.0)
        single.append(progress)
    five = np.full(2, 5.0)
    batch = Progress(0, 0.0, five, five, five, five, five, np.zeros(2, int), np.zeros(2, int))
    for step, pair in enumerate(zip(*both, strict=True), start=1):
        value, optimality, moved = (np.array(column) for column in zip(*pair, strict=True))
        batch = batch.after(value, optimality, moved, step, 0.0)
    for name in ("value", "steepest", "lowest", "flattest", "stalled", "idle"):
        assert getattr(batch, name).tolist() == [getattr(one, name) for one in single], name
    stall = mo.Stall(2)
    assert stall.check(batch).tolist() == [stall.check(one) for one in single]


@given(numbers, numbers, numbers, numbers)
def test_the_lower_value_is_better_unless_rounding_hides_it(value, optimality, best, flat):
    found = bool(improves(value, optimality, best, flat, 1e-3))
    level = abs(value - best) <= 1e-3 * abs(best)
    assert found == (optimality < flat if level else value < best)


# --- Steps that do not move --------------------------------------------------------------------


class State(NamedTuple):
    params: Any
    value: float
    grad: Any
    optimality: float
    status: mo.Status | None
    moved: bool
    step_size: float


@dataclasses.dataclass(frozen=True)
class Backtracking(mo.optimizers.Optimizer[State]):
    """Gradient descent that halves its step at a rejected trial, which returns an equal copy."""

    copies: bool = True
    first: float = 2.0**40  # the loss is rejected some forty times before the first move

    def init(self, objective, params):
        value, grad = objective.value_and_grad(params)
        number, largest = read(value, largest_entry(grad))
        return State(params, number, grad, largest, None, False, self.first)

    def step(self, objective, state):
        t = state.step_size
        move = lambda x, g: (x - t * g).astype(x.dtype)  # noqa: E731
        new = self.init(objective, tree_map(move, state.params, state.grad))
        if new.value < state.value and math.isfinite(new.optimality):
            return new._replace(step_size=2 * t, moved=True)
        params = tree_map(mx.array, state.params) if self.copies else state.params
        return state._replace(params=params, moved=False, step_size=0.5 * t)


@pytest.mark.parametrize("copies", [False, True])
def test_an_equal_copy_after_a_rejected_trial_is_no_move(copies):
    def loss(w):
        return mx.sum(mx.square(w - 1.0))

    result = mo.minimize(loss, mx.zeros(3), Backtracking(copies))
    assert result.converged
    check_optimizer(Backtracking(copies, first=1.0), converges=["quadratic"])


def test_a_state_without_moved_is_refused_at_the_door():
    class Old(NamedTuple):
        params: Any
        value: float
        grad: Any
        optimality: float
        status: Any

    class Stale(Backtracking):
        def init(self, objective, params) -> Any:
            return Old(*super().init(objective, params)[:5])

    with pytest.raises(TypeError, match=r"Stale\.init returned Old without moved"):
        mo.minimize(lambda w: mx.sum(w**2), mx.ones(2), Stale())


# --- What a result keeps -----------------------------------------------------------------------


def test_a_result_lets_go_of_its_data():
    class Data(NamedTuple):  # a tree that can be watched
        x: Any

    def kept(use):
        array = np.ones((4, 3))
        result = mo.minimize(
            lambda w, x: mx.mean(mx.square(x @ w - 1)), mx.zeros(3), mo.LBFGS(), array
        )
        watched = weakref.ref(array)
        use(result)
        del array
        gc.collect()
        return watched() is not None, result

    assert kept(lambda result: None)[0]
    assert not kept(lambda result: result.release())[0]
    alive, result = kept(lambda result: result.certificate)
    assert not alive
    assert result.certificate.is_minimum  # computed before
    with pytest.raises(ValueError, match="released results"):
        kept(lambda result: result.release())[1].certificate  # noqa: B018

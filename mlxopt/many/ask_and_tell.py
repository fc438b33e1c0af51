"""Any optimizer on many problems at once, by asking and telling.

Optimizers are immutable and their states are values, so a step can be repeated. The step of each
problem runs until it needs a loss and gradient not yet known; the points of all problems are
evaluated in one batch, and the steps are repeated with the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._loop import check_fields
from mlxopt._objective import Objective
from mlxopt._tree import Tree, from_host, to_host
from mlxopt.autodiff._rows import hessian_product
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Method, Points, is_none


# Not an Exception, which an optimizer might catch.
class _Ask(BaseException):
    """A step needs the loss and gradient at the parameters that are its argument."""


def _ask(params: Tree) -> Any:
    raise _Ask(params)


class AskedObjective(Objective):
    """The objective of one problem at a time, with losses and gradients from a batch.

    Results are recorded in the order of the calls: a repeated step computes nothing twice.
    """

    def __init__(self, single: Objective) -> None:
        vars(self).update(vars(single))

    def record(self, data: tuple[Any, ...], results: list[Any]) -> None:
        """Begin a step of the problem with these data, whose first results are known."""
        self.data, self._results, self._place = data, results, 0

    def value_and_grad(self, params: Tree) -> tuple[mx.array, Tree]:
        """Return the recorded loss and gradient, or ask for them."""
        return self._recorded(_ask, params)

    def compiled(self, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """Return the compiled function, which records its results."""
        function = super().compiled(key, make)
        return lambda *args: self._recorded(function, *args)

    def hessian(self, params: Tree, structured: Callable[..., mx.array] | None = None) -> mx.array:
        return self._recorded(super().hessian, params, structured)

    def times(self, params: Tree, vector: np.ndarray) -> np.ndarray:
        return self._recorded(super().times, params, vector)

    def _product(self, params: Tree, vector: Tree) -> Tree:
        return super().compiled("hvp", lambda: hessian_product(self.loss))(
            params, vector, *self.data
        )

    def _recorded(self, compute: Callable[..., Any], *args: Any) -> Any:
        if self._place == len(self._results):
            self._results.append(compute(*args))
        self._place += 1
        return self._results[self._place - 1]


class AskedState(NamedTuple):
    """The states of A runs."""

    points: Points
    status: np.ndarray  # (A,): why no further step is possible, or None
    moved: np.ndarray  # (A,) bool: whether the last step changed the parameters
    states: np.ndarray  # (A,): the states of the optimizer


class AskAndTell(Method):
    """Any optimizer, with a state for each problem."""

    def init(self, objective: BatchedObjective, x: np.ndarray) -> AskedState:
        like, self.asked = objective.problems.like, AskedObjective(objective.single)
        points = Points(x, np.zeros(len(x)), np.zeros_like(x), np.zeros(len(x)))
        none = np.full(len(x), None)
        state = AskedState(points, none, np.zeros(len(x), bool), none)
        start = self.optimizer.init
        return self._run(objective, state, lambda row: start(self.asked, from_host(x[row], like)))

    def single(self, state: Any, point: Points, like: Tree) -> Any:
        return state.states._replace(**super().single(state, point, like)._asdict())

    def step(self, objective: BatchedObjective, state: AskedState) -> AskedState:
        step = self.optimizer.step
        return self._run(objective, state, lambda row: step(self.asked, state.states[row]))

    def _run(
        self, objective: BatchedObjective, state: AskedState, call: Callable[[int], Any]
    ) -> AskedState:
        """Return the state with `call(row)` as the states of the rows without a status."""
        problems, x = objective.problems, state.points.x.copy()
        points, status = Points(*(field.copy() for field in state.points)), state.status.copy()
        moved, states = np.zeros(len(status), bool), state.states.copy()
        results = {row: [] for row in np.flatnonzero(is_none(status)).tolist()}
        while results:
            asked: dict[int, Tree] = {}
            for row in results:
                index = int(objective.alive[row])
                own = [leaf[index] for leaf in problems.own]
                self.asked.record(problems.data(own, problems.shared), results[row])
                self.asked.noise = objective.noise[index]
                try:
                    new = call(row)
                except _Ask as ask:
                    asked[row] = ask.args[0]
                    continue
                first = states[row] is None
                if first:
                    check_fields(self.optimizer, new)
                states[row], status[row], moved[row] = new, new.status, new.moved
                points.value[row], points.optimality[row] = new.value, new.optimality
                if first or new.moved:
                    points.x[row], points.grad[row] = to_host(new.params), to_host(new.grad)
            if asked:
                mx.eval(list(asked.values()))  # all at once: each wait for the device costs 50 µs
                for row, params in asked.items():
                    x[row] = to_host(params)
                values, grads = objective.value_and_grad(x)
                for row in asked:
                    value = mx.array(float(values[row]), dtype=objective.dtype)
                    results[row].append((value, from_host(grads[row], problems.like)))
            results = {row: results[row] for row in asked}
        return AskedState(points, status, moved, states)

"""First-order rules for many problems at once: their updates are MLX arithmetic, mapped over them.

A step is a function of one row of numbers, [params, grad, buffers, learning rates], in the working
dtype, which holds counts up to 2²⁴ exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._status import Status
from mlxopt._tree import Tree, ravel, to_host, working_dtype
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Method, Points, where
from mlxopt.optimizers._base import initial_buffers


class FirstOrderState(NamedTuple):
    """The state of A runs of a first-order rule."""

    points: Points  # the parameters and what is known there
    status: np.ndarray  # (A,): NONFINITE where the next step leads to NaN or infinity, else None
    moved: np.ndarray  # (A,) bool: whether the last step changed the parameters
    buffers: np.ndarray  # (A, b): those of the rule
    step: np.ndarray  # (A,) int: steps taken; the schedule's argument
    losses: np.ndarray  # (A, k): read so far, for a schedule that asks for them


class BatchedFirstOrder(Method):
    """A first-order rule."""

    in_step = True  # one learning rate for all

    def init(self, objective: BatchedObjective, x: np.ndarray) -> FirstOrderState:
        rule, self._rows = self.optimizer, None

        def at(params: Tree, data: tuple[Any, ...]) -> mx.array:
            value, grad = mx.value_and_grad(objective.single.loss)(params, *data)
            return self._packed(value, params, grad, initial_buffers(rule, params))

        points, buffers = _unpacked(objective.evaluate("start", at, x), x.shape[1])
        none, moved, step = np.full(len(x), None), np.ones(len(x), bool), np.zeros(len(x), int)
        losses = points.value[:, None] if rule.reads_losses() else np.zeros((len(x), 0))
        return FirstOrderState(points, none, moved, buffers, step, losses)

    @np.errstate(all="ignore")  # a step may lead to NaN or infinity
    def advance(
        self, objective: BatchedObjective, state: FirstOrderState, count: int
    ) -> tuple[FirstOrderState, np.ndarray]:
        """Return the state after `count` steps, or the last finite one, and the steps taken."""
        now = last = state
        finite = known = np.ones(len(state.step), bool)
        for _ in range(count):
            now = self.step(objective, now)
            known = np.isfinite(now.points.value) & np.isfinite(now.points.optimality)
            finite = finite & known
            last = where(finite, now, last)
        last = where(known, now, last)
        taken, losses, status = last.step - state.step, last.losses, last.status.copy()
        status[~known] = Status.NONFINITE
        if self.optimizer.reads_losses():
            losses = np.column_stack([losses, last.points.value])
        return last._replace(status=status, moved=taken > 0, losses=losses), taken

    def step(self, objective: BatchedObjective, state: FirstOrderState) -> FirstOrderState:
        """Return the state after one update and one evaluation each, finite or not."""
        points, rule, loss = state.points, self.optimizer, objective.single.loss
        each = state.losses if rule.reads_losses() else state.losses[:1]
        step = int(state.step[0])  # the same for all
        rates = [rule.rates(step, 1, objective.dtype, tuple(row.tolist())) for row in each]
        rows = [to_host(rate) for rate in rates] * (len(points.x) // len(rates))
        z = np.concatenate([points.x, points.grad, state.buffers, rows], axis=1)
        if self._rows is None:
            params = objective.problems.like
            like = params, params, initial_buffers(rule, params), rates[0]
            problems = objective.problems._replace(like=like, start=z)
            self._rows = BatchedObjective(objective.single, problems, compile=objective.compile)
        self._rows.keep(objective.alive)

        def at(row: Tree, data: tuple[Any, ...]) -> mx.array:
            params, grad, buffers, (rate,) = row
            params, buffers = rule.update(grad, buffers, params, rate)
            value, grad = mx.value_and_grad(loss)(params, *data)
            return self._packed(value, params, grad, buffers)

        points, buffers = _unpacked(self._rows.evaluate("step", at, z), points.x.shape[1])
        return state._replace(points=points, buffers=buffers, step=state.step + 1)

    def _packed(self, value: mx.array, params: Tree, grad: Tree, buffers: Tree) -> mx.array:
        packed = value, self.optimizer.optimality(grad), params, grad, buffers
        return ravel(packed, working_dtype(params))


def _unpacked(found: np.ndarray, p: int) -> tuple[Points, np.ndarray]:
    value, optimality, x, grad, buffers = np.split(found, [1, 2, 2 + p, 2 + 2 * p], axis=1)
    return Points(x, value[:, 0], grad, optimality[:, 0]), buffers

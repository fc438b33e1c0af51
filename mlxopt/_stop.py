"""When a run stops: each rule is a value that says yes or no to the progress of a run.

Every rule and every function here is written in operations that hold for Python numbers and for
NumPy arrays alike: one run passes numbers, many problems at once pass arrays of shape (A,), one
entry for each problem that is still running.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mlxopt._checks import check_fields, describe_type
from mlxopt._status import Status
from mlxopt._tree import to_host

# A long float32 sum, added up naively, is off by a thousand roundings.
ROUNDINGS = 1000

Number = Any  # a Python number, or a NumPy array of shape (A,)


class Progress(NamedTuple):
    """How far a run has come; the records are those of the current phase."""

    step: Number  # steps taken in this phase
    seconds: float  # since the run began
    value: Number  # the loss
    optimality: Number  # the largest entry of the gradient, or what the optimizer has in its place
    steepest: Number  # the largest optimality recorded, in earlier phases too
    lowest: Number  # the least loss recorded
    flattest: Number  # the least optimality recorded
    stalled: Number = 0  # accepted steps in a row that lowered neither
    idle: Number = 0  # records in a row, those of a line search included, that lowered neither

    def after(
        self, value: Number, optimality: Number, moved: Number, step: Number, seconds: float
    ) -> Progress:
        """Return the progress with one more record.

        Args:
            value: the loss at the parameters.
            optimality: that at the parameters.
            moved: whether they changed since the last record.
            step: steps taken in this phase.
            seconds: since the run began.
        """
        lower, flatter = value < self.lowest, optimality < self.flattest
        better = moved & (lower | flatter)
        return Progress(
            step,
            seconds,
            value,
            optimality,
            _where(optimality > self.steepest, optimality, self.steepest),
            _where(lower, value, self.lowest),
            _where(flatter, optimality, self.flattest),
            _where(better, 0, self.stalled + moved),
            _where(better, 0, self.idle + 1),
        )

    def refreshed(self) -> Progress:
        """Return the progress with all patience restored."""
        return self._replace(stalled=0, idle=0)


class StopRule(ABC):
    """A reason to stop a run, for the argument `stop`; a new one is a frozen dataclass.

    >>> import dataclasses, mlx.core as mx, mlxopt as mo
    >>> @dataclasses.dataclass(frozen=True)
    ... class Below(mo.StopRule):
    ...     bound: float
    ...     def check(self, progress):
    ...         return progress.value < self.bound
    >>> loss = lambda x: mx.sum(x**4)
    >>> result = mo.minimize(loss, mx.ones(2), mo.GradientDescent(), stop=Below(0.5))
    >>> result.status, result.value < 0.5
    (Status.STOPPED, True)
    """

    status: ClassVar[Status] = Status.STOPPED
    """The status of a run that this rule ends."""

    @abstractmethod
    def check(self, progress: Progress) -> Number:
        """Return whether to stop: a bool, or in `minimize_many` a bool array of shape (A,)."""


@dataclasses.dataclass(frozen=True)
class Tolerance(StopRule):
    """The optimality has fallen to `tol` times its largest value: a claim to be judged."""

    tol: float
    status: ClassVar[Status] = Status.CONVERGED

    def check(self, progress: Progress) -> Number:
        return progress.optimality <= self.tol * progress.steepest


class Orthogonality(Tolerance):
    """The optimality, which has no units, is at most `tol`."""

    def check(self, progress: Progress) -> Number:
        return progress.optimality <= self.tol


@dataclasses.dataclass(frozen=True)
class Steps(StopRule):
    """`max_steps` steps have been taken in this phase."""

    max_steps: int
    status: ClassVar[Status] = Status.MAX_STEPS

    def check(self, progress: Progress) -> Number:
        return progress.step >= self.max_steps


class AllSteps(Steps):
    """All the steps asked for have been taken: the rule of a run without a tolerance."""

    status: ClassVar[Status] = Status.COMPLETED


@dataclasses.dataclass(frozen=True)
class Seconds(StopRule):
    """`seconds` of wall time have passed since the run began, compilation included.

    >>> import mlx.core as mx, mlxopt as mo
    >>> mo.minimize(lambda x: mx.sum(x**2), mx.ones(2), mo.LBFGS(), stop=mo.Seconds(60)).status
    Status.CONVERGED
    """

    seconds: float
    status: ClassVar[Status] = Status.MAX_SECONDS

    def __post_init__(self) -> None:
        check_fields(self, "seconds", least=0)

    def check(self, progress: Progress) -> Number:
        return progress.seconds >= self.seconds


@dataclasses.dataclass(frozen=True)
class Stall(StopRule):
    """`patience` accepted steps in a row lowered neither the loss nor the optimality.

    In place of the patience of the optimizer, when passed as `stop`. Line searches count too: the
    rule also ends a run after three times as many records.

    Args:
        patience: accepted steps, one or more; infinity switches the rule off.
        idle: records, trials that were not accepted included; None is 3 · patience.
    """

    patience: float = 20
    idle: float | None = None
    status: ClassVar[Status] = Status.NO_PROGRESS

    def check(self, progress: Progress) -> Number:
        idle = 3 * self.patience if self.idle is None else self.idle
        return (progress.stalled >= self.patience) | (progress.idle >= idle)


def stop_rules(
    tol: float, max_steps: int, patience: float, rule: type[Tolerance] = Tolerance
) -> tuple[StopRule, ...]:
    """Return the rules of a phase; without a tolerance, it takes every step.

    Args:
        tol: of the rule; 0 leaves out the rules that judge convergence.
        max_steps: in this phase.
        patience: that of the optimizer.
        rule: what to make of `tol`.
    """
    if tol == 0:
        return (AllSteps(max_steps),)
    return rule(tol), Steps(max_steps), Stall(patience)


def with_user(rules: tuple[StopRule, ...], stop: tuple[StopRule, ...]) -> tuple[StopRule, ...]:
    """Return the rules and then those of the user, whose `Stall` replaces that of the optimizer."""
    if any(isinstance(rule, Stall) for rule in stop):
        rules = tuple(rule for rule in rules if not isinstance(rule, Stall))
    return (*rules, *stop)


def last_step(rules: tuple[StopRule, ...]) -> float:
    """Return the step after which `Steps` ends a phase, infinite without such a rule."""
    return min((rule.max_steps for rule in rules if isinstance(rule, Steps)), default=math.inf)


def check_stop(stop: Any) -> tuple[StopRule, ...]:
    """Return the argument `stop`, a rule or a sequence of rules, as a tuple."""
    rules = tuple(stop) if isinstance(stop, Iterable) else (stop,)
    for rule in rules:
        if not isinstance(rule, StopRule):
            raise TypeError(
                f"stop is {describe_type(rule)}; expected a stop rule, such as mo.Seconds(60), or "
                f"a list of stop rules."
            )
    return rules


def _where(condition: Number, new: Number, old: Number) -> Number:
    """Return `new` where the condition holds, else `old`."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, new, old)
    return new if condition else old  # in a tenth of the time


def improves(
    value: Number, optimality: Number, best_value: Number, best_optimality: Number, noise: float
) -> Number:
    """Return whether a point is better than the best one.

    The lower value is better; where `noise`, relative to the loss, hides the difference, the lower
    optimality is.
    """
    level = abs(value - best_value) <= noise * abs(best_value)
    lower, flatter = value < best_value, optimality < best_optimality
    return (level & flatter) | (lower > level)


_FAR = 2.0**60  # times the largest parameter of the start
# Of a run that cannot go further.
_ENDS = (Status.CONVERGED, Status.NO_PROGRESS, Status.SADDLE, Status.FLAT, Status.NONFINITE)


def explain(status: Status, start: Any, end: Any) -> Status:
    """Return DIVERGED or UNBOUNDED if the first and the last state show that, else `status`."""
    fallen = start.value - end.value > 1e6 * (1 + abs(start.value))
    if status in _ENDS and fallen and (end.optimality > start.optimality or _is_far(start, end)):
        return Status.UNBOUNDED  # no loss with a minimum falls that far, to such a point
    if status in (Status.NONFINITE, Status.MAX_STEPS, Status.COMPLETED):
        risen = end.value > start.value and end.optimality > 10 * start.optimality
        return Status.DIVERGED if risen else status
    return status


def _is_far(start: Any, end: Any) -> bool:
    """Whether a parameter is farther away than a minimum can be."""
    first, last = (
        np.abs(one.x if hasattr(one, "x") else to_host(one.params)).max() for one in (start, end)
    )
    return bool(last > _FAR * max(1.0, first))

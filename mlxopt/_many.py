"""Many problems at once: one loss, a thousand starts or data sets, one batched graph."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._certificate import certify
from mlxopt._checks import check_count, check_tol, describe_type
from mlxopt._keywords import with_advice
from mlxopt._least_squares import check_rows, cosine_tol
from mlxopt._loop import Loop
from mlxopt._objective import Objective
from mlxopt._platform.device import device_for
from mlxopt._progress import ProgressBar
from mlxopt._report import html, listing, shapes
from mlxopt._residual_objective import ResidualObjective
from mlxopt._result import Certificate, History, Kept, Result
from mlxopt._status import Status, warn
from mlxopt._stop import Orthogonality, StopRule, Tolerance, check_stop, stop_rules, with_user
from mlxopt._tree import Tree, check_params, count, default_tol, from_host
from mlxopt.autodiff._arguments import as_data
from mlxopt.autodiff._guards import check_is_callable
from mlxopt.autodiff._pairs import warn_of_pairs
from mlxopt.many._loop import Batch, BatchState
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._problems import Axes, sort
from mlxopt.many._state import Method
from mlxopt.many._verdict import BatchedJudge
from mlxopt.many.ask_and_tell import AskAndTell
from mlxopt.many.first_order import BatchedFirstOrder
from mlxopt.many.gauss_newton import BatchedGaussNewton
from mlxopt.many.lbfgs import BatchedLBFGS
from mlxopt.many.levenberg_marquardt import BatchedLevenbergMarquardt
from mlxopt.many.newton import BatchedNewton
from mlxopt.optimizers import LBFGS, FirstOrder, GaussNewton, LevenbergMarquardt, Newton, Optimizer
from mlxopt.optimizers._base import as_rule

_BATCHED: dict[type, Callable[[Any], Method]] = {
    LBFGS: BatchedLBFGS,
    Newton: BatchedNewton,
    LevenbergMarquardt: BatchedLevenbergMarquardt,
    GaussNewton: BatchedGaussNewton,
}


# Compared as objects: arrays do not answer == with yes or no.
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ManyResult(Kept):
    """The result of `minimize_many` for B problems; `result[3]` is the `Result` of problem 3."""

    params: Tree  # the structure passed in, with the problems along the first axis
    value: np.ndarray  # (B,) float64: the losses
    grad_norm: np.ndarray  # (B,) float64: the largest absolute entry of each gradient
    optimality: np.ndarray  # (B,) float64: `Result.optimality` of each
    status: np.ndarray  # (B,): why each run stopped, a `Status`
    reason: np.ndarray  # (B,): more about each status, a string
    gain: np.ndarray  # (B,) float64: the decrease of each loss still to be expected, or NaN
    steps: np.ndarray  # (B,) int64: steps of each run
    seconds: float  # wall time of all, compilation included
    certify: Callable[[int], Certificate] | None = None
    """Computes the certificate of a problem; holds the loss and the data. See `release`."""

    @property
    def converged(self) -> np.ndarray:
        """Whether each has converged, shape (B,), bool."""
        return self.status == Status.CONVERGED

    @property
    def evaluations(self) -> int:
        """Evaluations of one problem's loss and derivatives, summed over all problems."""
        return int(self.steps.sum()) + len(self)

    def __len__(self) -> int:
        return len(self.status)

    def __getitem__(self, index: int) -> Result:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no problem {index}; there are {len(self)}.")
        index %= len(self)
        with device_for(self.params):
            params = tree_map(lambda leaf: leaf[index], self.params)
            mx.eval(params)  # another thread could not
        numbers = float(self.value[index]), float(self.optimality[index])
        steps, seconds, judge = int(self.steps[index]), self.seconds, self.certify
        return Result(
            params,
            *numbers,
            status=self.status[index],
            steps=steps,
            evaluations=steps + 1,
            seconds=seconds,
            history=History.of([(steps, *numbers, seconds)]),
            gain=float(self.gain[index]),
            reason=str(self.reason[index]),
            certify=None if judge is None else functools.partial(judge, index),
        )

    def __iter__(self) -> Iterator[Result]:
        return map(self.__getitem__, range(len(self)))

    def _rows(self) -> list[tuple[str, str]]:
        worst = np.max(self.optimality[self.converged], initial=0.0)
        return [
            ("problems", f"{len(self):,}"),
            ("status", _listed(_counts(self.status))),
            ("value", _spread(self.value)),
            ("optimality", f"{worst:.3g} at most, of those that converged"),
            ("steps", f"{_spread(self.steps)} ({self.evaluations:,} evaluations in all)"),
            ("seconds", f"{self.seconds:.3g}"),
            ("params", shapes(self.params)),
        ]

    def __repr__(self) -> str:
        return listing(type(self).__name__, self._rows())

    def _repr_html_(self) -> str:
        return html(type(self).__name__, self._rows())


@with_advice
def minimize_many(
    loss: Callable[..., mx.array],
    params: Tree,
    optimizer: Optimizer[Any],
    *data: Any,
    in_axes: Axes = 0,
    tol: float | None = None,
    max_steps: int = 1000,
    stop: StopRule | Sequence[StopRule] = (),
    progress: bool | None = None,
    compile: bool = True,
) -> ManyResult:
    """Minimize `loss(params, *data)` for many starts, data sets or settings at once.

    One compiled graph computes the loss and its derivatives for all problems (`mx.vmap`). Each run
    takes the steps it would take alone and stops for its own reason. With LBFGS, Newton,
    LevenbergMarquardt, GaussNewton or a first-order rule, thousands of small problems take some
    twentieth of the time of a loop; the steps of other optimizers are computed one by one, and only
    the losses together.

    Args:
        loss: a function `loss(params, *data)` of one problem that returns a scalar array, made of
            MLX operations. Its random operations see one fixed draw, the same for all problems:
            pass draws or keys among the data where they should differ. With LevenbergMarquardt or
            GaussNewton it returns a residual, an array, and ½ Σ rᵢ² is minimized, as
            `least_squares` does (without its polish).
        params: the starts: a tree of float arrays, with the problems along one axis of each, or one
            start for all.
        optimizer: any of `mlxopt.optimizers` or `mlx.optimizers`.
        *data: the arguments of the loss after its parameters, for all problems.
        in_axes: the axis that counts the problems: one number for all arguments, or one entry for
            each, `(params, *data)`: a number; None for what all problems share; or a tree of these.
            Numbers, strings and None among the data are always shared.
        tol: for each problem, as in `minimize`; for residuals as in `least_squares`.
        max_steps: steps of each problem at most: updates of a first-order rule, else evaluations.
        stop: stop rules beside `tol` and `max_steps`, for each problem; see `mo.StopRule`.
        progress: show a progress bar of the problems that have ended; None shows one if the run
            lasts over a second.
        compile: False evaluates op by op.

    Returns:
        a `ManyResult`; it holds the loss and the data for the certificates of its problems until
        `result.release()`, and is pickled without them. Problems without a finite start are
        NONFINITE. Ctrl-C ends the run and returns the last points, INTERRUPTED; exceptions as in
        `minimize`.

    Raises:
        TapeError: the loss reads arrays back to Python; a batch has no one value to branch on.
        TypeError, ValueError: an argument or the result of the loss is not as described; MLX cannot
            batch an operation, or does so wrongly; no problem has a finite start.

    Warns:
        ConvergenceWarning: some problems failed, or the loss ignores a leaf of `params`.
        UserWarning: as in `minimize`.

    Two fits of a line through the origin, from one start:

    >>> import mlx.core as mx, mlxopt as mo
    >>> def loss(slope, x, y):
    ...     return mx.mean((slope * x - y) ** 2)
    >>> y = [[0.0, 3.0, 6.0], [0.0, -1.0, -2.0]]
    >>> fits = mo.minimize_many(
    ...     loss, mx.array(0.0), mo.LBFGS(), [0.0, 1.0, 2.0], y, in_axes=(None, None, 0)
    ... )
    >>> fits.params, fits.converged
    (array([3, -1], dtype=float32), array([ True,  True]))
    """
    began = time.perf_counter()
    check_is_callable(loss)
    optimizer = as_rule(optimizer)
    method = _method(optimizer)
    of_squares = isinstance(optimizer, (LevenbergMarquardt, GaussNewton))
    params = check_params(params)
    if tol is None:
        tol = cosine_tol(params, None) if of_squares else default_tol(params)
    tol = check_tol(tol)
    max_steps = check_count(max_steps, "max_steps")
    stop, patience = check_stop(stop), optimizer.patience

    def single_problem(items: tuple[Any, ...]) -> tuple[Any, ...]:
        problems = sort(params, items, in_axes)
        first, its_data = problems.single(0, problems.start[0])
        return first, *its_data

    items = as_data(data, params, loss, single_problem, warns=True)
    with device_for(params, items):
        problems = sort(params, items, in_axes)
        first, its_data = problems.single(0, problems.start[0])
        single = (ResidualObjective if of_squares else Objective)(loss, its_data, compile=compile)
        single.trace(first)
        if isinstance(single, ResidualObjective):
            check_rows(single, first)
            rows = min(single.rows(first), count(first))
        else:
            rows = count(first) if isinstance(optimizer, Newton) else 1
        if compile:
            warn_of_pairs(loss, first, its_data)
        objective = BatchedObjective(single, problems, compile=compile, rows=rows)
        judge = None if of_squares else BatchedJudge(objective, method, tol)
        rule = Orthogonality if of_squares else Tolerance
        rules = stop_rules(tol, max_steps, patience, rule)
        batch = Batch(objective, method, with_user(rules, stop), judge)
    bar = ProgressBar("minimize_many", problems.size, progress)
    loop = Loop(None, bar, (), explains=False)

    def run() -> tuple[BatchState, Status]:
        with device_for(params, items):
            return loop(single, batch, first)

    def result(state: BatchState, status: Status) -> ManyResult:
        if status is Status.INTERRUPTED:
            batch.interrupt()
        x, value, grad, optimality = batch.ends.points
        why, reasons, gain = batch.ends.verdicts

        def certified(index: int) -> Certificate:
            with device_for(problems.like):
                params, its_data = problems.single(index, x[index])
            return certify(single.loss, params, *its_data, tol=tol)

        return ManyResult(
            from_host(x, problems.like),
            value,
            np.abs(grad).max(axis=1),
            optimality,
            why,
            reasons,
            gain,
            batch.ends.steps,
            time.perf_counter() - began,
            certified if optimizer.loss_alone else None,
        )

    found = loop.answer(run, result)
    if failed := {one: n for one, n in _counts(found.status).items() if one.is_failure}:
        advice = " ".join(f"{one.name}: {one.value}" for one in failed)
        number = sum(failed.values())
        warn(f"{number:,} of {len(found):,} problems failed ({_listed(failed)}). {advice}")
    return found


def _method(optimizer: Any) -> Method:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is {describe_type(optimizer)}; expected one of mlxopt's, such as "
            f"mo.LBFGS(). It comes third: minimize_many(loss, params, optimizer, *data)."
        )
    # By the very type: a subclass may step differently.
    if type(optimizer) in _BATCHED:
        return _BATCHED[type(optimizer)](optimizer)
    return (BatchedFirstOrder if isinstance(optimizer, FirstOrder) else AskAndTell)(optimizer)


def _counts(status: np.ndarray) -> dict[Status, int]:
    """Return the number of each status, the most frequent first."""
    return dict(Counter(status.tolist()).most_common())


def _listed(counts: dict[Status, int]) -> str:
    return ", ".join(f"{number:,} {one.name}" for one, number in counts.items())


def _spread(numbers: np.ndarray) -> str:
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return "none is finite"
    low, middle, high = np.quantile(known, [0.0, 0.5, 1.0])
    return f"{low:.6g} to {high:.6g}, median {middle:.6g}"

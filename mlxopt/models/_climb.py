"""The way to the maximum of a logistic likelihood: a start, a solver's steps, a finish."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mlxopt._result import Result
from mlxopt._status import Status
from mlxopt.models._design import Design
from mlxopt.models._error import Remainder
from mlxopt.models._factor import GRAM_CONDITION, Factor, factorize
from mlxopt.models._likelihood import Likelihood, Maximum, Slopes, finish, inverse_root, stay
from mlxopt.models._run import optimizer_for, run
from mlxopt.models._separation import Separation, find_separation
from mlxopt.optimizers import Newton

_ENOUGH = 20  # rows for each coefficient make a sample worth fitting
_TOL = 1e-8  # on the gradient of the mean loss in scaled columns; `finish` goes on from there


class Start(NamedTuple):
    """Where to begin."""

    factor: Factor  # of the design, or of a sample of it
    rows: int  # that the factor is of
    likelihood: Likelihood  # over the independent columns, in the precision of the solver
    b: np.ndarray  # (k,), scaled


class Climbed(NamedTuple):
    """Where the climb ended, and why."""

    likelihood: Likelihood  # over the independent columns, in float64
    factor: Factor  # says which those are
    b: np.ndarray  # (k,)
    slopes: Slopes  # there, in float64
    sizes: np.ndarray  # (k,), about √(Σ w aₖ²) of each column aₖ
    status: Status
    result: Result  # of `minimize`
    maximum: Maximum | None  # None if b is not at one
    separation: Separation | None  # of the classes, which leaves the likelihood without a maximum

    def inverse_root(self) -> np.ndarray:
        """Return V with V Vᵀ the inverse information of b, (k, k), at a maximum."""
        root, basis = inverse_root(self.slopes.information), self.likelihood.basis
        assert root is not None  # or this were no maximum
        return root if basis is None else basis @ root

    def remainder(self) -> Remainder:
        """Return what keeps b from the maximum."""
        assert self.maximum is not None
        b = np.abs(self.b)
        return Remainder(
            V=self.inverse_root(),
            change=self.maximum.change,
            doubt=self.maximum.doubt,
            fitted=0.5 * float(self.sizes @ b),  # with weights p (1 - p), of at most ¼
            # |p - y| ≤ log(1 + exp(-s z)), and is under 1, so √value ≥ √(Σ w (p - y)²).
            gradient=self.sizes * math.sqrt(self.slopes.value) + self.likelihood.ridge * b,
        )


def climb(
    design: Design, labels: np.ndarray, solver: Any, l2: float, max_steps: int, precision: str
) -> Climbed:
    """Return the maximum of the likelihood, or where the solver stopped and why.

    Args:
        design: without target.
        labels: (rows,) of the table: whether a row is of the second class.
        solver: what `optimizer_for` knows.
        l2: the strength of the penalty.
        max_steps: for the solver.
        precision: "float32" leaves the answer where float32 led. The choice of the columns and of
            the start, and the judgment of the answer, are float64 even then.
    """
    start = None
    if solver == "newton":
        start = _learn_from_sample(design, labels, l2, precision)
    if start is None:
        factor = factorize(design, l2)
        likelihood = _likelihood(design, labels, factor, l2, precision)
        start = Start(factor, design.n, likelihood, np.zeros(len(factor.basis)))
    result, b = _iterate(start, solver, max_steps, precision)
    likelihood = start.likelihood  # it remembers the slopes at b
    even = start.factor.inverse * math.sqrt(start.rows)  # in these columns the design is orthogonal
    is_easy = start.factor.condition < GRAM_CONDITION[design.roundoff]
    if precision == "float32" or not is_easy:
        basis = None if is_easy else even
        likelihood = Likelihood(design, labels, start.factor.basis, l2, basis)
    status, maximum = result.status, None
    separation = None if l2 > 0 else find_separation(likelihood, b, even)
    if separation is not None:
        status = Status.UNBOUNDED
    elif status in (Status.CONVERGED, Status.NO_PROGRESS):
        end = stay if precision == "float32" else finish
        maximum = end(likelihood, b)
        b = maximum.b
        status = Status.CONVERGED if maximum.converged else Status.NO_PROGRESS
    slopes = likelihood.slopes(b) if maximum is None else maximum.slopes
    R = start.factor.R[:, start.factor.basis]
    sizes = np.linalg.norm(R, axis=0) * math.sqrt(likelihood.total / start.rows)
    return Climbed(
        likelihood,
        start.factor,
        b,
        slopes,
        sizes,
        status,
        result,
        maximum if status is Status.CONVERGED else None,
        separation,
    )


def _likelihood(
    design: Design, labels: np.ndarray, factor: Factor, l2: float, precision: str
) -> Likelihood:
    at_work = design.in_float32() if precision == "float32" else design
    return Likelihood(at_work, labels, factor.basis, l2)


def _iterate(
    start: Start, solver: Any, max_steps: int, precision: str
) -> tuple[Result, np.ndarray]:
    """Return the result of `minimize` over the independent columns, and its params in float64.

    The loss is the mean of the losses, with its penalty.
    """
    likelihood = start.likelihood
    total, ridge = likelihood.total, likelihood.ridge
    is_newton = solver == "newton" or isinstance(solver, Newton)

    def evaluate(b: np.ndarray) -> tuple[float, np.ndarray]:
        slopes = likelihood.slopes(b, information=is_newton)
        return (slopes.value + 0.5 * float(ridge @ b**2)) / total, slopes.gradient / total

    def hessian(b: np.ndarray) -> np.ndarray:
        return likelihood.slopes(b).information / total

    # σ' ≤ ¼, and the factor's penalty is there already, in full.
    triangle = start.factor.R[:, likelihood.kept]
    curvature = float(np.linalg.norm(triangle, 2)) ** 2 / likelihood.design.n
    if likelihood.l2 == 0:
        curvature /= 4.0
    optimizer = optimizer_for(solver, curvature, hessian)
    result = run(evaluate, hessian, start.b, optimizer, _TOL, max_steps, precision)
    return result, np.array(result.params, dtype=np.float64)


def _learn_from_sample(
    design: Design, labels: np.ndarray, l2: float, precision: str
) -> Start | None:
    """Return a start near the maximum, from a sample of the rows; or None.

    Columns that are independent in some rows are independent in all. From the maximum of the sample
    one step leads on, with the slopes of all rows and the sample's curvature; from there Newton's
    method takes half the steps that it takes from zero.

    Args:
        design: of all rows; where the sample misleads, its scaling is measured anew.
        labels: (rows,), of the table.
        l2: the strength of the penalty.
        precision: of the passes over all rows.
    """
    sample = design.sample
    if sample is None or sample.n < _ENOUGH * design.width:
        return None
    labels_of_sample = labels[:: design.stride]
    second = labels_of_sample if sample.used is None else labels_of_sample[sample.used]
    if second.min() == second.max():
        return None
    factor = factorize(sample, l2)
    if len(factor.dependent) or not factor.condition < GRAM_CONDITION[sample.roundoff]:
        return None
    some = Likelihood(sample, labels_of_sample, factor.basis, l2)
    maximum = finish(some, np.zeros(design.width), done=0.3)
    if not maximum.converged:
        return None
    likelihood = _likelihood(design, labels, factor, l2, precision)
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that the sample lacks
        gradient = likelihood.slopes(maximum.b, information=False).gradient / likelihood.total
        b = maximum.b - np.linalg.solve(maximum.slopes.information / some.total, gradient)
        slopes = likelihood.slopes(b)
    if np.isfinite(slopes.information).all() and slopes.value < likelihood.total * math.log(2.0):
        return Start(factor, sample.n, likelihood, b)  # better than zero
    design.measure()
    return None

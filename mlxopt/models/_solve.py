"""The ways to the coefficients of a linear regression: by a factor of the design, or by steps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mlxopt._result import Result
from mlxopt._status import Status
from mlxopt.models._design import Design
from mlxopt.models._error import Remainder
from mlxopt.models._factor import Factor, by_gram, factorize, is_large, triangle
from mlxopt.models._refine import Refined, refine
from mlxopt.models._run import optimizer_for, run

_TOL = 1e-10  # on the gradient, with columns and target scaled to a spread near 1
_GRAM_PASSES = 5
# A difference in the fitted values, relative to the spread of the target, that counts as rounding.
_CLOSE = {"auto": 1e-6, "float64": 1e-6, "float32": 1e-4}


class Solved(NamedTuple):
    """A basic solution, zero for the columns that depend on others, and what is known of it."""

    factor: Factor  # of the design; its rank is that of float64
    exact: Refined  # the solution in float64
    solution: np.ndarray  # (q,), scaled: what was asked for
    squares: float  # Σ w r² there, with weights of mean 1
    passes: int  # over the data, or steps
    way: str  # in words
    status: Status = Status.CONVERGED
    result: Result | None = None  # of `minimize`, if that ran


def solve(design: Design, solver: Any, l2: float, max_steps: int, precision: str) -> Solved:
    """Return the solution.

    Args:
        design: with a target.
        solver: "auto", "qr", or what `optimizer_for` knows.
        l2: the strength of the penalty.
        max_steps: for solvers that take steps.
        precision: "float32" for a solution in float32; rank and `exact` are of float64 even then.
    """
    if not (isinstance(solver, str) and solver in ("auto", "qr")):
        return _by_steps(design, solver, l2, max_steps, precision)
    if precision == "float32":
        return _in_float32(design, solver, l2)
    return _in_float64(design, solver, l2)


def _in_float64(design: Design, solver: str, l2: float) -> Solved:
    factor = factorize(design, l2, solver)
    is_gram = math.isnan(factor.residual)
    exact = refine(design, factor, l2, _GRAM_PASSES if is_gram else 1)
    if is_gram and not exact.settled:
        is_gram, factor = False, factorize(design, l2, "qr")
        exact = refine(design, factor, l2, 1)
    way = "refined Gram matrix" if is_gram else "QR"
    return Solved(factor, exact, exact.solution, exact.squares, 1 + exact.passes, way)


def _in_float32(design: Design, solver: str, l2: float) -> Solved:
    if solver != "qr" and is_large(design):
        narrow = design.in_float32()
        factor = by_gram(narrow, design.penalty(l2))
        if factor is not None:
            found = refine(narrow, factor, l2, _GRAM_PASSES)
            solution = found.solution.astype(np.float32).astype(np.float64)
            exact = refine(design, factor, l2, _GRAM_PASSES, start=solution)
            passes = 1 + found.passes + exact.passes
            if exact.settled:
                return Solved(factor, exact, solution, exact.squares, passes, "refined Gram matrix")
    solved = _in_float64(design, solver, l2)  # the rank is the data's, whatever float32 can see
    kept = solved.factor.basis
    R = triangle(design.in_float32(), design.penalty(l2))
    solution = np.zeros(design.width)
    solution[kept] = np.linalg.lstsq(R[:, kept], R[:, design.width])[0]
    return solved._replace(solution=solution, passes=solved.passes + 1, way="QR")


def _by_steps(design: Design, solver: Any, l2: float, max_steps: int, precision: str) -> Solved:
    """Return where `minimize` leads; finished, but in float32.

    The error is quadratic, so from wherever a run converged one Newton step leads to the minimum,
    and that is the solution by the factor, right to more digits than a gradient can tell. A run
    that did not get there is left where it stopped.
    """
    solved = _in_float64(design, "", l2)
    result, reached = _iterate(design, solved.factor, solver, l2, max_steps, precision)
    solved = solved._replace(
        passes=result.steps, way=repr(solver), status=result.status, result=result
    )
    gap = float(np.linalg.norm(solved.factor.R @ (reached - solved.solution)))
    if result.status is Status.NO_PROGRESS and gap <= _CLOSE[precision] * math.sqrt(design.n):
        solved = solved._replace(status=Status.CONVERGED)
    if solved.status is not Status.CONVERGED:
        return solved._replace(solution=reached, squares=_sum_of_squares(design, reached))
    return solved._replace(solution=reached) if precision == "float32" else solved


def _iterate(
    design: Design, factor: Factor, solver: Any, l2: float, max_steps: int, precision: str
) -> tuple[Result, np.ndarray]:
    """Return the result of `minimize` over the independent columns, and the scaled solution, (q,).

    The loss is the mean of ½r², with weights of mean 1, and the penalty.
    """
    kept = factor.basis
    ridge = design.penalty(l2)[kept] ** 2
    R = factor.R[:, kept]
    at_work = design.in_float32() if precision == "float32" else design

    def widen(b: np.ndarray) -> np.ndarray:
        wide = np.zeros(design.width)
        wide[kept] = b
        return wide

    def evaluate(b: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = float(ridge @ b**2), ridge * b
        for _, rows in at_work.pieces():
            residual = rows @ np.append(-widen(b), 1.0)
            value += float(np.square(residual).sum(dtype=np.float64))
            gradient -= (residual @ rows)[kept]
        return 0.5 * value / design.n, gradient / design.n

    def hessian(_: np.ndarray) -> np.ndarray:
        return R.T @ R / design.n

    curvature = float(np.linalg.norm(R, 2)) ** 2 / design.n
    optimizer = optimizer_for(solver, curvature, hessian)
    start = np.zeros(len(kept))
    result = run(evaluate, hessian, start, optimizer, _TOL, max_steps, precision)
    return result, widen(np.array(result.params, dtype=np.float64))


def _sum_of_squares(design: Design, solution: np.ndarray) -> float:
    residuals = (rows @ np.append(-solution, 1.0) for _, rows in design.pieces())
    return float(sum(residual @ residual for residual in residuals))


def remainder(design: Design, solved: Solved, l2: float) -> Remainder:
    """Return what keeps a solution of full rank from the exact one."""
    factor, exact = solved.factor, solved.exact
    sizes, residual = np.linalg.norm(factor.R, axis=0), math.sqrt(exact.squares)
    terms = sizes @ np.abs(exact.solution)
    return Remainder(
        V=factor.inverse,
        change=exact.solution - solved.solution,
        doubt=exact.error,
        fitted=2 * terms + residual,  # with the target, no larger than terms and residual
        gradient=sizes * residual + design.penalty(l2) ** 2 * np.abs(exact.solution),
    )

"""Linear regression by least squares."""

from __future__ import annotations

import math
import warnings
from typing import Any, Self

import numpy as np
from scipy.special import fdtrc

from mlxopt._result import Result
from mlxopt._status import Status
from mlxopt.models._base import Model, warn_of_rank, warn_of_status
from mlxopt.models._design import Design
from mlxopt.models._factor import Factor, factorize, refine
from mlxopt.models._input import read_table, read_target, read_weights
from mlxopt.models._run import optimizer_for, run
from mlxopt.models._summary import Summary, counted, probability_text

_CLOSE = 1e-6  # a difference in the fitted values, in the same units, that counts as rounding
_TOL = 1e-10  # on the gradient, with columns and target scaled to a spread near 1
_GRAM_PASSES = 5


class LinearRegression(Model):
    """Linear regression: the coefficients that minimize the mean squared error, in float64.

        Σ wᵢ ½(yᵢ - intercept - xᵢᵀcoef)² / Σ wᵢ  +  ½ · l2 · ‖coef‖²

    Standard errors are those of R's `lm`: the variance of the errors is estimated by
    Σ w r² / (rows of positive weight - rank). Coefficients obey repetition: a row of weight 2
    counts as two rows. Where columns depend linearly on others, the answer is the one of smallest
    ‖coef‖, without standard errors, and a `RankWarning` names those columns.

    Args:
        solver: "auto": float64 QR while the design is small or ill-conditioned; where it is large,
            its Gram matrix, with the answer refined by residuals from the data. "qr" takes QR in
            any case. "newton", "lbfgs", "momentum" and "sgd" (full-batch, with steps of 1 / the
            largest curvature) run `mlxopt.minimize`, and so does any optimizer of mlxopt's. All of
            them read X a block of rows at a time, cast to float64; of more than 16 MB no copy is
            kept, but of one-hot columns (where "auto" is many times faster) their nonzero entries.
        l2: the strength of the penalty, zero or more; the intercept is free of it.
        fit_intercept: whether there is an intercept.
        max_steps: for the solvers that take steps.

    Attributes:
        coef_: (columns,) float64.
        intercept_: float.
        coef_se_, intercept_se_: standard errors of the same shapes; nan with `l2 > 0`, dependent
            columns or no rows to spare (`summary()` says which), and for an intercept left out.
        rank_: columns that do not depend on others, the intercept included.
        dependent_columns_: the names of those that do.
        n_features_in_: columns of X.
        feature_names_in_: their names, if X was a data frame.
        status_: why the solver stopped.
        n_iter_: its passes over the data or its steps.
        result_: what `minimize` returned, in scaled parameters; None for "auto" and "qr".

    QR by blocks of rows: Golub, Plemmons and Sameh (1988). Refinement: Björck (1987), corrected
    seminormal equations.

    >>> import mlxopt as mo
    >>> model = mo.models.LinearRegression().fit([[0.0], [1.0], [2.0], [3.0]], [1.0, 3.0, 5.0, 8.0])
    >>> model.coef_.round(6), round(model.intercept_, 6)
    (array([2.3]), 0.8)
    >>> model.coef_se_.round(4), round(model.score([[0.0], [3.0]], [1.0, 8.0]), 4)
    (array([0.1732]), 0.9947)
    """

    _estimator_type = "regressor"
    _solvers = ("auto", "qr", "newton", "lbfgs", "momentum", "sgd")

    intercept_: float
    coef_se_: np.ndarray
    intercept_se_: float
    status_: Status
    n_iter_: int
    result_: Result | None

    def __init__(
        self,
        solver: Any = "auto",
        *,
        l2: float = 0.0,
        fit_intercept: bool = True,
        max_steps: int = 1000,
    ) -> None:
        self.solver = solver
        self.l2 = l2
        self.fit_intercept = fit_intercept
        self.max_steps = max_steps

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the coefficients.

        Args:
            X: (rows, columns) of numbers: a list, an array of NumPy or MLX, a data frame.
            y: (rows,) of numbers.
            sample_weight: (rows,), zero or more. A row of weight zero counts as left out.

        Returns:
            the model.

        Raises:
            TypeError, ValueError: the input is not as described; the message says where.
            KeyboardInterrupt: Ctrl-C; the model is then not fitted.

        Warns:
            RankWarning: columns depend on others.
            ConvergenceWarning: a solver that takes steps did not converge.
        """
        self._check_parameters()
        self._forget()
        table = read_table(X)
        target = read_target(y, table.rows)
        weights = read_weights(sample_weight, table.rows)
        design = Design(table, weights, bool(self.fit_intercept), target)
        by_name = self.solver if isinstance(self.solver, str) else ""
        factor, solution, squares, passes = _direct(design, float(self.l2), by_name)
        status, result = Status.CONVERGED, None
        if by_name not in ("auto", "qr"):
            result, reached = _iterate(design, factor, self)
            status, passes = result.status, result.steps
            # The error is quadratic, so from wherever a run converged one Newton step leads to the
            # minimum, and that is the solution by the factor, right to more digits than a gradient
            # can tell. A run that did not get there is left where it stopped.
            gap = float(np.linalg.norm(factor.R @ (reached - solution)))
            if status is Status.NO_PROGRESS and gap <= _CLOSE * math.sqrt(design.n):
                status = Status.CONVERGED
            if status is not Status.CONVERGED:
                solution, squares = reached, _squares(design, reached)
        notes = []
        names = [design.name(index) for index in factor.dependent]
        if names:
            solution = factor.minimum_norm(design, solution)
            notes.append(warn_of_rank(names, len(factor.basis), design.width))
        warn_of_status(status, self.solver)

        self._remember_columns(table)
        self.coef_, self.intercept_ = design.unscale(solution)
        self.rank_, self.dependent_columns_ = len(factor.basis), names
        self.status_, self.n_iter_, self.result_ = status, passes, result
        errors = self._standard_errors(design, factor, squares, notes)
        self.coef_se_, self.intercept_se_ = errors
        by_gram = "refined Gram matrix" if math.isnan(factor.residual) else "QR"
        ran = by_gram if by_name in ("auto", "qr") else repr(self.solver)
        self._summary = self._summarize(design, squares, ran, notes)
        return self

    def _standard_errors(
        self, design: Design, factor: Factor, squares: float, notes: list[str]
    ) -> tuple[np.ndarray, float]:
        """Return the standard errors, or nan with a note of why."""
        spare = design.n - len(factor.basis)
        if self.l2 > 0:
            notes.append(
                "with l2 > 0 the coefficients are drawn towards zero on purpose, and standard "
                "errors would not measure their distance from the truth."
            )
        elif not len(factor.dependent) and spare == 0:
            notes.append(
                f"{design.n} rows for {design.n} coefficients leave none to estimate the errors by."
            )
        elif self.status_.is_failure:
            notes.append(
                f"the solver did not converge ({self.status_.name}): these are not the best "
                f"coefficients, and they have no standard errors."
            )
        if notes:
            return np.full(design.table.columns, math.nan), math.nan
        return design.standard_errors(factor.inverse * math.sqrt(squares / spare))

    def _summarize(self, design: Design, squares: float, ran: str, notes: list[str]) -> Summary:
        n, rank = design.n, self.rank_
        assert design.target is not None
        unit = float(design.target_scale.unit[0])
        share = None if design.root is None else design.root**2
        mean = float(np.average(design.target, weights=share)) if self.fit_intercept else 0.0
        away = design.target - mean if design.root is None else design.root * (design.target - mean)
        total = float(away @ away)
        rss = squares * unit**2 * design.mean_weight  # Σ w r²
        penalized = " with the penalty" if self.l2 > 0 else ""
        figures = {"rows": f"{n:,}", "rank": f"{rank} of {design.width}{penalized}"}
        r2 = 1.0 - squares / total if total > 0 else math.nan
        about = "" if self.fit_intercept else " (about zero: no intercept)"
        figures["R²"] = f"{r2:.6g}{about}" if total > 0 else "undefined: y is constant"
        spare, slopes = n - rank, rank - design.first
        if spare > 0 and self.l2 == 0:
            if total > 0:
                adjusted = 1.0 - (1.0 - r2) * (n - design.first) / spare
                figures["R², adjusted"] = f"{adjusted:.6g}"
            freedom = f"{counted(spare, 'degree')} of freedom"
            figures["residual SD"] = f"{math.sqrt(rss / spare):.6g} on {freedom}"
            if slopes > 0 and squares > 0:
                ratio = (total - squares) / slopes / (squares / spare)
                p = float(fdtrc(slopes, spare, max(ratio, 0.0)))
                figures["F"] = f"{ratio:.5g} on {slopes} and {spare:,}, P {probability_text(p)}"
        if rss > 0:
            logs = 0.0 if design.weights is None else float(np.sum(np.log(design.weights)))
            likelihood = 0.5 * (logs - n * (math.log(2 * math.pi * rss / n) + 1.0))
            figures["log-likelihood"] = f"{likelihood:.8g}"
        if self.l2 > 0:
            figures["penalty"] = f"l2 = {self.l2:g}"
        figures["solver"] = f"{ran}, {self.status_.name}"
        first = design.first
        return Summary(
            title=f"Linear regression, {counted(n, 'row')}, "
            f"{counted(design.table.columns, 'column')}",
            names=["intercept"] * first + design.table.names,
            estimate=np.concatenate([[self.intercept_] * first, self.coef_]),
            standard_error=np.concatenate([[self.intercept_se_] * first, self.coef_se_]),
            degrees_of_freedom=float(spare),
            figures=figures,
            notes=notes,
        )

    def predict(self, X: Any) -> np.ndarray:
        """Return intercept + X @ coef, (rows,) float64.

        Raises:
            NotFittedError: before `fit`.
            ValueError: X has other columns than those of `fit`.
        """
        return self._linear(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² = 1 - Σ w (y - prediction)² / Σ w (y - mean)², 1 at best, on these rows.

        For a constant y it is 1 where every prediction is right and 0 otherwise.
        """
        predictions = self.predict(X)
        target = read_target(y, len(predictions))
        weights = read_weights(sample_weight, len(predictions))
        if len(target) < 2:
            warnings.warn("R² is not defined for fewer than two rows.", UserWarning, stacklevel=2)
            return math.nan
        squares = np.average(np.square(target - predictions), weights=weights)
        used = target if weights is None else target[weights > 0]
        if np.ptp(used) == 0:
            return 1.0 if squares == 0 else 0.0
        total = np.average(np.square(target - np.average(target, weights=weights)), weights=weights)
        return float(1.0 - squares / total)


def _squares(design: Design, solution: np.ndarray) -> float:
    """Return Σ w r² of a scaled solution, with weights of mean 1, in scaled units."""
    residuals = (rows @ np.append(-solution, 1.0) for _, rows in design.pieces())
    return float(sum(residual @ residual for residual in residuals))


def _direct(design: Design, l2: float, solver: str) -> tuple[Factor, np.ndarray, float, int]:
    """Return the factor, the scaled solution, Σ w r² (scaled) and passes over the data."""
    factor = factorize(design, l2, solver)
    by_gram = math.isnan(factor.residual)
    refined = refine(design, factor, l2, _GRAM_PASSES if by_gram else 1)
    if by_gram and not refined.settled:
        factor = factorize(design, l2, "qr")
        refined = refine(design, factor, l2, 1)
    return factor, refined.solution, refined.squares, 1 + refined.passes


def _iterate(design: Design, factor: Factor, model: LinearRegression) -> tuple[Result, np.ndarray]:
    """Return the result of `minimize` over the independent columns, and the scaled solution.

    The loss is the mean of ½r², with weights of mean 1, and the penalty.
    """
    kept = factor.basis
    ridge = design.penalty(float(model.l2))[kept] ** 2
    triangle = factor.R[:, kept]

    def widen(b: np.ndarray) -> np.ndarray:
        wide = np.zeros(design.width)
        wide[kept] = b
        return wide

    def evaluate(b: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = float(ridge @ b**2), ridge * b
        for _, rows in design.pieces():
            residual = rows @ np.append(-widen(b), 1.0)
            value += float(residual @ residual)
            gradient -= (residual @ rows)[kept]
        return 0.5 * value / design.n, gradient / design.n

    def hessian(_: np.ndarray) -> np.ndarray:
        return triangle.T @ triangle / design.n

    curvature = float(np.linalg.norm(triangle, 2)) ** 2 / design.n
    optimizer = optimizer_for(model.solver, curvature, hessian)
    start = np.zeros(len(kept))
    result = run(evaluate, hessian, start, optimizer, _TOL, int(model.max_steps))
    return result, widen(np.array(result.params))

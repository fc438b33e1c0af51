"""Linear regression by least squares."""

from __future__ import annotations

import math
import warnings
from typing import Any, Self

import numpy as np
from scipy.special import fdtrc

from mlxopt._platform.narrow import threads_for
from mlxopt._report import counted
from mlxopt._result import Result
from mlxopt.models._base import Model, warn_of_rank, warn_of_status
from mlxopt.models._design import Design
from mlxopt.models._error import error_bounds, judge, rounding
from mlxopt.models._input import read_table, read_target, read_weights
from mlxopt.models._solve import Solved, remainder, solve
from mlxopt.models._summary import Summary, probability_text


class LinearRegression(Model):
    """Linear regression: the coefficients that minimize the mean squared error.

        Σ wᵢ ½(yᵢ - intercept - xᵢᵀcoef)² / Σ wᵢ  +  ½ · l2 · ‖coef‖²

    Standard errors are those of R's `lm`: the variance of the errors is estimated by
    Σ w r² / (rows of positive weight - rank). Coefficients obey repetition: a row of weight 2
    counts as two rows. Where columns depend linearly on others, the answer is the one of smallest
    ‖coef‖, without standard errors, and a `RankWarning` names those columns.

    Args:
        solver: "auto": QR while the design is small or ill-conditioned; where it is large,
            its Gram matrix, with the answer refined by residuals from the data. "qr" takes QR in
            any case. "newton", "lbfgs", "momentum" and "sgd" (full-batch, with steps of 1 / the
            largest curvature) run `mlxopt.minimize`, and so does any optimizer of mlxopt's without
            bounds, a penalty or weight decay. All of them read X a block of rows at a time, cast to
            float64; of more than 16 MB no copy is kept, but of one-hot columns (where "auto" is
            many times faster) their nonzero entries.
            A fit to large data takes less than a tenth of the memory of X in float32.
        l2: the strength of the penalty, zero or more; the intercept is free of it.
        fit_intercept: whether there is an intercept.
        max_steps: for the solvers that take steps.
        precision: "auto" finishes in float64, on the CPU. "float64" computes in it from the start,
            and so does "auto" at present, since nothing is quicker there. "float32" leaves the
            solver in float32, with the products of blocks on MLX's default device, and its answer
            as it is. Rank and computational error are judged in float64 even then, and
            standard errors keep three digits or more.

    Attributes:
        coef_: (columns,) float64.
        intercept_: float.
        coef_se_, intercept_se_: standard errors of the same shapes; nan with `l2 > 0`, dependent
            columns or no rows to spare (`summary()` says which), and for an intercept left out.
        coef_error_, intercept_error_: bounds of the computational error, of the same shapes: how
            far from the exact coefficients of these data rounding, and steps not taken, leave the
            ones here, at most or nearly. `summary()` sets them against the standard errors; nan
            with dependent columns.
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
    >>> bool(model.coef_error_.max() < 1e-14)
    True
    >>> model.coef_se_.round(4), round(model.score([[0.0], [3.0]], [1.0, 8.0]), 4)
    (array([0.1732]), 0.9947)
    """

    _estimator_type = "regressor"
    _solvers = ("auto", "qr", "newton", "lbfgs", "momentum", "sgd")

    intercept_: float
    coef_se_: np.ndarray
    intercept_se_: float
    coef_error_: np.ndarray
    intercept_error_: float
    n_iter_: int
    result_: Result | None

    def __init__(
        self,
        solver: Any = "auto",
        *,
        l2: float = 0.0,
        fit_intercept: bool = True,
        max_steps: int = 1000,
        precision: str = "auto",
    ) -> None:
        self.solver = solver
        self.l2 = l2
        self.fit_intercept = fit_intercept
        self.max_steps = max_steps
        self.precision = precision

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
            ConvergenceWarning: a solver that takes steps did not converge, or the computational
                error is over 1 % of a standard error.
        """
        self._check_parameters()
        self._forget()
        table = read_table(X)
        target = read_target(y, table.rows)
        weights = read_weights(sample_weight, table.rows)
        design = Design(table, weights, bool(self.fit_intercept), target)
        l2 = float(self.l2)
        with threads_for(table.rows, design.width):
            solved = solve(design, self.solver, l2, int(self.max_steps), self.precision)
        solution, rank = solved.solution, len(solved.factor.basis)
        notes = []
        names = [design.name(index) for index in solved.factor.dependent]
        if names:
            solution = solved.factor.minimum_norm(design, solution)
            notes.append(warn_of_rank(names, rank, design.width))
        warn_of_status(solved.status, self.solver, self.precision)

        self._remember_columns(table)
        self.coef_, self.intercept_ = design.unscale(solution)
        self.rank_, self.dependent_columns_ = rank, names
        self.status_, self.n_iter_, self.result_ = solved.status, solved.passes, solved.result
        standard_error = self._standard_errors(design, solved, notes)
        error = np.full(design.width, math.nan)
        if not names:
            error = error_bounds(design, solution, remainder(design, solved, l2))
        self.coef_se_, self.intercept_se_ = design.split(standard_error)
        self.coef_error_, self.intercept_error_ = design.split(error)
        words = judge(error, standard_error, self.precision, _is_exact(design, solved), notes)
        self._summary = self._summarize(design, solved, words, notes)
        return self

    def _standard_errors(self, design: Design, solved: Solved, notes: list[str]) -> np.ndarray:
        """Return the standard errors, (q,), or nan with a note of why."""
        spare = design.n - self.rank_
        notes += self._reasons_for_no_standard_errors()
        if not notes and spare == 0:
            notes.append(
                f"{design.n} rows for {design.n} coefficients leave none to estimate the errors by."
            )
        if notes:
            return np.full(design.width, math.nan)
        rows = design.unscale_rows(solved.factor.inverse)
        return np.linalg.norm(rows, axis=1) * math.sqrt(solved.squares / spare)

    def _summarize(
        self, design: Design, solved: Solved, error_in_words: str, notes: list[str]
    ) -> Summary:
        n, rank, squares = design.n, self.rank_, solved.squares
        unit = float(design.target_scale.unit[0])
        total = _squares_of_target(design)
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
            logs = _sum_of_log_weights(design)
            likelihood = 0.5 * (logs - n * (math.log(2 * math.pi * rss / n) + 1.0))
            figures["log-likelihood"] = f"{likelihood:.8g}"
        if self.l2 > 0:
            figures["penalty"] = f"l2 = {self.l2:g}"
        figures["solver"] = f"{solved.way} in {self._precision()}, {self.status_.name}"
        figures["computational error"] = error_in_words
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
        target = read_target(y, len(predictions)).astype(np.float64, copy=False)
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


def _is_exact(design: Design, solved: Solved) -> bool:
    """Whether the residuals are no larger than the rounding of the fitted values."""
    sizes = np.linalg.norm(solved.factor.R, axis=0)
    return math.sqrt(solved.squares) <= rounding(design) * float(sizes @ np.abs(solved.solution))


def _squares_of_target(design: Design) -> float:
    """Return Σ w (target - mean)², about zero without intercept; scaled, weights of mean 1."""

    def total(power: int, center: float) -> float:
        result = 0.0
        for where in design.spans():
            terms, root = (design.targets(where) - center) ** power, design.roots(where)
            result += float((terms if root is None else terms * root**2).sum())
        return result

    return total(2, total(1, 0.0) / design.n if design.fit_intercept else 0.0)


def _sum_of_log_weights(design: Design) -> float:
    weights = design.weights
    if weights is None:
        return 0.0
    return float(sum(np.log(design.pick(weights, where)).sum() for where in design.spans()))

"""Logistic regression of two classes."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from scipy.special import expit, xlogy

from mlxopt._platform.narrow import threads_for
from mlxopt._report import counted
from mlxopt._result import Result
from mlxopt.models._base import Model, warn_of_rank, warn_of_status
from mlxopt.models._climb import Climbed, climb
from mlxopt.models._design import Design
from mlxopt.models._error import error_bounds, judge
from mlxopt.models._input import read_column, read_labels, read_table, read_weights
from mlxopt.models._separation import warn_of_separation
from mlxopt.models._summary import Summary


class LogisticRegression(Model):
    """Logistic regression: the probability of the second of two classes.

        P(second class) = σ(intercept + xᵀcoef),    σ(z) = ½(1 + tanh(z/2))
        Σ wᵢ log(1 + exp(-sᵢ zᵢ)) / Σ wᵢ  +  ½ · l2 · ‖coef‖²,    sᵢ = ±1

    Standard errors are those of the (weighted) Fisher information at the maximum; a row of weight
    2 counts as two rows. Where a combination of columns separates the classes, the likelihood has
    no maximum: a `SeparationWarning` names the columns, and the coefficients are those of the
    moment when the solver stopped, fit for `predict` and for nothing else.

    Args:
        solver: "newton" (with the Hessian XᵀWX), "lbfgs", "momentum", "sgd" (full-batch, with steps
            of 1 / the largest curvature), or any optimizer of mlxopt's without bounds, a penalty or
            weight decay, run by `mlxopt.minimize`. A converged run is finished by Newton steps, so
            that all of them give the same digits.
            X is read a block of rows at a time, cast to float64; of more than 16 MB no copy is
            kept. On large data "newton" starts from the maximum of a sample of the rows, and a fit
            takes less than a tenth of the memory of X in float32.
        l2: the strength of the penalty, zero or more; the intercept is free of it.
            scikit-learn's C is 1 / (l2 · Σw).
        fit_intercept: whether there is an intercept.
        max_steps: for the solver.
        precision: "auto" finishes in float64, on the CPU. "float64" computes in it from the start,
            and so does "auto" at present, since nothing is quicker there. "float32" leaves the
            solver in float32, with the products of blocks on MLX's default device, and its answer
            as it is. Rank, separation, standard errors and computational error are
            float64 even then.

    Attributes:
        classes_: (2,) the labels, sorted; the probability is that of the second.
        coef_: (1, columns) float64.
        intercept_: (1,) float64.
        coef_se_, intercept_se_: standard errors of the same shapes; nan with `l2 > 0`, dependent
            columns or separation (`summary()` says which).
        coef_error_, intercept_error_: bounds of the computational error, of the same shapes: how
            far from the exact coefficients of these data rounding, and steps not taken, leave the
            ones here, at most or nearly. `summary()` sets them against the standard errors; nan
            with dependent columns, separation or a solver that did not converge.
        rank_: columns that do not depend on others, the intercept included.
        dependent_columns_: the names of those that do.
        separating_columns_: the names of the columns that separate the classes; mostly empty.
        n_features_in_: columns of X.
        feature_names_in_: their names, if X was a data frame.
        status_: why the solver stopped; UNBOUNDED for separated classes.
        n_iter_: steps of the solver.
        result_: what `minimize` returned, in scaled parameters.

    Separation is defined by Albert and Anderson (1984) and found by the linear program of Konis
    (2007), where nothing simpler proves or excludes it.

    >>> import mlxopt as mo
    >>> X, y = [[1.0], [2.0], [3.0], [4.0], [5.0]], ["no", "no", "yes", "no", "yes"]
    >>> model = mo.models.LogisticRegression().fit(X, y)
    >>> model.coef_.round(4), model.intercept_.round(4)
    (array([[1.0904]]), array([-3.894]))
    >>> model.predict([[1.0], [5.0]]), model.predict_proba([[5.0]]).round(3)
    (array(['no', 'yes'], dtype='<U3'), array([[0.174, 0.826]]))
    """

    _estimator_type = "classifier"
    _solvers = ("newton", "lbfgs", "momentum", "sgd")

    classes_: np.ndarray
    intercept_: np.ndarray
    coef_se_: np.ndarray
    intercept_se_: np.ndarray
    coef_error_: np.ndarray
    intercept_error_: np.ndarray
    n_iter_: int
    result_: Result

    def __init__(
        self,
        solver: Any = "newton",
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
            y: (rows,) of two labels: numbers, strings, booleans.
            sample_weight: (rows,), zero or more. A row of weight zero counts as left out.

        Returns:
            the model.

        Raises:
            TypeError, ValueError: the input is not as described; the message says where.
            KeyboardInterrupt: Ctrl-C; the model is then not fitted.

        Warns:
            RankWarning: columns depend on others.
            SeparationWarning: some combination of columns separates the classes.
            ConvergenceWarning: the solver did not converge, or the computational error is over 1 %
                of a standard error.
        """
        self._check_parameters()
        self._forget()
        table = read_table(X)
        weights = read_weights(sample_weight, table.rows)
        classes, labels = read_labels(y, table.rows)
        design = Design(table, weights, bool(self.fit_intercept))
        used = labels if design.used is None else labels[design.used]
        if used.min() == used.max():
            only = classes[int(used[0])].item()
            raise ValueError(
                f"all rows of positive sample_weight are of one class, {only!r}; expected two."
            )
        l2, max_steps = float(self.l2), int(self.max_steps)
        with threads_for(table.rows, design.width):
            climbed = climb(design, labels, self.solver, l2, max_steps, self.precision)
        basis, notes = climbed.factor.basis, []
        names = [design.name(index) for index in climbed.factor.dependent]
        solution = np.zeros(design.width)
        solution[basis] = climbed.b
        if names:
            solution = climbed.factor.minimum_norm(design, solution)
            notes.append(warn_of_rank(names, len(basis), design.width))
        if climbed.separation is not None:
            notes.append(warn_of_separation(climbed.separation))
        else:
            warn_of_status(climbed.status, self.solver, self.precision)

        self._remember_columns(table)
        self.classes_ = classes
        self.coef_, self.intercept_ = _shaped(*design.unscale(solution))
        self.rank_, self.dependent_columns_ = len(basis), names
        self.separating_columns_ = climbed.separation.columns if climbed.separation else []
        self.status_, self.n_iter_ = climbed.status, climbed.result.steps
        self.result_ = climbed.result
        notes += self._reasons_for_no_standard_errors()
        standard_error = error = np.full(design.width, math.nan)
        if climbed.maximum is not None and not notes:
            standard_error = np.linalg.norm(design.unscale_rows(climbed.inverse_root()), axis=1)
        if climbed.maximum is not None and not names:
            error = error_bounds(design, solution, climbed.remainder())
        self.coef_se_, self.intercept_se_ = _shaped(*design.split(standard_error))
        self.coef_error_, self.intercept_error_ = _shaped(*design.split(error))
        words = judge(error, standard_error, self.precision, False, notes)
        self._summary = self._summarize(climbed, words, notes)
        return self

    def _summarize(self, climbed: Climbed, error_in_words: str, notes: list[str]) -> Summary:
        likelihood, value = climbed.likelihood, climbed.slopes.value
        design, n, total = likelihood.design, likelihood.design.n, likelihood.total
        rows_of_second, second = likelihood.size_of_second_class()
        share = second / total
        # The model without columns: one probability for all, or one half without intercept.
        null = total * math.log(2.0)
        if self.fit_intercept:
            null = -float(xlogy(second, share) + xlogy(total - second, 1.0 - share))
        first, last = (repr(label) for label in self.classes_.tolist())
        figures = {
            "rows": f"{n:,}, of them {rows_of_second:,} of class {last}",
            "rank": f"{self.rank_} of {design.width}{' with the penalty' * (self.l2 > 0)}",
            "log-likelihood": f"{-value:.8g}",
            "deviance": f"{2 * value:.8g}",
            "deviance, null": f"{2 * null:.8g}",
            "R², McFadden": f"{1.0 - value / null:.6g}",
        }
        if self.l2 > 0:
            figures["penalty"] = f"l2 = {self.l2:g}"
        else:
            figures["AIC"] = f"{2 * value + 2 * self.rank_:.8g}"
        steps = counted(self.n_iter_, "step")
        figures["solver"] = f"{self.solver!r} in {self._precision()}, {self.status_.name}, {steps}"
        figures["computational error"] = error_in_words
        intercept = [float(self.intercept_[0])] * design.first
        intercept_se = [float(self.intercept_se_[0])] * design.first
        return Summary(
            title=f"Logistic regression of class {last} against {first}, {counted(n, 'row')}, "
            f"{counted(design.table.columns, 'column')}",
            names=["intercept"] * design.first + design.table.names,
            estimate=np.concatenate([intercept, self.coef_[0]]),
            standard_error=np.concatenate([intercept_se, self.coef_se_[0]]),
            degrees_of_freedom=math.inf,
            figures=figures,
            notes=notes,
        )

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits, (rows,) float64: positive where the second class is likelier."""
        return self._linear(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the first and the second class, (rows, 2) float64."""
        logits = self._linear(X)
        return np.column_stack([expit(-logits), expit(logits)])

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities, (rows, 2), right for tiny ones too."""
        logits = self._linear(X)
        return -np.column_stack([np.logaddexp(0.0, logits), np.logaddexp(0.0, -logits)])

    def predict(self, X: Any) -> np.ndarray:
        """Return the likelier label of each row, (rows,).

        Raises:
            NotFittedError: before `fit`.
            ValueError: X has other columns than those of `fit`.
        """
        second = self._linear(X) > 0
        return self.classes_[second.astype(int)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the (weighted) share of rows whose label is predicted right."""
        predictions = self.predict(X)
        right = predictions == read_column(y, "y", len(predictions))
        return float(np.average(right, weights=read_weights(sample_weight, len(predictions))))


def _shaped(coef: np.ndarray, intercept: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients of shape (1, columns) and intercept of shape (1,), one row a model."""
    return coef[None], np.array([intercept])

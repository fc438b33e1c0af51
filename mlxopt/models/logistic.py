"""Logistic regression of two classes."""

from __future__ import annotations

import math
import warnings
from typing import Any, Self

import mlx.core as mx
import numpy as np
from scipy.special import expit, xlogy

from mlxopt._result import Result
from mlxopt._status import Status
from mlxopt.losses import logistic
from mlxopt.models._base import (
    Model,
    SeparationWarning,
    optimizer_for,
    run,
    warn_of_rank,
    warn_of_status,
)
from mlxopt.models._design import Design
from mlxopt.models._factor import Factor, factorize
from mlxopt.models._input import read_column, read_labels, read_table, read_weights
from mlxopt.models._likelihood import Likelihood, Maximum, finish
from mlxopt.models._separation import Separation, find_separation
from mlxopt.models._summary import Summary, counted

_TOL = 1e-8  # on the gradient of the mean loss in scaled columns; `finish` goes on from there


class LogisticRegression(Model):
    """Logistic regression: the probability of the second of two classes, fitted in float64.

        P(second class) = σ(intercept + xᵀcoef),    σ(z) = ½(1 + tanh(z/2))
        Σ wᵢ log(1 + exp(-sᵢ zᵢ)) / Σ wᵢ  +  ½ · l2 · ‖coef‖²,    sᵢ = ±1

    Standard errors are those of the (weighted) Fisher information at the maximum; a row of weight
    2 counts as two rows. Where a combination of columns separates the classes, the likelihood has
    no maximum: a `SeparationWarning` names the columns, and the coefficients are those of the
    moment when the solver stopped, fit for `predict` and for nothing else.

    Args:
        solver: "newton" (with the Hessian XᵀWX), "lbfgs", "momentum", "sgd" (full-batch, with steps
            of 1 / the largest curvature), or any optimizer of mlxopt's; `mlxopt.minimize` runs it
            on a scaled float64 copy of X. A converged run is finished by Newton steps on X itself,
            so that all of them give the same digits.
        l2: the strength of the penalty, zero or more; the intercept is free of it.
            scikit-learn's C is 1 / (l2 · Σw).
        fit_intercept: whether there is an intercept.
        max_steps: for the solver.

    Attributes:
        classes_: (2,) the labels, sorted; the probability is that of the second.
        coef_: (1, columns) float64.
        intercept_: (1,) float64.
        coef_se_, intercept_se_: standard errors of the same shapes; nan with `l2 > 0`, dependent
            columns or separation (`summary()` says which).
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
    status_: Status
    n_iter_: int
    result_: Result

    def __init__(
        self,
        solver: Any = "newton",
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
            ConvergenceWarning: the solver did not converge.
        """
        self._check_parameters()
        self._forget()
        table = read_table(X)
        weights = read_weights(sample_weight, table.rows)
        classes, labels = read_labels(y, table.rows)
        design = Design(table, weights, bool(self.fit_intercept))
        used = design.pick(labels)
        if used.min() == used.max():
            only = classes[int(used[0])].item()
            raise ValueError(
                f"all rows of positive sample_weight are of one class, {only!r}; expected two."
            )
        penalty = design.penalty(float(self.l2))
        factor = factorize(design, penalty)
        likelihood = Likelihood(design, used, factor.basis, penalty)
        result, b = _iterate(likelihood, factor, self)
        status = result.status

        separation = None if self.l2 > 0 else find_separation(likelihood, b)
        maximum = None
        if separation is not None:
            status = Status.UNBOUNDED
        elif status in (Status.CONVERGED, Status.NO_PROGRESS):
            maximum = finish(likelihood, b)
            b = maximum.b
            status = Status.CONVERGED if maximum.converged else Status.NO_PROGRESS
        notes = []
        names = [design.name(index) for index in factor.dependent]
        solution = np.zeros(design.width)
        solution[factor.basis] = b
        if names:
            solution = factor.minimum_norm(design, solution)
            notes.append(warn_of_rank(names, len(factor.basis), design.width))
        if separation is not None:
            notes.append(_warn_of_separation(separation))
        else:
            warn_of_status(status, self.solver)

        self._remember_columns(table)
        self.classes_ = classes
        coef, intercept = design.unscale(solution)
        self.coef_, self.intercept_ = coef[None], np.array([intercept])
        self.rank_, self.dependent_columns_ = len(factor.basis), names
        self.separating_columns_ = [] if separation is None else separation.columns
        self.status_, self.n_iter_, self.result_ = status, result.steps, result
        errors = self._standard_errors(design, maximum, notes)
        self.coef_se_, self.intercept_se_ = errors[0][None], np.array([errors[1]])
        value = (likelihood.slopes(b) if maximum is None else maximum.slopes).value
        self._summary = self._summarize(likelihood, value, notes)
        return self

    def _standard_errors(
        self, design: Design, maximum: Maximum | None, notes: list[str]
    ) -> tuple[np.ndarray, float]:
        """Return the standard errors, or nan with a note of why."""
        if self.l2 > 0:
            notes.append(
                "with l2 > 0 the coefficients are drawn towards zero on purpose, and standard "
                "errors would not measure their distance from the truth."
            )
        elif self.status_.is_failure and self.status_ is not Status.UNBOUNDED:
            notes.append(
                f"the solver did not converge ({self.status_.name}): these are not the best "
                f"coefficients, and they have no standard errors."
            )
        if notes or maximum is None:
            return np.full(design.table.columns, math.nan), math.nan
        information = maximum.slopes.information
        unit = np.sqrt(np.diag(information))
        lower = np.linalg.cholesky(information / np.outer(unit, unit))
        inverse = np.linalg.inv(lower).T / unit[:, None]  # V with V Vᵀ = information⁻¹
        return design.standard_errors(inverse)

    def _summarize(self, likelihood: Likelihood, value: float, notes: list[str]) -> Summary:
        design, n = likelihood.design, likelihood.design.n
        w, y = likelihood.weights, likelihood.labels
        second = float(w @ y)
        total = likelihood.total
        share = second / total
        # The model without columns: one probability for all, or one half without intercept.
        null = total * math.log(2.0)
        if self.fit_intercept:
            null = -float(xlogy(second, share) + xlogy(total - second, 1.0 - share))
        first, last = (repr(label) for label in self.classes_.tolist())
        figures = {
            "rows": f"{n:,}, of them {int(y.sum()):,} of class {last}",
            "rank": f"{self.rank_} of {design.width}",
            "log-likelihood": f"{-value:.8g}",
            "deviance": f"{2 * value:.8g}",
            "deviance, null": f"{2 * null:.8g}",
            "R², McFadden": f"{1.0 - value / null:.6g}",
        }
        if self.l2 > 0:
            figures["penalty"] = f"l2 = {self.l2:g}"
        else:
            figures["AIC"] = f"{2 * value + 2 * self.rank_:.8g}"
        figures["solver"] = f"{self.solver!r}, {self.status_.name}, {counted(self.n_iter_, 'step')}"
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


def _iterate(
    likelihood: Likelihood, factor: Factor, model: LogisticRegression
) -> tuple[Result, np.ndarray]:
    """Return the result of `minimize` over the independent columns, and its params."""
    design, kept = likelihood.design, likelihood.kept
    rows = np.empty((design.n, len(kept)))
    for where, A in likelihood.blocks():
        rows[where] = A
    arrays = (
        rows, likelihood.labels, likelihood.weights / likelihood.total,
        likelihood.ridge / likelihood.total,
    )  # fmt: skip
    data = tuple(mx.array(array, dtype=mx.float64) for array in arrays)
    del rows, arrays
    # σ' ≤ ¼, and the factor's penalty is there already, in full.
    curvature = float(np.linalg.norm(factor.R[:, kept], 2)) ** 2 / design.n
    if model.l2 == 0:
        curvature /= 4.0

    def hessian(params: mx.array, *_: Any) -> mx.array:
        information = likelihood.slopes(np.asarray(params)).information
        return mx.array(information / likelihood.total, dtype=mx.float64)

    result = run(
        _loss,
        mx.array(np.zeros(len(kept)), dtype=mx.float64),
        optimizer_for(model.solver, curvature, hessian),
        data,
        _TOL,
        int(model.max_steps),
    )
    return result, np.array(result.params)


def _loss(
    params: mx.array, A: mx.array, labels: mx.array, weights: mx.array, ridge: mx.array
) -> mx.array:
    """Return the mean loss with its penalty, for scaled coefficients, intercept first."""
    losses = logistic(A @ params, labels)
    return mx.sum(weights * losses) + 0.5 * mx.sum(ridge * mx.square(params))


def _warn_of_separation(separation: Separation) -> str:
    """Warn of separated classes; return the note for the summary."""
    listed = ", ".join(repr(name) for name in separation.columns[:10])
    more = len(separation.columns) - 10
    listed += f" and {more} more" if more > 0 else ""
    many = len(separation.columns) > 1
    how = "completely" if separation.complete else "except on the border between them (quasi)"
    note = (
        f"column{'s' * many} {listed} separate{'s' * (not many)} the classes {how}: the "
        f"likelihood grows for ever as these coefficients do, so they have no finite estimate. "
        f"Those given are where the solver stopped; they serve to predict, and standard errors do "
        f"not exist. "
        f"Use l2 > 0, drop or merge the column{'s' * many}, or collect more rows."
    )
    warnings.warn(note, SeparationWarning, stacklevel=3)
    return note

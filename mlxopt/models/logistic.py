"""Logistic regression of two classes."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from scipy.special import expit, xlogy

from mlxopt._result import Result
from mlxopt._status import Status
from mlxopt.models._base import Model, warn_of_rank, warn_of_status
from mlxopt.models._design import Design
from mlxopt.models._factor import GRAM_CONDITION, Factor, factorize
from mlxopt.models._input import read_column, read_labels, read_table, read_weights
from mlxopt.models._likelihood import Likelihood, Maximum, finish
from mlxopt.models._run import optimizer_for, run
from mlxopt.models._separation import find_separation, warn_of_separation
from mlxopt.models._summary import Summary, counted
from mlxopt.optimizers import Newton

_ENOUGH = 20  # rows for each coefficient make a sample worth fitting
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
            of 1 / the largest curvature), or any optimizer of mlxopt's, run by `mlxopt.minimize`. A
            converged run is finished by Newton steps, so that all of them give the same digits.
            X is read a block of rows at a time, cast to float64; of more than 16 MB no copy is
            kept. On large data "newton" starts from the maximum of a sample of the rows.
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
        l2 = float(self.l2)
        likelihood = Likelihood(design, used, np.arange(design.width), l2)
        learned = _learn_from_sample(likelihood, labels, l2) if self.solver == "newton" else None
        if learned is None:
            factor = factorize(design, l2)
            likelihood = Likelihood(design, used, factor.basis, l2)
            learned = factor, np.zeros(len(factor.basis))
        factor, start = learned
        result, b = _iterate(likelihood, factor, start, self)
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
            notes.append(warn_of_separation(separation))
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
    likelihood: Likelihood, factor: Factor, start: np.ndarray, model: LogisticRegression
) -> tuple[Result, np.ndarray]:
    """Return the result of `minimize` over the independent columns, and its params.

    The loss is the mean of the losses, with its penalty.
    """
    total, ridge = likelihood.total, likelihood.ridge
    is_newton = model.solver == "newton" or isinstance(model.solver, Newton)

    def evaluate(b: np.ndarray) -> tuple[float, np.ndarray]:
        slopes = likelihood.slopes(b, information=is_newton)
        return (slopes.value + 0.5 * float(ridge @ b**2)) / total, slopes.gradient / total

    def hessian(b: np.ndarray) -> np.ndarray:
        return likelihood.slopes(b).information / total

    # σ' ≤ ¼, and the factor's penalty is there already, in full.
    triangle = factor.R[:, likelihood.kept]
    curvature = float(np.linalg.norm(triangle, 2)) ** 2 / likelihood.design.n
    if model.l2 == 0:
        curvature /= 4.0
    optimizer = optimizer_for(model.solver, curvature, hessian)
    result = run(evaluate, hessian, start, optimizer, _TOL, int(model.max_steps))
    return result, np.array(result.params)


def _learn_from_sample(
    likelihood: Likelihood, labels: np.ndarray, l2: float
) -> tuple[Factor, np.ndarray] | None:
    """Return the factor of a sample of the rows, and a start near the maximum of all; or None.

    Columns that are independent in some rows are independent in all. From the maximum of the sample
    one step leads on, with the slopes of all rows and the sample's curvature; from there Newton's
    method takes half the steps that it takes from zero.

    Args:
        likelihood: of all rows and columns.
        labels: (rows,), of the table.
        l2: the strength of the penalty.
    """
    design = likelihood.design
    if design.sample is None or design.sample.n < _ENOUGH * design.width:
        return None
    second = design.sample.pick(labels[:: design.stride])
    if second.min() == second.max():
        return None
    factor = factorize(design.sample, l2)
    if len(factor.dependent) or not factor.condition < GRAM_CONDITION:
        return None
    some = Likelihood(design.sample, second, factor.basis, l2)
    maximum = finish(some, np.zeros(design.width), done=0.3)
    if not maximum.converged:
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that the sample lacks
        gradient = likelihood.slopes(maximum.b, information=False).gradient / likelihood.total
        start = maximum.b - np.linalg.solve(maximum.slopes.information / some.total, gradient)
        slopes = likelihood.slopes(start)
    if np.isfinite(slopes.information).all() and slopes.value < likelihood.total * math.log(2.0):
        return factor, start  # better than zero
    design.measure()
    return None

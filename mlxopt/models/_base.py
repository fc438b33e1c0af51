"""What the models share: scikit-learn's conventions, checks and warnings."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import sys
import warnings
from typing import Any, ClassVar, Self

import numpy as np

from mlxopt._checks import describe_type
from mlxopt._platform.narrow import threads_for
from mlxopt._report import html
from mlxopt._status import ConvergenceWarning, Status
from mlxopt.models._input import Table, check_finite_block, read_table
from mlxopt.models._summary import Summary
from mlxopt.optimizers import Optimizer

PRECISIONS = ("auto", "float32", "float64")
_PREDICT_ROWS = 2**14


class RankWarning(ConvergenceWarning):
    """Some columns are linear combinations of others, so there are many best coefficients."""


class SeparationWarning(ConvergenceWarning):
    """A combination of columns tells the classes apart, so the best coefficients are infinite."""


class NotFittedError(ValueError, AttributeError):
    """The model was asked for something that only `fit` can give it."""


class Model:
    """A linear model with scikit-learn's conventions, without scikit-learn.

    A subclass names its parameters in `__init__` and stores each under its own name, unchecked;
    `fit` checks them. What `fit` learns ends in an underscore.
    """

    _estimator_type: ClassVar[str]
    _solvers: ClassVar[tuple[str, ...]]

    solver: Any
    l2: Any
    fit_intercept: Any
    max_steps: Any
    precision: Any

    coef_: np.ndarray
    n_features_in_: int
    status_: Status

    # --- scikit-learn's conventions -----------------------------------------------------------

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters of `__init__` by name; `deep` changes nothing here."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters of `__init__` by name, and return the model."""
        known = self._parameter_names()
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {self!r}. "
                    f"Valid parameters are: {known!r}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = (
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if repr(value) != repr(defaults[name].default)
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    def _repr_html_(self) -> str:
        changed = [(name, repr(value)) for name, value in self.get_params().items()]
        fitted = self.summary()._repr_html_() if self.__sklearn_is_fitted__() else ""
        return html(type(self).__name__, changed) + fitted

    def __sklearn_is_fitted__(self) -> bool:
        return "coef_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        # Only scikit-learn calls this, so it is there to import.
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifies = self._estimator_type == "classifier"
        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            classifier_tags=ClassifierTags(multi_class=False) if classifies else None,
            regressor_tags=None if classifies else RegressorTags(),
            input_tags=InputTags(),
        )

    # --- Checks -------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        """Raise TypeError or ValueError unless the parameters are what `fit` can use."""
        l2, max_steps = self.l2, self.max_steps
        if isinstance(l2, bool) or not isinstance(l2, numbers.Real):
            raise TypeError(f"l2 is {l2!r}; expected a number, zero or more.")
        if not (math.isfinite(l2) and float(l2) >= 0):
            raise ValueError(f"l2 is {l2}; expected a finite number, zero or more.")
        if isinstance(max_steps, bool) or not isinstance(max_steps, numbers.Integral):
            raise TypeError(f"max_steps is {max_steps!r}; expected a whole number.")
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}; expected 1 or more.")
        if not isinstance(self.fit_intercept, (bool, np.bool_)):
            raise TypeError(f"fit_intercept is {self.fit_intercept!r}; expected True or False.")
        if self.precision not in PRECISIONS:
            known = ", ".join(map(repr, PRECISIONS))
            raise ValueError(f"precision is {self.precision!r}; expected one of {known}.")
        if isinstance(self.solver, Optimizer):
            return self._check_minimizes_the_loss_alone()
        if self.solver in self._solvers:
            return
        if isinstance(self.solver, type):
            raise TypeError(f"solver is {describe_type(self.solver)}; expected an instance.")
        close = difflib.get_close_matches(str(self.solver).lower(), self._solvers, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"solver is {self.solver!r}; expected one of {', '.join(map(repr, self._solvers))}, or "
            f"an optimizer such as mo.LBFGS().{hint}"
        )

    def _check_minimizes_the_loss_alone(self) -> None:
        if self.solver.loss_alone and not _decays(self.solver):
            return
        model, kind = type(self).__name__, type(self.solver).__name__
        raise ValueError(
            f"solver is {self.solver!r}, which minimizes the loss with bounds, a penalty or weight "
            f"decay; {model} ends at the minimum of its own loss, where these would be lost. For a "
            f"ridge penalty pass l2=...; for others write the loss as a function and call "
            f"mo.minimize(loss, params, mo.{kind}(...), X, y)."
        )

    def _precision(self) -> str:
        """Return the precision that `fit` works in."""
        return "float32" if self.precision == "float32" else "float64"

    def _reasons_for_no_standard_errors(self) -> list[str]:
        """Return notes of what, beside dependent columns, leaves the estimates without them."""
        if self.l2 > 0:
            return [
                "with l2 > 0 the coefficients are drawn towards zero on purpose, and standard "
                "errors would not measure their distance from the truth."
            ]
        if self.status_ not in (Status.CONVERGED, Status.UNBOUNDED):
            return [
                f"the solver did not converge ({self.status_.name}): these are not the best "
                f"coefficients, and they have no standard errors."
            ]
        return []

    def _forget(self) -> None:
        """Take back what an earlier fit learned: a fit that fails must not leave it standing."""
        for name in [name for name in vars(self) if name.endswith("_") or name == "_summary"]:
            delattr(self, name)

    def _remember_columns(self, table: Table) -> None:
        self.n_features_in_ = table.columns
        if table.feature_names is not None:
            self.feature_names_in_ = table.feature_names

    def _check_is_fitted(self) -> None:
        if self.__sklearn_is_fitted__():
            return
        message = (
            f"This {type(self).__name__} instance is not fitted yet. Call fit(X, y) before asking "
            f"it for anything else."
        )
        theirs = sys.modules.get("sklearn.exceptions")
        if theirs is None:
            raise NotFittedError(message)
        # Whoever catches scikit-learn's error catches this one too.
        raise type("NotFittedError", (NotFittedError, theirs.NotFittedError), {})(message)

    def _linear(self, X: Any) -> np.ndarray:
        """Return X @ coef + intercept in float64, (rows,), after checking X against `fit`."""
        self._check_is_fitted()
        table = read_table(X)
        if table.columns != self.n_features_in_:
            raise ValueError(
                f"X has {table.columns} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input: the columns it was fitted to."
            )
        self._check_names(table)
        coef = self.coef_.reshape(-1)
        (intercept,) = np.atleast_1d(getattr(self, "intercept_", 0.0))
        result = np.empty(table.rows)
        with threads_for(table.rows, table.columns):
            for start in range(0, table.rows, _PREDICT_ROWS):
                stop = min(start + _PREDICT_ROWS, table.rows)
                block = table.block(start, stop)
                check_finite_block(block, start, table.names)
                result[start:stop] = block.astype(np.float64, copy=False) @ coef + intercept
        return result

    def _check_names(self, table: Table) -> None:
        fitted, given = getattr(self, "feature_names_in_", None), table.feature_names
        model = type(self).__name__
        if fitted is None and given is not None:
            message = f"X has feature names, but {model} was fitted without feature names"
            warnings.warn(message, UserWarning, stacklevel=4)
        elif fitted is not None and given is None:
            message = (
                f"X does not have valid feature names, but {model} was fitted with feature names"
            )
            warnings.warn(message, UserWarning, stacklevel=4)
        elif fitted is not None and given is not None and list(fitted) != list(given):
            unseen = [name for name in given if name not in set(fitted)]
            missing = [name for name in fitted if name not in set(given)]
            message = "The feature names should match those that were passed during fit.\n"
            for title, names in (("unseen at", unseen), ("seen at", missing)):
                if names:
                    now = ", yet now missing" if names is missing else ""
                    message += f"Feature names {title} fit time{now}:\n"
                    message += "".join(f"- {name}\n" for name in names[:5])
            if not unseen and not missing:
                message += "Feature names must be in the same order as they were in fit.\n"
            raise ValueError(message)

    # --- Answers ------------------------------------------------------------------------------

    def summary(self) -> Summary:
        """Return a table of the coefficients and figures of the fit; it prints itself."""
        self._check_is_fitted()
        return self._summary

    _summary: Summary


def _decays(rule: Any) -> bool:
    """Whether a rule, or one inside it, has weight decay."""
    inner = [getattr(rule, "rule", None), *getattr(rule, "groups", {}).values()]
    return getattr(rule, "weight_decay", 0.0) > 0 or any(map(_decays, filter(None, inner)))


def warn_of_status(status: Status, solver: Any, precision: str) -> None:
    """Warn of a run that did not converge."""
    if not status.is_failure:
        return
    message = f"{status.name}: {status.value} (solver={solver!r})"
    if status is Status.NO_PROGRESS and precision == "float32":
        message = (
            f"NO_PROGRESS: float32 does not come near the best coefficients of these columns. Use "
            f'precision="auto", which finishes in float64. (solver={solver!r})'
        )
    warnings.warn(message, ConvergenceWarning, stacklevel=3)


def warn_of_rank(names: list[str], rank: int, width: int, stacklevel: int = 3) -> str:
    """Warn of dependent columns; return the note for the summary."""
    listed = ", ".join(repr(name) for name in names[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    which = "column" if len(names) == 1 else "columns"
    combination = "is a linear combination" if len(names) == 1 else "are linear combinations"
    note = (
        f"{which} {listed}{more} {combination} of the columns before (a constant column is one of "
        f"the intercept): rank {rank} of {width}. Of all coefficients that fit equally well these "
        f"have the smallest norm, and they have no standard errors. Drop the {which}, or use "
        f"l2 > 0."
    )
    warnings.warn(note, RankWarning, stacklevel=stacklevel)
    return note

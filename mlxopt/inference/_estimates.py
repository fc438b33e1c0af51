"""Estimates with their covariance, and intervals; both print as tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mlxopt._checks import check_number
from mlxopt._report import Row, counted, html, shortened, table
from mlxopt._tree import Tree, from_leaves, pieces, to_host

Vector = np.ndarray  # (k,), float64
_Table = tuple[str, Sequence[Row], Row, Sequence[str]]  # title, rows, header, notes


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Intervals:
    """A confidence interval for each of k numbers; `repr` is a table."""

    names: tuple[str, ...]  # of the numbers, such as `params['w'][0]`
    estimate: Vector  # (k,), float64
    lower: Vector  # (k,), float64; -inf where no lower limit exists
    upper: Vector  # (k,), float64; inf where no upper limit exists
    level: float  # the probability that such an interval holds the true number
    method: str  # "Wald" or "profile likelihood", and its distribution
    notes: tuple[str, ...] = ()  # reasons for caution

    def _table(self) -> _Table:
        columns = zip(self.names, self.estimate, self.lower, self.upper, strict=True)
        rows = [[name, *(f"{number:.6g}" for number in numbers)] for name, *numbers in columns]
        title = f"{100 * self.level:.6g} % intervals, {self.method}"
        return title, shortened(rows), ["", "estimate", "lower", "upper"], self.notes

    def __repr__(self) -> str:
        return _text(*self._table())

    def _repr_html_(self) -> str:
        return html(*self._table())


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Estimates:
    """Estimates of k numbers with their covariance matrix; `repr` is a table."""

    values: Tree  # the estimates, float64: parameters, or a function of them
    names: tuple[str, ...]  # of the k entries, in `tree_flatten` order: `params['w'][0]`
    covariance: np.ndarray  # (k, k), float64, rows and columns as `names`
    kind: str  # "observed", "sandwich" or "cluster"
    correction: str | None  # "HC0", "HC1", "CR0", "CR1" or "CR1S"; None for "observed"
    examples: int | None  # n, if there was one value for each example
    clusters: int | None  # the number of clusters, for "cluster"
    distance: float  # of the parameters from the minimum, in standard errors (a Newton step)
    condition: float  # of the scaled Hessian; times 2e-16, the covariance's relative error
    notes: tuple[str, ...] = ()  # reasons for caution

    @property
    def estimate(self) -> Vector:
        """The entries of `values`, (k,), float64."""
        return to_host(self.values)

    @property
    def standard_errors(self) -> Vector:
        """The square roots of the variances, (k,), float64."""
        return np.sqrt(np.diag(self.covariance))

    def like_values(self, vector: Vector) -> Tree:
        """Return a vector (k,), such as `standard_errors`, as a tree of NumPy arrays like `values`.

        >>> import mlx.core as mx, mlxopt as mo
        >>> nll = lambda params, y: 0.5 * (y - params["mean"]) ** 2
        >>> fit = mo.inference.covariance(nll, {"mean": mx.array(2.0)}, [1.0, 2.0, 3.0, 2.0])
        >>> fit.like_values(fit.standard_errors)
        {'mean': array(0.5)}
        """
        vector, expected = np.asarray(vector), (len(self.names),)
        if vector.shape != expected:
            raise ValueError(f"vector has shape {vector.shape}; expected {expected}, as names has.")
        return from_leaves(pieces(vector, self.values), self.values)

    def intervals(self, level: float = 0.95, degrees_of_freedom: float = math.inf) -> Intervals:
        """Return Wald intervals: estimate ± quantile · standard error.

        Args:
            level: the probability that such an interval holds the true number, between 0 and 1.
            degrees_of_freedom: of Student's t, whose quantile is taken. Infinity is the normal
                distribution; n - p makes the intervals of a linear regression with normal noise of
                variance SSR / (n - p) exact; clusters - 1 is customary with few clusters.

        Raises:
            TypeError, ValueError: an argument is not as described.

        >>> import mlx.core as mx, mlxopt as mo
        >>> nll = lambda mean, y: 0.5 * (y - mean) ** 2
        >>> fit = mo.inference.covariance(nll, mx.array(2.0), [1.0, 2.0, 3.0, 2.0])
        >>> fit.intervals()
        95 % intervals, Wald
                 estimate    lower    upper
        params          2  1.02002  2.97998
        """
        margin = quantile(level, degrees_of_freedom) * self.standard_errors
        method = "Wald" if degrees_of_freedom == math.inf else f"Wald, t({degrees_of_freedom:g})"
        lower, upper = self.estimate - margin, self.estimate + margin
        return Intervals(self.names, self.estimate, lower, upper, level, method, self.notes)

    def _table(self) -> _Table:
        wald, errors = self.intervals(), self.standard_errors
        columns = zip(self.names, wald.estimate, errors, wald.lower, wald.upper, strict=True)
        rows = [
            [name, f"{estimate:.6g}", f"{error:.4g}", f"{lower:.5g} to {upper:.5g}"]
            for name, estimate, error, lower, upper in columns
        ]
        basis = "inverse of the observed information"
        if self.kind != "observed":
            by = " by cluster" if self.kind == "cluster" else ""
            basis = f"sandwich covariance{by}, {self.correction}"
        data = "the negative log-likelihood as given, one number for all the data"
        if self.examples is not None:
            data = counted(self.examples, "example")
        if self.clusters is not None:
            data += f" in {self.clusters:,} clusters"
        header = ["", "estimate", "std. error", "95 % interval"]
        return f"Estimates ({basis}; {data})", shortened(rows), header, self.notes

    def __repr__(self) -> str:
        return _text(*self._table())

    def _repr_html_(self) -> str:
        return html(*self._table())


def quantile(level: float, degrees_of_freedom: float = math.inf) -> float:
    """Return the half width of an interval in standard errors: 1.96 for 0.95."""
    # SciPy takes longer to import than all of mlxopt.
    from scipy.special import ndtri, stdtrit

    probability = 0.5 + check_number(level, "level", above=0, below=1) / 2
    if degrees_of_freedom == math.inf:
        return float(ndtri(probability))
    check_number(degrees_of_freedom, "degrees_of_freedom", above=0)
    return float(stdtrit(degrees_of_freedom, probability))


def _text(title: str, rows: Sequence[Row], header: Row, notes: Sequence[str]) -> str:
    return "\n".join([title, table(header, rows), *(f"Note: {note}" for note in notes)])

"""Estimates with their covariance, and intervals: arrays with names, which print as tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxopt._checks import check_number
from mlxopt._report import Row, counted, shortened, table
from mlxopt._tree import Tree, from_leaves, leaves_with_paths, pieces, to_host


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Intervals:
    """One confidence interval for each number; printing it gives a table."""

    names: tuple[str, ...]
    """Of the numbers, such as `params['w'][0]`."""
    estimate: np.ndarray
    """(k,), float64."""
    lower: np.ndarray
    """(k,), float64; -inf where nothing bounds the number from below."""
    upper: np.ndarray
    """(k,), float64; inf where nothing bounds the number from above."""
    level: float
    """How often intervals made like this hold the true number, each by itself: 0.95 is 95 %."""
    method: str
    """`Wald` or `profile likelihood`, and what else the numbers rest on."""
    notes: tuple[str, ...] = ()
    """What keeps the numbers from meaning what they seem to."""

    def __repr__(self) -> str:
        columns = zip(self.names, self.estimate, self.lower, self.upper, strict=True)
        rows = [[name, *(f"{number:.6g}" for number in numbers)] for name, *numbers in columns]
        title = f"{percent(self.level)} intervals, {self.method}"
        return _text(title, ["", "estimate", "lower", "upper"], rows, self.notes)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Estimates:
    """Numbers estimated from data, with their covariance matrix; printing it gives a table."""

    values: Tree
    """The estimates: a tree of float64 arrays, the parameters or what a function made of them."""
    names: tuple[str, ...]
    """Of the k entries of `values`, in `tree_flatten` order, such as `params['w'][0]`."""
    covariance: np.ndarray
    """(k, k), float64: estimated variances and covariances, rows and columns as `names`."""
    kind: str
    """`observed`, `sandwich` or `cluster`: what the covariance rests on."""
    correction: str | None
    """`HC0`, `HC1`, `CR0`, `CR1` or `CR1S`; None for `observed`."""
    examples: int | None
    """n, if the negative log-likelihood gave one value for each example."""
    clusters: int | None
    """How many clusters of examples there are, for `cluster`."""
    distance: float
    """How far, in standard errors, the parameters are from the minimum: the largest entry of a
    Newton step from there. The error of the computation, beside that of the data."""
    condition: float
    """The condition number of the Hessian, scaled to a diagonal of ones. Times 2e-16 it is the
    relative error of the covariance."""
    notes: tuple[str, ...] = ()
    """What keeps the numbers from meaning what they seem to."""

    @property
    def estimate(self) -> np.ndarray:
        """The entries of `values`, (k,), float64."""
        return to_host(self.values)

    @property
    def standard_errors(self) -> np.ndarray:
        """The square roots of the variances, (k,), float64."""
        return np.sqrt(np.diag(self.covariance))

    def like_values(self, vector: np.ndarray) -> Tree:
        """Return a vector (k,), such as `standard_errors`, as a tree of NumPy arrays like `values`.

        >>> import mlx.core as mx, mlxopt as mo
        >>> nll = lambda params, y: 0.5 * (y - params["mean"]) ** 2
        >>> fit = mo.inference.covariance(nll, {"mean": mx.array(2.0)}, [1.0, 2.0, 3.0, 2.0])
        >>> fit.like_values(fit.standard_errors)
        {'mean': array(0.5)}
        """
        vector = np.asarray(vector)
        if vector.shape != (len(self.names),):
            raise ValueError(
                f"vector has shape {vector.shape}; expected ({len(self.names)},), an entry for "
                f"each of names."
            )
        return from_leaves(pieces(vector, self.values), self.values)

    def intervals(self, level: float = 0.95, degrees_of_freedom: float = math.inf) -> Intervals:
        """Return Wald intervals: estimate ± quantile · standard error.

        Args:
            level: how often such an interval holds the true number, between 0 and 1.
            degrees_of_freedom: of Student's t, whose quantile is taken. Infinity is the normal
                distribution, as for generalized linear models; n - p makes the intervals of a
                linear regression with normal noise exact, where the variance is estimated as
                SSR / (n - p); clusters - 1 is customary with few clusters.

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
        level = check_level(level)
        if degrees_of_freedom != math.inf:
            check_number(degrees_of_freedom, "degrees_of_freedom", above=0)
        margin = quantile(0.5 + level / 2, degrees_of_freedom) * self.standard_errors
        method = "Wald" + (f", t({degrees_of_freedom:g})" if degrees_of_freedom < math.inf else "")
        estimate = self.estimate
        return Intervals(
            self.names, estimate, estimate - margin, estimate + margin, level, method, self.notes
        )

    def __repr__(self) -> str:
        wald = self.intervals()
        errors = self.standard_errors
        columns = zip(self.names, wald.estimate, errors, wald.lower, wald.upper, strict=True)
        rows = [
            [name, f"{estimate:.6g}", f"{error:.4g}", f"{lower:.5g} to {upper:.5g}"]
            for name, estimate, error, lower, upper in columns
        ]
        header = ["", "estimate", "std. error", "95 % interval"]
        return _text(self._title(), header, rows, self.notes)

    def _title(self) -> str:
        what = {
            "observed": "inverse of the observed information",
            "sandwich": f"sandwich covariance, {self.correction}",
            "cluster": f"sandwich covariance by cluster, {self.correction}",
        }[self.kind]
        data = (
            "the negative log-likelihood as given, one number for all the data"
            if self.examples is None
            else counted(self.examples, "example")
        )
        clusters = f" in {self.clusters:,} clusters" if self.clusters is not None else ""
        return f"Estimates ({what}; {data}{clusters})"


def entry_names(base: str, tree: Tree) -> tuple[str, ...]:
    """Return a name for each entry of a tree, as a person would write it: `params['w'][0, 1]`."""
    return tuple(
        f"{base}{path}" + (f"[{', '.join(map(str, index))}]" if index else "")
        for path, leaf in leaves_with_paths(tree)
        for index in np.ndindex(*leaf.shape)
    )


def check_level(level: Any) -> float:
    """Return the level of an interval, 0.95 for 95 %; raise if it is not between 0 and 1."""
    return check_number(level, "level", above=0, below=1)


def percent(level: float) -> str:
    """Return `95 %` for 0.95."""
    return f"{100 * level:.6g} %"


def quantile(probability: float, degrees_of_freedom: float = math.inf) -> float:
    # SciPy takes longer to import than all of mlxopt.
    from scipy.special import ndtri, stdtrit

    if math.isinf(degrees_of_freedom):
        return float(ndtri(probability))
    return float(stdtrit(degrees_of_freedom, probability))


def _text(title: str, header: Row, rows: Sequence[Row], notes: Sequence[str]) -> str:
    shown = table(header, shortened(rows))
    return "\n".join([title, shown, *(f"Note: {note}" for note in notes)])

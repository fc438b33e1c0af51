"""Separation: whether some combination of columns tells the classes apart, and which columns.

Then the likelihood of a logistic regression grows for ever along that combination, and the
coefficients that a solver returns say when it stopped, not what the data say.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np

from mlxopt.models._base import SeparationWarning
from mlxopt.models._likelihood import Likelihood, has_maximum

_FIRST_ROWS = 20_000  # rows that the linear program starts with
_TINY = 1e-6  # relative to the largest margin or coefficient: zero up to the program's tolerance


class Separation(NamedTuple):
    """A direction along which no row of either class objects, and some agree."""

    complete: bool  # every row is on its side, none on the border
    columns: list[str]  # that take part


def find_separation(likelihood: Likelihood, b: np.ndarray, basis: np.ndarray) -> Separation | None:
    """Return the separation of the classes, or None if the likelihood has a maximum.

    The cheap proofs come first: a Newton step at b that proves a maximum; a single column that
    separates; b itself. What is left is decided by a linear program.

    Args:
        likelihood: of the data.
        b: (k,), where the solver stopped.
        basis: (k, k), B with A B well conditioned, of numbers near 1: in nearly dependent columns
            the program would take for zero what tells them apart.
    """
    change, _, pull, margin = likelihood.newton(b)
    if change is not None and math.isfinite(pull) and has_maximum(pull):
        return None
    alone, strict = _columns_alone(likelihood)
    if alone:
        return Separation(strict or margin > 0, alone)
    direction = _direction(likelihood, basis)
    if direction is None:
        if margin <= 0:
            return None
        direction = b
    return Separation(
        margin > 0 or _is_strict(likelihood, direction), _names(likelihood, direction)
    )


def _columns_alone(likelihood: Likelihood) -> tuple[list[str], bool]:
    """Return the columns that separate the classes by themselves, and whether one does strictly."""
    k = len(likelihood.kept)
    low, high = np.full((2, k), np.inf), np.full((2, k), -np.inf)
    for where, A in likelihood.blocks():
        second = likelihood.signs(where) > 0
        for label in (0, 1):
            rows = A[second == bool(label)]
            if len(rows):
                low[label] = np.minimum(low[label], rows.min(axis=0))
                high[label] = np.maximum(high[label], rows.max(axis=0))
    if likelihood.design.fit_intercept:
        separates = (low[1] >= high[0]) | (low[0] >= high[1])
        strict = (low[1] > high[0]) | (low[0] > high[1])
        trivial = np.minimum(low[0], low[1]) == np.maximum(high[0], high[1])  # a constant column
    else:  # the border goes through zero
        separates = ((low[1] >= 0) & (high[0] <= 0)) | ((low[0] >= 0) & (high[1] <= 0))
        strict = ((low[1] > 0) & (high[0] < 0)) | ((low[0] > 0) & (high[1] < 0))
        trivial = (np.minimum(low[0], low[1]) == 0) & (np.maximum(high[0], high[1]) == 0)
    separates &= ~trivial
    names = [likelihood.design.name(likelihood.kept[j]) for j in np.flatnonzero(separates)]
    return names, bool((separates & strict).any())


def _direction(likelihood: Likelihood, basis: np.ndarray | None = None) -> np.ndarray | None:
    """Return β, (k,), with s aᵀβ ≥ 0 in every row and more in some; None if there is none.

    The linear program of Konis (2007, "Linear programming algorithms for detecting separated data
    in binary logistic regression models"): maximize Σ s aᵀβ under these constraints and |β| ≤ 1.
    A true direction can be lengthened until it meets the box; what the program's tolerance lets
    through is short. Of many rows, only those that object to the direction so far are put in.

    Args:
        likelihood: of the data.
        basis: as above; the program looks for B⁻¹β. None for the identity.
    """
    from scipy.optimize import linprog

    k = len(likelihood.kept)
    basis = np.eye(k) if basis is None else basis
    objective = np.zeros(k)
    every = max(likelihood.design.n // _FIRST_ROWS, 1)
    chosen = []
    for where, A in likelihood.blocks():
        margins = likelihood.signs(where)[:, None] * (A @ basis)
        objective += margins.sum(axis=0)
        chosen.append(margins[::every])
    rows = np.concatenate(chosen)
    while True:
        found = linprog(
            -objective / likelihood.design.n, A_ub=-rows, b_ub=np.zeros(len(rows)), bounds=(-1, 1)
        )
        if found.x is None or np.abs(found.x).max() < 0.5:
            return None
        objecting = [] if every == 1 else _objecting(likelihood, basis, found.x)
        if len(objecting) == 0:
            return basis @ found.x
        rows = np.concatenate([rows, objecting])


def _objecting(likelihood: Likelihood, basis: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return the rows s aᵀB that lie furthest on the wrong side of a direction, at most a few."""
    worst, values = [], []
    for where, A in likelihood.blocks():
        rows = likelihood.signs(where)[:, None] * (A @ basis)
        margins = rows @ direction
        wrong = np.flatnonzero(margins < -_TINY * np.abs(rows).max())
        wrong = wrong[np.argsort(margins[wrong])[:_FIRST_ROWS]]
        worst.append(rows[wrong])
        values.append(margins[wrong])
    order = np.argsort(np.concatenate(values))[:_FIRST_ROWS]
    return np.concatenate(worst)[order]


def _is_strict(likelihood: Likelihood, direction: np.ndarray) -> bool:
    low, high = math.inf, 0.0
    for where, A in likelihood.blocks():
        margins = likelihood.signs(where) * (A @ direction)
        low, high = min(low, float(margins.min())), max(high, float(margins.max()))
    return low > _TINY * high


def _names(likelihood: Likelihood, direction: np.ndarray) -> list[str]:
    """Return the columns that take part in a direction; the intercept only if it is alone."""
    size = np.abs(direction)
    parts = [likelihood.kept[j] for j in np.flatnonzero(size > _TINY * size.max())]
    names = [likelihood.design.name(index) for index in parts]
    return [name for name in names if name != "intercept"] or names


def warn_of_separation(separation: Separation) -> str:
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

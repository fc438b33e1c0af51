"""How far rounding, and steps not taken, leave coefficients from the exact answer to their data.

Standard errors say how far the data leave them from the truth; beside those, an error of the
computer of 1 % is no more than a nuisance. Notation: V Vᵀ = H⁻¹, the inverse of the second
derivative of the objective; ‖d‖_H = √(dᵀ H d).
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np

from mlxopt._status import ConvergenceWarning
from mlxopt.models._design import Design
from mlxopt.models._factor import growth

CLOSE = 0.01  # standard errors: what a computational error may be
_TINY = 1e-6  # standard errors: less is not worth a figure
_ROUNDOFF = 2.0**-53
_ROUNDINGS = 4.0  # of each operation in a pass over the data: of products, sums, exp, the scaling


class Remainder(NamedTuple):
    """What keeps a scaled solution from the exact minimum; all for the objective that H is of."""

    V: np.ndarray  # (q, q), with V Vᵀ = H⁻¹
    change: np.ndarray  # (q,): the step that is known to be missing, in float64
    doubt: float  # ‖what that step misses of the minimum‖_H
    fitted: float  # the sizes of the terms of a residual: Σ_k ‖column k‖ |b_k|, and the target
    gradient: np.ndarray  # (q,): the sizes of the terms that cancel in the gradient


def rounding(design: Design) -> float:
    """Return what float64 loses in a pass over the data, relative to the sizes of the terms."""
    return _ROUNDINGS * growth(design.n) * _ROUNDOFF


def error_bounds(design: Design, solution: np.ndarray, rest: Remainder) -> np.ndarray:
    """Return how far each coefficient in raw units is from the exact minimum, at most or nearly.

    Rounding moves the fitted values z by δz and the gradient by δg, and with them the solution by
    H⁻¹AᵀWδz, of which the norm of row j of V times ‖W^½ δz‖ bounds entry j, and by H⁻¹δg (Higham
    2002, "Accuracy and stability of numerical algorithms", section 20.1, of least squares). The
    norm of the row bounds what the missing step misses in the same way.

    Args:
        design: the design, in float64.
        solution: (q,), scaled.
        rest: what is missing.

    Returns:
        (q,), the intercept first if there is one.
    """
    coef, _ = design.unscale(solution)
    noise = rounding(design)
    rows = design.unscale_rows(rest.V)
    size = np.linalg.norm(rows, axis=1)  # standard errors, but for the spread of the errors
    bounds = np.abs(design.unscale_rows(rest.change[:, None])[:, 0])
    bounds += size * (rest.doubt + noise * rest.fitted)
    bounds += np.abs(rows @ rest.V.T) @ (noise * rest.gradient)
    bounds[design.first :] += _ROUNDOFF * np.abs(coef)
    if design.fit_intercept:
        # Back from the centers, by way of a sum that is exact but for its terms.
        terms = np.abs([solution[0] * design.target_scale.unit[0], *design.target_scale.center])
        bounds[0] += 2 * _ROUNDOFF * (terms.sum() + np.abs(design.scale.center) @ np.abs(coef))
    return bounds


def judge(
    error: np.ndarray, standard_error: np.ndarray, precision: str, is_exact: bool, notes: list[str]
) -> str:
    """Return the computational error in words; add a note, and warn, if it is large.

    Args:
        error: (q,), from `error_bounds`; nan where it is not known.
        standard_error: (q,); nan where there is none.
        precision: that of the model.
        is_exact: whether the columns explain the target down to rounding.
        notes: of the summary.
    """
    if np.isnan(error).any():
        return "unknown (see the note)"
    if np.isnan(standard_error).any():
        return f"at most {_rounded_up(error.max()):.2g} in any coefficient"
    with np.errstate(divide="ignore", invalid="ignore"):
        share = float(np.where(error > 0, error / standard_error, 0.0).max())
    if share <= _TINY:
        return "under 0.0001 % of a standard error"
    percent = _rounded_up(100 * share)
    figure = (
        "over 100,000" if percent > 1e5 else f"{percent:,.0f}" if percent > 99 else f"{percent:.2g}"
    )
    worth = f"{figure} % of a standard error"
    if share <= CLOSE:
        return f"at most {worth}"
    if is_exact:
        notes.append(
            "the columns explain the target down to the rounding of the computer: what is left, "
            "and with it the standard errors, is no more than that."
        )
        return "of the size of the standard errors or more (see the note)"
    if precision == "float32":
        why = 'that is as far as float32 goes. precision="auto" finishes in float64.'
    else:
        why = (
            "the columns are so close to dependent, or the target so far from zero against its "
            "scatter, that float64 does not do better. Drop columns, shift or rescale them."
        )
    notes.append(f"computational error of up to {worth}: {why}")
    warnings.warn(notes[-1], ConvergenceWarning, stacklevel=3)
    return f"up to {worth}"


def _rounded_up(number: float) -> float:
    """Return a number of two digits that is no smaller."""
    if not 0 < number < math.inf:
        return number
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit

"""Solutions of a linear regression, corrected by residuals that are computed from the data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlxopt.models._design import Design
from mlxopt.models._factor import Factor

# Refinement by the seminormal equations contracts where κ² times the roundoff is well below 1.
_REFINE_CONDITION = 1e7


class Refined(NamedTuple):
    """A solution after refinement."""

    solution: np.ndarray  # (q,), scaled
    squares: float  # Σ w r² with weights of mean 1, without the penalty
    passes: int  # over the data
    error: float  # about ‖R (solution - true)‖, as far as the corrections show
    settled: bool  # whether the last correction was down to rounding


def refine(
    design: Design, factor: Factor, l2: float, most: int, start: np.ndarray | None = None
) -> Refined:
    """Return the solution corrected by residuals that are computed from the data.

    The residual r of the current solution gives the gradient Aᵀr, and RᵀR d = Aᵀr the correction
    (Björck 1987, "Stability analysis of the method of seminormal equations", the corrected
    seminormal equations). It cures the squared condition number of the Gram matrix.

    Args:
        design: with a target. Residuals are of its dtype.
        factor: of the design; with dependent columns nothing is corrected.
        l2: the strength of the penalty.
        most: passes over the data at most.
        start: (q,), what to correct; None for the factor's solution.
    """
    q, penalty = design.width, design.penalty(l2)
    solution, squares, passes = factor.solve() if start is None else start, np.nan, 0
    scale = float(np.linalg.norm(factor.R @ solution))
    before = scale or np.inf
    error = scale
    if len(factor.dependent) or not factor.condition < _REFINE_CONDITION:
        penalized = float(np.linalg.norm(penalty * solution))
        return Refined(solution, max(factor.residual**2 - penalized**2, 0.0), 0, 0.0, True)
    while passes < most:
        gradient = -(penalty**2) * solution
        squares = 0.0
        for _, rows in design.pieces():
            residual = rows @ np.append(-solution, 1.0)
            gradient += (residual @ rows)[:q]
            squares += float(residual @ residual)
        passes += 1
        half = gradient @ factor.inverse
        step = float(np.linalg.norm(half))  # ‖R d‖, the change of the fit
        if passes > 1 and step > 0.5 * before:
            error = step
            break
        solution = solution + factor.inverse @ half
        if not penalty.any():
            squares = max(squares - step**2, 0.0)  # of the new solution
        # Each step is to the last as that is to the one before it, or smaller. Of the first, the
        # one before is the factor's solution itself; where another was given, there is none.
        known = passes > 1 or start is None
        error = step * min(step / before, 1.0) if known else step
        before = step
        if error <= design.roundoff * scale:
            break
    if not penalty.any() and np.isfinite(factor.residual):
        squares = factor.residual**2
    return Refined(solution, squares, passes, error, error <= 1e-11 * scale + 1e-300)

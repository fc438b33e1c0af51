"""Triangular factors of a design: R with AᵀWA + ΛᵀΛ = RᵀR, its rank, and solutions from it.

Notation as in `_design.py`; z is the part of the target that the columns explain, QᵀW^½y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from mlxopt.models._design import Design
from mlxopt.models._sparse import gram

# A column counts as dependent when what is left of it after the others is no larger than this many
# times the rounding of the numbers it is left from. Random dependent designs come out under 1.
_CAUTION = 10.0
# The Gram matrix squares the condition number κ: up to here the standard errors keep 8 digits.
GRAM_CONDITION = 1e4
# Refinement by the seminormal equations contracts where κ² times the roundoff is well below 1.
_REFINE_CONDITION = 1e7


class Factor(NamedTuple):
    """The triangular factor of the independent columns, and what it says of the others."""

    basis: np.ndarray  # (rank,): the columns of the design that do not depend on those before them
    dependent: np.ndarray  # (q - rank,): the others
    R: np.ndarray  # (rank, q), an echelon form; its columns `basis` are upper triangular
    z: np.ndarray  # (rank,)
    residual: float  # ‖residual‖ with weights of mean 1, and with the penalty's rows
    condition: float  # the largest ratio of the columns to what they leave of one of them
    inverse: np.ndarray  # (rank, rank): the inverse of R[:, basis]

    def solve(self) -> np.ndarray:
        """Return the basic solution, (q,): zero for dependent columns."""
        solution = np.zeros(self.R.shape[1])
        solution[self.basis] = self.inverse @ self.z
        return solution

    def minimum_norm(self, design: Design, solution: np.ndarray) -> np.ndarray:
        """Return the solution that fits as `solution` does and has the smallest ‖coef‖ in raw
        units, the intercept free; both scaled, (q,).
        """
        first = design.first
        fitted = self.R @ solution
        rows = self.R[first:, first:] * design.scale.unit  # of coefficients in raw units
        Q, upper = np.linalg.qr(rows.T)
        coef = Q @ np.linalg.solve(upper.T, fitted[first:])
        result = np.concatenate([np.zeros(first), coef * design.scale.unit])
        if first:
            result[0] = (fitted[0] - self.R[0, 1:] @ result[1:]) / self.R[0, 0]
        return result


def factorize(design: Design, l2: float, solver: str = "") -> Factor:
    """Return the factor: by the Gram matrix where the design is large and that is safe, else by QR.

    Args:
        design: the design; where the scaling by a sample will not do, it is measured anew.
        l2: the strength of the penalty.
        solver: "qr" for QR in any case.
    """
    large = design.n * design.width > 2**15 and design.n > 4 * design.width
    factor = None
    if solver != "qr" and large:
        factor = _by_gram(design, design.penalty(l2))
        if factor is None and design.measure():
            factor = _by_gram(design, design.penalty(l2))
    if factor is None:
        design.measure()
        factor = _by_qr(design, design.penalty(l2))
    return factor


def _by_gram(design: Design, penalty: np.ndarray) -> Factor | None:
    """Return the Cholesky factor of the Gram matrix; None if it is too ill-conditioned to trust.

    Half the work of QR and no copies: for each block of rows one symmetric product.
    """
    q = design.width
    wide = q + (design.target is not None)
    products = np.zeros((wide, wide))
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that the sample lacks
        for _, rows in design.pieces():
            products += gram(rows)
    if not np.isfinite(products).all():
        return None
    matrix = products[:q, :q] + np.diag(penalty**2)
    try:
        R = np.linalg.cholesky(matrix).T
    except np.linalg.LinAlgError:
        return None
    inverse = _inverse(R)
    condition = _condition(R, inverse)
    if not condition < GRAM_CONDITION or not _has_full_rank(R, inverse, design):
        return None
    moments = products[:q, q] if design.target is not None else np.zeros(q)
    z = moments @ inverse
    # The residual is a small difference here; `refine` measures it.
    return Factor(np.arange(q), np.arange(0), R, z, np.nan, condition, inverse)


def _by_qr(design: Design, penalty: np.ndarray) -> Factor:
    """Return the factor by Householder QR, a block of rows at a time.

    R of all rows is R of [R of the rows so far; the next rows]: the orthogonal factors are never
    kept (Golub, Plemmons and Sameh 1988, "Parallel block schemes for large-scale least-squares
    computations"; the target as one more column gives z and the residual).
    """
    q = design.width
    wide = q + (design.target is not None)
    rows = np.diag(penalty)[penalty > 0]
    R = np.hstack([rows, np.zeros((len(rows), wide - q))])
    for _, block in design.blocks(rows=4 * wide):
        R = np.asarray(np.linalg.qr(np.vstack([R, block]), mode="r"))
    if design.target is None:
        R = np.hstack([R, np.zeros((len(R), 1))])
    if len(R) >= q and np.all(np.diag(R)[:q] != 0):
        inverse = _inverse(R[:q, :q])
        if _has_full_rank(R[:q, :q], inverse, design):
            residual = float(np.linalg.norm(R[q:, q]))
            condition = _condition(R[:q, :q], inverse)
            return Factor(
                np.arange(q), np.arange(0), R[:q, :q], R[:q, q], residual, condition, inverse
            )
    return _echelon(R, design)


def _inverse(R: np.ndarray) -> np.ndarray:
    """Return the inverse of an upper triangular matrix.

    By NumPy's elimination, which finds nothing to eliminate: SciPy's triangular solver wakes the
    threads of another BLAS while those of NumPy's still hold the cores, and waits for them.
    """
    return np.linalg.solve(R, np.eye(len(R)))


def _noise(R: np.ndarray, design: Design, exact: np.ndarray | None = None) -> np.ndarray:
    """Return the rounding error in each column of the design, (q,).

    That of the arithmetic is relative to the column as scaled, and grows like √n: among a million
    rows of one-hot columns up to 500 roundoffs are left of a column that depends on others. That of
    the dtype is relative to the raw column: a float32 year is known to 1e-4, whatever its spread.

    Args:
        R: (any, q), a triangular factor.
        design: the design.
        exact: (columns,), which columns hold only integers and so carry none of the dtype's.
    """
    noise = 2.0**-53 * max(0.25 * math.sqrt(design.n), 1.0) * np.linalg.norm(R, axis=0)
    precision = design.table.precision
    if exact is not None:
        precision = np.where(exact, 2.0**-53, precision)
    raw = R[:, design.first :]
    if design.fit_intercept:  # back from the center, by way of the column of ones
        raw = raw + np.outer(R[:, 0], design.scale.center / design.scale.unit)
    noise[design.first :] += precision * np.linalg.norm(raw, axis=0)
    return noise


def _condition(R: np.ndarray, inverse: np.ndarray) -> float:
    """Return the largest factor by which the elimination magnifies relative rounding in a column.

    Column k is (what is left) + Σ_j t_j (column j), with t_j = -R_kk (R⁻¹)_jk and t_k = 1: relative
    to what is left, R_kk, the terms have size Σ_j |R⁻¹|_jk ‖column j‖.
    """
    return float((np.linalg.norm(R, axis=0) @ np.abs(inverse)).max())


def _has_full_rank(R: np.ndarray, inverse: np.ndarray, design: Design) -> bool:
    """Whether what is left of each column is more than the rounding of what it is left from."""

    def is_clear(noise: np.ndarray) -> bool:
        return bool((_CAUTION * noise @ np.abs(inverse)).max() < 1)

    if is_clear(_noise(R, design)):
        return True
    return _is_rounded(design) and is_clear(_noise(R, design, design.columns_of_integers()))


def _is_rounded(design: Design) -> bool:
    return bool((design.table.precision > 2.0**-53).any())


def _echelon(R: np.ndarray, design: Design) -> Factor:
    """Return the factor of a design with dependent columns.

    Householder's elimination again, column by column, on the small matrix: a column of which only
    rounding is left gives no row. (In the first elimination it gave one, of noise.)
    """
    R, q = R.copy(), design.width
    exact = design.columns_of_integers() if _is_rounded(design) else None
    noise = _noise(R[:, :q], design, exact)
    basis: list[int] = []
    dependent: list[int] = []
    for k in range(q):
        row = len(basis)
        ahead = np.abs(solve_triangular(R[:row, basis], R[:row, k])) if row else np.zeros(0)
        floor = _CAUTION * (noise[k] + ahead @ noise[basis])
        left = float(np.linalg.norm(R[row:, k])) if row < len(R) else 0.0
        if left <= floor:
            dependent.append(k)
            continue
        normal = R[row:, k].copy()
        normal[0] += np.copysign(left, normal[0])
        normal /= np.linalg.norm(normal)
        R[row:, k:] -= 2.0 * np.outer(normal, normal @ R[row:, k:])
        R[row + 1 :, k] = 0.0
        basis.append(k)
    rank = len(basis)
    triangle = R[:rank, basis]
    inverse = _inverse(triangle)
    return Factor(
        np.array(basis, dtype=int),
        np.array(dependent, dtype=int),
        R[:rank, :q],
        R[:rank, q],
        float(np.linalg.norm(R[rank:, q])),
        _condition(triangle, inverse) if rank else 1.0,
        inverse,
    )


class Refined(NamedTuple):
    """A solution after refinement."""

    solution: np.ndarray  # (q,), scaled
    squares: float  # Σ w r² with weights of mean 1, without the penalty
    passes: int  # over the data
    settled: bool  # whether the last correction was down to rounding


def refine(design: Design, factor: Factor, l2: float, most: int) -> Refined:
    """Return the solution corrected by residuals that are computed from the data.

    The residual r of the current solution gives the gradient Aᵀr, and RᵀR d = Aᵀr the correction
    (Björck 1987, "Stability analysis of the method of seminormal equations", the corrected
    seminormal equations). It cures the squared condition number of the Gram matrix.

    Args:
        design: with a target.
        factor: of the design; with dependent columns nothing is corrected.
        l2: the strength of the penalty.
        most: passes over the data at most.
    """
    q, penalty = design.width, design.penalty(l2)
    solution, squares, passes = factor.solve(), np.nan, 0
    scale = float(np.linalg.norm(factor.R @ solution))
    before, error = scale or np.inf, scale
    if len(factor.dependent) or not factor.condition < _REFINE_CONDITION:
        penalized = float(np.linalg.norm(penalty * solution))
        return Refined(solution, max(factor.residual**2 - penalized**2, 0.0), 0, True)
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
            break
        solution = solution + factor.inverse @ half
        if not penalty.any():
            squares = max(squares - step**2, 0.0)  # of the new solution
        # Each step is to the last as that is to the one before it, or smaller.
        error = step * min(step / before, 1.0)
        before = step
        if error <= 2.0**-53 * scale:
            break
    if not penalty.any() and np.isfinite(factor.residual):
        squares = factor.residual**2
    return Refined(solution, squares, passes, error <= 1e-11 * scale + 1e-300)

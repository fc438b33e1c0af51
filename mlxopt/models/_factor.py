"""Triangular factors of a design: R with AᵀWA + ΛᵀΛ = RᵀR, its rank, and solutions from it.

Notation as in `_design.py`; z is the part of the target that the columns explain, QᵀW^½y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from mlxopt.models._design import Design
from mlxopt.models._rows import gram

# A column counts as dependent when what is left of it after the others is no larger than this many
# times the rounding of the numbers it is left from. Random dependent designs come out under 1.
_CAUTION = 10.0
# The Gram matrix squares the condition number κ: up to here κ² times the roundoff is some 1e-8 in
# float64, and the standard errors keep as many digits, or 1e-3 in float32.
GRAM_CONDITION = {2.0**-53: 1e4, 2.0**-24: 1e2}


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
        # With two pairs of columns that differ by δ, entries of `inverse` are off by δ⁻² roundoffs,
        # and the coefficients would be too; substitution leaves δ⁻¹ of them.
        solution[self.basis] = _solve_upper(self.R[:, self.basis], self.z)
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
    factor = None
    if solver != "qr" and is_large(design):
        factor = by_gram(design, design.penalty(l2))
        if factor is None and design.measure():
            factor = by_gram(design, design.penalty(l2))
    if factor is None:
        design.measure()
        factor = _by_qr(design, design.penalty(l2))
    return factor


def is_large(design: Design) -> bool:
    """Whether the Gram matrix is worth a try."""
    return design.n * design.width > 2**15 and design.n > 4 * design.width


def by_gram(design: Design, penalty: np.ndarray) -> Factor | None:
    """Return the Cholesky factor of the Gram matrix; None if it is too ill-conditioned to trust.

    Half the work of QR and no copies: for each block of rows one symmetric product.

    Args:
        design: the design. The products are of its dtype, their sums and the factor float64.
        penalty: (q,), the diagonal of Λ.
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
    if not condition < GRAM_CONDITION[design.roundoff] or not _has_full_rank(R, inverse, design):
        return None
    moments = products[:q, q] if design.target is not None else np.zeros(q)
    z = moments @ inverse
    # The residual is a small difference here; `refine` measures it.
    return Factor(np.arange(q), np.arange(0), R, z, np.nan, condition, inverse)


def _by_qr(design: Design, penalty: np.ndarray) -> Factor:
    """Return the factor by Householder QR."""
    q = design.width
    R = triangle(design, penalty)
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


def triangle(design: Design, penalty: np.ndarray) -> np.ndarray:
    """Return R of [A, target] over Λ, (at most q + 1, q + 1), in the dtype of the design.

    R of all rows is R of [R of the rows so far; the next rows]: the orthogonal factors are never
    kept (Golub, Plemmons and Sameh 1988, "Parallel block schemes for large-scale least-squares
    computations"; the target as one more column gives z and the residual).
    """
    wide = design.width + (design.target is not None)
    rows = np.diag(penalty)[penalty > 0]
    R = np.hstack([rows, np.zeros((len(rows), wide - design.width))]).astype(design.dtype)
    for _, block in design.blocks(rows=4 * wide):
        R = np.asarray(np.linalg.qr(np.vstack([R, block]), mode="r"))
    return R


def _solve_upper(R: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return R⁻¹ `right` of an upper triangular matrix.

    By NumPy's elimination, which finds nothing to eliminate: SciPy's triangular solver wakes the
    threads of another BLAS while those of NumPy's still hold the cores, and waits for them.
    """
    return np.linalg.solve(R, right)


def _inverse(R: np.ndarray) -> np.ndarray:
    return _solve_upper(R, np.eye(len(R)))


def growth(n: int) -> float:
    """Return how many roundoffs an elimination or a long sum over n rows may be off by.

    It grows like √n: among a million rows of one-hot columns up to 500 roundoffs are left of a
    column that depends on others.
    """
    return max(0.25 * math.sqrt(n), 1.0)


def _noise(R: np.ndarray, design: Design, exact: np.ndarray | None = None) -> np.ndarray:
    """Return the rounding error in each column of the design, (q,).

    That of the arithmetic is relative to the column as scaled. That of the dtype is relative to the
    raw column: a float32 year is known to 1e-4, whatever its spread.

    Args:
        R: (any, q), a triangular factor.
        design: the design.
        exact: (columns,), which columns hold only integers and so carry none of the dtype's.
    """
    noise = design.roundoff * growth(design.n) * np.linalg.norm(R, axis=0)
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

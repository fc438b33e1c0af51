"""The rank of a Jacobian, and the statistics of a fit that follow from it.

Notation: J = the Jacobian (m, p); S = the diagonal scaling that gives its q free columns the length
one; U, s, V = the singular value decomposition of J S. The units of the parameters do not matter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlxopt._residual_objective import SQUARES, Robust

_ROUNDINGS = 4.0  # of a singular value, relative to the largest, for each column
_ERRORS = 4.0  # the same in measured errors of J
_NOTHING = 0.1  # a column counts as zero if its error is larger than this share of it
_SHARE = 1e-3  # the least entry of a combination

Array = np.ndarray


class Rank(NamedTuple):
    """J S, without the singular values that are rounding."""

    parameters: int  # p
    free: Array  # (q,): indices of the parameters that no bound holds
    scale: Array  # (q,): the lengths of their columns, 1 / S
    u: Array  # (m, k)
    s: Array  # (k,)
    vt: Array  # (k, q)
    lost: Array  # (q - k, q): the other rows of Vᵀ
    zero: Array  # (q,) bool: columns of zeros, or of rounding

    @property
    def number(self) -> int:
        """The rank, k."""
        return len(self.s)

    def solve(self, right: Array) -> Array:
        """Return the shortest d, in scaled units, that minimizes ‖J d - right‖: (q,)."""
        return self.vt.T @ ((self.u.T @ right) / self.s) / self.scale

    def errors(self) -> Array:
        """Return the standard errors for residuals of standard deviation one, (q,)."""
        return np.linalg.norm(self.vt / self.s[:, None], axis=0) / self.scale

    def undetermined(self) -> Array:
        """Return directions that change no residual, (q - k, p), with few entries."""
        rows = self.lost.copy()
        for i in range(len(rows)):  # to row echelon form
            rest = np.abs(rows[i:])
            row, pivot = np.unravel_index(rest.argmax(), rest.shape)
            rows[[i, i + row]] = rows[[i + row, i]]
            rows[i] /= rows[i, pivot]
            others = np.arange(len(rows)) != i
            rows[others] -= rows[others, pivot, None] * rows[i]
        rows = np.where(np.abs(rows) > _SHARE, rows, 0.0)
        directions = np.zeros((len(rows), self.parameters))
        directions[:, self.free] = rows / self.scale
        return directions


def rank_of(J: Array, fixed: Array, eps: float, error: Array | None = None) -> Rank:
    """Return the rank of J.

    Args:
        J: (m, p), finite.
        fixed: (p,) bool, parameters to leave out.
        eps: the machine epsilon of the arithmetic that computed J.
        error: of the entries of J, (m, p), where measured.
    """
    free = np.flatnonzero(~fixed)
    columns, error = J[:, free], 0.0 * J[:, free] if error is None else error[:, free]
    lengths = np.linalg.norm(columns, axis=0)
    zero = np.linalg.norm(error, axis=0) >= _NOTHING * lengths
    scale = np.where(lengths > 0, lengths, 1.0)
    columns, error = (np.where(zero, 0.0, matrix / scale) for matrix in (columns, error))
    u, s, vt = np.linalg.svd(columns, full_matrices=False)
    size = s.max(initial=0.0)
    rounding = _ROUNDINGS * len(free) * eps + max(J.shape) * np.finfo(float).eps
    kept = s > rounding * size + _ERRORS * np.linalg.norm(error)
    return Rank(len(fixed), free, scale, u[:, kept], s[kept], vt[kept], vt[~kept], zero)


def statistics(rank: Rank, residual: Array, robust: Robust, eps: float) -> tuple[float, Array]:
    """Return the residual standard deviation, and the covariance of all parameters, (p, p).

    Args:
        rank: of the Jacobian, not weighted.
        residual: r, not weighted, (m,).
        robust: the loss.
        eps: the machine epsilon of the arithmetic that computed J.
    """
    m, p = len(residual), rank.parameters
    covariance = np.full((p, p), np.nan)
    spare = m - rank.number
    residual_sd = float(np.sqrt(np.sum(np.square(residual)) / spare)) if spare else float("nan")
    root = rank.vt.T / rank.s  # (J S)⁺ = root · Uᵀ
    if robust is SQUARES:
        inner = residual_sd**2 * root @ root.T
    else:
        pull, curvature = robust.slopes(residual)
        bread = root @ np.linalg.pinv(rank.u.T * curvature @ rank.u)
        pulls = rank.u * (pull * residual)[:, None]
        inner = bread @ (pulls.T @ pulls) @ bread.T * (m / spare if spare else float("nan"))
    inner = inner / np.outer(rank.scale, rank.scale)
    # A parameter with a share in a direction that changes no residual could be anything.
    unknown = np.linalg.norm(rank.lost, axis=0) > np.sqrt(eps)
    inner[unknown, :] = inner[:, unknown] = np.nan
    covariance[np.ix_(rank.free, rank.free)] = inner
    return residual_sd, covariance

"""Rows of a design that are more than an array of NumPy: mostly zero, or in float32 on the device.

Both know what a solver asks of a matrix: `A @ vector`, `vector @ A` and `gram(A, root)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlxopt.losses import transposed_product

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class SparseRows:
    """A matrix, (rows, columns), that keeps of some columns only what is not zero.

    For columns such as one-hot encoded categories. The Gram matrix of 366 of them takes a hundredth
    of the time of the dense one, and nothing is rounded that the dense one does not round.

    Args:
        dense: (rows, d), the other columns.
        dense_at: (d,), which columns those are.
        sparse: (rows, s).
        sparse_at: (s,), which columns those are.
    """

    __array_ufunc__ = None  # so that NumPy leaves `vector @ A` to __rmatmul__

    def __init__(
        self, dense: np.ndarray, dense_at: np.ndarray, sparse: csr_array, sparse_at: np.ndarray
    ) -> None:
        self.dense, self.dense_at = dense, dense_at
        self.sparse, self.sparse_at = sparse, sparse_at

    def __matmul__(self, vector: np.ndarray) -> np.ndarray:
        return self.dense @ vector[self.dense_at] + self.sparse @ vector[self.sparse_at]

    def __rmatmul__(self, vector: np.ndarray) -> np.ndarray:
        result = np.empty(len(self.dense_at) + len(self.sparse_at))
        result[self.dense_at] = vector @ self.dense
        result[self.sparse_at] = vector @ self.sparse
        return result

    def scaled(self, root: np.ndarray) -> SparseRows:
        """Return the matrix with each row times its entry of `root`, (rows,)."""
        sparse = self.sparse.copy()
        sparse.data *= np.repeat(root, np.diff(sparse.indptr))
        return SparseRows(self.dense * root[:, None], self.dense_at, sparse, self.sparse_at)

    def gram(self, root: np.ndarray | None = None) -> np.ndarray:
        """Return AᵀWA, (columns, columns), with W = diag(root²) or the identity."""
        if root is not None:
            return self.scaled(root).gram()
        d, s = self.dense_at, self.sparse_at
        result = np.empty((len(d) + len(s), len(d) + len(s)))
        result[np.ix_(d, d)] = self.dense.T @ self.dense
        result[np.ix_(s, s)] = (self.sparse.T @ self.sparse).toarray()
        cross = self.sparse.T @ self.dense
        result[np.ix_(s, d)] = cross
        result[np.ix_(d, s)] = cross.T
        return result


class DeviceRows:
    """A matrix, (rows, columns), in float32 on MLX's default device.

    What is long is multiplied there; vectors come and go as arrays of NumPy.
    """

    __array_ufunc__ = None

    def __init__(self, block: np.ndarray) -> None:
        self.rows = mx.array(block)

    def __matmul__(self, vector: np.ndarray) -> np.ndarray:
        return np.array(self.rows @ _narrowed(vector))

    def __rmatmul__(self, vector: np.ndarray) -> np.ndarray:
        # The gradient: of many rows, it wants sums that float32 alone does not give on a CPU.
        return np.array(transposed_product(self.rows, _narrowed(vector)[:, None])[:, 0])

    def gram(self, root: np.ndarray | None = None) -> np.ndarray:
        """Return AᵀWA, (columns, columns), with W = diag(root²) or the identity."""
        A = self.rows if root is None else self.rows * _narrowed(root)[:, None]
        return np.array(A.T @ A)


def _narrowed(vector: np.ndarray) -> mx.array:
    return mx.array(vector.astype(np.float32, copy=False))


Rows = np.ndarray | SparseRows | DeviceRows


def gram(A: Rows, root: np.ndarray | None = None) -> np.ndarray:
    """Return AᵀWA, (columns, columns), with W = diag(root²) or the identity."""
    if not isinstance(A, np.ndarray):
        return A.gram(root)
    if root is not None:
        A = A * root[:, None]
    return A.T @ A  # NumPy sees the transpose and calls the symmetric product


def split(
    blocks: Iterable[np.ndarray], width: int, sparse_at: np.ndarray
) -> tuple[csr_array, np.ndarray]:
    """Return some columns of a matrix as a sparse matrix, (rows, s), and the others as they are.

    Args:
        blocks: its rows, from first to last.
        width: how many columns it has.
        sparse_at: (s,), the columns that are mostly zero.
    """
    from scipy.sparse import csr_array

    place = np.full(width, -1)
    place[sparse_at] = np.arange(len(sparse_at))
    values, columns, counts, others = [], [], [np.zeros(1, dtype=int)], []
    for block in blocks:
        numbers = np.ascontiguousarray(block).reshape(-1)
        index = np.flatnonzero(numbers != 0)  # the comparison is quick, and few are left
        row, column = np.divmod(index, width)
        chosen = place[column] >= 0
        values.append(numbers[index[chosen]].astype(np.float64))
        columns.append(place[column[chosen]])
        counts.append(np.bincount(row[chosen], minlength=len(block)))
        others.append(block[:, place < 0])
    ends = np.cumsum(np.concatenate(counts))
    sparse = csr_array(
        (np.concatenate(values), np.concatenate(columns), ends), (len(ends) - 1, len(sparse_at))
    )
    return sparse, np.concatenate(others)

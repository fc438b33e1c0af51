"""Whether a batch agrees with single computations.

Not every operation has a rule for batches, and not every rule is right: in MLX 0.32 assignment to a
slice (`z[0] = 1.0`), batched in `z` alone, is carried out in the first row only, without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._tree import FLOATS, Tree, epsilon, leaves, to_numpy, widened, working_dtype
from mlxopt.autodiff import TapeError
from mlxopt.autodiff._guards import is_refusal, name_of
from mlxopt.many._problems import Problems

At = Callable[[Tree, tuple[Any, ...]], mx.array]  # of the parameters and data of one problem

# A wrong rule is wrong outright; but where sums cancel, only rounding may be left of them.
_AGREEMENT = 1e-2
_MARGIN = 100.0
_INSTEAD = "Write it with other operations, or call minimize on each problem in turn."


def general_vector(size: int) -> np.ndarray:
    """Return a vector in general position, shape (size,): no entry is special."""
    return np.cos(1.0 + np.arange(size))


def check_row(
    at: At, problems: Problems, index: int, x: np.ndarray, found: np.ndarray, scale: float
) -> str | None:
    """Return what is wrong with a row of a batch: it differs from the single computation.

    Args:
        at: the single computation.
        problems: all problems.
        index: that of the row.
        x: its parameters, shape (p,).
        found: the row.
        scale: the largest entry of the result.
    """

    def single(x: np.ndarray, dtype: Callable[[Tree], Tree] = lambda tree: tree) -> np.ndarray:
        return to_numpy(at(*map(dtype, problems.single(index, x))))

    exact = single(x)
    excess = np.abs(found - exact).max(initial=0.0) - _AGREEMENT * scale
    if excess <= 0:
        return None
    # Rounding is estimated by a move of x by a rounding error, and by a computation in float64.
    eps = epsilon([leaf for leaf in leaves(problems.like) if leaf.dtype in FLOATS])
    near = [single(x + eps * np.maximum(1.0, np.abs(x)) * general_vector(len(x)))]
    if working_dtype(problems.like) != mx.float64:
        with mx.stream(mx.cpu):
            near.append(single(x, widened))
    if excess <= _MARGIN * max(np.abs(one - exact).max(initial=0.0) for one in near):
        return None
    return (
        f"differs from what single calls give (problem {index}): MLX has a wrong batching rule "
        f"(vmap) for one of its operations; assignment to a slice is known for that. {_INSTEAD}"
    )


def explain_failure(error: Exception, at: At, problems: Problems, loss: Callable[..., Any]) -> None:
    """Raise an error that explains why a batched computation raised `error`, where known."""
    if isinstance(error, TapeError):
        return
    name = name_of(loss)
    if is_refusal(error):
        raise TapeError(
            f"{name} reads an array back to Python, and in a batch that array holds the values of "
            f"many problems. Stay in MLX operations: mx.where in place of if, and no .item(), "
            f"float() or print of values; or call minimize on each problem in turn."
        ) from error
    at(*problems.single(0, problems.start[0]))  # a mistake of the loss itself comes up here
    raise ValueError(f"MLX cannot batch {name}: {error} {_INSTEAD}") from error

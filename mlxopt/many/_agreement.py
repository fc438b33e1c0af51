"""Whether a batch gives what single computations give.

Not every operation has a rule for batches, and not every rule is right: in MLX 0.32 assignment to a
slice (`z[0] = 1.0`), batched in `z` alone, is carried out in the first row only, without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._tree import (
    FLOATS,
    Tree,
    epsilon,
    leaves,
    rounded,
    to_device,
    unravel,
    widened,
    working_dtype,
)
from mlxopt.autodiff import TapeError
from mlxopt.autodiff._guards import is_refusal, name_of
from mlxopt.many._problems import Problems

At = Callable[[Tree, tuple[Any, ...]], mx.array]  # of one problem's parameters and data

# A wrong rule is wrong outright; but where sums cancel, rounding may be all that is left of them.
_AGREEMENT = 1e-2
_MARGIN = 100.0
_INSTEAD = "Write it with other operations, or call minimize on each problem in turn."


class Batch(NamedTuple):
    """What a batch gave."""

    alive: np.ndarray  # (A,): which problems were computed
    x: np.ndarray  # (A, p): where
    found: np.ndarray  # (A, ...): what came out


def of_vector(at: At, problems: Problems) -> Callable[..., mx.array]:
    """Return `at` as a function `(x, own, shared)` of a vector and of lists of leaves."""

    def one(x: mx.array, own: list[mx.array], shared: list[mx.array]) -> mx.array:
        return at(unravel(x, problems.like), problems.data(own, shared))

    return one


def in_general_position(size: int, params: Tree) -> mx.array:
    """Return a vector without special entries, shape (size,), in the working dtype of `params`."""
    return to_device(_general(size), working_dtype(params))


def check_batch(
    at: At, probe: At | None, batch: Batch, scale: np.ndarray, problems: Problems,
    loss: Callable[..., Any],
) -> None:  # fmt: skip
    """Raise ValueError if the batch gave something else than single computations do.

    Args:
        at: what was computed.
        probe: the same, times the vector `in_general_position`, in another way; or None.
        batch: what came out.
        scale: the largest absolute entry seen of each problem's, shape (B,), which is brought up to
            date: at a minimum a gradient is nothing but rounding, and so no measure of itself.
        problems: all problems.
        loss: the user's function, for its name.
    """
    alive, x, found = batch
    flat = np.abs(found.reshape(len(found), -1))
    finite = np.all(np.isfinite(flat), axis=1)
    scale[alive] = np.maximum(scale[alive], np.where(finite, flat.max(axis=1, initial=0.0), 0.0))
    # The last will do: what a rule does for one row only, it does for the first.
    for row in np.flatnonzero(finite)[-1:]:
        index = int(alive[row])
        params, data = problems.single(index, x[row])
        exact = np.array((probe or at)(params, data), dtype=np.float64)
        one = found[row] @ _general(found.shape[-1]) if probe else found[row]
        difference = np.abs(one - exact).max(initial=0.0)
        if difference <= _AGREEMENT * scale[index]:
            continue
        noise = _rounding(probe or at, problems, index, x[row], exact)
        if difference <= _AGREEMENT * scale[index] + _MARGIN * noise:
            continue
        raise ValueError(
            f"a batch of {name_of(loss)} or of its derivatives differs from what single calls give "
            f"(problem {index}): MLX has a wrong batching rule (vmap) for one of its operations; "
            f"assignment to a slice is known for that. {_INSTEAD}"
        )


def explain_failure(error: Exception, at: At, problems: Problems, loss: Callable[..., Any]) -> None:
    """Raise what tells a user why a batched computation raised `error`, if more can be said."""
    if isinstance(error, TapeError):
        return
    name = name_of(loss)
    if is_refusal(error):
        raise TapeError(
            f"{name} reads an array back to Python, and in a batch that array holds the values of "
            f"many problems. Stay in MLX operations: mx.where in place of if, and no .item(), "
            f"float() or print of values; or call minimize on each problem in turn."
        ) from error
    params, data = problems.single(0, problems.start[0])
    at(params, data)  # a mistake of the loss itself comes up here
    raise ValueError(f"MLX cannot batch {name}: {error} {_INSTEAD}") from error


def _rounding(at: At, problems: Problems, index: int, x: np.ndarray, exact: np.ndarray) -> float:
    """Return about how far rounding takes the largest entry of `at` at a point.

    It is what a move of x by a rounding error changes, or float64 where that is not used anyway.
    """
    eps = epsilon([leaf for leaf in leaves(problems.like) if leaf.dtype in FLOATS])
    shift = eps * np.maximum(1.0, np.abs(x)) * _general(len(x))
    params, data = problems.single(index, rounded(x + shift, problems.like))
    noise = np.abs(np.array(at(params, data), dtype=np.float64) - exact).max(initial=0.0)
    if working_dtype(params) == mx.float64:
        return noise
    params, data = problems.single(index, x)
    with mx.stream(mx.cpu):
        wide = np.array(at(widened(params), widened(data)), dtype=np.float64)
    return max(noise, np.abs(wide - exact).max(initial=0.0))


def _general(size: int) -> np.ndarray:
    return np.cos(1.0 + np.arange(size))

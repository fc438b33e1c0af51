"""Penalties and constraints that have no gradient, each with its proximal operator.

The proximal operator of a function g at a step size t is

    prox(x, t) = argmin over u of  g(u) + ‖u - x‖² / (2t),

which for a constraint is the projection onto its set, for every t. Formulas: Parikh and Boyd
(2014), "Proximal algorithms", chapter 6. A penalty is a function of one array; `ProximalGradient`
takes one for all arrays of the parameters, or a tree of them. A new penalty is a class with two
methods:

>>> import mlx.core as mx
>>> from mlxopt import prox
>>> class Squared(prox.Penalty):
...     def value(self, x):
...         return 0.5 * mx.sum(mx.square(x))
...     def prox(self, x, step_size):
...         return x / (1 + step_size)
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from mlxopt._bounds import bound_arrays, inwards, project
from mlxopt._checks import check_fields
from mlxopt._tree import to_device

__all__ = [
    "L1",
    "Box",
    "Constraint",
    "ElasticNet",
    "GroupLasso",
    "NonNegative",
    "Penalty",
    "Simplex",
]


def __dir__() -> list[str]:
    return __all__


class Penalty(ABC):
    """A function g of one array, not necessarily smooth, and its proximal operator.

    Both methods consist of MLX operations; they run compiled.
    """

    is_constraint: ClassVar[bool] = False
    """Whether g is zero on a set and infinite elsewhere; `prox` is then the projection."""

    @abstractmethod
    def value(self, x: mx.array) -> mx.array:
        """Return g(x), a scalar array; of a constraint zero, at points of its set."""

    @abstractmethod
    def prox(self, x: mx.array, step_size: mx.array) -> mx.array:
        """Return the proximal operator at `x`, of its shape and dtype.

        Args:
            x: float32, or float64 where the parameters are.
            step_size: t, a scalar array of that dtype.
        """

    def in_dtype(self, dtype: mx.Dtype) -> Penalty:
        """Return the penalty for a leaf of this dtype, in which the result of `prox` is kept."""
        return self


class Constraint(Penalty):
    """A closed convex set; `prox` is the projection onto it."""

    is_constraint: ClassVar[bool] = True

    def value(self, x: mx.array) -> mx.array:
        """Return zero, the value at points of the set."""
        return mx.array(0.0, dtype=x.dtype)


@dataclasses.dataclass(frozen=True)
class L1(Penalty):
    """The sum of absolute values, strength · Σ|xᵢ|: it sets entries to exactly zero (lasso).

    >>> import mlx.core as mx
    >>> from mlxopt import prox
    >>> prox.L1(0.5).prox(mx.array([-2.0, 0.3, 1.0]), mx.array(1.0))
    array([-1.5, 0, 0.5], dtype=float32)
    """

    strength: float

    def __post_init__(self) -> None:
        check_fields(self, "strength", least=0)

    def value(self, x: mx.array) -> mx.array:
        """Return strength · Σ|xᵢ|."""
        return self.strength * mx.sum(mx.abs(x))

    def prox(self, x: mx.array, step_size: mx.array) -> mx.array:
        """Move each entry towards zero by at most strength · step_size."""
        return _shrink(x, self.strength * step_size)


@dataclasses.dataclass(frozen=True)
class ElasticNet(Penalty):
    """l1 · Σ|xᵢ| + ½ · l2 · Σxᵢ²  (Zou and Hastie 2005, without their rescaling).

    With a loss of ½ mean(residual²), scikit-learn's ElasticNet(alpha, l1_ratio) has
    l1 = alpha · l1_ratio and l2 = alpha · (1 - l1_ratio).
    """

    l1: float
    l2: float

    def __post_init__(self) -> None:
        check_fields(self, "l1", "l2", least=0)

    def value(self, x: mx.array) -> mx.array:
        """Return l1 · Σ|xᵢ| + ½ · l2 · Σxᵢ²."""
        return self.l1 * mx.sum(mx.abs(x)) + 0.5 * self.l2 * mx.sum(mx.square(x))

    def prox(self, x: mx.array, step_size: mx.array) -> mx.array:
        """Shrink as L1 does, then divide by 1 + l2 · step_size."""
        return _shrink(x, self.l1 * step_size) / (1 + self.l2 * step_size)


@dataclasses.dataclass(frozen=True)
class GroupLasso(Penalty):
    """strength · Σ ‖group‖: it sets whole groups to zero (Yuan and Lin 2006).

    Args:
        strength: of every group. Yuan and Lin multiply it by the root of the size of a group.
        axis: groups are the vectors along this axis; None: the whole array is one group. Groups of
            different sizes are leaves of their own in the tree of parameters.

    >>> import mlx.core as mx
    >>> from mlxopt import prox
    >>> rows = mx.array([[3.0, 4.0], [0.3, 0.4]])
    >>> prox.GroupLasso(1.0, axis=1).prox(rows, mx.array(1.0))
    array([[2.4, 3.2],
           [0, 0]], dtype=float32)
    """

    strength: float
    axis: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "strength", least=0)
        if self.axis is not None:
            check_fields(self, "axis", whole=True, least=-math.inf, instead=", or None")

    def value(self, x: mx.array) -> mx.array:
        """Return strength · Σ ‖group‖."""
        return self.strength * mx.sum(self._norms(x))

    def prox(self, x: mx.array, step_size: mx.array) -> mx.array:
        """Shorten each group by at most strength · step_size."""
        norms, shift = self._norms(x), self.strength * step_size
        return mx.where(norms > shift, x * (1 - shift / norms), 0)

    def _norms(self, x: mx.array) -> mx.array:
        if self.axis is not None and not -x.ndim <= self.axis < x.ndim:
            raise ValueError(f"{self}: the array has shape {x.shape}, which has no such axis.")
        return mx.sqrt(mx.sum(mx.square(x), axis=self.axis, keepdims=True))


@dataclasses.dataclass(frozen=True)
class NonNegative(Constraint):
    """Every entry is zero or more."""

    def prox(self, x: mx.array, step_size: mx.array) -> mx.array:
        """Return max(x, 0)."""
        return mx.maximum(x, 0)


@dataclasses.dataclass(frozen=True)
class Box(Constraint):
    """Every entry lies between `lower` and `upper`, which are rounded inwards to the leaf's dtype.

    Args:
        lower: a number, or an array of a shape that broadcasts to the leaf's; None is no bound.
        upper: likewise.
    """

    lower: Any = None
    upper: Any = None

    def __post_init__(self) -> None:
        bound_arrays("Box", self.lower, self.upper)

    def prox(self, x: mx.array, step_size: mx.array) -> mx.array:
        """Move each entry to the nearest allowed value."""
        return project(x, *(to_device(bound, x.dtype) for bound in self._rounded(x.dtype)))

    def in_dtype(self, dtype: mx.Dtype) -> Box:
        """Return the box with bounds that the dtype holds."""
        return Box(*self._rounded(dtype))

    def _rounded(self, dtype: mx.Dtype) -> tuple[np.ndarray, np.ndarray]:
        return inwards(*bound_arrays("Box", self.lower, self.upper), dtype)


@dataclasses.dataclass(frozen=True)
class Simplex(Constraint):
    """Entries along the last axis are zero or more, and sum to `total`: probabilities, for one.

    >>> import mlx.core as mx
    >>> from mlxopt import prox
    >>> prox.Simplex().prox(mx.array([0.75, 0.5, -1.0]), mx.array(1.0))
    array([0.625, 0.375, 0], dtype=float32)
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "total", above=0)

    def prox(self, x: mx.array, step_size: mx.array) -> mx.array:
        """Return max(x - τ, 0), τ such that the sum is right (Held, Wolfe and Crowder 1974)."""
        if x.ndim == 0:
            raise ValueError("Simplex: the array has shape (); expected one axis or more.")
        x = x - mx.max(x, axis=-1, keepdims=True)  # a common shift changes only the rounding
        ordered = -mx.sort(-x, axis=-1)
        excess = mx.cumsum(ordered, axis=-1) - self.total
        count = mx.arange(1, x.shape[-1] + 1).astype(x.dtype)
        # The k largest entries are positive, k the last place where this holds.
        k = mx.sum(ordered * count > excess, axis=-1, keepdims=True)
        tau = mx.sum(mx.where(count == k, excess, 0), axis=-1, keepdims=True) / k.astype(x.dtype)
        return mx.maximum(x - tau, 0)


def _shrink(x: mx.array, shift: mx.array) -> mx.array:
    return mx.maximum(x - shift, 0) + mx.minimum(x + shift, 0)

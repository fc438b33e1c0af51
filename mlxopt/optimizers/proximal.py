"""Proximal gradient with acceleration and restart: a smooth loss plus a penalty that is not smooth.

Notation, as in Beck and Teboulle (2009), "A fast iterative shrinkage-thresholding algorithm for
linear inverse problems":
    F = f + g, the loss and the penalty            t = the step size (their 1/L)
    x = the last point accepted                    y = x + β (x - the point before x)
    x⁺ = prox_g(y - t ∇f(y), t), the trial         θ, of which β is a function (their t_k)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt import _tree
from mlxopt._checks import check_fields
from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import Tree, from_leaves, is_finite, largest_entry, leaves, read, working_dtype
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._descent import first_step_size
from mlxopt.prox import Penalty

_SHRINK_LEAST, _SHRINK_MOST = 0.5, 0.1
_NOISE = 10.0  # roundings in a value of the loss
_SUM = 100.0  # times as many in a long sum of large terms

Penalties = list[Penalty | None]  # of the leaves, in `tree_flatten` order


class Point(NamedTuple):
    """The point of the quadratic model."""

    params: Tree  # y
    value: float  # f(y)
    grad: Tree  # ∇f(y), like params


class ProximalState(NamedTuple):
    """The state of the proximal gradient method."""

    params: Tree  # the parameters x
    value: float  # F(x), the penalty included
    grad: Tree  # ∇f(x), that of the loss alone, like params
    optimality: float  # the largest entry of the prox-gradient map, (x - prox(x - t ∇f(x), t)) / t
    status: Status | None  # why no further step is possible
    moved: bool  # whether the last trial was accepted
    loss: float  # f(x)
    step_size: float  # t
    theta: float  # θ; 1 without momentum
    before: Tree | None  # the point accepted before x; None at the start
    model: Point | None  # y, which is x without momentum; None until it is evaluated


@dataclasses.dataclass(frozen=True)
class ProximalGradient(Optimizer[ProximalState]):
    """FISTA with restart: minimizes loss + penalty, the penalty not smooth, or a constraint.

    A trial is x⁺ = prox(y - t ∇f(y), t) from a point y beyond x (Beck and Teboulle 2009). The step
    size t shrinks where the loss rises above its quadratic model. The momentum is dropped where it
    points uphill (the gradient scheme of O'Donoghue and Candès 2015, "Adaptive restart for
    accelerated gradient schemes", section 3.2) or loss + penalty would rise, which it never does
    unless `step_size` is fixed. One step of `minimize` is one evaluation, at y or at x⁺, so an
    accelerated step takes two.

    `result.value` is loss + penalty, and `result.optimality` the largest entry of the prox-gradient
    map (x - prox(x - t ∇f(x), t)) / t, plus its rounding error: zero at a minimum, and without a
    penalty the gradient. A start outside a constraint is an error.

    Args:
        penalty: a penalty of `mlxopt.prox` for all parameters, or a tree of them like `params`, in
            which a penalty may stand for a whole branch; None is no penalty.
        step_size: None finds it. A number is fixed, and must be below 2/L, L the largest curvature
            of the loss.

    >>> import mlx.core as mx, mlxopt as mo
    >>> from mlxopt import prox
    >>> loss = lambda x: 0.5 * mx.sum((x - mx.array([3.0, -0.2, -2.0])) ** 2)
    >>> mo.minimize(loss, mx.zeros(3), mo.ProximalGradient(prox.L1(0.5))).params
    array([2.5, 0, -1.5], dtype=float32)
    """

    loss_alone: ClassVar[bool] = False

    penalty: Any
    step_size: float | None = None

    def __post_init__(self) -> None:
        for path, leaf in _tree.leaves_with_paths(self.penalty):
            if leaf is not None and not isinstance(leaf, Penalty):
                hint = f" Write {leaf.__name__}(...)." if isinstance(leaf, type) else ""
                raise TypeError(
                    f"ProximalGradient(penalty{path}) is {leaf!r}; expected one of mlxopt.prox, "
                    f"such as prox.L1(0.1), or None.{hint}"
                )
        if self.step_size is not None:
            check_fields(self, "step_size", above=0)

    def nearest(self, params: Tree) -> Tree:
        penalties = self._penalties(params)
        return from_leaves(map(_projected, leaves(params), penalties), params)

    def init(self, objective: Objective, params: Tree) -> ProximalState:
        penalties = self._penalties(params)
        _check_allowed(penalties, params)
        params = self.nearest(params)  # moves by a rounding error at most
        value, grad = objective.value_and_grad(params)
        dtype = working_dtype(params)
        loss, largest = read(value, largest_entry(grad))
        t = self.step_size or 1.0
        if self.step_size is None and is_finite(loss, largest):
            t = first_step_size(objective, params, _tree.to_host(grad))
        gap = _optimality(penalties, params, grad, mx.array(t, dtype=dtype))
        extra, optimality = read(_total(penalties, params, dtype), gap)
        point = params, loss + extra, grad, optimality, None, False
        return ProximalState(*point, loss, t, 1.0, None, Point(params, loss, grad))

    def penalty_of(self, params: Tree) -> float:
        dtype = working_dtype(params)
        return read(_total(self._penalties(params), params, dtype))[0]

    def reduced(self, state: ProximalState) -> tuple[np.ndarray, np.ndarray]:
        """Return the prox-gradient map (x - prox(x - t ∇f, t)) / t, and where it is not zero."""
        dtype, penalties = working_dtype(state.params), self._penalties(state.params)
        t = mx.array(state.step_size, dtype=dtype)
        gaps, free = [], []
        for leaf, slope, penalty in zip(
            leaves(state.params), leaves(state.grad), penalties, strict=True
        ):
            x, slope = leaf.astype(dtype), slope.astype(dtype)
            if penalty is None:
                gaps.append(slope)
                free.append(mx.ones_like(slope))
                continue
            shake = _tree.EPSILON[dtype] * mx.abs(x)  # as in `_optimality`
            low, high = (x - penalty.prox(x - t * slope + one, t) for one in (-shake, shake))
            gaps.append(mx.where(mx.abs(low) > mx.abs(high), low, high) / t)
            free.append((gaps[-1] != 0).astype(dtype))
        return _tree.to_host(gaps), _tree.to_host(free) != 0

    def step(self, objective: Objective, state: ProximalState) -> ProximalState:
        if state.status is not None:
            return state
        state = state._replace(moved=False)
        if state.model is None:
            return self._look_ahead(objective, state)
        y, t, dtype = state.model, state.step_size, working_dtype(state.params)
        if not t > 0:  # it has underflown
            return state._replace(status=Status.NO_PROGRESS)
        scale = mx.array(t, dtype=dtype)

        def bound(function: Callable[..., Any]) -> Callable[..., Any]:
            return objective.compiled(
                (id(self), function), lambda: partial(function, self._penalties(state.params))
            )

        trial = bound(_step)(y.params, y.grad, scale)
        value, grad = objective.value_and_grad(trial)
        points = trial, grad, y.params, y.grad, state.params
        numbers = bound(_measure)(value, scale, *points)
        loss, extra, optimality, ahead, dd, dy, uphill, moved = np.array(numbers).tolist()

        if loss == -math.inf:
            return state._replace(status=Status.UNBOUNDED)
        finite = is_finite(loss, extra, optimality, dd, dy)
        has_momentum = state.theta > 1
        noise = _NOISE * _tree.epsilon(state.params) * (abs(loss) + abs(extra))
        # ½ L of the loss along the step; by slopes where rounding hides it in the values, as in
        # Becker, Candès and Grant (2011), "Templates for convex cone problems", section 5.3.
        allowed = dd / (2 * t)
        excess = loss - y.value - ahead if noise < 0.1 * allowed else 0.5 * dy
        if self.step_size is None and not (finite and excess <= allowed * (1 + 1e-6)):
            shorter = dd / (2 * excess) if finite else 0.0
            t *= min(max(shorter / t, _SHRINK_MOST), _SHRINK_LEAST)
            return state._replace(step_size=t)
        total = loss + extra
        if has_momentum and not (finite and total <= state.value + noise and moved > 0):
            return _restarted(state)
        if not finite:
            return state._replace(status=Status.NONFINITE)
        if self.step_size is not None and total > state.value + _SUM * noise:  # t > 2/L
            return state._replace(status=Status.DIVERGED)
        if moved == 0:
            return state._replace(status=Status.NO_PROGRESS)

        if self.step_size is None and state.before is None:
            t = dd / dy if dy > 0 else 10 * t  # the first trial knew no scale
        point = trial, total, grad, optimality, None, True
        kept = ProximalState(*point, loss, t, state.theta, state.params, None)
        if uphill > 0 or state.before is None:
            # Try a longer step, as the restart saves an evaluation.
            grown = 2 * t if self.step_size is None and state.before is not None else t
            return _restarted(kept)._replace(step_size=grown)
        return kept

    def _penalties(self, params: Tree) -> list[Penalty | None]:
        names = "ProximalGradient's penalty", "penalty"
        entries = _tree.spread(self.penalty, params, _is_penalty, *names)
        pairs = zip(entries, leaves(params), strict=True)
        return [entry and entry.in_dtype(leaf.dtype) for entry, leaf in pairs]

    def _look_ahead(self, objective: Objective, state: ProximalState) -> ProximalState:
        """Evaluate y; drop the momentum if it is outside the domain of the loss."""
        theta = 0.5 * (1 + math.sqrt(1 + 4 * state.theta**2))  # equation 4.2
        share = mx.array((state.theta - 1) / theta, dtype=working_dtype(state.params))
        beyond = objective.compiled(_beyond, lambda: _beyond)
        y = beyond(state.params, state.before, share)  # equation 4.3
        value, grad = objective.value_and_grad(y)
        number, largest = read(value, largest_entry(grad))
        if not is_finite(number, largest):
            return _restarted(state)
        return state._replace(theta=theta, model=Point(y, number, grad))


def _is_penalty(penalty: Any, _: Tree) -> bool:
    return penalty is None or isinstance(penalty, Penalty)


def _check_allowed(penalties: Penalties, params: Tree) -> None:
    """Raise ValueError unless `params` satisfies the constraints, give or take a rounding."""
    dtype = working_dtype(params)
    for (path, leaf), penalty in zip(_tree.leaves_with_paths(params), penalties, strict=True):
        x, nearest = leaf.astype(dtype), _projected(leaf, penalty).astype(dtype)
        distance, size = read(largest_entry(nearest - x), largest_entry([x, nearest]))
        if distance > 10 * _tree.epsilon(params) * size:
            raise ValueError(
                f"ProximalGradient: params{path} starts {distance:.3g} outside of {penalty}. "
                f"Start inside, for instance at its .prox(params{path}, 1.0)."
            )


def _projected(leaf: mx.array, penalty: Penalty | None) -> mx.array:
    if penalty is None or not penalty.is_constraint:
        return leaf
    dtype = working_dtype(leaf)
    return penalty.prox(leaf.astype(dtype), mx.array(1.0, dtype=dtype)).astype(leaf.dtype)


def _restarted(state: ProximalState) -> ProximalState:
    """Return the state without momentum: the next model is at `params`."""
    return state._replace(theta=1.0, model=Point(state.params, state.loss, state.grad))


def _beyond(params: Tree, before: Tree, share: mx.array) -> Tree:
    return tree_map(lambda x, old: (x + share * (x - old)).astype(x.dtype), params, before)


def _step(penalties: Penalties, params: Tree, grad: Tree, t: mx.array) -> Tree:
    """Return prox(params - t · grad, t)."""
    moved = []
    for leaf, slope, penalty in zip(leaves(params), leaves(grad), penalties, strict=True):
        x = leaf.astype(t.dtype) - t * slope.astype(t.dtype)
        moved.append((x if penalty is None else penalty.prox(x, t)).astype(leaf.dtype))
    return from_leaves(moved, params)


def _total(penalties: Penalties, params: Tree, dtype: mx.Dtype) -> mx.array:
    """Return g(params)."""
    total = mx.array(0.0, dtype=dtype)
    for leaf, penalty in zip(leaves(params), penalties, strict=True):
        if penalty is not None:
            total = total + penalty.value(leaf.astype(dtype))
    return total


def _optimality(penalties: Penalties, params: Tree, grad: Tree, t: mx.array) -> mx.array:
    """Return the largest entry of (params - prox(params - t · grad, t)) / t, rounding added."""
    dtype, gaps = t.dtype, []
    for leaf, slope, penalty in zip(leaves(params), leaves(grad), penalties, strict=True):
        x, slope = leaf.astype(dtype), slope.astype(dtype)
        if penalty is None:
            gaps.append(slope)
            continue
        # Else a gradient below the rounding of a large parameter would vanish in the difference.
        shake = _tree.EPSILON[dtype] * mx.abs(x)
        gaps += [(x - penalty.prox(x - t * slope + shift, t)) / t for shift in (-shake, shake)]
    return largest_entry(gaps)


def _measure(penalties: Penalties, value: mx.array, t: mx.array, *points: Tree) -> mx.array:
    """Return the numbers that decide about a trial, from x⁺, ∇f(x⁺), y, ∇f(y) and x."""
    dtype = t.dtype
    new, g, y, old, x = (_tree.ravel(tree, dtype) for tree in points)
    d = new - y
    total = _total(penalties, points[0], dtype)
    gap = _optimality(penalties, points[0], points[1], t)
    pairs = [(old, d), (d, d), (g - old, d), (-d, new - x)]
    products = [mx.inner(a, b) for a, b in pairs]
    numbers = [value, total, gap, *products, mx.max(mx.abs(new - x))]
    return mx.stack([number.astype(dtype) for number in numbers])

"""Prodigy: Adam with an estimated learning rate.

Notation, as in Mishchenko and Defazio (2024): x₀ = the start; γ = learning_rate; m, v, s, r and d
as in `ProdigyBuffers`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._checks import limited
from mlxopt._tree import Tree, leaves, working_dtype
from mlxopt.optimizers._base import FirstOrder, LearningRate, Step, running_mean, wide, zeros


class ProdigyBuffers(NamedTuple):
    """The buffers of Prodigy; float32 where the parameters have 16 bits."""

    m: Tree  # the running mean of d · gradient, like params
    v: Tree  # the running mean of its square, like params
    s: Tree  # the weighted sum of gradients, like params
    r: mx.array  # the weighted sum of ⟨gradient, x₀ - x⟩, shape ()
    d: mx.array  # the estimate of the distance from x₀ to a minimum, shape ()
    start: Tree  # x₀
    moved: Tree  # x - x₀, a sum of its own: the first steps are below the rounding of x


@dataclasses.dataclass(frozen=True)
class Prodigy(FirstOrder):
    """Adam with a learning rate estimated from the distance to the minimum.

        m ← beta1 · m + (1 - beta1) · d · gradient
        v ← beta2 · v + (1 - beta2) · d² · gradient²
        r ← √beta2 · r + (1 - √beta2) · γ d² ⟨gradient, x₀ - x⟩
        s ← √beta2 · s + (1 - √beta2) · γ d² gradient
        x ← x - γ d · m / (√v + d · epsilon)
        d ← max(d, r / ‖s‖₁)

    where γ is `learning_rate`: 1, or a schedule that decreases from 1. The estimate d, one number
    for all parameters, never decreases; the first tens of steps are tiny, while it grows by a
    factor a step. Mishchenko and Defazio (2024), "Prodigy: an expeditiously adaptive parameter-free
    learner", algorithm 4.

    Args:
        learning_rate: a factor on the estimate: a number, or a function of the step.
        beta1: the decay rate of the mean, from 0 to below 1.
        beta2: the decay rate of the mean square, from 0 to below 1.
        epsilon: added to the root, zero or more.
        distance: the first estimate of d: too small costs a few steps, too large is not corrected.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum(mx.array([1.0, 100.0]) * (w - 300.0) ** 2)
    >>> rule = mo.Prodigy(mo.schedules.cosine(1.0, steps=1000))
    >>> result = mo.minimize(loss, mx.zeros(2), rule, tol=0)
    >>> [round(w, 2) for w in result.params.tolist()]
    [300.0, 300.0]
    """

    learning_rate: LearningRate = 1.0
    beta1: float = limited(0.9, least=0, below=1)
    beta2: float = limited(0.999, least=0, below=1)
    epsilon: float = limited(1e-8, least=0)
    distance: float = limited(1e-6, above=0)

    def start(self, params: Tree) -> ProdigyBuffers:
        dtype = working_dtype(params)
        m, v, s, moved = (zeros(params) for _ in range(4))
        r, d = mx.zeros((), dtype=dtype), mx.array(self.distance, dtype=dtype)
        return ProdigyBuffers(m, v, s, r, d, params, moved)

    def update(self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array) -> Step:
        m, v, s, r, d, start, moved = buffers
        grad = wide(grad)
        scaled = tree_map(lambda g: d * g, grad)
        m = running_mean(m, scaled, self.beta1)
        v = running_mean(v, tree_map(mx.square, scaled), self.beta2)
        beta3 = math.sqrt(self.beta2)
        weight = (1 - beta3) * learning_rate * mx.square(d)
        inner = sum(leaves(tree_map(lambda g, w: -mx.sum(g * w).astype(d.dtype), grad, moved)))
        r = beta3 * r + weight * inner
        s = tree_map(lambda o, g: (beta3 * o + weight * g).astype(o.dtype), s, grad)

        def step(w: mx.array, m: mx.array, v: mx.array) -> mx.array:
            return (w - learning_rate * d * m / (mx.sqrt(v) + d * self.epsilon)).astype(w.dtype)

        moved = tree_map(step, moved, m, v)
        length = sum(leaves(tree_map(lambda o: mx.sum(mx.abs(o)).astype(d.dtype), s)))
        # Before the first gradient that is not 0, r and s are 0 and say nothing of the distance.
        d = mx.maximum(d, mx.where(length > 0, r / length, d))
        x = tree_map(lambda p, w: (p + w).astype(p.dtype), start, moved)
        return x, ProdigyBuffers(m, v, s, r, d, start, moved)

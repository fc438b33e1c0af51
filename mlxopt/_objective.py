"""A loss over its data, as a function of the parameters alone: the one place that compiles it.

Optimizers see nothing else of the outside world. `value_and_grad`, `hvp` and `hessian` return
unevaluated arrays: whoever needs a number reads it, once, together with all else it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._platform import blas
from mlxopt._platform.compiler import precompile_header
from mlxopt._tree import (
    Tree,
    count,
    leaves,
    leaves_with_paths,
    read,
    working_dtype,
)
from mlxopt.autodiff import (
    can_batch,
    checked_loss,
    hessian_product,
    hessian_row,
    kept_random_state,
    over_rows,
    sample_rows,
    tape_guard,
    unit_rows,
    with_fixed_draw,
)


class Objective:
    """`loss(params, *data)` with the data held fixed, compiled once, its evaluations counted.

    Args:
        loss: a function `loss(params, *data)` that returns a scalar array.
        data: the arrays that the loss takes after its parameters. They travel as arguments of the
            compiled functions: a captured array would be frozen into them.
        compile: False evaluates op by op, for a loss that branches on values.
        fixed_draw: give the loss the same random numbers in every evaluation (a Monte Carlo loss is
            then a deterministic function, which is what a line search needs); otherwise each
            evaluation takes the next numbers of MLX's global generator.
    """

    def __init__(
        self,
        loss: Callable[..., mx.array],
        data: tuple[Any, ...] = (),
        *,
        compile: bool = True,
        fixed_draw: bool = True,
    ) -> None:
        blas.start()
        checked = checked_loss(loss)
        self.loss = with_fixed_draw(checked) if fixed_draw else checked
        self.data = data
        self.evaluations = 0
        self.steps_per_call = 1  # how many first-order steps one compiled call takes
        self._fixed_draw = fixed_draw
        self._compiles = compile
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._hessian_rows: Callable[..., mx.array] | None = None
        self._uses_random = False
        self._steps_timed = 0

    def trace(self, params: Tree, data: tuple[Any, ...] | None = None) -> None:
        """Check once that the loss stays on the tape, and see whether it draws random numbers."""
        if not self._compiles:
            return
        # With a fixed draw nothing hangs on the answer: this may be the function that will run.
        function = self._both() if self._fixed_draw else mx.compile(self.loss)
        with kept_random_state() as random, tape_guard(self.loss):
            function(params, *(self.data if data is None else data))
        self._uses_random = random.used and not self._fixed_draw

    def compiled(self, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """Return the function that `make` gives, compiled, the same one whenever `key` is."""
        if key not in self._compiled:
            function = make()
            if self._compiles:
                precompile_header()
                # Without the state among inputs and outputs a compiled function would repeat its
                # random numbers for ever; with it each call costs some 30 µs more.
                state = mx.random.state if self._uses_random else None
                function = mx.compile(function, inputs=state, outputs=state)
            self._compiled[key] = function
        return self._compiled[key]

    def time_steps(self, count: int, seconds: float) -> None:
        """Learn from `count` first-order steps how many a compiled call should take.

        A call costs some 15 µs of dispatch and a round trip whatever it does, which is worth
        sharing where a step is quick. Longer calls than of 10 steps gain nothing more. They take
        seconds to compile where that was never done before, so a run must first last a while.
        """
        self._steps_timed += count
        if self._steps_timed >= 200 and self._compiles and seconds / count < 200e-6:
            self.steps_per_call = 10

    def value_and_grad(self, params: Tree) -> tuple[mx.array, Tree]:
        """Return the loss, shape (), and its gradient, a tree like `params`; one evaluation.

        Where a factorization in the loss fails, away from the start, they are NaN, from which a
        line search backs away.
        """
        self.evaluations += 1
        try:
            return self._both()(params, *self.data)
        except np.linalg.LinAlgError:
            if self.evaluations == 1:
                raise
            nan = mx.array(math.nan, dtype=working_dtype(params))
            return nan, tree_map(lambda leaf: mx.full(leaf.shape, math.nan, leaf.dtype), params)

    def _both(self) -> Callable[..., Any]:
        return self.compiled("value_and_grad", lambda: mx.value_and_grad(self.loss))

    def hvp(self, params: Tree, vector: Tree) -> Tree:
        """Return the Hessian at `params` times `vector`, both trees like `params`.

        Reverse over reverse, which works for every operation that has a gradient.
        """
        return self.compiled("hvp", lambda: hessian_product(self.loss))(params, vector, *self.data)

    def hessian(self, params: Tree, structured: Callable[..., mx.array] | None = None) -> mx.array:
        """Return the Hessian, shape (p, p), in `tree_flatten` order.

        Args:
            params: where.
            structured: a function `(params, *data) -> (p, p)` that computes it better than p
                Hessian-vector products do.
        """
        if structured is not None:
            return structured(params, *self.data)
        size, dtype = count(params), working_dtype(params)
        if self._hessian_rows is None:
            # Not compiled: that gains nothing here, would take seconds where it was never done
            # before, and MLX 0.32 cannot compile some batched derivatives.
            row = hessian_row(self.loss)
            batched = can_batch(row, sample_rows(size, dtype), params, self.data)
            self._hessian_rows = over_rows(row, batched)
        rows = self._hessian_rows
        return unit_rows(lambda units: rows(units, params, self.data), size, dtype)

    def ignored_leaves(self, params: Tree, grad: Tree) -> list[str]:
        """Return the paths of the leaves that the loss does not depend on.

        A leaf whose gradient is exactly zero may still matter (a saddle, a dead unit); one that can
        be NaN without the loss noticing does not.
        """
        named = leaves_with_paths(params)
        zero = [bool(mx.all(leaf == 0).item()) for leaf in leaves(grad)]
        if not any(zero):
            return []
        value = self._probe(params)
        paths = []
        for index, ((path, _), is_zero) in enumerate(zip(named, zero, strict=True)):
            if not is_zero:
                continue
            if self._probe(_with_nan_leaf(params, index)) == value:
                paths.append(f"params{path}")
        return paths

    def _probe(self, params: Tree) -> float:
        """Return the loss with the random numbers of the next evaluation, which still gets them."""
        with kept_random_state():
            try:
                return read(self.loss(params, *self.data))[0]
            except (ValueError, OverflowError):  # a loss that branches on values (int(nan)) noticed
                return math.nan


def _with_nan_leaf(params: Tree, index: int) -> Tree:
    """Return `params` with every entry of its leaf number `index` NaN."""
    position = -1

    def spoil(leaf: mx.array) -> mx.array:
        nonlocal position
        position += 1
        return mx.full(leaf.shape, float("nan"), dtype=leaf.dtype) if position == index else leaf

    return tree_map(spoil, params)

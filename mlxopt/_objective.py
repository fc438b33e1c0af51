"""A loss over its data, as optimizers see it: compiled, and its evaluations counted.

`value_and_grad`, `hvp` and `hessian` return unevaluated arrays, so that a step reads all the
numbers it needs at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._platform.device import begin
from mlxopt._tree import (
    Params,
    count,
    epsilon,
    evaluate,
    from_host,
    from_leaves,
    is_finite,
    leaves_with_paths,
    read,
    structure,
    to_device,
    to_host,
    to_numpy,
    working_dtype,
)
from mlxopt.autodiff import _rows
from mlxopt.autodiff._evidence import check_processes, check_slope, check_trace, reads_in_vain
from mlxopt.autodiff._finite import why_not_finite
from mlxopt.autodiff._guards import (
    NoDerivativeError,
    TapeError,
    agree,
    call,
    checked_loss,
    compile_traces,
    compiled,
    differentiating,
    kept_random_state,
    name_of,
    noted_collectives,
    tape_guard,
    trace,
    with_fixed_draw,
)
from mlxopt.engine._lowered import lowered

Loss = Callable[..., mx.array]  # loss(params, *data), a scalar array
_FEW = 8  # parameters up to which the first Hessian is computed row by row

Hessian = Callable[..., mx.array]  # hessian(params, *data), shape (p, p)


class Objective:
    """`loss(params, *data)` as a function of the parameters.

    Args:
        loss: a function `loss(params, *data)` that returns a scalar array.
        data: its other arguments. They are arguments of the compiled functions too, into which a
            captured array would be frozen.
        compile: False evaluates op by op, for a loss that branches on values. The attribute
            `compiles` is False also after `trace` has found a loss that cannot be compiled.
        fixed_draw: repeat the same random numbers in every evaluation, which makes a Monte Carlo
            loss deterministic, as a line search needs it; else each evaluation draws new ones.
    """

    def __init__(
        self,
        loss: Loss,
        data: tuple[Any, ...] = (),
        *,
        compile: bool = True,
        fixed_draw: bool = True,
    ) -> None:
        begin()
        checked = checked_loss(loss)
        self.loss = with_fixed_draw(checked) if fixed_draw else checked
        self.data = data
        self.evaluations = 0
        self.steps_per_call = 1  # first-order steps in one compiled call
        self._fixed_draw = fixed_draw
        self.compiles = compile
        self._first: tuple[Any, ...] | None = None  # what the first evaluation is held against
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._hessian_rows: Callable[..., mx.array] | None = None
        self._has_hessian = False
        self._uses_random = False
        self._steps_timed = 0
        self._last: tuple[Any, ...] = (None, None, None)  # of `hessian`: arguments and result
        self._last_product: tuple[Any, ...] = (None, None, None)  # of `times`: likewise
        self.noise = 0.0  # the relative rounding error of the loss, where it was measured

    def trace(self, params: Params, data: tuple[Any, ...] | None = None) -> None:
        """Check that the loss stays on the tape, and whether it draws random numbers.

        A loss that reads back nothing that counts (its data, a print) is from now on evaluated op
        by op. The value at the first evaluation is held against one op by op, which is not counted.

        Raises:
            TapeError: it reads arrays that depend on the parameters back to Python.
        """
        data = self.data if data is None else data
        drawn = functools.wraps(self.loss)(with_fixed_draw(self._output))
        evaluate(params, data)  # a thread of the loss could not evaluate them
        with kept_random_state() as random, noted_collectives() as calls:
            # First of all: a loss that keeps arrays of its first call then keeps real ones.
            plain = self._output(params, *data)
            evaluate(plain)
        if calls:
            check_processes(lambda at: drawn(at, *data), params, name_of(self.loss))
        self._uses_random = random.used and not self._fixed_draw
        self._first = params, data, plain, drawn
        if not self.compiles:
            return
        # With a fixed draw this trace serves the run as well.
        serves = self._fixed_draw and compile_traces()
        traced = self._both() if serves else functools.partial(trace, self.loss)
        try:
            with kept_random_state(), differentiating(self.loss), tape_guard(self.loss):
                traced(params, *data)
        except TapeError:
            if not reads_in_vain(lambda at: drawn(at, *data), params):
                raise
            self._compiled, self.compiles, self._first = {}, False, None

    def _output(self, params: Params, *data: Any) -> mx.array:
        """Return what an evaluation gives: the loss, shape ()."""
        return self.loss(params, *data)

    def _held(self, params: Params, value: mx.array, grad: Params | None = None) -> None:
        """Hold the first evaluation against others, which show a trace or gradient to be wrong."""
        first, self._first = self._first, None
        if first is None or first[1] is not self.data:  # those of another problem
            return
        start, data, plain, drawn = first
        if self.compiles:
            if params is not start:  # moved into its bounds
                plain = drawn(params, *data)
            if not agree(value, plain):
                check_trace(drawn, params, data, plain, value)
            return
        loss = with_fixed_draw(self.loss)
        if grad is None:
            value, grad = mx.value_and_grad(loss)(params, *data)
        check_slope(loss, params, data, value, grad)

    def compiled(self, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """Return the compiled function of this key, from `make()` at the first call."""
        if key not in self._compiled:
            function = make()
            if self.compiles:
                # Without the state among its inputs and outputs a compiled function repeats its
                # random numbers; with it each call costs 30 µs more.
                state = mx.random.state if self._uses_random else None
                found = compiled(function, inputs=state, outputs=state)
                function = found if self._uses_random else lowered(function, found)
            self._compiled[key] = function
        return self._compiled[key]

    def epsilon(self, params: Params) -> float:
        """Return the relative rounding error of an operation in the loss."""
        return max(epsilon(params), self.noise)

    def time_steps(self, count: int, seconds: float) -> None:
        """Choose the number of first-order steps in a compiled call from the time of `count`.

        A call costs 15 µs of dispatch and a round trip, which quick steps should share; more than
        10 steps gain nothing. Compiling them may take seconds, so short runs do without.
        """
        self._steps_timed += count
        if self._steps_timed >= 200 and self.compiles and seconds / count < 200e-6:
            self.steps_per_call = 10

    def value_and_grad(self, params: Params) -> tuple[mx.array, Params]:
        """Return the loss, shape (), and its gradient, a tree like `params`; one evaluation.

        They are NaN where a factorization in the loss fails, except at the start, where it raises
        LinAlgError: a line search rejects NaN.
        """
        self.evaluations += 1
        try:
            with differentiating(self.loss):
                value, grad = self._both()(params, *self.data)
        except np.linalg.LinAlgError:
            if self.evaluations == 1:
                raise
            nan = mx.array(math.nan, dtype=working_dtype(params))
            return nan, tree_map(lambda leaf: mx.full(leaf.shape, math.nan, leaf.dtype), params)
        self._held(params, value, grad)
        return value, grad

    def _both(self) -> Callable[..., Any]:
        return self.compiled("value_and_grad", lambda: mx.value_and_grad(self.loss))

    def hvp(self, params: Params, vector: Params) -> Params:
        """Return the Hessian at `params` times `vector`, both trees like `params`.

        Reverse over reverse, which works for every operation that has a gradient.
        """
        product = self.compiled("hvp", lambda: _rows.hessian_product(self.loss))
        with differentiating(self.loss):
            return product(params, vector, *self.data)

    def product(self, params: Params, vector: Params) -> Params:
        """Return `hvp` without compiling it, for a few products only.

        At the point of the last Hessian it is the product with that; by differences of the gradient
        where MLX has no second derivative.
        """
        if self._last[0] is params:
            matrix = to_numpy(self._last[2])
            if np.isfinite(matrix).all():
                return from_host(matrix @ to_host(vector), params)
        try:
            with differentiating(self.loss):
                return _rows.hessian_product(self.loss)(params, vector, *self.data)
        except NoDerivativeError:
            v, size = to_host(vector), np.abs(to_host(params)).max() or 1.0
            length = epsilon(params) ** (1 / 3) * size / (np.abs(v).max() or 1.0)
            return from_host(self._change(params, length * v) / (2 * length), params)

    def times(self, params: Params, vector: np.ndarray) -> np.ndarray:
        """Return `product` of a vector of the host, (p,); the last one is kept.

        It is NaN where the loss has no second derivative.
        """
        last, at, product = self._last_product
        if last is not params or not np.array_equal(at, vector):
            # A vector of length one, so that float32 holds the product.
            unit = 2.0 ** math.frexp(float(np.abs(vector).max(initial=0.0)))[1]
            try:
                product = unit * to_host(self.product(params, from_host(vector / unit, params)))
            except (ValueError, RuntimeError):  # an operation without one
                product = np.full_like(vector, math.nan)
            self._last_product = params, vector.copy(), product
        return product.copy()

    def hessian(self, params: Params, structured: Hessian | None = None) -> mx.array:
        """Return the Hessian, shape (p, p), in `tree_flatten` order; the last one is kept.

        Args:
            params: the point.
            structured: computes it in place of p Hessian-vector products.
        """
        if self._last[0] is not params or self._last[1] is not structured:
            found = self._hessian(params, structured)
            if structured is None:
                found = self._completed(params, found)
            self._last = params, structured, found
        return self._last[2]

    def _completed(self, params: Params, hessian: mx.array) -> mx.array:
        """Return the Hessian with rows that are not finite from differences of the gradient.

        The second derivative of a power of zero is NaN in MLX, whatever the loss does beside zero.
        """
        matrix = to_numpy(hessian)
        bad = np.flatnonzero(~np.isfinite(np.diag(matrix)))
        if not len(bad):
            return hessian
        x = to_host(params)
        for i in bad:
            step = np.zeros_like(x)
            step[i] = epsilon(params) ** (1 / 3) * (abs(x[i]) or np.abs(x).max() or 1.0)
            matrix[i] = matrix[:, i] = self._change(params, step) / (2 * step[i])
        return to_device(matrix, working_dtype(params))

    def _change(self, params: Params, step: np.ndarray) -> np.ndarray:
        """Return the change of the gradient, (p,), from params - step to params + step."""
        x, evaluations = to_host(params), self.evaluations
        ends = [to_host(self.value_and_grad(from_host(x + s * step, params))[1]) for s in (-1, 1)]
        self.evaluations = evaluations
        return ends[1] - ends[0]

    def _hessian(self, params: Params, structured: Hessian | None) -> mx.array:
        if structured is not None:
            return call(structured, params, *self.data)
        size, dtype = count(params), working_dtype(params)
        if self._hessian_rows is None and size <= _FEW and not self._has_hessian:
            # The comparison costs as much as these rows, and most runs need one Hessian only.
            self._has_hessian = True
            single = _rows.over_rows(_rows.hessian_row(self.loss), False)
            with differentiating(self.loss):
                return _rows.unit_rows(lambda units: single(units, params, self.data), size, dtype)
        if self._hessian_rows is None:
            # Compiling it gains nothing, may take seconds, and fails for some batched derivatives
            # in MLX 0.32.
            row = _rows.hessian_row(self.loss)
            batched = _rows.can_batch(row, _rows.sample_rows(size, dtype), params, self.data)
            self._hessian_rows = _rows.over_rows(row, batched)
        rows = self._hessian_rows
        with differentiating(self.loss):
            return _rows.unit_rows(lambda units: rows(units, params, self.data), size, dtype)

    def keep_hessian(self, params: Params, structured: Hessian | None, matrix: mx.array) -> None:
        """Keep a Hessian known otherwise, as that of the last call."""
        self._last = params, structured, matrix

    def check_start(self, params: Params, value: float, optimality: float, grad: Any) -> None:
        """Raise ValueError unless the loss and its gradient are finite at the start.

        Args:
            params: the start.
            value: the loss there.
            optimality: the largest entry of its gradient.
            grad: the gradient, a tree like `params`; anything else if it is not known.
        """
        if is_finite(value, optimality):
            return
        what = "gradient is NaN or infinite" if math.isfinite(value) else f"loss is {value}"
        grad = grad if structure(grad) == structure(params) else None
        drawn = functools.wraps(self.loss)(with_fixed_draw(self.loss))
        why = why_not_finite(drawn, self._output, params, self.data, value, grad)
        raise ValueError(f"the {what} at the start; expected a finite number. {why}")

    def ignored_leaves(self, params: Params, grad: Params) -> list[str]:
        """Return the paths of the leaves that the loss does not depend on.

        A leaf with a gradient of exactly zero may still matter (a saddle, a dead unit), but not if
        NaN in its place leaves the loss unchanged.
        """
        zero = [
            index
            for index, (_, leaf) in enumerate(leaves_with_paths(grad))
            if bool(mx.all(leaf == 0).item())
        ]
        if not zero:
            return []
        value, named = self._probe(params), leaves_with_paths(params)
        ignored = []
        for index in zero:
            arrays = [leaf for _, leaf in named]
            arrays[index] = mx.full(arrays[index].shape, math.nan, arrays[index].dtype)
            if self._probe(from_leaves(arrays, params)) == value:
                ignored.append(f"params{named[index][0]}")
        return ignored

    def _probe(self, params: Params) -> float:
        """Return the loss, without advancing the random numbers of the run."""
        with kept_random_state():
            try:
                return read(self.loss(params, *self.data))[0]
            except (ValueError, OverflowError):  # a loss that branches on values (int(nan)) noticed
                return math.nan

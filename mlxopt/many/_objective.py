"""A loss of many problems, as a function of the parameters of those still running.

Arguments and results are arrays of the host, float64, one row for each running problem. For MLX
they are padded to a size that seldom changes: each new one costs a trace.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._objective import Objective
from mlxopt._tree import Tree, count, epsilon, ravel, to_device, to_numpy, unravel, working_dtype
from mlxopt.autodiff._guards import call, compiled, differentiating, name_of
from mlxopt.autodiff._rows import hessian_row
from mlxopt.engine._lowered import lowered
from mlxopt.many._agreement import At, check_row, explain_failure, general_vector
from mlxopt.many._problems import Problems
from mlxopt.optimizers.newton import check_hessian

# Costs in numbers that go in: a nanosecond or two each for a gradient.
_WORTH_TWO = 200_000  # from here on two CPU streams share the work; a second call costs 0.1 ms
_WORTH_SHRINKING = 2_000_000  # wasted on problems that have ended; a trace costs 1 to 3 ms
_MOST = 2**25  # in one call, so that a batch of thousands does not fill the memory
_CHECKS = 2  # the first calls, whose results are compared with a single computation


class BatchedObjective:
    """The loss and its derivatives at A points, one for each running problem.

    Args:
        single: the loss of the first.
        problems: all of them.
        compile: False evaluates op by op.
        rows: gradients computed together for one problem: p for a Hessian.
    """

    def __init__(
        self, single: Objective, problems: Problems, *, compile: bool, rows: int = 1
    ) -> None:
        self.single, self.problems, self.compile = single, problems, compile
        self.dtype = working_dtype(problems.like)
        self._functions: dict[str, Callable[..., Any]] = {}
        self._checked: Counter[str] = Counter()
        on_cpu = mx.default_device() == mx.cpu or self.dtype == mx.float64
        self._streams = _two_streams() if on_cpu else []
        own = sum(leaf.size for leaf in problems.own) // problems.size
        self._rows = rows
        self._numbers = own + sum(leaf.size for leaf in problems.shared) + count(problems.like)
        self.alive, self.noise = np.arange(problems.size), np.zeros(problems.size)
        self._pad()

    def keep(self, alive: np.ndarray) -> None:
        """Compute these problems from here on, (A,) places among all."""
        self.alive, self._slots = alive, self._places[alive]
        worth = self._wasted >= _WORTH_SHRINKING or not self.compile
        shrinks = worth and 2 * len(alive) <= self._size
        if len(alive) and (shrinks or (self._slots < 0).any()):
            self._pad()

    def epsilon(self, alive: np.ndarray | None = None) -> np.ndarray:
        """Return the relative rounding errors of the losses, (A,): those running, or `alive`."""
        noise = self.noise[self.alive if alive is None else alive]
        return np.maximum(epsilon(self.problems.like), noise)

    def value_and_grad(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses (A,) and their gradients (A, p) at x (A, p)."""

        def at(params: Tree, data: tuple[Any, ...]) -> mx.array:
            return ravel(mx.value_and_grad(self.single.loss)(params, *data), working_dtype(params))

        both = self.evaluate("gradient", at, x)
        return both[:, 0], both[:, 1:]

    def hessian(
        self, x: np.ndarray, structured: Callable[..., mx.array] | None = None
    ) -> np.ndarray:
        """Return the Hessians at x (A, p), shape (A, p, p); `structured` computes one of them."""
        p = count(self.problems.like)
        row = hessian_row(self.single.loss)

        def at(params: Tree, data: tuple[Any, ...]) -> mx.array:
            if structured is None:
                units = mx.eye(p, dtype=working_dtype(params))
                return mx.vmap(lambda unit: row(unit, params, data))(units)
            matrix = call(structured, params, *data)
            return check_hessian(matrix, p).astype(working_dtype(params))

        def product(params: Tree, data: tuple[Any, ...]) -> mx.array:
            return row(to_device(general_vector(p), working_dtype(params)), params, data)

        return self.evaluate("hessian", at, x, None if structured else product)

    def times_gradient(self, x: np.ndarray) -> np.ndarray:
        """Return the Hessians times the gradients, (A, p); NaN where MLX cannot batch them."""
        row = hessian_row(self.single.loss)

        def at(params: Tree, data: tuple[Any, ...]) -> mx.array:
            gradient = mx.grad(self.single.loss)(params, *data)
            return row(ravel(gradient, working_dtype(params)), params, data)

        try:
            return self.evaluate("product", at, x)
        except (ValueError, RuntimeError, IndexError):
            return np.full_like(x, np.nan)

    def alone(self, row: int, x: np.ndarray) -> tuple[Objective, Tree]:
        """Return the loss of one of the running problems, and the point x, (p,), as its tree."""
        objective = copy.copy(self.single)
        params, objective.data = self.problems.single(int(self.alive[row]), x)
        return objective, params

    def evaluate(self, key: str, at: At, x: np.ndarray, product: At | None = None) -> np.ndarray:
        """Return `at` of each problem at x (A, p), stacked; the first calls are checked.

        Args:
            key: the name under which `at` is compiled once.
            at: a function of the parameters and the data of one problem.
            x: the parameters.
            product: for an `at` with a batch within: its product with `general_vector`, without.
        """
        self._buffer[self._slots] = x
        self._wasted += (self._size - len(x)) * self._numbers
        try:
            found = self._call(key, at)[self._slots]
        except (ValueError, RuntimeError) as error:
            with differentiating(self.single.loss):
                explain_failure(error, at, self.problems, self.single.loss)
            raise
        if self._checked[key] < _CHECKS:
            self._checked[key] += 1
            self._check(at, product, x, found)
        return found

    def _check(self, at: At, product: At | None, x: np.ndarray, found: np.ndarray) -> None:
        """Raise ValueError unless the last finite row agrees with a single computation."""
        largest = np.abs(found.reshape(len(found), -1)).max(axis=1, initial=0.0)
        # The last will do: what a rule does for one row only, it does for the first.
        for row in np.flatnonzero(np.isfinite(largest))[-1:]:
            index = int(self.alive[row])
            one = found[row] @ general_vector(found.shape[-1]) if product else found[row]
            wrong = check_row(product or at, self.problems, index, x[row], one, largest[row])
            if wrong:
                name = name_of(self.single.loss)
                raise ValueError(f"a batch of {name} or of its derivatives {wrong}")

    def _call(self, key: str, at: At) -> np.ndarray:
        """Return `at` of all slots."""

        def one(x: mx.array, own: list[mx.array], shared: list[mx.array]) -> mx.array:
            return at(unravel(x, self.problems.like), self.problems.data(own, shared))

        mapped = mx.vmap(one, in_axes=(0, 0, None))
        if key not in self._functions:
            if self.compile:
                mapped = lowered(mapped, compiled(mapped))
            self._functions[key] = mapped
        try:
            found = self._run(self._functions[key])
        except IndexError:
            # MLX 0.32.4 loses an input of some second derivatives that are both mapped and
            # compiled, and says only "_Map_base::at".
            self._functions[key] = mapped
            found = self._run(mapped)
        return np.concatenate(found) if len(found) > 1 else found[0]

    def _run(self, function: Callable[..., mx.array]) -> list[np.ndarray]:
        """Return the results of each part."""
        results = []
        for slots, own, stream in self._parts:
            with mx.stream(stream) if stream else contextlib.nullcontext():
                x = to_device(self._buffer[slots], self.dtype)
                results.append(function(x, own, self.problems.shared))
        mx.eval(results)  # the only wait: the parts are computed side by side
        return [to_numpy(one) for one in results]

    def _pad(self) -> None:
        """Arrange the running problems in as few slots as they need."""
        number, all_of_them = len(self.alive), self.problems.size
        exact = number == all_of_them or not self.compile
        self._size = number if exact else 1 << (number - 1).bit_length()
        self._slots, self._wasted = np.arange(number), 0
        self._buffer = np.zeros((self._size, self.problems.start.shape[1]))
        filled = np.concatenate([self.alive, np.repeat(self.alive[-1:], self._size - number)])
        self._places = np.full(all_of_them, -1)
        self._places[self.alive] = self._slots
        work = self._size * self._numbers
        pieces = -(-work * self._rows // _MOST)
        shared = bool(self._streams) and self._size > 1 and work >= _WORTH_TWO
        length = -(-self._size // max(pieces, 2 if shared else 1))
        # Problems computed in one call: their slots, their data, and the stream or None.
        self._parts: list[tuple[slice, list[mx.array], Any]] = []
        for first in range(0, self._size, length):
            slots = slice(first, min(first + length, self._size))
            own = [_take(leaf, filled[slots]) for leaf in self.problems.own]
            stream = self._streams[len(self._parts) % 2] if shared else None
            self._parts.append((slots, own, stream))


@functools.cache
def _two_streams() -> list[Any]:
    """Return two streams of the CPU, always the same: each has a thread that never ends."""
    return [mx.new_stream(mx.cpu) for _ in range(2)]


def _take(leaf: mx.array, rows: np.ndarray) -> mx.array:
    """Return these rows of an array, without a copy where they are consecutive."""
    first, last = int(rows[0]), int(rows[-1])
    if (np.diff(rows) == 1).all():
        return leaf[first : last + 1]
    return mx.take(leaf, mx.array(rows), axis=0)

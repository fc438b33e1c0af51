"""A loss of many problems, as a function of the parameters of those that are still running.

What comes in and goes out are arrays of the host, float64, one row for each running problem. On
their way to MLX they are padded to a size that changes seldom: each new one costs a trace.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._objective import Objective
from mlxopt._platform.compiler import precompile_header
from mlxopt._tree import Tree, count, ravel, to_device, working_dtype
from mlxopt.autodiff import hessian_row
from mlxopt.many._agreement import (
    At,
    Batch,
    check_batch,
    explain_failure,
    in_general_position,
    of_vector,
)
from mlxopt.many._problems import Problems

# Costs are reckoned in numbers that go in: a nanosecond or two each for a gradient.
_WORTH_TWO = 200_000  # from here on two CPU streams share the work; a second call costs 0.1 ms
_WORTH_SHRINKING = 2_000_000  # wasted on problems that have ended; a trace costs 1 to 3 ms
_MOST = 2**25  # in one call, so that a batch of thousands does not fill the memory
_CHECKED = 2  # how often what a batch gives is compared with a single computation


class _Part(NamedTuple):
    """Some of the problems, and where they are computed."""

    slots: slice  # which rows of the padded arrays
    own: list[mx.array]  # their data
    stream: Any  # None: where all else is computed


class BatchedObjective:
    """The loss and its derivatives at A points, one for each running problem.

    Args:
        single: the loss of one problem, with the data of the first.
        problems: all of them.
        compile: False evaluates op by op.
        rows: how many gradients are computed together for one problem: p for a Hessian.
    """

    def __init__(
        self, single: Objective, problems: Problems, *, compile: bool, rows: int = 1
    ) -> None:
        self.problems = problems
        self.dtype = working_dtype(problems.like)
        self.single, self.compile = single, compile
        self._functions: dict[str, Callable[..., Any]] = {}
        self._unchecked: dict[str, int] = {}
        self._scales: dict[str, np.ndarray] = {}
        on_cpu = mx.default_device() == mx.cpu or self.dtype == mx.float64
        self._streams = _two_streams() if on_cpu else []
        own = sum(leaf.size for leaf in problems.own) // problems.size
        self._rows = rows
        self._numbers = own + sum(leaf.size for leaf in problems.shared) + count(problems.like)
        self.alive = np.arange(problems.size)
        self._pad()

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these of the running problems, a mask of shape (A,)."""
        self.alive, self._slots = self.alive[rows], self._slots[rows]
        few = 0 < 2 * len(self.alive) <= self._size
        if few and self._wasted >= _WORTH_SHRINKING:
            self._pad()

    def value_and_grad(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses (A,) and their gradients (A, p) at the points x, shape (A, p)."""
        loss = self.single.loss

        def at(params: Tree, data: tuple[Any, ...]) -> mx.array:
            value, grad = mx.value_and_grad(loss)(params, *data)
            dtype = working_dtype(params)
            return mx.concatenate([value.astype(dtype)[None], ravel(grad, dtype)])

        both = self.evaluate("gradient", at, x)
        return both[:, 0], both[:, 1:]

    def hessian(
        self, x: np.ndarray, structured: Callable[..., mx.array] | None = None
    ) -> np.ndarray:
        """Return the Hessians at x, shape (A, p, p), in `tree_flatten` order.

        Args:
            x: shape (A, p).
            structured: a function `(params, *data) -> (p, p)` that computes one of them.
        """
        p = count(self.problems.like)
        row = hessian_row(self.single.loss)

        def given(params: Tree, data: tuple[Any, ...]) -> mx.array:
            assert structured is not None
            found = structured(params, *data)
            check_hessian(found, p)
            return found.astype(working_dtype(params))

        def at(params: Tree, data: tuple[Any, ...]) -> mx.array:
            units = mx.eye(p, dtype=working_dtype(params))
            return mx.vmap(lambda unit: row(unit, params, data))(units)

        def probe(params: Tree, data: tuple[Any, ...]) -> mx.array:
            return row(in_general_position(p, params), params, data)

        if structured is not None:
            return self.evaluate("hessian", given, x)
        # A wrong one would mislead the steps, not the answer: to check it once is enough.
        return self.evaluate("hessian", at, x, probe, checks=1)

    def evaluate(
        self, key: str, at: At, x: np.ndarray, probe: At | None = None, checks: int = _CHECKED
    ) -> np.ndarray:
        """Return `at` of each problem, stacked; the first times, check what the batch gave.

        Args:
            key: the name under which `at` is compiled once.
            at: a function of one problem's parameters and data that returns an array.
            x: shape (A, p).
            probe: a function that computes, without a batch in it, the matrix that `at` returns
                times the vector `in_general_position`; None where `at` itself has no batch in it.
            checks: in how many of the first calls to do that.
        """
        self._buffer[self._slots] = x
        self._wasted += (self._size - len(x)) * self._numbers
        try:
            found = self._call(key, at)[self._slots]
        except (ValueError, RuntimeError) as error:
            explain_failure(error, at, self.problems, self.single.loss)
            raise
        left = self._unchecked.setdefault(key, checks)
        if left:
            self._unchecked[key] = left - 1
            scale = self._scales.setdefault(key, np.zeros(self.problems.size))
            batch = Batch(self.alive, x, found)
            check_batch(at, probe, batch, scale, self.problems, self.single.loss)
        return found

    def _call(self, key: str, at: At) -> np.ndarray:
        """Return `at` of all slots."""
        if key not in self._functions:
            function = self._mapped(at)
            if self.compile:
                precompile_header()
                function = mx.compile(function)
            self._functions[key] = function
        try:
            found = self._run(self._functions[key])
        except IndexError:
            # MLX 0.32.4 loses an input of some second derivatives that are both mapped and
            # compiled, and says only "_Map_base::at".
            self._functions[key] = self._mapped(at)
            found = self._run(self._functions[key])
        return np.concatenate(found) if len(found) > 1 else found[0]

    def _mapped(self, at: At) -> Callable[..., mx.array]:
        one = of_vector(at, self.problems)
        return mx.vmap(one, in_axes=(0, 0, None))

    def _run(self, function: Callable[..., mx.array]) -> list[np.ndarray]:
        """Return the function of each part."""
        results = []
        for part in self._parts:
            context = mx.stream(part.stream) if part.stream else contextlib.nullcontext()
            with context:
                x = to_device(self._buffer[part.slots], self.dtype)
                results.append(function(x, part.own, self.problems.shared))
        mx.eval(results)  # the only wait: the parts are computed side by side
        return [np.array(one, dtype=np.float64) for one in results]

    def _pad(self) -> None:
        """Lay the running problems out anew, in as few slots as they need."""
        number, all_of_them = len(self.alive), self.problems.size
        self._size = number if number == all_of_them else 1 << (number - 1).bit_length()
        self._slots, self._wasted = np.arange(number), 0
        self._buffer = np.zeros((self._size, self.problems.start.shape[1]))
        filled = np.concatenate([self.alive, np.repeat(self.alive[-1:], self._size - number)])
        work = self._size * self._numbers
        pieces = -(-work * self._rows // _MOST)
        shared = bool(self._streams) and self._size > 1 and work >= _WORTH_TWO
        length = -(-self._size // max(pieces, 2 if shared else 1))
        self._parts = []
        for first in range(0, self._size, length):
            slots = slice(first, min(first + length, self._size))
            own = [_take(leaf, filled[slots]) for leaf in self.problems.own]
            stream = self._streams[len(self._parts) % 2] if shared else None
            self._parts.append(_Part(slots, own, stream))


@functools.cache
def _two_streams() -> list[Any]:
    """Return two streams of the CPU, always the same: each has a thread that never ends."""
    return [mx.new_stream(mx.cpu) for _ in range(2)]


def check_hessian(found: Any, p: int) -> None:
    """Raise ValueError unless a user's Hessian has the right shape."""
    shape = getattr(found, "shape", type(found).__qualname__)
    if shape != (p, p):
        raise ValueError(
            f"Newton's hessian returned an array of shape {shape}; expected ({p}, {p}), "
            f"the parameters in tree_flatten order."
        )


def _take(leaf: mx.array, rows: np.ndarray) -> mx.array:
    """Return these rows of an array, without a copy where they are consecutive."""
    first, last = int(rows[0]), int(rows[-1])
    if (np.diff(rows) == 1).all():
        return leaf[first : last + 1]
    return mx.take(leaf, mx.array(rows), axis=0)

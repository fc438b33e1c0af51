"""The contract of `optimizers/_base.py`, one method for each sentence of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._residual_objective import ResidualObjective
from mlxopt._status import Status
from mlxopt._tree import Tree, dtype_name, leaves, leaves_with_paths, structure
from mlxopt.optimizers import FirstOrder, Optimizer
from mlxopt.testing._look import described, host, same, snapshot, types
from mlxopt.testing._problems import (
    Given,
    border,
    border_of_gradient,
    bowl,
    curved,
    mixed,
    regression,
    solvable,
)

_FIELDS = ("params", "value", "grad", "optimality", "status")
_STEPS = 8
_MOST = 20_000  # steps to a minimum
_TOL = 1e-8
# Two ways to the same number may round differently, by more in a sum of a few dozen terms.
_AGREE = {mx.float64: 1e-11, mx.float32: 1e-4}


class Contract:
    """The checks of one optimizer; each raises AssertionError."""

    def __init__(self, optimizer: Optimizer[Any], own_optimality: bool) -> None:
        self.optimizer, self.own_optimality = optimizer, own_optimality
        self.name = type(optimizer).__name__
        self.before = snapshot(optimizer)

    def check(self, wanted: Collection[str]) -> None:
        self.immutable()
        # A second place: some mistakes show only where the loss is no quadratic.
        for given in (regression, curved):
            for dtype in (mx.float64, mx.float32):
                with self._place(dtype):
                    self.states(given(dtype), dtype)
        with mx.stream(mx.cpu):
            self.sixteen_bits()
            self.border(border, "the loss")
            self.border(border_of_gradient, "the gradient")
            self.minimum(stays="quadratic" in wanted)
            self.ten_in_one_call()
            for problem in wanted:
                self.convergence(problem)
        self.unchanged()

    @contextmanager
    def _place(self, dtype: mx.Dtype) -> Iterator[None]:
        if dtype == mx.float64:  # which only the CPU computes
            with mx.stream(mx.cpu):
                yield
        else:
            yield

    def expect(self, kept: bool, what: str) -> None:
        if not kept:
            raise AssertionError(f"{self.name}: {what}")

    def run(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            # An error inside the optimizer breaks the contract too; its traceback says where.
            raise AssertionError(
                f"{self.name}: {what} raised {type(error).__name__}: {error}"
            ) from error

    # --- one check each ----------------------------------------------------------------------

    def immutable(self) -> None:
        """None of its hyper-parameters can be assigned; where there is none, nothing else can."""
        for name in list(vars(self.optimizer)) or ["anything"]:
            try:
                setattr(self.optimizer, name, getattr(self.optimizer, name, None))
            except AttributeError:  # FrozenInstanceError is one
                continue
            self.expect(
                False,
                f"optimizer.{name} can be assigned; expected an immutable value, a dataclass with "
                f"frozen=True. What changes during a run belongs in the state.",
            )

    def unchanged(self) -> None:
        """The optimizer is what it was before."""
        self.expect(
            same(snapshot(self.optimizer), self.before),
            "the optimizer has changed during its runs; expected an immutable value. What changes "
            "during a run belongs in the state.",
        )

    def states(self, given: Given, dtype: mx.Dtype) -> None:
        """Follow the first steps, and look at each state in every way."""
        where = f"{dtype_name(dtype)}, {given.residual.__name__}"
        start, data = snapshot(given.params), snapshot(given.data)
        objective = given.objective()
        state = self._init(objective, given, where)
        found, seen = [state], [snapshot(state)]
        self.state(given, state, f"after init ({where})", dtype)
        for step in range(1, _STEPS + 1):
            if state.status is not None:
                break
            state = self._step(objective, state, f"step {step} ({where})")
            self.state(given, state, f"after step {step} ({where})", dtype)
            for index, earlier in enumerate(found):
                self.expect(
                    same(snapshot(earlier), seen[index]),
                    f"step {step} ({where}) changed the state that step {index} had returned; "
                    f"expected a new state, and arrays that are not assigned to.",
                )
            found.append(state)
            seen.append(snapshot(state))
        self.expect(
            same(snapshot(given.params), start),
            f"the parameters that were passed to init have changed ({where}); expected new arrays.",
        )
        self.expect(
            same(snapshot(given.data), data), f"the data have changed ({where}); expected not."
        )
        self.repeats(given, found, where, _AGREE[dtype])

    def _init(self, objective: ResidualObjective, given: Given, where: str) -> Any:
        state = self.run(f"init ({where})", lambda: self.optimizer.init(objective, given.params))
        self.expect(
            objective.evaluations == 1,
            f"init ({where}) took {objective.evaluations} evaluations; expected one, at the start.",
        )
        missing = [name for name in _FIELDS if not hasattr(state, name)]
        self.expect(
            not missing,
            f"init ({where}) returned {type(state).__name__} without {', '.join(missing)}; "
            f"expected a NamedTuple with the fields {', '.join(_FIELDS)}.",
        )
        self.expect(
            isinstance(state, tuple),
            f"the state is {type(state).__name__}; expected a NamedTuple, which cannot change.",
        )
        self.expect(
            all(
                bool(mx.array_equal(a, b).item())
                for a, b in zip(leaves(state.params), leaves(given.params), strict=True)
            ),
            f"init ({where}) moved the parameters; expected the state at the start.",
        )
        return state

    def _step(self, objective: ResidualObjective, state: Any, what: str) -> Any:
        before = objective.evaluations
        new = self.run(what, lambda: self.optimizer.step(objective, state))
        spent = objective.evaluations - before
        self.expect(
            spent <= 1,
            f"{what} took {spent} evaluations; expected one, at one trial point. What remains to "
            f"be done belongs in the state.",
        )
        self.expect(
            type(new) is type(state),
            f"{what} returned {type(new).__name__}; expected {type(state).__name__}, as init did.",
        )
        return new

    def state(self, given: Given, state: Any, when: str, dtype: mx.Dtype) -> None:
        """The invariant: the state describes its own parameters."""
        for name, tree in (("params", state.params), ("grad", state.grad)):
            self.make(name, tree, given.params, when)
        for name in ("value", "optimality"):
            number = getattr(state, name)
            self.expect(
                isinstance(number, float) and np.isfinite(number),
                f"state.{name} {when} is {number!r} ({type(number).__name__}); expected a finite "
                f"host float: float(array.item()).",
            )
        self.expect(
            state.status is None or isinstance(state.status, Status),
            f"state.status {when} is {state.status!r}; expected None or a member of Status.",
        )
        value, grad = given.evaluate(state.params)
        error = _AGREE[dtype]
        self.expect(
            abs(state.value - value) <= error * max(1.0, abs(value)),
            f"state.value {when} is {state.value!r}, but the loss at state.params is {value!r}; "
            f"expected these to be equal.",
        )
        largest = max(float(np.abs(host(leaf)).max()) for leaf in leaves(grad))
        for (path, ours), theirs in zip(leaves_with_paths(state.grad), leaves(grad), strict=True):
            self.expect(
                bool(np.abs(host(ours) - host(theirs)).max() <= error * max(1.0, largest)),
                f"state.grad{path} {when} is not the gradient at state.params: "
                f"{host(ours).tolist()} where {host(theirs).tolist()} was expected.",
            )
        self.expect(
            state.optimality >= 0
            and (
                self.own_optimality or abs(state.optimality - largest) <= error * max(1.0, largest)
            ),
            f"state.optimality {when} is {state.optimality!r}; expected the largest absolute entry "
            f"of the gradient at state.params, {largest!r}.",
        )

    def make(self, name: str, tree: Tree, like: Tree, when: str) -> None:
        """Structure, shapes and dtypes are those of the start."""
        self.expect(
            structure(tree) == structure(like) and types(tree) == types(like),
            f"state.{name} {when} has another structure than the parameters passed in: expected "
            f"{types(like)}, got {types(tree)}.",
        )
        for (path, leaf), expected in zip(leaves_with_paths(tree), leaves(like), strict=True):
            self.expect(
                isinstance(leaf, mx.array)
                and (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype),
                f"state.{name}{path} {when} is {described(leaf)}; expected {described(expected)}, "
                f"as in the parameters passed in.",
            )

    def repeats(self, given: Given, found: list[Any], where: str, error: float) -> None:
        """A new run gives the same states; and so does an old state, whatever came after it."""
        objective = given.objective()
        again = self._init(objective, given, where)
        for step, expected in enumerate(found[1:], start=1):
            again = self._step(objective, again, f"step {step} ({where})")
            self.near(again, expected, error, f"a second run differs from the first at step {step}")
        if len(found) > 3:
            again = self._step(objective, found[1], f"step 2 ({where}), taken again")
            what = "step 2, taken again from the same state after later steps, leads elsewhere"
            self.near(again, found[2], error, what)

    def near(self, state: Any, expected: Any, error: float, what: str) -> None:
        gap, size = 0.0, 1.0
        for a, b in zip(leaves(state.params), leaves(expected.params), strict=True):
            gap = max(gap, float(np.abs(host(a) - host(b)).max()))
            size = max(size, float(np.abs(host(b)).max()))
        self.expect(
            gap <= 10 * error * size,
            f"{what}: its parameters are {gap:.3g} away. Expected the same: a step depends on the "
            f"objective and the state alone, so randomness, counts and caches belong in the state.",
        )

    def sixteen_bits(self) -> None:
        """A bfloat16 leaf stays one, beside a float32 one that stays float32."""
        params = {"a": mx.zeros(3, dtype=mx.bfloat16), "b": mx.array(0.0)}
        given = Given(mixed, params)
        objective = given.objective()
        state = self._init(objective, given, "bfloat16 and float32")
        for step in range(1, 5):
            if state.status is not None:
                break
            state = self._step(objective, state, f"step {step} (bfloat16 and float32)")
            for name, tree in (("params", state.params), ("grad", state.grad)):
                self.make(name, tree, params, f"after step {step} (bfloat16 and float32)")

    def border(self, residual: Callable[..., mx.array], what: str) -> None:
        """Whatever is tried, the state stays where all is finite."""
        given = Given(residual, mx.array(np.zeros(2), dtype=mx.float64))
        objective = given.objective()
        state = self._init(objective, given, f"a loss with a border, where {what} is NaN beyond")
        for step in range(1, 60):
            if state.status is not None:
                break
            state = self._step(objective, state, f"step {step} across the border of a loss")
            point = host(state.params)
            numbers = [state.value, state.optimality, *point, *host(state.grad)]
            self.expect(
                bool(np.isfinite(numbers).all() and (point < 1).all()),
                f"step {step} went where {what} is NaN, and kept it: value {state.value!r}, params "
                f"{point.tolist()}. Expected the last finite point, and a shorter trial or "
                f"status=Status.NONFINITE: check a trial before keeping it.",
            )

    def minimum(self, stays: bool) -> None:
        """At an exact minimum, where the gradient is zero, nothing breaks.

        Who could find it stays; a rule that decays weights does not.
        """
        given = Given(bowl, mx.array(np.ones(3), dtype=mx.float64))
        objective = given.objective()
        state = self._init(objective, given, "started at a minimum")
        for step in range(1, 4):
            if state.status is not None:
                break
            state = self._step(objective, state, f"step {step}, started at a minimum")
            point = host(state.params)
            near = not stays or bool(np.abs(point - 1).max() < 1e-9)
            self.expect(
                near and bool(np.isfinite([state.value, *point]).all()),
                f"step {step} left the minimum it started in, [1, 1, 1], for {point.tolist()}; say "
                f"converges=[] if it minimizes something else than the loss.",
            )

    def ten_in_one_call(self) -> None:
        """Ten steps of a rule in one compiled call are ten single steps."""
        if not isinstance(self.optimizer, FirstOrder):
            return
        given = regression(mx.float64)
        one, ten = given.objective(), given.objective()
        ten.steps_per_call = 10
        state = expected = self._init(one, given, "float64")
        for _ in range(20):
            expected = self._step(one, expected, "a step")
        for _ in range(2):
            old = state
            what = "advance by ten steps in one compiled call"
            state, _ = self.run(what, lambda old=old: self.optimizer.advance(ten, old, 10))
        what = "20 steps in compiled calls of ten lead elsewhere than 20 single steps"
        self.near(state, expected, _AGREE[mx.float64], what)

    def convergence(self, problem: str) -> None:
        given, minimum = solvable(problem)
        objective = given.objective()
        state = self._init(objective, given, problem)
        start = state.value
        steps = 0
        while state.optimality > _TOL and state.status is None and steps < _MOST:
            count = min(self.optimizer.stride, _MOST - steps)
            before = state
            state, taken = self.run(
                f"step {steps} on {problem}",
                lambda before=before, count=count: self.optimizer.advance(objective, before, count),
            )
            steps += max(taken, 1)
        status = "no status" if state.status is None else f"status {state.status.name}"
        end = f"{status} after {steps} steps, value {state.value:.6g} (at the start {start:.6g})"
        if state.status is Status.NONFINITE:
            self.expect(False, f"it left the finite numbers on {problem}: {end}.")
        _, grad = given.evaluate(state.params)
        largest = float(np.abs(host(grad)).max())
        distance = float(np.abs(host(state.params) - minimum).max())
        # The curvature of both is 0.2 or more: so near must a gradient within tol be.
        self.expect(
            distance <= 1e-5 and largest <= (1e-5 if self.own_optimality else 10 * _TOL),
            f"it does not converge on {problem}: {end}, largest gradient entry {largest:.3g}, "
            f"{distance:.3g} from the minimum. Expected a gradient of {_TOL:g} within {_MOST:,} "
            f"steps; say converges=[...] if it need not.",
        )

"""The contract of `optimizers/_base.py`: a method for each sentence of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._residual_objective import ResidualObjective
from mlxopt._resume import difference
from mlxopt._status import Status
from mlxopt._tree import dtype_name, epsilon, leaves, leaves_with_paths, to_host
from mlxopt.optimizers import FirstOrder, Optimizer
from mlxopt.testing import _problems
from mlxopt.testing._problems import Given
from mlxopt.testing._values import same, snapshot

_FIELDS = ("params", "value", "grad", "optimality", "status", "moved")
_STEPS = 8
_MOST = 20_000  # steps to a minimum
_TOL = 1e-8
_IMMUTABLE = (
    "expected an immutable value, a dataclass with frozen=True. Values that change during a run "
    "belong in the state."
)
# Two ways to one number round differently, by more in a sum of a few dozen terms.
_AGREE = {mx.float64: 1e-11, mx.float32: 1e-4}


class Contract:
    """The checks of one optimizer; each raises AssertionError."""

    def __init__(self, optimizer: Optimizer[Any], own_optimality: bool) -> None:
        self.optimizer, self.own_optimality = optimizer, own_optimality
        self.name = type(optimizer).__name__

    def check(self, wanted: Collection[str]) -> None:
        before = snapshot(self.optimizer)
        self.immutable()
        # A second problem: some mistakes do not show in a quadratic loss.
        for problem in (_problems.regression, _problems.curved):
            for dtype in (mx.float64, mx.float32):
                # MLX has float64 on the CPU alone.
                with mx.stream(mx.cpu if dtype == mx.float64 else mx.default_device()):
                    self.states(problem(dtype), dtype)
        with mx.stream(mx.cpu):
            self.sixteen_bits()
            self.border(_problems.border, "the loss")
            self.border(_problems.border_of_gradient, "the gradient")
            self.minimum(converges="quadratic" in wanted)
            self.ten_in_one_call()
            for problem in wanted:
                self.convergence(problem)
        unchanged = same(snapshot(self.optimizer), before)
        self.expect(unchanged, f"the optimizer has changed during its runs; {_IMMUTABLE}")

    def expect(self, kept: bool | np.bool_, message: str) -> None:
        if not kept:
            raise AssertionError(f"{self.name}: {message}")

    def run(self, what: str, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:
            raised = f"{what} raised {type(error).__name__}: {error}"
            raise AssertionError(f"{self.name}: {raised}") from error

    # --- a run, step by step -----------------------------------------------------------------

    def states(self, given: Given, dtype: mx.Dtype) -> None:
        """The first steps: every state is right and never changes, and a new run repeats it."""
        where = f"({dtype_name(dtype)}, {given.residual.__name__})"
        start, data = snapshot(given.params), snapshot(given.data)
        objective, found, seen = given.objective(), [], []
        for step, state in self.walk(objective, given, _STEPS, where):
            self.invariant(given, state, f"after {step} {where}", dtype)
            for index, (earlier, copy) in enumerate(zip(found, seen, strict=True)):
                changed = f"{step} {where} changed the state that step {index} had returned"
                self.expect(same(snapshot(earlier), copy), f"{changed}; expected new arrays.")
            found.append(state)
            seen.append(snapshot(state))
        self.expect(same(snapshot(given.params), start), f"init's parameters have changed {where}.")
        self.expect(same(snapshot(given.data), data), f"the data have changed {where}.")
        again = self.walk(given.objective(), given, len(found) - 1, where)
        for expected, (step, state) in zip(found, again, strict=True):
            self.near(state, expected, dtype, f"a second run differs from the first at {step}")
        if len(found) > 3:
            what = "step 2, taken again from the same state after later steps,"
            state = self.step(objective, found[1], f"{what} {where}")
            self.near(state, found[2], dtype, f"{what} leads elsewhere")

    def walk(
        self, objective: ResidualObjective, given: Given, steps: int, where: str
    ) -> Iterator[tuple[str, Any]]:
        """Yield ("init", state) and ("step 1", state) ... until a state has a status."""
        state = self.init(objective, given, where)
        yield "init", state
        for step in range(1, steps + 1):
            if state.status is not None:
                return
            state = self.step(objective, state, f"step {step} {where}")
            yield f"step {step}", state

    def init(self, objective: ResidualObjective, given: Given, where: str) -> Any:
        state = self.run(f"init {where}", self.optimizer.init, objective, given.params)
        spent, kind = objective.evaluations, type(state).__name__
        self.expect(spent == 1, f"init {where} took {spent} evaluations; expected one.")
        missing = ", ".join(name for name in _FIELDS if not hasattr(state, name))
        self.expect(not missing, f"init {where} returned {kind} without {missing}.")
        self.expect(isinstance(state, tuple), f"the state is {kind}; expected a NamedTuple.")
        still = same(snapshot(leaves(state.params)), snapshot(leaves(given.params)))
        self.expect(still, f"init {where} moved the parameters; expected the state at the start.")
        return state

    def step(self, objective: ResidualObjective, state: Any, what: str) -> Any:
        before, old = objective.evaluations, snapshot(leaves(state.params))
        new = self.run(what, self.optimizer.step, objective, state)
        spent = objective.evaluations - before
        hint = "A longer search keeps its progress in the state."
        self.expect(spent <= 1, f"{what} took {spent} evaluations; expected one. {hint}")
        kinds = f"{type(new).__name__}; expected {type(state).__name__}, as init did"
        self.expect(type(new) is type(state), f"{what} returned {kinds}.")
        changed = not same(snapshot(leaves(new.params)), old)
        # An accepted step may be shorter than the rounding of params, but only near a minimum.
        hidden = new.moved is True and state.optimality <= epsilon(state.params) ** 0.5
        fact = "changed" if changed else "did not change"
        came = f"state.moved after {what} is {new.moved!r}, but the step {fact} params"
        self.expect(new.moved is changed or hidden, f"{came}; expected {changed}.")
        return new

    # --- the checks --------------------------------------------------------------------------

    def immutable(self) -> None:
        """Hyper-parameters cannot be assigned; where there are none, nothing else can."""
        for name in list(vars(self.optimizer)) or ["anything"]:
            try:
                setattr(self.optimizer, name, getattr(self.optimizer, name, None))
            except AttributeError:  # FrozenInstanceError is one
                continue
            self.expect(False, f"optimizer.{name} can be assigned; {_IMMUTABLE}")

    def invariant(self, given: Given, state: Any, when: str, dtype: mx.Dtype) -> None:
        """The state describes its own parameters."""
        self.structure(given, state, when)
        for name in ("value", "optimality"):
            number = getattr(state, name)
            came = f"{number!r} ({type(number).__name__})"
            finite = isinstance(number, float) and np.isfinite(number)
            self.expect(finite, f"state.{name} {when} is {came}; expected a finite host float.")
        known = state.status is None or isinstance(state.status, Status)
        came = f"state.status {when} is {state.status!r}"
        self.expect(known, f"{came}; expected None or a member of Status.")
        value, grad = given.evaluate(state.params)
        largest = float(np.abs(to_host(grad)).max())
        error = _AGREE[dtype] * max(1.0, largest)
        self.expect(
            abs(state.value - value) <= _AGREE[dtype] * max(1.0, abs(value)),
            f"state.value {when} is {state.value!r}, but the loss at state.params is {value!r}.",
        )
        for (path, leaf), other in zip(leaves_with_paths(state.grad), leaves(grad), strict=True):
            found, expected = to_host(leaf), to_host(other)
            came = f"state.grad{path} {when} is not the gradient at state.params"
            near = np.abs(found - expected).max() <= error
            self.expect(near, f"{came}: {found.tolist()}; expected {expected.tolist()}.")
        close = self.own_optimality or abs(state.optimality - largest) <= error
        self.expect(
            state.optimality >= 0 and close,
            f"state.optimality {when} is {state.optimality!r}; expected the largest absolute entry "
            f"of the gradient at state.params, {largest!r}.",
        )

    def structure(self, given: Given, state: Any, when: str) -> None:
        """Parameters and gradient keep structure, shapes and dtypes."""
        for name in ("params", "grad"):
            path, found, expected = difference(getattr(state, name), given.params) or ("", "", "")
            where = f"state.{name}{path} {when}"
            self.expect(found == expected, f"{where} is {found}; expected {expected}, as passed.")

    def near(self, state: Any, expected: Any, dtype: mx.Dtype, what: str) -> None:
        ours, theirs = to_host(state.params), to_host(expected.params)
        gap = np.abs(ours - theirs).max()
        near = gap <= 10 * _AGREE[dtype] * max(1.0, np.abs(theirs).max())
        hint = "Randomness, counts and caches belong in the state."
        self.expect(near, f"{what}: its parameters are {gap:.3g} away. {hint}")

    def sixteen_bits(self) -> None:
        """A bfloat16 leaf keeps its dtype beside a float32 leaf."""
        given = Given(_problems.mixed, {"a": mx.zeros(3, dtype=mx.bfloat16), "b": mx.array(0.0)})
        where = "(bfloat16 and float32)"
        for step, state in self.walk(given.objective(), given, 4, where):
            self.structure(given, state, f"after {step} {where}")

    def border(self, residual: Callable[..., mx.array], what: str) -> None:
        """Every state is finite, though trials are not."""
        given = Given(residual, mx.array(np.zeros(2), dtype=mx.float64))
        where = f"(beyond a border {what} is NaN)"
        for step, state in self.walk(given.objective(), given, 60, where):
            point = to_host(state.params)
            numbers = [state.value, state.optimality, *point, *to_host(state.grad)]
            kept = f"value {state.value!r}, params {point.tolist()}; expected the last finite point"
            finite = np.isfinite(numbers).all() and (point < 1).all()
            self.expect(finite, f"{step} went where {what} is NaN, and kept it: {kept}.")

    def minimum(self, converges: bool) -> None:
        """At an exact minimum every number is finite; a method that converges does not leave it."""
        given = Given(_problems.bowl, mx.array(np.ones(3), dtype=mx.float64))
        for step, state in self.walk(given.objective(), given, 3, "started at a minimum"):
            point = to_host(state.params)
            near = not converges or np.abs(point - 1).max() < 1e-9
            left = f"{step} left the minimum it started in, [1, 1, 1], for {point.tolist()}"
            stays = near and np.isfinite([state.value, *point]).all()
            self.expect(stays, f"{left}; say converges=[] if it minimizes something else.")

    def ten_in_one_call(self) -> None:
        """Ten steps of a rule in one compiled call equal ten single steps."""
        if not isinstance(self.optimizer, FirstOrder):
            return
        given = _problems.regression(mx.float64)
        one, ten = given.objective(), given.objective()
        ten.steps_per_call = 10
        state = expected = self.init(one, given, "(float64)")
        for _ in range(20):
            expected = self.step(one, expected, "a step")
        for _ in range(2):
            what = "advance by ten steps in one compiled call"
            state, _ = self.run(what, self.optimizer.advance, ten, state, 10)
        what = "20 steps in compiled calls of ten lead elsewhere than 20 single steps"
        self.near(state, expected, mx.float64, what)

    def convergence(self, problem: str) -> None:
        """The run ends at the only minimum."""
        given, minimum = _problems.solvable(problem)
        objective = given.objective()
        state = self.init(objective, given, problem)
        start, steps = state.value, 0
        while state.optimality > _TOL and state.status is None and steps < _MOST:
            count = min(self.optimizer.stride, _MOST - steps)
            what = f"step {steps} on {problem}"
            state, taken = self.run(what, self.optimizer.advance, objective, state, count)
            steps += max(taken, 1)
        status = "no status" if state.status is None else f"status {state.status.name}"
        end = f"{status} after {steps} steps, value {state.value:.6g} (at the start {start:.6g})"
        finite = state.status is not Status.NONFINITE
        self.expect(finite, f"it left the finite numbers on {problem}: {end}.")
        largest = np.abs(to_host(given.evaluate(state.params)[1])).max()
        distance = np.abs(to_host(state.params) - minimum).max()
        # The curvature of both is 0.2 or more: so near must a gradient within tol be.
        self.expect(
            distance <= 1e-5 and largest <= (1e-5 if self.own_optimality else 10 * _TOL),
            f"it does not converge on {problem}: {end}, largest gradient entry {largest:.3g}, "
            f"{distance:.3g} from the minimum; say converges=[...] if it need not.",
        )

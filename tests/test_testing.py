"""`check_optimizer`: it passes the library's optimizers, and names what is broken in others."""

import dataclasses
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

import mlxopt as mo
from mlxopt._tree import largest_entry, leaves, read
from mlxopt.optimizers.proximal import ProximalGradient
from mlxopt.prox import Box
from mlxopt.testing import check_optimizer

OURS = {
    "SGD": mo.SGD(0.05),
    "Momentum": mo.Momentum(0.02),
    "Nesterov": mo.Momentum(0.02, nesterov=True),
    "GradientDescent": mo.GradientDescent(),
    "ConjugateGradient": mo.ConjugateGradient(),
    "Polak-Ribière": mo.ConjugateGradient("polak-ribiere"),
    "BFGS": mo.BFGS(),
    "LBFGS": mo.LBFGS(),
    "LBFGS(1)": mo.LBFGS(memory=1),
    "LBFGSB": mo.LBFGSB(),
    "LBFGSB in a box": mo.LBFGSB(lower=-50.0, upper=50.0),
    "Newton": mo.Newton(),
    "NewtonCG": mo.NewtonCG(),
    "TrustRegion": mo.TrustRegion(),
    "TrustRegion by CG": mo.TrustRegion(exact=False),
    "ProximalGradient": ProximalGradient(None),
    "ProximalGradient in a box": ProximalGradient(Box(-50, 50)),
    "GaussNewton": mo.GaussNewton(),
    "LevenbergMarquardt": mo.LevenbergMarquardt(),
}


@pytest.mark.parametrize("name", OURS)
def test_the_librarys_own_keep_the_contract(name):
    # Two measure the angle between the residual and what parameters change in it; TrustRegion the
    # negative curvature.
    own = name in {"GaussNewton", "LevenbergMarquardt", "TrustRegion"}
    check_optimizer(OURS[name], own_optimality=own)


# --- a good one, and the bugs planted in it ----------------------------------------------------


class WalkState(NamedTuple):
    params: Any
    value: float
    grad: Any
    optimality: float
    status: mo.Status | None
    moved: bool = False


@dataclasses.dataclass(frozen=True)
class Walk(mo.optimizers.Optimizer[WalkState]):
    """Gradient descent with a fixed step: right in all that the contract asks for."""

    step_size: float = 0.3

    def init(self, objective, params):
        return self.look(objective, params)

    def look(self, objective, params):
        value, grad = objective.value_and_grad(params)
        number, largest = read(value, largest_entry(grad))
        return WalkState(params, number, grad, largest, None)

    def trial(self, state):
        step = tree_map(lambda g: (self.step_size * g).astype(g.dtype), state.grad)
        return tree_map(lambda x, s: x - s, state.params, step)

    def step(self, objective, state):
        before = [mx.array(leaf) for leaf in leaves(state.params)]
        new = self.look(objective, self.trial(state))
        if not (np.isfinite(new.value) and np.isfinite(new.optimality)):
            return state._replace(status=mo.Status.NONFINITE, moved=False)
        pairs = zip(before, leaves(new.params), strict=True)
        return new._replace(moved=not all(mx.array_equal(a, b).item() for a, b in pairs))


class NeverMoved(Walk):
    def step(self, objective, state):
        return super().step(objective, state)._replace(moved=False)


class AlwaysMoved(Walk):
    """An equal copy of the parameters after a rejected trial, taken for a move."""

    def step(self, objective, state):
        new = super().step(objective, state)
        if new.value > 0.9 * state.value:
            return state._replace(params=tree_map(mx.array, state.params), moved=True)
        return new._replace(moved=True)


class MovedArray(Walk):
    def step(self, objective, state):
        new = super().step(objective, state)
        return new._replace(moved=np.bool_(new.moved))


class StaleValue(Walk):
    def step(self, objective, state):
        return super().step(objective, state)._replace(value=state.value)


class StaleGradient(Walk):
    def step(self, objective, state):
        new = super().step(objective, state)
        return new._replace(grad=state.grad, optimality=state.optimality)


class Norm(Walk):
    def look(self, objective, params):
        state = super().look(objective, params)
        squares = sum(np.square(np.array(g, dtype=np.float64)).sum() for g in leaves(state.grad))
        return state._replace(optimality=float(squares) ** 0.5)


class Melted(mo.optimizers.Optimizer[WalkState]):
    """Not frozen."""

    def __init__(self):
        self.walk = Walk()

    def init(self, objective, params):
        return self.walk.init(objective, params)

    def step(self, objective, state):
        return self.walk.step(objective, state)


@dataclasses.dataclass(frozen=True)
class Memory(Walk):
    """What changes during a run is kept in the optimizer."""

    seen: list = dataclasses.field(default_factory=list)

    def step(self, objective, state):
        self.seen.append(state.value)
        return super().step(objective, state)


COUNT = [0]


class Global(Walk):
    def step(self, objective, state):
        COUNT[0] += 1
        shrunk = Walk(self.step_size / COUNT[0])
        return shrunk.step(objective, state)


class Random(Walk):
    def trial(self, state):
        return tree_map(
            lambda x: x + 0.01 * mx.random.normal(x.shape).astype(x.dtype), super().trial(state)
        )


class Promoted(Walk):
    def trial(self, state):
        rate = mx.array(self.step_size)  # float32: it promotes bfloat16
        return tree_map(lambda x, g: x - rate * g, state.params, state.grad)


class Rebuilt(Walk):
    def trial(self, state):
        new = super().trial(state)
        return {**new, "w": list(new["w"])} if isinstance(new, dict) and "w" in new else new


class Flat(Walk):
    def trial(self, state):
        return tree_map(lambda x: x.reshape(-1) if x.ndim == 2 else x, super().trial(state))


class InPlace(Walk):
    def trial(self, state):
        def shift(x, g):
            x[...] = x - (self.step_size * g).astype(x.dtype)
            return x

        tree_map(shift, state.params, state.grad)
        return tree_map(lambda x: mx.array(x), state.params)


class SpoiltData(Walk):
    def step(self, objective, state):
        if objective.data:
            objective.data[1][0] = 0.0
        return super().step(objective, state)


class KeptNaN(Walk):
    def step(self, objective, state):
        return self.look(objective, self.trial(state))._replace(moved=True)


class KeptNaNGradient(Walk):
    def step(self, objective, state):
        new = self.look(objective, self.trial(state))._replace(moved=True)
        failed = state._replace(status=mo.Status.NONFINITE, moved=False)
        return new if np.isfinite(new.value) else failed


class Twice(Walk):
    def step(self, objective, state):
        objective.value_and_grad(state.params)
        return super().step(objective, state)


class Device(Walk):
    def look(self, objective, params):
        state = super().look(objective, params)
        return state._replace(value=mx.array(state.value))


class Dictionary(Walk):
    def look(self, objective, params):
        return dataclasses.make_dataclass("Loose", WalkState._fields)(
            *super().look(objective, params)
        )


class Moved(Walk):
    def init(self, objective, params):
        return super().init(objective, tree_map(lambda x: x + 1, params))


class Costly(Walk):
    def init(self, objective, params):
        super().init(objective, params)
        return super().init(objective, params)


class Normalized(Walk):
    def trial(self, state):
        step = 1e-3 / state.optimality
        return tree_map(lambda x, g: x - (step * g).astype(x.dtype), state.params, state.grad)


class Restless(Walk):
    def trial(self, state):
        new = super().trial(state)
        return tree_map(lambda x: x + 1e-3, new) if state.optimality == 0 else new


class Uphill(Walk):
    def trial(self, state):
        return tree_map(lambda x, g: x + (0.1 * g).astype(x.dtype), state.params, state.grad)


class Lazy(Walk):
    def step(self, objective, state):
        new = super().step(objective, state)
        return new._replace(status=mo.Status.NO_PROGRESS) if new.optimality < 1e-3 else new


class Words(Walk):
    def step(self, objective, state):
        return super().step(objective, state)._replace(status="fine")


class Nameless(Walk):
    def init(self, objective, params) -> Any:
        return tuple(super().init(objective, params))


@dataclasses.dataclass(frozen=True)
class Counting(mo.SGD):
    """A rule that counts in Python: the count is frozen into the compiled steps."""

    count: list = dataclasses.field(default_factory=lambda: [0])

    def update(self, grad, buffers, params, learning_rate):
        rate = 0.1 / (1 + len(self.count))
        self.count.append(0)
        new = tree_map(lambda x, g: x - (rate * g).astype(x.dtype), params, grad)
        return new, buffers


class Reading(mo.SGD):
    """A rule that reads an array back."""

    def update(self, grad, buffers, params, learning_rate):
        rate = learning_rate.item()
        return tree_map(lambda x, g: x - (rate * g).astype(x.dtype), params, grad), buffers


BROKEN = [
    (NeverMoved(), r"state.moved after step 1 .* is False, but the step changed params"),
    (AlwaysMoved(), r"state.moved after step \d+ .* is True, but the step did not change params"),
    (MovedArray(), r"state.moved after step 1 .* is np.True_, .* expected True"),
    (StaleValue(), r"state.value after step 1 .* but the loss at state.params is"),
    (StaleGradient(), r"state.grad\['w'\]\[0\] after step 1 .* is not the gradient"),
    (Norm(), "expected the largest absolute entry of the gradient"),
    (Melted(), "optimizer.walk can be assigned; expected an immutable value"),
    (Memory(), "the optimizer has changed during its runs"),
    (Global(), "a second run differs from the first at step 1"),
    (Random(), "a second run differs"),
    (Promoted(), r"state.params\['a'\] .* is float32 of shape \(3,\); expected bfloat16"),
    (Rebuilt(), r"state.params\['w'\] after step 1 .* is a list of 2; expected a tuple of 2"),
    (Flat(), r"params\['w'\]\[0\] .* float64 of shape \(2,\); expected float64 of shape \(2, 1\)"),
    (InPlace(), "changed the state that step 0 had returned"),
    (SpoiltData(), "the data have changed"),
    (KeptNaN(), "went where the loss is NaN, and kept it"),
    (KeptNaNGradient(), "went where the gradient is NaN, and kept it"),
    (Twice(), "step 1 .* took 2 evaluations; expected one"),
    (Device(), r"state.value after init .*\(array\); expected a finite host float"),
    (Dictionary(), "the state is Loose; expected a NamedTuple"),
    (Moved(), "init .* moved the parameters"),
    (Costly(), "init .* took 2 evaluations"),
    (Normalized(), "started at a minimum raised ZeroDivisionError"),
    (Restless(), "step 1 left the minimum it started in"),
    (Uphill(), "it does not converge on quadratic|left the finite numbers on quadratic"),
    (Lazy(), "it does not converge on quadratic: status NO_PROGRESS after"),
    (Words(), "state.status after step 1 .* is 'fine'; expected None or a member of Status"),
    (Nameless(), "returned tuple without params, value, grad"),
    (Counting(0.1), "a second run differs|lead elsewhere|has changed"),
    (Reading(0.1), "raised"),
    (Walk, r"the class Walk; pass one of it, Walk\(\)"),
    ("LBFGS", "'LBFGS'; expected a subclass"),
]


def test_a_good_one_passes():
    check_optimizer(Walk(), converges=["quadratic"])


@pytest.mark.parametrize(
    ("optimizer", "words"), BROKEN, ids=lambda item: type(item).__name__ if item else None
)
def test_a_broken_one_is_told_what_is_broken(optimizer, words):
    with pytest.raises(AssertionError, match=words):
        check_optimizer(optimizer, converges=["quadratic"])


def test_what_it_must_solve():
    with pytest.raises(AssertionError, match="rosenbrock"):
        check_optimizer(Walk())  # not a FirstOrder rule: it is asked for both
    check_optimizer(Walk(1e-9), converges=[])
    for wrong in ("quadratic", ["cubic"]):
        with pytest.raises(ValueError, match="expected a list"):
            check_optimizer(Walk(), converges=wrong)


def test_an_optimality_of_its_own_must_still_be_small_at_minima_only():
    @dataclasses.dataclass(frozen=True)
    class Boaster(Walk):
        def look(self, objective, params):
            state = super().look(objective, params)
            return state._replace(optimality=1e-6 * state.optimality)

    with pytest.raises(AssertionError, match="does not converge"):
        check_optimizer(Boaster(), converges=["quadratic"], own_optimality=True)

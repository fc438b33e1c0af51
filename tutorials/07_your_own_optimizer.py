# %% [markdown]
# # Your own optimizer
#
# An optimizer, here, is two functions: one that looks at the start, and one that takes a step. The
# loop, the stop rules, the progress bar and the result belong to `mo.minimize`. This tutorial
# writes one in thirty lines, has its contract checked, and races it against those that mlxopt
# brings.

# %%
import dataclasses
import math
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

import mlxopt as mo
from mlxopt.testing import check_optimizer

looks = {"figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
plt.style.use(["tableau-colorblind10", looks])

# %% [markdown]
# ## The method
#
# Gradient descent needs a step size, and its best one changes from place to place. In 1988
# Jonathan Barzilai and Jonathan Borwein had an idea: look at the last step. If the parameters moved
# by $s$ and the gradient changed by $y$, then along $s$ the loss has the curvature
# $s^\top y / s^\top s$, and one over that is the step size that would have been right:
#
# $$x_{k+1} = x_k - t_k \nabla f(x_k), \qquad t_k = \frac{s^\top s}{s^\top y}.$$
#
# That is all. No line search, nothing stored but one old gradient; the loss may rise now and then.
#
# ## A first version
#
# The optimizer is a frozen dataclass: what it is told, and never changes. What does change is the
# state, a named tuple. Five fields are asked for: where we are, the loss and the gradient there,
# the largest entry of the gradient, a reason if no further step is possible, and whether the last
# step moved. The step size of the next step is ours.


# %%
def dot(a, b):
    pairs = zip(tree_flatten(a), tree_flatten(b), strict=True)
    return sum(mx.sum(x * y).item() for (_, x), (_, y) in pairs)


class NaiveState(NamedTuple):
    params: Any  # the parameters: any tree of arrays
    value: float  # the loss there
    grad: Any  # its gradient there
    optimality: float  # the gradient's largest absolute entry
    status: mo.Status | None  # why no further step can be taken
    moved: bool  # whether the last step changed the parameters
    step_size: float  # of the next step


@dataclasses.dataclass(frozen=True)
class Naive(mo.optimizers.Optimizer[NaiveState]):
    first: float = 1e-3

    def init(self, objective, params):
        value, grad = objective.value_and_grad(params)
        largest = max(mx.max(mx.abs(leaf)).item() for _, leaf in tree_flatten(grad))
        return NaiveState(params, value.item(), grad, largest, None, True, self.first)

    def step(self, objective, state):
        trial = tree_map(lambda x, g: x - state.step_size * g, state.params, state.grad)
        new = self.init(objective, trial)
        s = tree_map(mx.subtract, new.params, state.params)
        y = tree_map(mx.subtract, new.grad, state.grad)
        return new._replace(step_size=dot(s, s) / dot(s, y))


# %% [markdown]
# It looks right, and where the loss is a quadratic it is:

# %%
booth = mo.problems.get("Booth")
result = mo.minimize(booth.loss, booth.params(), Naive())
print(result)

# %% [markdown]
# ## What the contract says
#
# A loop can only trust what it was promised: that the state describes its own point, that a step
# never ends in NaN, that nothing is remembered in hidden places. `check_optimizer` tries all that
# on small problems made to provoke. It raises at the first promise that is broken, and says which.

# %%
try:
    check_optimizer(Naive())
    complaint = ""
except AssertionError as error:
    complaint = str(error)
print(complaint)

# %% [markdown]
# At a minimum nothing moves any more: $s$ and $y$ are zero, and so is what we divide by. That is
# soon mended, and not the last complaint. On a loss that ends at a border, as a logarithm's does,
# the step goes beyond and keeps the NaN it finds there. And on Rosenbrock's function it never
# arrives: somewhere on the way the curvature is negative, the step leads uphill, and nothing calls
# it back.
#
# ## Thirty lines that hold
#
# What calls it back must not be too strict: to ask for a lower loss at every step would spoil the
# method. Marcos Raydan's remedy (1997) is to ask only that the loss be below the *largest of the
# last ten*. So the state holds ten values, and a trial is checked before it is accepted. If it is
# too high, or NaN, the parameters stay as they are, `moved` says so, and the next call of `step` is
# a shorter trial. A step is never a loop.


# %%
class State(NamedTuple):
    params: Any
    value: float
    grad: Any
    optimality: float
    status: mo.Status | None
    moved: bool
    step_size: float  # of the next trial
    recent: tuple[float, ...]  # the loss at the last points, ten at most


@dataclasses.dataclass(frozen=True)
class BarzilaiBorwein(mo.optimizers.Optimizer[State]):
    def init(self, objective, params):
        value, grad = objective.value_and_grad(params)
        largest = max(mx.max(mx.abs(leaf)).item() for _, leaf in tree_flatten(grad))
        first = min(1.0, 0.1 / largest) if largest > 0 else 1.0
        return State(params, value.item(), grad, largest, None, True, first, (value.item(),))

    def step(self, objective, state):
        t = state.step_size
        if t < 1e-20:
            return state._replace(status=mo.Status.NO_PROGRESS, moved=False)
        trial = tree_map(lambda x, g: x - t * g, state.params, state.grad)
        new = self.init(objective, trial)
        enough = max(state.recent) - 1e-4 * t * dot(state.grad, state.grad)
        if not (new.value <= enough and math.isfinite(new.optimality)):
            return state._replace(moved=False, step_size=0.25 * t)
        s = tree_map(mx.subtract, new.params, state.params)
        y = tree_map(mx.subtract, new.grad, state.grad)
        curvature = dot(s, y)
        t = min(dot(s, s) / curvature if curvature > 0 else 2 * t, 1e10)
        return new._replace(step_size=t, recent=(*state.recent, new.value)[-10:])


check_optimizer(BarzilaiBorwein())

# %% [markdown]
# It passes, Rosenbrock's valley included, in float64, in float32, and with a leaf of sixteen bits.
# From here on it is one of the family: all that `minimize` does, it does with ours.
#
# ## A race
#
# How good is it? `mo.race` runs every optimizer on every problem that it is given. The problems
# know their answers, so a run counts as solved when its loss is that of a known minimum, and costs
# what it took to get there. Here are the classic test problems of Moré, Garbow and Hillstrom with
# up to four parameters, and a few others.

# %%
problems = [p for p in mo.problems.MGH if p.size <= 4]
problems += [mo.problems.get(name) for name in ("Booth", "Matyas", "Himmelblau", "Zakharov (5)")]
entrants = {
    "ours": BarzilaiBorwein(),
    "GradientDescent": mo.GradientDescent(),
    "ConjugateGradient": mo.ConjugateGradient(),
    "LBFGS": mo.LBFGS(),
    "TrustRegion": mo.TrustRegion(),
}
race = mo.race(problems, entrants, max_steps=400)
print(race)

# %% [markdown]
# A table of numbers is hard to read at a glance. A performance profile says it in one picture: for
# each optimizer, the share of problems that it solved with at most so many times the evaluations of
# the best. High on the left is fast, high on the right is reliable.

# %%
ax = race.plot()
ax.set_title("Five optimizers on classic problems")
plt.show()

# %% [markdown]
# The one with second derivatives is ahead of all, and those that remember more than one gradient
# come next. But `GradientDescent` knows exactly what ours knows. It too starts each step with a
# guess of Barzilai and Borwein's; then it insists that the loss go down, and so it needs about
# twice as many evaluations, and solves fewer problems. Thirty lines and a little patience are ahead
# of it.
#
# ## The way down
#
# On Rosenbrock's valley one sees why. A careful method follows the floor of the valley; ours jumps,
# uphill if need be.

# %%
rosenbrock = mo.problems.get("Rosenbrock")
three = {name: entrants[name] for name in ("ours", "LBFGS", "TrustRegion")}
valley = mo.race(rosenbrock, three)
fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6))
valley.plot_paths("Rosenbrock", ax=left)
valley.plot_losses("Rosenbrock", ax=right)
left.set_title("The way down")
right.set_title("The loss on the way")
plt.show()

# %% [markdown]
# The right picture shows what the patience is for: the loss rises, again and again, by a factor of
# ten and more, and falls to zero all the same. Those high points are where the method learns how
# the valley bends. `result.history` of your own runs has these numbers too; `race.rows` has them
# for each run here.
#
# ## What to try next
#
# * Set the memory of ten to one, and see the curve drop below that of `GradientDescent`: a step of
#   this kind that has to go down is not even a careful one.
# * Take $t = s^\top y / y^\top y$, the other formula of the same paper, in every second step.
# * A rule for mini-batches is shorter still: a subclass of `mo.optimizers.FirstOrder` says only how
#   a gradient becomes a step, and `mo.train` runs it; `check_optimizer` knows those as well.
#
# ## What was claimed

# %%
assert result.converged
assert "ZeroDivisionError" in complaint
solved = race.solved()
assert solved["GradientDescent"] < solved["ours"] < solved["LBFGS"] <= solved["TrustRegion"]
costs = race.costs()
assert sum(costs["TrustRegion"] <= costs["LBFGS"]) >= 20
both = (costs["ours"] < math.inf) & (costs["GradientDescent"] < math.inf)
assert 1.4 * costs["ours"][both].sum() < costs["GradientDescent"][both].sum()
assert valley.solved() == dict.fromkeys(three, 1)
values = valley.run("Rosenbrock", "ours").trace_value
assert max(values[1:] / values[:-1]) > 10
assert values[-1] < 1e-5

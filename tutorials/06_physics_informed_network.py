# %% [markdown]
# # A network that solves a differential equation
#
# A physics-informed network is given no measurements. It is given an equation, and its loss is how
# badly it satisfies that: the derivatives in the equation are those of the network itself, taken by
# autodiff, so training it takes derivatives of derivatives of derivatives. Nothing here is special
# to networks or to physics, as far as the optimizer can see. It is a loss.
#
# Two habits of this field come up. The network is an `mlx.nn.Module`, which keeps its parameters
# inside; and it is trained by Adam first and by L-BFGS after, all of it compiled.

# %%
import time

import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import numpy as np

import mlxopt as mo

looks = {"figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
plt.style.use(["tableau-colorblind10", looks])

# %% [markdown]
# ## The equation
#
# Burgers' equation is the simplest model of a shock wave. A velocity $u(t, x)$ carries itself along
# and is smoothed by viscosity $\nu$:
#
# $$u_t + u\,u_x = \nu\,u_{xx}, \qquad u(0, x) = -\sin \pi x, \qquad u(t, \pm 1) = 0.$$
#
# What is fast catches up with what is slow, so the sine wave steepens in the middle, until the
# viscosity holds it.

# %%
viscosity = 0.05

# %% [markdown]
# ## The network, as a function
#
# `mo.functional` takes a module apart: its parameters, a tree of arrays, and a pure function
# `apply(params, inputs)` that is the module's call. From there on it is like any other loss.
#
# The conditions at the start and at both ends need no training. They are built in: whatever number
# $N$ the network gives, $-\sin \pi x + t\,(1 - x^2)\,N(t, x)$ satisfies them.

# %%
mx.random.seed(0)
layers = [nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh()]
module = nn.Sequential(*layers, nn.Linear(20, 1))
start, apply = mo.functional(module)


def velocity(params, t, x):
    free = apply(params, mx.stack([t, x], axis=-1))[:, 0]
    return -mx.sin(np.pi * x) + t * (1 - mx.square(x)) * free


# %% [markdown]
# ## The loss
#
# The mean square of the residual $u_t + u\,u_x - \nu\,u_{xx}$ over 800 points scattered in the
# rectangle. Each point's $u$ depends on its own $t$ and $x$ alone. The gradient of the *sum* of all
# $u$ with respect to the vector of all $x$ therefore holds each point's own $u_x$.


# %%
def residual(u, t, x):
    def u_x(x):
        return mx.grad(lambda x: mx.sum(u(t, x)))(x)

    u_t = mx.grad(lambda t: mx.sum(u(t, x)))(t)
    u_xx = mx.grad(lambda x: mx.sum(u_x(x)))(x)
    return u_t + u(t, x) * u_x(x) - viscosity * u_xx


def loss(params, t, x):
    return mx.mean(mx.square(residual(lambda t, x: velocity(params, t, x), t, x)))


rng = np.random.default_rng(0)
t, x = rng.uniform(0, 1, 800), rng.uniform(-1, 1, 800)

# %% [markdown]
# Is the residual right? Put a function with known derivatives in the network's place, and see:
# $u = t x^2$ has $u_t = x^2$, $u_x = 2tx$ and $u_{xx} = 2t$.

# %%
found = residual(lambda t, x: t * mx.square(x), mx.array([0.5]), mx.array([0.8])).item()
by_hand = 0.8**2 + (0.5 * 0.8**2) * (2 * 0.5 * 0.8) - viscosity * 2 * 0.5
print(f"by autodiff {found:.6f}, by hand {by_hand:.6f}")

# %% [markdown]
# ## Adam, then L-BFGS
#
# Adam makes fast progress from a random start, where the loss is rough and a line search would
# waste its effort. Later the loss is smooth but badly scaled, and Adam, which knows no curvature,
# crawls; L-BFGS learns the curvature as it goes. A list of optimizers runs them in turn on one
# compiled loss, each from where the last one ended, with one history. `tol=0` takes all the steps
# that are asked for.

# %%
began = time.perf_counter()
result = mo.minimize(loss, start, [(mo.Adam(1e-2), 500), (mo.LBFGS(), 1000)], t, x, tol=0)
print(result)
print(f"{time.perf_counter() - began:.1f} s, compiling included")

# %% [markdown]
# For comparison, Adam alone with as many steps. Its learning rate was chosen for it: half, a third
# and three times as much ended higher, and so did a rate that falls along a cosine.

# %%
alone = mo.minimize(loss, start, mo.Adam(1e-2), t, x, tol=0, max_steps=1500)
print(f"Adam alone: {alone.value:.2e}; Adam, then L-BFGS: {result.value:.2e}")

# %%
fig, ax = plt.subplots(figsize=(7.4, 4.2))
ax.semilogy(alone.history.step, alone.history.value, color="C1", linewidth=1.5, label="Adam alone")
ax.semilogy(
    result.history.step, result.history.value, color="C0", linewidth=1.8,
    label="Adam, then L-BFGS",
)  # fmt: skip
ax.axvline(result.phases[0].steps, color="0.3", linestyle=":", linewidth=1.5)
ax.annotate("L-BFGS takes over", (515, 0.6), fontsize=10, color="0.3")
ax.set(xlabel="step", ylabel="mean squared residual", title="Loss while training")
ax.legend(loc="lower left")
plt.show()

# %% [markdown]
# The spikes are Adam's own. Where gradients have become small it divides by their small root mean
# square, its steps grow too long for the steepest direction, and the loss jumps until the average
# has taken notice. L-BFGS accepts no step that does not lower the loss.
#
# ## Is it the solution?
#
# A small residual is not yet a small error, and Burgers' equation is one of few where that can be
# checked: a substitution by Cole and Hopf turns it into the heat equation, and its solution is a
# ratio of two averages over a normal distribution,
#
# $$u(t, x) = -\frac{\mathrm E\left[\sin(\pi s)\,g(s)\right]}{\mathrm E\left[g(s)\right]},
# \qquad s \sim \mathcal N(x, 2 \nu t), \qquad
# g(s) = \exp\left(-\frac{\cos \pi s}{2 \pi \nu}\right).$$

# %%
nodes, weights = np.polynomial.hermite.hermgauss(100)


def exact(t, x):
    s = x + np.sqrt(4 * viscosity * t) * nodes[:, None]
    g = weights[:, None] * np.exp(-np.cos(np.pi * s) / (2 * np.pi * viscosity))
    return -np.sum(np.sin(np.pi * s) * g, axis=0) / np.sum(g, axis=0)


def network(params, t, x):
    places = mx.array(x.astype(np.float32))
    return np.array(velocity(params, mx.full(places.shape, t), places))


grid = np.linspace(-1, 1, 201)
times = np.linspace(0, 1, 101)
solution = np.stack([network(result.params, t, grid) for t in times])
truth = np.stack([exact(t, grid) for t in times])
worst = np.abs(solution - truth).max()
worst_alone = max(np.abs(network(alone.params, t, grid) - exact(t, grid)).max() for t in times)
print(f"largest error: {worst:.1e} (Adam alone: {worst_alone:.1e})")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2))
shades = left.pcolormesh(times, grid, solution.T, cmap="RdBu_r", vmin=-1, vmax=1, shading="auto")
fig.colorbar(shades, ax=left, label="$u$")
left.scatter(t, x, s=3, color="0.2", alpha=0.5, label="where the equation is asked for")
left.grid(visible=False)
left.set(xlabel="$t$", ylabel="$x$", title="The network", xlim=(0, 1), ylim=(-1, 1))
left.legend(loc="upper center", fontsize=8)
for color, moment in zip(("C0", "C1", "C2"), (0.0, 0.25, 1.0), strict=True):
    right.plot(grid, exact(moment, grid), color="0.2", linewidth=1)
    right.plot(
        grid[::8], network(result.params, moment, grid)[::8], "o", color=color, markersize=5,
        label=f"$t = {moment}$",
    )  # fmt: skip
right.set(xlabel="$x$", ylabel="$u$", title="Network (dots) and exact solution (lines)")
right.legend(loc="upper right")
plt.show()

# %% [markdown]
# The wave steepens and then decays, and the dots lie on the lines. The network has never seen a
# value of the solution.
#
# ## Back into the module
#
# All this time the module itself kept the parameters that it was made with. One line puts the
# result into it, for saving or for other uses.

# %%
untouched = module.layers[0].weight.tolist() == start["layers"][0]["weight"].tolist()
module.update(result.params)

# %% [markdown]
# ## What was claimed

# %%
assert abs(found - by_hand) < 1e-5

# L-BFGS takes the residual below a quarter of the best that Adam saw, and the error with it.
assert [phase.optimizer for phase in result.phases] == ["Adam", "LBFGS"]
assert [phase.steps for phase in result.phases] == [500, 1000]
assert result.value < 0.25 * min(alone.history.value)
assert worst < 5e-3
assert worst < worst_alone

# The conditions at the start and at the ends hold by construction, to float32 rounding.
assert np.abs(solution[0] + np.sin(np.pi * grid)).max() < 1e-6
assert np.abs(solution[:, [0, -1]]).max() < 1e-6

assert untouched
inputs = mx.array([[0.5, 0.3]])
assert mx.array_equal(module(inputs), apply(result.params, inputs))

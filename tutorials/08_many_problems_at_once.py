# %% [markdown]
# # Many problems at once
#
# A small fit takes a millisecond or two, and nearly all of that is overhead: a hundred numbers are
# no work for a computer. So if there are a thousand small fits to do, it pays to do them together.
# `mo.minimize_many` takes a loss written for *one* problem and solves a thousand of them in one
# batched graph. They cost little more than one.
#
# Where do a thousand small problems come from? Here are three places: the bootstrap, many starts,
# and a grid of settings.

# %%
import time

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

import mlxopt as mo

looks = {"figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
plt.style.use(["tableau-colorblind10", looks])

# %% [markdown]
# ## The bootstrap
#
# Eighty animals are given different doses of something, and some respond. The dose at which half of
# them would is called the ED50. A logistic regression on the dose estimates it: the logit is
# $a + b x$, so that the ED50 is $-a / b$.

# %%
rng = np.random.default_rng(0)
dose = rng.uniform(0, 4, 80)
response = (rng.random(80) < 1 / (1 + np.exp(-(2.0 * dose - 5.0)))).astype(float)


def loss(params, dose, response, weights):
    logits = params["a"] + params["b"] * dose
    return mx.mean(weights * mo.losses.logistic(logits, response))


start = {"a": mx.array(0.0), "b": mx.array(0.0)}
fit = mo.minimize(loss, start, mo.Newton(), dose, response, np.ones(80))
a, b = fit.params["a"].item(), fit.params["b"].item()
ed50 = -a / b
print(f"a = {a:.3f}, b = {b:.3f}, ED50 = {ed50:.3f}")

# %% [markdown]
# How sure is that? The bootstrap's answer: draw eighty animals from the eighty, with replacement,
# fit again, and see how the answer varies over many such samples. To draw an animal twice is to
# give it weight two. So a sample is a vector of eighty weights, and two thousand samples are a
# matrix.
#
# `in_axes` says what belongs to whom, one entry for `params` and one for each data argument: None
# for what all problems share, and 0 for what each has its own row of.

# %%
weights = rng.multinomial(80, np.full(80, 1 / 80), size=2000)
boot = mo.minimize_many(
    loss, start, mo.Newton(), dose, response, weights.astype(float), in_axes=(None, None, None, 0)
)
print(boot)

# %% [markdown]
# Each problem took its own steps and stopped for its own reason, in `boot.status`; those that had
# ended left the batch. The parameters have the problems along their first axis.
#
# The usual shortcut to a standard error is the delta method: a normal approximation from the
# curvature of the loss. (`mo.inference` has it; here it is in three lines.) How do the two compare?

# %%
samples = -np.array(boot.params["a"]) / np.array(boot.params["b"])
lower, upper = np.quantile(samples, [0.025, 0.975])
with mx.stream(mx.cpu):
    hessian = 80 * np.array(
        mo.hessian(loss, flat=True)(
            fit.params, mx.array(dose), mx.array(response), mx.ones(80)
        )
    )  # fmt: skip
slope = np.array([-1 / b, a / b**2])  # of -a/b in a and b
delta = np.sqrt(slope @ np.linalg.solve(hessian, slope))
print(f"bootstrap: sd {samples.std():.4f}, 95 % of the samples in {lower:.3f} to {upper:.3f}")
print(f"delta method: standard error {delta:.4f}")

# %%
fig, ax = plt.subplots(figsize=(7.0, 4.0))
ax.hist(samples, bins=60, density=True, color="C0", alpha=0.6, label="2,000 bootstrap samples")
grid = np.linspace(samples.min(), samples.max(), 300)
normal = np.exp(-0.5 * ((grid - ed50) / delta) ** 2) / (delta * np.sqrt(2 * np.pi))
ax.plot(grid, normal, color="C1", linewidth=2, label="delta method")
ax.axvline(2.5, color="0.3", linestyle="--", label="the truth")
ax.set(xlabel="ED50", ylabel="density", title="How sure is the ED50?")
ax.legend()
plt.show()

# %% [markdown]
# ## What does it cost?
#
# We time it for one problem, for ten, and so on. For comparison, the dashed line is what a loop
# over `mo.minimize` would take. (Each first call is left out: it compiles.)


# %%
def seconds(run):
    run()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def many(number):
    some = mx.array(weights[np.arange(number) % 2000].astype(np.float32))
    return lambda: mo.minimize_many(
        loss, start, mo.Newton(), dose, response, some, in_axes=(None, None, None, 0)
    )


numbers = [1, 10, 100, 1000, 10_000]
together = [seconds(many(number)) for number in numbers]
alone = seconds(lambda: mo.minimize(loss, start, mo.Newton(), dose, response, np.ones(80)))
print(f"one problem alone: {1e3 * alone:.1f} ms")
for number, took in zip(numbers, together, strict=True):
    print(f"{number:>6,} at once: {1e3 * took:6.1f} ms, {1e6 * took / number:8.1f} µs each")

# %%
fig, ax = plt.subplots(figsize=(7.0, 4.0))
ax.loglog(numbers, together, "o-", color="C0", linewidth=2, label="minimize_many")
ax.loglog(numbers, alone * np.array(numbers), "--", color="C1", label="minimize in a loop")
ax.set(xlabel="problems", ylabel="seconds", title="A thousand cost little more than one")
ax.legend()
plt.show()

# %% [markdown]
# Up to a few hundred problems the time hardly changes: it is overhead, paid once. Beyond, it grows
# with the number of problems, at a small fraction of what a loop would pay.
#
# ## Many starts
#
# Himmelblau's function has four minima, all with the value zero. Which of them does a method find?
# That depends on the start. This time the data are shared (there are none), and the starts differ:
# 10,000 of them, on a grid.

# %%
himmelblau = mo.problems.get("Himmelblau")
axis = np.linspace(-5, 5, 100, dtype=np.float32)
starts = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
runs = {
    "Newton": mo.minimize_many(himmelblau.loss, mx.array(starts), mo.Newton()),
    "LBFGS": mo.minimize_many(himmelblau.loss, mx.array(starts), mo.LBFGS()),
}
for name, run in runs.items():
    print(name, run, sep=": ")

# %% [markdown]
# Each start is a pixel below, its color the minimum where the run ended.

# %%
ends = np.array(runs["LBFGS"].params)
minima = np.unique(np.round(ends[runs["LBFGS"].value < 1e-6], 2) + 0.0, axis=0)
fig, panels = plt.subplots(1, 2, figsize=(9.6, 4.7), sharey=True)
nearest = {}
for panel, (name, run) in zip(panels, runs.items(), strict=True):
    distance = np.linalg.norm(np.array(run.params)[:, None] - minima, axis=2)
    nearest[name] = distance.min(axis=1)
    picture = distance.argmin(axis=1).reshape(100, 100)
    panel.imshow(
        picture, origin="lower", extent=(-5, 5, -5, 5), cmap="Pastel1", vmin=0, vmax=8,
        interpolation="nearest",
    )  # fmt: skip
    panel.plot(*minima.T, "k*", markersize=11)
    panel.grid(visible=False)
    panel.set(xlabel="$x_0$", title=f"{name}: where each start leads")
panels[0].set_ylabel("$x_1$")
plt.show()

# %% [markdown]
# The stars are the four minima. Around each there is a region from which every start leads there;
# between the regions a long first step may land anywhere. For a loss whose minima differ in depth,
# the recipe is one line more: `best = run[int(run.value.argmin())]`. An index gives the `mo.Result`
# of one problem, with its certificate.
#
# ## A grid of settings
#
# How strong should a penalty be? Cross-validation tries each of several strengths on each of ten
# splits of the data. Here are 25 strengths and ten folds, so 250 problems. A fold is a vector of
# weights again, zero for the examples that are held out. The data are few (60 examples, 20
# features), and most features mean nothing.

# %%
X = rng.standard_normal((60, 20))
truth = np.zeros(20)
truth[:4] = [1.5, -1.0, 1.0, -0.5]
labels = (rng.random(60) < 1 / (1 + np.exp(-X @ truth))).astype(float)
fold = rng.permutation(60) % 10
strengths = np.geomspace(1e-3, 3, 25)

which, kept = np.meshgrid(strengths, np.arange(10), indexing="ij")
training = (fold != kept.reshape(-1, 1)).astype(float)


def penalized(coef, X, labels, weights, strength):
    losses = weights * mo.losses.logistic(X @ coef, labels)
    return mx.sum(losses) / mx.sum(weights) + 0.5 * strength * mx.sum(mx.square(coef))


grid_fits = mo.minimize_many(
    penalized, mx.zeros(20), mo.LBFGS(), X, labels, training, which.reshape(-1),
    in_axes=(None, None, None, 0, 0),
)  # fmt: skip
print(grid_fits)

# %% [markdown]
# The fits give each held-out example a logit from a fit that has not seen it.

# %%
logits = np.array(grid_fits.params) @ X.T  # (250, 60)
per_example = np.logaddexp(0, logits) - labels * logits
held_out = 1 - training
validation = ((per_example * held_out).sum(axis=1) / held_out.sum(axis=1)).reshape(25, 10)
seen = ((per_example * training).sum(axis=1) / training.sum(axis=1)).reshape(25, 10)
mean = validation.mean(axis=1)
best = int(mean.argmin())
print(f"best strength {strengths[best]:.3f}: {mean[best]:.3f}; the weakest: {mean[0]:.3f}")

# %%
fig, ax = plt.subplots(figsize=(7.0, 4.0))
ax.semilogx(strengths, validation, color="C0", alpha=0.2, linewidth=1)
ax.semilogx(strengths, mean, color="C0", linewidth=2.5, label="held out, mean of ten folds")
ax.semilogx(strengths, seen.mean(axis=1), color="C1", linewidth=2, label="fitted")
ax.axvline(strengths[best], color="0.3", linestyle="--", label="best strength")
ax.axhline(np.log(2), color="0.3", linestyle=":", label="guessing")
ax.set(xlabel="strength of the penalty", ylabel="mean loss", ylim=(0, 1.6), title="250 fits")
ax.legend()
plt.show()

# %% [markdown]
# ## What to remember
#
# * Write the loss for one problem, and say in `in_axes` which arguments differ.
# * Resample with weights, so that all problems have one shape.
# * `result.converged` and `result.status` have an entry for each; a failure does no harm to its
#   neighbors. `result[i]` is problem `i` alone.
# * For sums of squares, `mo.LevenbergMarquardt()` takes a residual in the place of the loss.
#
# ## What was claimed

# %%
assert boot.converged.all()
assert abs(samples.std() / delta - 1) < 0.25  # the two standard errors tell the same story
assert lower < 2.5 < upper

# A sample fitted alone has the same answer.
again = mo.minimize(loss, start, mo.Newton(), dose, response, weights[7].astype(float))
assert abs(again.params["b"].item() - boot.params["b"][7].item()) < 1e-4
assert boot[7].steps == again.steps

# A thousand at once in far less time than a loop; the bound is loose, as timings vary.
assert together[3] < 100 * alone
assert together[2] < 20 * together[0]

assert len(minima) == 4
for name, run in runs.items():
    ended = run.converged & (run.value < 1e-6)
    assert ended.mean() > 0.999, name
    assert nearest[name][ended].max() < 0.02, name

assert grid_fits.converged.all()
assert 0 < best < 24
assert mean[best] < min(mean[0], mean[-1]) - 0.02
assert (np.diff(seen.mean(axis=1)) > 0).all()

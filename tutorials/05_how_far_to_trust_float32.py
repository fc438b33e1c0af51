# %% [markdown]
# # How far to trust float32
#
# A fitted number is wrong twice over. It would have come out differently with other data, which is
# what its **standard error** measures. And the computer stopped a little short of the best fit to
# the data at hand: its **computational error**. The first shrinks as the data grow. The second
# does not.
#
# So somewhere they meet, and beyond that point the computer adds noise that the data do not have.
# This tutorial finds out where, for fits in float32, and what to do about it.

# %%
import os
import warnings

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

import mlxopt as mo
from mlxopt import inference

looks = {"figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
plt.style.use(["tableau-colorblind10", looks])
mx.set_default_device(mx.cpu)  # float64 lives there, and the comparison should be on one device

# %% [markdown]
# On a CPU mlxopt runs most losses by an engine of its own, which adds float32 numbers up in
# float64. Here it is switched off, to see what sums in float32 do.

# %%
os.environ["MLXOPT_ENGINE"] = "mlx"

# %% [markdown]
# ## Two lines that cross
#
# The model is a line, $y = a + b x + \varepsilon$, with a standardized $x$, $b = 1$, and normal
# noise of standard deviation $\sigma$. The share of the variance of $y$ that the line explains is
# $R^2 = 1 / (1 + \sigma^2)$, so we can choose $R^2$ and know $\sigma$. The standard error of the
# slope, and of the intercept, is
#
# $$\mathrm{se} = \frac{\sigma}{\sqrt n}, \qquad \sigma^2 = \frac{1 - R^2}{R^2}.$$
#
# How large can the computational error be? A run in float32 claims to have converged when the
# largest entry of the gradient has fallen to `tol`, by default $3 \cdot 10^{-6}$, times the largest
# of the run. We start at zero, where the gradient is $(-1, -1)$. Half the mean of squared residuals
# has curvature 1 here (the variance of $x$), so a gradient of $3 \cdot 10^{-6}$ leaves an error of
# $3 \cdot 10^{-6}$: that much is allowed, whatever $n$ is. And even without any error of method, a
# number near 1 is rounded to float32 by up to $6 \cdot 10^{-8}$.

# %%
tol, shares = 3e-6, {0.5: "C4", 0.9: "C1", 0.99: "C0"}
noise = {share: np.sqrt((1 - share) / share) for share in shares}
grid = np.geomspace(1e4, 1e9, 50)

fig, ax = plt.subplots(figsize=(7.0, 4.2))
for share, color in shares.items():
    ax.loglog(grid, noise[share] / np.sqrt(grid), color=color, label=f"se, $R^2 = {share}$")
ax.axhline(tol, color="C5", linestyle="--", label="allowed by tol = 3e-6")
ax.axhline(2.0**-24, color="C3", linestyle=":", label="rounding of 1 in float32")
ax.set(xlabel="examples $n$", ylabel="error of the slope", title="One error falls, the other stays")
ax.legend(loc="lower left")
plt.show()

# %% [markdown]
# With a few hundred thousand examples nobody needs to care. But a good model of a large data set,
# $R^2 = 0.99$ and $n = 10^9$, has standard errors as small as the tolerance. A smaller tolerance
# buys some room, down to the dotted line. But an error begins to matter long before it is as large
# as a standard error, and at $n = 3 \cdot 10^8$ the dotted line is one percent of that.
#
# ## Fits
#
# Enough theory. We fit the line in float32, with two losses. The first is what everybody writes.
# The second sums with care: `mo.losses.mean` and the gradient of `mo.losses.linear` add up blocks
# of numbers in float64, because a float32 that adds ten million numbers one after the other
# loses digits. (On a GPU, sums are trees and keep theirs.)


# %%
def plain(params, x, y):
    return 0.5 * mx.mean(mx.square(params["a"] + params["b"] * x - y))


def careful(params, x, y):
    predictions = params["a"] + mo.losses.linear(x[:, None], params["b"][None])
    return mo.losses.mean(mo.losses.squared_error(predictions, y))


start = {"a": mx.array(0.0), "b": mx.array(0.0)}

# %% [markdown]
# What is the right answer? The exact least-squares line through the very same float32 data,
# computed in float64 by NumPy. One step of refinement takes out what rounding left.


# %%
def exact_line(x, y):
    """Return intercept and slope, their standard errors, and half the mean squared residual."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, center = len(x), x.mean()
    spread = np.sum((x - center) ** 2)
    a = b = 0.0
    residual = y
    for _ in range(2):
        step = np.sum((x - center) * residual) / spread
        a, b = a + residual.mean() - step * center, b + step
        residual = y - a - b * x
    variance = np.sum(residual**2) / (n - 2)
    errors = np.sqrt(variance * np.array([1 / n + center**2 / spread, 1 / spread]))
    return np.array([a, b]), errors, 0.5 * np.mean(residual**2)


def in_standard_errors(result, exact, errors):
    found = np.array([result.params["a"].item(), result.params["b"].item()])
    return np.max(np.abs(found - exact) / errors)


# %% [markdown]
# The third fit is the first one, finished: `finish="float64"` takes the answer, converts it and
# the data to float64, and goes on from there. It is the slowest of the three, so beyond a million
# examples we finish only the hardest case.

# %%
sizes = [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000]
hardest = sizes[-1], 0.99
rng = np.random.default_rng(0)
all_x = rng.standard_normal(sizes[-1], dtype=np.float32)
all_noise = rng.standard_normal(sizes[-1], dtype=np.float32)


def draw(n, share):
    return all_x[:n], 1 + all_x[:n] + np.float32(noise[share]) * all_noise[:n]


errors = {"plain": {}, "careful": {}, "finished": {}}  # by (n, R²), in standard errors
values = {"plain": {}, "careful": {}}  # of the loss, relative to the exact one
fits = {}  # at the end, those of the hardest case
for n in sizes:
    for share in shares:
        x, y = draw(n, share)
        exact, standard_errors, lowest = exact_line(x, y)
        data = mx.array(x), mx.array(y)
        for name, loss in {"plain": plain, "careful": careful}.items():
            fit = fits[name] = mo.minimize(loss, start, mo.LBFGS(), *data)
            errors[name][n, share] = in_standard_errors(fit, exact, standard_errors)
            values[name][n, share] = fit.value / lowest - 1
        if n <= 1_000_000 or (n, share) == hardest:
            fit = fits["finished"] = mo.minimize(plain, start, mo.LBFGS(), *data, finish="float64")
            errors["finished"][n, share] = in_standard_errors(fit, exact, standard_errors)

# %%
fig, ax = plt.subplots(figsize=(8.4, 5.6))
shift = {0.5: 0.93, 0.9: 1.0, 0.99: 1.07}  # sideways, so that they do not hide each other
looks_of = {"plain": ("o", "float32, mx.mean"), "careful": ("^", "float32, mo.losses.mean"),
            "finished": ("s", "finished in float64")}  # fmt: skip
for share, color in shares.items():
    allowed = tol * np.sqrt(sizes) / noise[share]
    ax.loglog(sizes, allowed, "--", color=color, linewidth=1)
    back = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # a line passes behind one of them
    ax.text(1.3e7, allowed[-1], f"$R^2 = {share}$", color=color, va="center", bbox=back)
    for name, (marker, _) in looks_of.items():
        found = {n: error for (n, of), error in errors[name].items() if of == share}
        heights = np.maximum(list(found.values()), 1e-16)
        places = shift[share] * np.array(list(found))
        ax.loglog(places, heights, marker, color=color, alpha=0.75, markersize=7)
ax.axhline(1, color="0.3", linewidth=1)
ax.text(3.8e7, 1.5, "one standard error", color="0.3", ha="right")
ax.axhline(0.01, color="0.3", linewidth=1)
ax.text(3.8e7, 0.007, "1 % of it", color="0.3", ha="right", va="top")
ax.text(8.6e4, 5e-16, "the same to the last digit", color="0.3")
for marker, label in looks_of.values():
    ax.plot([], [], marker, color="0.4", label=label)
ax.plot([], [], "--", color="0.4", label="what tol = 3e-6 allows")
ax.set(
    xlabel="examples $n$", ylabel="computational error / standard error", xlim=(8e4, 4e7),
    ylim=(2e-17, 30), title="Computational error against standard error",
)  # fmt: skip
ax.legend(loc="center right")
plt.show()

for name, height in errors.items():
    print(f"{name:9} at most {max(height.values()):.1e} standard errors")
print("the hardest case:", *(f"{name} {fit.seconds:.1f} s," for name, fit in fits.items()))

# %% [markdown]
# Every float32 fit is below its dashed line, and that is all that can be said. *How far* below is
# luck: an L-BFGS step lands wherever it lands, and the run ends as soon as the gradient is small
# enough, ten times or a thousand times smaller than asked for. With ten million examples and
# $R^2 = 0.99$ the plain fit is off by some percent of a standard error, which is more than a
# computer should add.
#
# The finished fits are another world: $10^{-11}$ standard errors and less, at every size.
#
# ## Where the sums do matter
#
# The loss itself is a sum of positive numbers, and nothing cancels. It is worth a look, because
# half the mean squared residual is where the estimate of $\sigma$ comes from.

# %%
fig, ax = plt.subplots(figsize=(7.0, 3.8))
for name, marker in (("plain", "o"), ("careful", "^")):
    worst = [max(abs(values[name][n, share]) for share in shares) for n in sizes]
    ax.loglog(sizes, worst, marker + "-", label=looks_of[name][1])
ax.set(
    xlabel="examples $n$", ylabel="relative error of the loss",
    title="A float32 sum of positive numbers",
)  # fmt: skip
ax.legend(loc="center right")
plt.show()

# %% [markdown]
# With ten million examples the plain mean is wrong by more than one percent, and with it
# everything that is computed from it: the estimate of $\sigma$, the standard errors, a comparison
# of two models. `mo.losses.mean` keeps six digits.
#
# ## Asking the library
#
# We knew the exact answer. Usually nobody does, and nobody needs to:
# `inference.covariance` computes standard errors for any negative log-likelihood, in float64
# whatever the fit was, and looks where a Newton step would lead from the estimate. That is the
# computational error, in standard errors, and it warns if that is more than one percent.


# %%
def negative_log_likelihood(params, x, y, sigma):
    return 0.5 * mx.square((params["a"] + params["b"] * x - y) / sigma)


sigma = np.sqrt(2 * lowest)  # of the hardest case, which came last
rough, fine = fits["plain"], fits["finished"]

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    of_rough = inference.covariance(negative_log_likelihood, rough, x, y, sigma)
print(f"{rough.status.name}, and yet:", *(note.message for note in caught))

# %%
of_fine = inference.covariance(negative_log_likelihood, fine, x, y, sigma)
print(of_fine)
print(f"computational error: {of_fine.distance:.0e} standard errors")

# %% [markdown]
# Two rules of thumb remain.
#
# - Explore in float32. It is fast, and for most data its error is far below what the data leave
#   open anyway.
# - Finish in float64 what you report, or let `covariance` tell you that there is no need. Take
#   `mo.losses.mean` where the value of the loss itself matters.
#
# ## What we claimed

# %%
# Where the lines cross: R² = 0.99 and n = 1e9, or 3e8 for 1 % and the rounding.
assert 1.0 < noise[0.99] / np.sqrt(1e9) / tol < 1.1
assert 0.9 < 0.01 * noise[0.99] / np.sqrt(3e8) / 2.0**-24 < 1.1

# No float32 fit is worse than tol allows: it bounds each entry of the gradient, the largest being 1
# at the start, and the Hessian is the identity to a few per mille at n = 1e5 (sampling of x), with
# the rounding of a parameter near 1 (6e-8) and of its gradient (as much) on top.
for name in ("plain", "careful"):
    for (n, share), error in errors[name].items():
        assert error < (1.02 * tol + 3e-7) * np.sqrt(n) / noise[share]

# The hardest plain fit is off by more than 1 % of a standard error.
assert errors["plain"][hardest] > 0.01
assert max(errors["finished"].values()) < 1e-11

# The plain mean of ten million squares is wrong by over 1 %, the careful one in the seventh digit.
assert max(abs(values["plain"][sizes[-1], share]) for share in shares) > 0.01
assert max(abs(value) for value in values["careful"].values()) < 1e-6

# The library knows how far it is from the minimum, and the standard errors. (Those of exact_line
# divide by n - 2, which is 1e-6 off.)
assert len(caught) == 1
assert issubclass(caught[0].category, mo.ConvergenceWarning)
assert np.isclose(of_rough.distance, in_standard_errors(rough, exact, standard_errors), rtol=1e-3)
assert of_fine.distance < 1e-11
for found in (of_rough, of_fine):
    assert np.allclose(found.standard_errors, standard_errors, rtol=1e-5)

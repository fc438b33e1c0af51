# %% [markdown]
# # A Gaussian process that tunes itself
#
# A Gaussian process draws a smooth curve through noisy points, and says how sure it is of it. How
# smooth, how tall and how noisy are three numbers that somebody has to choose. This tutorial lets
# the data choose: write down how probable the data are as a function of the three, and minimize.
#
# The formula has a matrix factorization in its middle. MLX's own has no derivative;
# `mo.linalg.cholesky` does, and that is all it takes.

# %%
import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

import mlxopt as mo

looks = {"figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
plt.style.use(["tableau-colorblind10", looks])

# %% [markdown]
# ## The data
#
# Two hundred readings of a curve that nobody knows, with noise of standard deviation 0.2. There is
# a gap in the middle, where we shall want to know how sure we can be.

# %%
count, true_noise = 200, 0.2
rng = np.random.default_rng(1)
x = np.sort(rng.uniform(0, 10, count))
x = np.where(x > 5, x + 1.5, x)


def truth(x):
    return np.sin(x) + 0.4 * np.cos(2.7 * x)


y = truth(x) + true_noise * rng.normal(size=count)

# %% [markdown]
# ## How probable are the data?
#
# The model: readings at neighboring places are alike. Two values of the curve at $x$ and $x'$ have
# covariance
#
# $$k(x, x') = a^2 \exp\!\left(-\frac{(x - x')^2}{2 \ell^2}\right),$$
#
# with a height $a$ and a length $\ell$ beyond which the curve forgets itself; each reading adds
# noise of variance $s^2$ of its own. The $n$ readings together are then one draw from a normal
# distribution with covariance $K = k(x, x) + s^2 I$; minus the logarithm of their probability is
#
# $$\tfrac12 y^\top K^{-1} y + \tfrac12 \log \det K + \tfrac n2 \log 2\pi.$$
#
# Both terms come from one factorization, $K = L L^\top$: the first is $\tfrac12 \|L^{-1} y\|^2$,
# and $\log\det K$ is twice the sum of the logarithms of $L$'s diagonal.
#
# All three numbers must stay positive, so their logarithms are the parameters. And $K$ is nearly
# singular, as neighboring rows are almost the same. That calls for float64, and an exponential with
# its digits. In a loss `mx.exp` has them; the covariance also serves for predictions, outside a
# loss, where MLX's own on the CPU has seven, so it uses `mo.special.exp`.


# %%
def kernel(params, a, b):
    height, length = mo.special.exp(params["height"]), mo.special.exp(params["length"])
    distance = (a[:, None] - b[None, :]) / length
    return mx.square(height) * mo.special.exp(-0.5 * mx.square(distance))


def covariance(params, x):
    noise = mx.square(mo.special.exp(params["noise"]))
    return kernel(params, x, x) + noise * mx.eye(len(x), dtype=x.dtype)


def negative_log_likelihood(params, x, y):
    factor = mo.linalg.cholesky(covariance(params, x))
    whitened = mo.linalg.solve_triangular(factor, y)
    log_det = 2 * mx.sum(mo.special.log(mx.diag(factor)))
    return (0.5 * mx.sum(mx.square(whitened)) + 0.5 * log_det) / len(y) + 0.5 * np.log(2 * np.pi)


# %% [markdown]
# (Divided by $n$, as every loss here is a mean: the tolerance then means the same for any $n$.)
#
# ## Is the derivative right?
#
# Before trusting a derivative that went through a factorization, compare it with differences of the
# loss. In float64 there are enough digits to do that well.

# %%
start = {name: mx.array(0.0, dtype=mx.float64) for name in ("height", "length", "noise")}
X, Y = mx.array(x, dtype=mx.float64), mx.array(y, dtype=mx.float64)


def central_difference(name, step):
    def at(shift):
        moved = {**start, name: mx.array(shift, dtype=mx.float64)}
        with mx.stream(mx.cpu):
            return negative_log_likelihood(moved, X, Y).item()

    return (at(step) - at(-step)) / (2 * step)


_, gradient = mo.value_and_grad(negative_log_likelihood)(start, X, Y)
differences = {}
for name in start:
    # Two step sizes, combined so that their leading errors cancel (Richardson).
    differences[name] = (4 * central_difference(name, 1e-3) - central_difference(name, 2e-3)) / 3
    print(
        f"{name:7} derivative {gradient[name].item():+.12f}  difference {differences[name]:+.12f}"
    )

# %% [markdown]
# ## The fit
#
# One call. Each step factorizes a 200 × 200 matrix and goes back through it.

# %%
path = []
result = mo.minimize(
    negative_log_likelihood, start, mo.LBFGS(), X, Y,
    callback=lambda info: path.append([info.params[name].item() for name in ("length", "noise")]),
)  # fmt: skip
print(result)
print(result.certificate.verdict)
height, length, noise = (
    float(np.exp(result.params[n].item())) for n in ("height", "length", "noise")
)
print(f"height {height:.3f}, length {length:.3f}, noise {noise:.3f} (truth: {true_noise})")

# %% [markdown]
# It was never told the noise, and finds it. Here is the way there, on a map of the loss with the
# height held at its best value. The slopes differ: a length somewhat too short costs little, since
# the curve may then still do what the readings want; one that is too long costs a lot, unless all
# that the curve cannot follow is called noise.

# %%
lengths, noises = np.linspace(-1.0, 1.1, 24), np.linspace(-2.2, 0.2, 22)
compiled = mx.compile(negative_log_likelihood)


def loss_at(length, noise):
    params = {"height": result.params["height"]}
    params["length"] = mx.array(length, dtype=mx.float64)
    params["noise"] = mx.array(noise, dtype=mx.float64)
    return compiled(params, X, Y).item()


with mx.stream(mx.cpu):
    grid = np.array([[loss_at(length, noise) for length in lengths] for noise in noises])
steps = np.array(path)
fig, ax = plt.subplots(figsize=(7.4, 4.6))
above = np.log10(np.maximum(grid - result.value, 1e-3))
shades = ax.contourf(lengths, noises, above, levels=16, cmap="Blues_r")
ax.contour(shades, colors="0.4", linewidths=0.5, linestyles="solid")
fig.colorbar(shades, ax=ax, label="loss above its minimum, power of 10", format="%.1f")
ax.plot(*steps.T, "o-", color="C1", markersize=4, label="L-BFGS")
ax.plot(*steps[-1], "*", color="C3", markersize=16, label="minimum")
ax.grid(visible=False)
ax.set(
    xlabel="logarithm of the length", ylabel="logarithm of the noise",
    title="Loss, and the way to its minimum",
)  # fmt: skip
ax.set(xlim=(lengths[0], lengths[-1]), ylim=(noises[0], noises[-1]))
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## The curve, and how sure it is
#
# Given the three numbers, the curve at new places is normal too. Its mean and variance come from
# the same factor.


# %%
def predict(params, x, y, places):
    factor = mo.linalg.cholesky(covariance(params, x))
    across = mo.linalg.solve_triangular(factor, kernel(params, x, places))
    mean = across.T @ mo.linalg.solve_triangular(factor, y)
    variance = mx.square(mo.special.exp(params["height"])) - mx.sum(mx.square(across), axis=0)
    return np.array(mean), np.sqrt(np.maximum(np.array(variance), 0))


places = np.linspace(-1, 12.5, 400)
with mx.stream(mx.cpu):
    mean, deviation = predict(result.params, X, Y, mx.array(places, dtype=mx.float64))

fig, ax = plt.subplots(figsize=(7.4, 4.6))
ax.fill_between(
    places, mean - 1.96 * deviation, mean + 1.96 * deviation, color="C0", alpha=0.25,
    label="95 % of curves", linewidth=0,
)  # fmt: skip
ax.plot(places, mean, color="C0", linewidth=2, label="mean")
ax.plot(places, truth(places), "--", color="0.2", linewidth=1.3, label="truth")
ax.scatter(x, y, s=9, color="C1", label="readings", zorder=3)
ax.set(xlabel="$x$", ylabel="$y$", title="What 200 readings say about a curve")
ax.legend(loc="lower left", ncols=2)
plt.show()

# %% [markdown]
# Among the readings the band is narrow; in the gap, and beyond both ends, it opens, and the truth
# stays inside. No one chose how fast it opens: the length did.
#
# ## What was claimed

# %%
for name in start:
    assert abs(gradient[name].item() - differences[name]) < 1e-8
assert result.converged
assert result.certificate.is_minimum
assert abs(noise - true_noise) < 0.03
inside = np.abs(mean - truth(places)) <= 1.96 * deviation
assert inside.mean() > 0.9
gap = (places > 5.2) & (places < 6.3)
among = (places > 1) & (places < 4.5)
assert deviation[gap].max() > 2 * deviation[among].max()

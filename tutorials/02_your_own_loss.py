# %% [markdown]
# # Your own loss
#
# A loss is any function `loss(params, *data)` that returns one number, written in MLX operations.
# There is no class to inherit from and nothing to register: if you can write down what "wrong"
# means for your problem, it can be minimized.
#
# Here we fit a straight line to measurements some of which are plain rubbish. Squared error is
# fooled by them. We write two losses that are not, and see what happens when a loss is written
# badly.

# %%
import math
import warnings

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np
import scipy.stats

import mlxopt as mo

looks = {"figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
plt.style.use(["tableau-colorblind10", looks])

# %% [markdown]
# ## The data
#
# A sensor reads $y = x + 2$ with noise of standard deviation 0.5. Near the end of the experiment
# its cable came loose, and the last twelve of the 80 readings are far too low.

# %%
true_slope, true_intercept, noise = 1.0, 2.0, 0.5

keys = mx.random.split(mx.random.key(4), 3)
x = mx.sort(mx.random.uniform(0, 10, (80,), key=keys[0]))
y = true_slope * x + true_intercept + noise * mx.random.normal((80,), key=keys[1])
is_loose = mx.arange(80) >= 68
y = mx.where(is_loose, y - 8 + 2 * mx.random.normal((80,), key=keys[2]), y)


# %% [markdown]
# ## Squared error
#
# The model is a line, and the parameters are a dictionary. The loss takes the parameters first
# and then the data, and `mo.minimize` takes the same, in the same order. `LBFGS` is the optimizer
# to reach for when all the data fit in memory: it needs no learning rate.


# %%
def predict(params, x):
    return params["slope"] * x + params["intercept"]


def squared(params, x, y):
    return 0.5 * mx.mean(mx.square(predict(params, x) - y))


start = {"slope": mx.array(0.0), "intercept": mx.array(0.0)}
least_squares = mo.minimize(squared, start, mo.LBFGS(), x, y)
print(least_squares)

# %% [markdown]
# The run converged: this *is* the line of least squares. It is also nonsense, with a third of the
# true slope, because that is what squared error asks for. A reading that is off by 8 counts 64
# times as much as one that is off by 1, and the line does what it can to please it.
#
# ## Huber's loss
#
# Peter Huber's remedy of 1964 is to count large residuals by their size and not by their square:
#
# $$\rho(r) = \begin{cases} \tfrac12 r^2 & |r| \le \delta \\
# \delta \left(|r| - \tfrac12 \delta\right) & |r| > \delta \end{cases}$$
#
# The two pieces meet at $\delta$ with the same slope. Each residual chooses its own piece, so a
# Python `if` cannot do it; `mx.where` chooses entry by entry.


# %%
def huber(residuals, delta=1.0):
    size = mx.abs(residuals)
    return mx.where(size <= delta, 0.5 * mx.square(size), delta * (size - 0.5 * delta))


def huber_loss(params, x, y):
    return mx.mean(huber(predict(params, x) - y))


robust = mo.minimize(huber_loss, start, mo.LBFGS(), x, y)
print(robust)

# %% [markdown]
# A slope of 0.83 in place of 0.34, and all we did was write down another formula. (This one also
# comes ready made, as `mo.losses.huber`.)
#
# ## A loss with a scale of its own
#
# Huber's $\delta$ should be somewhat larger than the noise, and we knew the noise. What if we do
# not? Then let the fit find out. Suppose the residuals follow Student's $t$ distribution with
# $\nu$ degrees of freedom and scale $s$, a bell curve with heavier tails: it holds that most
# readings are good and that a few may be very bad. Up to a constant, minus its log-likelihood is,
# per reading,
#
# $$\log s + \frac{\nu + 1}{2} \log\!\left(1 + \frac{r^2}{\nu s^2}\right).$$
#
# The scale is one more parameter, so it becomes one more entry of the dictionary. It must stay
# positive, and the simplest way to see to that is to store its logarithm, which may be anything.


# %%
def student(residuals, log_scale, dof=2.0):
    z = residuals * mx.exp(-log_scale)
    return log_scale + 0.5 * (dof + 1) * mx.log1p(mx.square(z) / dof)


def student_loss(params, x, y):
    return mx.mean(student(predict(params, x) - y, params["log_scale"]))


start_with_scale = {**robust.params, "log_scale": mx.array(0.0)}
heavy_tailed = mo.minimize(student_loss, start_with_scale, mo.LBFGS(), x, y)
scale = math.exp(heavy_tailed.params["log_scale"].item())
print(heavy_tailed)
print(f"scale of the noise: {scale:.2f}")

# %% [markdown]
# A slope of 0.94, and an estimate of the noise into the bargain. We started from Huber's answer
# on purpose. Squared error and Huber's loss are convex, so that every start leads to the same
# place; this loss is not, and deserves a start in the right neighborhood.

# %%
fig, ax = plt.subplots(figsize=(7.4, 4.6))
good = ~np.array(is_loose)
xs, ys = np.array(x), np.array(y)
ax.scatter(xs[good], ys[good], s=16, color="C3", label="good readings")
ax.scatter(xs[~good], ys[~good], s=30, color="C3", marker="x", label="loose cable")
ends = mx.array([0.0, 10.0])
ax.plot(ends, true_slope * ends + true_intercept, color="0.8", linewidth=7, zorder=0, label="truth")
for name, result, color, dash in [
    ("squared error", least_squares, "C1", ":"),
    ("Huber", robust, "C4", "--"),
    ("Student's t", heavy_tailed, "C0", "-"),
]:
    ax.plot(ends, predict(result.params, ends), dash, color=color, linewidth=2.2, label=name)
ax.set(xlabel="$x$", ylabel="$y$", title="Twelve bad readings out of 80")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# ## Why it works: the pull of a residual
#
# Nothing explains a loss like its derivative. It says how hard a residual pulls at the line, and
# since MLX differentiates anything, drawing it costs a line: `mx.vmap(mx.grad(...))` takes the
# derivative at every point of a grid.

# %%
residuals = mx.linspace(-10, 10, 401)
log_scale = heavy_tailed.params["log_scale"]
penalties = {
    "squared error": (lambda r: 0.5 * mx.square(r), "C1", ":"),
    "Huber": (huber, "C4", "--"),
    "Student's t": (lambda r: student(r, log_scale), "C0", "-"),
}
pulls = {name: mx.vmap(mx.grad(rho))(residuals) for name, (rho, _, _) in penalties.items()}

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
for name, (rho, color, dash) in penalties.items():
    height = rho(residuals) - rho(mx.array(0.0))
    left.plot(residuals, height, dash, color=color, linewidth=2, label=name)
    right.plot(residuals, pulls[name], dash, color=color, linewidth=2, label=name)
left.set(xlabel="residual", title="The loss", ylim=(0, 12))
right.set(xlabel="residual", title="Its derivative: the pull", ylim=(-4.2, 4.2))
right.legend(loc="upper left")
plt.show()

# %% [markdown]
# Under squared error the pull grows without limit, so the worst reading has the most to say.
# Huber's loss caps it: past $\delta$ everybody pulls alike. Under Student's $t$ the pull weakens
# again with distance, and a reading that is far enough off is all but ignored. That is the order
# in which the three lines came closer to the truth.
#
# ## When a loss is written badly
#
# ### It leaves MLX
#
# We might like to get rid of the scale in another way, by dividing the residuals by their typical
# size. Mind the `.item()`, which turns an MLX array into a Python number.


# %%
def careless(params, x, y):
    residuals = predict(params, x) - y
    typical = mx.mean(mx.abs(residuals)).item()
    return mx.mean(huber(residuals / typical))


def shifted(params, by):
    return {**params, "slope": params["slope"] + by}


by_mlx = mx.grad(careless)(start, x, y)["slope"].item()
rise = careless(shifted(start, 0.01), x, y) - careless(shifted(start, -0.01), x, y)
measured = rise.item() / 0.02
print(f"derivative in the slope: {by_mlx:.3f} says MLX, {measured:.3f} says a ruler")

# %% [markdown]
# MLX follows arrays, and a Python number is not one: to the derivative, `typical` is a constant.
# What comes out has the wrong size and even the wrong sign, and nobody says a word. That is why
# `mo.minimize`, `mo.train` and `mo.grad` trace every loss once before they believe it.

# %%
try:
    mo.minimize(careless, start, mo.LBFGS(), x, y)
except mo.TapeError as error:
    tape_message = str(error)
    print(tape_message)

# %% [markdown]
# The cure is to leave out `.item()`, and then the derivative agrees with the ruler.


# %%
def careful(params, x, y):
    residuals = predict(params, x) - y
    return mx.mean(huber(residuals / mx.mean(mx.abs(residuals))))


by_mlxopt = mo.grad(careful)(start, x, y)["slope"].item()
print(f"derivative in the slope: {by_mlxopt:.3f}")

# %% [markdown]
# ### It forgets a parameter
#
# Rename a parameter, edit a formula, and soon a loss no longer uses all that it is given. The
# forgotten entry has gradient zero, stays where it started, and looks like an answer. So you are
# warned. (Here we catch the warning in order to print it; in your work you would simply see it.)

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    mo.minimize(
        lambda params, x, y: mx.mean(huber(params["slope"] * x - y)), start, mo.LBFGS(), x, y
    )

forgotten = caught[0]
print(f"{forgotten.category.__name__}: {forgotten.message}")

# %% [markdown]
# ### The run is cut short
#
# A result always says why it ended, in `result.status`, and each status comes with advice. If
# your program goes on by itself, ask `result.converged` before using the answer.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    hasty = mo.minimize(student_loss, start_with_scale, mo.LBFGS(), x, y, max_steps=3)

print(f"converged: {hasty.converged}")
print(f"{hasty.status.name}: {hasty.status.value}")

# %% [markdown]
# ### It asks for the wrong thing
#
# This is the one mistake that no library can catch. Leave the term $\log s$ out of the Student
# loss, and it can be made as small as you please by claiming that the noise is enormous.


# %%
def no_price_on_noise(params, x, y):
    return mx.mean(student(predict(params, x) - y, params["log_scale"]) - params["log_scale"])


runaway = mo.minimize(no_price_on_noise, start_with_scale, mo.LBFGS(), x, y)
runaway_scale = math.exp(runaway.params["log_scale"].item())
print(runaway)
print(f"scale of the noise: {runaway_scale:,.0f}")

# %% [markdown]
# The run reports that it converged, and it did: the gradient is within the tolerance. But a noise
# in the thousands, for readings of about 5, gives it away. `CONVERGED` says that you got what you
# asked for. Whether you asked for the right thing shows in the answer itself, so look at it, and
# better still, draw it.
#
# ## What we claimed

# %%
assert least_squares.converged
assert robust.converged
assert heavy_tailed.converged

# NumPy's least squares is the same line. The tolerance of 1e-5 on the gradient, over the smallest
# curvature of this loss (0.24), leaves 5e-5.
slope, intercept = np.polyfit(xs, ys, 1)
assert abs(least_squares.params["slope"].item() - slope) < 1e-4
assert abs(least_squares.params["intercept"].item() - intercept) < 1e-4

# Our losses are those of the books: to float32's 1e-6, relative.
library = mo.losses.huber(predict(start, x), y, delta=1.0)
assert mx.allclose(huber(predict(start, x) - y), library, rtol=1e-6)
ours = np.array(student(residuals, log_scale))
book = -scipy.stats.t.logpdf(np.array(residuals), df=2, scale=scale)
book += scipy.stats.t.logpdf(0, df=2)  # the constant that we dropped
assert np.allclose(ours, book, rtol=1e-5, atol=1e-5)

# Closer to the truth with each loss; the slopes are quoted to two digits.
off = [abs(r.params["slope"].item() - true_slope) for r in (least_squares, robust, heavy_tailed)]
assert off[0] > 2 * off[1] > 4 * off[2]
assert np.allclose(off, [1 - 0.34, 1 - 0.83, 1 - 0.94], atol=0.005)
assert 0.4 < scale < 0.7

# The pulls: unlimited, capped at delta, and weaker at 10 than at 2.
assert mx.allclose(pulls["squared error"], residuals, rtol=1e-6)
assert mx.max(mx.abs(pulls["Huber"])) == 1.0
assert pulls["Student's t"][-1] < 0.5 * mx.max(pulls["Student's t"])

# A read-back spoils the derivative, sign and all, and is refused; the repaired loss agrees with a
# central difference, whose steps of 0.01 in float32 are good to some 1e-5.
assert by_mlx * measured < 0
assert "careless" in tape_message
assert abs(by_mlxopt - measured) < 1e-3

assert forgotten.category is mo.ConvergenceWarning
assert "params['intercept']" in str(forgotten.message)
assert hasty.status is mo.Status.MAX_STEPS
assert not hasty.converged
assert runaway.converged
assert runaway_scale > 1000

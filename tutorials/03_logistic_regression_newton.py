# %% [markdown]
# # Logistic regression, and what Newton knows
#
# Gradient descent looks at the slope under its feet. Newton's method looks at the curvature too,
# and for that it asks a higher price per step. In this tutorial the two race, on a problem small
# enough to watch: logistic regression with two parameters.

# %%
import itertools

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

import mlxopt as mo

looks = {"figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
plt.style.use(["tableau-colorblind10", looks])
mx.set_default_device(mx.cpu)  # we are going to use float64, which MLX has on the CPU only

# %% [markdown]
# ## The data
#
# A thousand students practiced for between 0 and 6 hours, then took a test. The chance to pass is
#
# $$P(\text{pass}) = \sigma(z), \qquad z = -4 + 1.5 \cdot \text{hours}, \qquad
# \sigma(z) = \frac{1}{1 + e^{-z}},$$
#
# and $z$ is called the logit. A column of ones in $X$ makes the intercept a weight like any
# other.

# %%
true_w = mx.array([-4.0, 1.5])

hours_key, luck_key = mx.random.split(mx.random.key(3))
hours = mx.random.uniform(0, 6, (1000,), key=hours_key)
chance = mx.sigmoid(true_w[0] + true_w[1] * hours)
passed = mx.random.uniform(shape=(1000,), key=luck_key) < chance

X = mx.stack([mx.ones(1000), hours], axis=1).astype(mx.float64)
y = passed.astype(mx.float64)

edges = np.arange(0, 6.5, 0.5)
centers = (edges[1:] + edges[:-1]) / 2
counts, _ = np.histogram(hours, edges)
share = np.histogram(hours, edges, weights=y)[0] / counts

fig, ax = plt.subplots(figsize=(6.4, 3.6))
heights = np.array(y) + np.random.default_rng(0).uniform(-0.04, 0.04, 1000)
ax.scatter(hours, heights, s=5, alpha=0.5, color="C2", label="students, slightly shaken")
ax.plot(centers, share, "o", color="C0", label="share that passed")
ax.set(xlabel="hours of practice", ylabel="passed", title="Practice helps")
ax.legend(loc="center right")
plt.show()

# %% [markdown]
# ## The loss, and how not to write it
#
# We want the weights that make the observed results as likely as possible, which means a small
# mean of minus the log of the probability given to what happened:
#
# $$\ell(z, y) = -y \log \sigma(z) - (1 - y) \log(1 - \sigma(z)).$$
#
# Typed in as it stands, this formula is a trap. In float32, $\sigma(18)$ rounds to exactly 1, so
# $\log(1 - \sigma)$ is minus infinity. For a student who did pass it is multiplied by
# $1 - y = 0$, and zero times infinity is NaN. A single prediction that is confident *and right*
# ruins the mean.
#
# The way out is algebra. With $s = 1$ for a pass and $s = -1$ for a fail, both cases are the same
# function,
#
# $$\ell(z, s) = \log\left(1 + e^{-s z}\right),$$
#
# and `mx.logaddexp(0, t)` computes $\log(e^0 + e^t)$ without ever forming a number that overflows
# or a probability that rounds to 1.


# %%
def naive(logits, labels):
    p = mx.sigmoid(logits)
    return -labels * mx.log(p) - (1 - labels) * mx.log(1 - p)


def stable(logits, labels):
    signs = 2 * labels - 1
    return mx.logaddexp(0, -signs * logits)


logits = mx.linspace(0, 30, 301)
one = mx.array(1.0)
fig, ax = plt.subplots(figsize=(6.4, 3.8))
ax.semilogy(logits, stable(logits, one), color="C0", linewidth=5, alpha=0.5, label="logaddexp")
ax.semilogy(logits, naive(logits, one), color="C5", linewidth=1.4, label="as in the formula")
ax.axvline(17.33, color="C3", linestyle=":", label="from here on the formula gives NaN")
ax.set(xlabel="logit of a student who passed", ylabel="loss", title="The same function, in float32")
ax.legend(loc="lower left")
plt.show()

print("as in the formula:", naive(mx.array(18.0), one).item())
print("with logaddexp:   ", stable(mx.array(18.0), one).item())

# %% [markdown]
# The formula turns ragged where the loss reaches $10^{-6}$, and ends altogether at 17.3. The
# other version goes on as if nothing had happened.
#
# Below we want to watch the last of 15 digits. MLX's `exp` is good for seven, even in float64, so
# we change to `mo.losses.logistic`: the same function, accurate in either dtype.


# %%
def loss(w, X, y):
    return mx.mean(mo.losses.logistic(X @ w, y))


start = mx.zeros(2, dtype=mx.float64)
print(f"loss at zero: {loss(start, X, y).item():.6f}, log 2 = {np.log(2):.6f}")

# %% [markdown]
# At zero every student gets a chance of one half, and the loss is $\log 2$, as it must be.
#
# ## Gradient descent, in a valley
#
# How large may the learning rate be? Gradient descent is safe below $2 / L$, where $L$ bounds the
# curvature of the loss in every direction, and $1/L$ is the usual choice. For logistic regression
# the largest eigenvalue of $X^\top X / 4n$ is such a bound.
#
# We compare plain gradient descent with momentum, which keeps rolling in the direction it was
# going. A callback is told about each step; ours collects the parameters.

# %%
curvature_bound = np.linalg.eigvalsh(np.array(X.T @ X)).max() / (4 * len(y))
rate = 1 / curvature_bound

optimizers = {
    "gradient descent": mo.SGD(rate),
    "momentum": mo.Momentum(rate, momentum=0.9),
    "L-BFGS": mo.LBFGS(),
    "Newton": mo.Newton(),
}


def path_of(optimizer, steps):
    path = []
    mo.minimize(
        loss, start, optimizer, X, y, tol=0, max_steps=steps, record_every=1,
        callback=lambda info: path.append(info.params.tolist()),
    )  # fmt: skip
    return np.array(path)


paths = {
    "gradient descent": path_of(optimizers["gradient descent"], 100),
    "momentum": path_of(optimizers["momentum"], 100),
    "Newton": path_of(optimizers["Newton"], 5),
}

# %%
colors = {"gradient descent": "C1", "momentum": "C3", "L-BFGS": "C4", "Newton": "C0"}
b, w = np.meshgrid(np.linspace(-5.5, 0.7, 90), np.linspace(-0.4, 2.4, 90))
z = b[..., None] + w[..., None] * np.array(hours)
height = np.mean(np.logaddexp(0, z) - np.array(y) * z, axis=-1)

fig, ax = plt.subplots(figsize=(7.4, 4.8))
levels = height.min() + 0.003 * 2.0 ** np.arange(10)
ax.contour(b, w, height, levels=levels, colors="0.7", linewidths=0.8)
for name, path in paths.items():
    ax.plot(*path.T, "o-", markersize=4, linewidth=1, color=colors[name], label=name)
ax.plot(*paths["Newton"][-1], "*", color="C5", markersize=15, label="minimum", zorder=3)
ax.set(xlabel="intercept", ylabel="weight of an hour", title="A hundred steps, and Newton's five")
ax.grid(False)
ax.legend(loc="upper right")
plt.show()

# %% [markdown]
# The loss is a narrow valley. All hours are positive, so a larger weight and a smaller intercept
# nearly cancel, and along that line little changes. Gradient descent drops to the valley floor at
# once and then creeps: the steps must be short enough for the steep walls, which makes them far
# too short for the flat floor. After a hundred steps it is little more than halfway. Momentum
# picks up speed, at the price of swinging from wall to wall and past the minimum. Newton arrives
# in five steps as if there were no valley at all.
#
# ## What Newton knows
#
# Near $w$ the loss looks like a parabola, with the gradient $g$ for its slope and the Hessian
# $H$, the matrix of second derivatives, for its curvature. Newton's method jumps to that
# parabola's lowest point:
#
# $$w \leftarrow w - H^{-1} g .$$
#
# Steep directions get short steps and flat directions long ones. Here both are short formulas,
# with the probabilities $p = \sigma(Xw)$ and a diagonal matrix $W$ of the variances $p(1 - p)$:
#
# $$g = \frac{1}{n} X^\top (p - y), \qquad H = \frac{1}{n} X^\top W X .$$


# %%
def gradient_by_hand(w, X, y):
    return X.T @ (mo.special.sigmoid(X @ w) - y) / len(y)


def hessian_by_hand(w, X, y):
    p = mo.special.sigmoid(X @ w)
    return (X.T * (p * (1 - p))) @ X / len(y)


w, walked = start, [start]
for _ in range(6):
    w = w - mx.linalg.solve(hessian_by_hand(w, X, y), gradient_by_hand(w, X, y))
    walked.append(w)

best = loss(w, X, y).item()
gaps = [loss(point, X, y).item() - best for point in walked]
for number, gap in enumerate(gaps):
    print(f"step {number}: {gap:8.1e} above the minimum")

# %% [markdown]
# Watch the exponents: $10^{-3}$, $10^{-5}$, $10^{-8}$, $10^{-15}$. Near the minimum each step
# doubles the number of correct digits, because the error of a parabola shrinks with the square of
# the distance. That is quadratic convergence. (Where the jump overshoots, `mo.Newton` shortens
# it, and where the curvature is negative, it corrects that too. Our six lines would fall on their
# faces.)
#
# You need no formula for the Hessian either. It is the gradient of the gradient: the derivative
# of $g \cdot v$ is $H v$, and with $v$ each of the unit vectors in turn, we have all rows of $H$.


# %%
def hessian_times(w, v):
    return mx.grad(lambda at: mx.sum(mx.grad(loss)(at, X, y) * v))(w)


units = mx.eye(2, dtype=mx.float64)
hessian_by_mlx = mx.vmap(hessian_times, in_axes=(None, 0))(w, units)

print("by hand:", hessian_by_hand(w, X, y).tolist())
print("by MLX: ", hessian_by_mlx.tolist())

# %% [markdown]
# Newton has another virtue. Give the practice in minutes, and nothing about the problem has
# changed, but gradient descent now needs a learning rate thousands of times smaller, and all the
# more steps. Newton's steps are the same as before: rescaling the inputs rescales $H$, and
# cancels.

# %%
minutes = X * mx.array([1.0, 60.0], dtype=mx.float64)
in_hours = mo.minimize(loss, start, mo.Newton(), X, y, tol=1e-10)
in_minutes = mo.minimize(loss, start, mo.Newton(), minutes, y, tol=1e-10)
print(f"in hours: {in_hours.steps} steps, w = {in_hours.params.tolist()}")
print(f"in minutes: {in_minutes.steps} steps, w = {in_minutes.params.tolist()}")

# %% [markdown]
# ## The race
#
# Four optimizers, each until no entry of the gradient is larger than $10^{-10}$. Each runs five
# times and its fastest run counts: the first one waits for the compiler, and any may be
# disturbed.


# %%
def run(optimizer):
    return mo.minimize(loss, start, optimizer, X, y, tol=1e-10, max_steps=10_000)


results = {}
for name, optimizer in optimizers.items():
    runs = [run(optimizer) for _ in range(5)]
    results[name] = min(runs, key=lambda result: result.seconds)

fig, axes = plt.subplots(1, 2, figsize=(9.4, 4.2), sharey=True)
styles = {"gradient descent": "-.", "momentum": ":", "L-BFGS": "--", "Newton": "o-"}
for name, result in results.items():
    gap = result.history.value - best
    until = np.argmax(gap < 1e-15) + 1  # what comes after is rounding
    evaluations, milliseconds = result.history.step + 1, 1e3 * result.history.seconds
    for ax, cost in zip(axes, (evaluations, milliseconds), strict=True):
        height = np.maximum(gap[:until], 1e-15)
        ax.loglog(cost[:until], height, styles[name], color=colors[name], linewidth=2)
axes[0].set(xlabel="evaluations of the loss and its gradient", ylabel="loss above the minimum")
axes[1].set(xlabel="milliseconds")
fig.suptitle("The race to fifteen digits")
fig.legend(axes[0].lines, list(results), loc="outside lower center", ncols=4)
plt.show()

for name, result in results.items():
    print(f"{name:17} {result.steps:5} steps {1e3 * result.seconds:8.1f} ms")

# %% [markdown]
# Newton needs 6 steps, L-BFGS 15, momentum some hundreds and gradient descent some thousands. The
# clock tells the same story less loudly, and brings the first two close together, because a step
# of gradient descent is cheap and a step of Newton is not: the Hessian of $p$ parameters has
# $p^2$ entries, computing it costs about as much as $p$ gradients, and solving with it takes
# $p^3$ operations. For $p = 2$ that is nothing, for a hundred it is a bargain, and for a hundred
# thousand it is out of the question.
#
# L-BFGS is the one in between. It never sees the Hessian, but guesses it from how the gradient
# changed over the last few steps, for the price of a gradient a step. When in doubt, take it
# first.
#
# ## Two lines instead
#
# For everyday use all of this is packed away. The model takes the bare features, adds the
# intercept itself, and chooses its own optimizer.

# %%
model = mo.models.LogisticRegression().fit(X[:, 1:], y)
print(f"intercept {model.intercept_[0]:.6f}, weight of an hour {model.coef_[0, 0]:.6f}")

# %% [markdown]
# The Hessian has one more thing to tell. Where the valley is narrow, the data leave the
# parameters little choice, and where it is flat, many would do nearly as well. The inverse of
# $n H$ is the covariance of the estimate, and the square roots of its diagonal are the standard
# errors. We have $H$ already, and so we can draw how sure the curve is.

# %%
covariance = np.linalg.inv(len(y) * np.array(hessian_by_hand(w, X, y)))
standard_errors = np.sqrt(np.diag(covariance))
print("by hand:  ", standard_errors)
print("the model:", np.append(model.intercept_se_, model.coef_se_))

xs = np.linspace(0, 6, 200)
rows = np.column_stack([np.ones_like(xs), xs])
logits = rows @ np.array(w)
margin = 2 * np.sqrt(np.sum((rows @ covariance) * rows, axis=1))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


fig, ax = plt.subplots(figsize=(6.4, 3.8))
band = sigmoid(logits - margin), sigmoid(logits + margin)
ax.fill_between(xs, *band, color="C0", alpha=0.3, linewidth=0, label="± 2 standard errors")
ax.plot(xs, sigmoid(logits), color="C0", label="fitted chance to pass")
ax.plot(xs, sigmoid(-4 + 1.5 * xs), "--", color="C5", label="true chance")
ax.plot(centers, share, "o", color="C3", markersize=5, label="share that passed")
ax.set(xlabel="hours of practice", ylabel="chance to pass", title="How sure we can be")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# The true curve runs inside the band. At any one point it does so for nineteen classes of
# students in twenty, which is what two standard errors promise.
#
# ## What we claimed

# %%
# The naive loss breaks where a float32 cannot tell p from 1, at a logit of 25 ln 2 = 17.33, and
# ours does not: it agrees with NumPy's float64 to what MLX's float32 exponential is good for, 4e-6.
assert np.isnan(naive(mx.array(17.4), one).item())
assert np.isfinite(naive(mx.array(17.2), one).item())
grid = np.linspace(-80, 80, 1601, dtype=np.float32)
for label in (0.0, 1.0):
    exact = np.logaddexp(0, -(2 * label - 1) * grid.astype(np.float64))
    labels = mx.full(grid.shape, label)
    assert np.allclose(stable(mx.array(grid), labels), exact, rtol=1e-5, atol=0)
    assert np.allclose(mo.losses.logistic(mx.array(grid), labels), exact, rtol=1e-5, atol=0)
assert abs(loss(start, X, y).item() - np.log(2)) < 1e-12

# Along the valley floor: gradient descent is a good half of the way there after 100 steps.
way = np.linalg.norm(np.array(w) - paths["gradient descent"][-1]) / np.linalg.norm(np.array(w))
assert 0.3 < way < 0.5

# Our Newton converges quadratically: each gap is within a constant of the square of the one before,
# up to the rounding of a mean over 1,000 rows (1e-14 is generous). It ends where the gradient
# vanishes: a gap of 5e-15 before the last step means one near 1e-28 after it, and the gradient goes
# with the root of that.
assert all(after < 10 * before**2 + 1e-14 for before, after in itertools.pairwise(gaps[1:6]))
assert gaps[4] < 1e-6
assert gaps[5] < 1e-12
assert mx.abs(gradient_by_hand(w, X, y)).max() < 1e-12

# Derivatives by hand and by MLX: sums over 1,000 rows in float64.
at = mx.array([-1.0, 0.3], dtype=mx.float64)
assert mx.allclose(mx.grad(loss)(at, X, y), gradient_by_hand(at, X, y), rtol=1e-12)
assert mx.allclose(hessian_by_mlx, hessian_by_hand(w, X, y), rtol=1e-12)

# Rescaling the inputs changes nothing for Newton. Weights are known to the tolerance on the
# gradient, 1e-10, over the smallest curvature, 0.015, so to some 1e-8.
assert curvature_bound * 1000 < np.linalg.eigvalsh(np.array(minutes.T @ minutes)).max() / 4000
assert in_hours.steps == in_minutes.steps
scaled_back = in_minutes.params * mx.array([1.0, 60.0], dtype=mx.float64)
assert mx.allclose(in_hours.params, scaled_back, rtol=0, atol=2e-8)

# The race: all arrive, in this order.
steps = [results[name].steps for name in ("Newton", "L-BFGS", "momentum", "gradient descent")]
assert all(result.converged for result in results.values())
assert all(mx.allclose(result.params, w, rtol=0, atol=2e-8) for result in results.values())
assert steps[0] <= 8
assert steps[0] * 2 < steps[1] < 30
assert 100 < steps[2] < 1000 < steps[3]

# The model finds the same weights (its own tolerance is 1e-8 on the gradient) and the same errors.
assert np.allclose([model.intercept_[0], model.coef_[0, 0]], np.array(w), atol=1e-6)
assert np.allclose(np.append(model.intercept_se_, model.coef_se_), standard_errors, rtol=1e-5)

# The true curve is inside the band all along.
assert np.all(np.abs(rows @ [-4.0, 1.5] - logits) < margin)

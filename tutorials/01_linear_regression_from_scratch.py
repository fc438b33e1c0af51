# %% [markdown]
# # Linear regression from scratch
#
# Everything in this package is a variation on four parts: a **model** that predicts, a **loss**
# that says how wrong the predictions are, a **gradient** that says which way is less wrong, and
# an **optimizer** that goes there. In this tutorial we build all four by hand, on a problem whose
# true answer we know, so that nothing is left to believe. At the end, two lines replace the lot.
#
# Until then we use nothing but MLX, an array library much like NumPy with two extra talents: it
# runs on Apple's GPUs, and it differentiates what you write.

# %%
import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

looks = {"figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3}
plt.style.use(["tableau-colorblind10", looks])

# %% [markdown]
# ## The data
#
# We make 1,000 examples with two features each, from weights and an intercept of our choosing,
# and add a little noise:
#
# $$y = w_1 x_1 + w_2 x_2 + b + \varepsilon, \qquad w = (2, -3.4), \quad b = 4.2,
# \quad \varepsilon \sim \mathcal{N}(0, 0.01^2).$$
#
# The task is to find $w$ and $b$ again from $X$ and $y$ alone.

# %%
true_w, true_b, noise = mx.array([2.0, -3.4]), mx.array(4.2), 0.01

feature_key, noise_key = mx.random.split(mx.random.key(1))
X = mx.random.normal((1000, 2), key=feature_key)
y = X @ true_w + true_b + noise * mx.random.normal((1000,), key=noise_key)

fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
for j, ax in enumerate(axes):
    ax.scatter(X[:, j], y, s=6, alpha=0.6, color="C0")
    ax.set_xlabel(f"$x_{j + 1}$")
axes[0].set_ylabel("$y$")
fig.suptitle("What we are given")
plt.show()

# %% [markdown]
# The target rises with the first feature and falls, more steeply, with the second. Neither cloud
# is a thin line, although the noise is tiny: the spread in each picture is the work of the
# *other* feature. That is why the two weights have to be found together.

# %% [markdown]
# ## Model and loss
#
# The parameters live in a dictionary, and the model is one line. As the loss we take half the
# mean of the squared residuals,
#
# $$L(w, b) = \frac{1}{2n} \sum_{i=1}^{n} \left(x_i^\top w + b - y_i\right)^2 .$$
#
# The half is there so that the derivative of $\tfrac12 r^2$ is plainly $r$.


# %%
def predict(params, X):
    return X @ params["w"] + params["b"]


def loss(params, X, y):
    return 0.5 * mx.mean(mx.square(predict(params, X) - y))


start = {"w": mx.zeros(2), "b": mx.array(0.0)}
truth = {"w": true_w, "b": true_b}
print(f"loss at zero:      {loss(start, X, y).item():.3f}")
print(f"loss at the truth: {loss(truth, X, y).item():.2e}")

# %% [markdown]
# Both numbers can be foreseen. The features have variance 1, so at zero the loss should be near
# $\tfrac12 (w_1^2 + w_2^2 + b^2) = 16.6$. At the truth only the noise is left, and the loss
# should be near $\tfrac12 \cdot 0.01^2 = 5 \cdot 10^{-5}$: no line can do visibly better. When
# you write a loss of your own, predict a value or two like this. It finds mistakes before they
# cost you an afternoon.

# %% [markdown]
# ## The gradient
#
# `mx.grad` takes a function and returns another: one that computes the derivative of the first
# with respect to its first argument. The result has the shape of that argument, here a dictionary
# with `w` and `b`.
#
# For this loss the gradient is easy by hand as well. With residuals $r = Xw + b - y$,
#
# $$\frac{\partial L}{\partial w} = \frac{1}{n} X^\top r, \qquad
# \frac{\partial L}{\partial b} = \frac{1}{n} \sum_i r_i .$$

# %%
gradient = mx.grad(loss)(start, X, y)

residuals = predict(start, X) - y
by_hand = {"w": X.T @ residuals / len(y), "b": mx.mean(residuals)}

print("mx.grad:", gradient)
print("by hand:", by_hand)

# %% [markdown]
# They agree. From here on we leave derivatives to MLX; the point of it is that the next loss, the
# one nobody wants to differentiate on paper, is no harder.
#
# ## The optimizer
#
# The gradient points uphill, so we take a small step the other way:
#
# $$\theta \leftarrow \theta - \eta \, \nabla L(\theta).$$
#
# The step's length is set by the learning rate $\eta$. Too small a rate wastes steps, and too
# large a one overshoots the valley and climbs out on the far side.


# %%
def update(params, gradient, learning_rate):
    return {name: params[name] - learning_rate * gradient[name] for name in params}


after_one_step = update(start, gradient, 0.1)
print(f"{loss(start, X, y).item():.2f} -> {loss(after_one_step, X, y).item():.2f}")

# %% [markdown]
# Near enough a factor of $0.9^2 = 0.81$, and this too is no accident. Our features are
# independent with variance 1, so $L$ is a nearly round bowl. A step with rate 0.1 takes us a
# tenth of the way to its bottom, and the height of a bowl goes with the square of the distance.
#
# ## The loop
#
# Computing the gradient on all the data for every small step is wasteful: a random handful of
# rows says nearly the same. So in each **epoch** we shuffle the rows, cut them into
# **mini-batches** of 32, and take a step on each. This is stochastic gradient descent.
#
# MLX is lazy: it writes down what is to be computed, and computes when somebody asks. `mx.eval`
# asks once per step, so that the notes do not pile up.


# %%
def step(params, X_batch, y_batch):
    value, gradient = mx.value_and_grad(loss)(params, X_batch, y_batch)
    return update(params, gradient, learning_rate=0.1), value


params, path, losses = start, [start], []
rng = np.random.default_rng(0)
for _ in range(5):
    order = mx.array(rng.permutation(len(y)))
    for first in range(0, len(y), 32):
        rows = order[first : first + 32]
        params, value = step(params, X[rows], y[rows])
        mx.eval(params, value)
        path.append(params)
        losses.append(value.item())

print(f"{len(losses)} steps: w = {params['w'].tolist()}, b = {params['b'].item():.4f}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))

left.semilogy(losses, color="C0", label="loss of each batch")
left.axhline(noise**2 / 2, color="C5", linestyle="--", label=r"noise floor, $\frac{1}{2}\sigma^2$")
left.set(xlabel="step", ylabel="loss", title="Down to the noise, and no further")
left.legend()

# The loss over the plane of the two weights, with b at its true value: a round bowl.
w1, w2 = np.meshgrid(np.linspace(-1.6, 5.6, 101), np.linspace(-6.4, 0.8, 101))
height = 0.5 * ((w1 - 2.0) ** 2 + (w2 + 3.4) ** 2)
contours = right.contour(w1, w2, height, levels=[0.5, 2, 4.5, 8], colors="C3", linewidths=0.8)
right.clabel(contours, fontsize=8)
walked = np.array([point["w"].tolist() for point in path])
right.plot(*walked.T, "o-", color="C0", markersize=3, linewidth=1, label="path of $w$")
right.plot(2.0, -3.4, "*", color="C5", markersize=14, label="truth")
right.set(xlabel="$w_1$", ylabel="$w_2$", title="The way down, from above", aspect="equal")
right.grid(False)
right.legend(loc="lower left")
plt.show()

# %% [markdown]
# On the left, a straight line on a logarithmic axis: every step multiplies the loss by about
# 0.81, as the first one did, until after some 60 steps only noise is left. On the right, the same
# run seen from above. It heads straight for the bottom because the contours are circles; when
# they are long ellipses, gradient descent crawls, which is where tutorial 03 begins.
#
# How close should we expect to land? Two things keep us from the truth. The data are noisy, so
# even the best fit to these 1,000 rows is off by about $\sigma / \sqrt{n} = 3 \cdot 10^{-4}$ in
# each parameter. And each mini-batch pulls to its own optimum, so the last steps jitter around
# that fit by about $\sigma \sqrt{\eta / 2B} = 4 \cdot 10^{-4}$, with $B = 32$ rows in a batch.
# Together that is $5 \cdot 10^{-4}$, so being off by $2 \cdot 10^{-3}$, four times as much, would
# be a reason to look for a mistake. Here are the last eighty steps.

# %%
best, *_ = np.linalg.lstsq(np.column_stack([X, np.ones(len(y))]), np.array(y))
found = np.array([*params["w"].tolist(), params["b"].item()])
print("off the truth:    ", np.abs(found - [2.0, -3.4, 4.2]).round(5))
print("off the best fit: ", np.abs(found - best).round(5))

fig, ax = plt.subplots(figsize=(5.6, 4.6))
thousandths = 1e3 * (walked[-80:] - [2.0, -3.4])
ax.plot(*thousandths.T, "o-", color="C0", markersize=3, linewidth=0.5, label="last 80 steps")
ax.plot(*(1e3 * (best[:2] - [2.0, -3.4])), "D", color="C1", markersize=9, label="best fit")
ax.plot(0, 0, "*", color="C5", markersize=16, label="truth")
ax.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", title="The bottom, under the magnifying glass")
ax.set(xlabel="error of $w_1$, in thousandths", ylabel="error of $w_2$, in thousandths")
ax.legend(loc="lower left")
plt.show()

# %% [markdown]
# The frame of this picture is the $2 \cdot 10^{-3}$. The path does not settle: it wanders around
# the best fit for ever, and would come closer only if the learning rate shrank as it goes (`SGD`
# takes a function of the step in place of the number).
#
# ## Compiling the step
#
# `mx.compile` runs a function once on placeholders, writes down the operations it performs, and
# from then on replays that recording, with small operations fused into larger ones. What the
# function takes as arguments may change from call to call, but anything else it looks at (a
# global array, a Python number) is frozen as it was at the recording, so hand the data over as
# arguments, always.

# %%
compiled_step = mx.compile(step)
compiled, _ = compiled_step(start, X[:32], y[:32])
plain, _ = step(start, X[:32], y[:32])
print("same step:", all(mx.allclose(compiled[name], plain[name]).item() for name in plain))

# %% [markdown]
# ## Two lines instead
#
# You now know all that the next cell does. `mo.batches` shuffles and cuts, `mo.SGD` holds the
# rule that we called `update`, and `mo.train` is the loop, compiled. Our loss goes in as it
# stands.

# %%
import mlxopt as mo

batches = mo.batches(X, y, batch_size=32)
result = mo.train(loss, start, mo.SGD(learning_rate=0.1), batches, epochs=5)

print(result)

# %% [markdown]
# The status says `COMPLETED`, not "converged": a run over mini-batches takes the steps it was
# asked for and promises nothing else. The `value` is the mean loss over the last epoch, and it
# sits on the noise floor.
#
# Is this the same algorithm? The shuffles differ, so the two answers may differ by the jitter.
# But feed our own `step` the batches that `mo.train` saw, and the two must walk in step.

# %%
replayed = start
same_batches = mo.batches(X, y, batch_size=32)
for _ in range(5):
    for X_batch, y_batch in same_batches:
        replayed, _ = step(replayed, X_batch, y_batch)

print("mo.train:", result.params)
print("our loop:", replayed)

# %% [markdown]
# They do, to the last digits of float32. The loss is the only part that was about *lines*: change
# it and `predict`, and the same two lines fit something else. That is
# [tutorial 02](02_your_own_loss.py).
#
# ## What we claimed
#
# Every tutorial ends by checking what it said.

# %%
# At zero the loss estimates 16.6 from 1,000 rows whose squares scatter by about their own size, so
# it is good to some 1/sqrt(1000) = 3 %, and the noise floor likewise; three times that is allowed.
assert abs(loss(start, X, y).item() / 16.6 - 1) < 0.1
assert abs(loss(truth, X, y).item() / 5e-5 - 1) < 0.1

# Autodiff and the formula differ by float32 rounding (6e-8) summed over 1,000 rows.
assert mx.allclose(gradient["w"], by_hand["w"], rtol=1e-5)
assert mx.allclose(gradient["b"], by_hand["b"], rtol=1e-5)

# One step shrinks the loss by 0.81, but for features whose sample variance is 1 within 5 %.
assert abs(loss(after_one_step, X, y).item() / loss(start, X, y).item() - 0.81) < 0.02

# All but the noise is gone after 60 steps, and we land within four standard errors (2e-3).
assert losses[0] > 5
assert np.mean(losses[60:]) < 2 * noise**2 / 2
assert np.abs(found - [2.0, -3.4, 4.2]).max() < 2e-3
assert np.abs(found - best).max() < 2e-3

# Compiling reorders rounding and nothing else.
assert all(mx.allclose(compiled[name], plain[name], rtol=1e-5).item() for name in plain)

# mo.train lands as close, and on the same batches it repeats our loop: the distance between two
# float32 runs stays at rounding, since every step contracts it.
assert result.status is mo.Status.COMPLETED
assert result.steps == len(losses) == 160
assert mx.abs(result.params["w"] - true_w).max() < 2e-3
assert mx.abs(result.params["b"] - true_b) < 2e-3
assert abs(result.value / (noise**2 / 2) - 1) < 0.1
assert mx.allclose(result.params["w"], replayed["w"], rtol=1e-5)
assert mx.allclose(result.params["b"], replayed["b"], rtol=1e-5)

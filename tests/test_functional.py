"""Modules of `mlx.nn` as pure functions, and optimizers of `mlx.optimizers` in `train`."""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as mlx_optimizers
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from problems import regression

import mlxopt as mo


def network(seed=0):
    mx.random.seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


def data(rows=80):
    X, y, _ = regression(rows=rows)
    return mx.array(X.astype(np.float32)), mx.array(y.astype(np.float32))


def same(first, second, **options):
    pairs = zip(tree_flatten(first), tree_flatten(second), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other
        np.testing.assert_allclose(np.array(a), np.array(b), err_msg=name, **options)


def squared(apply):
    def loss(params, X, y):
        return mx.mean(mx.square(apply(params, X).squeeze(-1) - y))

    return loss


# --- functional ---------------------------------------------------------------------------------


def test_apply_is_the_call_of_the_module():
    module, (X, _) = network(), data()
    params, apply = mo.functional(module)
    assert apply(params, X).tolist() == module(X).tolist()
    other = network(seed=1)
    theirs = other.trainable_parameters()
    assert apply(theirs, X).tolist() == other(X).tolist() != module(X).tolist()


def test_apply_leaves_the_module_as_it_was_whatever_happens():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.pieces = [mx.ones(2), mx.zeros(3)]

        def __call__(self, x, angry=False):
            if angry:
                raise RuntimeError("no")
            return self.inner(x) * self.pieces[0]

    module = Moody()
    before = dict(tree_flatten(module.parameters()))
    params, apply = mo.functional(module)
    doubled = tree_map(lambda p: 2 * p, params)
    apply(doubled, mx.ones(2))
    mx.eval(mx.grad(lambda p: mx.sum(apply(p, mx.ones(2))))(doubled))
    mx.compile(lambda p: apply(p, mx.ones(2)))(doubled)
    with pytest.raises(RuntimeError, match="no"):
        apply(doubled, mx.ones(2), angry=True)
    after = dict(tree_flatten(module.parameters()))
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)


def test_the_gradient_is_that_of_mlx():
    module, (X, y) = network(), data()
    params, apply = mo.functional(module)
    loss = squared(apply)
    theirs = nn.value_and_grad(module, lambda m, X, y: mx.mean(mx.square(m(X).squeeze(-1) - y)))
    value, gradient = theirs(module, X, y)
    ours, our_gradient = mo.value_and_grad(loss)(params, X, y)
    assert ours.item() == value.item()
    same(our_gradient, gradient, rtol=1e-6)


def test_frozen_parameters_are_kept_and_not_trained():
    module, (X, y) = network(), data()
    module.layers[0].freeze()
    weight = module.layers[0].weight
    params, apply = mo.functional(module)
    assert [name for name, _ in tree_flatten(params)] == ["layers.2.weight", "layers.2.bias"]
    batches = mo.batches(X, y, batch_size=20)
    result = mo.train(squared(apply), params, mo.Adam(0.05), batches, epochs=20)
    assert result.value < 0.5 * squared(apply)(params, X, y)
    assert module.layers[0].weight is weight
    module.update(result.params)
    assert apply(result.params, X).tolist() == module(X).tolist()


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")  # its valley is long
def test_a_module_trains_in_both_loops_and_repeatably():
    module, (X, y) = network(), data()
    params, apply = mo.functional(module)
    runs = [
        mo.minimize(squared(apply), params, [(mo.Adam(0.01), 50), mo.LBFGS()], X, y, tol=1e-3)
        for _ in range(2)
    ]
    assert runs[0].value < 0.1 * runs[0].history.value[0]
    same(runs[0].params, runs[1].params, rtol=0)


def test_dropout_draws_in_training_mode_only():
    module = nn.Sequential(nn.Linear(3, 100), nn.Dropout(0.5))
    params, apply = mo.functional(module)
    x = mx.ones((1, 3))
    assert apply(params, x).tolist() != apply(params, x).tolist()
    module.eval()
    assert apply(params, x).tolist() == apply(params, x).tolist()
    module.train()
    drawn = []

    def loss(params, x):
        out = apply(params, x)
        return mx.mean(mx.square(out)) + 0.0 * mx.sum(out)

    rule = mo.SGD(0.0)
    mo.train(
        loss, params, rule, [x] * 150, callback=lambda info: drawn.append(info.value), epochs=1
    )
    assert len(set(drawn)) == len(drawn) > 1  # the mean changes as masks do


def test_running_statistics_stay_and_a_warning_says_so():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm(4))
    params, apply = mo.functional(module)
    assert {name for name, _ in tree_flatten(params)} == {
        "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias",
    }  # fmt: skip
    x = mx.random.normal((10, 3), key=mx.random.key(0)) + 5
    before = module.layers[1].running_mean.tolist()
    with pytest.warns(UserWarning, match=r"layers.1.running_mean.*discards"):
        out = apply(params, x)
    assert module.layers[1].running_mean.tolist() == before
    np.testing.assert_allclose(np.array(mx.mean(out, axis=0)), 0, atol=1e-5)  # by its batch
    module.eval()
    apply(params, x)  # changes nothing, and warns of nothing


def test_misuse_of_functional():
    with pytest.raises(TypeError, match="the class Linear"):
        mo.functional(nn.Linear)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"expected an mlx\.nn\.Module"):
        mo.functional(lambda x: x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Tanh has no trainable parameter"):
        mo.functional(nn.Tanh())
    frozen = network()
    frozen.freeze()
    with pytest.raises(ValueError, match="unfreeze"):
        mo.functional(frozen)
    params, apply = mo.functional(network())
    x = mx.ones((1, 5))
    with pytest.raises(ValueError, match=r"'layers.0.weight' shape \(8, 5\), got none"):
        apply(x, params)
    other = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 1)).trainable_parameters()
    with pytest.raises(ValueError, match=r"\(8, 5\), got shape \(9, 5\)"):
        apply(other, x)
    with pytest.raises(ValueError, match="'spare' no such parameter"):
        apply({**params, "spare": mx.ones(1)}, x)


# --- optimizers of mlx.optimizers -----------------------------------------------------------------

MLX = {
    "SGD": lambda: mlx_optimizers.SGD(0.05),
    "SGD nesterov": lambda: mlx_optimizers.SGD(0.02, momentum=0.9, nesterov=True),
    "RMSprop": lambda: mlx_optimizers.RMSprop(0.01),
    "Adagrad": lambda: mlx_optimizers.Adagrad(0.1),
    "AdaDelta": lambda: mlx_optimizers.AdaDelta(1.0),
    "Adam": lambda: mlx_optimizers.Adam(0.01, bias_correction=True),
    "AdamW": lambda: mlx_optimizers.AdamW(0.01, weight_decay=0.1),
    "Adamax": lambda: mlx_optimizers.Adamax(0.01),
    "Lion": lambda: mlx_optimizers.Lion(0.003, weight_decay=0.1),
    "Adafactor": lambda: mlx_optimizers.Adafactor(),
    "Muon": lambda: mlx_optimizers.Muon(0.02),
    "scheduled": lambda: mlx_optimizers.Adam(mlx_optimizers.cosine_decay(0.02, 30)),
    "joined": lambda: mlx_optimizers.SGD(
        mlx_optimizers.join_schedules(
            [mlx_optimizers.linear_schedule(1e-3, 0.1, 10), mlx_optimizers.step_decay(0.1, 0.5, 5)],
            [10],
        ),
        momentum=0.5,
    ),
    "MultiOptimizer": lambda: mlx_optimizers.MultiOptimizer(
        [mlx_optimizers.Adam(0.01), mlx_optimizers.SGD(0.05)], [lambda name, w: w.ndim > 1]
    ),
}


@pytest.mark.parametrize("name", MLX)
def test_train_with_an_mlx_optimizer_is_the_loop_of_mlx(name):
    X, y = data()
    module = network()
    params, apply = mo.functional(module)
    batches = mo.batches(X, y, batch_size=20, shuffle=False)
    optimizer = MLX[name]()
    runs = [mo.train(squared(apply), params, optimizer, batches, epochs=10) for _ in range(2)]
    same(runs[0].params, runs[1].params, rtol=0)  # repeatable: the optimizer was left alone

    theirs, gradient = MLX[name](), mx.value_and_grad(squared(apply))
    for _ in range(10):
        for start in range(0, 80, 20):
            now = module.trainable_parameters()
            _, g = gradient(now, X[start : start + 20], y[start : start + 20])
            theirs.update(module, g)
    # Muon's five products of matrices amplify rounding; the others stay at a few of it.
    tolerance = 1e-3 if name == "Muon" else 2e-5
    same(runs[0].params, module.trainable_parameters(), rtol=tolerance, atol=tolerance)


class Pair(NamedTuple):
    w: mx.array
    b: mx.array


@pytest.mark.parametrize(
    "make",
    [
        lambda w, b: {"w": w, "b": b},
        lambda w, b: {"step": w, "learning_rate": b},  # the names of the optimizer's own state
        lambda w, b: [w, (b,)],
        lambda w, b: Pair(w, b),
        lambda w, b: {"inner": Pair(w, b), "none": {}},
    ],
)
def test_an_mlx_optimizer_takes_any_tree(make):
    X, y = data()

    def loss(params, X, y):
        w, b = (leaf for _, leaf in tree_flatten(params))
        return 0.5 * mx.mean(mx.square(X @ w + b - y))

    batches = mo.batches(X, y, batch_size=20)
    start = make(mx.zeros(5), mx.array(0.0))
    runs = [
        mo.train(loss, start, rule, batches, epochs=3)
        for rule in (mlx_optimizers.SGD(0.05, momentum=0.9), mo.Momentum(0.05))
    ]
    assert type(runs[0].params) is type(start)
    same(runs[0].params, runs[1].params, rtol=1e-5, atol=1e-6)


def test_a_run_takes_up_the_state_that_the_optimizer_holds():
    X, y = data()
    batches = mo.batches(X, y, batch_size=20, shuffle=False)
    params, apply = mo.functional(network())
    used = mlx_optimizers.Adam(0.01)
    used.init(params)
    for moments in (used.state["layers"][0], used.state["layers"][2]):
        for entry in ("weight", "bias"):
            moments[entry]["v"] = moments[entry]["v"] + 100.0  # then hardly a step is taken
    held = [leaf for _, leaf in tree_flatten(used.state)]
    slow = mo.train(squared(apply), params, used, batches, epochs=3)
    fast = mo.train(squared(apply), params, mlx_optimizers.Adam(0.01), batches, epochs=3)
    assert slow.history.value[0] - slow.value < 0.1 * (fast.history.value[0] - fast.value)
    assert all(a is b for a, (_, b) in zip(held, tree_flatten(used.state), strict=True))


def test_minimize_and_rules_made_of_rules_name_what_they_take():
    with pytest.raises(TypeError, match="first-order rules"):
        mo.Grouped(mlx_optimizers.SGD(0.1), {})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="train takes first-order rules"):
        mo.train(lambda w: mx.sum(w), mx.ones(2), mlx_optimizers.SGD, [()])  # pyright: ignore

"""Losses that leave the tape: which are refused, with which words, and which are not."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo

rng = np.random.default_rng(0)
DESIGN = rng.normal(size=(20, 2))
TARGET = DESIGN @ [1.5, -0.5] + 0.1 * rng.normal(size=20)
SOLUTION = np.linalg.lstsq(DESIGN, TARGET, rcond=None)[0]
DATA = mx.array(DESIGN), mx.array(TARGET)
START = mx.array([0.3, 0.7])


def squares(p, X, y):
    return mx.mean(mx.square(X @ p - y))


# --- A derivative that is wrong, although nothing is refused --------------------------------------


def by_numpy(p, X, y):
    value: Any = np.mean(np.square(np.array(X) @ np.array(p) - np.array(y)))
    return mx.array(value)


def by_items(p, X, y):
    return mx.array(sum((X[:, 0] * p[0].item() + X[:, 1] * p[1].item() - y).tolist()) ** 2)


def partly(p, X, y):
    return squares(p, X, y) + mx.array(float(mx.sum(mx.square(p))))


def scaled(p, X, y):
    return squares(p, X, y) * p[0].item() ** 2


def weights_by_numpy(p, X, y):
    residual = X @ p - y
    return mx.mean(mx.array(1 + np.abs(np.array(residual))) * mx.square(residual))


OFF_TAPE = [by_numpy, by_items, partly, scaled, weights_by_numpy]


@pytest.mark.parametrize("loss", OFF_TAPE)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
@pytest.mark.parametrize("optimizer", [mo.LBFGS(), mo.Adam(0.1), mo.LBFGSB(lower=-9.0)])
def test_without_a_trace_differences_of_the_loss_find_it(loss, dtype, optimizer):
    data = [item.astype(dtype, stream=mx.cpu) for item in DATA]
    start = START.astype(dtype, stream=mx.cpu)
    with pytest.raises(mo.TapeError) as caught:
        mo.minimize(loss, start, optimizer, *data, compile=False)
    assert f"the gradient of {loss.__name__} is not its derivative" in str(caught.value)
    assert __file__ in str(caught.value)  # with the line


@pytest.mark.parametrize("loss", OFF_TAPE)
def test_train_and_least_squares_do_so_too(loss):
    with pytest.raises(mo.TapeError, match="is not its derivative"):
        mo.train(loss, START, mo.SGD(0.1), [DATA], compile=False)

    def residual(p, X, y):
        return mx.concatenate([X @ p - y, loss(p, X, y)[None]])

    with pytest.raises(mo.TapeError, match="is not its derivative"):
        mo.least_squares(residual, START, *DATA, compile=False)


def deliberate_constant(p, X, y):
    weight = mx.stop_gradient(1 / (1 + mx.abs(X @ p - y)))
    return mx.mean(weight * mx.square(X @ p - y))


def constant_by_numpy(p, X, y):
    residual = np.array(mx.stop_gradient(X @ p - y).astype(mx.float32))
    weights = mx.array(1 / (1 + np.abs(residual)), dtype=p.dtype)
    return mx.mean(weights * mx.square(X @ p - y))


def branch(p, X, y):
    return squares(p, X, y) if p[0].item() > -5 else mx.sum(mx.abs(p))


def kink(p, X, y):
    return mx.mean(mx.abs(X @ p - y)) + mx.sum(mx.abs(p - START))


def false_kink(p, X, y):
    # relu(x) - relu(-x) is x, but MLX's derivative of it is 0 at x = 0.
    x = p - START
    return mx.sum(mx.square(mx.maximum(x, 0) - mx.maximum(-x, 0) - 1)) + 0 * mx.sum(y)


def plateau(p, X, y):
    return 1 - mx.exp(-mx.sum(mx.square(p + 30)))


def steps(p, X, y):
    return mx.sum(mx.round(p * 3)) + squares(p, X, y)


def noisy(p, X, y):
    return squares(p, X, y) + float(rng.normal())


def drawn(p, X, y):
    return squares(p + 0.1 * mx.random.normal((2,)), X, y)


def offset(p, X, y):
    return 1e6 + squares(p, X, y)


def network(p, X, y):
    hidden = mx.maximum(X @ mx.ones((2, 50)) * mx.arange(50) + p[0], 0)
    return mx.mean(mx.square(mx.mean(hidden, axis=1) * p[1] - y))


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
@pytest.mark.parametrize(
    "loss",
    [
        deliberate_constant,
        constant_by_numpy,
        branch,
        kink,
        false_kink,
        plateau,
        steps,
        noisy,
        drawn,
        offset,
        network,
    ],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.bfloat16])
def test_differences_give_no_false_alarm(loss, dtype):
    data = [item.astype(dtype, stream=mx.cpu) for item in DATA]
    start = START.astype(dtype, stream=mx.cpu)
    mo.minimize(loss, start, mo.SGD(1e-3), *data, compile=False, max_steps=2)
    mo.train(loss, start, mo.SGD(1e-3), [data], compile=False)


@pytest.mark.parametrize("problem", mo.problems.ALL, ids=lambda one: one.name)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_no_false_alarm_around_the_starts_of_the_problems(problem, dtype):
    with mx.stream(mx.cpu):
        for shift in (0.0, 0.01, 0.3):
            start = problem.params(dtype)
            start = start * (1 + shift * mx.cos(mx.arange(start.size))) + shift
            objective = mo.optimizers._base.Objective(problem.loss, compile=False)
            objective.trace(start)
            mx.eval(objective.value_and_grad(start))


# --- What is read back without an effect ----------------------------------------------------------


def reads_data(p, X, y):
    return squares(p, X, y) * (1 if float(mx.max(X)) > 0 else -1)


def data_by_numpy(p, X, y):
    return mx.mean(mx.square(X @ p - mx.array(np.clip(np.array(y), -1e9, 1e9))))


def reads_shape_and_number(p, X, y):
    rows: Any = mx.array(X.shape[0]).item()
    return squares(p, X, y) * int(rows) / 20


def prints(p, X, y):
    print(p, f"{p[0]:.3f}", p[1].item(), p.tolist())
    return squares(p, X, y)


def logs(p, X, y):
    logging.getLogger("loss").warning("at %s", p)
    value = squares(p, X, y)
    SEEN.append(value.item())
    return value


SEEN = []
HARMLESS = [reads_data, data_by_numpy, reads_shape_and_number, prints, logs]


@pytest.mark.parametrize("loss", HARMLESS)
def test_reads_that_do_not_count_need_no_option(loss, capsys):
    assert mo.minimize(loss, START, mo.LBFGS(), *DATA).converged
    for result in (
        mo.minimize(loss, START, mo.LBFGS(), *DATA, finish="float64"),
        mo.minimize(loss, START, mo.Newton(), *DATA),
        mo.train(loss, START, mo.SGD(0.4), [DATA], epochs=60),
    ):
        np.testing.assert_allclose(result.params, SOLUTION, rtol=2e-3)
    expected = mo.grad(squares)(START, *DATA).tolist()
    for derivative in (mo.grad(loss), lambda *args: mo.value_and_grad(loss)(*args)[1]):
        assert derivative(START, *DATA).tolist() == pytest.approx(expected, rel=1e-5)

    def residual(p, X, y):
        return (X @ p - y) * mx.sqrt(loss(p, X, y) / squares(p, X, y))

    fit = mo.least_squares(residual, START, *DATA)
    np.testing.assert_allclose(fit.params, SOLUTION, rtol=2e-3)


def test_a_print_shows_the_numbers_of_each_evaluation(capsys):
    result = mo.minimize(prints, START, mo.SGD(0.1), *DATA, max_steps=3, tol=0)
    shown = capsys.readouterr().out
    assert len(set(shown.splitlines())) >= 4  # the start, and each step
    assert "traced" not in shown
    assert "inf" not in shown
    assert f"{result.params[0]:.3f}" in shown.splitlines()[-1]


def clipped(p, X, y):
    return squares(p, X, y) + max(0.0, -p[0].item())  # 0 at the start


def times_zero(p, X, y):
    return squares(p, X, y) + mx.sum(p - START) * float(p[0])  # 0 at the start


def thresholded(p, X, y):
    return squares(p, X, y) * float(p[0].item() > 0)


def as_index(p, X, y):
    count: Any = mx.sum(p > -9).item()
    return squares(p, X[: int(count) * 10], y)


def through_text(p, X, y):
    return squares(p, X, y) * float(f"{p[0]:.3f}")


@pytest.mark.parametrize("loss", [clipped, times_zero, thresholded, as_index, through_text])
def test_reads_that_count_are_refused(loss):
    line = f"line {loss.__code__.co_firstlineno + 1} "
    for call in (
        lambda: mo.minimize(loss, START, mo.LBFGS(), *DATA),
        lambda: mo.train(loss, START, mo.SGD(0.1), [DATA]),
        lambda: mo.grad(loss)(START, *DATA),
        lambda: mo.hessian(loss)(START, *DATA),
    ):
        with pytest.raises(mo.TapeError, match=line):
            call()


# --- What passes a trace and computes something else there ----------------------------------------


def broad_except(p, X, y):
    try:
        scale = float(mx.max(mx.abs(p)))
    except Exception:
        scale = 1.0
    return squares(p, X, y) * scale


def suppressed_branch(p, X, y):
    try:
        positive = bool(p[0] > -1)
    except ValueError:
        positive = False
    return squares(p, X, y) if positive else mx.sum(mx.abs(p))


def in_a_thread(p, X, y):
    with ThreadPoolExecutor(1) as pool:
        scale = max(pool.submit(p.tolist).result())
    return squares(p, X, y) * scale


def reworded(p, X, y):
    try:
        return squares(p, X, y) * p[0].item()
    except ValueError as error:
        raise ArithmeticError("no scale") from error


@pytest.mark.parametrize("loss", [broad_except, suppressed_branch, in_a_thread, reworded])
def test_a_refusal_that_the_loss_hides(loss):
    first = loss.__code__.co_firstlineno
    for call in (
        lambda: mo.minimize(loss, START, mo.LBFGS(), *DATA),
        lambda: mo.train(loss, START, mo.SGD(0.1), [DATA]),
        lambda: mo.grad(loss)(START, *DATA),
        lambda: mo.hvp(loss)(START, START, *DATA),
        lambda: mo.minimize_many(
            loss, START, mo.LBFGS(), DATA[0], mx.stack([DATA[1]] * 2), in_axes=(None, None, 0)
        ),
    ):
        with pytest.raises(mo.TapeError, match=rf"reads an array back .* line {first + 2} "):
            call()


def numpy_within_try(p, X, y):
    try:
        scale = float(np.max(np.abs(np.array(p))))
    except Exception:
        scale = 1.0
    return squares(p, X, y) * scale


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, p, X, y):
        self.calls += 1
        return squares(p, X, y) * (1 + 1 / self.calls)


class Clock(Counter):
    def __call__(self, p, X, y):
        self.calls += 1
        return squares(p, X, y) + self.calls


GROWN = []


def growing(p, X, y):
    GROWN.append(0)
    return squares(p, X, y) / len(GROWN)


def drawn_by_numpy(p, X, y):
    return squares(p, X, y) + mx.sum(p * mx.array(rng.normal(size=2)))


def drawn_dropout(p, X, y):
    kept: Any = rng.random(20) < 0.5
    return mx.mean(mx.square(X @ p - y) * mx.array(kept))


@pytest.mark.parametrize(
    "make",
    [
        Counter,
        Clock,
        lambda: drawn_by_numpy,
        lambda: drawn_dropout,
        lambda: growing,
    ],
)
def test_losses_that_change_from_call_to_call_are_refused(make):
    for call in (
        lambda: mo.minimize(make(), START, mo.LBFGS(), *DATA),
        lambda: mo.minimize(make(), START, mo.LBFGSB(lower=-0.5), *DATA),
        lambda: mo.train(make(), START, mo.SGD(0.1), [DATA]),
    ):
        with pytest.raises(mo.TapeError, match="no function of its arguments"):
            call()


def test_a_trace_that_differs_is_refused_without_knowing_why():
    for call in (
        lambda: mo.minimize(numpy_within_try, START, mo.LBFGS(), *DATA),
        lambda: mo.train(numpy_within_try, START, mo.SGD(0.1), [DATA]),
    ):
        with pytest.raises(mo.TapeError, match="within try/except"):
            call()

    def residual(p, X, y):
        return (X @ p - y) * numpy_within_try(p, X, y)

    with pytest.raises(mo.TapeError, match="in entry"):
        mo.least_squares(residual, START, *DATA)


class Scaled:
    """A loss that keeps an array of its first call."""

    def __init__(self, of):
        self.of, self.scale, self.calls = of, None, 0

    def __call__(self, p, X, y):
        self.calls += 1  # without an effect
        if self.scale is None:
            self.scale = mx.max(mx.abs({"data": X, "start": p}[self.of]))
        return squares(p, X, y) / self.scale


@pytest.mark.parametrize("of", ["data", "start"])
@pytest.mark.parametrize(
    "entry", ["minimize", "finish", "Newton", "train", "grad", "hessian", "many"]
)
def test_arrays_kept_from_the_first_call(of, entry):
    loss = Scaled(of)
    scale = np.abs(DESIGN if of == "data" else np.array(START)).max()
    if entry in ("grad", "hessian"):
        found = getattr(mo, entry)(loss)(START, *DATA)
        expected = np.array(getattr(mo, entry)(squares)(START, *DATA)) / scale
        return np.testing.assert_allclose(found, expected, rtol=1e-5)
    if entry == "train":
        result = mo.train(loss, START, mo.SGD(0.3), [DATA], epochs=100)
    elif entry == "many":
        both = mx.stack([DATA[1]] * 2)
        many = mo.minimize_many(loss, START, mo.LBFGS(), DATA[0], both, in_axes=(None, None, 0))
        result = many[1]
    else:
        optimizer = mo.Newton() if entry == "Newton" else mo.LBFGS()
        finish = "float64" if entry == "finish" else None
        result = mo.minimize(loss, START, optimizer, *DATA, finish=finish)
        assert result.certificate.is_minimum
    return np.testing.assert_allclose(result.params, SOLUTION, rtol=2e-3)


@pytest.mark.parametrize("draw", [mx.random.normal, mx.random.uniform, mx.random.gumbel])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_random_losses_agree_with_their_trace(draw, dtype):
    data = [item.astype(dtype, stream=mx.cpu) for item in DATA]
    start = START.astype(dtype, stream=mx.cpu)

    def loss(p, X, y):
        return mx.mean(mx.square((X * draw(shape=X.shape)) @ p - y)) + mx.sum(draw(shape=(3,)) * 0)

    mx.random.seed(3)
    assert mo.minimize(loss, start, mo.LBFGS(), *data).converged
    mx.random.seed(3)
    result = mo.train(loss, start, mo.SGD(0.01), [data] * 5)
    mx.random.seed(3)
    expected = mo.train(loss, start, mo.SGD(0.01), [data] * 5, compile=False)
    np.testing.assert_allclose(result.params, expected.params, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.float16, mx.bfloat16])
def test_rounding_is_no_difference(dtype):
    # At an exact fit the loss is rounding error; with a large offset the rest is.
    x = mx.linspace(0.1, 2, 60).astype(dtype, stream=mx.cpu)
    start = mx.array([1.0, -1.3], dtype=dtype)
    with mx.stream(mx.cpu):
        y = start[0] * mx.exp(start[1] * x)

    def fit(p, x, y):
        return mx.sum(mx.square(p[0] * mx.exp(p[1] * x) * mx.tanh(1e3 * x) - y))

    def canceling(p, x, y):
        return mx.sum(mx.square(p)) + 1e4 * mx.exp(p[0]) - 1e4 * mx.exp(p[0] + 0 * p[1])

    for loss in (fit, canceling):
        mo.minimize(loss, start, mo.SGD(1e-3), x, y, max_steps=1)
        mo.train(loss, start, mo.SGD(1e-3), [(x, y)])
    mo.least_squares(lambda p, x, y: p[0] * mx.exp(p[1] * x) - y, start, x, y)


def test_sums_of_many_float32_numbers_give_no_false_alarm():
    # The derivative of the rounded sum is not that of the sum: half of it along some directions.
    with mx.stream(mx.cpu):
        X = mx.random.normal((200_000, 20), key=mx.random.key(0))
        y = (X @ mx.ones(20) > 0).astype(mx.float32)

    def loss(w, X, y):
        z = X @ w
        return mx.mean(mx.logaddexp(0, z) - y * z) + 1e-3 * mx.sum(w * w)

    def in_numpy(w, X, y):
        z = np.array(X @ w)
        value: Any = np.mean(np.logaddexp(0, z) - np.array(y) * z)
        return mx.array(value) + 1e-3 * mx.sum(w * w)

    for start in (mx.zeros(20), 0.3 * mx.ones(20)):
        mo.minimize(loss, start, mo.SGD(0.1), X, y, max_steps=1, tol=0, compile=False)
        mo.minimize(loss, start, mo.SGD(0.1), X, y, max_steps=1, tol=0)
        with pytest.raises(mo.TapeError, match="is not its derivative"):
            mo.minimize(in_numpy, start, mo.SGD(0.1), X, y, compile=False)

"""The full-batch loop: how it stops, what it says, what it leaves behind."""

import os
import signal
import threading
import warnings

import mlx.core as mx
import numpy as np
import pytest
from problems import array64, regression, squared_loss

import mlxopt as mo
from mlxopt import Status

START = {"w": mx.zeros(5), "b": mx.array(0.0)}
ALL = [mo.SGD(0.1), mo.Momentum(0.02), mo.Newton(), mo.LBFGS()]


def by_name(optimizer):
    return type(optimizer).__name__


def bowl(x):
    return mx.sum(mx.square(x - 1))


@pytest.mark.parametrize("optimizer", ALL, ids=by_name)
def test_parameters_of_a_regression_are_recovered(optimizer):
    X, y, _ = regression()
    result = mo.minimize(squared_loss, START, optimizer, X, y, max_steps=5000)
    expected = np.linalg.lstsq(np.column_stack([X, np.ones(len(y))]), y)[0]
    assert result.converged
    assert result.status is Status.CONVERGED
    # The gradient is within 1e-5 and the curvature about 1.
    np.testing.assert_allclose(np.array(result.params["w"]), expected[:-1], atol=5e-5)
    np.testing.assert_allclose(result.params["b"].item(), expected[-1], atol=5e-5)


@pytest.mark.parametrize("optimizer", ALL, ids=by_name)
def test_the_result_describes_its_own_point(optimizer):
    X, y, _ = regression()
    result = mo.minimize(squared_loss, START, optimizer, X, y, tol=1e-3)
    data = mx.array(X.astype(np.float32)), mx.array(y.astype(np.float32))
    value, gradient = mx.value_and_grad(squared_loss)(result.params, *data)
    assert isinstance(result.value, float)
    assert result.value == pytest.approx(value.item(), rel=1e-5)
    largest = max(np.abs(np.array(g)).max() for g in gradient.values())
    assert result.optimality == pytest.approx(largest, abs=1e-6)
    assert result.optimality <= 1e-3
    assert result.history.step[-1] == result.steps
    assert result.history.value[-1] == result.value
    assert result.history.optimality[-1] == result.optimality
    assert (np.diff(result.history.step) > 0).all()
    assert (np.diff(result.history.seconds) >= 0).all()
    assert result.seconds > 0


@pytest.mark.parametrize("optimizer", ALL, ids=by_name)
def test_tol_zero_runs_every_step_and_completes(optimizer):
    def loss(x):  # flat at its minimum: no method reaches gradient zero soon
        return mx.sum(x**4)

    result = mo.minimize(loss, mx.array([1.0, 2.0]), optimizer, tol=0, max_steps=23)
    assert result.status is Status.COMPLETED
    assert result.steps == 23
    assert not result.converged


@pytest.mark.parametrize("optimizer", ALL, ids=by_name)
def test_a_start_at_the_minimum_converges_without_a_step(optimizer):
    result = mo.minimize(bowl, mx.ones(3), optimizer)
    assert result.converged
    assert (result.steps, result.evaluations) == (0, 1)


@pytest.mark.parametrize("optimizer", ALL, ids=by_name)
def test_a_constant_added_to_the_loss_changes_nothing(optimizer):
    X, y, _ = regression()
    params = {"w": array64(np.zeros(5)), "b": array64(0.0)}
    plain = mo.minimize(squared_loss, params, optimizer, X, y, max_steps=5000)
    lifted = mo.minimize(
        lambda *args: squared_loss(*args) + 100.0, params, optimizer, X, y, max_steps=5000
    )
    assert lifted.converged
    np.testing.assert_allclose(np.array(plain.params["w"]), np.array(lifted.params["w"]), atol=1e-7)


def test_max_steps_warns_and_says_what_to_try():
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS.*LBFGS") as record:
        result = mo.minimize(bowl, mx.zeros(3), mo.SGD(1e-4), max_steps=30)
    assert result.status is Status.MAX_STEPS
    assert result.steps == 30
    assert record[0].filename == __file__


@pytest.mark.parametrize("stride", [1, 7, 25])
@pytest.mark.parametrize("optimizer", [mo.SGD(0.01), mo.LBFGS()], ids=by_name)
def test_record_every_sets_the_stride_of_the_history(optimizer, stride):
    result = mo.minimize(
        lambda x: mx.sum(x**4), mx.ones(2), optimizer, tol=0, max_steps=30, record_every=stride
    )
    expected = [*range(0, 30, stride), 30]
    assert result.history.step.tolist() == expected


def test_the_history_is_the_same_at_any_stride():
    X, y, _ = regression()
    fine = mo.minimize(squared_loss, START, mo.SGD(0.1), X, y, tol=0, max_steps=60, record_every=1)
    coarse = mo.minimize(squared_loss, START, mo.SGD(0.1), X, y, tol=0, max_steps=60)
    np.testing.assert_allclose(fine.history.value[::10], coarse.history.value, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ALL, ids=by_name)
def test_the_callback_is_called_once_per_read_and_can_stop(optimizer):
    seen = []

    def callback(info):
        seen.append(info)
        assert set(info.params) == {"w", "b"}
        return len(seen) == 3

    X, y, _ = regression()
    result = mo.minimize(squared_loss, START, optimizer, X, y, tol=1e-30, callback=callback)
    assert result.status is Status.STOPPED
    assert [info.step for info in seen] == result.history.step.tolist()
    assert [info.value for info in seen] == result.history.value.tolist()
    assert seen[-1].evaluations == result.evaluations


def test_a_learning_rate_may_be_a_function_of_the_step():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.1

    result = mo.minimize(bowl, mx.zeros(2), mo.SGD(schedule), tol=0, max_steps=25)
    assert asked == list(range(25))
    assert all(type(step) is int for step in asked)
    np.testing.assert_allclose(np.array(result.params), 1 - 0.8**25, rtol=1e-5)
    with pytest.raises(ValueError, match=r"learning_rate\(3\) is nan"):
        mo.minimize(bowl, mx.zeros(2), mo.SGD(lambda s: 0.1 if s < 3 else float("nan")))


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [mo.SGD(50.0), mo.Momentum(50.0)], ids=by_name)
@pytest.mark.parametrize("steps", [15, 1000])
def test_a_learning_rate_far_too_high_diverges_and_returns_the_best_point(optimizer, steps):
    X, y, _ = regression()
    with pytest.warns(mo.ConvergenceWarning, match="DIVERGED.*learning rate"):
        result = mo.minimize(squared_loss, START, optimizer, X, y, max_steps=steps)
    assert result.status is Status.DIVERGED
    assert np.isfinite(result.value)
    assert result.value == result.history.value.min() == result.history.value[0]
    assert all(np.isfinite(np.array(leaf)).all() for leaf in result.params.values())


@pytest.mark.parametrize("optimizer", [mo.SGD(0.1), mo.Momentum(0.1)], ids=by_name)
def test_a_nan_on_the_way_returns_the_last_finite_point(optimizer):
    def loss(x):  # falls to the right until the log ends at 1
        return mx.sum(-x + 0.001 * mx.log(1 - x))

    with pytest.warns(mo.ConvergenceWarning, match="NONFINITE.*last finite point"):
        result = mo.minimize(loss, mx.array([0.0]), optimizer, tol=1e-9)
    assert result.status is Status.NONFINITE
    assert 0 < result.params.item() < 1
    assert result.value == pytest.approx(loss(result.params).item(), rel=1e-5)
    # The very next step leads out of the domain: nothing later than this point was finite.
    if isinstance(optimizer, mo.SGD):
        gradient = mx.grad(loss)(result.params)
        assert not np.isfinite(loss(result.params - 0.1 * gradient).item())


@pytest.mark.parametrize("optimizer", [mo.Newton(), mo.LBFGS()], ids=by_name)
def test_a_line_search_stays_inside_the_domain(optimizer):
    def loss(x):
        return mx.sum(-mx.log(x) - mx.log(1 - x) * 3)

    result = mo.minimize(loss, array64([0.999]), optimizer)
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), 0.25, atol=1e-8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("optimizer", ALL, ids=by_name)
def test_a_non_finite_loss_at_the_start_raises(optimizer, bad):
    with pytest.raises(ValueError, match=r"at the start.*check the data"):
        mo.minimize(lambda x: mx.sum(x) * bad, mx.ones(2), optimizer)
    with pytest.raises(ValueError, match="gradient is NaN"):
        mo.minimize(lambda x: mx.sum(mx.sqrt(x)), mx.zeros(2), optimizer)


@pytest.mark.parametrize(
    "optimizer", [mo.SGD(0.1), mo.Momentum(0.1), mo.Newton(), mo.LBFGS()], ids=by_name
)
def test_a_loss_without_a_minimum_is_called_unbounded(optimizer):
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        result = mo.minimize(lambda x: -mx.sum(x**4), mx.array([0.5, 0.7]), optimizer)
    assert result.status is Status.UNBOUNDED
    assert np.isfinite(result.value)


def test_a_linear_loss_is_unbounded_for_a_line_search():
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        mo.minimize(lambda x: mx.sum(x), mx.zeros(2), mo.LBFGS())


def test_an_ignored_leaf_is_warned_about_by_its_path():
    def loss(params, x):
        return mx.mean(mx.square(params["used"] * x - 1)) + 0 * mx.sum(params["zeroed"])

    params = {"used": mx.array(0.1), "nested": [{"never": mx.ones(2)}], "zeroed": mx.ones(2)}
    with pytest.warns(mo.ConvergenceWarning, match=r"params\['nested'\]\[0\]\['never'\]") as record:
        mo.minimize(loss, params, mo.SGD(0.1), [1.0, 2.0])
    # 0 · NaN is NaN: that leaf is connected, if to no effect.
    assert "zeroed" not in str(record[0].message)
    assert record[0].filename == __file__


def test_a_leaf_at_a_stationary_point_is_not_called_ignored():
    params = {"a": mx.array(0.0), "b": mx.array(2.0)}
    result = mo.minimize(lambda p: p["a"] ** 2 + (p["b"] - 1) ** 2, params, mo.LBFGS())
    assert result.converged


def test_a_tolerance_below_the_rounding_floor_ends_at_it():
    X, y, _ = regression(rows=1000)
    for optimizer in (mo.LBFGS(), mo.Newton(), mo.SGD(0.5)):
        result = mo.minimize(squared_loss, START, optimizer, X, y, tol=1e-12, max_steps=20_000)
        assert result.converged
        assert "rounding of float32" in result.reason
        assert 1e-12 < result.optimality < 1e-5


def test_a_kink_is_no_convergence():
    def loss(x):  # slopes 2 and 1 at each kink, which lies between two float32 numbers
        return mx.sum(mx.maximum(2 * (x - 0.1), 0.1 - x))

    with pytest.warns(mo.ConvergenceWarning, match="not smooth"):
        result = mo.minimize(loss, mx.array([1.0, -0.3]), mo.LBFGS())
    assert result.status is Status.NO_PROGRESS
    np.testing.assert_allclose(np.array(result.params), 0.1, atol=1e-2)


def test_a_wrong_derivative_is_no_convergence():
    @mx.custom_function
    def square(x):
        return mx.sum(x * x)

    @square.vjp
    def square_vjp(primals, cotangent, output):
        return -2 * primals * cotangent  # the wrong sign

    with pytest.warns(mo.ConvergenceWarning, match="check the derivative"):
        result = mo.minimize(lambda x: square(x), mx.array([1.0, 2.0]), mo.LBFGS())  # pyright: ignore
    assert result.status is Status.NO_PROGRESS
    assert result.params.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("optimizer", ALL, ids=by_name)
def test_ctrl_c_returns_the_last_finite_point(optimizer):
    def callback(info):
        if info.step >= 2:
            raise KeyboardInterrupt

    def loss(x):
        return mx.sum(x**4)

    result = mo.minimize(loss, mx.array([3.0, 2.0]), optimizer, tol=0, callback=callback)
    assert result.status is Status.INTERRUPTED
    assert np.isfinite(result.value)
    assert result.value == pytest.approx(loss(result.params).item(), rel=1e-5)


def test_a_real_ctrl_c_while_running():
    # A test run in the background of a shell starts with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        result = mo.minimize(bowl, mx.zeros(3), mo.SGD(1e-9), tol=0, max_steps=1_000_000)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert result.status is Status.INTERRUPTED
    assert 0 < result.steps < 1_000_000
    assert "keyboard" in repr(result)


def test_an_error_that_ctrl_c_has_caused_does_not_hide_it():
    # At a terminal the compiler that MLX runs gets the signal too, and its death is reported first.
    def callback(info):
        if info.step == 2:
            threading.Timer(0.01, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            raise RuntimeError("the compiler was interrupted")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = mo.minimize(bowl, mx.zeros(3), mo.SGD(1e-3), record_every=1, callback=callback)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.status is Status.INTERRUPTED


# --- data, dtypes, devices, random numbers -----------------------------------------------------


def test_float64_parameters_run_in_float64_on_the_cpu():
    X, y, _ = regression(rows=50)
    params = {"w": array64(np.zeros(5)), "b": array64(0.0)}
    result = mo.minimize(squared_loss, params, mo.LBFGS(), X, y, tol=1e-12)
    expected = np.linalg.lstsq(np.column_stack([X, np.ones(len(y))]), y)[0]
    assert result.params["w"].dtype == mx.float64
    np.testing.assert_allclose(np.array(result.params["w"]), expected[:-1], atol=1e-11)


def test_data_may_be_numpy_lists_or_frames():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    X, y, _ = regression()
    reference = mo.minimize(squared_loss, START, mo.Newton(), X, y).params["w"].tolist()
    for make in (
        lambda a: a.tolist(),
        lambda a: mx.array(a.astype(np.float32)),
        lambda a: pandas.DataFrame(a) if a.ndim == 2 else pandas.Series(a),
        lambda a: polars.DataFrame(a) if a.ndim == 2 else polars.Series(a),
    ):
        result = mo.minimize(squared_loss, START, mo.Newton(), make(X), make(y))
        assert result.params["w"].tolist() == pytest.approx(reference, abs=1e-6)


def test_a_random_loss_sees_one_fixed_draw_and_leaves_the_generator_alone():
    mx.random.seed(7)
    expected = mx.random.normal((50,))
    after = mx.random.normal((1,)).item()

    def loss(x):
        return mx.mean(mx.square(x - mx.random.normal((50,))))

    for optimizer in (mo.LBFGS(), mo.SGD(0.3)):
        for compile in (True, False):
            mx.random.seed(7)
            result = mo.minimize(loss, mx.array(0.0), optimizer, compile=compile)
            assert result.converged
            assert result.params.item() == pytest.approx(mx.mean(expected).item(), abs=1e-5)
            mx.random.normal((50,))
            assert mx.random.normal((1,)).item() == after


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"optimizer": mo.SGD}, TypeError, r"the class SGD \(call it: SGD\(\)\)"),
        ({"optimizer": "lbfgs"}, TypeError, "mo.LBFGS()"),
        ({"tol": -1}, ValueError, "zero or more"),
        ({"tol": "small"}, TypeError, "number"),
        ({"max_steps": 0}, ValueError, "1 or more"),
        ({"max_steps": 1.5}, TypeError, "whole number"),
        ({"record_every": 0}, ValueError, "1 or more"),
        ({"loss": None}, TypeError, "function"),
        ({"callback": True}, TypeError, "callback"),
        ({"params": mo.SGD(), "optimizer": mx.zeros(2)}, TypeError, "comes third"),
    ],
)
def test_misuse_raises_at_the_door(change, error, words):
    arguments = {"loss": bowl, "params": mx.zeros(2), "optimizer": mo.SGD(), **change}
    loss, params, optimizer = (arguments.pop(name) for name in ("loss", "params", "optimizer"))
    with pytest.raises(error, match=words):
        mo.minimize(loss, params, optimizer, **arguments)


# --- what a person sees ------------------------------------------------------------------------


def test_the_result_prints_at_a_prompt_and_in_a_notebook():
    X, y, _ = regression()
    result = mo.minimize(squared_loss, START, mo.LBFGS(), X, y)
    text, page = repr(result), result._repr_html_()
    for word in ("CONVERGED", "value", "optimality", "['w']", "evaluations"):
        assert word in text
        assert word.replace("'", "&#x27;") in page
    many = mo.minimize(lambda p: mx.sum(mx.square(p)), mx.ones((40, 3)), mo.SGD(0.4))
    assert "(40, 3) float32" in repr(many)


def test_the_result_draws_itself(tmp_path):
    from matplotlib import pyplot as plt

    result = mo.minimize(bowl, mx.zeros(2), mo.SGD(0.1))
    ax = result.plot()
    assert ax.get_xlabel() == "step"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), result.history.step)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), result.history.value)
    _, own = plt.subplots()
    assert result.plot(own) is own
    plt.close("all")


def test_progress_shows_a_bar_and_nothing_else_is_printed(capsys):
    mo.minimize(bowl, mx.zeros(2), mo.SGD(0.1), progress=False)
    assert capsys.readouterr() == ("", "")
    mo.minimize(bowl, mx.zeros(2), mo.SGD(1e-3), tol=0, max_steps=50, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "minimize" in err


def test_a_converged_result_has_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mo.minimize(bowl, mx.zeros(2), mo.LBFGS())


def test_results_compare_as_objects():
    result = mo.minimize(bowl, mx.zeros(2), mo.LBFGS())
    assert result == result
    assert result != mo.minimize(bowl, mx.zeros(2), mo.LBFGS())


def test_the_probe_for_ignored_leaves_keeps_the_draw_and_bears_an_error():
    def loss(params):  # branches on a value, which NaN breaks
        assert int(params["a"].item()) >= 0
        return mx.square(params["b"] - 1.0) + 0 * params["a"]

    start = {"a": mx.array(1.0), "b": mx.array(0.0)}
    assert mo.minimize(loss, start, mo.LBFGS(), compile=False).converged


@pytest.mark.parametrize("compile", [True, False])
def test_a_line_search_backs_away_from_a_factorization_that_fails(compile):
    target = array64([[2.0, 0.3], [0.3, 1.0]])

    def loss(x):  # -log det X + tr(X / target), whose minimum is at X = target
        X = mx.stack([mx.stack([x[0], x[1]]), mx.stack([x[1], x[2]])])
        return mx.sum(X * mo.linalg.inv(target)) - mo.linalg.logdet(X)

    start = array64([0.05, 0.0, 0.05])
    result = mo.minimize(loss, start, mo.GradientDescent(), compile=compile)
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), [2.0, 0.3, 1.0], rtol=1e-7)
    with pytest.raises((mo.linalg.LinAlgError, ValueError)):
        mo.minimize(loss, -start, mo.LBFGS(), compile=compile)

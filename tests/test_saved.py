"""States: a run that is taken up again is the run that was never cut, in memory and by a file."""

import dataclasses
import json
import math
import pickle
import subprocess
import sys
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.optimizers as mlx_optimizers
import numpy as np
import pytest
from mlx.utils import tree_map
from problems import regression, squared_loss

import mlxopt as mo
from mlxopt import Status
from mlxopt._epochs import TrainState
from mlxopt._residual_objective import ResidualObjective
from mlxopt._saved import _checksum, _known, load, save
from mlxopt._tree import leaves

schedules = mo.schedules
RULES = {
    "SGD": mo.SGD(1e-3),
    "Momentum": mo.Momentum(1e-4),
    "Nesterov": mo.Momentum(1e-4, nesterov=True),
    "RMSProp": mo.RMSProp(1e-3),
    "Adagrad": mo.Adagrad(1e-2),
    "Adam": mo.Adam(1e-2),
    "AdamW": mo.AdamW(schedules.warmup(schedules.cosine(0.1, steps=100), steps=20)),
    "Lion": mo.Lion(schedules.one_cycle(0.01, steps=100)),
    "Prodigy": mo.Prodigy(distance=0.01),
    "Clipped": mo.Clipped(mo.Adam(schedules.exponential(0.05, factor=0.97)), norm=1.0),
    "Grouped": mo.Grouped(
        mo.Adam(schedules.step(0.01, every=10)),
        {"*'b'*": mo.Clipped(mo.Momentum(1e-3), value=3.0), "*'c'*": None},
    ),
    "plateau": mo.Momentum(schedules.reduce_on_plateau(3e-3, factor=0.5, patience=1)),
}
METHODS = {
    "GradientDescent": mo.GradientDescent(),
    "ConjugateGradient": mo.ConjugateGradient("polak-ribiere"),
    "BFGS": mo.BFGS(),
    "LBFGS": mo.LBFGS(memory=3),
    "LBFGSB": mo.LBFGSB(lower={"a": -2.0, "b": None, "c": mx.array(-9.0)}, upper=0.9, memory=4),
    "Newton": mo.Newton(),
    "NewtonCG": mo.NewtonCG(),
    "TrustRegion": mo.TrustRegion(radius=0.3),
    "TrustRegion by CG": mo.TrustRegion(exact=False),
    "ProximalGradient": mo.ProximalGradient(
        {"a": mo.prox.L1(0.1), "b": mo.prox.Box(-3, np.array([0.7, 2.0])), "c": None}
    ),
}
SUMS = {"GaussNewton": mo.GaussNewton(), "LevenbergMarquardt": mo.LevenbergMarquardt(radius=0.1)}


def residual(params):
    """Rosenbrock's, chained through a tree of five parameters."""
    x = mx.concatenate([params["b"], params["a"][0].reshape(-1), params["c"].reshape(1)])
    return mx.concatenate([10 * (x[1:] - mx.square(x[:-1])), 1 - x[:-1]])


def valley(params):
    return 0.5 * mx.sum(mx.square(residual(params)))


def start(dtype=mx.float32):
    numbers = {"a": [np.full((1, 2), -0.8)], "b": np.array([-1.2, 0.6]), "c": np.array(0.5)}
    with mx.stream(mx.cpu):
        return tree_map(lambda x: mx.array(x, dtype=mx.float64).astype(dtype), numbers)


def bits(array) -> Any:
    with mx.stream(mx.cpu):
        flat = array.reshape(-1).view(mx.uint8) if isinstance(array, mx.array) else array
        return np.array(flat).tobytes(), str(array.dtype), array.shape


def exact(item: Any) -> Any:
    """A state as nested tuples that == compares bit for bit."""
    if isinstance(item, (mx.array, np.ndarray, np.generic)):
        columns = isinstance(item, np.ndarray) and item.flags.fnc  # BLAS rounds as this says
        return type(item).__name__, bits(item), columns
    if isinstance(item, dict):
        return "dict", [(key, exact(child)) for key, child in item.items()]
    if isinstance(item, (list, tuple)):
        return type(item).__name__, [exact(child) for child in item]
    if isinstance(item, float):
        return item.hex()
    return type(item).__name__, item


def through_file(optimizer, state, path):
    save(path, optimizer, state)
    return load(path)


def test_the_lists_hold_every_optimizer():
    ours = [getattr(mo.optimizers, name) for name in mo.optimizers.__all__]
    ours = {one for one in ours if dataclasses.is_dataclass(one)} - {mo.optimizers.FirstOrder}
    assert ours == {type(one) for one in [*RULES.values(), *METHODS.values(), *SUMS.values()]}


@pytest.mark.parametrize("by_file", [False, True], ids=["in memory", "by a file"])
@pytest.mark.parametrize("name", [*RULES, *METHODS])
def test_a_run_cut_in_two_is_the_whole_run(name, by_file, tmp_path):
    optimizer = {**RULES, **METHODS}[name]
    # The others converge in some dozen steps; 7 is inside of a line search for most of them.
    cut, total = (50, 100) if name in RULES else (7, 16)

    def run(steps, begin=None, **options):
        found = mo.minimize(
            valley, begin or start(), optimizer, tol=0, max_steps=steps, compile=False, **options
        )
        assert found.status is Status.COMPLETED
        return found

    whole, first = run(total), run(cut)
    state = first.state
    if by_file:
        loaded, state = through_file(optimizer, state, tmp_path / "state")
        assert repr(loaded) == repr(optimizer)
        assert exact(state) == exact(first.state)
        optimizer = loaded
    second = run(total - cut, init=state)
    assert exact(second.state) == exact(whole.state)
    assert (
        second.history.value.tolist() == whole.history.value[-len(second.history.value) :].tolist()
    )
    assert (second.steps, second.evaluations) == (total - cut, total - cut + 1)
    remembers = name not in {"SGD", "GradientDescent", "Newton", "NewtonCG", "TrustRegion by CG"}
    if remembers:  # that state was needed for it
        assert exact(run(total - cut, first.params).params) != exact(whole.params)


@pytest.mark.parametrize("name", SUMS)
def test_methods_for_sums_of_squares_resume_from_a_file(name, tmp_path):
    def twice(params):  # m > 2 p: the Jacobian is then computed by columns
        return mx.concatenate([residual(params), 0.5 * residual(params)])

    optimizer, objective = SUMS[name], ResidualObjective(twice)
    with mx.stream(mx.cpu):
        state = optimizer.init(objective, start(mx.float64))
        for _ in range(5):
            state = optimizer.step(objective, state)
        loaded, other = through_file(optimizer, state, tmp_path / "state")
        assert loaded == optimizer
        assert exact(other) == exact(state)
        for _ in range(5):
            state, other = (optimizer.step(objective, one) for one in (state, other))
        assert exact(other) == exact(state)
        assert state.status is None


@pytest.mark.parametrize("compiled", [False, True])
def test_long_runs_too_though_one_takes_ten_steps_a_call(compiled):
    X, y, _ = regression()

    def run(steps, init=None):
        begin = {"w": mx.zeros(5), "b": mx.array(0.0)}
        options: Any = {"tol": 0, "max_steps": steps, "init": init, "compile": compiled}
        return mo.minimize(squared_loss, begin, mo.Adam(1e-3), X, y, **options)

    whole = run(600)
    assert exact(run(300, run(300).state).params) == exact(whole.params)


def test_an_optimizer_of_mlx_resumes_with_the_state_alone(tmp_path):
    optimizer: Any = mlx_optimizers.Adam(mlx_optimizers.cosine_decay(0.1, 100))
    whole = mo.minimize(valley, start(), optimizer, tol=0, max_steps=60)
    first = mo.minimize(valley, start(), optimizer, tol=0, max_steps=30)
    with pytest.raises(TypeError, match=r"mo\.save\(path, None, state\)"):
        save(tmp_path / "state", optimizer, first.state)
    nothing, state = through_file(None, first.state, tmp_path / "state")
    assert nothing is None
    second = mo.minimize(valley, start(), optimizer, tol=0, max_steps=30, init=state)
    assert exact(second.params) == exact(whole.params)


# --- what a run leaves behind ------------------------------------------------------------------


def test_a_run_that_is_killed_resumes_from_its_last_checkpoint(tmp_path):
    path, optimizer = tmp_path / "run.safetensors", mo.LBFGS()
    whole = mo.minimize(valley, start(mx.float64), optimizer, tol=0, max_steps=30)

    class Killed(Exception):
        pass

    def callback(info):
        assert exact(info.state.params) == exact(info.params)
        if info.step % 5 == 0:
            save(path, optimizer, info.state)
        if info.step == 13:
            raise Killed

    with pytest.raises(Killed):
        mo.minimize(valley, start(mx.float64), optimizer, callback=callback)
    optimizer, state = load(path)
    resumed = mo.minimize(valley, start(mx.float64), optimizer, init=state, tol=0, max_steps=20)
    assert exact(resumed.state) == exact(whole.state)
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]
    # The drop so far is that since the checkpoint.
    assert mo.minimize(valley, start(mx.float64), optimizer, init=state).converged


def test_another_process_reads_it(tmp_path):
    # Where nothing of the optimizers was imported yet.
    path, optimizer = tmp_path / "state", RULES["Grouped"]
    first = mo.minimize(valley, start(), optimizer, tol=0, max_steps=10)
    save(path, optimizer, first.state)
    code = "import sys; from mlxopt._saved import load, save; print(load(sys.argv[1])[0])\n"
    code += "save(sys.argv[2], *load(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "again")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == repr(optimizer)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert exact(load(tmp_path / "again")[1]) == exact(first.state)


def test_a_run_killed_while_it_saves_leaves_the_last_file(tmp_path, monkeypatch):
    path = tmp_path / "state"
    first = mo.minimize(valley, start(), mo.SGD(1e-3), tol=0, max_steps=10)
    save(path, None, first.state)

    def dying(file, *_):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mx, "save_safetensors", dying)
        with pytest.raises(KeyboardInterrupt):
            save(path, None, first.state)
    assert exact(load(path)[1]) == exact(first.state)
    assert list(tmp_path.iterdir()) == [path]


def test_the_best_point_of_a_run_that_diverged_can_be_resumed():
    with pytest.warns(mo.ConvergenceWarning, match="DIVERGED"):
        wild = mo.minimize(valley, start(), mo.Momentum(0.05), tol=0, max_steps=12, record_every=1)
    assert exact(wild.state.params) == exact(wild.params)
    assert wild.state.step < wild.steps
    calm = mo.minimize(valley, start(), mo.Momentum(1e-4), tol=0, max_steps=20, init=wild.state)
    assert calm.state.step == wild.state.step + 20
    assert calm.history.value[0] == wild.value
    assert calm.value < wild.value


def test_a_status_does_not_keep_a_run_from_resuming():
    def loss(x):
        return mx.sum(mx.sqrt(x))

    with pytest.warns(mo.ConvergenceWarning, match="NONFINITE"):
        ended = mo.minimize(loss, mx.array([1.0]), mo.SGD(1.0), tol=0, max_steps=9)
    assert ended.state.status is Status.NONFINITE
    resumed = mo.minimize(loss, mx.array([1.0]), mo.SGD(0.01), tol=0, max_steps=3, init=ended.state)
    assert resumed.status is Status.COMPLETED
    assert resumed.value < ended.value


def test_in_a_list_the_state_is_that_of_the_first_optimizer():
    stages: list[Any] = [(mo.Adam(1e-2), 20), (mo.LBFGS(), 5)]
    whole = mo.minimize(valley, start(), stages, tol=0)
    assert type(whole.state).__name__ == "DescentState"
    first = mo.minimize(valley, start(), mo.Adam(1e-2), tol=0, max_steps=10)
    rest: list[Any] = [(mo.Adam(1e-2), 10), (mo.LBFGS(), 5)]
    resumed = mo.minimize(valley, start(), rest, tol=0, init=first.state)
    assert exact(resumed.state) == exact(whole.state)
    with pytest.raises(TypeError, match="DescentState; Adam resumes from a FirstOrderSt"):
        mo.minimize(valley, start(), stages, init=whole.state)


def test_after_a_finish_the_state_is_in_float64():
    X, y, _ = regression()
    begin = {"w": mx.zeros(5), "b": mx.array(0.0)}
    done = mo.minimize(squared_loss, begin, mo.LBFGS(), X, y, finish="float64")
    assert exact(done.state.params) == exact(done.params)
    assert done.params["w"].dtype == mx.float64
    half = mo.minimize(squared_loss, begin, mo.LBFGS(), X, y, tol=0, max_steps=4)
    resumed = mo.minimize(squared_loss, begin, mo.LBFGS(), X, y, finish="float64", init=half.state)
    np.testing.assert_allclose(
        np.array(resumed.params["w"]), np.array(done.params["w"]), rtol=1e-12
    )
    assert "state" not in repr(done)


# --- train -------------------------------------------------------------------------------------

BEGIN = {"w": mx.zeros(5), "b": mx.array(0.0)}
TRAINED = [mo.Adam(schedules.cosine(0.01, steps=140)), RULES["plateau"], mo.Prodigy()]


def batches(**options):
    X, y, _ = regression()
    return mo.batches(X, y, batch_size=10, **options)


@pytest.mark.parametrize("rule", TRAINED, ids=lambda rule: type(rule).__name__)
def test_epochs_resume_in_their_order(rule, tmp_path):
    whole = mo.train(squared_loss, BEGIN, rule, batches(), epochs=7)
    first = mo.train(squared_loss, BEGIN, rule, batches(), epochs=3)
    loaded, state = through_file(rule, first.state, tmp_path / "state")
    assert loaded == rule
    assert (state.epoch, state.step, state.batch) == (3, 60, 0)
    second = mo.train(squared_loss, BEGIN, loaded, batches(), epochs=4, init=state)
    assert exact(second.state) == exact(whole.state)
    assert (second.steps, second.value) == (80, whole.value)
    assert second.history.step[-1] == 80
    again = mo.train(squared_loss, first.params, rule, batches(), epochs=4)
    assert exact(again.params) != exact(whole.params)


@pytest.mark.parametrize("kind", [list, mo.batches], ids=["a list", "mo.batches"])
def test_an_epoch_that_was_under_way_is_finished(kind, tmp_path):
    X, y, _ = regression(rows=700)
    loader = mo.batches(X, y, batch_size=10)
    loader = list(loader) if kind is list else loader
    rule = mo.Adam(schedules.reduce_on_plateau(0.01, patience=1))
    whole = mo.train(squared_loss, BEGIN, rule, loader, epochs=4)
    path = tmp_path / "state"

    def callback(info):
        save(path, rule, info.state)
        return info.step > 140  # the first look in epoch 3, at 50 of its 70 batches

    stopped = mo.train(squared_loss, BEGIN, rule, loader, epochs=4, callback=callback)
    assert stopped.status is Status.STOPPED
    state = load(path)[1]
    assert isinstance(state, TrainState)
    assert (state.epoch, state.batch, state.step) == (2, 50, 190)
    assert state.value == stopped.value
    resumed = mo.train(squared_loss, BEGIN, rule, loader, epochs=2, init=state)
    assert exact(resumed.params) == exact(whole.params)
    assert resumed.state.losses == pytest.approx(whole.state.losses, rel=1e-12)


def test_an_epoch_whose_last_batch_was_taken_is_closed():
    seen = []
    loader = batches()
    whole = mo.train(squared_loss, BEGIN, mo.Adam(), loader, epochs=2, callback=seen.append)
    last = seen[-1].state
    assert (last.epoch, last.batch) == (1, 20)
    closed = mo.train(squared_loss, BEGIN, mo.Adam(), loader, init=last)
    assert (closed.steps, closed.value, len(closed.history.step)) == (0, whole.value, 0)
    assert exact(closed.state) == exact(whole.state)
    more = mo.train(squared_loss, BEGIN, mo.Adam(), loader, epochs=2, init=last)
    three = mo.train(squared_loss, BEGIN, mo.Adam(), loader, epochs=3)
    assert exact(more.state) == exact(three.state)


# --- what a file holds -------------------------------------------------------------------------


class Line(NamedTuple):
    slope: Any
    offset: Any


@dataclasses.dataclass(frozen=True)
class Halving:
    """A schedule of the user's."""

    first: float

    def __call__(self, step):
        return self.first / 2**step


@dataclasses.dataclass(frozen=True)
class Mine(mo.SGD):
    """A rule of the user's."""

    factor: float = 0.5


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64], ids=str)
@pytest.mark.parametrize("optimizer", [mo.Adam(0.1), mo.LBFGS(), mo.ProximalGradient(None)])
def test_every_dtype_and_tree_comes_back(optimizer, dtype, tmp_path):
    third = mx.array(1 / 3, dtype=dtype)  # with no short end in any base
    params = {
        "lines": [Line(third, (mx.full((2, 1), 0.1, dtype=dtype), third[None])), {}],
        "ä 'quoted' \"key\"": mx.array(-0.0, dtype=dtype),
        7: mx.array([1e-7, -3.0, 60000.0], dtype=dtype),
    }

    def loss(p) -> Any:
        line = p["lines"][0]
        total = [line.slope, line.offset[0], line.offset[1], p["ä 'quoted' \"key\""], p[7] / 60000]
        return sum(mx.sum(mx.square(part.astype(mx.float32) - 0.4)) for part in total)

    result = mo.minimize(loss, params, optimizer, tol=0, max_steps=3)
    path = tmp_path / "state"
    save(path, optimizer, result.state)
    with pytest.raises(ValueError, match=r"class Line .* slope, offset, .*classes=\[Line\]"):
        load(path)
    loaded, state = load(path, classes=[Line])
    assert loaded == optimizer
    assert exact(state) == exact(result.state)
    assert type(state.params["lines"][0]) is Line
    more = [
        mo.minimize(loss, params, optimizer, tol=0, max_steps=3, init=one).state
        for one in (result.state, state)
    ]
    assert exact(more[0]) == exact(more[1])


@pytest.mark.parametrize(("name", "most"), [("Adam", 1), ("LBFGS", 1), ("ProximalGradient", 2)])
def test_a_state_is_a_tree_and_its_file_little_larger(name, most, tmp_path):
    # After a restart the model of ProximalGradient is at `params`, and stored again.
    path, optimizer = tmp_path / "state", {**RULES, **METHODS}[name]
    for steps in range(1, 9):
        state = mo.minimize(valley, start(), optimizer, max_steps=steps, tol=0).state
        assert exact(through_file(None, state, path)[1]) == exact(state)
        sizes = [(id(leaf), leaf.nbytes) for leaf in leaves(state) if hasattr(leaf, "nbytes")]
        stored: Any = mx.load(str(path), format="safetensors")
        assert "state.params['a'][0]" in stored
        assert sorted(leaf.nbytes for leaf in stored.values()) == sorted(n for _, n in sizes)
        assert sum(size for _, size in sizes) <= most * sum(dict(sizes).values())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", "?bBhHiIqQefd")
def test_arrays_of_numpy(dtype, order, tmp_path):
    array = np.arange(6).astype(dtype).reshape((2, 3), order=order)
    state = mo.minimize(valley, start(), mo.SGD(1e-4), max_steps=1, tol=0).state
    held = [array, array[:, ::2], array[:0], array[0, 0], np.array(array[1, 1]), math.nan, -0.0]
    loaded = through_file(held, state, tmp_path / "state")[0]
    assert exact(loaded) == exact(held)
    assert loaded[0].flags.writeable


@pytest.mark.parametrize("dtype", [">f8", ">i4", "complex128", "longdouble"])
def test_arrays_that_mlx_does_not_hold_are_refused(dtype, tmp_path):
    array = np.ones(2, dtype)
    state = mo.minimize(valley, start(), mo.SGD(1e-4), max_steps=1, tol=0).state
    if array.dtype == np.float64:
        pytest.skip("a long double is a double here")
    with pytest.raises(TypeError, match=r"numpy\.ndarray, which cannot be saved"):
        save(tmp_path / "state", array, state)


def test_classes_of_the_user(tmp_path):
    path, rule = tmp_path / "state", Mine(Halving(1e-4), factor=0.25)
    state = mo.minimize(valley, start(), rule, tol=0, max_steps=2).state
    save(path, rule, state)
    assert load(path, [Mine, Halving])[0] == rule
    with pytest.raises(ValueError, match=r"Halving with the fields first, .*\[Halving\]"):
        load(path)

    @dataclasses.dataclass(frozen=True)
    class Changed:
        start: float

    Changed.__name__ = "Halving"
    with pytest.raises(TypeError, match=r"optimizer\[1\] is of a second class called Halving"):
        save(path, [Halving(1.0), Changed(1.0)], state)
    with pytest.raises(ValueError, match=r"fields first; the class has start now"):
        load(path, [Mine, Changed])
    with pytest.raises(ValueError, match="two of the name Halving"):
        load(path, [Halving, Changed])
    with pytest.raises(TypeError, match="expected NamedTuples and dataclasses"):
        load(path, cast(Any, ["Halving"]))


def test_a_class_of_the_user_is_not_taken_for_one_of_ours(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class SGD(mo.SGD):
        pass

    path, state = (
        tmp_path / "state",
        mo.minimize(valley, start(), mo.SGD(1e-4), max_steps=1, tol=0).state,
    )
    save(path, SGD(0.1), state)
    with pytest.raises(ValueError, match=r"classes=\[SGD\]"):
        load(path)
    assert type(load(path, [SGD])[0]) is SGD


def test_names_are_looked_up_among_values_alone():
    # A file can name these and nothing else, and each is a bare record.
    for cls in _known().values():
        assert cls.__module__.startswith("mlxopt.")
        assert dataclasses.is_dataclass(cls) or issubclass(cls, tuple)
    used = [*RULES.values(), *METHODS.values(), *SUMS.values()]
    assert {f"mlxopt.{type(one).__name__}" for one in used} <= set(_known())


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (mo.SGD(lambda step: 0.1), r"optimizer\.learning_rate is the function .*mo\.schedules"),
        (mo.Newton(hessian=lambda p: mx.eye(5)), r"optimizer\.hessian is the function .*None, st"),
        (mo.Clipped(mo.SGD(lambda step: 0.1), norm=1), r"optimizer\.rule\.learning_rate is the f"),
        (mo.LBFGS, r"optimizer is the function LBFGS|class LBFGS"),
        ({"a": {1, 2}}, r"optimizer\['a'\] is of type builtins\.set"),
        ({1.5: 1}, r"key 1\.5"),
        (np.array(["text"]), "numpy.ndarray"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_cannot_be_saved_is_told(optimizer, words, tmp_path):
    state = mo.minimize(valley, start(), mo.SGD(1e-4), max_steps=1, tol=0).state
    with pytest.raises(TypeError, match=words):
        save(tmp_path / "state", optimizer, state)
    assert not list(tmp_path.iterdir())


def test_arguments_in_the_wrong_places(tmp_path):
    path, result = (
        tmp_path / "state",
        mo.minimize(valley, start(), mo.SGD(1e-4), max_steps=1, tol=0),
    )
    with pytest.raises(TypeError, match=r"result\.state"):
        save(path, mo.SGD(), result)
    with pytest.raises(TypeError, match="comes before it"):
        save(path, result.state, mo.SGD())
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "missing" / "state", None, result.state)


# --- what is no file of ours -------------------------------------------------------------------


def test_foreign_files(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        load(path)
    for content in (b"", b"some text, long enough to hold a header", b"\x80\x04."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file is no file of mo\.save, or it is damaged"):
            load(path)
    mx.save_safetensors(str(tmp_path / "weights.safetensors"), {"w": mx.ones(2)})
    with pytest.raises(ValueError, match=r"has no mark of mo\.save"):
        load(tmp_path / "weights.safetensors")
    mx.save_safetensors(str(path) + ".safetensors", {"w": mx.ones(2)}, {"mlxopt": "3"})
    with pytest.raises(ValueError, match=r"has format 3; expected .* 2\. Another version"):
        load(str(path) + ".safetensors")


def test_a_file_of_mlxopt_0_1_0_is_refused_with_advice(tmp_path):
    # As mlxopt 0.1.0 wrote it after mo.save(path, mo.SGD(0.1), state).
    tree = {
        "optimizer": {"at": 0},
        "state": {"at": 6},
        "nodes": [
            {"class": "SGD", "fields": {"learning_rate": 0.1}},
            {"array": "state.params['w']", "float64": True},
            {"dict": [["w", {"at": 1}]]},
            {"array": "state.grad['w']", "float64": True},
            {"dict": [["w", {"at": 3}]]},
            {"tuple": []},
            {
                "class": "FirstOrderState",
                "fields": {
                    "params": {"at": 2},
                    "value": 0.512,
                    "grad": {"at": 4},
                    "optimality": 1.28,
                    "status": None,
                    "step": 2,
                    "buffers": {"at": 5},
                    "losses": {"at": 5},
                },
            },
        ],
    }
    values = {"state.params['w']": [0.68, 1.64], "state.grad['w']": [-0.64, 1.28]}
    arrays = {name: mx.array(np.array(value).view(np.int64)) for name, value in values.items()}
    text, path = json.dumps(tree), str(tmp_path / "run.safetensors")
    marks = {"mlxopt": "1", "tree": text, "crc32": _checksum(text, arrays)}
    mx.save_safetensors(path, arrays, marks)
    words = r"format 1; expected .* format 2\. mlxopt 0\.1\.0 wrote it: resume it with that version"
    with pytest.raises(ValueError, match=words + r".* state\.params"):
        load(path)
    found: Any = mx.load(path, format="safetensors")  # what the message recommends
    with mx.stream(mx.cpu):
        assert found["state.params['w']"].view(mx.float64).tolist() == values["state.params['w']"]


def test_damage_anywhere_is_noticed(tmp_path):
    path = tmp_path / "state"
    state = mo.minimize(valley, start(), mo.LBFGS(memory=1), max_steps=3, tol=0).state
    save(path, mo.LBFGS(memory=1), state)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 150, replace=False):
        path.write_bytes(content[:place])
        with pytest.raises(ValueError, match="damaged"):
            load(path)
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << rng.integers(8)
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match=r"damaged|no mark|format"):
            load(path)


@pytest.mark.parametrize(
    "tree",
    [
        [{"class": ["mlxopt.Popen", [["args", "echo"]]]}, None],
        [{"class": ["mlxopt.LBFGS", [["memory", -1]]]}, None],
        [{"class": ["mlxopt.LBFGS", [["m", 1]]]}, None],
        [{"mlx": ["missing", "float32"]}, None],
        [{"tuple": 5}, None],
        [{"dict": [[[], 1]]}, None],
        [{"set": ["x", "float32"]}, None],
        [{"tuple": [], "dict": []}, None],
        3,
        [None, []],
        [None, {"status": "FINE"}],
        [None, None],
        [None],
    ],
    ids=str,
)
def test_files_that_somebody_made_up(tree, tmp_path, monkeypatch):
    path = tmp_path / "state"
    monkeypatch.setattr("mlxopt._saved._checksum", lambda *_: "0")
    marks = {"mlxopt": "2", "crc32": "0", "tree": json.dumps(tree)}
    with path.open("wb") as file:
        mx.save_safetensors(file, {"x": mx.ones(1)}, marks)
    with pytest.raises(ValueError, match=r"damaged|does not have|now"):
        load(path)


# --- what does not fit -------------------------------------------------------------------------


def _state(optimizer, params=None, **options):
    begin = start() if params is None else params
    return mo.minimize(valley, begin, optimizer, tol=0, max_steps=2, **options).state


@pytest.mark.parametrize(
    ("init", "error", "words"),
    [
        (lambda: _state(mo.Adam()), TypeError, "FirstOrderState; LBFGS resumes .*DescentState"),
        (
            lambda: _state(mo.LBFGS(memory=3)),
            ValueError,
            r"init\.memory\.rows is float32 of shape \(7, 5",
        ),
        (lambda: _state(mo.LBFGS(), start(mx.float64)), ValueError, "is float64 .* is float32"),
        (
            lambda: _state(mo.LBFGS())._replace(params=mx.ones(5)),
            ValueError,
            r"init\.params is float32 of shape \(5,\), but params is a dict with the keys",
        ),
        (
            lambda: _state(mo.LBFGS())._replace(params={**start(), "c": mx.ones(2)}),
            ValueError,
            r"init\.params\['c'\] is float32 of shape \(2,\), but params\['c'\] is float32 of sh",
        ),
        (
            lambda: mo.minimize(valley, start(), mo.LBFGS(), tol=1),
            TypeError,
            r"Write init=result\.state",
        ),
        (lambda: (mo.LBFGS(), _state(mo.LBFGS())), TypeError, r"optimizer, state = mo\.load"),
        (lambda: "state.safetensors", TypeError, "of type str; expected an optimizer's state"),
        (lambda: _state(mo.LBFGS())._replace(value=1.0), ValueError, "has a loss of 1, but at its"),
    ],
)
def test_a_wrong_init_is_told_what_is_wrong(init, error, words):
    with pytest.raises(error, match=words):
        mo.minimize(valley, start(), mo.LBFGS(), init=init())


def test_a_state_of_another_rule_of_the_same_kind():
    with pytest.raises(ValueError, match=r"init\.buffers is a dict .* resumes from a Moments"):
        mo.minimize(valley, start(), mo.Adam(), init=_state(mo.Momentum(1e-3)))
    with pytest.raises(ValueError, match=r"init\.memory is a ConjugateMemory; BFGS\(\) resumes"):
        mo.minimize(valley, start(), mo.BFGS(), init=_state(mo.ConjugateGradient()))


def test_other_data_than_the_state_was_reached_on():
    X, y, _ = regression()
    result = mo.minimize(squared_loss, BEGIN, mo.LBFGS(), X, y, tol=0, max_steps=5)
    with pytest.raises(ValueError, match="another loss, other data"):
        mo.minimize(squared_loss, BEGIN, mo.LBFGS(), X[:190], y[:190], init=result.state)


def test_a_state_at_an_exact_fit_resumes():
    # The loss is rounding and nothing else, which another machine does otherwise.
    near = tree_map(lambda x: mx.full(x.shape, 0.9), start())
    found = mo.minimize(valley, near, mo.LBFGS(), tol=1e-4)
    assert found.value < 1e-8
    other = found.state._replace(value=2 * found.value)
    assert mo.minimize(valley, near, mo.LBFGS(), tol=1e-4, init=other).converged


def test_wrong_states_for_train():
    good = mo.train(squared_loss, BEGIN, mo.Adam(), batches()).state
    with pytest.raises(ValueError, match=r"init\.buffers"):
        mo.train(squared_loss, BEGIN, mo.Momentum(0.1), batches(), init=good)
    with pytest.raises(ValueError, match="expected two trees of the same structure"):
        mo.train(squared_loss, {"w": mx.zeros(5)}, mo.Adam(), batches(), init=good)
    wrong: Any = _state(mo.Adam())
    with pytest.raises(TypeError, match=r"FirstOrderState; Adam resumes from .* TrainState"):
        mo.train(lambda p, *_: valley(p), start(), mo.Adam(), batches(), init=wrong)
    with pytest.raises(TypeError, match=r"TrainState; Adam resumes from .* FirstOrderState"):
        mo.minimize(squared_loss, BEGIN, mo.Adam(), *regression()[:2], init=good)


def test_train_refuses_batches_of_another_size_than_the_state_has_taken():
    X, y = mx.ones((700, 3)), mx.ones(700)
    states = []

    def loss(w, X, y):
        return mx.mean(mx.square(X @ w - y))

    def train(batch_size, **options):
        batches = mo.batches(X, y, batch_size=batch_size)
        return mo.train(loss, mx.zeros(3), mo.SGD(0.01), batches, progress=False, **options)

    train(2, callback=lambda info: states.append(info.state))
    assert states[0].batch == 50
    for size in (20, 500):
        with pytest.raises(ValueError, match="had taken 100 rows in 50 batches"):
            train(size, init=states[0])
    assert train(2, init=states[0]).steps == 300


def test_nothing_is_left_to_do_where_all_epochs_are_done():
    X = mx.ones((8, 2))
    batches = mo.batches(X, batch_size=4)

    def loss(w, X):
        return mx.mean(mx.square(X @ w - 1.0))

    first = mo.train(loss, mx.zeros(2), mo.SGD(0.1), batches, epochs=3, progress=False)
    left = 3 - first.state.epoch
    again = mo.train(
        loss, mx.zeros(2), mo.SGD(0.1), batches, epochs=left, init=first.state, progress=False
    )
    assert (left, again.steps, again.status) == (0, 0, mo.Status.COMPLETED)
    assert mx.array_equal(again.params, first.params)
    assert again.value == first.value
    with pytest.raises(ValueError, match="epochs"):
        mo.train(loss, mx.zeros(2), mo.SGD(0.1), batches, epochs=0, progress=False)


def test_a_result_is_pickled_with_the_certificate_that_was_asked_for():
    def loss(w):
        return mx.sum(mx.square(w - 1.0))

    result = mo.minimize(loss, mx.zeros(2), mo.LBFGS(), progress=False)
    bare = pickle.loads(pickle.dumps(result))
    with pytest.raises(ValueError, match="copies of a result have lost that loss"):
        _ = bare.certificate
    verdict = result.certificate.verdict
    copy = pickle.loads(pickle.dumps(result))
    assert copy.certificate.verdict == verdict
    assert mx.array_equal(copy.params, result.params)

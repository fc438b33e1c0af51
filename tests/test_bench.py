"""`mlxopt bench`: the timing is fair, the answers are right, and the verdicts follow from them."""

import json
import math
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from benchmarks import (
    contest,
    descent,
    peers,
    picture,
    processes,
    quasi_newton,
    regression,
    report,
)
from benchmarks import run as command
from benchmarks.contest import Contestant, Goals, Outcome, Task
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from typer.testing import CliRunner

from mlxopt._platform import blas
from mlxopt.cli import app

lent = pytest.mark.skipif(
    blas.binding().library is None, reason="MLX has no BLAS but its own here to switch from"
)


def outcome(figures, **values):
    goals = values.pop("goals", Goals())
    contestant = Contestant(values.pop("name", "a"), lambda: None, goals=goals)
    return Outcome(contestant, figures=list(figures), **values)


# --- The contest ---------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Replace time by one that only rests and runs move; its log says which."""

    class Clock:
        def __init__(self):
            self.now, self.log = 0.0, []

        def sleep(self, seconds):
            self.now += seconds
            self.log.append(f"rest {seconds:g}")

        def works(self, name, *seconds):
            left = list(seconds)

            def run():
                self.now += left.pop(0) if len(left) > 1 else left[0]
                self.log.append(name)

            return run

    found = Clock()
    monkeypatch.setattr(contest.time, "sleep", found.sleep)
    monkeypatch.setattr(contest.time, "perf_counter", lambda: found.now)
    return found


def test_contestants_run_in_turn_each_after_a_rest(clock):
    both = [Contestant("ours", clock.works("ours", 1.0)), Contestant("its", clock.works("its", 1))]
    contest.compete(Task("t", both), rest=0.4, most_rounds=2)
    assert clock.log[::2] == ["rest 0.4"] * 6
    # Once each untimed, then a round in order and one in the opposite order.
    assert clock.log[1::2] == ["ours", "its", "ours", "its", "its", "ours"]


def test_a_figure_is_the_median_without_the_first_run(clock):
    run = clock.works("a", 100.0, 3.0)  # 100 s the first time: it compiles
    (found,) = contest.compete(Task("t", [Contestant("a", run)]), rest=0.4, most_rounds=7)
    assert found.figures == pytest.approx([3.0])
    run = clock.works("b", 0.1, 5.0, 1.0, 2.0, 9.0, 4.0, 1.5, 3.0)
    (found,) = contest.compete(Task("t", [Contestant("b", run)]), rest=0.4, most_rounds=7)
    assert len(found.figures) == 7
    assert found.figure == pytest.approx(3.0)


def test_a_part_of_the_work_is_scaled_to_the_whole(clock):
    part = Contestant("a", clock.works("a", 1.0), share=0.1)
    (found,) = contest.compete(Task("t", [part]), rest=0.0, most_rounds=1)
    assert found.figure == pytest.approx(10.0)


def test_what_measures_itself_is_run_no_more_often_than_asked():
    answers = iter([30.0, 10.0, 20.0])
    own = Contestant("a", lambda: next(answers), measures=True, rounds=3)
    (found,) = contest.compete(Task("t", [own]), rest=0.0, most_rounds=7)
    assert found.figures == [30.0, 10.0, 20.0]
    assert found.figure == 20.0


def test_a_peer_that_fails_costs_only_its_own_figures():
    def breaks():
        raise ValueError("no such option\nand more")

    late = iter([1, 2])
    both = [
        Contestant("ours", lambda: None),
        Contestant("never", breaks),
        Contestant("later", lambda: next(late)),
    ]
    ours, never, later = contest.compete(Task("t", both), rest=0.0, most_rounds=3)
    assert never.failure == "ValueError: no such option"
    assert math.isnan(never.figure)
    assert later.failure.startswith("StopIteration")
    assert math.isnan(later.figure)
    assert len(ours.figures) == 3
    assert not ours.failure


def test_errors_are_relative_to_the_largest_parameter():
    found = Contestant("a", lambda: [[1.0, -2.0], [8.5, 0.0]], params=np.array)
    few = Contestant("b", lambda: [2.0, 0, 0, 0], params=np.array, truth=np.array([4.0, 0, 0, 0]))
    task = Task("t", [found, few], truth=np.array([1.0, -2.0, 8.0, 0.1]))
    first, second = contest.compete(task, rest=0.0, most_rounds=1)
    assert first.error == 0.5 / 8.0
    assert second.error == 0.5


def test_a_nan_is_no_small_error():
    assert math.isnan(contest.relative_error([math.nan, 1.0], np.ones(2)))
    task = Task("t", [], most_error=1e-8)
    ours = outcome([1.0], error=math.nan)
    (one,) = contest.verdicts(task, ours, ours)
    assert not one.met


@lent
def test_the_stock_blas_is_there_for_one_run_and_gone_after_it():
    before = blas.binding().library
    seen = []
    bare = Contestant("bare", lambda: seen.append(blas.binding().library), stock=True)
    other = Contestant("other", lambda: seen.append(blas.binding().library))
    contest.compete(Task("t", [bare, other]), rest=0.0, most_rounds=1)
    assert seen == [None, before, None, before]

    def breaks():
        raise ValueError

    contest.compete(Task("t", [Contestant("a", breaks, stock=True)]), rest=0.0, most_rounds=1)
    assert blas.binding().library == before


def test_the_data_of_a_task_can_be_let_go():
    held = np.ones(3)
    task = Task("t", [Contestant("a", lambda: held, params=np.asarray)], truth=np.ones(3))
    outcomes = contest.compete(task, rest=0.0, most_rounds=1)
    task, outcomes = contest.without_data(task, outcomes)
    assert outcomes[0].error == 0.0
    assert outcomes[0].figures
    references = sys.getrefcount(held)
    with pytest.raises(RuntimeError, match="gone"):
        task.contestants[0].run()
    assert references <= 2  # this frame's own


# --- Verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goals", "met"),
    [
        (Goals(time=0.5), True),
        (Goals(time=0.49), False),
        (Goals(times_faster=2.0), True),
        (Goals(times_faster=2.1), False),
    ],
)
def test_a_goal_is_met_or_not(goals, met):
    ours, other = outcome([1.0]), outcome([2.0], goals=goals)
    (one,) = contest.verdicts(Task("t", []), ours, other)
    assert (one.ratio, one.met) == (0.5, met)


def test_a_contestant_that_failed_meets_and_misses_nothing():
    ours, other = outcome([1.0]), outcome([], goals=Goals(time=0.5), failure="broken")
    assert contest.verdicts(Task("t", []), ours, other) == []
    ours, other = outcome([], failure="broken"), outcome([1.0], goals=Goals(time=0.5))
    (one,) = contest.verdicts(Task("t", []), ours, other)
    assert not one.met


def test_goals_about_evaluations_and_errors():
    ours = outcome([1.0], evaluations=22, error=3e-10)
    other = outcome([1.0], evaluations=20, error=1e-10, goals=Goals(evaluations=1.1, error=1.0))
    evaluations, error = contest.verdicts(Task("t", []), ours, other)
    assert evaluations.met
    assert not error.met
    both_exact = outcome([1.0], error=3e-17), outcome([1.0], error=1e-17, goals=Goals(error=1.0))
    (one,) = contest.verdicts(Task("t", []), *both_exact)
    assert one.met  # both have every digit of a float64


# --- The workloads -------------------------------------------------------------------------------

# By how much float32 may be off after hundreds of steps; what float64 can be held to is in most
# cases far better, and the goals say so.
FLOAT32, FLOAT64 = 1e-4, 1e-7


@pytest.mark.parametrize(
    ("workload", "most"),
    [
        (descent.large, FLOAT32),
        (descent.small, FLOAT32),
        (descent.accuracy, FLOAT32),
        (descent.minibatch, 0.2),  # three epochs end on the way
        (regression.least_squares, 1e-13),
        (regression.logistic, FLOAT64),
        (quasi_newton.lbfgs, 1e-2),  # as the common tolerance allows
    ],
)
def test_every_contestant_of_a_workload_solves_it(workload, most):
    for task in workload(True):
        outcomes = contest.compete(task, rest=0.0, most_rounds=1)
        assert len(outcomes) > 1
        for one in outcomes:
            assert not one.failure, f"{one.contestant.name}: {one.failure}"
            assert one.error is not None
            assert one.error < most, one.contestant.name
            assert one.figure > 0
        if task.most_error is not None:
            assert outcomes[0].error <= task.most_error


def test_the_flights_are_solved_to_many_digits():
    (task,) = regression.flights(True)
    outcomes = contest.compete(task, rest=0.0, most_rounds=1)
    errors = {one.contestant.name: one.error or 0.0 for one in outcomes}
    assert 0 < errors["mlxopt LinearRegression, float32 X"] < 1e-12
    assert 0 < errors["numpy.linalg.lstsq, float64 X"] < 1e-10


def test_flights_have_one_day_each():
    X, y = regression.flight_table(2000)
    assert X.shape == (2000, 366)
    assert X.dtype == np.float32
    assert np.isin(X[:, :365], (0, 1)).all()
    assert (X[:, :365].sum(axis=1) == 1).all()
    assert np.linalg.matrix_rank(X) == 366
    assert len(y) == 2000


def test_the_least_squares_truth_has_every_digit():
    # An oracle in rational arithmetic: the normal equations by Cramer's rule for two unknowns.
    rng = np.random.default_rng(3)
    X = np.column_stack([np.ones(5000), 1 + 1e-3 * rng.normal(size=5000)])  # κ near 2,000
    y = rng.normal(size=5000)
    (a, b), target = X.T.tolist(), y.tolist()

    def dot(u, v):
        return sum(Fraction(one) * Fraction(two) for one, two in zip(u, v, strict=True))

    aa, ab, bb, ay, by = dot(a, a), dot(a, b), dot(b, b), dot(a, target), dot(b, target)
    determinant = aa * bb - ab**2
    exact = [
        float((ay * bb - by * ab) / determinant),
        float((aa * by - ab * ay) / determinant),
    ]
    found = regression.exact_least_squares(X, y)
    eps = np.finfo(np.longdouble).eps
    most = 4e-16 if eps < 1e-18 else 1e-10  # where long double is double, κ² · eps is what is left
    np.testing.assert_allclose(found, exact, rtol=most)


def test_the_logistic_truth_is_where_the_gradient_vanishes():
    X, y, truth = regression.classes(3000, 4)
    z = truth[0] + X @ truth[1:]
    residual = 0.5 * (1 + np.tanh(z / 2)) - y
    gradient = np.array([residual.mean(), *(X * residual[:, None]).mean(axis=0)])
    assert np.abs(gradient).max() < 1e-15
    assert 0.2 < y.mean() < 0.6


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_memory_is_the_peak_of_the_work_alone():
    np.ones(30_000_000)  # 240 MB, gone before
    size = 80e6

    def work():
        one = np.ones(10_000_000)
        two = one + 1.0
        return float(two[-1])

    grown = processes._peak_growth(work)
    assert 1.9 * size < grown < 2.2 * size
    assert processes._peak_growth(lambda: None) < 0.1 * size


# --- The environment -----------------------------------------------------------------------------


def test_every_library_gets_the_same_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    settings = peers.environment()
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
    assert [settings[name] for name in names] == ["3"] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert peers.threads() == peers.cores()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert peers.threads() == peers.cores()
    assert not peers.is_set_up()


def test_a_peer_without_what_it_needs_counts_as_absent(monkeypatch):
    there = {"optax", "torch"}
    monkeypatch.setattr(peers, "find_spec", lambda name: name if name in there else None)
    assert peers.has("torch")
    assert not peers.has("optax")  # JAX is not there
    assert peers.absent() == ["scikit-learn", "statsmodels", "glum", "jax", "optax", "jaxopt"]


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="needs Linux's /proc")
def test_the_work_of_other_processes_is_told_from_ones_own(monkeypatch):
    before = os.times()

    def others(work):
        before, began = peers.busy_seconds(), time.perf_counter()
        work()
        after = peers.busy_seconds()
        assert before is not None
        assert after is not None
        return (after - before) / (time.perf_counter() - began)

    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        busy = others(lambda: time.sleep(1.0))
        other.kill()
    assert busy > 0.2  # its part of one core, of those that it shares
    total = peers.busy_seconds()
    monkeypatch.setattr(peers.os, "times", lambda: (*before[:3], before[3] + 1e6, 0.0))
    less = peers.busy_seconds()
    assert total is not None
    assert less is not None
    assert total - less == pytest.approx(1e6, rel=1e-3)


def test_numpy_and_mlx_are_enough(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    for name in command.WORKLOADS:
        if name in ("flights", "memory"):  # the same lines as the others, and slow
            continue
        for task in command.WORKLOADS[name](True):
            packages = {contestant.package for contestant in task.contestants}
            assert packages <= {"mlxopt", "mlx", "numpy", "scipy"}
            assert len(task.contestants) > 1


# --- The report ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.0, "seconds", "2.00 s"),
        (0.0123, "seconds", "12.3 ms"),
        (0.45678, "seconds", "457 ms"),
        (1234.5, "seconds", "1,234 s"),
        (4.2e-5, "seconds", "42.0 µs"),
        (48e6, "bytes", "48 MB"),
        (math.nan, "seconds", ""),
    ],
)
def test_amounts_are_written_as_people_do(value, unit, text):
    assert report.amount(value, unit) == text


def shown(task, outcomes, judged=True):
    from rich.console import Console

    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    report.print_task(console, task, outcomes, judged)
    return console.export_text()


def test_the_table_says_what_came_of_each_goal():
    ours = outcome([0.010], name="mlxopt", error=1e-9)
    slow = outcome([0.340], name="plain", error=1e-9, goals=Goals(times_faster=30))
    quick = outcome([0.005], name="peer", error=2e-9, goals=Goals(time=0.5))
    broken = outcome([], name="other", failure="ValueError: [no]")
    text = shown(Task("work", [], most_error=1e-8), [ours, slow, quick, broken])
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["plain"][-5:] == ["34×", "faster", "≥", "30×", "met"]
    assert rows["peer"][-5:] == ["2.0", "≤", "0.5", "not", "met"]
    assert rows["its"][-3:] == ["≤", "1e-08", "met"]
    assert "failed: ValueError: [no]" in text
    assert "goal" not in shown(Task("work", []), [ours, slow], judged=False)


def test_the_chart_shows_each_ratio_and_each_goal():
    task = Task("work", [])
    ours = outcome([0.010], name="mlxopt minimize")
    slow = outcome([0.340], name="plain", goals=Goals(times_faster=30))
    quick = outcome([0.002], name="peer", goals=Goals(time=0.5))
    results = [
        ("a", task, [ours, slow, quick]),
        ("memory", Task("m", [], unit="bytes"), [ours, slow]),
    ]
    machine = {"CPU": "a CPU", "cores": 2, "MLX BLAS": "MKL", "NumPy BLAS": "openblas"}
    figure = picture.draw(results, machine, judged=True)
    (ax,) = figure.axes
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches if isinstance(bar, Rectangle)]
    assert ends == pytest.approx([1.0, 34.0, 0.2])
    lines = [line for line in ax.lines if to_hex(line.get_color()) == "#000000"]
    marks = [float(np.asarray(line.get_xdata())[0]) for line in lines]
    assert marks == pytest.approx([30.0, 2.0])
    left, right = ax.get_xlim()
    assert left < 0.2
    assert right > 34
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "mlxopt minimize",
        "plain",
        "peer",
    ]
    figure.canvas.draw()
    width = figure.bbox.width
    assert all(text.get_window_extent().x1 <= width for text in ax.texts)


# --- The command ---------------------------------------------------------------------------------


def run(*arguments, code=0):
    found = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert found.exit_code == code, found.output
    return found


@pytest.fixture
def settled(monkeypatch):
    for name, value in peers.environment().items():
        monkeypatch.setenv(name, value)


def test_an_unknown_workload_is_refused_with_the_known_ones():
    text = run("sdg", code=2).output
    assert "'sdg'" in text
    assert all(name in text for name in command.WORKLOADS)


def test_files_are_checked_before_the_work(tmp_path):
    began = time.perf_counter()
    assert "folder" in run("--json", tmp_path / "no" / "a.json", code=2).output
    assert "picture" in run("--plot", tmp_path / "a.txt", code=2).output
    assert time.perf_counter() - began < 30  # the work itself would take minutes


def test_the_work_is_done_where_threads_are_settled(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    seen = {}

    def start(arguments, env, check):
        seen.update(arguments=arguments, env=env)
        return subprocess.CompletedProcess(arguments, 3)

    monkeypatch.setattr(command.subprocess, "run", start)
    run("sgd", "import", "--quick", "--plot", tmp_path / "a.png", code=3)
    tail = ["bench", "--quick", "--plot", str(tmp_path / "a.png"), "sgd", "import"]
    assert seen["arguments"][-6:] == tail
    assert seen["env"] == peers.environment()


def test_a_run_prints_and_writes_all(settled, tmp_path):
    figures, chart = tmp_path / "a.json", tmp_path / "a.png"
    text = run("least-squares", "import", "--quick", "--json", figures, "--plot", chart).output
    assert "least squares" in text
    assert "import mlxopt" in text
    assert "OMP_NUM_THREADS" in text
    assert chart.read_bytes().startswith(b"\x89PNG")
    written = json.loads(figures.read_text())
    assert written["machine"]["versions"]["numpy"] == np.__version__
    assert [task["workload"] for task in written["tasks"]] == ["least-squares", "import"]
    for task in written["tasks"]:
        ours = task["contestants"][0]
        assert ours["mlxopt_over_it"] == 1.0
        for one in task["contestants"]:
            assert one["median"] == float(np.median(one["figures"]))
            assert one["mlxopt_over_it"] == pytest.approx(ours["median"] / one["median"])


def test_a_failure_of_mlxopt_ends_the_command_with_1(settled, monkeypatch):
    def broken(quick):
        yield Task("t", [Contestant("ours", lambda: mx.zeros(2) @ mx.zeros(3))])

    monkeypatch.setitem(command.WORKLOADS, "sgd", broken)
    assert "failed: ValueError" in run("sgd", "--quick", code=1).output


def test_the_help_names_every_workload():
    text = "".join(run("--help").output.split())  # which may be broken at a hyphen
    for name, tasks in command.WORKLOADS.items():
        assert callable(tasks)
        assert f"{name}," in text or f"{name};" in text


def test_an_installed_package_says_that_the_benchmarks_need_a_clone(monkeypatch, tmp_path):
    monkeypatch.setattr("mlxopt.cli.bench._TESTS", tmp_path)
    found = run("sgd", "--quick", code=2)
    assert "Clone the repository" in found.stderr
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


def test_two_checkouts_are_compared():
    script = Path(command.__file__).with_name("compare.py")
    old = Path(command.__file__).parents[2]
    found = subprocess.run(
        [sys.executable, script, old, "lbfgs", "--quick", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line for line in found.stdout.splitlines() if "mlxopt minimize" in line]
    assert len(rows) == 3
    for row in rows:
        assert row.endswith("  same")
        assert 0.1 < float(row.split()[-2]) < 10

"""`race`: its books against runs by hand, its profile against the definition, its pictures."""

import mlx.core as mx
import numpy as np
import pytest
from matplotlib import pyplot as plt

import mlxopt as mo
from mlxopt import plots, problems
from mlxopt._race import Race, race
from mlxopt.problems import Minimum, Problem

NAMES = ["Rosenbrock", "Beale", "Booth", "Powell singular"]
PROBLEMS = [problems.get(name) for name in NAMES]
ENTRANTS = {
    "LBFGS": mo.LBFGS(),
    "Newton": mo.Newton(),
    "SGD": mo.SGD(1e-3),
    "LM": mo.LevenbergMarquardt(),
}


@pytest.fixture(scope="module")
def found() -> Race:
    return race(PROBLEMS, ENTRANTS, max_steps=300)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_names_of_a_list_tell_optimizers_apart():
    beale = problems.get("Beale")
    assert race(beale, [mo.LBFGS(), mo.Newton()]).optimizers == ("LBFGS", "Newton")
    two = race(beale, [mo.LBFGS(3), mo.LBFGS(5)])
    assert two.optimizers == ("LBFGS(memory=3)", "LBFGS(memory=5)")
    assert repr(two).startswith("Race of 2 optimizers on 1 problem: evaluations")


def test_there_is_a_row_for_every_pair_in_order(found):
    assert [(row.problem, row.optimizer) for row in found.rows] == [
        (name, entrant) for name in NAMES for entrant in ENTRANTS
    ]
    assert found.solved() == {"LBFGS": 4, "Newton": 4, "SGD": 0, "LM": 4}


@pytest.mark.parametrize("name", ["LBFGS", "Newton"])
def test_a_run_costs_what_a_run_by_hand_costs_until_it_is_solved(found, name):
    for problem in PROBLEMS:
        seen = []
        mo.minimize(
            problem.loss, problem.params(), ENTRANTS[name],
            callback=lambda info, seen=seen: seen.append((info.evaluations, info.value)),
        )  # fmt: skip
        first = next(count for count, value in seen if problem.solved_by(value))
        row = found.run(problem.name, name)
        assert (row.evaluations, row.solved) == (first, True)
        assert row.status in (mo.Status.STOPPED, mo.Status.CONVERGED)


def test_the_trace_tells_the_run(found):
    for row in found.rows:
        problem = problems.get(row.problem)
        assert row.trace_value[0] == pytest.approx(problem.start_value, rel=1e-12)
        assert row.trace_evaluations[0] == 1
        assert row.trace_evaluations[-1] == row.evaluations
        assert (np.diff(row.trace_seconds) >= 0).all()
        assert row.seconds >= row.trace_seconds[-1]
        np.testing.assert_array_equal(row.path[0], problem.start)
        with mx.stream(mx.cpu):
            end = problem.loss(mx.array(row.path[-1], dtype=mx.float64)).item()
        # The loss of the last point: for least squares twice half the sum.
        assert row.trace_value[-1] == pytest.approx(end, rel=1e-9, abs=1e-25)


def test_ending_elsewhere_is_not_solving():
    def bumpy(x):  # minima near 0, 2π, ..., the lower the further left
        return mx.sum(0.1 * x - mo.special.cos(x))

    at = float(np.arcsin(-0.1))
    bumpy_problem = Problem(
        "Bumpy", (7.0,), 0.7 - np.cos(7.0), (Minimum(0.1 * at - np.cos(at), (at,)),), "here",
        function=bumpy,
    )  # fmt: skip
    result = race(bumpy_problem, [mo.LBFGS()])
    (row,) = result.rows
    assert row.status is mo.Status.CONVERGED
    assert not row.solved
    assert result.costs() == {"LBFGS": [np.inf]}


def test_an_entrant_may_depend_on_the_problem():
    bounded = [problems.get("McCormick"), problems.get("Hock and Schittkowski 2")]

    def within(problem):
        lower, upper = (np.array(bound) for bound in problem.bounds)
        return mo.LBFGSB(lower=lower, upper=upper)

    result = race(bounded, {"LBFGSB": within})
    assert result.solved() == {"LBFGSB": 2}
    for row, problem in zip(result.rows, bounded, strict=True):
        assert problem.bounds is not None
        assert (row.path >= np.array(problem.bounds[0])).all()


def test_the_table_shows_each_cost_and_the_sums(found):
    table = repr(found)
    lines = {line.split("  ")[1]: line for line in table.splitlines()[3:]}
    for name in NAMES:
        cells = lines[name].split()[-len(ENTRANTS) :]
        costs = [found.costs()[entrant][NAMES.index(name)] for entrant in ENTRANTS]
        assert cells == [f"{cost:.0f}" if np.isfinite(cost) else "-" for cost in costs]
    assert lines["solved"].split()[1:] == ["4", "4", "0", "4"]
    best = np.min(list(found.costs().values()), axis=0)
    expected = [str((found.costs()[entrant] == best).sum()) for entrant in ENTRANTS]
    assert lines["with the fewest"].split()[3:] == expected
    assert max(map(len, table.splitlines())) <= 100


def curve(ax, label):
    """Return the steps of a profile: where each begins, and its height."""
    patch = next(patch for patch in ax.patches if patch.get_label().startswith(label))
    data = patch.get_data()
    return data.edges, data.values


def test_the_profile_is_that_of_dolan_and_more():
    costs = {
        "a": np.array([10.0, 30.0, np.inf, 5.0]),
        "b": np.array([20.0, 10.0, 7.0, np.inf]),
        "c": np.full(4, np.inf),
    }
    ax = plots.performance_profile(costs)
    for name, cost in costs.items():
        edges, values = curve(ax, name)
        for factor in (1.0, 1.5, 2.0, 2.9, 3.0):
            # The definition: the share of problems with cost ≤ factor · best.
            expected = (cost <= factor * np.array([10, 10, 7, 5.0])).mean()
            step = np.searchsorted(edges, factor, side="right") - 1
            assert values[step] == expected, (name, factor)
    legend = ax.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["a (3 of 4)", "b (3 of 4)", "c (0 of 4)"]


def test_a_problem_that_nobody_solved_counts_for_nobody():
    ax = plots.performance_profile({"a": np.array([1.0, np.inf]), "b": np.array([2.0, np.inf])})
    assert curve(ax, "a")[1].max() == 0.5
    ax = plots.performance_profile({"a": np.array([np.inf])})
    assert curve(ax, "a")[1].max() == 0


def test_scales_are_logarithmic_where_the_range_asks_for_it(found):
    assert found.plot().get_xscale() == "log"
    near = plots.performance_profile({"a": np.array([1.0, 2.0]), "b": np.array([1.5, 1.0])})
    assert near.get_xscale() == "linear"
    ax = found.plot_losses("Rosenbrock")
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_title()) == ("evaluations", "Rosenbrock")
    assert found.plot_losses("Rosenbrock", by="seconds").get_xlabel() == "seconds"


def test_every_line_of_a_picture_looks_different(found):
    for ax in (found.plot_losses("Beale"), found.plot_paths("Beale")):
        lines = [line for line in ax.get_lines() if line.get_label() in ENTRANTS]
        looks = {(line.get_color(), line.get_linestyle()) for line in lines}
        assert len(lines) == len(looks) == len(ENTRANTS)


def test_a_loss_of_zero_is_drawn_at_the_lower_edge():
    value = np.array([1.0, 1e-3, 0.0])
    ax = plots.descent({"a": (np.arange(1, 4), value), "b": (np.arange(1, 3), value[:2])})
    drawn = next(line for line in ax.get_lines() if line.get_label() == "a").get_ydata()
    np.testing.assert_allclose(np.array(drawn), [1.0, 1e-3, 1e-4])


def test_paths_lie_on_the_map_from_the_start_to_the_end(found):
    ax = found.plot_paths("Rosenbrock")
    lines = {line.get_label(): line for line in ax.get_lines()}
    for name in ENTRANTS:
        np.testing.assert_array_equal(
            np.column_stack(lines[name].get_data()), found.run("Rosenbrock", name).path
        )
    np.testing.assert_array_equal(np.ravel(lines["start"].get_data()), [-1.2, 1.0])
    np.testing.assert_array_equal(np.ravel(lines["minimum"].get_data()), [1, 1])


def test_a_map_with_regions_where_the_loss_is_not_a_number():
    across, up = np.linspace(-1, 1, 20), np.linspace(-1, 1, 15)
    values = np.add.outer(up**2, across**2)
    values[:, :5] = np.nan
    ax = plots.trajectories(across, up, values, {"a": np.array([[0.5, 0.5], [0, 0]])})
    ax.figure.canvas.draw()
    assert ax.has_data()


def test_an_error_in_a_run_says_whose_it_was():
    def broken(x):
        raise RuntimeError("a bug in the loss")

    with pytest.raises(RuntimeError, match="a bug in the loss") as raised:
        race(
            Problem("Bad", (1.0,), 0.0, (Minimum(0.0),), "here", function=broken),
            {"mine": mo.SGD(0.1)},
        )
    assert raised.value.__notes__ == ["This was mine on 'Bad'."]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: race([], ENTRANTS), ValueError, "no problems"),
        (lambda: race(PROBLEMS, {}), ValueError, "no optimizers"),
        (lambda: race(["Rosenbrock"], ENTRANTS), TypeError, "of type str"),  # pyright: ignore
        (lambda: race(PROBLEMS, {"a": mo.LBFGS}), TypeError, "the class LBFGS"),  # pyright: ignore
        (lambda: race(PROBLEMS, [mo.LBFGS(), mo.LBFGS()]), ValueError, "same name"),
        (lambda: race(PROBLEMS * 2, ENTRANTS), ValueError, "came twice: Beale"),
        (lambda: race(problems.get("Matyas"), ENTRANTS), ValueError, "LM needs a residual"),
        (lambda: race(PROBLEMS, {"a": lambda p: None}), TypeError, "returned NoneType"),  # pyright: ignore
        (lambda: race(PROBLEMS, ENTRANTS, max_steps=0), ValueError, "1 or more"),
    ],
)
def test_misuse_raises_at_the_door(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_what_is_not_in_the_race(found):
    with pytest.raises(KeyError, match="no run of 'Adam'"):
        found.run("Beale", "Adam")
    with pytest.raises(KeyError, match="not in this race"):
        found.plot_losses("Sphere")
    with pytest.raises(ValueError, match="expected one of 'evaluations', 'seconds'"):
        found.plot(by="time")
    with pytest.raises(ValueError, match="4 parameters; a map shows two"):
        found.plot_paths("Powell singular")

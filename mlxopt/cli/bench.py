"""`mlxopt bench`: where mlxopt stands against the libraries that are installed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxopt.cli._console import check_picture, check_writable, fail, save, stderr, stdout

if TYPE_CHECKING:
    from mlxopt.cli._bench.contest import Task
    from mlxopt.cli._bench.report import Results

WORKLOADS = {
    "sgd": "full-batch SGD on a large table, where products cost most",
    "sgd-small": "full-batch SGD on a small table, where the overhead of a step does",
    "minibatch": "SGD on batches of 32 × 2",
    "accuracy": "logistic SGD with the accuracy checked every step",
    "least-squares": "a dense least-squares problem",
    "logistic": "logistic regression at equal accuracy",
    "flights": "least squares on a year's flights, one column a day",
    "lbfgs": "L-BFGS on losses of one's own",
    "many": "a thousand small problems in one batch",
    "import": "the time of `import mlxopt`",
    "memory": "the memory that the models' fits take",
}
# The rest before each run, and rounds at most; --quick cares less for what others leave behind.
_REST, _MOST_ROUNDS = 0.4, 7
_QUICK_REST, _QUICK_ROUNDS = 0.1, 2


def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORKLOAD]...", help=f"Any of {', '.join(WORKLOADS)}; or all."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, for which no goals are set.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Where to write all figures.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to save a bar chart.")
    ] = None,
) -> None:
    """Time mlxopt against plain MLX and every peer that is installed.

    NumPy and SciPy always; scikit-learn, statsmodels, glum, JAX with optax and jaxopt, and torch
    where they are. All in one process with the same threads, in turn, each after a rest; the
    median of several runs, with the error of the answer. Needs some fifteen minutes, or with
    --quick less than one, and a machine with nothing else to do.
    """
    names = workloads or list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            fail(f"there is no workload {name!r}; choose from {', '.join(WORKLOADS)}.")
    check_writable(json_file)
    check_picture(plot)
    from mlxopt.cli._bench import peers

    if not peers.is_settled():
        raise typer.Exit(_rerun(names, quick, json_file, plot))
    _compare(names, quick, json_file, plot)


def _rerun(names: list[str], quick: bool, json_file: Path | None, plot: Path | None) -> int:
    """Run this command in a process in which each library finds its number of threads as it is
    loaded; return its exit code.
    """
    from mlxopt.cli._bench import peers

    options = ["--quick"] * quick
    for option, path in (("--json", json_file), ("--plot", plot)):
        if path is not None:
            options += [option, str(path)]
    command = [sys.executable, "-m", "mlxopt", "bench", *options, *names]
    return subprocess.run(command, env=peers.environment(), check=False).returncode


def _compare(names: list[str], quick: bool, json_file: Path | None, plot: Path | None) -> None:
    from mlxopt.cli._bench import contest, peers, report

    peers.settle_torch()
    console, status = stdout(), stderr()
    machine = peers.machine()
    rest, rounds = (_QUICK_REST, _QUICK_ROUNDS) if quick else (_REST, _MOST_ROUNDS)
    settings = {"quick": quick, "rest_seconds": rest, "most_rounds": rounds}
    report.print_machine(console, machine)
    began, others = time.perf_counter(), peers.busy_seconds()
    results: Results = []
    with status.status("preparing") as spinner, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the errors in the table say what came of it
        for name in names:
            for task in _tasks(name)(quick):
                outcomes = contest.compete(
                    task, rest, rounds, lambda text: spinner.update(text.replace("[", r"\["))
                )
                report.print_task(console, task, outcomes, judged=not quick)
                results.append((name, *contest.without_data(task, outcomes)))
                spinner.update("preparing")
    settings["seconds"] = time.perf_counter() - began
    after = peers.busy_seconds()
    if others is not None and after is not None:
        settings["others"] = (after - others) / (settings["seconds"] * peers.cores())
    report.print_end(console, settings, machine["absent"], results)
    if json_file is not None:
        text = json.dumps(report.to_json(machine, settings, results), indent=1)
        json_file.write_text(text + "\n", encoding="utf-8")
    if plot is not None:
        from mlxopt.cli._bench.picture import draw

        save(draw(results, machine, judged=not quick), plot)
    if any(outcomes[0].failure for _, _, outcomes in results):
        raise typer.Exit(1)


def _tasks(name: str) -> Callable[[bool], Iterator[Task]]:
    """Return what yields the tasks of a workload, one at a time: the data of one fill memory."""
    from mlxopt.cli._bench import descent, many, processes, quasi_newton, regression

    return {
        "sgd": descent.large,
        "sgd-small": descent.small,
        "minibatch": descent.minibatch,
        "accuracy": descent.accuracy,
        "least-squares": regression.least_squares,
        "logistic": regression.logistic,
        "flights": regression.flights,
        "lbfgs": quasi_newton.lbfgs,
        "many": many.regressions,
        "import": processes.imports,
        "memory": processes.memory,
    }[name]

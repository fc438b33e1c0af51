"""The work of `mlxopt bench`: time mlxopt beside the libraries that are installed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from benchmarks import (
    contest,
    descent,
    many,
    peers,
    picture,
    processes,
    quasi_newton,
    regression,
    report,
)
from benchmarks.contest import Task
from mlxopt._platform.files import replacing
from mlxopt.cli._console import fail, save, stderr, stdout

# Each yields its tasks one at a time: the data of a single task fill memory.
WORKLOADS: dict[str, Callable[[bool], Iterator[Task]]] = {
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
}
# Seconds of rest before each run, and the largest number of rounds.
_REST, _MOST_ROUNDS = 0.4, 7
_QUICK_REST, _QUICK_ROUNDS = 0.1, 2


def run(names: list[str], quick: bool, json_file: Path | None, plot: Path | None) -> None:
    """Run workloads, print their tables and write the files asked for.

    Args:
        names: keys of `WORKLOADS`; empty for all of them.
        quick: use small sizes and few rounds, and show no goals.
        json_file: where to write all figures.
        plot: where to save the bar chart.

    Raises:
        typer.Exit: with code 2 for an unknown name, with 1 if mlxopt failed in a task.
    """
    names = names or list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            fail(f"there is no workload {name!r}; choose from {', '.join(WORKLOADS)}.")
    if not peers.is_set_up():
        raise typer.Exit(_rerun(names, quick, json_file, plot))
    peers.set_torch_threads()
    console, status = stdout(), stderr()
    machine = peers.machine()
    rest, rounds = (_QUICK_REST, _QUICK_ROUNDS) if quick else (_REST, _MOST_ROUNDS)
    settings = {"quick": quick, "rest_seconds": rest, "most_rounds": rounds}
    report.print_machine(console, machine)
    began, others = time.perf_counter(), peers.busy_seconds()
    results: report.Results = []
    with status.status("preparing") as spinner, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the errors in the table tell the outcome
        for name in names:
            for task in WORKLOADS[name](quick):
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
        with replacing(json_file) as file:
            file.write(f"{text}\n".encode())
    if plot is not None:
        save(picture.draw(results, machine, judged=not quick), plot)
    if any(outcomes[0].failure for _, _, outcomes in results):
        raise typer.Exit(1)


def _rerun(names: list[str], quick: bool, json_file: Path | None, plot: Path | None) -> int:
    """Repeat the command in a process whose environment sets the number of threads, which
    libraries read when they are loaded; return its exit code.
    """
    options = ["--quick"] * quick
    for option, path in (("--json", json_file), ("--plot", plot)):
        if path is not None:
            options += [option, str(path)]
    command = [sys.executable, "-m", "mlxopt", "bench", *options, *names]
    return subprocess.run(command, env=peers.environment(), check=False).returncode

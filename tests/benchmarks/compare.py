"""Time mlxopt in two checkouts, in turn: `python tests/benchmarks/compare.py OLD_CHECKOUT`.

The workloads are those of `mlxopt bench` in this clone, without the other libraries. For each
workload, a process per checkout prepares the same tasks, and the two run them alternately. A ratio
is the median over the rounds of the new time divided by the old. CPU time is that of all threads
and child processes; on a shared machine it is the steadier measure. Each row also says whether
both found the same parameters, to the last bit, with as many evaluations.

Libraries use one thread unless OMP_NUM_THREADS is set: threads that spin blur the times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import contest, peers
from benchmarks.contest import Contestant
from benchmarks.report import amount
from benchmarks.run import WORKLOADS

_TESTS = Path(__file__).resolve().parents[1]
_REST = 0.1  # seconds before each measurement
_SHORTEST = 0.2  # seconds of a measurement: shorter runs are repeated


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="a checkout of an earlier state")
    parser.add_argument("workloads", nargs="*", help=f"any of {', '.join(WORKLOADS)}; or all")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--rounds", type=int, default=11, help="measurements of each row; 11")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"{'':<46} {'old':>8} {'new':>8} {'ratio':>6} {'CPU':>6}")
    for name in options.workloads or WORKLOADS:
        checkouts = [options.old.resolve(), _TESTS.parent]
        workers = [Worker(checkout, name, options.quick) for checkout in checkouts]
        while (tasks := [worker.ask() for worker in workers]) != [None, None]:
            task = tasks[0]
            assert task == tasks[1], f"the tasks differ: {tasks}"
            print(f"\n{task['title']}")
            for number, contestant in enumerate(task["contestants"]):
                rounds = options.rounds if task["unit"] == "seconds" else 1  # memory hardly varies
                row = _compare(workers, number, task["unit"], rounds)
                print(f"  {contestant:<44} {row}", flush=True)
            for worker in workers:
                worker.tell("next")


def _compare(workers: list[Worker], number: int, unit: str, rounds: int) -> str:
    """Return the cells of a row, after timing one contestant in both workers."""
    first = [worker.ask(f"{number} 1") for worker in workers]  # compiles
    seconds = max(worker.ask(f"{number} 1")["seconds"] for worker in workers)
    request = f"{number} {int(np.ceil(_SHORTEST / seconds))}"
    measured = []
    for index in range(rounds):
        order = slice(None, None, 1 if index % 2 == 0 else -1)
        pair = [worker.ask(request) for worker in workers[order]][order]
        measured.append([[found["figure"], found["cpu"]] for found in pair])
    old, new = np.moveaxis(np.array(measured), 1, 0)  # (rounds, 2) each
    ratio, cpu = np.median(new / old, axis=0)
    figures = [amount(float(np.median(side[:, 0])), unit) for side in (old, new)]
    cpu_text = f"{cpu:.3f}" if unit == "seconds" else ""
    numbers = f"{figures[0]:>8} {figures[1]:>8} {ratio:>6.3f} {cpu_text:>6}"
    return f"{numbers}  {_difference(*first)}"


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    parts = []
    if old["params"] != new["params"]:
        error = contest.relative_error(new["params"], np.array(old["params"]))
        parts.append(f"parameters differ by {error:.0e}")
    if old["evaluations"] != new["evaluations"]:
        parts.append(f"evaluations {old['evaluations']} -> {new['evaluations']}")
    return ", ".join(parts) or "same"


class Worker:
    """A process that runs one workload with the mlxopt of a checkout."""

    def __init__(self, checkout: Path, workload: str, quick: bool) -> None:
        self._checkout = checkout
        code = f"from benchmarks.compare import serve; serve({workload!r}, {quick})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=checkout,
            env={**peers.environment(), "PYTHONPATH": f"{checkout}{os.pathsep}{_TESTS}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, request: str) -> None:
        """Send a request that has no answer of its own."""
        assert self._process.stdin is not None
        print(request, file=self._process.stdin, flush=True)

    def ask(self, request: str = "") -> Any:
        """Send a request, if any, and return the worker's next answer."""
        if request:
            self.tell(request)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"The process in {self._checkout} failed; see its message above.")
        return json.loads(line)


def serve(workload: str, quick: bool) -> None:
    """Work for a `Worker`: print each task, then the figures of each contestant asked for, until
    the request is "next".
    """
    import mlxopt

    if not Path(mlxopt.__file__).is_relative_to(Path.cwd()):
        raise SystemExit(f"expected the mlxopt of {Path.cwd()}, but found {mlxopt.__file__}.")
    peers.find_spec = lambda name: None  # without the other libraries
    warnings.simplefilter("ignore")
    for task in WORKLOADS[workload](quick):
        ours = [contestant for contestant in task.contestants if contestant.package == "mlxopt"]
        names = [contestant.name for contestant in ours]
        _print({"title": task.title, "unit": task.unit, "contestants": names})
        while (request := sys.stdin.readline().strip()) != "next":
            number, repeats = map(int, request.split())
            _print(_measure(ours[number], repeats))
    _print(None)


def _measure(contestant: Contestant, repeats: int) -> dict[str, Any]:
    """Return the figures of several runs, and the answer of the last."""

    def run() -> Any:
        for _ in range(repeats - 1):
            contestant.run()
        return contestant.run()

    repeated = dataclasses.replace(contestant, run=run, share=float(repeats))
    figure, cpu, answer = contest.measure(repeated, _REST)
    evaluations = getattr(answer, "evaluations", None)
    return {
        "figure": figure,
        "cpu": cpu,
        "seconds": 1.0 if contestant.measures else figure,
        "evaluations": None if evaluations is None else int(np.sum(evaluations)),
        "params": contestant.params and np.ravel(contestant.params(answer)).tolist(),
    }


def _print(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""`mlxopt bench`: run the benchmarks of a clone of the repository."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from mlxopt.cli._console import check_picture, check_writable, fail

_TESTS = Path(__file__).parents[2] / "tests"


def bench(
    workloads: Annotated[
        list[str] | None,
        Argument(
            metavar="[WORKLOAD]...",
            help="Any of sgd, sgd-small, minibatch, accuracy, least-squares, logistic, flights, "
            "lbfgs, many, import, memory; or all.",
        ),
    ] = None,
    quick: Annotated[bool, Option("--quick", help="Small sizes, without goals.")] = False,
    json_file: Annotated[
        Path | None, Option("--json", metavar="FILE", help="Where to write all figures.")
    ] = None,
    plot: Annotated[Path | None, Option(metavar="FILE", help="Where to save a bar chart.")] = None,
) -> None:
    """Time mlxopt against plain MLX and every installed peer. Needs a clone of the repository.

    Peers are NumPy, SciPy, scikit-learn, statsmodels, glum, JAX with optax and jaxopt, and torch:
    all in one process with the same threads, in turn, each after a rest; the median of several
    runs, with the error of the answer. Takes about fifteen minutes, or with --quick less than one,
    and needs an idle machine.
    """
    if not (_TESTS / "benchmarks" / "run.py").is_file():
        remedy = "Clone the repository and run `pip install -e '.[bench]'` in it."
        fail(f"the installed package does not hold the benchmarks. {remedy}")
    check_writable(json_file)
    check_picture(plot)
    sys.path.insert(0, str(_TESTS))
    import_module("benchmarks.run").run(workloads or [], quick, json_file, plot)

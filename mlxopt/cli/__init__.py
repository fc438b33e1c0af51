"""The command line: `mlxopt demo`, `fit`, `doctor` and `bench`, one file each."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from mlxopt.cli import bench, demo, doctor, fit

_VERSION = "Print the version and exit."
_DEMO = ["demo", "demo --quick --out curves.png"]
_FIT = [
    "fit houses.csv --target price",
    "fit houses.csv --target price --features area,rooms --plot fit.png",
    "fit trial.csv --target died --model logistic --out model.npz",
]
_BENCH = ["bench --quick", "bench sgd logistic", "bench --json figures.json --plot figures.png"]


def _examples(commands: list[str]) -> str:
    # The mark \b preserves the line breaks of a paragraph.
    return "\n  mlxopt ".join(["\b\nExamples:", *commands])


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=_examples(_DEMO))(demo.demo)
app.command(epilog=_examples(_FIT))(fit.fit)
app.command()(doctor.doctor)
app.command(epilog=_examples(_BENCH))(bench.bench)


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"mlxopt {version('mlxopt')}")
        raise typer.Exit


@app.callback(epilog=_examples(_DEMO + _FIT))
def _options(
    version: Annotated[
        bool, typer.Option("--version", help=_VERSION, callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Optimization on MLX: see the methods at work, or fit a regression to your own table."""


def main() -> None:
    """Run the command line; the console script `mlxopt` starts here."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # print unknown characters as "?"
            stream.reconfigure(errors="replace")
    app(prog_name="mlxopt")

"""Shared by the commands: consoles, errors, warnings as notes, and checks of output files."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console

from mlxopt._platform.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def stdout() -> Console:
    """Return a new console for results."""
    return Console(file=sys.stdout, highlight=False)


def stderr() -> Console:
    """Return a new console for progress."""
    return Console(file=sys.stderr, highlight=False)


def fail(message: str) -> NoReturn:
    """Print a message on stderr and end the command with exit code 2, for wrong input."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(2)


@contextmanager
def noted(notes: list[str]) -> Iterator[None]:
    """Collect in `notes` the warnings issued inside the context, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # for developers
        yield
    notes += dict.fromkeys(str(warning.message) for warning in caught)


def print_notes(console: Console, notes: list[str]) -> None:
    for note in notes:
        console.print(f"\nNote: {note}", markup=False)


def check_writable(path: Path | None) -> None:
    """Fail, before the work, unless a file can be written at `path`."""
    if path is None:
        return
    if path.is_dir():
        fail(f"{path} is a folder; name a file in it.")
    if not path.parent.is_dir():
        fail(f"{path} cannot be written: there is no folder {path.parent}.")
    # The file is replaced, not overwritten: that takes a new one beside it.
    for place in (path, path.resolve().parent):
        if place.exists() and not os.access(place, os.W_OK):
            fail(f"{path} cannot be written: permission denied for {place}.")


def check_picture(path: Path | None) -> None:
    """Fail unless a picture can be written at `path`, in the format of its suffix."""
    from matplotlib.backend_bases import FigureCanvasBase

    check_writable(path)
    known = FigureCanvasBase.filetypes
    if path is not None and path.suffix.lstrip(".").lower() not in known:
        fail(f"{path}: a picture's name must end in one of .{', .'.join(sorted(known))}.")


def check_distinct(paths: dict[str, Path | None]) -> None:
    """Fail if two of the files, keyed by their arguments, are the same: a write destroys it."""
    given = [(name, path) for name, path in paths.items() if path is not None]
    for (first, a), (second, b) in itertools.combinations(given, 2):
        if a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b)):
            fail(f"{first} and {second} are the same file, {b}. Give {second} another name.")


def save(figure: Figure, path: Path) -> None:
    try:
        with replacing(path) as file:
            figure.savefig(file, dpi=150, format=path.suffix.lstrip(".").lower())
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror or error}.")

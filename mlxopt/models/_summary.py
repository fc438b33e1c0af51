"""A table of coefficients that prints itself."""

from __future__ import annotations

import dataclasses
import io
import shutil

import numpy as np
from scipy.special import ndtr, stdtr

from mlxopt._report import Row, html, shortened


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Summary:
    """What a fit says: a row for each coefficient, figures of the whole, and notes of caution.

    Printing it gives text, a notebook shows HTML, and the arrays are here to compute with.
    """

    title: str
    """The model and what it was fitted to."""
    names: list[str]
    """Of the rows: the intercept first, then the columns."""
    estimate: np.ndarray
    """(rows,)."""
    standard_error: np.ndarray
    """(rows,); nan where there is none, and then a note says why."""
    degrees_of_freedom: float
    """Of the t distribution; inf for the normal one."""
    figures: dict[str, str]
    """Rows, log-likelihood and the like, as text."""
    notes: list[str]
    """What keeps the numbers from meaning what they seem to."""

    @property
    def statistic(self) -> np.ndarray:
        """Estimate over standard error, (rows,): t or, with infinite degrees of freedom, z."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.estimate / self.standard_error

    @property
    def p_value(self) -> np.ndarray:
        """How likely a statistic as far from zero is where the coefficient is zero, (rows,)."""
        size = -np.abs(self.statistic)
        if np.isinf(self.degrees_of_freedom):
            return 2.0 * ndtr(size)
        return 2.0 * stdtr(self.degrees_of_freedom, size)

    def _header(self) -> list[str]:
        letter = "z" if np.isinf(self.degrees_of_freedom) else "t"
        return ["", "estimate", "std. error", letter, f"P>|{letter}|"]

    def _rows(self) -> list[Row]:
        columns = zip(
            self.names,
            self.estimate,
            self.standard_error,
            self.statistic,
            self.p_value,
            strict=True,
        )
        return shortened(
            [
                [
                    name,
                    f"{estimate:.6g}",
                    _text(error, ".4g"),
                    _ratio_text(ratio),
                    probability_text(p),
                ]
                for name, estimate, error, ratio, p in columns
            ]
        )

    def __str__(self) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, title in enumerate(self._header()):
            table.add_column(title, justify="right" if index else "left", overflow="fold")
        for row in self._rows():
            table.add_row(*(Text(cell) for cell in row))  # a column may be called "[red]"
        width = min(88, shutil.get_terminal_size((88, 24)).columns)
        # A console of Rich in a notebook would show the table in place of writing it.
        options = {"color_system": None, "highlight": False, "force_jupyter": False}
        console = Console(file=io.StringIO(), width=width, **options)
        console.print(Text(self.title))
        console.print(table)
        for name, text in self.figures.items():
            console.print(Text(f"{name:<20} {text}"))
        for note in self.notes:
            console.print(Text(f"\nNote: {note}"))
        written = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        return "\n".join(line.rstrip() for line in written.splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = html(self.title, self._rows(), self._header())
        return rows + html("", list(self.figures.items()), notes=self.notes)


def probability_text(p: float) -> str:
    """Return a P value as text: `0.0123`; `<1e-300` for one that float64 can hardly hold."""
    return "<1e-300" if p < 1e-300 else _text(p, ".3g")


def _ratio_text(ratio: float) -> str:
    return _text(ratio, ".4g" if abs(ratio) >= 1e4 else ".3f")


def _text(number: float, form: str) -> str:
    return "" if np.isnan(number) else format(float(number), form)

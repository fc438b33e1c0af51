"""Results as text and as HTML: listings of named values, and tables of columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from mlxopt._tree import Tree, count, dtype_name, leaves_with_paths

Row = Sequence[str]

_MOST_ROWS = 60
_MOST_LEAVES = 6


def listing(title: str, rows: Sequence[Row]) -> str:
    """Return (name, text) rows under a title, the text wrapped to 80 columns."""
    wrap = textwrap.TextWrapper(80, subsequent_indent=13 * " ", break_long_words=False)
    return "\n".join([title, *(wrap.fill(f"  {name:<10} {text}") for name, text in rows)])


def table(header: Row, rows: Sequence[Row]) -> str:
    """Return rows as text: the first column flush left, the others right; () gives a rule."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*filter(None, cells), strict=True)]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines = (
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) if row else rule
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def html(title: str, rows: Sequence[Row], header: Row = (), notes: Sequence[str] = ()) -> str:
    """Return rows, and notes below, as an HTML table; below a header the cells are flush right."""
    from html import escape

    side = "right" if header else "left"

    def line(row: Row, tag: str = "td") -> str:
        first, *others = map(escape, row)
        cells = (f"<{tag} style='text-align:{side}'>{cell}</{tag}>" for cell in others)
        return f"<tr><th style='text-align:left'>{first}</th>{''.join(cells)}</tr>"

    rows = [*filter(None, rows), *(("Note:", note) for note in notes)]
    head = f"<thead>{line(header, 'th')}</thead>" if header else ""
    caption = f"<caption><b>{escape(title)}</b></caption>" if title else ""
    return f"<table>{caption}{head}<tbody>{''.join(map(line, rows))}</tbody></table>"


def shortened(rows: Sequence[Row]) -> list[Row]:
    """Return the first 60 rows, and the number of the others in a last row."""
    hidden = len(rows) - _MOST_ROWS
    if hidden <= 0:
        return list(rows)
    return [*rows[:_MOST_ROWS], [f"... {hidden:,} more", *[""] * (len(rows[0]) - 1)]]


def shapes(params: Tree) -> str:
    """Return the path, shape and dtype of each leaf; of more than 6 leaves, the first 5."""
    texts = [
        f"{path or 'params'} {leaf.shape} {dtype_name(leaf.dtype)}"
        for path, leaf in leaves_with_paths(params)
    ]
    if len(texts) > _MOST_LEAVES:
        rest = f"... {len(texts)} arrays, {count(params):,} numbers in all"
        texts = [*texts[: _MOST_LEAVES - 1], rest]
    return ", ".join(texts)


def counted(number: int, what: str) -> str:
    """Return `1 row`, `2,000 rows`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def entry_names(base: str, tree: Tree) -> tuple[str, ...]:
    """Return the name of each entry of a tree: `params['w'][0, 1]`."""
    return tuple(
        f"{base}{path}" + (f"[{', '.join(map(str, index))}]" if index else "")
        for path, leaf in leaves_with_paths(tree)
        for index in np.ndindex(*leaf.shape)
    )


def combination(weights: np.ndarray, names: tuple[str, ...]) -> str:
    """Return a direction as text without zeros: `params['w'][0] - 2 params['w'][1]`."""
    first = weights[np.argmax(weights != 0)]
    weights = weights * np.sign(first) / np.abs(weights).max()
    large = [i for i in np.argsort(-np.abs(weights), kind="stable") if weights[i] != 0]
    text = ""
    for i in sorted(large[:5]):
        size = f"{abs(weights[i]):.3g} " if abs(abs(weights[i]) - 1) > 5e-4 else ""
        text += f" {'-' if weights[i] < 0 else '+'} {size}{names[i]}"
    text = text[3:] if text.startswith(" +") else f"-{text[3:]}"
    return text + (f" and {len(large) - 5} terms more" if len(large) > 5 else "")

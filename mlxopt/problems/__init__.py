"""Test problems that carry, and check, their own answers.

`MGH` is the set of Moré, Garbow and Hillstrom (1981), with one or more dimensions of each of its
problems; `OTHERS` are common ones beside it, `BOUNDED` have bounds; `ALL` is all of them. Those
with a `view` are functions of two variables to draw.

>>> import mlxopt as mo
>>> from mlxopt import problems
>>> problem = problems.get("Rosenbrock")
>>> problem.start, problem.start_value, problem.minima
((-1.2, 1.0), 24.2, (Minimum(value=0.0, point=(1.0, 1.0)),))
>>> result = mo.minimize(problem.loss, problem.params(), mo.LBFGS())
>>> problem.solved_by(result.value)
True
"""

from __future__ import annotations

import difflib

from mlxopt.problems._mgh_records import MGH
from mlxopt.problems._others import BOUNDED, OTHERS
from mlxopt.problems._record import Minimum, Problem

ALL = (*MGH, *OTHERS, *BOUNDED)

__all__ = ["ALL", "BOUNDED", "MGH", "OTHERS", "Minimum", "Problem", "get"]


def get(name: str) -> Problem:
    """Return the problem of that name.

    Raises:
        KeyError: there is none; the message has the nearest names.
    """
    found = {problem.name: problem for problem in ALL}
    if name in found:
        return found[name]
    close = difflib.get_close_matches(str(name), found, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise KeyError(f"no problem is called {name!r}.{hint} problems.ALL has them all.")

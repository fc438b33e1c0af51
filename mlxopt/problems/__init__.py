"""Test problems with their known answers.

`MGH` is the set of Moré, Garbow and Hillstrom (1981), each in one or more dimensions; `OTHERS` are
other common problems, `BOUNDED` have bounds, `ALL` is all of them. A `view` is that of a picture.

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

from mlxopt.problems._mgh import MGH
from mlxopt.problems._others import BOUNDED, OTHERS
from mlxopt.problems._record import Minimum, Problem

ALL = (*MGH, *OTHERS, *BOUNDED)

__all__ = ["ALL", "BOUNDED", "MGH", "OTHERS", "Minimum", "Problem", "get"]


def __dir__() -> list[str]:
    return __all__


def get(name: str) -> Problem:
    """Return the problem of that name; raise KeyError, with the nearest names, if there is none."""
    found = {problem.name: problem for problem in ALL}
    if name in found:
        return found[name]
    close = difflib.get_close_matches(str(name), found, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise KeyError(f"no problem is called {name!r}.{hint} problems.ALL has all of them.")

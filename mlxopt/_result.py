"""The result of a run, and the values recorded on the way."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt import plots
from mlxopt._report import html, listing, shapes
from mlxopt._status import Status
from mlxopt._tree import Tree, count, leaves_with_paths, to_device, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class History(NamedTuple):
    """The records of a run, one entry of each array for each."""

    step: np.ndarray  # int64: steps taken at the time
    value: np.ndarray  # float64: the loss
    optimality: np.ndarray  # float64: see `Result.optimality`
    seconds: np.ndarray  # float64: since the start

    @classmethod
    def of(cls, records: list[tuple[int, float, float, float]]) -> History:
        """Return records, each (step, value, optimality, seconds), as arrays."""
        step, *others = np.array(records, dtype=np.float64).reshape(-1, 4).T
        return cls(step.astype(np.int64), *others)

    def __repr__(self) -> str:
        return f"History({len(self.step)} entries: step, value, optimality, seconds)"


class Phase(NamedTuple):
    """The part of a run by one optimizer in one dtype."""

    optimizer: str  # its name
    dtype: str  # of the parameters
    status: Status  # why it ended
    steps: int  # taken in this phase
    evaluations: int  # likewise
    seconds: float  # likewise
    value: float  # the loss where it ended
    optimality: float  # see `Result.optimality`


class Certificate(NamedTuple):
    """The kind of point that a run ended in; all numbers are computed in float64."""

    verdict: str  # in a sentence
    # Whether the loss rises, or at least never falls, all around; None where products with the
    # Hessian show nothing else, but cannot show it.
    is_minimum: bool | None
    grad_norm: float  # the gradient's largest absolute entry
    floor: float  # the error of that number by rounding in the run's dtype
    decrement: float | None  # √(gᵀ H⁻¹ g); half its square is the decrease still to be expected
    curvature: float | None  # the Hessian's smallest eigenvalue
    condition: float | None  # its condition number, where it is positive definite
    distance: float | None  # the largest entry of the Newton step, about that to the minimum

    def _rows(self) -> list[tuple[str, str]]:
        names = "grad_norm", "floor", "decrement", "curvature", "condition", "distance"
        values = {name: getattr(self, name) for name in names}
        rows = [(n, "unknown" if v is None else f"{v:.3g}") for n, v in values.items()]
        return [("verdict", self.verdict), *rows]

    def __repr__(self) -> str:
        return listing("Certificate", self._rows())

    def _repr_html_(self) -> str:
        return html("Certificate", self._rows())


class Info(NamedTuple):
    """The argument of a callback, at each record."""

    step: int  # steps taken
    value: float  # the loss
    optimality: float  # see `Result.optimality`
    seconds: float  # since the start
    evaluations: int  # of the loss and its gradient
    params: Tree  # the parameters
    state: Any = None  # the optimizer's, for `mo.save`; it may hold many vectors like params

    def __repr__(self) -> str:
        shown = self._asdict()
        del shown["state"]  # it may hold many vectors
        return f"Info({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Kept:
    """What results that hold a loss and its data, as `certify`, have in common."""

    def release(self) -> None:
        """Drop the loss and the data, which are held for certificates.

        A certificate computed before stays. Call it on results that are kept for long.
        """
        object.__setattr__(self, "certify", None)

    def __copy__(self) -> Any:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, certify=None)
        return copy

    def __getstate__(self) -> dict[str, Any]:
        # The loss cannot be pickled; a certificate computed before can.
        return tree_map(_picklable, {**self.__dict__, "certify": None})


class _Float64:
    """A float64 array of MLX, which unpickles its own as float32."""

    def __init__(self, array: mx.array) -> None:
        self.numbers = to_numpy(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return _float64, (self.numbers,)


def _float64(numbers: np.ndarray) -> mx.array:
    return to_device(numbers, mx.float64)


def _picklable(leaf: Any) -> Any:
    return _Float64(leaf) if isinstance(leaf, mx.array) and leaf.dtype == mx.float64 else leaf


# Compared as objects: arrays do not answer == with yes or no.
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Result(Kept):
    """The result of `minimize`.

    `value` and `optimality` are those of `params`, never of another point.
    """

    params: Tree
    """The parameters, a tree like the one that was passed in."""
    value: float
    """The loss at `params`."""
    optimality: float
    """The largest absolute entry of the gradient at `params`; with bounds or a penalty, of the
    projected gradient or the prox-gradient map."""
    status: Status
    """Why the run stopped; `status.value` says what to try."""
    steps: int
    """Steps taken: updates of first-order rules, trials of the other methods."""
    evaluations: int
    """Evaluations of the loss with its gradient, the one at the start included."""
    seconds: float
    """Wall time, compilation included."""
    history: History
    """The records of the run."""
    phases: tuple[Phase, ...] = ()
    """The parts of the run, by optimizer and dtype."""
    gain: float = math.nan
    """The decrease of the loss still to be expected, ½ gᵀH⁻¹g with the Hessian at `params`; NaN
    where it was not computed."""
    reason: str = ""
    """More about the status, in a sentence, where there is more to say."""
    state: Any = None
    """The optimizer's state at `params`, to resume from (`init=`) or to save (`mo.save`). None from
    `least_squares`."""
    certify: Callable[[], Certificate] | None = None
    """Computes the certificate; holds the loss and the data until then. See `release`."""

    @functools.cached_property
    def certificate(self) -> Certificate:
        """The kind of point that `params` is, judged in float64; computed at the first access."""
        if self.certify is None:
            raise ValueError(
                "there is no certificate: it judges a loss of all the data, without bounds or a "
                "penalty, and released results and copies of a result have lost that loss. Write "
                "mo.certify(loss, result.params, *data)."
            )
        certificate = self.certify()
        self.release()
        return certificate

    @property
    def converged(self) -> bool:
        """Whether the status is CONVERGED."""
        return self.status is Status.CONVERGED

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw loss and gradient norm against steps; return the matplotlib axes."""
        return plots.history(self.history, ax=ax)

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("status", f"{self.status.name}: {self.status.value}"),
            *(("", _of_phase(phase)) for phase in self.phases if len(self.phases) > 1),
            ("value", f"{self.value:.9g}"),
            ("optimality", f"{self.optimality:.3g}"),
            ("steps", f"{self.steps:,} ({self.evaluations:,} evaluations)"),
            ("seconds", f"{self.seconds:.3g}"),
            ("params", _describe(self.params)),
        ]

    def __repr__(self) -> str:
        return listing(type(self).__name__, self._rows())

    def _repr_html_(self) -> str:
        return html(type(self).__name__, self._rows())


class TrainResult(Result):
    """The result of `train`.

    `value` is the mean loss of the last epoch's batches, each evaluated before its step, and
    `optimality` the largest absolute entry of the last batch's gradient: no point is evaluated on
    all the data.
    """


def _of_phase(phase: Phase) -> str:
    return (
        f"{phase.optimizer}, {phase.dtype}: {phase.status.name} at {phase.optimality:.2g} after "
        f"{phase.steps:,} steps"
    )


def _describe(params: Tree) -> str:
    """Return the parameters if they are few, else their shapes."""
    if count(params) > 12:
        return shapes(params)
    named = leaves_with_paths(params)
    return ", ".join(f"{path or 'params'} = {_numbers(leaf)}" for path, leaf in named)


def _numbers(leaf: mx.array) -> str:
    return np.array2string(to_numpy(leaf), precision=6, separator=", ").replace("\n", "")

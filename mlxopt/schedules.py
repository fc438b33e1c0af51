"""Learning rates that change along a run: frozen dataclasses, called with the step.

Any function of the step (an int, counted from 0 over the whole run) can be a learning rate.

>>> import mlxopt as mo
>>> rate = mo.schedules.warmup(mo.schedules.cosine(0.1, steps=1000), steps=100)
>>> [round(rate(step), 4) for step in (0, 50, 100, 600, 1100)]
[0.001, 0.0505, 0.1, 0.05, 0.0]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

from mlxopt._checks import check_fields

__all__ = ["constant", "cosine", "exponential", "one_cycle", "reduce_on_plateau", "step", "warmup"]


def __dir__() -> list[str]:
    return __all__


_LIMITS: dict[str, dict[str, Any]] = {
    "factor": {"least": 0, "most": 1},
    "threshold": {"least": 0, "most": 1},
    "every": {"whole": True},
    "steps": {"whole": True},
    "patience": {"whole": True},
    "first": {"least": 1},
    "last": {"least": 1},
}


class _Schedule:
    """A dataclass with checked fields: by default numbers, zero or more."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (name == "then" and callable(value)):
                check_fields(self, name, **_LIMITS.get(name, {"least": 0}))


@dataclasses.dataclass(frozen=True)
class constant(_Schedule):
    """The same learning rate in every step.

    >>> import mlxopt as mo
    >>> mo.schedules.constant(0.1)(1000)
    0.1
    """

    learning_rate: float

    def __call__(self, step: int) -> float:
        return float(self.learning_rate)


@dataclasses.dataclass(frozen=True)
class step(_Schedule):
    """A learning rate that drops at regular intervals: learning_rate · factor^⌊step / every⌋.

    >>> import mlxopt as mo
    >>> rate = mo.schedules.step(1.0, every=100, factor=0.5)
    >>> rate(99), rate(100), rate(200)
    (1.0, 0.5, 0.25)
    """

    learning_rate: float
    every: int
    factor: float = 0.1

    def __call__(self, step: int) -> float:
        return self.learning_rate * self.factor ** (step // self.every)


@dataclasses.dataclass(frozen=True)
class exponential(_Schedule):
    """A learning rate that falls by the same factor in every step: learning_rate · factor^step.

    To fall by `factor` over n steps, write `factor ** (1 / n)`.

    >>> import mlxopt as mo
    >>> rate = mo.schedules.exponential(1.0, factor=0.5)
    >>> rate(0), rate(3)
    (1.0, 0.125)
    """

    learning_rate: float
    factor: float

    def __call__(self, step: int) -> float:
        return self.learning_rate * self.factor**step


@dataclasses.dataclass(frozen=True)
class cosine(_Schedule):
    """A learning rate that falls along half a cosine from `learning_rate` to `end`.

    It is `end` from step number `steps` on. Loshchilov and Hutter (2017), "SGDR: stochastic
    gradient descent with warm restarts", equation 5, without the restarts.

    >>> import mlxopt as mo
    >>> rate = mo.schedules.cosine(1.0, steps=100, end=0.1)
    >>> [round(rate(step), 3) for step in (0, 25, 50, 100, 200)]
    [1.0, 0.868, 0.55, 0.1, 0.1]
    """

    learning_rate: float
    steps: int
    end: float = 0.0

    def __call__(self, step: int) -> float:
        return _half_cosine(self.learning_rate, self.end, step / self.steps)


@dataclasses.dataclass(frozen=True)
class warmup(_Schedule):
    """A learning rate that rises in a straight line for `steps` steps, then follows another.

    The first rate is 1 / (steps + 1) of the first rate of `then`, not zero.

    Args:
        then: a number, or a schedule, whose step 0 is step number `steps` of this one.
        steps: the number of steps of the rise.

    >>> import mlxopt as mo
    >>> rate = mo.schedules.warmup(1.0, steps=4)
    >>> [round(rate(step), 3) for step in range(6)]
    [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    """

    then: float | Callable[[int], Any]
    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.then, "reads_losses", False) is True:
            raise TypeError(
                f"warmup(then={self.then!r}): expected a number or a function of the step alone, "
                f"got a function of the losses as well."
            )

    def __call__(self, step: int) -> float:
        rate = self.then(max(step - self.steps, 0)) if callable(self.then) else self.then
        return float(rate) * min((step + 1) / (self.steps + 1), 1.0)


@dataclasses.dataclass(frozen=True)
class one_cycle(_Schedule):
    """A learning rate that rises to `learning_rate` and falls far below the first one.

    Two halves of a cosine: up from learning_rate / `first` over a share `rise` of the steps, then
    down to learning_rate / (`first` · `last`) at step number steps - 1; constant from there on.
    Smith and Topin (2019), "Super-convergence: very fast training of neural networks using large
    learning rates", with the shape and the defaults of torch.

    Args:
        learning_rate: the highest rate.
        steps: the number of steps of the cycle.
        rise: the share of the steps that go up, between 0 and 1.
        first: the highest rate over the first.
        last: the first rate over the last.

    >>> import mlxopt as mo
    >>> rate = mo.schedules.one_cycle(1.0, steps=101, rise=0.5)
    >>> [round(rate(step), 6) for step in (0, 49, 50, 100, 200)]
    [0.04, 0.999758, 0.999758, 4e-06, 4e-06]
    """

    learning_rate: float
    steps: int
    rise: float = 0.3
    first: float = 25.0
    last: float = 1e4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.rise * self.steps < self.steps:
            raise ValueError(
                f"one_cycle(steps={self.steps}, rise={self.rise}): the rise takes rise · steps = "
                f"{self.rise * self.steps:g} steps; expected more than 1, and fewer than all."
            )

    def __call__(self, step: int) -> float:
        top, begin = self.learning_rate, self.learning_rate / self.first
        peak, final = self.rise * self.steps - 1, self.steps - 1
        if step <= peak:
            return _half_cosine(begin, top, step / peak)
        return _half_cosine(top, begin / self.last, (step - peak) / (final - peak))


@dataclasses.dataclass(frozen=True)
class reduce_on_plateau(_Schedule):
    """A learning rate that drops whenever the loss has stopped falling.

    A function of the losses read so far, without memory: in `train` the mean losses of the epochs,
    in `minimize` the loss at the start and every `record_every` steps.

    Args:
        learning_rate: the first rate.
        factor: the ratio of a rate to the one before.
        patience: losses in a row that are not lower than the lowest before them; with the next such
            loss the rate drops.
        threshold: the share of the lowest loss by which a loss must be lower to count as lower.
        least: the lowest rate.

    >>> import mlxopt as mo
    >>> rate = mo.schedules.reduce_on_plateau(0.1, factor=0.5, patience=1)
    >>> rate(0, (3.0, 2.0, 2.0)), rate(0, (3.0, 2.0, 2.0, 2.0))
    (0.1, 0.05)
    """

    reads_losses: ClassVar[bool] = True

    learning_rate: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    least: float = 0.0

    def __call__(self, step: int, losses: tuple[float, ...]) -> float:
        """Return the learning rate after these losses, oldest first, at any step."""
        rate, lowest, waited = float(self.learning_rate), math.inf, 0
        for value in losses:
            waited += 1
            if lowest == math.inf or value < lowest - self.threshold * abs(lowest):
                lowest, waited = value, 0
            elif waited > self.patience:
                rate, waited = max(rate * self.factor, min(rate, self.least)), 0
        return rate


def _half_cosine(begin: float, end: float, share: float) -> float:
    """Return half a cosine from `begin` at share 0 to `end` from share 1 on."""
    return end + 0.5 * (begin - end) * (1 + math.cos(math.pi * min(share, 1.0)))

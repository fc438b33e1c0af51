"""The contract of optimizers as a test, for anyone's own: `check_optimizer(MyOptimizer())`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mlxopt.optimizers import FirstOrder, Optimizer
from mlxopt.testing._contract import Contract
from mlxopt.testing._problems import PROBLEMS

__all__ = ["check_optimizer"]


def check_optimizer(
    optimizer: Optimizer[Any],
    *,
    converges: Collection[str] | None = None,
    own_optimality: bool = False,
) -> None:
    """Raise AssertionError unless `optimizer` keeps the contract of `mlxopt.optimizers.Optimizer`.

    It is run on small problems, step by step, and after each step the state is looked at:

    - `value` and `grad` are the loss and its gradient at `params`, `optimality` is the gradient's
      largest absolute entry, and value and optimality are host floats;
    - parameters and gradient keep structure, shapes and dtypes: float64, float32, and a tree with
      a bfloat16 leaf;
    - one step evaluates once at most; neither the optimizer, nor the start, the data or an earlier
      state changes; the same step from the same state leads to the same place, and so do steps
      taken singly and ten in one call;
    - where the loss or its gradient becomes NaN, the state stays at a finite point;
    - at an exact minimum, where the gradient is zero, nothing breaks;
    - the problems it is to converge on, it solves, and in their minimum it stays.

    Args:
        optimizer: what to check, with hyper-parameters that suit problems of size and curvature
            about 1.
        converges: which of "quadratic" (a convex one of condition 5) and "rosenbrock" it must
            solve. None asks a `FirstOrder` rule for the first and any other for both.
        own_optimality: whether its `optimality` measures something else than the gradient, such as
            an angle; then it must only be a number, zero or more, that gets small at a minimum.

    A penalty or a constraint must not matter on these problems: `Box(-100, 100)` will do.

    >>> import mlxopt as mo
    >>> check_optimizer(mo.SGD(0.1))
    >>> check_optimizer(mo.SGD(0.1), converges=["rosenbrock"])
    Traceback (most recent call last):
    ...
    AssertionError: SGD: it left the finite numbers on rosenbrock: status NONFINITE after ...
    """
    wanted = _wanted(optimizer, converges)
    Contract(optimizer, own_optimality).check(wanted)


def _wanted(optimizer: Any, converges: Collection[str] | None) -> Collection[str]:
    if not isinstance(optimizer, Optimizer):
        what = (
            f"the class {optimizer.__name__}; pass one of it, {optimizer.__name__}()"
            if isinstance(optimizer, type)
            else f"{optimizer!r}; expected a subclass of mlxopt.optimizers.Optimizer"
        )
        raise AssertionError(f"check_optimizer was given {what}.")
    if converges is None:
        return PROBLEMS[:1] if isinstance(optimizer, FirstOrder) else PROBLEMS
    if isinstance(converges, str) or not set(converges) <= set(PROBLEMS):
        raise ValueError(f"converges is {converges!r}; expected a list of {PROBLEMS}, or None.")
    return converges

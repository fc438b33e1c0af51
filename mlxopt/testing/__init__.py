"""The contract of optimizers as a test for your own: `check_optimizer(MyOptimizer())`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mlxopt.optimizers import FirstOrder, Optimizer
from mlxopt.testing._contract import Contract
from mlxopt.testing._problems import PROBLEMS

__all__ = ["check_optimizer"]


def __dir__() -> list[str]:
    return __all__


def check_optimizer(
    optimizer: Optimizer[Any],
    *,
    converges: Collection[str] | None = None,
    own_optimality: bool = False,
) -> None:
    """Raise AssertionError unless `optimizer` keeps the contract of `mlxopt.optimizers.Optimizer`.

    It runs on small problems, and each state is checked:

    - `value` and `grad` are the loss and its gradient at `params`, `optimality` is the gradient's
      largest absolute entry, and `moved` is whether the step changed `params`; value and optimality
      are host floats;
    - parameters and gradient keep structure, shapes and dtypes, bfloat16 included;
    - a step evaluates at most once, and depends on the objective and the state alone, none of which
      changes; ten steps in one call equal ten single steps;
    - where the loss or its gradient becomes NaN, the state is the last finite point, and at an
      exact minimum every number is finite;
    - the problems in `converges` are solved.

    Args:
        optimizer: hyper-parameters suit problems of size and curvature about 1; bounds and
            penalties do not matter on them: `Box(-100, 100)` will do.
        converges: which of "quadratic" (convex, of condition 5) and "rosenbrock" it must solve.
            None: the first for a `FirstOrder` rule, both for any other.
        own_optimality: whether `optimality` measures something else than the gradient, such as an
            angle; it must then be zero or more, and small at a minimum.

    >>> import mlxopt as mo
    >>> check_optimizer(mo.SGD(0.1))
    >>> check_optimizer(mo.SGD(0.1), converges=["rosenbrock"])
    Traceback (most recent call last):
    ...
    AssertionError: SGD: it left the finite numbers on rosenbrock: status NONFINITE after ...
    """
    if not isinstance(optimizer, Optimizer):
        came = f"{optimizer!r}; expected a subclass of mlxopt.optimizers.Optimizer"
        if isinstance(optimizer, type):
            came = f"the class {optimizer.__name__}; pass one of it, {optimizer.__name__}()"
        raise AssertionError(f"check_optimizer was given {came}.")
    if converges is None:
        converges = PROBLEMS[:1] if isinstance(optimizer, FirstOrder) else PROBLEMS
    if isinstance(converges, str) or not set(converges) <= set(PROBLEMS):
        raise ValueError(f"converges is {converges!r}; expected a list of {PROBLEMS}, or None.")
    Contract(optimizer, own_optimality).check(converges)

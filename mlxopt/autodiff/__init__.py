"""Derivatives of a user's function, with checks where MLX's own are silently wrong.

A loss that leaves the graph (through `.item()`, `float()` or NumPy) has a gradient that is wrong,
often zero, without an error. Integer parameters are differentiated in integer arithmetic. Here each
of these raises, and the message says what to write instead.

All but `check_grads` take a function and return a function. Its parameters can be any tree of float
arrays; derivatives are trees like it.
"""

from mlxopt.autodiff._check import GradientCheck, GradientError, check_grads
from mlxopt.autodiff._gradient import grad, value_and_grad
from mlxopt.autodiff._guards import (
    TapeError,
    check_is_callable,
    checked_loss,
    kept_random_state,
    tape_guard,
    with_fixed_draw,
)
from mlxopt.autodiff._jacobian import jacobian, per_example_grad
from mlxopt.autodiff._rows import (
    can_batch,
    hessian_product,
    hessian_row,
    over_rows,
    sample_rows,
    unit_rows,
)
from mlxopt.autodiff._second import hessian, hvp

__all__ = [
    "GradientCheck",
    "GradientError",
    "TapeError",
    "can_batch",
    "check_grads",
    "check_is_callable",
    "checked_loss",
    "grad",
    "hessian",
    "hessian_product",
    "hessian_row",
    "hvp",
    "jacobian",
    "kept_random_state",
    "over_rows",
    "per_example_grad",
    "sample_rows",
    "tape_guard",
    "unit_rows",
    "value_and_grad",
    "with_fixed_draw",
]

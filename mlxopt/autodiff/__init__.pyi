"""The names of `mlxopt.autodiff`, each once; see `mlxopt/__init__.pyi`."""

from ._check import (
    GradientCheck as GradientCheck,
    GradientError as GradientError,
    check_grads as check_grads,
)
from ._gradient import grad as grad, value_and_grad as value_and_grad
from ._guards import TapeError as TapeError
from ._jacobian import jacobian as jacobian, per_example_grad as per_example_grad
from ._second import hessian as hessian, hvp as hvp

__all__: list[str]

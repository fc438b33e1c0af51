"""Autodiff-based optimization on MLX: write a loss, get an answer that says how far to trust it."""

from typing import TYPE_CHECKING, Any

from mlxopt import (
    _backend,  # noqa: F401 - first: it says what to install where MLX lacks a backend
    autodiff,
    data,
    losses,
    optimizers,
    plots,
    prox,
    schedules,
)
from mlxopt._argmin import argmin
from mlxopt._certificate import certify
from mlxopt._least_squares import LeastSquaresResult, least_squares
from mlxopt._minimize import minimize
from mlxopt._result import Certificate, History, Info, Result, TrainResult
from mlxopt._status import ConvergenceWarning, Status
from mlxopt._train import train
from mlxopt.autodiff import (
    GradientCheck,
    GradientError,
    TapeError,
    check_grads,
    grad,
    hessian,
    hvp,
    jacobian,
    per_example_grad,
    value_and_grad,
)
from mlxopt.data import batches
from mlxopt.optimizers import (
    BFGS,
    LBFGS,
    LBFGSB,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Clipped,
    ConjugateGradient,
    GaussNewton,
    GradientDescent,
    Grouped,
    LevenbergMarquardt,
    Lion,
    Momentum,
    Newton,
    NewtonCG,
    Prodigy,
    ProximalGradient,
    RMSProp,
    TrustRegion,
)

if TYPE_CHECKING:
    from mlxopt import inference, linalg, models, problems, special, testing
    from mlxopt._functional import functional
    from mlxopt._race import Race, race

__version__ = "0.1.0"

__all__ = [
    "BFGS",
    "LBFGS",
    "LBFGSB",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Certificate",
    "Clipped",
    "ConjugateGradient",
    "ConvergenceWarning",
    "GaussNewton",
    "GradientCheck",
    "GradientDescent",
    "GradientError",
    "Grouped",
    "History",
    "Info",
    "LeastSquaresResult",
    "LevenbergMarquardt",
    "Lion",
    "Momentum",
    "Newton",
    "NewtonCG",
    "Prodigy",
    "ProximalGradient",
    "RMSProp",
    "Race",
    "Result",
    "Status",
    "TapeError",
    "TrainResult",
    "TrustRegion",
    "argmin",
    "autodiff",
    "batches",
    "certify",
    "check_grads",
    "data",
    "functional",
    "grad",
    "hessian",
    "hvp",
    "inference",
    "jacobian",
    "least_squares",
    "linalg",
    "losses",
    "minimize",
    "models",
    "optimizers",
    "per_example_grad",
    "plots",
    "problems",
    "prox",
    "race",
    "schedules",
    "special",
    "testing",
    "train",
    "value_and_grad",
]


# Imported when first used: SciPy and mlx.nn take longer to import than all the rest.
_LATER = {"inference", "linalg", "models", "problems", "special", "testing"}
_INSIDE = {"Race": "mlxopt._race", "functional": "mlxopt._functional", "race": "mlxopt._race"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LATER:
        return importlib.import_module(f"mlxopt.{name}")
    if name in _INSIDE:
        return getattr(importlib.import_module(_INSIDE[name]), name)
    raise AttributeError(f"module 'mlxopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

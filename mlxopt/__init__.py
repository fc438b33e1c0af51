"""Autodiff-based optimization on MLX: write a loss, get an answer that says how far to trust it."""

from typing import TYPE_CHECKING, Any

from mlxopt import (
    _backend,  # noqa: F401 - first: it says what to install where MLX lacks a backend
    autodiff,
    data,
    losses,
    optimizers,
    plots,
)
from mlxopt._certificate import certify
from mlxopt._minimize import minimize
from mlxopt._result import Certificate, History, Info, Result, TrainResult
from mlxopt._status import ConvergenceWarning, Status
from mlxopt._train import train
from mlxopt.autodiff import TapeError, grad, value_and_grad
from mlxopt.data import batches
from mlxopt.optimizers import LBFGS, SGD, Momentum, Newton

if TYPE_CHECKING:
    from mlxopt import models

__version__ = "0.1.0"

__all__ = [
    "LBFGS",
    "SGD",
    "Certificate",
    "ConvergenceWarning",
    "History",
    "Info",
    "Momentum",
    "Newton",
    "Result",
    "Status",
    "TapeError",
    "TrainResult",
    "autodiff",
    "batches",
    "certify",
    "data",
    "grad",
    "losses",
    "minimize",
    "models",
    "optimizers",
    "plots",
    "train",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    # The models bring SciPy, which takes longer to import than all the rest.
    if name == "models":
        import importlib

        return importlib.import_module("mlxopt.models")
    raise AttributeError(f"module 'mlxopt' has no attribute {name!r}")

"""Optimizers, one file per algorithm; `_base.py` holds the contract they keep."""

from mlxopt.optimizers._base import FirstOrder, FirstOrderState, Optimizer, State
from mlxopt.optimizers.lbfgs import LBFGS, LBFGSState
from mlxopt.optimizers.momentum import Momentum
from mlxopt.optimizers.newton import Newton, NewtonState
from mlxopt.optimizers.sgd import SGD

__all__ = [
    "LBFGS",
    "SGD",
    "FirstOrder",
    "FirstOrderState",
    "LBFGSState",
    "Momentum",
    "Newton",
    "NewtonState",
    "Optimizer",
    "State",
]

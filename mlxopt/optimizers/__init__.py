"""Optimizers, one file per algorithm; `_base.py` holds the contract they keep."""

from mlxopt.optimizers._base import FirstOrder, FirstOrderState, Optimizer, State
from mlxopt.optimizers.adagrad import Adagrad
from mlxopt.optimizers.adam import Adam, AdamW
from mlxopt.optimizers.bfgs import BFGS
from mlxopt.optimizers.conjugate_gradient import ConjugateGradient
from mlxopt.optimizers.gauss_newton import GaussNewton, GaussNewtonState
from mlxopt.optimizers.gradient_descent import GradientDescent
from mlxopt.optimizers.grouped import Clipped, Grouped
from mlxopt.optimizers.lbfgs import LBFGS, LBFGSState
from mlxopt.optimizers.lbfgsb import LBFGSB
from mlxopt.optimizers.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtState
from mlxopt.optimizers.lion import Lion
from mlxopt.optimizers.momentum import Momentum
from mlxopt.optimizers.newton import Newton, NewtonState
from mlxopt.optimizers.newton_cg import NewtonCG
from mlxopt.optimizers.prodigy import Prodigy
from mlxopt.optimizers.proximal import ProximalGradient
from mlxopt.optimizers.rmsprop import RMSProp
from mlxopt.optimizers.sgd import SGD
from mlxopt.optimizers.trust_region import TrustRegion

__all__ = [
    "BFGS",
    "LBFGS",
    "LBFGSB",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Clipped",
    "ConjugateGradient",
    "FirstOrder",
    "FirstOrderState",
    "GaussNewton",
    "GaussNewtonState",
    "GradientDescent",
    "Grouped",
    "LBFGSState",
    "LevenbergMarquardt",
    "LevenbergMarquardtState",
    "Lion",
    "Momentum",
    "Newton",
    "NewtonCG",
    "NewtonState",
    "Optimizer",
    "Prodigy",
    "ProximalGradient",
    "RMSProp",
    "State",
    "TrustRegion",
]

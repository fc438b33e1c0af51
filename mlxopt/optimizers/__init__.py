"""Optimizers, one file per algorithm; `_base.py` holds the contract they keep."""

from typing import TYPE_CHECKING

from mlxopt._lazy import lazy
from mlxopt.optimizers._base import FirstOrder, FirstOrderState, Optimizer, State

if TYPE_CHECKING:
    from mlxopt.optimizers._descent import Descent, DescentState, Direction, Trial
    from mlxopt.optimizers.adagrad import Adagrad
    from mlxopt.optimizers.adam import Adam, AdamW
    from mlxopt.optimizers.bfgs import BFGS
    from mlxopt.optimizers.conjugate_gradient import ConjugateGradient
    from mlxopt.optimizers.gauss_newton import GaussNewton
    from mlxopt.optimizers.gradient_descent import GradientDescent
    from mlxopt.optimizers.grouped import Clipped, Grouped
    from mlxopt.optimizers.lbfgs import LBFGS
    from mlxopt.optimizers.lbfgsb import LBFGSB
    from mlxopt.optimizers.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtState
    from mlxopt.optimizers.lion import Lion
    from mlxopt.optimizers.momentum import Momentum
    from mlxopt.optimizers.newton import Newton
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
    "Descent",
    "DescentState",
    "Direction",
    "FirstOrder",
    "FirstOrderState",
    "GaussNewton",
    "GradientDescent",
    "Grouped",
    "LevenbergMarquardt",
    "LevenbergMarquardtState",
    "Lion",
    "Momentum",
    "Newton",
    "NewtonCG",
    "Optimizer",
    "Prodigy",
    "ProximalGradient",
    "RMSProp",
    "State",
    "Trial",
    "TrustRegion",
]

_HOMES = {
    "_descent": "Descent DescentState Direction Trial",
    "adagrad": "Adagrad",
    "adam": "Adam AdamW",
    "bfgs": "BFGS",
    "conjugate_gradient": "ConjugateGradient",
    "gauss_newton": "GaussNewton",
    "gradient_descent": "GradientDescent",
    "grouped": "Clipped Grouped",
    "lbfgs": "LBFGS",
    "lbfgsb": "LBFGSB",
    "levenberg_marquardt": "LevenbergMarquardt LevenbergMarquardtState",
    "lion": "Lion",
    "momentum": "Momentum",
    "newton": "Newton",
    "newton_cg": "NewtonCG",
    "prodigy": "Prodigy",
    "proximal": "ProximalGradient",
    "rmsprop": "RMSProp",
    "sgd": "SGD",
    "trust_region": "TrustRegion",
}
__getattr__ = lazy(__name__, _HOMES)

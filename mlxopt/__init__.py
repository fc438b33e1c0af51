"""Autodiff-based optimization on MLX: write a loss, get an answer that says how far to trust it."""

from typing import TYPE_CHECKING

from mlxopt import _platform  # noqa: F401 - says what to install if MLX has no backend
from mlxopt._lazy import lazy

if TYPE_CHECKING:
    from mlxopt import (
        autodiff,
        data,
        inference,
        linalg,
        losses,
        models,
        optimizers,
        plots,
        problems,
        prox,
        schedules,
        special,
        testing,
    )
    from mlxopt._argmin import argmin
    from mlxopt._certificate import certify
    from mlxopt._functional import functional
    from mlxopt._least_squares import LeastSquaresResult, least_squares
    from mlxopt._many import ManyResult, minimize_many
    from mlxopt._minimize import minimize
    from mlxopt._race import Race, race
    from mlxopt._result import Certificate, History, Info, Result, TrainResult
    from mlxopt._saved import load, save
    from mlxopt._status import ConvergenceWarning, Status
    from mlxopt._stop import Seconds, Stall, Steps, StopRule, Tolerance
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
    "ManyResult",
    "Momentum",
    "Newton",
    "NewtonCG",
    "Prodigy",
    "ProximalGradient",
    "RMSProp",
    "Race",
    "Result",
    "Seconds",
    "Stall",
    "Status",
    "Steps",
    "StopRule",
    "TapeError",
    "Tolerance",
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
    "load",
    "losses",
    "minimize",
    "minimize_many",
    "models",
    "optimizers",
    "per_example_grad",
    "plots",
    "problems",
    "prox",
    "race",
    "save",
    "schedules",
    "special",
    "testing",
    "train",
    "value_and_grad",
]

# Where each name is found when it is first used; importing all at once would take longer than MLX
# and NumPy together do.
_HOMES = {
    "autodiff": "GradientCheck GradientError TapeError check_grads grad hessian hvp jacobian "
    "per_example_grad value_and_grad",
    "data": "batches",
    "optimizers": "BFGS LBFGS LBFGSB SGD Adagrad Adam AdamW Clipped ConjugateGradient GaussNewton "
    "GradientDescent Grouped LevenbergMarquardt Lion Momentum Newton NewtonCG Prodigy "
    "ProximalGradient RMSProp TrustRegion",
    "_argmin": "argmin",
    "_certificate": "certify",
    "_functional": "functional",
    "_least_squares": "LeastSquaresResult least_squares",
    "_many": "ManyResult minimize_many",
    "_minimize": "minimize",
    "_race": "Race race",
    "_result": "Certificate History Info Result TrainResult",
    "_saved": "load save",
    "_status": "ConvergenceWarning Status",
    "_stop": "Seconds Stall Steps StopRule Tolerance",
    "_train": "train",
}
__getattr__ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)

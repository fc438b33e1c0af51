"""The public names, for type checkers and for lazy_loader, which imports them at first use."""

from . import autodiff as autodiff
from . import data as data
from . import inference as inference
from . import linalg as linalg
from . import losses as losses
from . import models as models
from . import optimizers as optimizers
from . import plots as plots
from . import problems as problems
from . import prox as prox
from . import schedules as schedules
from . import special as special
from . import testing as testing
from ._argmin import argmin as argmin
from ._certificate import certify as certify
from ._functional import functional as functional
from ._least_squares import LeastSquaresResult as LeastSquaresResult, least_squares as least_squares
from ._many import ManyResult as ManyResult, minimize_many as minimize_many
from ._minimize import minimize as minimize
from ._platform.config import show_config as show_config
from ._race import Race as Race, race as race
from ._result import (
    Certificate as Certificate,
    History as History,
    Info as Info,
    Result as Result,
    TrainResult as TrainResult,
)
from ._saved import load as load, save as save
from ._status import ConvergenceWarning as ConvergenceWarning, Status as Status
from ._stop import (
    Seconds as Seconds,
    Stall as Stall,
    Steps as Steps,
    StopRule as StopRule,
    Tolerance as Tolerance,
)
from ._train import train as train
from .autodiff import (
    GradientCheck as GradientCheck,
    GradientError as GradientError,
    TapeError as TapeError,
    check_grads as check_grads,
    grad as grad,
    hessian as hessian,
    hvp as hvp,
    jacobian as jacobian,
    per_example_grad as per_example_grad,
    value_and_grad as value_and_grad,
)
from .data import batches as batches
from .optimizers import (
    BFGS as BFGS,
    LBFGS as LBFGS,
    LBFGSB as LBFGSB,
    SGD as SGD,
    Adagrad as Adagrad,
    Adam as Adam,
    AdamW as AdamW,
    Clipped as Clipped,
    ConjugateGradient as ConjugateGradient,
    GaussNewton as GaussNewton,
    GradientDescent as GradientDescent,
    Grouped as Grouped,
    LevenbergMarquardt as LevenbergMarquardt,
    Lion as Lion,
    Momentum as Momentum,
    Newton as Newton,
    NewtonCG as NewtonCG,
    Prodigy as Prodigy,
    ProximalGradient as ProximalGradient,
    RMSProp as RMSProp,
    TrustRegion as TrustRegion,
)

__version__: str
__all__: list[str]

"""The names of `mlxopt.optimizers`, each once; see `mlxopt/__init__.pyi`."""

from ._base import (
    FirstOrder as FirstOrder,
    FirstOrderState as FirstOrderState,
    Optimizer as Optimizer,
    State as State,
)
from ._descent import (
    Descent as Descent,
    DescentState as DescentState,
    Direction as Direction,
    Trial as Trial,
)
from .adagrad import Adagrad as Adagrad
from .adam import Adam as Adam, AdamW as AdamW
from .bfgs import BFGS as BFGS
from .conjugate_gradient import ConjugateGradient as ConjugateGradient
from .gauss_newton import GaussNewton as GaussNewton
from .gradient_descent import GradientDescent as GradientDescent
from .grouped import Clipped as Clipped, Grouped as Grouped
from .lbfgs import LBFGS as LBFGS
from .lbfgsb import LBFGSB as LBFGSB
from .levenberg_marquardt import (
    LevenbergMarquardt as LevenbergMarquardt,
    LevenbergMarquardtState as LevenbergMarquardtState,
)
from .lion import Lion as Lion
from .momentum import Momentum as Momentum
from .newton import Newton as Newton
from .newton_cg import NewtonCG as NewtonCG
from .prodigy import Prodigy as Prodigy
from .proximal import ProximalGradient as ProximalGradient
from .rmsprop import RMSProp as RMSProp
from .sgd import SGD as SGD
from .trust_region import TrustRegion as TrustRegion

__all__: list[str]

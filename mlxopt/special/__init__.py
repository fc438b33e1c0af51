"""Functions accurate to the last digits in float64 and float32, with derivatives of every order.

In float64 on the CPU these functions of MLX have seven digits: exp, sin, cos, sigmoid, softmax,
logsumexp, logaddexp, logcumsumexp, erf, erfinv, and the derivatives of tan, log2 and log10. MLX has
no gamma function, and a textbook formula in MLX operations often has a derivative that is wrong at
0 or NaN in a tail. The functions here are within 4 units in the last place in both dtypes (erfc and
normal_log_cdf within 16), follow C at ±0, infinity and NaN, and can be differentiated in either
mode, to any order, compiled and mapped with `mx.vmap`. float16 and bfloat16 are computed in
float32, integers give float32.

While mlxopt calls a loss with float64 arguments, `mx.exp` and the like are these functions for
float64 arrays; elsewhere they are MLX's own.

>>> import mlx.core as mx, mlxopt.special
>>> mlxopt.special.sigmoid(mx.array([-1.0, 0.0, 1.0]))
array([0.268941, 0.5, 0.731059], dtype=float32)
"""

from mlxopt.special._erf import erf, erfc, erfinv, normal_cdf, normal_log_cdf
from mlxopt.special._exp import exp, expm1, log, log1p, log2, log10
from mlxopt.special._gamma import betaln, digamma, lgamma, trigamma
from mlxopt.special._logistic import (
    log_sigmoid,
    log_softmax,
    logaddexp,
    logcumsumexp,
    logsumexp,
    sigmoid,
    softmax,
    softplus,
)
from mlxopt.special._trig import cos, sin, tan

__all__ = [
    "betaln",
    "cos",
    "digamma",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "expm1",
    "lgamma",
    "log",
    "log1p",
    "log2",
    "log10",
    "log_sigmoid",
    "log_softmax",
    "logaddexp",
    "logcumsumexp",
    "logsumexp",
    "normal_cdf",
    "normal_log_cdf",
    "sigmoid",
    "sin",
    "softmax",
    "softplus",
    "tan",
    "trigamma",
]


def __dir__() -> list[str]:
    return __all__

"""Matrix factorizations with derivatives, batching, and failures in words.

`mx.linalg` has no derivatives, and some of its functions return garbage where they fail. These here
can be differentiated any number of times, forwards and backwards, under `mx.vmap` and `mx.compile`,
and over leading axes; they run on the CPU whatever the default device. A failure raises
`LinAlgError`, in words, also within `mx.grad`. Where values are unknown, under `mx.compile` and
`mx.vmap`, it is NaN instead, which a line search backs away from.
"""

from mlxopt.linalg._cholesky import cholesky, logdet
from mlxopt.linalg._lu import inv, slogdet, solve
from mlxopt.linalg._qr import lstsq, qr
from mlxopt.linalg._rules import LinAlgError
from mlxopt.linalg._spectral import eigh, svd
from mlxopt.linalg._triangular import solve_triangular

__all__ = [
    "LinAlgError",
    "cholesky",
    "eigh",
    "inv",
    "logdet",
    "lstsq",
    "qr",
    "slogdet",
    "solve",
    "solve_triangular",
    "svd",
]

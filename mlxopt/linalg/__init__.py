"""Matrix factorizations with derivatives, batching, and errors.

`mx.linalg` has no derivatives, and some of its functions return garbage where they fail. The
functions here have derivatives of every order in both modes, under `mx.vmap` and `mx.compile`, and
work over leading axes; they run on the CPU under any default device. A failure raises
`LinAlgError`, also within `mx.grad`. Where values are unknown, under `mx.compile` and `mx.vmap`, it
is NaN instead, which a line search rejects.
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

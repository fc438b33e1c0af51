"""The names of `mlxopt.linalg`, each once; see `mlxopt/__init__.pyi`."""

from ._cholesky import cholesky as cholesky, logdet as logdet
from ._lu import inv as inv, slogdet as slogdet, solve as solve
from ._qr import lstsq as lstsq, qr as qr
from ._rules import LinAlgError as LinAlgError
from ._spectral import eigh as eigh, svd as svd
from ._triangular import solve_triangular as solve_triangular

__all__: list[str]

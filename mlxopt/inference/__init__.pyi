"""The names of `mlxopt.inference`, each once; see `mlxopt/__init__.pyi`."""

from ._covariance import covariance as covariance
from ._delta import delta as delta
from ._estimates import Estimates as Estimates, Intervals as Intervals
from ._profile import profile as profile

__all__: list[str]

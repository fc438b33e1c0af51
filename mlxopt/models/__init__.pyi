"""The names of `mlxopt.models`, each once; see `mlxopt/__init__.pyi`."""

from ._base import (
    NotFittedError as NotFittedError,
    RankWarning as RankWarning,
    SeparationWarning as SeparationWarning,
)
from .linear import LinearRegression as LinearRegression
from .logistic import LogisticRegression as LogisticRegression

__all__: list[str]

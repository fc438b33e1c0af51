"""Reference models with scikit-learn's conventions, and warnings that say what to distrust."""

from mlxopt.models._base import NotFittedError, RankWarning, SeparationWarning
from mlxopt.models.linear import LinearRegression
from mlxopt.models.logistic import LogisticRegression

__all__ = [
    "LinearRegression",
    "LogisticRegression",
    "NotFittedError",
    "RankWarning",
    "SeparationWarning",
]

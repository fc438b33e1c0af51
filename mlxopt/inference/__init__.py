"""How far an estimate can be trusted: covariances and intervals for any negative log-likelihood.

An estimate that maximizes a likelihood is itself a draw: other data would have given another one.
How much another is what the curvature of the likelihood knows, and what this module works out, in
float64 on the CPU whatever the fit was computed in.

Normalization. All of it rests on the negative log-likelihood of all the data, a sum over examples,
while a loss is best minimized as a mean. Write the function that returns one value for each
example; minimize its mean and hand the function itself in here, where it is summed:

    def negative_log_likelihood(params, X, y):          # shape (n,)
        return mo.losses.logistic(X @ params["w"], y)

    def loss(params, X, y):
        return mx.mean(negative_log_likelihood(params, X, y))

A function that returns one number is tried on parts of the data, and refused if it is a mean.
"""

from mlxopt.inference._covariance import covariance
from mlxopt.inference._delta import delta
from mlxopt.inference._estimates import Estimates, Intervals
from mlxopt.inference._profile import profile

__all__ = ["Estimates", "Intervals", "covariance", "delta", "profile"]

"""Covariances and intervals of estimates, for any negative log-likelihood.

All is computed in float64 on the CPU, from the curvature of a sum over examples. Write a function
that returns one value for each example; minimize its mean, and pass the function itself here:

    def negative_log_likelihood(params, X, y):          # shape (n,)
        return mo.losses.logistic(X @ params["w"], y)

    def loss(params, X, y):
        return mx.mean(negative_log_likelihood(params, X, y))

A function that returns one number is evaluated on parts of the data, and refused if it is a mean.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # of __init__.pyi

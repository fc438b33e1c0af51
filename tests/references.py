"""Data and small helpers that the tests of the models share."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the shared test data are not here")
GLM = json.loads((DATA / "glm" / "references.json").read_text()) if DATA.exists() else {}


def glm(name):
    """Columns, target, weights (or None) and whether there is an intercept, of a reference case."""
    case = GLM[name]
    with open(DATA / "glm" / case["file"]) as file:
        rows = list(csv.DictReader(file))

    def column(key):
        return np.array([float(row[key]) for row in rows])

    X = pd.DataFrame({c: column(c) for c in case["columns"] if c != "(Intercept)"})
    weights = column("weights") if case.get("has_weights") else None
    return X, column(case.get("response", "y")), weights, "(Intercept)" in case["columns"]


def glm_truth(name, key):
    """Coefficients ("coef") or standard errors ("se") of a reference case, intercept first."""
    return np.array([float(GLM[name][key][c]) for c in GLM[name]["columns"]])


def flights(*names):
    """Columns of the flights that have both delays."""
    table = np.load(DATA / "flights_delays.npz")
    kept = (table["arr_delay"] != -32768) & (table["dep_delay"] != -32768)
    return [table[name][kept].astype(int) for name in names]


def digits(found, true):
    """The log relative error, -log10 |found - true| / |true|, of the worst entry."""
    found, true = np.asarray(found, dtype=float), np.asarray(true, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(found - true) / np.where(true == 0, 1, np.abs(true))
        return float(-np.log10(error.max()))


def both(model, se=False):
    """Coefficients or standard errors with the intercept first, where there is one."""
    coef, intercept = (
        (model.coef_se_, model.intercept_se_) if se else (model.coef_, model.intercept_)
    )
    assert np.ndim(coef) == 1 + np.ndim(intercept)
    return np.r_[np.ravel(intercept)[: int(model.fit_intercept)], np.ravel(coef)]


def numbers(n=60, p=4, seed=0, noise=1.0):
    """Columns of several sizes and means, a linear target, and the generator to go on with."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) * [1, 10, 0.1, 3][:p] + [0, 500, 2, -7][:p]
    return X, X @ rng.normal(size=p) + 4 + noise * rng.normal(size=n), rng


def classes(n=200, p=3, seed=0):
    """Columns of several sizes and means, overlapping classes 0 and 1, and the generator."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) * [1, 10, 0.1][:p] + [0, 300, 2][:p]
    z = (X - X.mean(axis=0)) @ ([1.0, 0.1, -5.0][:p]) + 0.3
    return X, (rng.uniform(size=n) < expit(z)).astype(int), rng

"""A solver with bounds, a penalty or weight decay is refused: the finish would drop them."""

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt.models import LinearRegression, LogisticRegression

RNG = np.random.default_rng(3)
X = RNG.normal(size=(80, 3))
Y = X @ np.array([1.5, -2.0, 0.0]) + 0.3 + 0.1 * RNG.normal(size=80)
LABELS = (Y + RNG.normal(size=80) > 0).astype(int)
FITS = {LinearRegression: Y, LogisticRegression: LABELS}

REFUSED = [
    mo.ProximalGradient(mo.prox.L1(0.5)),
    mo.ProximalGradient(mo.prox.Box(0.0, 1.0)),
    mo.ProximalGradient(None),
    mo.LBFGSB(lower=0.0),
    mo.LBFGSB(upper=mx.ones(4)),
    mo.AdamW(0.01, weight_decay=0.1),
    mo.Lion(0.01, weight_decay=0.1),
    mo.Clipped(mo.AdamW(0.01), norm=1.0),
    mo.Grouped(mo.SGD(0.1), {"*": mo.AdamW(0.1)}),
]


class Bounded(mo.Newton):
    """A user's method with bounds of its own."""

    loss_alone = False


@pytest.mark.parametrize("model", FITS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("solver", [*REFUSED, Bounded()], ids=repr)
def test_a_solver_with_more_than_the_loss_is_refused(model, solver):
    fitted = model(solver=solver)
    with pytest.raises(ValueError, match=r"l2=.*mo\.minimize\(loss, params") as caught:
        fitted.fit(X, FITS[model])
    assert type(solver).__name__ in str(caught.value)
    assert not hasattr(fitted, "coef_")


@pytest.mark.parametrize("model", FITS, ids=lambda model: model.__name__)
@pytest.mark.parametrize(
    "solver",
    [
        mo.LBFGS(),
        mo.Newton(),
        mo.TrustRegion(),
        mo.Adam(0.1),
        mo.AdamW(0.1, weight_decay=0.0),
        mo.Clipped(mo.SGD(0.2), norm=10.0),
    ],
    ids=repr,
)
def test_others_end_where_the_default_ends(model, solver):
    expected = model().fit(X, FITS[model]).coef_
    found = model(solver=solver, max_steps=20_000).fit(X, FITS[model]).coef_
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_what_the_error_names_gives_the_penalized_answer():
    y, center = Y - Y.mean(), X - X.mean(axis=0)

    def loss(w, X, y):
        return 0.5 * mx.mean(mx.square(X @ w - y))

    start = mx.zeros(3, mx.float64)
    w = np.array(mo.minimize(loss, start, mo.ProximalGradient(mo.prox.L1(0.5)), center, y).params)
    slope = center.T @ (center @ w - y) / len(y)
    assert w[2] == 0  # the conditions of Karush, Kuhn and Tucker
    np.testing.assert_allclose(slope[:2], -0.5 * np.sign(w[:2]), rtol=1e-6)
    assert abs(slope[2]) <= 0.5

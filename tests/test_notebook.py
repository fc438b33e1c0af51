"""What a notebook shows, in a real kernel: one table, one bar, HTML of each kind of result."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import mlxopt as mo

BEGIN = """
import time
import mlx.core as mx
import numpy as np
import mlxopt as mo
from mlxopt import _progress

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 2))
y = X @ [1.0, -2.0] + 0.5 + 0.1 * rng.normal(size=60)

def loss(w, X, y):
    return mx.mean(mx.square(X @ w[:2] + w[2] - y))

def bowl(w):
    return mx.sum(mx.square(w - mx.array([1.0, 2.0, 3.0])))

def slow(info):
    time.sleep(0.01)

fit = mo.minimize(loss, mx.zeros(3), mo.LBFGS(), X, y)
nll = lambda w, X, y: 0.5 * mx.square(X @ w[:2] + w[2] - y)
model = mo.models.LinearRegression().fit(X, y)
"""
CELLS = {
    "the text of a summary": "str(model.summary())",
    "a printed summary": "print(model.summary())",
    "a summary": "model.summary()",
    "a model": "model",
    "a model without a fit": "mo.models.LogisticRegression(l2=0.5)",
    "a result": "fit",
    "a certificate": "fit.certificate",
    "estimates": "estimates = mo.inference.covariance(nll, fit.params, X, y); estimates",
    "intervals": "estimates.intervals()",
    "a race": """mo.race(mo.problems.get("Rosenbrock"), [mo.LBFGS(), mo.Newton()])""",
    "many results": """
axes = (0, None, None)
mo.minimize_many(loss, mx.zeros((4, 3)), mo.LBFGS(), X, y, in_axes=axes)
""",
    "a long run": """
_progress._PATIENCE = 0.2
run = mo.minimize(bowl, mx.zeros(3), mo.SGD(1e-3), tol=0, max_steps=600, callback=slow)
""",
    "a bar that was asked for": """
mo.minimize(bowl, mx.zeros(3), mo.LBFGS(), progress=True)
batches = mo.batches(X, batch_size=20)
mo.train(lambda w, x: bowl(w), mx.zeros(3), mo.SGD(0.1), batches, epochs=3, progress=True)
None
""",
    "a short run": "short = mo.minimize(bowl, mx.zeros(3), mo.LBFGS())",
    "no bar": """
options = {"tol": 0, "max_steps": 400, "callback": slow, "progress": False}
mo.minimize(bowl, mx.zeros(3), mo.SGD(1e-3), **options).steps
""",
    "a bar that fails": """
def stop(info):
    if info.step == 30:
        raise RuntimeError("stopped")
try:
    mo.minimize(bowl, mx.zeros(3), mo.SGD(1e-3), tol=0, callback=stop, progress=True)
except RuntimeError:
    print("caught")
""",
}


@pytest.fixture(scope="module")
def outputs():
    """Run all cells in one kernel; return the outputs of each."""
    cells = [nbformat.v4.new_code_cell(code) for code in (BEGIN, *CELLS.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    paths = [str(Path(mo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(env=env)
    assert not cells[0].outputs, cells[0].outputs
    return {name: cell.outputs for name, cell in zip(CELLS, cells[1:], strict=True)}


def only(outputs):
    """Return the one output of a cell."""
    assert len(outputs) == 1, outputs
    return outputs[0]


def test_a_summary_is_one_text(outputs):
    text = ast.literal_eval(only(outputs["the text of a summary"]).data["text/plain"])
    assert len(re.findall(r"^ *(intercept|x0|x1) ", text, re.MULTILINE)) == 3
    assert "std. error" in text
    printed = only(outputs["a printed summary"])
    assert (printed.name, printed.text.strip()) == ("stdout", text.strip())


HTML = {
    "a summary": ["std. error", "x1"],
    "a model": ["LinearRegression", "fit_intercept", "std. error", "x1"],
    "a model without a fit": ["LogisticRegression", "l2", "0.5"],
    "a result": ["Result", "optimality", "CONVERGED"],
    "a certificate": ["Certificate", "verdict", "curvature"],
    "estimates": ["Estimates", "60 examples", "params[1]", "std. error"],
    "intervals": ["95 % intervals", "lower", "params[2]"],
    "a race": ["Race of 2 optimizers", "Rosenbrock", "LBFGS", "with the fewest"],
    "many results": ["ManyResult", "problems", "4 CONVERGED"],
}


@pytest.mark.parametrize("name", HTML)
def test_each_kind_has_one_table_in_html_and_as_text(name, outputs):
    data = only(outputs[name]).data
    html = data["text/html"]
    for word in HTML[name]:
        assert word in html, (word, html)
    assert html.count("<table>") == html.count("</table>") > 0
    assert "<function" not in html
    assert data["text/plain"].strip()


def test_a_long_run_has_one_bar_that_ends_full(outputs):
    output = only(outputs["a long run"])
    assert output.output_type == "display_data"
    assert re.fullmatch(r"minimize ━+ 600/600 loss \S+ 0:00:0\d", output.data["text/plain"])


def test_each_run_that_shows_a_bar_has_one(outputs):
    first, second = outputs["a bar that was asked for"]
    assert first.data["text/plain"].startswith("minimize ━")
    assert second.data["text/plain"].startswith("train ━")
    bar, text = outputs["a bar that fails"]
    assert bar.data["text/plain"].startswith("minimize ━")
    assert text.text == "caught\n"


def test_a_short_run_shows_nothing(outputs):
    assert outputs["a short run"] == []
    assert only(outputs["no bar"]).output_type == "execute_result"

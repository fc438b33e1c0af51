"""What is shown to a person: the progress bar, results, and tables of coefficients."""

import re

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt._progress import ProgressBar
from mlxopt._result import Result
from mlxopt._status import Status
from mlxopt.models._summary import Summary

# --- The progress bar ----------------------------------------------------------------------------


def bowl(x):
    return mx.sum(mx.square(x - 1))


def test_a_bar_ends_full_where_it_stays(capsys):
    result = mo.minimize(bowl, mx.zeros(2), mo.LBFGS(), progress=True)
    assert f" {result.steps}/{result.steps} " in capsys.readouterr().err
    with ProgressBar("train", None, True) as bar:
        bar.update(7, 1.0)
    assert " 7/7 " in capsys.readouterr().err


def test_a_terminal_is_left_without_the_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich then takes anything for a terminal
    monkeypatch.setenv("TERM", "xterm")
    mo.minimize(bowl, mx.zeros(2), mo.LBFGS(), progress=True)
    written = capsys.readouterr().err
    assert "minimize" in written
    assert re.search(r"\x1b\[1A\x1b\[2K$", written)  # up one line, and erase it


# --- Results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
def test_a_result_fits_80_columns(status):
    result = mo.minimize(bowl, mx.zeros(11), mo.LBFGS())
    fields = {name: getattr(result, name) for name in Result.__dataclass_fields__}
    lines = repr(Result(**{**fields, "status": status})).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith(f"  status     {status.name}: ")
    others = [index for index, line in enumerate(lines) if line.startswith("  value ")]
    assert all(line.startswith(13 * " ") for line in lines[2 : others[0]])
    told = " ".join(" ".join(lines[1 : others[0]]).split())
    assert told == f"status {status.name}: {status.value}"


def test_no_number_of_a_result_is_broken():
    params = -1e-7 * mx.arange(1, 13, dtype=mx.float32)
    text = repr(mo.minimize(bowl, params, mo.SGD(0.0), tol=0, max_steps=1))
    shown = re.search(r"params = \[(.*?)\]", text, re.DOTALL)
    assert shown
    found = [float(number) for number in shown[1].split(",")]
    np.testing.assert_allclose(found, np.array(params), rtol=1e-5)


# --- Tables of coefficients ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimate", "freedom", "statistic", "probability"),
    [
        (2.0, np.inf, "2.000", "0.0455"),  # 2 (1 - Φ(2)) = 0.04550
        (-37.0, np.inf, "-37.000", "1.15e-299"),  # 2 Φ(-37) ≈ √(2/π) exp(-37²/2)/37 (1 - 37⁻²)
        (-38.0, np.inf, "-38.000", "<1e-300"),  # a subnormal number
        (60.0, np.inf, "60.000", "<1e-300"),  # underflows
        (9999.5, 3.0, "9999.500", "2.21e-12"),  # 4√3/π / t³ (1 + O(t⁻²))
        (123456.7, 3.0, "1.235e+05", "1.17e-15"),
        (np.nan, 3.0, "", ""),
    ],
)
def test_large_statistics_and_tiny_probabilities(estimate, freedom, statistic, probability):
    summary = Summary("Title", ["x"], np.array([estimate]), np.ones(1), freedom, {}, [])
    (row,) = summary._rows()
    assert row[3:] == [statistic, probability]
    assert probability in str(summary)
    assert probability.replace("<", "&lt;") in summary._repr_html_()

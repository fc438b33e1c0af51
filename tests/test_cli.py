"""The commands, from the outside: what they print, save and return."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from statsmodels.api import OLS, Logit, add_constant
from statsmodels.stats.proportion import proportion_confint
from typer.testing import CliRunner

import mlxopt
from mlxopt import _progress, plots
from mlxopt._platform import blas
from mlxopt._platform.config import facts
from mlxopt.cli import app, demo, doctor

RNG = np.random.default_rng(5)
FEATURES = RNG.normal([10.0, -3.0, 0.5], [2.0, 1.0, 0.1], size=(120, 3))
SLOPES = np.array([0.5, -1.0, 3.0])
CONTINUOUS = FEATURES @ SLOPES + RNG.normal(size=120)
BINARY = (CONTINUOUS + RNG.logistic(size=120) > np.median(CONTINUOUS)).astype(int)
PNG = b"\x89PNG\r\n\x1a\n"


def run(*arguments, code=0):
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == code, outcome.output
    return outcome


def words(text):
    """Return `text` with its line breaks and runs of spaces made single spaces."""
    return " ".join(text.split())


def write(path, outcomes, delimiter=",", columns=("area", "rooms", "age")):
    lines = [delimiter.join(["y", *columns])]
    for outcome, row in zip(outcomes, FEATURES.tolist(), strict=True):
        lines.append(delimiter.join([str(outcome), *map(repr, row)]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def linear_csv(tmp_path):
    return write(tmp_path / "linear.csv", map(repr, CONTINUOUS.tolist()))


@pytest.fixture
def logistic_csv(tmp_path):
    return write(tmp_path / "logistic.csv", ["yes" if label else "no" for label in BINARY])


# --- The front of the house ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["-m", "mlxopt"], ["-c", "from mlxopt.cli import main; main()"]]
)
def test_version(command):
    found = subprocess.run(
        [sys.executable, *command, "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"mlxopt {mlxopt.__version__}\n"
    assert found.stderr == ""


def test_the_command_line_itself_brings_neither_matplotlib_nor_scipy():
    code = "import sys, mlxopt.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "scipy"} & set(found.stdout.split())


def test_help_shows_examples():
    for command, examples in ([], 5), (["demo"], 2), (["fit"], 3):
        lines = run(*command, "--help").stdout.splitlines()
        assert sum(line.startswith("    mlxopt ") for line in lines) == examples


def test_examples_of_the_help_are_understood(tmp_path, monkeypatch, linear_csv):
    monkeypatch.chdir(tmp_path)
    houses = linear_csv.read_text().replace("y,", "price,", 1)
    (tmp_path / "houses.csv").write_text(houses)
    (tmp_path / "trial.csv").write_text("died,dose\n" + "0,1\n1,2\n0,3\n1,1.5\n0,2.5\n" * 4)
    text = run("fit", "--help").stdout
    examples = [line.split()[1:] for line in text.splitlines() if line.startswith("    mlxopt ")]
    for example in examples:
        run(*example)
    assert (tmp_path / "fit.png").exists()
    assert (tmp_path / "model.npz").exists()


# --- demo ----------------------------------------------------------------------------------------


def rows(text):
    """Return the cells of the tables' rows, by (table, method)."""
    tables = re.split(r"^.* regression, .*$", text, flags=re.MULTILINE)[1:]
    found = {}
    for table, name in zip(tables, ("linear", "logistic"), strict=True):
        for line in table.splitlines():
            cells = re.split(r"\s{2,}", line.strip())
            if len(cells) >= 4 and re.match(r"[\d.]+ m?s$", cells[1]):
                found[name, cells[0]] = cells[1:]
    return found


OURS = ["SGD", "Momentum", "Newton", "L-BFGS"]


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        (["--quick"], ((1000, 20), (500, 20))),
        pytest.param([], ((10_000, 100), (1000, 100)), marks=pytest.mark.slow),
    ],
    ids=["quick", "full"],
)
def test_demo(options, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    picture = tmp_path / "curves.png"
    text = run("demo", *options, "--out", picture).stdout
    found = rows(text)
    assert list(found) == [
        *(("linear", method) for method in [*OURS, "closed form", "NumPy lstsq", "NumPy SGD"]),
        *(
            ("logistic", method)
            for method in [*OURS, "reference model", "NumPy Newton", "NumPy SGD"]
        ),
    ]
    # Every method recovers the parameters as well as the closed form does, to 1 %.
    problem = demo.linear_problem(*shapes[0], seed=0)
    best = np.linalg.lstsq(problem.X.astype(float), problem.y.astype(float))[0]
    expected = np.linalg.norm(best - problem.truth)
    for (name, method), cells in found.items():
        if name == "linear":
            assert float(cells[-2]) == pytest.approx(expected, rel=0.01), method
            assert abs(float(cells[-1].rstrip("%"))) <= 1
        else:  # float32 gradients of a mean, at a tolerance of 1e-5, over curvatures near 0.03
            assert float(cells[-1]) < 2e-3, method
        if method in ("SGD", "Momentum", "NumPy SGD"):
            assert cells[1] == f"{demo.STEPS:,}"
    # The same rule at the same rate, in MLX and in NumPy, to the digits that are printed.
    ours, theirs = (float(found["linear", method][-2]) for method in ("SGD", "NumPy SGD"))
    assert ours == pytest.approx(theirs, abs=2e-6)
    assert "Every method ends within 1 %" in words(text)
    assert picture.read_bytes().startswith(PNG)
    assert max(map(len, text.replace(str(picture), "").splitlines())) <= 80


@pytest.mark.slow  # it compiles, for ten seconds
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="no g++ on Linux")
def test_demo_compiles_nothing_while_it_takes_the_time(tmp_path):
    code = """
import sys
from pathlib import Path
from mlxopt.cli import demo
def kernels():
    return {path.name for path in Path(sys.argv[1]).rglob("*.so")}
problems = demo.linear_problem(1000, 20, 0), demo.logistic_problem(500, 20, 0)
demo._run_all(problems, str)
first = kernels()
demo._run_all(problems, str)
print(len(first), len(kernels() - first))
"""
    command, env = [sys.executable, "-c", code, tmp_path], {**os.environ, "TMPDIR": str(tmp_path)}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    first, later = map(int, found.stdout.split())
    assert first > 0
    assert later == 0


def test_demo_says_so_where_a_method_misses(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "STEPS", 300)
    text = run("demo", "--quick", "--out", tmp_path / "curves.png").stdout
    assert "NOT every method ends within 1 %" in words(text)


@pytest.mark.parametrize("seed", range(5))
def test_demo_classes_overlap(seed):
    problem = demo.logistic_problem(1000, 100, seed)
    # Separable data have their optimum at infinity.
    assert np.linalg.norm(problem.optimum) < 5
    oracle = Logit(problem.y.astype(float), problem.X.astype(float)).fit(disp=0)
    np.testing.assert_allclose(problem.optimum, oracle.params, atol=1e-7)
    assert problem.lowest == pytest.approx(-oracle.llf / 1000, rel=1e-12)


# --- fit -----------------------------------------------------------------------------------------


def coefficients(text):
    """Return the rows of the coefficient table: name -> numbers."""
    body = text.split("───\n")[1].split("\n\n")[0]
    return {
        line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in body.splitlines()
    }


def test_fit_linear(linear_csv, tmp_path):
    oracle = OLS(CONTINUOUS, add_constant(FEATURES)).fit()
    out, picture = tmp_path / "model.npz", tmp_path / "fit.png"
    text = run("fit", linear_csv, "--target", "y", "--out", out, "--plot", picture).stdout
    table = coefficients(text)
    assert list(table) == ["intercept", "area", "rooms", "age"]
    expected = np.stack([oracle.params, oracle.bse, oracle.tvalues, oracle.pvalues], axis=1)
    np.testing.assert_allclose(list(table.values()), expected, rtol=2e-3, atol=6e-4)  # 3 digits
    with np.load(out, allow_pickle=False) as model:
        np.testing.assert_allclose(model["coef"], oracle.params[1:], rtol=1e-10)
        np.testing.assert_allclose(model["intercept"], oracle.params[0], rtol=1e-10)
        np.testing.assert_allclose(model["coef_se"], oracle.bse[1:], rtol=1e-10)
        assert (model["coef_error"] < 1e-6 * model["coef_se"]).all()
        np.testing.assert_allclose(model["intercept_se"], oracle.bse[0], rtol=1e-10)
        assert model["feature_names"].tolist() == ["area", "rooms", "age"]
        assert model["target"] == "y"
        assert str(model["sha256"])[:16] in text
        assert "classes" not in model
    assert picture.read_bytes().startswith(PNG)
    assert "120 read, 120 used" in text
    assert "linear regression" in text


def test_fit_logistic(logistic_csv, tmp_path):
    oracle = Logit(BINARY, add_constant(FEATURES)).fit(disp=0, tol=1e-12)
    out, picture = tmp_path / "model.npz", tmp_path / "fit.svg"
    text = run("fit", logistic_csv, "--target", "y", "--out", out, "--plot", picture).stdout
    yes = BINARY.sum()
    assert f"no in {120 - yes} rows and yes in {yes} rows" in words(text)
    assert "of the probability of yes" in words(text)
    expected = np.stack([oracle.params, oracle.bse, oracle.tvalues, oracle.pvalues], axis=1)
    np.testing.assert_allclose(list(coefficients(text).values()), expected, rtol=2e-3, atol=6e-4)
    with np.load(out, allow_pickle=False) as model:
        np.testing.assert_allclose(model["coef"], oracle.params[1:], rtol=1e-6)
        np.testing.assert_allclose(model["coef_se"], oracle.bse[1:], rtol=1e-6)
        assert model["classes"].tolist() == ["no", "yes"]
    assert b"<svg" in picture.read_bytes()


@pytest.mark.parametrize("labels", [("0", "1"), ("False", "True"), ("2", "3.5"), ("-", "+")])
def test_fit_takes_any_two_labels(labels, tmp_path):
    # Sorted, as scikit-learn sorts them: "+" comes before "-".
    high = max(labels)
    path = write(tmp_path / "table.csv", [labels[label] for label in BINARY])
    text = words(run("fit", path, "--target", "y").stdout)
    assert f"of the probability of {high}" in text
    signed = run("fit", write(tmp_path / "b.csv", BINARY), "--target", "y").stdout
    factor = 1 if labels[1] == high else -1
    ours, theirs = coefficients(run("fit", path, "--target", "y").stdout), coefficients(signed)
    for name in ours:
        assert ours[name][0] == pytest.approx(factor * theirs[name][0], rel=1e-5)


def test_fit_model_can_be_chosen(tmp_path):
    path = write(tmp_path / "table.csv", BINARY)
    assert "logistic regression" in run("fit", path, "--target", "y").stdout
    text = run("fit", path, "--target", "y", "--model", "linear").stdout
    oracle = OLS(BINARY, add_constant(FEATURES)).fit()
    assert coefficients(text)["rooms"][0] == pytest.approx(oracle.params[2], rel=1e-4)


def test_fit_features_and_delimiter(tmp_path):
    columns = ("area", "rooms, all", "age")
    path = tmp_path / "table.tsv"
    write(path, map(repr, CONTINUOUS.tolist()), "\t", columns)
    options = ["--target", "y", "--delimiter", "tab", "--features", '"rooms, all",area']
    out = tmp_path / "model.npz"
    text = run("fit", path, *options, "--out", out).stdout
    oracle = OLS(CONTINUOUS, add_constant(FEATURES[:, [1, 0]])).fit()
    with np.load(out) as model:
        assert model["feature_names"].tolist() == ["rooms, all", "area"]
        np.testing.assert_allclose(model["coef"], oracle.params[1:], rtol=1e-10)
    assert "not used age" in words(text)


def test_fit_reports_what_it_left_out(linear_csv):
    lines = linear_csv.read_text().splitlines()
    lines[3] = "NA," + lines[3].split(",", 1)[1]
    lines[5] = lines[5].rsplit(",", 2)[0] + ",,"
    lines.insert(8, "")
    linear_csv.write_text("\n".join([*lines, lines[1], lines[1]]))
    text = words(run("fit", linear_csv, "--target", "y").stdout)
    assert "122 read, 120 used" in text
    assert "2 with missing values: line 4 (y), line 6 (rooms, age)" in text
    assert "1 blank line: 9" in text
    assert "2 rows repeat an earlier row" in text


def test_fit_cuts_long_lists_of_columns(tmp_path):
    names = [f"c{index}" for index in range(30)]
    path = tmp_path / "table.csv"
    lines = ["y," + ",".join(names), *(f"{i}," + ",".join(["NA"] * 30) for i in range(3))]
    rows = RNG.normal(size=(40, 31)).tolist()
    path.write_text("\n".join([*lines, *(",".join(map(repr, row)) for row in rows)]))
    text = words(run("fit", path, "--target", "y", "--features", ",".join(names[:14])).stdout)
    assert f"features {', '.join(names[:12])} and 2 more" in text
    assert f"not used {', '.join(names[14:26])} and 4 more" in text
    assert "line 2 (c0, c1, c2, c3, c4 and 9 more), line 3 " in text


def test_notes_name_the_option_and_not_the_parameter(tmp_path, linear_csv):
    text = words(run("fit", linear_csv, "--target", "y", "--l2", "0.5").stdout)
    assert "Note: with --l2 the coefficients" in text
    assert "l2 > 0" not in text
    path = tmp_path / "table.csv"
    path.write_text("y,a,b\n" + "".join(f"{i % 3 % 2},{i},{2 * i}\n" for i in range(9)))
    text = words(run("fit", path, "--target", "y").stdout)
    assert "or use --l2." in text
    assert "l2 > 0" not in text


def test_fit_shows_no_progress_bar_of_a_model(logistic_csv, monkeypatch):
    monkeypatch.setattr("mlxopt._progress._in_a_notebook", lambda: True)  # somebody is watching
    monkeypatch.setattr("mlxopt._progress._PATIENCE", 0.0)
    opened = []
    bar = _progress.ProgressBar
    monkeypatch.setattr(bar, "_open", lambda self: opened.append(self._label) or exit())
    with pytest.raises(SystemExit):
        mlxopt.minimize(lambda x: (x * x * x * x).sum(), demo.mx.ones(2), mlxopt.LBFGS())
    assert opened == ["minimize"]  # so the trap works
    run("fit", logistic_csv, "--target", "y")
    assert opened == ["minimize"]


def test_fit_warnings_become_notes(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("y,a,b\n" + "".join(f"{i * i},{i},{2 * i}\n" for i in range(9)))
    outcome = run("fit", path, "--target", "y")
    assert outcome.stdout.count("Note: column") == 1
    assert outcome.stderr == ""
    path.write_text("y,a\n" + "".join(f"{int(i > 4)},{i}\n" for i in range(9)))
    outcome = run("fit", path, "--target", "y")
    assert "Note: " in outcome.stdout
    assert outcome.stderr == ""


@pytest.mark.parametrize(
    ("outcomes", "options", "says"),
    [
        (["a", "b", "c"], [], "text with 3 distinct values, 'a' (40), 'b' (40), 'c' (40)"),
        (["a"], [], "text with 1 distinct value, 'a' (120)"),
        (["a", "b"], ["--model", "linear"], "line 2, column y: 'a' is not a number"),
        (["1", "2", "3"], ["--model", "logistic"], "this one has 3"),
        (["1", "0", "O"], [], "line 4, column y: 'O' is not a number"),
        (["1", "0", "2,5"], [], "line 4, column y: '2,5' has a decimal comma"),
        (["NA"], [], "none of the 120 rows is complete; missing are y in 120"),
        (["1", "2", "3"], ["--features", "area,,age"], "has an empty name"),
        (["1", "2", "3"], ["--features", "area,room"], "Did you mean 'rooms'?"),
        (["1", "2", "3"], ["--delimiter", "ab"], "expected one character"),
        (["1", "2", "3"], ["--plot", "fit.docx"], "must end in one of"),
        (["1", "2", "3"], ["--out", "none/model.npz"], "there is no folder none"),
        (["1", "2", "3"], ["--out", "."], "is a folder"),
        (["1", "2", "3"], ["--out", "model.csv"], "must end in .npz"),
        (["$1,200", "$900", "$80"], [], "line 2, column y: '$1,200' has a currency sign and a"),
        (["5%", "7 %"], ["--model", "linear"], "Write 5. The column has more such cells."),
    ],
)
def test_fit_refuses(outcomes, options, says, tmp_path):
    cells = [f'"{outcomes[i % len(outcomes)]}"' for i in range(120)]
    path = write(tmp_path / "table.csv", cells)
    outcome = run("fit", path, "--target", "y", *options, code=2)
    assert says in outcome.stderr
    assert outcome.stderr.startswith("Error: ")
    assert outcome.stderr.count("\n") == 1
    assert outcome.stdout == ""


@pytest.mark.parametrize("kind", ["itself", "symlink", "hardlink"])
@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_fit_never_overwrites_its_table(option, kind, tmp_path):
    ending = {"--out": "npz", "--plot": "png"}[option]
    table = write(tmp_path / f"table.{ending}", map(repr, CONTINUOUS.tolist()))
    before, other = table.read_bytes(), tmp_path / f"other.{ending}"
    if kind == "symlink":
        other.symlink_to(table)
    elif kind == "hardlink":
        other.hardlink_to(table)
    else:
        other = table
    outcome = run("fit", table, "--target", "y", option, other, code=2)
    assert f"FILE.csv and {option} are the same file" in outcome.stderr
    assert outcome.stdout == ""
    assert table.read_bytes() == before


def test_fit_writes_the_model_and_the_picture_to_two_files(linear_csv, tmp_path):
    (tmp_path / "fit.png").symlink_to(tmp_path / "model.npz")  # which is not there yet
    options = ["--out", tmp_path / "model.npz", "--plot", tmp_path / "fit.png"]
    outcome = run("fit", linear_csv, "--target", "y", *options, code=2)
    assert "--out and --plot are the same file" in outcome.stderr
    assert not (tmp_path / "model.npz").exists()


def test_wrong_options_end_with_code_2(linear_csv):
    run("fit", code=2)
    run("fit", linear_csv, code=2)
    run("fit", linear_csv, "--target", "y", "--model", "cubic", code=2)
    run("demo", "--seed", "-1", code=2)


def test_ctrl_c_ends_with_code_130(linear_csv, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(mlxopt.models.LinearRegression, "fit", interrupted)
    run("fit", linear_csv, "--target", "y", code=130)


def test_brackets_in_names_are_not_markup(tmp_path):
    path = write(tmp_path / "[red]t.csv", map(repr, CONTINUOUS.tolist()), columns=("[b]", "c", "d"))
    text = run("fit", path, "--target", "y").stdout
    assert "[b]" in coefficients(text)
    assert "[red]t.csv" in "".join(text.split())


# --- The pictures --------------------------------------------------------------------------------


def test_calibration_shows_shares_with_wilson_intervals():
    probabilities = RNG.uniform(size=400)
    labels = (RNG.uniform(size=400) < probabilities).astype(float)
    ax = plots.calibration(labels, probabilities, ax=Figure().subplots())
    (errorbar,) = ax.containers
    assert isinstance(errorbar, ErrorbarContainer)
    points = errorbar.lines[0]
    order = np.argsort(probabilities)
    shares = labels[order].reshape(10, 40).mean(axis=1)
    np.testing.assert_allclose(
        np.asarray(points.get_xdata()), probabilities[order].reshape(10, 40).mean(axis=1)
    )
    np.testing.assert_allclose(np.asarray(points.get_ydata()), shares)
    segments = np.array(errorbar.lines[2][0].get_segments())[:, :, 1]
    low, high = proportion_confint(40 * shares, 40, method="wilson")
    np.testing.assert_allclose(segments, np.stack([low, high], axis=1), atol=1e-7)


def test_loss_curves_end_at_the_floor():
    step = np.arange(5)
    history = mlxopt.History(step, np.array([3.0, 2.0, 1.5, 1.0 + 1e-9, 1.0]), step, step)
    axes = Figure().subplots()
    ax = plots.loss_curves({"run": history}, lowest=1.0, floor=1e-7, ax=axes)
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_ydata()), [2.0, 1.0, 0.5, 1e-7, 1e-7])
    ax = plots.loss_curves({"run": history}, lowest=1.0, ax=Figure().subplots())
    assert np.asarray(ax.lines[0].get_xdata()).tolist() == [
        0,
        1,
        2,
        3,
    ]  # nothing to draw where the gap is zero


def test_residuals_show_the_means_of_groups():
    fitted = RNG.normal(size=400)
    observed = fitted + RNG.normal(size=400)
    ax = plots.residuals(observed, fitted, ax=Figure().subplots())
    means = (observed - fitted)[np.argsort(fitted)].reshape(20, 20).mean(axis=1)
    np.testing.assert_allclose(np.asarray(ax.lines[-1].get_ydata()), means)


def test_fit_takes_a_penalty(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    y = X @ [1.0, 2.0] + rng.normal(size=30)
    path = tmp_path / "t.csv"
    path.write_text(
        "y,a,b\n"
        + "".join(f"{v!r},{r[0]!r},{r[1]!r}\n" for v, r in zip(y.tolist(), X.tolist(), strict=True))
    )
    result = CliRunner().invoke(
        app, ["fit", str(path), "--target", "y", "--l2", "0.5", "--out", str(tmp_path / "m.npz")]
    )
    assert result.exit_code == 0
    centered = X - X.mean(axis=0)
    expected = np.linalg.solve(
        centered.T @ centered / 30 + 0.5 * np.eye(2), centered.T @ (y - y.mean()) / 30
    )
    np.testing.assert_allclose(np.load(tmp_path / "m.npz")["coef"].ravel(), expected, rtol=1e-10)
    assert CliRunner().invoke(app, ["fit", str(path), "--target", "y", "--l2", "-1"]).exit_code == 2


def test_doctor_tells_what_mlx_runs_on(monkeypatch):
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert f"mlx {importlib.metadata.version('mlx')}" in text
    assert "device" in text
    for measured in re.findall(r"product (\d+) GFLOP/s.*?sum ([\d.]+) GB/s", text):
        assert all(float(number) > 0 for number in measured)
    assert re.search(r"relative error \de-\d+", text)


def test_show_config_and_doctor_state_the_same_facts(capsys):
    mlxopt.show_config()
    printed = " ".join(capsys.readouterr().out.split())
    result = CliRunner().invoke(app, ["doctor"])
    rows = facts()
    assert {"mlxopt", "mlx", "numpy", "Python", "device", "BLAS"} <= {name for name, _ in rows}
    for name, text in rows:
        assert f"{name} {text}".strip() in printed
        assert text in " ".join(result.output.split())


def test_doctor_gives_a_reason_only_where_it_says_more(monkeypatch):
    said = {}
    reasons = {
        "MKL": "MLX calls MKL.",
        "OpenBLAS": "MLX calls OpenBLAS; MKL is damaged.",
        None: "There is no other.",
    }
    for library, reason in reasons.items():
        binding = blas.Binding(library, None, 0, reason, 0.0)
        monkeypatch.setattr(blas, "binding", lambda binding=binding: binding)
        said[library] = [text for name, text in facts() if name in ("BLAS", "")]
    assert said == {
        "MKL": ["MKL"],
        "OpenBLAS": ["OpenBLAS", "MLX calls OpenBLAS; MKL is damaged."],
        None: ["MLX's own", "There is no other."],
    }


def test_doctor_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.blas, "binding", lambda: blas.Binding(None, None, 0, "Why.", 0.0))
    advice = " ".join(doctor._advice())
    assert "apt-get install g++" in advice
    assert "A faster BLAS" in advice

"""Every tutorial runs from top to bottom, draws its pictures, and ends by asserting what it said.

The files are in the percent format that Jupytext and VS Code read: `# %% [markdown]` begins a cell
of prose, `# %%` a cell of code. Each is run as a plain script, in a process of its own and an empty
folder. To see the pictures, name a folder: `MLXOPT_TUTORIAL_OUT=pictures pytest
tests/test_tutorials.py` leaves `01_1.png`, `01_2.png`, ... in it.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).resolve().parents[1] / "tutorials").glob("*.py"))
each_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)

# A tutorial shows its figures with plt.show(), which leaves them open where there is no screen.
RUNNER = """
import runpy, sys, warnings
from pathlib import Path
import mlxopt
warnings.simplefilter("error", mlxopt.ConvergenceWarning)
tutorial, folder = sys.argv[1:]
runpy.run_path(tutorial, run_name="__main__")
from matplotlib import pyplot as plt
for number in plt.get_fignums():
    figure = plt.figure(number)
    if any(ax.has_data() for ax in figure.axes):
        figure.savefig(Path(folder) / f"{Path(tutorial).name[:2]}_{number}.png", dpi=100)
    else:
        sys.exit(f"figure {number} is empty")
"""


def run(tutorial: Path, tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    """Run a tutorial in an empty folder; return how it ended, and its pictures."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", RUNNER, str(tutorial), str(pictures)],
        cwd=empty, env={**os.environ, "MPLBACKEND": "Agg"}, capture_output=True, text=True,
    )  # fmt: skip
    assert not list(empty.iterdir()), "a tutorial leaves no files behind"
    if chosen := os.environ.get("MLXOPT_TUTORIAL_OUT"):
        shutil.copytree(pictures, chosen, dirs_exist_ok=True)
    return ended, sorted(pictures.iterdir())


def cells(text: str) -> list[tuple[str, str]]:
    """Return the cells of a file in percent format as ("markdown" or "code", source)."""
    before, *parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    assert not before.strip(), "nothing stands before the first cell"
    titles = [title.strip() for title in parts[::2]]
    assert set(titles) <= {"", "[markdown]"}, f"cell titles {sorted(set(titles))}"
    kinds = ["markdown" if title else "code" for title in titles]
    return list(zip(kinds, parts[1::2], strict=True))


def prose(source: str) -> str:
    """Return a markdown cell without its comment signs."""
    lines = source.strip().splitlines()
    assert all(line == "#" or line.startswith("# ") for line in lines), source
    return "\n".join(line[2:] for line in lines)


def check_format(text: str) -> None:
    """Assert that the text is a tutorial in percent format: a title first, assertions last."""
    found = cells(text)
    assert found[0][0] == "markdown"
    assert prose(found[0][1]).startswith("# ")
    assert found[-1][0] == "code"
    assert any(isinstance(node, ast.Assert) for node in ast.parse(found[-1][1]).body)
    for kind, source in found:
        if kind == "markdown":
            assert prose(source).count("$") % 2 == 0, f"an unpaired $ in: {source}"
        else:
            assert ast.parse(source).body, f"a code cell without code: {source!r}"


def test_the_tutorials_are_there():
    assert [path.name[:2] for path in TUTORIALS] == [
        f"{n:02}" for n in range(1, len(TUTORIALS) + 1)
    ]
    assert len(TUTORIALS) >= 3


@each_tutorial
def test_runs_and_draws(path, tmp_path):
    ended, pictures = run(path, tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Warning" not in ended.stderr
    assert pictures


@each_tutorial
def test_percent_format(path):
    check_format(path.read_text(encoding="utf-8"))


GOOD = """\
# %% [markdown]
# # A title with $x$

# %%
import matplotlib.pyplot as plt
plt.plot([1, 2])

# %%
assert 1 + 1 == 2
"""
LEAK = """
import mlx.core as mx, mlxopt as mo
mo.minimize(lambda w: mx.sum(mx.exp(w)), mx.zeros(2), mo.SGD(1e-3), max_steps=2)
"""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD, ""),
        (GOOD.replace("1 + 1", "1 + 2"), "AssertionError"),
        (GOOD + LEAK, "MAX_STEPS"),
        (GOOD.replace("plt.plot([1, 2])", "plt.figure()"), "figure 1 is empty"),
    ],
    ids=["good", "false claim", "leaked warning", "empty figure"],
)
def test_the_run_is_judged(text, complaint, tmp_path, monkeypatch):
    monkeypatch.delenv("MLXOPT_TUTORIAL_OUT", raising=False)
    tutorial = tmp_path / "99_planted.py"
    tutorial.write_text(text)
    ended, pictures = run(tutorial, tmp_path)
    if complaint:
        assert ended.returncode != 0
        assert complaint in ended.stderr
    else:
        assert ended.returncode == 0, ended.stderr
        assert [picture.name for picture in pictures] == ["99_1.png"]


@pytest.mark.parametrize(
    "text",
    [
        "import os\n" + GOOD,
        GOOD.replace("# # A title", "# No title"),
        GOOD.replace("assert 1 + 1 == 2", "print(2)"),
        GOOD.replace("$x$", "$x"),
        GOOD.replace("# %%\nassert", "# %% [code]\nassert"),
        GOOD + "\n# %% [markdown]\n# An afterthought\n",
    ],
    ids=["before", "no title", "no assert", "dollar", "odd cell", "prose last"],
)
def test_the_format_is_judged(text):
    check_format(GOOD)
    with pytest.raises(AssertionError):
        check_format(text)

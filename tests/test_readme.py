"""README.md tells the truth: its code runs, prints what it shows, and its commands exist.

Every ```python block runs, in order, in one namespace and in an empty folder. A block of plain text
(``` or ```text) directly below one is what it prints. In a ```console block each line that begins
with `$ mlxopt` is run, between them, and what stands below it is what that prints. What is shown is
compared with what is printed like this:

- Text must be the same, but for spaces: how arrays are aligned depends on their digits.
- Whole numbers must be the same. A line of a result that begins with `steps` is let off by a
  quarter: how many steps a run takes is decided by rounding, which differs between devices.
- Other numbers must agree within 1e-3, relative, plus 1e-5. The README computes in float32 with the
  default tolerance of 1e-5 on the gradient, so that runs on two devices share three to four digits,
  and what is itself as small as the tolerance (a gradient that has converged) is noise.
- Times are masked: a number with a unit of time, and a line that begins with `seconds`.

A block that speaks of a ConvergenceWarning must give one, and no other may.

In ```sh, ```bash and ```console blocks, every `mlxopt` command must exist and have the options that
are shown. Links to files must lead to files.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import mlxopt

README = Path(__file__).resolve().parents[1] / "README.md"
PAGES = [README, *sorted((README.parent / ".github").glob("*.md"))]

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(
    r"((?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][-+]?\d+)?(?![\w,]*[A-Za-z_]))"
)
SEPARATORS = {"&&", "||", "|", ";", "&"}
TIME = re.compile(r"\d[\d.,e+-]*\s?(?:ns|µs|us|ms|s|sec|seconds?|min|minutes?)\b")


class Block(NamedTuple):
    """A fenced block of a Markdown file."""

    language: str  # "" if none is given
    source: str
    line: int  # of its first line, counted from 1
    follows: bool  # nothing but blank lines between it and the block above


def blocks(text: str) -> list[Block]:
    found, end = [], 0
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start(2)) + 1
        follows = bool(found) and not text[end : fence.start()].strip()
        found.append(Block(fence[1], fence[2], line, follows))
        end = fence.end()
    return found


def run_blocks(text: str, name: str) -> int:
    """Run the Python and console blocks of a Markdown text, comparing what they print; return how
    many there are.
    """
    found = blocks(text)
    namespace: dict[str, object] = {"__name__": "__main__"}
    count = 0
    for block, below in itertools.zip_longest(found, found[1:]):
        if block.language == "console":
            run_console(block, name)
            count += 1
        if block.language != "python":
            continue
        # Empty lines in front, so that a traceback shows the lines of the Markdown file.
        code = compile("\n" * (block.line - 1) + block.source, name, "exec", dont_inherit=True)
        printed = io.StringIO()
        warns = (
            pytest.warns(mlxopt.ConvergenceWarning)
            if "ConvergenceWarning" in block.source
            else contextlib.nullcontext()
        )
        with contextlib.redirect_stdout(printed), warns:
            exec(code, namespace)
        if below is not None and below.follows and below.language in ("", "text"):
            where = f"{name}, line {below.line}"
            compare(below.source, printed.getvalue(), where)
        count += 1
    return count


def run_console(block: Block, name: str) -> None:
    """Run the commands of a console block, comparing what they print."""
    before, *parts = re.split(r"^\$ mlxopt (.*)\n", block.source, flags=re.MULTILINE)
    assert not before.strip(), f"{name}, line {block.line}: expected `$ mlxopt ...`"
    for arguments, shown in zip(parts[::2], parts[1::2], strict=True):
        ended = subprocess.run(
            [sys.executable, "-m", "mlxopt", *shlex.split(arguments)],
            env={**os.environ, "COLUMNS": "80", "PYTHONUTF8": "1"},
            capture_output=True, encoding="utf-8",
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        compare(shown, ended.stdout, f"{name}, line {block.line}")


def compare(shown: str, printed: str, where: str = "") -> None:
    """Assert that two texts are the same by the rules above."""
    ours = [line for line in shown.splitlines() if line.strip()]
    theirs = [line for line in printed.splitlines() if line.strip()]
    message = f"{where}\nshown:\n{shown}\nprinted:\n{printed}"
    assert len(ours) == len(theirs), message
    for a, b in zip(ours, theirs, strict=True):
        assert same_line(a, b), f"{message}\nthe line {a!r} became {b!r}"


def same_line(shown: str, printed: str) -> bool:
    if shown.split()[0] == printed.split()[0] == "seconds":
        return True
    ours, theirs = (NUMBER.split(TIME.sub("<time>", line)) for line in (shown, printed))
    if len(ours) != len(theirs):
        return False
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if index % 2 == 0:
            if "".join(a.split()) != "".join(b.split()):
                return False
        elif not same_number(a, b, is_count=shown.split()[0] == "steps"):
            return False
    return True


def same_number(shown: str, printed: str, is_count: bool) -> bool:
    a, b = (float(number.replace(",", "")) for number in (shown, printed))
    if not re.search("[.eE]", shown + printed):
        return abs(a - b) <= (0.25 * abs(a) if is_count else 0)
    return abs(a - b) <= 1e-3 * abs(a) + 1e-5


def commands(text: str) -> list[list[str]]:
    """Return the `mlxopt` commands of the shell blocks, as lists of words."""
    found = []
    for block in blocks(text):
        if block.language not in ("sh", "bash", "console"):
            continue
        for line in block.source.replace("\\\n", " ").splitlines():
            if block.language == "console" and not line.startswith("$ "):
                continue  # what a command printed
            words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            # "a && b | c" is three commands.
            for joined, group in itertools.groupby(words, lambda word: word in SEPARATORS):
                command = list(group)
                while command and re.match(r"\w+=", command[0]):  # VARIABLE=value in front
                    command.pop(0)
                if not joined and command and command[0] == "mlxopt":
                    found.append(command)
    return found


def check_command(words: list[str]) -> None:
    """Assert that a command exists, and that its help knows the options used."""
    name = [word for word in words[1:2] if not word.startswith("-")]
    ended = subprocess.run(
        [sys.executable, "-m", "mlxopt", *name, "--help"],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for word in words[1 + len(name) :]:
        if option := re.match(r"--?[A-Za-z][\w-]*", word):
            known = re.search(rf"(?<![\w-]){option[0]}(?![\w-])", ended.stdout)
            assert known, f"{shlex.join(words)}: no option {option[0]}"


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run_and_print_what_is_shown(page, empty_folder):
    found = run_blocks(page.read_text(encoding="utf-8"), str(page))
    assert found > 0 or page.name in ("ARCHITECTURE.md", "BENCHMARKS.md", "CHANGELOG.md")


@pytest.mark.parametrize("words", commands(README.read_text(encoding="utf-8")), ids=shlex.join)
def test_commands_exist(words):
    check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


# The rest tests the tests: what is wrong must be caught.

EXAMPLE = """\
Some prose.
```python
import math
x = math.pi
```
```python
print("pi is", x)
print([1, 2], "in 13 ms")
```
```text
pi is 3.1416
[1, 2] in 99 ms
```

```sh
pip install mlxopt && mlxopt demo
$ MLXOPT_BLAS=none mlxopt fit table.csv \\
    --target y  # a remark
```

```console
$ mlxopt --version
mlxopt VERSION
```
""".replace("VERSION", mlxopt.__version__)


def test_blocks_are_found_with_their_lines():
    found = blocks(EXAMPLE)
    assert [block.language for block in found] == ["python", "python", "text", "sh", "console"]
    assert [block.line for block in found] == [3, 7, 11, 16, 22]
    assert [block.follows for block in found] == [False, True, True, True, True]
    fit = ["mlxopt", "fit", "table.csv", "--target", "y"]
    assert commands(EXAMPLE) == [["mlxopt", "demo"], fit, ["mlxopt", "--version"]]


def test_a_good_readme_passes(empty_folder):
    assert run_blocks(EXAMPLE, "EXAMPLE.md") == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [("3.1416", "3.15"), ("pi is 3", "tau is 3"), ("[1, 2] in 99", "[1, 3] in 99"),
     ("[1, 2] in 99 ms\n", "")],
    ids=["number", "word", "whole number", "missing line"],
)  # fmt: skip
def test_a_wrong_output_is_caught(old, new, empty_folder):
    assert old in EXAMPLE
    with pytest.raises(AssertionError, match=r"EXAMPLE\.md, line 11"):
        run_blocks(EXAMPLE.replace(old, new), "EXAMPLE.md")


@pytest.mark.parametrize(
    ("old", "new"),
    [(f"mlxopt {mlxopt.__version__}", "mlxopt 99"), ("mlxopt --version", "mlxopt nonsense"),
     ("$ mlxopt --version", "mlxopt --version")],
    ids=["output", "command", "no command"],
)  # fmt: skip
def test_a_wrong_console_is_caught(old, new, empty_folder):
    assert old in EXAMPLE
    with pytest.raises(AssertionError):
        run_blocks(EXAMPLE.replace(old, new), "EXAMPLE.md")


def test_an_error_is_reported_at_its_line(empty_folder):
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks(EXAMPLE.replace("x = math.pi", "x = 1 / 0"), "EXAMPLE.md")
    assert caught.traceback[-1].lineno + 1 == 4  # pytest counts lines from 0


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("[ 1.9999, -3.4]", "[2.0001, -3.4003]"),
        ("array([2, -3.4], dtype=float32)", "array([2.00001, -3.39999], dtype=float32)"),
        ("  grad_norm  3.1e-06", "  grad_norm  7.9e-06"),
        ("  steps      100 (101 evaluations)", "  steps      110 (111 evaluations)"),
        ("  seconds    0.02", "  seconds    1.4"),
        ("took 1.5 s, loss 2.0", "took 15 s, loss 2.0"),
        ("1,000 rows", "1,000 rows"),
    ],
)
def test_noise_is_forgiven(shown, printed):
    compare(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("2.000", "2.003"),
        ("-3.4", "3.4"),
        ("1e-3", "1.1e-3"),
        ("float32", "float64"),
        ("1,000 rows", "1,001 rows"),
        ("  steps      100 (101 evaluations)", "  steps      200 (201 evaluations)"),
        ("[1,2]", "[1,3]"),
        ("loss 1.0", "loss nan"),
        ("CONVERGED", "MAX_STEPS"),
        ("a\nb", "a"),
    ],
)
def test_differences_are_caught(shown, printed):
    with pytest.raises(AssertionError):
        compare(shown, printed)


def test_unknown_commands_and_options_are_caught():
    check_command(["mlxopt", "--version"])
    check_command(["mlxopt", "fit", "table.csv", "--target", "y"])
    with pytest.raises(AssertionError):
        check_command(["mlxopt", "nonsense"])
    with pytest.raises(AssertionError, match="no option --tar"):
        check_command(["mlxopt", "fit", "table.csv", "--tar=y"])
